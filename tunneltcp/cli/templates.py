"""The one source of what runs a master as a service: supervisord's program, systemd's unit.

``tunneltcp service`` prints them filled in; the files in ``supervisor/`` and ``systemd/`` are
what comes of the defaults, and a test compares them.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunneltcp.config.model import DEFAULT_DRAIN_SECONDS
from tunneltcp.errors import ConfigError

if TYPE_CHECKING:
    from tunneltcp.config.model import RoleName

__all__ = ["INSTALLED_PYTHON", "STOP_MARGIN_SECONDS", "Service", "program", "unit"]

INSTALLED_PYTHON: Final = "/opt/tunneltcp/venv/bin/python"
"""Where scripts/install puts the interpreter when root runs it."""

STOP_MARGIN_SECONDS: Final = 20
"""What a master may take beyond the drain before it leaves by itself: 10 s for a worker that
is just starting, 5 s for what the kernel holds, and 5 s of air. Who kills it earlier leaves
that to the kernel, who kills it later waits for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a service file has to say about one master."""

    role: RoleName
    config: str
    """Absolute path."""
    instance: str
    python: str = INSTALLED_PYTHON
    """The interpreter that has tunneltcp; absolute."""
    server: str = ""
    """Whom a client dials; empty: the config says it."""
    drain_seconds: float = DEFAULT_DRAIN_SECONDS
    user: str = ""
    """Whom the workers run as, if the config says."""
    is_users: bool = False
    """For one user's own systemd, or a supervisord that is not root's."""

    @property
    def name(self) -> str:
        """Of the service; the file is called so too."""
        return f"tunneltcp-{self.instance}"

    @property
    def words(self) -> list[str]:
        """The command. ``-P`` keeps Python from importing what lies in the working folder."""
        words = [self.python, "-P", "-m", "tunneltcp.master"]
        words += ["--role", self.role, "--config", self.config]
        words += ["--instance", self.instance] if self.instance != self.role else []
        return words + (["--server", self.server] if self.server else [])

    @property
    def made_by(self) -> str:
        """What to say behind "tunneltcp service MANAGER" for the same file again."""
        words = ["--role", self.role]
        words += ["--instance", self.instance] if self.instance != self.role else []
        usual = f"/tunneltcp/{self.instance}.json"
        is_usual = (
            self.config.endswith(usual) if self.is_users else self.config == "/etc" + usual
        )
        words += [] if is_usual else ["--config", self.config]
        words += ["--server", self.server] if self.server else []
        return shlex.join(words)

    @property
    def stop_seconds(self) -> int:
        """After how long a master that was told to stop hangs."""
        return int(self.drain_seconds) + STOP_MARGIN_SECONDS


def program(service: Service) -> str:
    """Return supervisord's configuration.

    Raises:
        ConfigError: If a word of the command cannot be written there.
    """
    margin = STOP_MARGIN_SECONDS
    return f"""\
; tunneltcp {service.role}, for supervisord: {service.name}.conf
; Made by: tunneltcp service supervisor {service.made_by}

[program:{service.name}]
command={_for_supervisord(service.words)}
directory=/
autostart=true

; However the master ended, it is started again. supervisord gives up for good on a program
; that keeps leaving within its startsecs; with this many tries it never does. (What a person
; has to mend, such as the config, is told and then waited for longer than startsecs: the
; next try comes 5 s later, not after ever longer waits.)
autorestart=true
startsecs=1
startretries=1000000

; TERM to the master alone: it drains its workers and leaves by itself before stopwaitsecs are
; over, after which all are killed. Keep it {margin} s longer than "drain" in the config.
stopsignal=TERM
stopwaitsecs={service.stop_seconds}
stopasgroup=false
killasgroup=true

; Only what it says as it starts and what goes wrong: the logs are files of their own
; (tunneltcp status says where). Read this one by: supervisorctl tail {service.name}
redirect_stderr=true
stdout_logfile=AUTO
stdout_logfile_maxbytes=1MB
stdout_logfile_backups=1
"""


def unit(service: Service) -> str:
    """Return systemd's unit.

    Raises:
        ConfigError: If a word of the command cannot be written there.
    """
    needs = "" if service.is_users else _NETWORK
    option = " --user" if service.is_users else ""
    margin = STOP_MARGIN_SECONDS
    return f"""\
# tunneltcp {service.role}, for systemd: {service.name}.service
# Made by: tunneltcp service systemd {service.made_by}{option}

[Unit]
Description=tunneltcp {service.role}{_instance_text(service)}
{needs}# Never give up, however often it failed.
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={_for_systemd(service.words)}
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory=/
Restart=always
RestartSec=1
# TERM to the master alone: it drains its workers and leaves by itself before the time is
# over, after which all are killed. Keep it {margin} s longer than "drain" in the config.
KillMode=mixed
TimeoutStopSec={service.stop_seconds}
# A worker that the kernel killed for memory is replaced by its master.
OOMPolicy=continue
# Two processes for each tunnel (500 at most), as many while all are replaced, and air.
TasksMax=4096
{_USERS if service.is_users else _system(service)}
[Install]
WantedBy={"default.target" if service.is_users else "multi-user.target"}
"""


def _instance_text(service: Service) -> str:
    return f", instance {service.instance}" if service.instance != service.role else ""


_NETWORK: Final = """\
# Not needed, since it waits for names and addresses by itself; but then the first try works.
Wants=network-online.target
After=network-online.target
"""

_COMMON_LIMITS: Final = """\
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""

_USERS: Final = f"""\

# What it never needs. (Folders: its own, below ~/.local/state and $XDG_RUNTIME_DIR.)
UMask=0077
{_COMMON_LIMITS}"""


_LOW_PORTS: Final = "CAP_NET_BIND_SERVICE"
_OTHER_USER: Final = "CAP_CHOWN CAP_KILL CAP_SETGID CAP_SETUID"


def _system(service: Service) -> str:
    more, why = "", ""
    if service.user:
        more = f" {_OTHER_USER}"
        why = f"# Its workers are {service.user}, whom it must become, and be able to end.\n"
    return f"""\

# Its folders: /var/lib, /run and /var/log, each with tunneltcp/{service.instance} in it.
StateDirectory=tunneltcp/{service.instance}
RuntimeDirectory=tunneltcp/{service.instance}
LogsDirectory=tunneltcp/{service.instance}
StateDirectoryMode=0700
RuntimeDirectoryMode=0700
LogsDirectoryMode=0700
UMask=0077

# Root, since that is who may read the config; but root without power: it may bind ports
# below 1024 and write to the folders above, and that is all. The config must belong to root
# or be readable by all.
{why}CapabilityBoundingSet={_LOW_PORTS}{more}
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
{_COMMON_LIMITS}"""


def _for_supervisord(words: list[str]) -> str:
    """Return a command as supervisord reads it: a shell's quotes, and % for its own names."""
    for word in words:
        # Its parser cuts a line at these before anything is unquoted.
        if not word.isprintable() or " ;" in word or " #" in word:
            raise ConfigError([f"{word!a} cannot be written in supervisord's configuration"])
    return shlex.join(words).replace("%", "%%")


def _for_systemd(words: list[str]) -> str:
    """Return a command as systemd reads it: $ for variables, % for its own names."""
    quoted = []
    for word in words:
        if not word.isprintable():
            raise ConfigError([f"{word!a} cannot be written in a unit"])
        text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
        text = text.replace("$", "$$")
        plain = text and not any(character in text for character in " '\"\\;")
        quoted.append(text if plain else f'"{text}"')
    return " ".join(quoted)
