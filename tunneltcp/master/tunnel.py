"""One tunnel in the master: its listeners, its memory, and the worker that serves it.

What is to be done is decided in ``process.py``; this is the thin code that does it and reports
back. Listeners and memory stay when a worker goes; each worker has a channel of its own.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from tunneltcp.advice import port_trouble
from tunneltcp.control.context import MEMORY_BYTES
from tunneltcp.control.counters import COUNTERS_BYTES, Counter, LinkState, map_counters
from tunneltcp.master.channel import WorkerChannel
from tunneltcp.master.helpers import port_holder
from tunneltcp.master.keepers import Keepers
from tunneltcp.master.listeners import Listeners
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
from tunneltcp.master.process import Action, Input, ProcessLife, ProcessState
from tunneltcp.master.questions import Questions
from tunneltcp.master.report import CHANGED, REPLACED, RESTARTED, Reporter, describe_exit
from tunneltcp.master.resources import PortBusy, make_memory
from tunneltcp.master.spawn import fork_worker
from tunneltcp.master.surroundings import WorkerFds, allowed_networks

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.config.model import TunnelConfig
    from tunneltcp.master.report import LastExit
    from tunneltcp.master.surroundings import Surroundings
    from tunneltcp.net.loop import Timer

__all__ = ["Tunnel"]

_REPLACE_SECONDS: Final = 0.2
"""Between a worker's wish and its replacement: a TERM for the whole group of processes reaches
the workers first, and then they are to be drained."""

_CHANNEL_END_SECONDS: Final = 1.0
"""A worker whose channel ended is leaving; if it is still there after this, it is broken."""


class Tunnel:
    """One configured forwarding and its worker, if there is one."""

    def __init__(self, config: TunnelConfig, around: Surroundings) -> None:
        """Make the tunnel's memory.

        Raises:
            OSError: If the kernel has none to give.
        """
        self.config = config
        self.life = ProcessLife(drain_seconds=around.drain_seconds)
        self.pid: int | None = None
        self.reason = ""
        """Why it does not run; empty if it does."""
        self.last_exit: LastExit | None = None
        self.link_peer = ""
        self.link_client = ""
        """Name of the client that has the link, if it has one."""
        self.sampler: Sampler | None = None
        self.is_stopped = False
        """A person has stopped it: it stays so until a person starts it."""
        self.is_removed = False
        """The config does not name it any more: it goes when its visitors have gone."""
        self.has_predecessor = False
        """A removed tunnel still has the port: two workers of one port never run."""
        self._around = around
        self.report = Reporter(
            config.remote_port, around.loop, lambda: around.others_up(self.counters)
        )
        self._listeners = Listeners(config.remote_port, around.addresses)
        self._questions = Questions(around.loop)
        self._counters_fd = make_memory(f"counters-{config.remote_port}", COUNTERS_BYTES)
        self._memory_fd = make_memory(f"memory-{config.remote_port}", MEMORY_BYTES)
        self.counters = map_counters(self._counters_fd)
        """The page of counters, readable at any time."""
        around.maps.append(self.counters)
        self.keepers = Keepers(around.children, lambda: self._say({"type": "keeper"}))
        """What holds the worker's sockets when it dies."""
        self._channel: WorkerChannel | None = None
        self._timer: Timer | None = None
        self._started_at = 0.0
        self._kill_reason = ""
        self._closing = False

    @property
    def is_gone(self) -> bool:
        """Whether it is stopped and nothing of it runs."""
        return self.life.state is ProcessState.STOPPED and self.pid is None

    def feed(self, happened: Input) -> None:
        """Report what happened and do what follows from it."""
        if happened is Input.START and self.has_predecessor:
            return
        for action in self.life.handle(happened, self._around.loop.now):
            self._perform(action)
        self._arm()

    @property
    def trouble(self) -> str:
        """What keeps visitors from their target although the worker runs; empty if nothing."""
        return self.report.trouble

    def close_listeners(self) -> None:
        """Take no new visitors; the worker is told by DRAIN to do the same."""
        self._closing = True
        self._listeners.close()

    def take_settings(self) -> None:
        """Learn what a new config says for all tunnels; a port that is bound stays there."""
        self.life.drain_seconds = self._around.drain_seconds
        if not self._listeners.fds:
            self._listeners.addresses = self._around.addresses

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
                self._around.helpers.run(lambda: port_holder(port), self._on_holder)
            else:
                self.report.blocked(self.reason)
            return False
        self.report.bound()
        return True

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
        # Not ``remove``: pages of equal content are equal, and it would take another's.
        self._around.maps[:] = [x for x in self._around.maps if x is not self.counters]
        memory = self.counters.obj
        self.counters.release()
        memory.close()  # type: ignore[attr-defined]
        os.close(self._counters_fd)
        os.close(self._memory_fd)

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
        around = self._around
        try:
            channel = WorkerChannel(around.loop, self._take, self._on_channel_end)
        except OSError as error:
            self._not_spawned(error)
            return
        fds = WorkerFds(
            listeners=self._listeners.fds,
            channel=channel.worker_fd,
            counters=self._counters_fd,
            memory=self._memory_fd,
            keys=around.secrets.keys_fd(self.config.remote_port),
            certificate=around.secrets.certificate_fd(self.config.remote_port),
        )
        try:
            context = self.keepers.equip(around.make_context(self.config, fds))
            pid = fork_worker(context, around.worker_main, around.maps)
        except OSError as error:
            self.keepers.forked(failed=True)
            channel.close()
            self._not_spawned(error)
            return
        finally:
            channel.give_away()
        self.keepers.forked()
        self._adopt(pid, channel)

    def _not_spawned(self, error: OSError) -> None:
        self.reason = f"cannot start a process: {(error.strerror or '?').lower()}"
        self.report.blocked(self.reason)
        self.feed(Input.BLOCKED)

    def _adopt(self, pid: int, channel: WorkerChannel) -> None:
        self.pid = pid
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
                pid = self.pid
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
        self.pid = None
        self.sampler = None
        self.report.exited(self.last_exit, expected=self.life.state is ProcessState.STOPPING)
        self.link_peer = self.link_client = ""
        self.counters[Counter.LINK_STATE] = LinkState.DOWN
        permanent = self.last_exit.is_permanent
        self.keepers.worker_gone(self.last_exit, self.counters, now)
        self.feed(Input.EXIT_PERMANENT if permanent else Input.EXIT)
        if self.life.state in (ProcessState.STOPPED, ProcessState.FATAL):
            self.keepers.end()

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            self._questions.fail_all("the worker has gone")
