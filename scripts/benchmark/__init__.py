"""The comparison: tunneltcp beside other ways to reach the same target, on one machine."""
