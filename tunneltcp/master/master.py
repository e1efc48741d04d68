"""The master: starts the tunnels, keeps them, and ends them in one sequence.

Theory of operation
-------------------
One thread, one loop, and nothing in it that can wait. The master never reads a visitor's
byte. What may block (names, secrets) is done by short-lived children, what may crash by
workers. A mistake in one of its own callbacks is logged and the loop goes on.

Stopping: listeners are closed and the workers told to drain; after ``drain`` they are
told to stop; then they are killed. A second TERM or INT skips the waiting.
"""

from __future__ import annotations

import os
import secrets
import signal
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from tunneltcp import __version__
from tunneltcp.config.state import host_id
from tunneltcp.control.context import Role, WorkerContext
from tunneltcp.errors import ExitCode
from tunneltcp.log import Throttle, echo_from, setup_log
from tunneltcp.master.budgets import Budgets
from tunneltcp.master.children import Children
from tunneltcp.master.control_socket import ControlSocket
from tunneltcp.master.folders import CONTROL_SOCKET, InstanceLock, make_folders, make_log_folder
from tunneltcp.master.helpers import Helpers, Lookups
from tunneltcp.master.monitor import Monitor
from tunneltcp.master.notices import tell_of_token, warn_of_auth, warn_of_token
from tunneltcp.master.own_process import (
    allow_merging,
    keep_standard_open,
    raise_descriptor_limit,
)
from tunneltcp.master.process import START_SECONDS, Input, ProcessState
from tunneltcp.master.reload import Reloader
from tunneltcp.master.report import stamp
from tunneltcp.master.requests import answer_request
from tunneltcp.master.resources import computed_budget
from tunneltcp.master.secrets import SPARE, PortSecrets
from tunneltcp.master.signals import SignalQueue
from tunneltcp.master.spawn import freeze
from tunneltcp.master.status import master_status
from tunneltcp.master.stopped import StoppedPorts
from tunneltcp.master.surroundings import Surroundings, allowed_networks
from tunneltcp.master.tunnel_set import TunnelSet
from tunneltcp.master.watchdog import Watchdog
from tunneltcp.net.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunneltcp.config.model import Config, TunnelConfig
    from tunneltcp.config.token_reader import TokenReader
    from tunneltcp.master.folders import Folders
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

