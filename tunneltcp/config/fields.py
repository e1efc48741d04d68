"""One JSON object of the config: take a value by key, or report what is wrong with it.

Each method returns a usable value whatever it finds, and appends a sentence with the
path of the value to ``problems``: so one reading of a file finds all that is wrong in it.
"""

from __future__ import annotations

import ipaddress
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Fields",
    "JsonObject",
    "bind_addresses",
    "host_problem",
    "kind",
    "port_list",
    "shown",
]

_MAX_SHOWN: Final = 60
"""Characters of a foreign value that are repeated in a message."""

_MAX_HOST: Final = 253
"""Characters of a host name (RFC 1035)."""

_MAX_NAME: Final = 64
"""Characters of a tunnel's name: it has to fit into a table."""

_MAX_PORT: Final = 65_535

_HOST: Final = re.compile(r"[A-Za-z0-9_:%]([A-Za-z0-9._:%-]*[A-Za-z0-9._:%])?")
_RATE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([kMG])(bit|B)/s")
_RATE_FACTORS: Final = {"k": 10**3, "M": 10**6, "G": 10**9}
_MIN_RATE: Final = 8_000
"""Bytes a second (64 kbit/s): below that a life sign would come late."""
_MAX_RATE: Final = 125_000_000_000
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_SIZE: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?) ?(kB|KiB|[MG]i?B)")
_UNITS: Final = {
    "kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
}  # fmt: skip
_RANGE: Final = re.compile(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?")


class JsonObject(dict[str, object]):
    """A JSON object that remembers which keys were given more than once."""

    def __init__(self, pairs: Sequence[tuple[str, object]]) -> None:
        super().__init__(pairs)
        seen: set[str] = set()
        self.duplicates = [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]


def shown(value: object) -> str:
    """Return a foreign value as it may stand in a message: bounded, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = ascii(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def kind(value: object) -> str:
    """Return what JSON calls a value of this type."""
    names = {bool: "a boolean", str: "a string", list: "a list", float: "a number"}
    names |= {int: "a number", type(None): "null"}
    return names.get(type(value), "an object")


def host_problem(value: object) -> str:
    """Return what is wrong with a host name or address; empty if nothing is."""
    if not isinstance(value, str):
        return f"must be a host name or an address, not {kind(value)}"
    if not value or len(value) > _MAX_HOST or not _HOST.fullmatch(value):
        return f"{shown(value)} is not a host name or an address"
    if ":" in value:
        try:
            ipaddress.IPv6Address(value)
        except ValueError:
            return f"{shown(value)} is not an IPv6 address; give the host without a port"
    return ""


def is_file_name(text: str) -> bool:
    """Whether a text can be the name of a file: JSON may hold half a character, or a zero."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def bind_addresses(host: object) -> tuple[str, ...]:
    """Return the literals that a ``bind`` entry stands for; none if it is wrong."""
    if host == "localhost":
        return ("127.0.0.1", "::1")
    if host == "*":
        return ("0.0.0.0", "::")  # noqa: S104 - asked for
    try:
        return (str(ipaddress.ip_address(host)),) if isinstance(host, str) else ()
    except ValueError:
        return ()


class Fields:
    """One object of the config and where it stands."""

    def __init__(self, values: dict[str, object], prefix: str, problems: list[str]) -> None:
        self.values = values
        self.problems = problems
        """All problems of the file, shared by its objects."""
        self._prefix = prefix

    def problem(self, key: str, text: str) -> None:
        """Report what is wrong with the value of ``key``."""
        self.problems.append(f"{self._prefix}{key}: {text}")

    def check_keys(self, known: Sequence[str], foreign: Mapping[str, str]) -> None:
        """Report duplicate keys and those that have no business here."""
        for key in dict.fromkeys(getattr(self.values, "duplicates", ())):
            self.problem(_key(key), "is given more than once")
        for key in self.values:
            if key in foreign:
                self.problem(key, foreign[key])
            elif key not in known:
                self.problem(_key(key), f"is not a known key{_suggestion(key, known)}")

    def port(self, key: str, *, required: bool) -> int:
        """Return a port; 0 if there is none."""
        if key not in self.values:
            if required:
                self.problem(key, "is missing")
            return 0
        value = self.values[key]
        if type(value) is int and 1 <= value <= _MAX_PORT:
            return value
        self.problem(key, f"{shown(value)} is not a port (1-{_MAX_PORT})")
        return 0

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """Return a whole number within the limits, both included."""
        value = self.values.get(key, default)
        if type(value) is int and low <= value <= high:
            return value
        self.problem(key, f"{shown(value)} is not a whole number from {low} to {high}")
        return default

    def size(self, key: str, default: int, low: int, high: int) -> int:
        """Return bytes: a whole number, or a text such as "200 MB" or "1.5 GiB"."""
        value = self.values.get(key, default)
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        found = int(float(match[1]) * _UNITS[match[2]]) if match else value
        if type(found) is int and low <= found <= high:
            return found
        text = f'is not a size from {low} to {high} bytes, like 200000000 or "200 MB"'
        self.problem(key, f"{shown(value)} {text}")
        return default

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """Return a number of seconds within the limits, both included."""
        value = self.values.get(key, default)
        if type(value) in (int, float) and isinstance(value, int | float):
            finite = not isinstance(value, float) or math.isfinite(value)
            if finite and low <= value <= high:
                return float(value)
        self.problem(key, f"{shown(value)} is not a number of seconds from {low:g} to {high:g}")
        return default

    def path(self, key: str) -> Path | None:
        """Return the path of a file; None if there is none."""
        value = self.values.get(key)
        if key not in self.values:
            return None
        if not isinstance(value, str):
            self.problem(key, f"must be a path, not {kind(value)}")
        elif not value.startswith("/") or not is_file_name(value):
            self.problem(key, f"{shown(value)} must be a whole path, beginning with /")
        else:
            return Path(value)
        return None

    def flag_or_path(self, key: str, default: bool | Path) -> bool | Path:
        """Return true, false or the path of a file."""
        value = self.values.get(key, default)
        if isinstance(value, bool | Path):
            return value
        if isinstance(value, str):
            return self.path(key) or default
        self.problem(key, f"must be true, false or a path, not {kind(value)}")
        return default

    def host(self, key: str, default: str) -> str:
        """Return a host name or an address."""
        value = self.values.get(key, default)
        problem = host_problem(value)
        if not problem and isinstance(value, str):
            return value
        self.problem(key, problem)
        return default

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self.values.get(key, default)
        if isinstance(value, bool):
            return value
        self.problem(key, f"{shown(value)} is neither true nor false")
        return default

    def choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        """Return one of a few words."""
        value = self.values.get(key, default)
        if isinstance(value, str) and value in choices:
            return value
        allowed = " or ".join(f'"{choice}"' for choice in choices)
        self.problem(key, f"{shown(value)} is not {allowed}")
        return default

    def rate(self, key: str, default: int) -> int:
        """Return bytes a second; 0 for "none"."""
        value = self.values.get(key)
        if key not in self.values:
            return default
        if value == "none":
            return 0
        found = _RATE.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            text = 'is not a rate like "20 Mbit/s", "500 kbit/s" or "2.5 MB/s", or "none"'
            self.problem(key, f"{shown(value)} {text}")
            return default
        number, prefix, unit = found.groups()
        rate = round(float(number) * _RATE_FACTORS[prefix] / (8 if unit == "bit" else 1))
        if _MIN_RATE <= rate <= _MAX_RATE:
            return rate
        self.problem(key, f"{shown(value)} is not between 64 kbit/s and 1000 Gbit/s")
        return default

    def user(self, key: str, default: str) -> str:
        """Return the name of a user; whether there is one, the file does not say."""
        if key not in self.values:
            return default
        value = self.values[key]
        if isinstance(value, str) and _USER.fullmatch(value):
            return value
        self.problem(key, f"{shown(value)} is not the name of a user")
        return default

    def name(self, key: str, default: str) -> str:
        """Return a name that fits on one line; ``default`` if there is none."""
        if key not in self.values:
            return default
        value = self.values[key]
        fits = isinstance(value, str) and 1 <= len(value) <= _MAX_NAME
        if fits and isinstance(value, str) and value.isprintable() and value.strip() == value:
            return value
        self.problem(key, f"{shown(value)} is not a name (1-{_MAX_NAME} printable characters)")
        return default


def port_list(fields: Fields, key: str) -> list[int]:
    """Return the ports of "60001-60010", "60001,60005", or of a list of such and numbers."""
    value = fields.values.get(key, [])
    items: list[object] = list(value) if isinstance(value, list) else [value]
    parts: list[tuple[str, object]] = []
    for index, item in enumerate(items):
        path = f"{key}[{index}]" if isinstance(value, list) else key
        pieces = item.split(",") if isinstance(item, str) else [item]
        parts += [(path, piece) for piece in pieces]
    ports: dict[int, None] = {}
    for path, part in parts:
        found = _port_range(part)
        if not found:
            text = f'is not a port or a range like "60001-60010" (1-{_MAX_PORT})'
            fields.problem(path, f"{shown(part)} {text}")
        doubled = [port for port in found if port in ports]
        if doubled:
            fields.problem(path, f"{doubled[0]} is given more than once")
        ports.update(dict.fromkeys(found))
    return list(ports)


def _port_range(part: object) -> range:
    if type(part) is int and 1 <= part <= _MAX_PORT:
        return range(part, part + 1)
    match = _RANGE.fullmatch(part) if isinstance(part, str) else None
    if not match:
        return range(0)
    first, last = int(match[1]), int(match[2] or match[1])
    return range(first, last + 1) if 1 <= first <= last <= _MAX_PORT else range(0)


def _key(key: str) -> str:
    """Return a foreign key as it may stand in a path."""
    return key if key.isidentifier() and key.isascii() and len(key) <= 40 else shown(key)


def _suggestion(key: str, known: Sequence[str]) -> str:
    import difflib  # only here: a master with a right config never needs it

    close = difflib.get_close_matches(key.lower()[:64], known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
