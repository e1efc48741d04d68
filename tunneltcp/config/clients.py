"""Who may be the client of which ports, as the config of a server says it.

A client has a name, a token of its own and the ports that it may be the client of. The token
that stands at the top (or the server's own) is good for the ports that no client names.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from tunneltcp.config import fields
from tunneltcp.config.keys import described, settings
from tunneltcp.config.tokens import TokenPlace, token_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tunneltcp.config.keys import Setting

__all__ = [
    "CLIENT_SETTINGS",
    "MAX_SHARING",
    "MAX_TOKENS",
    "ClientConfig",
    "Holder",
    "equal_tokens",
    "read_clients",
    "read_token",
]

MAX_CLIENTS: Final = 500
"""As many as tunnels: one port each, at least."""

MAX_SHARING: Final = 8
"""Clients of one port. Each handshake is tried with the keys of all of them."""

MAX_TOKENS: Final = 2
"""Of one client: a new one, and the one that it replaces."""

_FORMS: Final = 'a text, {"file": "/path"} or {"env": "NAME"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """One client of a server."""

    name: str = field(
        metadata=described(
            "name",
            "name",
            "For people, in `status` and logs; each only once.",
            required="server",
        )
    )
    tokens: tuple[TokenPlace, ...] = field(
        metadata=described(
            "token",
            "token",
            """Its secret, or where that is, as `token` at the top; no other client has the same
            one. A list of two while one replaces the other: the first is the new one.""",
            required="server",
        )
    )
    """The preferred one first."""
    ports: tuple[int, ...] = field(
        metadata=described(
            "ports",
            "ports",
            """The public ports that it may be the client of. Which ones are open is said by
            `ports` and `tunnels` at the top.""",
            required="server",
        )
    )
    shared: bool = field(
        default=False,
        metadata=described(
            "shared",
            "flag",
            """Whether others may have the same ports, or the same token. It must stand in all
            that are concerned. Of a port the one has it who came first, as long as he is
            there.""",
        ),
    )


CLIENT_SETTINGS: Final[tuple[Setting, ...]] = settings(ClientConfig)
_KEYS: Final = tuple(one.key.name for one in CLIENT_SETTINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who has a token, while tokens are looked at; for short-lived processes alone."""

    name: str
    """Of the client; empty: the token is the one at the top."""
    shared: bool
    token: str = field(repr=False)


def equal_tokens(holders: Iterable[Holder]) -> list[str]:
    """Say which clients have the same token and may not; never with one in the words.

    The token at the top is shared with those clients that say so.
    """
    problems = []
    first: dict[str, Holder] = {}
    for holder in holders:
        other = first.setdefault(holder.token, holder)
        if other is holder or other.name == holder.name or (other.shared and holder.shared):
            continue
        if other.name:
            who = f"{fields.shown(other.name)} and {fields.shown(holder.name)} have"
            advice = '"shared": true in both'
        else:
            who = f"{fields.shown(holder.name)} and the server have"
            advice = '"shared": true in it'
        problems.append(f"clients: {who} the same token: give each its own, or set {advice}")
    return problems


def read_token(entry: fields.Fields, key: str, value: object, client: str = "") -> TokenPlace:
    """Return where a token is; the token itself is looked at and let go, never shown."""
    if isinstance(value, str):
        if problem := token_problem(value):
            entry.problem(key, problem)
        return TokenPlace(kind="config", client=client)
    match value:
        case {"file": str(path), **rest} if path and fields.is_file_name(path) and not rest:
            return TokenPlace(kind="file", where=path)
        case {"env": str(name), **rest} if name and name.isprintable() and not rest:
            return TokenPlace(kind="variable", where=name)
    entry.problem(key, f"must be {_FORMS}")
    return TokenPlace(kind="own")


