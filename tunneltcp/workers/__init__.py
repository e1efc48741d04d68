"""What runs in a worker: one tunnel, one side."""

from tunneltcp.workers.run import run_worker
from tunneltcp.workers.warm import warm_up

__all__ = ["run_worker", "warm_up"]
