"""The files that tokens lie in, and reading a token from wherever it is.

Reading is for short-lived processes alone: what these functions return must not stay in a
master or in a worker, nor in what they fork.

A server's own tokens are ``token`` in its state folder and, while one is being replaced,
``token.old``: both are good. A client's are in ``logins``, one file for each server. All are
0600, and replaced as a whole: whoever reads one finds a whole token or none.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunneltcp.config.state import state_base
from tunneltcp.config.tokens import new_token, token_problem
from tunneltcp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tunneltcp.config.tokens import TokenPlace

__all__ = [
    "find_login",
    "keep_login",
    "make_token",
    "own_tokens",
    "place_warning",
    "read_token_file",
    "read_variable",
    "retire_token",
    "rotate_token",
]

_TOKEN: Final = "token"  # noqa: S105 - the name of a file
_OLD: Final = "token.old"
_LOGINS: Final = "logins"
_MAX_BYTES: Final = 8192
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)


def read_token_file(path: Path, *, follow: bool = True) -> str:
    """Return the token in a file; ``follow``: it may be a symbolic link.

    Raises:
        ConfigError: If it is no regular file, others may read or change it, or it holds no
            token.
    """
    flags = os.O_RDONLY | _NONBLOCK | (0 if follow else _NOFOLLOW)  # a FIFO must not wait
    try:
        fd = os.open(path, flags)
    except OSError as error:
        reason = (error.strerror or "?").lower()
        raise ConfigError([f"token file {path} cannot be read: {reason}"]) from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError([f"token file {path} is not a regular file"])
        if sys.platform != "win32" and mode & 0o006:
            text = f"others may read or change token file {path}; forbid it with: chmod 600"
            raise ConfigError([f"{text} {path}"])
        data = os.read(fd, _MAX_BYTES)
    finally:
        os.close(fd)
    return _checked(data, f"the token in {path}")


def place_warning(place: TokenPlace) -> str:
    """Return what is not as it should be where the token is; empty if nothing is."""
    with suppress(OSError):
        if place.kind == "config" and Path(place.where).stat().st_mode & 0o004:
            text = f"others may read {place.where}, and there is a token in it"
            return f"{text}; forbid it with: chmod o-r {place.where}"
    return ""


def read_variable(name: str, moved: Mapping[str, int]) -> str:
    """Return the token that a variable of the environment held at the start.

    Args:
        name: Of the variable.
        moved: Descriptors of what was taken out of the environment.

    Raises:
        ConfigError: If there is none.
    """
    if sys.platform != "linux" and name in os.environ:
        return _checked(os.environ.pop(name).encode(), f"the token in the variable {name}")
    if name not in moved:
        late = " now; it is only taken at the start" if name in os.environ else ""
        raise ConfigError([f"the variable {name} is not set{late or ' in the environment'}"])
    data = os.pread(moved[name], _MAX_BYTES, 0)
    return _checked(data, f"the token in the variable {name}")


def _checked(data: bytes, what: str) -> str:
    try:
        token = data.decode().strip()
    except UnicodeDecodeError:
        raise ConfigError([f"{what} is not text"]) from None
    if problem := token_problem(token):
        raise ConfigError([f"{what} {problem}"])
    return token


# --------------------------------------------------------------------- a server's own


def own_tokens(state: Path) -> list[str]:
    """Return a server's own tokens, the preferred one first; none if it has none yet.

    Raises:
        ConfigError: If there is something that is no token of ours.
    """
    tokens = []
    for name in (_TOKEN, _OLD):
        path = state / name
        if os.path.lexists(path):
            tokens.append(read_token_file(path, follow=False))
    return list(dict.fromkeys(tokens))


def make_token(state: Path) -> bool:
    """See to it that a server has a token of its own; return whether it was made now.

    Raises:
        ConfigError: If it cannot be kept.
    """
    path = state / _TOKEN
    if os.path.lexists(path):
        return False
    _write(path, new_token())
    return True


def rotate_token(state: Path) -> None:
    """Make a second token; from now on both are good.

    Raises:
        ConfigError: If there is none yet, or there are two already.
    """
    path, old = state / _TOKEN, state / _OLD
    if old.exists():
        text = f"there are two tokens already, since {old} is still good; end that one first"
        raise ConfigError([f"{text} with: tunneltcp token retire"])
    _write(old, read_token_file(path, follow=False))
    _write(path, new_token())


def retire_token(state: Path) -> bool:
    """Have the old token be good no longer; return whether there was one.

    Raises:
        ConfigError: If it cannot be removed.
    """
    try:
        (state / _OLD).unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError([f"cannot remove {state / _OLD}: {_reason(error)}"]) from error
    return True


# ------------------------------------------------------------------- a client's logins


def keep_login(host: str, token: str, state: Path | None) -> Path:
    """Keep the token of a server; return where.

    Args:
        host: Of the server, as ``client`` and ``expose`` will name it.
        token: What was proven, or is believed.
        state: In which state folder; None: this user's.

    Raises:
        ConfigError: If it cannot be kept.
    """
    path = (state or state_base()) / _LOGINS / _file_name(host)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"cannot make {path.parent}: {_reason(error)}"]) from error
    _write(path, token)
    return path


def find_login(host: str, states: Sequence[Path]) -> Path | None:
    """Return where the token for a server was kept, in the first of these state folders."""
    for state in states:
        path = state / _LOGINS / _file_name(host)
        with suppress(OSError):
            if path.exists():
                return path
    return None


def _file_name(host: str) -> str:
    """Return a name for a file: hosts are no paths, and Windows knows no colons."""
    return host.lower().rstrip(".").replace(":", "_").replace("%", "_").replace("/", "_")


def _write(path: Path, token: str) -> None:
    """Put a token there, whole or not at all, for nobody else to read."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW
    try:
        with suppress(FileNotFoundError):
            temporary.unlink()  # of a process that had our number and died here
        fd = os.open(temporary, flags, 0o600)
        try:
            os.write(fd, f"{token}\n".encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError([f"cannot keep a token in {path}: {_reason(error)}"]) from error


def _reason(error: OSError) -> str:
    return (error.strerror or "?").lower()
