"""What master, workers and the command line say to each other."""
