"""The entry point of a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from setproctitle import setproctitle

from tunneltcp.control.context import Role
from tunneltcp.workers.client import ClientWorker
from tunneltcp.workers.server import ServerWorker

if TYPE_CHECKING:
    from tunneltcp.control.context import WorkerContext

__all__ = ["run_worker"]


def run_worker(context: WorkerContext) -> int:
    """Serve one tunnel in this process; return the exit code."""
    setproctitle(f"tunneltcp {context.role.value}: {context.port} ({context.name})")
    side = ServerWorker if context.role is Role.SERVER else ClientWorker
    return side(context).run()
