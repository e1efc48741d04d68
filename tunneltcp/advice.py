"""What a person is told when something does not work. Pure: facts in, a sentence out.

Each sentence says what happened, its likely causes, and the next thing to try; it stands in
the log, on the terminal and in the status.
"""

from __future__ import annotations

from enum import Enum
from errno import errorcode

__all__ = [
    "Trouble",
    "claim_trouble",
    "congestion_trouble",
    "connect_trouble",
    "link_trouble",
    "port_trouble",
    "spoken",
    "target_trouble",
]


class Trouble(Enum):
    """Why there is no link; travels from a worker to its master."""

    NAMELESS = "nameless"
    """The server's name has no address."""
    SILENT = "silent"
    """Nothing answers the attempt to connect."""
    REFUSES = "refuses"
    UNREACHABLE = "unreachable"
    """There is no way from here to there."""
    FORBIDDEN = "forbidden"
    """This machine does not let us."""
    MUTE = "mute"
    """Somebody accepted, and says nothing."""
    HANGS_UP = "hangs up"
    FOREIGN = "foreign"
    """Somebody speaks something else."""
    FORGED = "forged"
    """A proof is wrong: the server's, or ours when it came there."""
    IN_USE = "in_use"
    DENIED = "denied"
    VERSION = "version"
    TLS = "tls"
    TLS_FAILED = "tls failed"
    """TLS was begun and came to nothing."""
    DRAINING = "draining"
    PROBED = "probed"
    """The server has the same token; nothing more was asked for."""
    STALE = "stale"
    """A later attempt of ours came before this one."""
    UNKNOWN = "unknown"
    """The server's reason is one of a later version."""
    OTHER = "other"


_BY_ERROR = {
    "ECONNREFUSED": Trouble.REFUSES,
    "ETIMEDOUT": Trouble.SILENT,
    "EHOSTUNREACH": Trouble.UNREACHABLE,
    "ENETUNREACH": Trouble.UNREACHABLE,
    "ENETDOWN": Trouble.UNREACHABLE,
    "EHOSTDOWN": Trouble.UNREACHABLE,
    "EADDRNOTAVAIL": Trouble.UNREACHABLE,
    "EAFNOSUPPORT": Trouble.UNREACHABLE,
    "EACCES": Trouble.FORBIDDEN,
    "EPERM": Trouble.FORBIDDEN,
    "ECONNRESET": Trouble.HANGS_UP,
    "EPIPE": Trouble.HANGS_UP,
}


def connect_trouble(error: str) -> Trouble:
    """Return what an error of the operating system ("ECONNREFUSED") means for a link."""
    return _BY_ERROR.get(error.removeprefix("WSA"), Trouble.OTHER)


