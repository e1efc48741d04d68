"""One tunnel in the master: what it has (``tunnel_state.py``), and the worker that serves it.

What is to be done is decided in ``process.py``; this is the thin code that does it and reports
back. Listeners and memory stay when a worker goes; each worker has a channel of its own. When
the master becomes another version of itself all of it goes on, the worker too (``upgrade.py``).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from tunneltcp import __version__
from tunneltcp.advice import port_trouble
from tunneltcp.config.plain import tunnel_from_plain
from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.master.channel import WorkerChannel
from tunneltcp.master.launch import launch
from tunneltcp.master.messages import (
    Answer,
    KeeperMade,
    LinkChanged,
    Ready,
    Replace,
    Resolve,
    StoodStill,
    TargetChanged,
    TookOver,
    Warned,
    WorkerMessage,
)
from tunneltcp.master.monitor import Sampler
from tunneltcp.master.process import Action, Input, ProcessState
from tunneltcp.master.questions import Questions
from tunneltcp.master.report import CHANGED, REPLACED, RESTARTED, describe_exit
from tunneltcp.master.resources import PortBusy
from tunneltcp.master.surroundings import allowed_networks
from tunneltcp.master.tunnel_state import TunnelState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunneltcp.config.model import TunnelConfig
    from tunneltcp.master.handover import Descriptors
    from tunneltcp.master.surroundings import Surroundings
    from tunneltcp.net.loop import Timer

__all__ = ["Tunnel"]

_REPLACE_SECONDS: Final = 0.2
"""Between a worker's wish and its replacement: a TERM for the whole group of processes reaches
the workers first, and then they are to be drained."""

_CHANNEL_END_SECONDS: Final = 1.0
"""A worker whose channel ended is leaving; if it is still there after this, it is broken."""


class Tunnel(TunnelState):
    """One configured forwarding and its worker, if there is one."""

    def __init__(
        self,
        config: TunnelConfig,
        around: Surroundings,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the tunnel's memory, or go on with all that ``before`` says.

        Raises:
            OSError: If the kernel has none to give.
        """
        super().__init__(config, around, lambda: self._say({"type": "keeper"}), before)
        self._questions = Questions(around.loop)
        self._channel: WorkerChannel | None = None
        self._timer: Timer | None = None
        if before is not None:
            self._go_on_with_worker(before["channel"])

    @classmethod
    def taken_over(cls, before: Mapping[str, Any], around: Surroundings) -> Tunnel:
        """Make it again from what :meth:`hand_over` returned; its worker notices nothing."""
        return cls(tunnel_from_plain(before["config"]), around, before)

    def hand_over(self, fds: Descriptors) -> dict[str, Any]:
        """Return all that the next version of the master needs to go on with it."""
        channel = self._channel.fd if self._channel is not None else -1
        return super().hand_over(fds) | {"channel": fds.keep(channel)}

    def _go_on_with_worker(self, channel: int) -> None:
        self._arm()
        if self.pid is None:
            return
        self.sampler = Sampler(self.pid)
        self._around.children.watch(self.pid, self._on_exit)
        if channel < 0:
            self._on_channel_end("")
            return
        loop = self._around.loop
        self._channel = WorkerChannel(loop, self._take, self._on_channel_end, channel)
        if self._wants_to_go:
            pid = self.pid
            loop.call_later(_REPLACE_SECONDS, lambda: self._replace(pid))

    def feed(self, happened: Input) -> None:
        """Report what happened and do what follows from it."""
        if happened is Input.START and self.has_predecessor:
            return
        for action in self.life.handle(happened, self._around.loop.now):
            self._perform(action)
        self._arm()
        if self.pid is None and self.life.state in (ProcessState.STOPPED, ProcessState.FATAL):
            self.keepers.end()  # also where no worker died now: it waited for its next try

    def close_listeners(self) -> None:
        """Take no new visitors; the worker is told by DRAIN to do the same."""
        self._closing = True
        self._listeners.close()

    def bind(self) -> bool:
        """Have the listeners open; return False, and know the reason, if that fails."""
        if not self._listeners.are_missing:
            return True
        port = self.config.remote_port
        try:
            self._listeners.open()
        except PortBusy as busy:
            # Who holds it is known a moment later; until then what was found last time stands.
            if not self.reason.startswith(str(busy)):
                self.reason = str(busy)
            if busy.in_use:
                self._around.holders.ask(port, self._on_holder)
            else:
                self.report.blocked(self.reason)
            return False
        self.report.bound()
        return True

    def take_settings(self) -> None:
        """Learn what a new config says for all tunnels."""
        super().take_settings()
        self._arm()

    # ------------------------------------------------------------ what people ask for

    def stop(self) -> None:
        """Refuse new visitors, let the others finish, and stay stopped."""
        self.is_stopped = True
        self._listeners.shut()
        self.feed(Input.STOP)
        self.reason = "stopped by a person"

    def start(self) -> None:
        """Run, if it was stopped; if it waits for its next try, try now."""
        if self.is_stopped:
            self.is_stopped = False
            self._listeners.reopen()
        self.feed(Input.START)

    def restart(self, reason: str = RESTARTED) -> None:
        """Replace the worker; where there is none, try to have one now."""
        if self.pid is None:
            self.feed(Input.START)
        elif self.life.state is not ProcessState.STOPPING:
            self._kill_reason = reason
            self.feed(Input.REPLACE)

    def blame(self, reason: str) -> None:
        """Say why its worker is about to be killed."""
        self._kill_reason = reason

    def remove(self) -> None:
        """Give the port back, and go when the visitors have gone."""
        self.is_removed = True
        self._listeners.shut()  # its worker has copies, and a moment before it lets them go
        self.close_listeners()
        self.feed(Input.STOP)
        self.reason = "no longer in the config"

    def change(self, config: TunnelConfig, *, rebind: bool) -> None:
        """Go on with other settings, in a new worker."""
        self.config = config
        if rebind:
            self._listeners.close()
            self._listeners.addresses = tuple(self._around.addresses)
            self.bind()
        if not self.is_stopped:
            self.restart(CHANGED)

    def ask(self, question: dict[str, Any], answered: Callable[[dict[str, Any]], None]) -> None:
        """Ask the worker; ``answered`` gets its answer, or an error, within 2 s."""
        if self._channel is None or self.life.state is not ProcessState.RUNNING:
            port, state = self.config.remote_port, self.life.state.value
            answered({"error": f"tunnel {port} is {state}: nobody is connected to it"})
            return
        number = self._questions.add(answered)
        if number is not None:
            self._say(question | {"number": number})

    def give_keys(self) -> None:
        """Tell the worker which keys are good from now on; they go past the master."""
        self._give("keys", self._around.secrets.keys_fd(self.config.remote_port))

    def give_certificate(self) -> None:
        """Have the worker show another certificate from now on; its link is not touched."""
        fd = self._around.secrets.certificate_fd(self.config.remote_port)
        self._give("certificate", fd)

    def give_networks(self) -> None:
        """Tell the worker from where links and visitors may come from now on."""
        self._say({"type": "networks", "networks": asdict(allowed_networks(self.config))})

    def _give(self, what: str, fd: int) -> None:
        if self._channel is not None and fd >= 0:
            self._channel.say({"type": what}, fd)

    # ---------------------------------------------------------------- the worker's life

    def close(self) -> None:
        """Free everything; only when no worker is left."""
        self.close_listeners()
        self._close_channel()
        self.keepers.end()
        if self._timer is not None:
            self._timer.cancel()
        self._pages.close()

    def _perform(self, action: Action) -> None:
        if action is Action.SPAWN:
            self._spawn()
        elif action is Action.DRAIN:
            self._say({"type": "drain", "seconds": self.life.drain_seconds})
        elif action is Action.SAY_STOP:
            self._say({"type": "stop"})
        elif self.pid is not None:
            if self.life.state is ProcessState.STARTING and not self._kill_reason:
                self._kill_reason = "was not ready in time"
                self._around.children.abort(self.pid)  # SIGKILL follows: it is asked again
            else:
                self._around.children.kill(self.pid)

    def _arm(self) -> None:
        """Have the loop report TIME_UP when the deadline says so."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.life.deadline is not None:
            self._timer = self._around.loop.call_at(
                self.life.deadline, lambda: self.feed(Input.TIME_UP)
            )

    def _spawn(self) -> None:
        assert self.pid is None, "two workers would read from one socket"
        if not self.bind():
            self.feed(Input.BLOCKED)
            return
        try:
            pid, channel = launch(
                self.config,
                self._around,
                listeners=self._listeners.fds,
                pages=self._pages,
                keepers=self.keepers,
                took=self._take,
                ended=self._on_channel_end,
            )
        except OSError as error:
            self._not_spawned(error)
            return
        self._adopt(pid, channel)

    def _not_spawned(self, error: OSError) -> None:
        self.reason = f"cannot start a process: {(error.strerror or '?').lower()}"
        self.report.blocked(self.reason)
        self.feed(Input.BLOCKED)

    def _adopt(self, pid: int, channel: WorkerChannel) -> None:
        self.pid = pid
        self.version, self.generation = __version__, self._around.generation
        self._wants_to_go = False
        self.reason = "starting"
        self._channel = channel
        self._kill_reason = ""
        self._started_at = self._around.loop.now
        self._around.children.watch(pid, self._on_exit)

    def _on_holder(self, holder: Any) -> None:  # noqa: ANN401 - an answer from another process
        if not self._listeners.are_missing or self._closing:
            return
        found = holder or {"holder": "", "listens": False}
        self.reason = port_trouble(self.config.remote_port, **found)
        self.report.blocked(self.reason)

    def _on_channel_end(self, problem: str) -> None:
        """The worker hung up and is about to leave, or broke the rules."""
        self._questions.fail_all("the worker has gone")
        if problem:
            self._kill_reason = problem
            self.feed(Input.REPLACE)
            return
        pid = self.pid
        self._around.loop.call_later(_CHANNEL_END_SECONDS, lambda: self._check_left(pid))

    def _check_left(self, pid: int | None) -> None:
        if pid is not None and self.pid == pid:
            self._kill_reason = "closed its control channel and stayed"
            self.feed(Input.REPLACE)

    def _take(self, message: WorkerMessage) -> None:
        match message:
            case Ready():
                self.reason = ""
                self.keepers.drop_old()
                self.report.ready(self.pid, self._around.loop.now - self._started_at)
                if self.pid is not None:
                    self.sampler = Sampler(self.pid)
                    self.sampler.look()
                self.feed(Input.READY)
            case Replace():
                pid, self._wants_to_go = self.pid, True
                self._around.loop.call_later(_REPLACE_SECONDS, lambda: self._replace(pid))
            case KeeperMade():
                self.keepers.made(message.pid)
            case LinkChanged():
                is_up = message.state != "down"
                self.link_peer = message.peer if is_up else ""
                self.link_client = message.client if is_up else ""
                self.report.link(message)
            case TargetChanged() | Warned() | TookOver() | StoodStill():
                if isinstance(message, TookOver) and message.poisoned:
                    self.keepers.found_poison()
                self.report.said(message)
            case Answer():
                self._questions.answer(message.number, message.body)
            case Resolve():
                pid = self.pid or 0
                self._around.lookups.ask(
                    pid, message.host, message.port, lambda answer: self._tell(pid, answer)
                )

    def _replace(self, pid: int | None) -> None:
        """Replace a worker that was asked to go, unless all are: then it is drained."""
        if pid is not None and self.pid == pid and self.life.state is ProcessState.RUNNING:
            self._kill_reason = REPLACED
            self.feed(Input.REPLACE)

    def _tell(self, pid: int, message: dict[str, Any]) -> None:
        """Answer a worker, unless it has been replaced meanwhile."""
        if pid == self.pid:
            self._say(message)

    def _say(self, message: dict[str, Any]) -> None:
        if self._channel is not None:
            self._channel.say(message)

    def _on_exit(self, status: int) -> None:
        if self._channel is not None:
            self._channel.read_rest()
        self._close_channel()
        now = self._around.loop.now
        self.last_exit = describe_exit(status, now - self._started_at, self._kill_reason)
        if not (self.is_stopped or self.is_removed):
            self.reason = self.last_exit.reason
        self.pid = self.version = self.sampler = None
        self.report.exited(self.last_exit, expected=self.life.state is ProcessState.STOPPING)
        self.link_peer = self.link_client = ""
        self.counters[Counter.LINK_STATE] = LinkState.DOWN
        permanent = self.last_exit.is_permanent
        self.keepers.worker_gone(self.last_exit, self.counters, now)
        self.feed(Input.EXIT_PERMANENT if permanent else Input.EXIT)

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            self._questions.fail_all("the worker has gone")
