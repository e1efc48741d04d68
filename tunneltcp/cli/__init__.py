"""The command line: wires everything, and nobody imports it."""
