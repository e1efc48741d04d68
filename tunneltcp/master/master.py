"""The master: starts the tunnels, keeps them, and ends them in one sequence.

Theory of operation
-------------------
One thread, one loop, and nothing in it that can wait. The master never reads a visitor's
byte. What may block (names, secrets) is done by short-lived children, what may crash by
workers. A mistake in one of its own callbacks is logged and the loop goes on.

A new version of the code runs in the same process (``upgrade.py``): it begins with what the
one before it has handed over, and its workers do not notice.
"""

from __future__ import annotations

import os
import signal
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from tunneltcp import __version__
from tunneltcp.config.plain import config_to_plain
from tunneltcp.config.state import host_id
from tunneltcp.control.context import Role
from tunneltcp.log import Throttle, echo_from, setup_log
from tunneltcp.master.budgets import Budgets
from tunneltcp.master.children import Children
from tunneltcp.master.contexts import make_context
from tunneltcp.master.control_socket import ControlSocket
from tunneltcp.master.folders import CONTROL_SOCKET, InstanceLock, make_folders, make_log_folder
from tunneltcp.master.freeze import freeze
from tunneltcp.master.helpers import Helpers, Lookups
from tunneltcp.master.identity import Identity
from tunneltcp.master.monitor import Monitor
from tunneltcp.master.notices import tell_of_token, warn_of_auth, warn_of_token
from tunneltcp.master.own_process import (
    allow_merging,
    keep_standard_open,
    raise_descriptor_limit,
)
from tunneltcp.master.process import ProcessState
from tunneltcp.master.progress import Progress
from tunneltcp.master.reload import Reloader
from tunneltcp.master.requests import answer_request
from tunneltcp.master.resources import computed_budget
from tunneltcp.master.rollout import Rollout
from tunneltcp.master.secrets import SPARE, PortSecrets
from tunneltcp.master.signals import SignalQueue
from tunneltcp.master.status import master_status
from tunneltcp.master.stopped import StoppedPorts
from tunneltcp.master.stopping import Stopping
from tunneltcp.master.surroundings import Surroundings
from tunneltcp.master.tunnel_set import TunnelSet
from tunneltcp.master.upgrade import Upgrader
from tunneltcp.master.watchdog import Watchdog
from tunneltcp.master.zygote import Zygote
from tunneltcp.net.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tunneltcp.config.model import Config, TunnelConfig
    from tunneltcp.config.token_reader import TokenReader
    from tunneltcp.control.context import WorkerContext
    from tunneltcp.master.again import Again, Legacy
    from tunneltcp.master.folders import Folders
    from tunneltcp.master.handover import Descriptors
    from tunneltcp.master.keys import Derive
    from tunneltcp.master.surroundings import WorkerFds
    from tunneltcp.master.tunnel import Tunnel

__all__ = ["Master"]

_MAX_SLEEP_SECONDS: Final = 1.0
"""The master has nothing to do between events; one turn a second keeps it honest."""

_STARTS_PER_TURN: Final = 4
"""Workers forked in one turn, of those that a config brings."""

_ANNOUNCE_SECONDS: Final = 3.0
"""The ready line waits for all workers, but not for one that is stuck."""


