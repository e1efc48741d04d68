"""Every way that can be measured, in the order in which it stands in tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.peers import Bore, Chisel, Frp, Rathole
from benchmark.ways import Direct, Mux, Ours, Relays, Ssh

if TYPE_CHECKING:
    from benchmark.ways import Way

__all__ = ["OF_OUR_OWN", "WAYS"]

WAYS: tuple[Way, ...] = (
    Direct("direct", "no tunnel", "the visitor dials the target"),
    Relays("relays", "two relays", "reference: scripts/benchmark/reference_relay.py, twice"),
    Mux("mux", "mux", "reference: scripts/benchmark/reference_mux.py"),
    Ours("ours-plain", "tunneltcp, no TLS", '`"tls": false`', {"tls": False}),
    Ours("ours", "tunneltcp", "defaults", {}),
    Ssh("ssh", "ssh -R", "defaults"),
    Ssh(
        "ssh-best", "ssh -R, AES-GCM", "`-c aes128-gcm@openssh.com`", "-caes128-gcm@openssh.com"
    ),
    Frp("frp", "frp", "defaults: TLS, one connection for all"),
    Frp("frp-best", "frp, no mux", "TLS, `tcpMux = false`, `poolCount = 8`", mux=False),
    Frp(
        "frp-plain",
        "frp, no TLS",
        "`tls.enable = false`, `tcpMux = false`, `poolCount = 8`",
        tls=False,
        mux=False,
    ),
    Rathole("rathole", "rathole", "defaults: not encrypted, a connection for each visitor"),
    Rathole("rathole-noise", "rathole, Noise", '`type = "noise"`, defaults', "noise"),
    Rathole("rathole-tls", "rathole, TLS", '`type = "tls"`, RSA 2048', "tls"),
    Bore("bore", "bore", "defaults: not encrypted, a connection for each visitor"),
    Chisel("chisel", "chisel", "defaults: SSH in a WebSocket"),
)

OF_OUR_OWN = ("direct", "relays", "mux", "ours-plain", "ours")
"""What needs nothing but this repository: ``--quick`` measures these."""
