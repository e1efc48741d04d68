"""What runs in a worker: one tunnel, one side."""

from tunneltcp.workers.run import run_worker

__all__ = ["run_worker"]
