"""What may be asked on the control socket, and who in the master does it.

Each request is answered once: by what was asked for, or by ``{"error": one sentence}``.
Later versions only add requests, and keys to answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from tunneltcp.text import ranges

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.master.master import Master
    from tunneltcp.master.tunnel import Tunnel
    from tunneltcp.master.tunnel_set import TunnelSet

__all__ = ["answer_request"]

_MAX_ADDRESS: Final = 64
"""Characters of a visitor's address."""


def answer_request(
    master: Master, request: dict[str, Any], respond: Callable[[dict[str, Any]], None]
) -> None:
    """Do what is asked, and call ``respond`` once: now, or when a worker has answered."""
    match request:
        case {"op": "status"}:
            respond(master.status())
        case {"op": "reload"}:
            master.reloader.reload(respond)
        case {"op": "reload-tokens"}:
            master.reloader.reload_tokens(respond)
        case {"op": "upgrade"}:
            canary = request.get("canary")
            respond(master.upgrader.begin(canary if isinstance(canary, int) else None))
        case {"op": "restart" | "start" | "stop"} if master.is_stopping:
            respond({"error": "the master is stopping"})
        case {"op": str(), "port": int(port)}:
            tunnel = master.tunnel_set.find(port)
            if tunnel is None:
                ports = ranges([one.config.remote_port for one in master.tunnels])
                respond({"error": f"no tunnel has port {port}; there are {ports}"})
            else:
                _answer_for(tunnel, request, respond, master.tunnel_set)
        case _:
            respond({"error": "unknown request"})


def _answer_for(
    tunnel: Tunnel,
    request: dict[str, Any],
    respond: Callable[[dict[str, Any]], None],
    tunnels: TunnelSet,
) -> None:
    port = tunnel.config.remote_port
    match request:
        case {"op": "who"}:
            after = request.get("after", 0)
            who = {"type": "who", "after": after if isinstance(after, int) else 0}
            tunnel.ask(who, lambda answer: respond({"port": port} | answer))
        case {"op": "kick"}:
            question = _kick(request)
            if question is None:
                respond({"error": "kick whom? a visitor's id, an address, or all"})
            else:
                tunnel.ask(question, lambda answer: respond({"port": port} | answer))
        case {"op": "restart" | "start" | "stop" as what}:
            respond(_operate(tunnel, what, tunnels))
        case _:
            respond({"error": "unknown request"})


def _operate(tunnel: Tunnel, what: str, tunnels: TunnelSet) -> dict[str, Any]:
    port, pid = tunnel.config.remote_port, tunnel.pid
    if what == "restart" and tunnel.is_stopped:
        return {"error": f"tunnel {port} is stopped; start it with: tunneltcp start {port}"}
    logger.bind(tunnel=port).info("a person wants to {} it", what)
    problem = ""
    if what == "restart":
        tunnel.restart()
    else:
        problem = tunnels.stop(tunnel) if what == "stop" else tunnels.start(tunnel)
    answer = {"port": port, "pid": pid, "state": tunnel.life.state.value}
    return answer | {"warning": problem} if problem else answer


def _kick(request: dict[str, Any]) -> dict[str, Any] | None:
    match request:
        case {"visitor": int(visitor)}:
            return {"type": "kick", "visitor": visitor}
        case {"address": str(address)} if 0 < len(address) <= _MAX_ADDRESS:
            return {"type": "kick", "address": address}
        case {"all": True}:
            return {"type": "kick", "all": True}
    return None
