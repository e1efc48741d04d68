"""The entry point of a worker."""

from __future__ import annotations

import faulthandler
from typing import TYPE_CHECKING

from setproctitle import setproctitle

from tunneltcp.control.context import Role
from tunneltcp.workers.client import ClientWorker
from tunneltcp.workers.server import ServerWorker
from tunneltcp.workers.successor import ClientSuccessor, ServerSuccessor

if TYPE_CHECKING:
    from tunneltcp.control.context import WorkerContext

__all__ = ["run_worker"]


def run_worker(context: WorkerContext) -> int:
    """Serve one tunnel in this process; return the exit code."""
    faulthandler.enable(2)  # where it was when it crashed, or hung, goes into its log
    setproctitle(f"tunneltcp {context.role.value}: {context.port} ({context.name})")
    is_server = context.role is Role.SERVER
    if context.crash_safe:
        return (ServerSuccessor if is_server else ClientSuccessor)(context).run()
    return (ServerWorker if is_server else ClientWorker)(context).run()
