"""Starting one worker: its channel, its descriptors, the fork."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunneltcp.master.channel import WorkerChannel
from tunneltcp.master.surroundings import WorkerFds

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.config.model import TunnelConfig
    from tunneltcp.master.keepers import Keepers
    from tunneltcp.master.messages import WorkerMessage
    from tunneltcp.master.pages import Pages
    from tunneltcp.master.surroundings import Surroundings

__all__ = ["launch"]


def launch(
    config: TunnelConfig,
    around: Surroundings,
    *,
    listeners: tuple[int, ...],
    pages: Pages,
    keepers: Keepers,
    took: Callable[[WorkerMessage], None],
    ended: Callable[[str], None],
) -> tuple[int, WorkerChannel]:
    """Fork a worker for a tunnel; return its pid, and the channel to it.

    That calls ``took`` and ``ended``, as :class:`WorkerChannel` says.

    Raises:
        OSError: If there can be no further process, or there are no descriptors.
    """
    port = config.remote_port
    channel = WorkerChannel(around.loop, took, ended)
    fds = WorkerFds(
        listeners=listeners,
        channel=channel.worker_fd,
        counters=pages.counters_fd,
        memory=pages.memory_fd,
        keys=around.secrets.keys_fd(port),
        certificate=around.secrets.certificate_fd(port),
    )
    try:
        context = keepers.equip(around.make_context(config, fds))
        pid = around.fork_worker(context)
    except OSError:
        keepers.forked(failed=True)
        channel.close()
        raise
    finally:
        channel.give_away()
    keepers.forked()
    return pid, channel
