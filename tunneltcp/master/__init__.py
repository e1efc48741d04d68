"""The parent of the workers: keeps them alive and never sees a visitor's byte."""
