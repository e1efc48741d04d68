"""What a worker is born with, from the config and from what its master is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tunneltcp.control.context import WorkerContext
from tunneltcp.master.surroundings import allowed_networks

if TYPE_CHECKING:
    from tunneltcp.config.model import Config, TunnelConfig
    from tunneltcp.control.context import Role
    from tunneltcp.master.folders import Folders
    from tunneltcp.master.identity import Identity
    from tunneltcp.master.surroundings import WorkerFds

__all__ = ["make_context"]


def make_context(
    config: Config,
    tunnel: TunnelConfig,
    fds: WorkerFds,
    *,
    role: Role,
    instance: str,
    folders: Folders,
    identity: Identity,
    budget_bytes: int,
) -> WorkerContext:
    """Return the context of the next worker of a tunnel."""
    port = tunnel.remote_port
    return WorkerContext(
        role=role,
        instance=instance,
        port=port,
        name=tunnel.name,
        target_host=tunnel.local_host,
        target_port=tunnel.local_port,
        server_host=config.server,
        link_port=tunnel.link_port or port,
        keys_fd=fds.keys,
        near_links_only=config.auth == "none",
        networks=allowed_networks(tunnel),
        tls=config.tls,
        certificate_fd=fds.certificate,
        verify=config.verify,
        host_id=identity.host_id,
        run_id=identity.run_id,
        hold_seconds=tunnel.hold_seconds,
        resume_grace_seconds=tunnel.resume_grace_seconds,
        idle_ping_seconds=tunnel.idle_ping_seconds,
        congestion=tunnel.congestion,
        rate=tunnel.rate,
        crash_safe=tunnel.crash_safe,
        max_visitors=tunnel.max_visitors,
        budget_bytes=budget_bytes,
        run_as=config.run_as,
        log_path=folders.tunnel_logs(config.user) / f"tunnel-{port}.log",
        log_bytes=config.log_bytes,
        log_files=config.log_files,
        log_json=config.log_format == "json",
        access_log=tunnel.access_log,
        listener_fds=fds.listeners,
        channel_fd=fds.channel,
        counters_fd=fds.counters,
        memory_fd=fds.memory,
        master_pid=os.getpid(),
    )
