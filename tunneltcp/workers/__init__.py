"""What runs in a worker: one tunnel, one side.

Imports nothing by itself: ``tunneltcp expose`` needs a client and nothing else.
"""