_LINK = {
    Trouble.NAMELESS: (
        "the name {where} cannot be resolved ({detail}): correct the server's name in "
        "the config or in --server, or look at this machine's DNS"
    ),
    Trouble.SILENT: (
        "nothing answers at {where}: the server is down, or a firewall drops the "
        "packets; look at the provider's and at the server's own (ufw allow {port}/tcp)"
    ),
    Trouble.REFUSES: (
        "{where} refuses the connection: tunneltcp is not running there, listens on other "
        "addresses only (see --bind), or {port} is not among its ports; look at "
        '"tunneltcp status" on the server'
    ),
    Trouble.UNREACHABLE: (
        "there is no way to {where} ({detail}): look at this machine's network, and "
        "whether the address is right"
    ),
    Trouble.FORBIDDEN: (
        "this machine forbids connections to {where} ({detail}): look at its own firewall"
    ),
    Trouble.MUTE: (
        "{where} accepts the connection and says nothing: another program listens "
        'there, or the server hangs; look at "tunneltcp status" on the server'
    ),
    Trouble.HANGS_UP: (
        "{where} hangs up in the handshake: another program listens there, or the "
        'server is stopping; look at "tunneltcp status" on the server'
    ),
    Trouble.FOREIGN: (
        "{where} is no tunneltcp server but speaks {detail}: correct the server or the "
        "remote_port, or move that program to another port"
    ),
    Trouble.FORGED: (
        "who answers at {where} is not the server itself ({detail}): somebody in between "
        "meddles with the link, or plays the server without our token, and did not get it; "
        "dial from another network, and look at what is on the way (a proxy that opens TLS)"
    ),
    Trouble.IN_USE: (
        "another client{detail} holds port {port} and is alive: stop it there, or give "
        "one of the two a port of its own"
    ),
    Trouble.DENIED: (
        "the server at {where} does not accept our token for port {port}: say it again with "
        '"tunneltcp login" (on the server, "tunneltcp token" prints it), and give both sides '
        'the same remote_port and the same "auth"; its "clients" may give this port to another'
    ),
    Trouble.VERSION: (
        "the server at {where} speaks another version of the protocol: install the same "
        "version of tunneltcp on both sides"
    ),
    Trouble.TLS: (
        "of the server at {where} and this client only one wants TLS: set it alike on "
        "both sides"
    ),
    Trouble.TLS_FAILED: (
        "TLS with {where} fails ({detail}): something on the way meddles with it, another "
        'program has the port, or "verify" asks for a certificate that the server does not have'
    ),
    Trouble.STALE: "{where} has heard a later attempt of ours: dialling again",
    Trouble.DRAINING: (
        "the server at {where} is stopping: nothing to do here, it is dialled until it is back"
    ),
    Trouble.PROBED: "the server at {where} has the same token",
    Trouble.UNKNOWN: (
        "the server at {where} refuses for a reason that this version does not know: "
        "install the same version of tunneltcp on both sides"
    ),
    Trouble.OTHER: "no connection to {where}: {detail}",
}

_LINK_OTHERS_UP = {
    Trouble.SILENT: (
        "nothing answers at {where}, while other tunnels to this server are up: a "
        "firewall drops this port; open it at the provider and on the server (ufw allow "
        "{port}/tcp)"
    ),
    Trouble.REFUSES: (
        "{where} refuses the connection, while other tunnels to this server are up: "
        "{port} is probably not among its ports, or was stopped there; add it to the server's "
        'config, then "tunneltcp reload", or "tunneltcp start {port}" there'
    ),
}
"""The same where other tunnels of this client have their links: then the server is there."""


def link_trouble(
    trouble: Trouble, where: str, port: int, *, detail: str = "", others_up: bool = False
) -> str:
    """Say why there is no link.

    Args:
        trouble: What happened.
        where: Whom we dialled, with the port; of a name that is not known, only the name.
        port: The port that was dialled.
        detail: Words of the operating system, what was spoken, or who holds the port.
        others_up: Whether other tunnels to the same server have their links.
    """
    text = (_LINK_OTHERS_UP.get(trouble) if others_up else None) or _LINK[trouble]
    if trouble is Trouble.IN_USE and detail:
        detail = f" ({detail})"
    return text.format(where=where, port=port, detail=detail)


def spoken(data: bytes) -> str:
    """Say what the first bytes of a stranger are."""
    if data.startswith(b"HTTP/") or b"<html" in data[:200].lower():
        return "HTTP"
    if data.startswith(b"SSH-"):
        return "SSH"
    if data[:1] in (b"\x15", b"\x16") and data[1:2] == b"\x03":
        return "TLS"
    if data[:4] in (b"220 ", b"220-"):
        return "SMTP or FTP"
    return "something else"


