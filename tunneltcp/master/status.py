"""The answer to "status": plain values for JSON. Later versions only add."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.log import dropped_lines
from tunneltcp.master.report import stamp
from tunneltcp.text import ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.config.clients import ClientConfig
    from tunneltcp.config.model import Config
    from tunneltcp.control.context import Role
    from tunneltcp.master.folders import Folders
    from tunneltcp.master.progress import Progress
    from tunneltcp.master.tunnel import Tunnel

__all__ = ["master_status", "tunnel_status"]


def master_status(
    *,
    role: Role,
    instance: str,
    version: str,
    pid: int,
    since: str,
    folders: Folders,
    tunnels: Sequence[Tunnel],
    config: Config,
    upgrade: Progress,
) -> dict[str, Any]:
    """Return the state of a master and of all its tunnels."""
    return {
        "role": role.value,
        "instance": instance,
        "version": version,
        "pid": pid,
        "since": since,
        "log_dir": str(folders.log),
        "tunnel_log_dir": str(folders.tunnel_logs(config.user)),
        "state_dir": str(folders.state),
        "log_dropped": dropped_lines(),
        "token": str(config.token),
        "server": config.server or None,
        "clients": [_client(client) for client in config.clients],
        "upgrade": upgrade.status(
            [tunnel.config.remote_port for tunnel in tunnels if tunnel.is_outdated]
        ),
        "tunnels": [tunnel_status(tunnel) for tunnel in tunnels],
    }


def _client(client: ClientConfig) -> dict[str, Any]:
    """Return who it is, and where its tokens are."""
    return {
        "name": client.name,
        "ports": ranges(client.ports),
        "shared": client.shared,
        "tokens": [asdict(place) for place in client.tokens],
    }


def tunnel_status(tunnel: Tunnel) -> dict[str, Any]:
    """Return the state of one tunnel; what only a living worker has is null without one."""
    config, page = tunnel.config, tunnel.counters
    runs = tunnel.pid is not None
    sample = tunnel.sampler.sample if tunnel.sampler else None
    takeover = tunnel.report.takeover
    target = f"{_bracketed(config.local_host)}:{config.local_port}"
    return {
        "port": config.remote_port,
        "name": config.name,
        "target": target if config.local_port else None,
        "state": tunnel.life.state.value,
        "reason": tunnel.reason or tunnel.trouble or None,
        "stopped_by_user": tunnel.is_stopped,
        "pid": tunnel.pid,
        "version": tunnel.version,
        "crash_safe": tunnel.keepers.is_kept,
        "link": _link(tunnel),
        "visitors": page[Counter.VISITORS] if runs else 0,
        "visitors_total": page[Counter.VISITORS_TOTAL],
        "held": page[Counter.HELD] if runs else 0,
        "bytes_in": page[Counter.BYTES_IN],
        "bytes_out": page[Counter.BYTES_OUT],
        "links_total": page[Counter.LINKS_TOTAL],
        "resumes_total": page[Counter.RESUMES_TOTAL],
        "resets_total": page[Counter.RESETS_TOTAL],
        "links_refused": page[Counter.LINKS_REFUSED],
        "visitors_refused": page[Counter.VISITORS_REFUSED],
        "log_dropped": page[Counter.LOG_DROPPED],
        "beat_age": _beat_age(page[Counter.BEAT_NS]) if runs else None,
        "restarts": tunnel.life.restarts,
        "last_exit": asdict(tunnel.last_exit) if tunnel.last_exit else None,
        "last_takeover": asdict(takeover) if takeover else None,
        "rss": sample.rss if sample else None,
        "private": sample.private if sample else None,
        "cpu": sample.cpu if sample else None,
        "process": sample.status if sample else None,
        "descriptors": page[Counter.DESCRIPTORS] if runs else None,
    }


def _link(tunnel: Tunnel) -> dict[str, Any]:
    page = tunnel.counters
    state = page[Counter.LINK_STATE] if tunnel.pid is not None else LinkState.DOWN
    since_ns, rtt_us = page[Counter.LINK_SINCE_NS], page[Counter.RTT_US]
    up = state != LinkState.DOWN
    since = stamp(since_ns) if 0 < since_ns < 1 << 62 else None
    if tunnel.pid is None and tunnel.last_exit is not None and since is not None:
        since = tunnel.last_exit.at  # the worker took it along
    return {
        "state": "up" if up else "down",
        "doubted": state == LinkState.DOUBTED,
        "since": since,
        "peer": (tunnel.link_peer or None) if up else None,
        "client": (tunnel.link_client or None) if up else None,
        "rtt_ms": rtt_us / 1000 if up and rtt_us else None,
        "key": ("old" if page[Counter.LINK_KEY] else "current") if up else None,
    }


def _beat_age(beat_ns: int) -> float | None:
    """Return by how many seconds the worker's loop is late; 0 if it is on time."""
    if not beat_ns:
        return None
    return round(max(0, time.monotonic_ns() - beat_ns) / 1e9, 3)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
