"""Whether this code could take over what runs: all of it is done but the last step.

In a child of the running master, which has copies of all descriptors. Everything is made from
the state as in earnest, in a loop that never turns: nothing is read, written or ended.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from tunneltcp.master.children import Children
from tunneltcp.master.helpers import Helpers, Lookups
from tunneltcp.master.identity import Identity
from tunneltcp.master.progress import Progress
from tunneltcp.master.secrets import SPARE, PortSecrets
from tunneltcp.master.stopped import StoppedPorts
from tunneltcp.master.surroundings import Surroundings
from tunneltcp.master.tunnel_set import TunnelSet
from tunneltcp.net.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunneltcp.config.model import Config
    from tunneltcp.master.folders import Folders

__all__ = ["rehearse"]


def rehearse(
    state: Mapping[str, Any], config: Config, folders: Folders, secrets: PortSecrets
) -> int:
    """Make everything from the state; return the descriptor of a certificate to try, or -1.

    Raises:
        LookupError, TypeError, ValueError, OSError: Whatever comes of a state that this code
            cannot go on with.
    """

    def not_in_earnest(*_: object) -> Any:  # noqa: ANN401 - it never returns
        raise AssertionError("a rehearsal starts no worker")

    Identity.of_the_next(state["identity"])
    Progress.from_plain(state["upgrade"])
    secrets.go_on(state["secrets"])
    with closing(Loop()) as loop:
        children = Children(loop)
        helpers = Helpers(loop, children)
        around = Surroundings(
            loop=loop,
            children=children,
            helpers=helpers,
            lookups=Lookups(helpers),
            addresses=(),
            drain_seconds=config.drain_seconds,
            secrets=secrets,
            make_context=not_in_earnest,
            fork_worker=not_in_earnest,
            maps=[],
        )
        TunnelSet([], around, StoppedPorts(folders.state)).go_on(state["tunnels"])
    return secrets.certificate_fd(SPARE)
