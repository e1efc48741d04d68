"""What a master is told to do: values only."""
