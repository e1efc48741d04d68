"""tunneltcp: a reverse TCP tunnel whose visitors outlive links and workers."""

__version__ = "0.1.0"
