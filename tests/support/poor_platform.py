"""Run the command line as if this were another system: ``... poor_platform win32 expose ...``.

Theory of operation
-------------------
What the standard library and others need of Linux they take when they are imported; so they
are imported first. Then everything that the other system lacks is taken away, what it does
differently is done its way, ``sys.platform`` is set, and only now the package is imported.
What it uses all the same fails at once: a missing name, a socket option that means something
else there, ``/proc``, a fork, a module of the master.

Not a trial on that system, only that the code asks nothing of it that it does not have.
"""

from __future__ import annotations

import errno
import importlib
import mmap
import os
import select
import selectors
import signal
import socket
import struct
import sys
import threading  # noqa: TID251 - to see who looks names up
import time
from types import SimpleNamespace
from typing import Any, Final, Literal

NAME: Final = "vps.test"
"""A name that is looked up, slowly, and is this machine."""

_MODULES: Final = (
    "click",
    "encodings.idna",
    "hmac",
    "ipaddress",
    "json",
    "loguru",
    "orjson",
    "pathlib",
    "psutil",
    "rich.console",
    "rich.live_render",
    "rich.table",
    "rich.text",
    "secrets",
)
_GONE: Final = {
    os: (
        "fork forkpty memfd_create pidfd_open pipe2 O_PATH sched_getaffinity eventfd "
        "posix_spawn splice prlimit"
    ),
    select: "epoll EPOLLIN EPOLLOUT EPOLLERR EPOLLHUP",
    socket: (
        "AF_UNIX SOCK_SEQPACKET SOCK_NONBLOCK SOCK_CLOEXEC TCP_USER_TIMEOUT SO_PEERCRED "
        "TCP_INFO SO_DOMAIN AF_NETLINK"
    ),
    mmap: "MADV_DONTDUMP MADV_REMOVE MAP_POPULATE MADV_HUGEPAGE",
    signal: "pidfd_send_signal sigtimedwait sigwaitinfo",
}
_GONE_ON_WINDOWS: Final = {
    os: "geteuid getuid set_blocking O_NOFOLLOW O_CLOEXEC O_NONBLOCK kill getppid WNOHANG",
    select: "poll",
    socket: "TCP_KEEPALIVE sethostname",
    mmap: "MADV_DONTNEED MADV_FREE MAP_PRIVATE MAP_ANONYMOUS MAP_SHARED",
    signal: "SIGHUP SIGQUIT SIGCHLD SIGKILL",
}
_FORBIDDEN_MODULES: Final = {
    "darwin": ("fcntl", "pwd", "termios", "setproctitle"),
    "win32": ("fcntl", "pwd", "termios", "setproctitle", "resource", "grp"),
}
_FORBIDDEN_EVENTS: Final = ("os.fork", "os.posix_spawn", "subprocess.Popen", "os.exec")

_Options = dict[tuple[int, int], Literal["same", "drop"]]
_PORTABLE_OPTIONS: Final[_Options] = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): "same",
    (socket.SOL_SOCKET, socket.SO_OOBINLINE): "same",
    (socket.SOL_SOCKET, socket.SO_LINGER): "same",
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): "same",
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): "same",
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): "same",
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): "same",
}
_OPTIONS: Final[dict[str, _Options]] = {
    "win32": _PORTABLE_OPTIONS,
    "darwin": {**_PORTABLE_OPTIONS, (socket.IPPROTO_TCP, 0x201): "drop"},
}


class _ForeignSocket(socket.socket):
    """A socket as the other system has it."""

    platform = ""

    def setsockopt(self, level: int, option: int, value: Any, *rest: Any) -> None:  # noqa: ANN401
        """Take what the other system knows."""
        what = _OPTIONS[self.platform].get((level, option))
        assert what is not None, f"{self.platform} has no option {option} of level {level}"
        if option == socket.SO_LINGER and level == socket.SOL_SOCKET:
            layout = "hh" if self.platform == "win32" else "ii"
            value = struct.pack("ii", *struct.unpack(layout, value))
        if what == "same":
            super().setsockopt(level, option, value, *rest)

    def connect_ex(self, address: Any) -> int:  # noqa: ANN401
        """Windows says in its own way that it has begun."""
        code = super().connect_ex(address)
        if self.platform == "win32" and code == errno.EINPROGRESS:
            return errno.EWOULDBLOCK
        return code

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401
        if name in ("sendmsg", "recvmsg") and type(self).platform == "win32":
            raise AttributeError(name)
        return super().__getattribute__(name)


class _WindowsMap(mmap.mmap):
    """Anonymous memory as Windows has it: no flags, no advice."""

    def __new__(cls, fileno: int, length: int) -> _WindowsMap:
        """Map memory of this process."""
        return super().__new__(cls, fileno, length)

    @property
    def madvise(self) -> Any:  # noqa: ANN401
        """There is no such thing."""
        raise AttributeError("madvise")


def _socketpair() -> tuple[socket.socket, socket.socket]:
    """Return two ends over loopback, as Python does it on Windows."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        one = socket.socket()
        one.connect(server.getsockname())
        return one, server.accept()[0]


def _look_up(host: str, *_: object, **__: object) -> list[Any]:
    assert threading.current_thread() is not threading.main_thread(), "it blocks the loop"
    if host != NAME:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    time.sleep(0.2)  # noqa: TID251 - as a resolver does
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _FORBIDDEN_EVENTS:
        raise AssertionError(f"{event} is not to be had here")
    place = str(arguments[0]) if event in ("open", "os.listdir") and arguments else ""
    if place.startswith("/proc"):
        raise AssertionError(f"there is no {place} here")


def become(platform: str) -> None:
    """Turn this process into one of that system."""
    for name in _MODULES:
        importlib.import_module(name)
    psutil: Any = sys.modules["psutil"]
    psutil.virtual_memory = lambda: SimpleNamespace(total=8 << 30)
    gone = [_GONE, _GONE_ON_WINDOWS] if platform == "win32" else [_GONE]
    for table in gone:
        for module, names in table.items():
            for name in names.split():
                if hasattr(module, name):
                    delattr(module, name)
    for name in _FORBIDDEN_MODULES[platform]:
        sys.modules[name] = None  # type: ignore[assignment]
    best = selectors.SelectSelector if platform == "win32" else selectors.PollSelector
    _ForeignSocket.platform = platform
    replaced: list[tuple[Any, str, object]] = [
        (selectors, "DefaultSelector", best),
        (socket, "socketpair", _socketpair),
        (socket, "getaddrinfo", _look_up),
        (socket, "socket", _ForeignSocket),
        (socket, "SocketType", _ForeignSocket),
    ]
    if platform == "win32":
        replaced.append((mmap, "mmap", _WindowsMap))
    for module, name, value in replaced:
        setattr(module, name, value)
    sys.platform = platform
    sys.addaudithook(_audit)


def main() -> None:
    """Become that system, then run the command line; complain about what it has imported."""
    become(sys.argv[1])
    from tunneltcp.cli.main import main as run

    try:
        run(sys.argv[2:], prog_name="tunneltcp")
    finally:
        bad = [name for name in sys.modules if name.startswith("tunneltcp.master")]
        if bad:
            sys.stderr.write(f"imported: {bad}\n")
            os._exit(99)


if __name__ == "__main__":
    main()