class Master:
    """One instance of one role."""

    def __init__(
        self,
        config: Config,
        *,
        role: Role,
        instance: str,
        folders: Folders,
        worker_main: Callable[[WorkerContext], int],
        derive_key: Derive,
        reader: TokenReader,
        warm_up: Callable[[Path, int], None] = lambda _path, _certificate_fd: None,
        announce: Callable[[Master], None] = lambda _master: None,
        load_again: Callable[[], Config] | None = None,
        log_to_stderr: bool = False,
        again: Again | None = None,
        layout: tuple[int, ...] = (),
        legacy: Legacy | None = None,
    ) -> None:
        """Make one that has touched nothing yet.

        ``load_again`` reads its config anew, and ``again`` starts the program on the disk in
        its place. With a ``legacy`` it goes on with what the version before it had.
        """
        self.config = config
        self.role = role
        self.instance = instance
        self.folders = folders
        self.tunnels: list[Tunnel] = []
        self.tunnel_set: TunnelSet
        self.identity = Identity()
        self._warm_up = warm_up
        self._announce: Callable[[Master], None] | None = announce
        self._log_to_stderr = log_to_stderr
        self._budget = config.budget_bytes or computed_budget(len(config.tunnels))
        self._legacy = legacy
        self._pid = os.getpid()
        self._loop = Loop(max_sleep_seconds=_MAX_SLEEP_SECONDS)
        self._children = Children(self._loop)
        self._helpers = Helpers(self._loop, self._children)
        self._secrets = PortSecrets(role, derive_key, reader)
        self.reloader = Reloader(self, self._helpers, self._secrets, load_again)
        self.upgrader = Upgrader(self, self._loop, self._children, again, layout)
        self._lock: InstanceLock
        self._control: ControlSocket | None = None
        self._signals: SignalQueue | None = None
        self._monitor: Monitor | None = None
        self._watchdog: Watchdog | None = None
        self._throttle = Throttle(max_kinds=16)
        self._maps: list[memoryview] = []
        self._zygote = Zygote(self._children, worker_main, self._maps, role, instance)
        self._stopping = Stopping(self._loop, self._children, self._helpers, self.tunnels)

    def run(self) -> int:
        """Serve until told to stop; return the exit code.

        Raises:
            ConfigError: If the folders cannot be used.
            MasterRunning: If the instance is taken.
            OSError: If something without which nothing works is missing.
        """
        keep_standard_open()
        old_umask = os.umask(0o077)
        try:
            self._lock = self._take_instance()
            try:
                return self._run_locked()
            finally:
                self._lock.release()
        finally:
            self._loop.close()
            os.umask(old_umask)

    def _take_instance(self) -> InstanceLock:
        if self._legacy is not None:
            return InstanceLock(self.folders.run, self.instance, self._legacy.state["lock"])
        make_folders(self.folders)
        self.make_place(self.config)
        return InstanceLock(self.folders.run, self.instance)

    def _run_locked(self) -> int:
        try:
            if self._legacy is None:
                self._begin(None)
            else:
                with self._legacy.guarded():
                    signals = self._begin(self._legacy.state)
                self._go_on_as_new_code(self._legacy, signals)
            self._turn_until_done()
        finally:
            self._zygote.end()
            self._stopping.make_sure()
            for part in (self._watchdog, self._monitor, self._control, self._signals):
                if part is not None:
                    part.close()
            for tunnel in self.tunnels:
                tunnel.close()
            self._secrets.close()
        logger.info("master left")
        return self._stopping.exit_code

    def _begin(self, before: Mapping[str, Any] | None) -> SignalQueue:
        """Have everything, up to the first workers; ``before``: what there is already."""
        # A person at a terminal is told what runs when it runs; until then only what is wrong.
        echo_from("WARNING" if os.isatty(2) else "INFO")
        self._set_up_log()
        raise_descriptor_limit()
        if self.config.merge_memory:
            allow_merging()
        signals = self._signals = SignalQueue(
            self._loop,
            {
                signal.SIGTERM: lambda: self._handle_stop("SIGTERM"),
                signal.SIGINT: lambda: self._handle_stop("SIGINT"),
                signal.SIGHUP: lambda: self.reloader.reload(lambda _answer: None),
                signal.SIGCHLD: self._handle_child,
            },
        )
        if before is None:
            if self.role is Role.CLIENT:
                self.identity = replace(self.identity, host_id=host_id(self.folders.state))
            self._get_secrets()
        else:
            self.identity = Identity.of_the_next(before["identity"])
            self._secrets.go_on(before["secrets"])
            self.upgrader.progress = Progress.from_plain(before["upgrade"])
        self._control = ControlSocket(
            self._loop,
            self.folders.run / CONTROL_SOCKET,
            lambda request, respond: answer_request(self, request, respond),
            -1 if before is None else before["control"],
        )
        self._monitor = Monitor(self._loop, self.tunnels, Budgets(lambda: self._budget).check)
        self._watchdog = Watchdog(self._loop, self._children, self.tunnels)
        self.upgrader.surround(signals, self._control, self._helpers, self._zygote)
        self._start(before)
        return signals

    def _get_secrets(self) -> None:
        """Have keys and certificates, a fraction of a second: no worker begins without."""
        if self._secrets.make(self.config):
            tell_of_token(self.folders.state)
        warn_of_token(self.config)
        warn_of_auth(self.config, self.role)

    def _start(self, before: Mapping[str, Any] | None) -> None:
        around = Surroundings(
            loop=self._loop,
            children=self._children,
            helpers=self._helpers,
            lookups=Lookups(self._helpers, self.config.run_as),
            addresses=self.config.bind if self.role is Role.SERVER else (),
            drain_seconds=self.config.drain_seconds,
            secrets=self._secrets,
            make_context=self._make_context,
            fork_worker=self._zygote.fork_worker,
            maps=self._maps,
            generation=self.identity.generation,
        )
        self.tunnel_set = TunnelSet(self.tunnels, around, StoppedPorts(self.folders.state))
        if before is None:
            self.tunnel_set.make(self.config.tunnels)
            self.tunnel_set.unstarted = self.tunnels[::-1]
        else:
            self.tunnel_set.go_on(before["tunnels"])
        how = "started with" if before is None else "goes on, as new code, with"
        log = logger.bind(role=self.role.value, instance=self.instance, pid=self._pid)
        log.bind(version=__version__).info("master {} {} tunnels", how, len(self.tunnels))
        self._be_warm()
        freeze()
        self._zygote.begin()
        self._loop.on_turn = self._on_turn
        self._start_some()
        self._loop.call_later(_ANNOUNCE_SECONDS, self._say_ready)

    def _set_up_log(self) -> None:
        setup_log(
            self.folders.log / "master.log",
            max_bytes=self.config.log_bytes,
            files=self.config.log_files,
            stderr=self._log_to_stderr,
            as_json=self.config.log_format == "json",
        )

    def _be_warm(self) -> None:
        """Run what workers run, just before the first of them: they share what it leaves."""
        path = self.folders.run / "warm-up.log"
        setup_log(path, max_bytes=self.config.log_bytes, files=1)
        self._warm_up(path, self._secrets.certificate_fd(SPARE))
        path.unlink(missing_ok=True)
        self._set_up_log()

    def _turn_until_done(self) -> None:
        while not self._stopping.is_done:
            try:
                self._loop.turn()
            except Exception:  # noqa: BLE001 - logged below, and bounded
                # A bug of ours. Leaving would cut every visitor of every tunnel.
                if self._throttle.admit("bug", self._loop.now) is not None:
                    logger.exception("a mistake in the master; it goes on")

    def _start_some(self) -> None:
        """Start a few workers, then listen again: 50 forks at once take half a second."""
        unstarted = self.tunnel_set.unstarted
        for _ in range(min(_STARTS_PER_TURN, len(unstarted))):
            self.tunnel_set.begin(unstarted.pop())
        self._loop.call_later(0.0, lambda: None)  # so that the next turn does not wait

    def _on_turn(self) -> None:
        if self.tunnel_set.unstarted:
            self._start_some()
            return
        starting = any(t.life.state is ProcessState.STARTING for t in self.tunnels)
        if self._announce is not None and not starting:
            self._say_ready()
        self.tunnel_set.drop_removed(ending=self._stopping.is_under_way)
        self._stopping.look()

    def _say_ready(self) -> None:
        announce, self._announce = self._announce, None
        if announce is not None:
            announce(self)
            echo_from("INFO")

    def _make_context(self, tunnel: TunnelConfig, fds: WorkerFds) -> WorkerContext:
        return make_context(
            self.config,
            tunnel,
            fds,
            role=self.role,
            instance=self.instance,
            folders=self.folders,
            identity=self.identity,
            budget_bytes=self._budget,
        )

    def _handle_stop(self, name: str) -> None:
        if not self._stopping.is_under_way:
            self.upgrader.cancel()
            self.tunnel_set.unstarted.clear()
        self._stopping.begin(name, self.config.drain_seconds)

    def _handle_child(self) -> None:
        strangers = self._children.reap()
        if strangers and self._throttle.admit("stranger", self._loop.now) is not None:
            logger.info("reaped {} processes that are not ours", strangers)

    # ----------------------------------------------------- from one version to the next

    def hand_over(self, fds: Descriptors) -> dict[str, Any]:
        """Return all that the next version needs to go on in this process."""
        assert self._control is not None, "it serves"
        return {
            "role": self.role.value,
            "instance": self.instance,
            "identity": asdict(self.identity),
            "config": config_to_plain(self.config),
            "upgrade": asdict(self.upgrader.progress),
            "lock": fds.keep(self._lock.fd),
            "control": fds.keep(self._control.fd),
            "secrets": self._secrets.hand_over(fds),
            "tunnels": self.tunnel_set.hand_over(fds),
        }

    def _go_on_as_new_code(self, legacy: Legacy, signals: SignalQueue) -> None:
        """All is ours: listen to signals and children again, and replace the workers."""
        legacy.done()
        signals.let_through()
        rollout = Rollout(self._loop, self.tunnels, self.upgrader.progress, self._stopping)
        self._loop.call_later(0.0, self._handle_child)
        self._loop.call_later(0.0, rollout.begin)

    # ------------------------------------------------------------- what people ask for

    @property
    def is_stopping(self) -> bool:
        """Whether everything is on its way out."""
        return self._stopping.is_under_way

    def status(self) -> dict[str, Any]:
        """Return the state of everything, as plain values."""
        return master_status(
            role=self.role,
            instance=self.instance,
            version=__version__,
            pid=self._pid,
            since=self.identity.since,
            folders=self.folders,
            tunnels=self.tunnels,
            config=self.config,
            upgrade=self.upgrader.progress,
        )

    def make_place(self, config: Config) -> None:
        """Make what a config needs before it is taken.

        Raises:
            ConfigError: If that cannot be done.
        """
        make_log_folder(self.folders, config.user, config.run_as)

    def take_config(self, config: Config) -> None:
        """Have other settings from now on; what concerns tunnels is the caller's."""
        old, self.config = self.config, config
        warn_of_token(config)
        self._budget = config.budget_bytes or computed_budget(len(config.tunnels))
        self.tunnel_set.around.addresses = config.bind if self.role is Role.SERVER else ()
        self.tunnel_set.around.drain_seconds = config.drain_seconds
        self.tunnel_set.around.lookups.run_as = config.run_as
        for tunnel in self.tunnels:
            tunnel.take_settings()
        if old.log_settings != config.log_settings:
            self._set_up_log()