def read_clients(top: fields.Fields) -> tuple[ClientConfig, ...]:
    """Return the clients of a server's config, and report all that is wrong with them."""
    entries = top.values.get("clients", [])
    if not isinstance(entries, list):
        top.problem("clients", f"must be a list, not {fields.kind(entries)}")
        return ()
    if len(entries) > MAX_CLIENTS:
        top.problem("clients", f"{len(entries)} are more than {MAX_CLIENTS}")
        return ()
    if entries and top.values.get("auth") == "none":
        top.problem("clients", 'are there, and "auth" is "none": leave one of the two out')
    clients = [_client(top, index, entry) for index, entry in enumerate(entries)]
    _check_names(top, clients)
    _check_ports(top, clients)
    top.problems += equal_tokens(_inline_tokens(top.values, clients))
    return tuple(clients)


def _client(top: fields.Fields, index: int, value: object) -> ClientConfig:
    path = f"clients[{index}]"
    if not isinstance(value, dict):
        top.problem(path, f"must be an object, not {fields.kind(value)}")
        return ClientConfig(name="", tokens=(), ports=())
    entry = fields.Fields(value, f"{path}.", top.problems)
    entry.check_keys(_KEYS, {})
    for key in ("name", "token", "ports"):
        if key not in value:
            entry.problem(key, "is missing")
    name = entry.name("name", "")
    ports = fields.port_list(entry, "ports")
    if not ports and value.get("ports", None) == []:
        entry.problem("ports", "there are none")
    return ClientConfig(
        name=name,
        tokens=_tokens(entry, name) if "token" in value else (),
        ports=tuple(ports),
        shared=entry.flag("shared", default=False),
    )


def _tokens(entry: fields.Fields, client: str) -> tuple[TokenPlace, ...]:
    value = entry.values["token"]
    if not isinstance(value, list):
        return (read_token(entry, "token", value, client),)
    if not 1 <= len(value) <= MAX_TOKENS:
        entry.problem("token", f"must be {_FORMS}, or a list of at most {MAX_TOKENS}")
    return tuple(
        replace(read_token(entry, f"token[{index}]", one, client), index=index)
        for index, one in enumerate(value[:MAX_TOKENS])
    )


def _check_names(top: fields.Fields, clients: Sequence[ClientConfig]) -> None:
    first: dict[str, int] = {}
    for index, client in enumerate(clients):
        before = first.setdefault(client.name, index)
        if client.name and before != index:
            text = f"{fields.shown(client.name)} is already used by clients[{before}]"
            top.problem(f"clients[{index}].name", text)


def _check_ports(top: fields.Fields, clients: Sequence[ClientConfig]) -> None:
    """Report the first port of each client that another one has too, and may not."""
    holders: dict[int, list[int]] = {}
    for index, client in enumerate(clients):
        told = False
        for port in client.ports:
            others = holders.setdefault(port, [])
            alone = [one for one in others if not (client.shared and clients[one].shared)]
            if alone and not told:
                told = True
                text = f'{port} is already in clients[{alone[0]}]; "shared": true in both'
                top.problem(f"clients[{index}].ports", f"{text} allows that")
            others.append(index)
    crowded = [port for port, found in holders.items() if len(found) > MAX_SHARING]
    if crowded:
        text = f"{crowded[0]} is in more than {MAX_SHARING} clients"
        top.problem("clients", f"{text}, and that is the limit")


def _inline_tokens(
    values: Mapping[str, object], clients: Sequence[ClientConfig]
) -> Iterable[Holder]:
    """Return the tokens that stand in the config itself: those can be compared at once."""
    top = values.get("token")
    if isinstance(top, str):
        yield Holder(name="", shared=True, token=top.strip())
    names = Counter(client.name for client in clients)
    entries: Any = values.get("clients", [])
    for client, entry in zip(clients, entries, strict=True):
        given = entry.get("token") if isinstance(entry, dict) else None
        for token in given if isinstance(given, list) else [given]:
            if isinstance(token, str) and client.name and names[client.name] == 1:
                yield Holder(name=client.name, shared=client.shared, token=token.strip())