_STOP_LIMIT_SECONDS: Final = 5.0
"""Beyond the drain, and after a second TERM: then we leave, and the kernel kills the rest."""


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
    ) -> None:
        """Make one that has touched nothing yet; ``load_again`` reads its config anew."""
        self.config = config
        self.role = role
        self.instance = instance
        self.folders = folders
        self.tunnels: list[Tunnel] = []
        self.tunnel_set: TunnelSet
        self.since = stamp()
        """When it started; RFC 3339."""
        self._worker_main = worker_main
        self._warm_up = warm_up
        self._announce: Callable[[Master], None] | None = announce
        self._log_to_stderr = log_to_stderr
        self._budget = config.budget_bytes or computed_budget(len(config.tunnels))
        self._run_id = secrets.token_hex(16)
        self._host_id = ""
        self._pid = os.getpid()
        self._loop = Loop(max_sleep_seconds=_MAX_SLEEP_SECONDS)
        self._children = Children(self._loop)
        self._helpers = Helpers(self._loop, self._children)
        self._secrets = PortSecrets(role, derive_key, reader)
        self.reloader = Reloader(self, self._helpers, self._secrets, load_again)
        self._throttle = Throttle(max_kinds=16)
        self._maps: list[memoryview] = []
        self._stopping = False
        self._done = False
        self._exit_code = ExitCode.DONE

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
            make_folders(self.folders)
            self.make_place(self.config)
            lock = InstanceLock(self.folders.run, self.instance)
            try:
                return self._run_locked()
            finally:
                lock.release()
        finally:
            self._loop.close()
            os.umask(old_umask)

    def _run_locked(self) -> int:
        raise_descriptor_limit()
        # A person at a terminal is told what runs when it runs; until then only what is wrong.
        echo_from("WARNING" if os.isatty(2) else "INFO")
        self._set_up_log()
        if self.config.merge_memory:
            allow_merging()
        self._host_id = host_id(self.folders.state) if self.role is Role.CLIENT else ""
        signals = SignalQueue(
            self._loop,
            {
                signal.SIGTERM: lambda: self._handle_stop("SIGTERM"),
                signal.SIGINT: lambda: self._handle_stop("SIGINT"),
                signal.SIGHUP: self._handle_hangup,
                signal.SIGCHLD: self._handle_child,
            },
        )
        control = None
        try:
            self._get_secrets()
            control = ControlSocket(
                self._loop,
                self.folders.run / CONTROL_SOCKET,
                lambda request, respond: answer_request(self, request, respond),
            )
            monitor = Monitor(self._loop, self.tunnels, Budgets(lambda: self._budget).check)
            watchdog = Watchdog(self._loop, self._children, self.tunnels)
            self._start()
            self._turn_until_done()
            watchdog.close()
            monitor.close()
        finally:
            self._end_children()
            if control is not None:
                control.close()
            signals.close()
            for tunnel in self.tunnels:
                tunnel.close()
            self._secrets.close()
        logger.info("master left")
        return self._exit_code

    def _get_secrets(self) -> None:
        """Have keys and certificates, a fraction of a second: no worker begins without."""
        if self._secrets.make(self.config):
            tell_of_token(self.folders.state)
        warn_of_token(self.config)
        warn_of_auth(self.config, self.role)

    def _start(self) -> None:
        around = Surroundings(
            loop=self._loop,
            children=self._children,
            helpers=self._helpers,
            lookups=Lookups(self._helpers, self.config.run_as),
            addresses=self._addresses(),
            drain_seconds=self.config.drain_seconds,
            secrets=self._secrets,
            make_context=self._make_context,
            worker_main=self._worker_main,
            maps=self._maps,
        )
        self.tunnel_set = TunnelSet(self.tunnels, around, StoppedPorts(self.folders.state))
        self.tunnel_set.make(self.config.tunnels)
        logger.bind(
            role=self.role.value, instance=self.instance, pid=self._pid, version=__version__
        ).info("master started with {} tunnels", len(self.tunnels))
        self._be_warm()
        freeze()
        self._loop.on_turn = self._on_turn
        self.tunnel_set.unstarted = self.tunnels[::-1]
        self._start_some()
        self._loop.call_later(_ANNOUNCE_SECONDS, self._say_ready)

    def _addresses(self) -> tuple[str, ...]:
        """Return where public ports are bound: nowhere on a client."""
        return self.config.bind if self.role is Role.SERVER else ()

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
        while not self._done:
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
        self.tunnel_set.drop_removed(ending=self._stopping)
        if self._stopping and all(tunnel.is_gone for tunnel in self.tunnels):
            self._done = True

    def _say_ready(self) -> None:
        announce, self._announce = self._announce, None
        if announce is not None:
            announce(self)
            echo_from("INFO")

    def _make_context(self, tunnel: TunnelConfig, fds: WorkerFds) -> WorkerContext:
        port = tunnel.remote_port
        return WorkerContext(
            role=self.role,
            instance=self.instance,
            port=port,
            name=tunnel.name,
            target_host=tunnel.local_host,
            target_port=tunnel.local_port,
            server_host=self.config.server,
            link_port=tunnel.link_port or port,
            keys_fd=fds.keys,
            near_links_only=self.config.auth == "none",
            networks=allowed_networks(tunnel),
            tls=self.config.tls,
            certificate_fd=fds.certificate,
            verify=self.config.verify,
            host_id=self._host_id,
            run_id=self._run_id,
            hold_seconds=tunnel.hold_seconds,
            resume_grace_seconds=tunnel.resume_grace_seconds,
            idle_ping_seconds=tunnel.idle_ping_seconds,
            congestion=tunnel.congestion,
            crash_safe=tunnel.crash_safe,
            max_visitors=tunnel.max_visitors,
            budget_bytes=self._budget,
            run_as=self.config.run_as,
            log_path=self.folders.tunnel_logs(self.config.user) / f"tunnel-{port}.log",
            log_bytes=self.config.log_bytes,
            log_files=self.config.log_files,
            log_json=self.config.log_format == "json",
            access_log=tunnel.access_log,
            listener_fds=fds.listeners,
            channel_fd=fds.channel,
            counters_fd=fds.counters,
            memory_fd=fds.memory,
            master_pid=self._pid,
        )

    def _handle_stop(self, name: str) -> None:
        if self._stopping:
            logger.info("{} again: stopping now", name)
            self._loop.call_later(_STOP_LIMIT_SECONDS, self._give_up)
            for tunnel in self.tunnels:
                tunnel.feed(Input.STOP_NOW)
            return
        self._stopping = True
        self.tunnel_set.unstarted.clear()
        logger.info("{}: stopping, visitors have {:g} s", name, self.config.drain_seconds)
        self._helpers.close()
        limit = self.config.drain_seconds + _STOP_LIMIT_SECONDS + START_SECONDS
        self._loop.call_later(limit, self._give_up)
        for tunnel in self.tunnels:
            tunnel.close_listeners()
            tunnel.feed(Input.STOP)

    def _give_up(self) -> None:
        left = [tunnel.pid for tunnel in self.tunnels if tunnel.pid is not None]
        logger.error("left while the kernel still holds processes {}", left)
        self._exit_code = ExitCode.CRASH
        self._done = True

    def _handle_hangup(self) -> None:
        self.reloader.reload(lambda _answer: None)

    def _handle_child(self) -> None:
        strangers = self._children.reap()
        if strangers and self._throttle.admit("stranger", self._loop.now) is not None:
            logger.info("reaped {} processes that are not ours", strangers)

    # ------------------------------------------------------------- what people ask for

    @property
    def is_stopping(self) -> bool:
        """Whether everything is on its way out."""
        return self._stopping

    def status(self) -> dict[str, Any]:
        """Return the state of everything, as plain values."""
        return master_status(
            role=self.role,
            instance=self.instance,
            version=__version__,
            pid=self._pid,
            since=self.since,
            folders=self.folders,
            tunnels=self.tunnels,
            config=self.config,
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
        self.tunnel_set.around.addresses = self._addresses()
        self.tunnel_set.around.drain_seconds = config.drain_seconds
        self.tunnel_set.around.lookups.run_as = config.run_as
        for tunnel in self.tunnels:
            tunnel.take_settings()
        if old.log_settings != config.log_settings:
            self._set_up_log()

    # ------------------------------------------------------------------------ the end

    def _end_children(self) -> None:
        """Leave no process behind, whatever brought us here."""
        self._helpers.close()
        self._loop.on_turn = None
        for tunnel in self.tunnels:
            tunnel.close_listeners()
            tunnel.feed(Input.STOP_NOW)
            if tunnel.pid is not None:
                self._children.kill(tunnel.pid)
        deadline = self._loop.now + _STOP_LIMIT_SECONDS
        while len(self._children) and self._loop.now < deadline:
            self._loop.turn()
