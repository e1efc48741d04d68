"""One tunnel in this very process: no fork, no master, nothing that only Linux has."""

from __future__ import annotations

import sys
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

import psutil
from loguru import logger

from tunneltcp.cli.live import (
    LOOK_SECONDS,
    Display,
    TunnelView,
    View,
    ended_line,
    ending_line,
)
from tunneltcp.config.model import (
    DEFAULT_DRAIN_SECONDS,
    DEFAULT_HOLD_SECONDS,
    DEFAULT_IDLE_PING_SECONDS,
    DEFAULT_MAX_VISITORS,
)
from tunneltcp.control.context import Role, WorkerContext
from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.errors import ExitCode
from tunneltcp.log import Throttle
from tunneltcp.workers.alone import AloneHost, raise_descriptor_limit
from tunneltcp.workers.client import ClientWorker

if TYPE_CHECKING:
    from tunneltcp.cli.expose import Exposed, Exposure

__all__ = ["run_one"]

MIN_BUDGET: Final = 4 << 20
MAX_BUDGET: Final = 64 << 20
"""Bytes for the rings, as a master allows: at most a sixteenth of the memory, since twelve
times as much address space is reserved and some systems count that as used."""

MAX_VISITORS: Final = 400 if sys.platform == "win32" else DEFAULT_MAX_VISITORS
"""Windows' select takes 512 sockets."""

SAY_AGAIN_SECONDS: Final = 60.0
"""A trouble that goes on is said again this often."""


def run_one(exposure: Exposure, host_id: str, keys: tuple[bytes, ...], *, plain: bool) -> int:
    """Serve one tunnel until a signal; return the exit code."""
    tunnel = exposure.tunnels[0]
    raise_descriptor_limit()
    display = Display(_title(exposure, tunnel), plain=plain)
    # The worker's log is for files; what a person should know it tells its host.
    logger.remove()
    logger.add(lambda message: display.say("ERROR", message.rstrip()), level="ERROR",
               format="{message}")  # fmt: skip
    session = _Session(exposure, _context(exposure, tunnel, host_id, keys), display)
    code = int(ExitCode.CRASH)
    try:
        code = session.run()
    finally:
        session.worker.close()
        display.say("INFO", session.summary())
        display.close()
    return code


def _title(exposure: Exposure, tunnel: Exposed) -> str:
    return f"{exposure.place(tunnel)} leads to {tunnel.target}  (Ctrl-C ends it)"


class _Session:
    """The worker and what is shown of it."""

    def __init__(self, exposure: Exposure, context: WorkerContext, display: Display) -> None:
        self._tunnel = exposure.tunnels[0]
        self._exposure = exposure
        self._display = display
        self._throttle = Throttle(every_seconds=SAY_AGAIN_SECONDS, max_kinds=16)
        self._who: list[dict[str, Any]] = []
        self._host = AloneHost(
            budget_bytes=context.budget_bytes,
            drain_seconds=DEFAULT_DRAIN_SECONDS,
            on_event=self._on_event,
            on_signal=self._on_signal,
        )
        self._ending = False
        self.worker = ClientWorker(context, self._host)

    def run(self) -> int:
        """Serve until a signal."""
        self._display.say("INFO", f"dialling {self._exposure.place(self._tunnel)}")
        if self._display.is_live:
            self.worker.loop.call_later(0.0, self._look)
        return self.worker.run()

    def summary(self) -> str:
        """Return the last line."""
        counters = self.worker.counters
        total, came = counters[Counter.VISITORS_TOTAL], counters[Counter.BYTES_IN]
        return ended_line(total, came, counters[Counter.BYTES_OUT])

    # --------------------------------------------------------------- what happens

    def _on_signal(self, number: int) -> None:
        del number
        count = self.worker.count_visitors()
        if count and not self._ending:
            self._display.say("INFO", ending_line(count))
        self._ending = True

    def _on_event(self, event: dict[str, Any]) -> None:
        """Show what a master would put into its log."""
        if event["type"] == "link":
            self._show()
        match event:
            case {"type": "link", "state": "up", "peer": peer}:
                place = self._exposure.place(self._tunnel)
                self._display.say(
                    "INFO", f"link up with {peer}: {place} leads to {self._tunnel.target}"
                )
            case {"type": "link", "state": "down", "reason": reason} if event.get("trouble"):
                self._warn(f"no link: {reason}")
            case {"type": "link", "state": "down", "reason": reason}:
                if not self._ending:
                    self._display.say("WARNING", f"link lost: {reason}")
            case {"type": "target", "reason": str(reason)}:
                self._warn(reason or "the target answers again")
            case {"type": "warning", "text": text}:
                self._warn(text)
            case {"type": "answer", "body": {"visitors": visitors}}:
                self._who = visitors

    def _warn(self, text: str) -> None:
        if self._throttle.admit(text, self.worker.loop.now) is not None:
            self._display.say("WARNING", text)

    # ---------------------------------------------------------------- what is shown

    def _look(self) -> None:
        """Show how it is, and ask who is there for the next time."""
        loop = self.worker.loop
        loop.call_later(LOOK_SECONDS, self._look)
        self._show()
        self._host.say({"type": "who", "number": 0})

    def _show(self) -> None:
        self._display.show(View(at=self.worker.loop.now, tunnels=(self._view(),)))

    def _view(self) -> TunnelView:
        counters = self.worker.counters
        rtt_us = counters[Counter.RTT_US]
        return TunnelView(
            port=self._tunnel.remote_port,
            target=self._tunnel.target,
            link=LinkState(counters[Counter.LINK_STATE]).name.lower(),
            rtt_ms=rtt_us / 1000 if rtt_us else None,
            visitors=counters[Counter.VISITORS],
            visitors_total=counters[Counter.VISITORS_TOTAL],
            bytes_in=counters[Counter.BYTES_IN],
            bytes_out=counters[Counter.BYTES_OUT],
            who=tuple(self._who),
        )


def _context(
    exposure: Exposure, tunnel: Exposed, host_id: str, keys: tuple[bytes, ...]
) -> WorkerContext:
    """Return what a master would hand to this worker; it has no descriptors to hand over."""
    port = tunnel.remote_port
    return WorkerContext(
        role=Role.CLIENT,
        instance="expose",
        port=port,
        name=f"tunnel-{port}",
        target_host=tunnel.local_host,
        target_port=tunnel.local_port,
        server_host=exposure.server,
        link_port=port,
        keys=keys,
        tls=exposure.tls,
        certificate_fd=-1,
        verify=False,
        host_id=host_id,
        run_id=token_hex(16),
        hold_seconds=DEFAULT_HOLD_SECONDS,
        idle_ping_seconds=DEFAULT_IDLE_PING_SECONDS,
        max_visitors=MAX_VISITORS,
        budget_bytes=max(MIN_BUDGET, min(MAX_BUDGET, psutil.virtual_memory().total // 16)),
        log_path=Path(),
        log_bytes=0,
        log_files=0,
        listener_fds=(),
        channel_fd=-1,
        counters_fd=-1,
        memory_fd=-1,
        master_pid=0,
    )
