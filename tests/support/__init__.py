"""What the tests share: programs to tunnel, faults to inject, bytes to check."""