_CLAIM = {
    "network": (
        'no link is taken from its network: "allow" and "deny" in this server\'s config say '
        "from where one is"
    ),
    "probed": "",
    "denied": (
        "it does not hold our token for this port: it has to log in again (tunneltcp login), "
        "dials the port of another client, or is none of ours"
    ),
    "proof": (
        "it began as who holds our token, but its proof is not for this connection: somebody "
        "in between meddles with it, shows a certificate of his own, or plays back what he "
        "recorded; look at what is on the way"
    ),
    "far": (
        'with "auth": "none" links are only taken from this machine, or where "allow" says: '
        "remove that setting on both sides, and log in there (tunneltcp login)"
    ),
    "version": (
        "it speaks another version of the protocol: install the same version of "
        "tunneltcp on both sides"
    ),
    "tls": "it wants TLS and this server has none: set it alike on both sides",
    "clear": "it does without TLS and this server does not: set it alike on both sides",
    "draining": "this server is stopping",
    "in_use": (
        "the client{name} at {holder} holds this port and is alive; stop one of the two, or "
        "give it a port of its own"
    ),
}


def claim_trouble(code: str, holder: str = "", name: str = "") -> str:
    """Say on the server why a client was refused.

    Args:
        code: What REFUSED told it, or what we know better.
        holder: Address of the client that has the port, if that is the reason.
        name: Its name, if it has one.
    """
    text = _CLAIM.get(code, "refused: {code}")
    return text.format(code=code, holder=holder, name=f" {name}" if name else "")


_TARGET = {
    Trouble.NAMELESS: (
        "the name {host} cannot be resolved ({detail}): correct local_host, or look at "
        "this machine's DNS"
    ),
    Trouble.SILENT: (
        "{target} does not answer: look whether that machine is up and its firewall "
        "lets this one in"
    ),
    Trouble.REFUSES: "nothing listens on {target}: start the app, or correct local_port",
    Trouble.UNREACHABLE: (
        "there is no way to {target}: correct local_host, or look at this machine's network"
    ),
    Trouble.FORBIDDEN: "this machine forbids connections to {target}: look at its firewall",
}


def target_trouble(target: str, error: str, *, detail: str = "") -> str:
    """Say on the client why a visitor was reset.

    Args:
        target: ``host:port`` of the app.
        error: Name of the operating system's error; empty if the host's name is not known.
        detail: Why the name is not known.
    """
    trouble = connect_trouble(error) if error else Trouble.NAMELESS
    text = _TARGET.get(trouble, "{target} cannot be reached ({error}): look what it does")
    if error in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"):
        text = "this machine has no connections left ({error}): raise its limits (ulimit -n)"
    host = target.rpartition(":")[0]
    words = text.format(target=target, host=host, error=error, detail=detail or "no answer")
    return f"a visitor came, but {words}"


def port_trouble(port: int, holder: str, *, listens: bool, reserved: str = "") -> str:
    """Say on the server that a public port is busy.

    Args:
        port: The port.
        holder: Who holds it, as a clause; empty if that could not be found out.
        listens: Whether a program listens there, and not some outgoing connection.
        reserved: What ``net.ipv4.ip_local_reserved_ports`` says now: it is to be kept.
    """
    ports = ",".join(filter(None, [reserved.strip(), str(port)]))
    keep = f"keep it free with: sysctl -w net.ipv4.ip_local_reserved_ports={ports}"
    if not holder:
        who = f"\"ss -tanp 'sport = :{port}'\""
        return f"port {port} is busy: {who} says who has it; {keep}"
    if listens:
        return f"port {port} is busy: {holder}; stop that program, or choose another port"
    return f"port {port} is busy: {holder} and may leave soon; {keep}"


def congestion_trouble(name: str, number: int, kernel_says: str) -> str:
    """Say why a link could not have the congestion control that the config wants.

    Args:
        name: As in the config.
        number: The errno.
        kernel_says: Its text.
    """
    match errorcode.get(number):
        case "EPERM":
            why = (
                f"this machine keeps {name} for root: name it in the sysctl "
                "net.ipv4.tcp_allowed_congestion_control"
            )
        case "ENOENT":
            why = (
                f"this kernel has no {name} (the sysctl "
                f"net.ipv4.tcp_available_congestion_control says what it has): try "
                f"modprobe tcp_{name}, and name it in net.ipv4.tcp_allowed_congestion_control"
            )
        case _:
            why = kernel_says
    return f"the link keeps the congestion control of the system, not {name}: {why}"
