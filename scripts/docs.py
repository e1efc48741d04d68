"""Write docs/CONFIG.md from the model of the config, so that the two cannot differ."""

from __future__ import annotations

import json  # noqa: TID251 - it lays JSON out as people write it
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tunneltcp.config.clients import CLIENT_SETTINGS
from tunneltcp.config.load import MAX_FILE_BYTES
from tunneltcp.config.model import PORTS, TOP_SETTINGS, TUNNEL_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.config.keys import Key, RoleName

__all__ = ["EXAMPLES", "PATH", "Example", "render"]

PATH: Final = Path(__file__).resolve().parents[1] / "docs/CONFIG.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A complete config and who may read it."""

    title: str
    roles: Sequence[RoleName]
    text: str


EXAMPLES: Final = (
    Example(
        title="The same file for both sides",
        roles=("server", "client"),
        text="""[
  { "local_port": 8000, "remote_port": 60001 },
  { "local_port": 22, "remote_port": 60002, "name": "ssh" }
]""",
    ),
    Example(
        title="A server with ten ports, open to a private network",
        roles=("server",),
        text="""{
  "ports": "60001-60010",
  "bind": ["127.0.0.1", "10.0.0.1"],
  "hold": 30
}""",
    ),
    Example(
        title="A server with one port that differs from the others",
        roles=("server",),
        text="""{
  "ports": "60001-60010",
  "tunnels": [{ "remote_port": 60003, "name": "shop", "max_visitors": 200 }],
  "access_log": true,
  "drain": 8
}""",
    ),
    Example(
        title="A server with two clients, which visitors reach through a proxy beside it",
        roles=("server",),
        text="""{
  "ports": "60001-60010",
  "clients": [
    { "name": "laptop", "token": { "file": "/etc/tunneltcp/laptop" }, "ports": "60001-60005" },
    { "name": "desk", "token": { "env": "DESK_TOKEN" }, "ports": [60006, "60008-60010"] }
  ],
  "visitors_allow": ["127.0.0.1", "::1"]
}""",
    ),
    Example(
        title="A client whose targets are on other machines too",
        roles=("client",),
        text="""{
  "server": "vps.example.com",
  "tunnels": [
    { "remote_port": 60001, "local_port": 8000 },
    { "remote_port": 60002, "local_port": 5432, "local_host": "192.168.1.20", "name": "db" }
  ],
  "idle_ping": 30
}""",
    ),
    Example(
        title="In a container: JSON lines, small files",
        roles=("server",),
        text="""{
  "ports": [60001, 60005],
  "bind": "*",
  "log_format": "json",
  "log_bytes": 500000,
  "log_files": 2
}""",
    ),
)
"""They stand in docs/CONFIG.md; a test loads each for each of its roles."""

_HEAD: Final = f"""# The config

<!-- Written by scripts/docs from tunneltcp/config/model.py: change that, not this. -->

The config is one JSON file (UTF-8, at most {MAX_FILE_BYTES >> 20} MiB): a list of tunnels,
which is complete for either side, or an object with that list under `"tunnels"` and settings
beside it. `tunneltcp check FILE` says all that is wrong with it, each with its place, or what
would run; `tunneltcp reload` takes a changed one over, and a broken one changes nothing.

- Keys that are not known are errors, and so are keys of the other side and keys given twice.
- A port is a whole number from 1 to 65535: neither `"60001"` nor `60001.0`.
- Times are in seconds and may have a fraction.
- What is given on the command line overrules the file.
"""

_JSON_LINES: Final = """## Log lines as JSON

With `"log_format": "json"` each line of each log, and of what a master in the foreground writes
to its standard error, is one object: `time` (RFC 3339), `level`, `message`, `fields` (an
object, such as `{"tunnel": 60001, "peer": "203.0.113.5:4711"}`) and, after a crash, `traceback`
(a text with line breaks). A line has at most 8,192 bytes; texts that are too long are cut.
"""


def render() -> str:
    """Return docs/CONFIG.md."""
    for_all = [one.key.name for one in TUNNEL_SETTINGS if one.key.for_all]
    top = [(one.key, one.default) for one in TOP_SETTINGS]
    top.insert(1, (PORTS, None))
    tunnel = [(one.key, one.default) for one in TUNNEL_SETTINGS]
    client = [(one.key, one.default) for one in CLIENT_SETTINGS]
    parts = [
        _HEAD,
        "## Keys at the top\n",
        _table(top),
        f"{_listed(for_all)} may stand here too: then they are for all tunnels that do not say "
        "otherwise.\n",
        "## Keys of a tunnel\n",
        _table(tunnel),
        "## Keys of a client\n",
        "One of `clients`, on a server:\n",
        _table(client),
        "## Examples\n",
    ]
    for example in EXAMPLES:
        who = " and ".join(f"the {role}" for role in example.roles)
        parts += [f"{example.title} (for {who}):\n", f"```json\n{example.text}\n```\n"]
    return "\n".join([*parts, _JSON_LINES])


def _table(rows: Sequence[tuple[Key, Any]]) -> str:
    lines = ["| key | value | default | for | meaning |", "|---|---|---|---|---|"]
    for key, default in rows:
        cells = [f"`{key.name}`", _values(key), _default(key, default), key.role or "both"]
        lines.append(f"| {' | '.join([*cells, key.meaning])} |")
    return "\n".join(lines) + "\n"


def _values(key: Key) -> str:
    """Return in words what a value may be."""
    between = f"{_number(key.low)} to {_number(key.high)}"
    return {
        "seconds": f"seconds, {between}",
        "integer": f"{key.unit}, {between}",
        "size": f'bytes, {between}, or such as `"200 MB"` or `"1.5 GiB"`',
        "port": "a port",
        "host": "a host name or an address",
        "user": "the name of a user",
        "name": "1 to 64 printable characters",
        "rate": '`"20 Mbit/s"` and such, 64 kbit/s to 1000 Gbit/s, or `"none"`',
        "flag": "`true` or `false`",
        "path": "a whole path, beginning with `/`",
        "flag or path": "`true`, `false` or a whole path",
        "choice": " or ".join(f'`"{choice}"`' for choice in key.choices),
        "addresses": "an address or a list of such",
        "ports": "ports and ranges",
        "token": 'a text, `{"file": ...}` or `{"env": ...}`',
        "tunnels": "a list of objects",
        "clients": "a list of objects",
        "networks": "an address, a network such as `10.0.0.0/8`, or a list of such",
    }[key.kind]


def _default(key: Key, default: Any) -> str:  # noqa: ANN401 - a value of any key
    if key.default:
        return key.default
    if key.required:
        sides = {"both": "", "client": " on a client", "server": " on a server"}
        return f"must be given{sides[key.required]}"
    if isinstance(default, float):
        return _number(default)
    return f"`{json.dumps(default)}`" if isinstance(default, str | bool) else f"{default}"


def _number(value: float) -> str:
    """Return a number as it may stand in the file; a power of two with its name."""
    for shift, unit in ((30, "GiB"), (20, "MiB")):
        if value and value % (1 << shift) == 0:
            return f"{int(value)} ({int(value) >> shift} {unit})"
    return f"{value:g}" if value % 1 else str(int(value))


def _listed(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def main() -> None:
    """Write the file, or say that it is not up to date."""
    text = render()
    if "--check" not in sys.argv[1:]:
        PATH.write_text(text)
    elif not PATH.exists() or PATH.read_text() != text:
        sys.exit("docs/CONFIG.md is not up to date: run scripts/docs")


if __name__ == "__main__":
    main()
