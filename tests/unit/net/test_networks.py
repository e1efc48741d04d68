"""Who is let in by address: each family by itself, deny wins, IPv4-mapped is IPv4."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunneltcp.net.networks import NEAR, Networks


@pytest.mark.parametrize(
    ("allow", "deny", "host", "admitted"),
    [
        ((), (), "203.0.113.9", True),
        ((), (), "no address", True),
        (("10.0.0.0/8",), (), "10.1.2.3", True),
        (("10.0.0.0/8",), (), "11.1.2.3", False),
        (("10.0.0.0/8",), (), "::ffff:10.1.2.3", True),
        (("10.0.0.0/8",), (), "::ffff:11.1.2.3", False),
        (("10.1.2.3",), (), "10.1.2.3", True),
        (("10.1.2.3/32",), (), "10.1.2.2", False),
        (("::ffff:10.0.0.0/104",), (), "10.1.2.3", True),
        (("::ffff:10.0.0.0/104",), (), "11.1.2.3", False),
        (("::ffff:10.0.0.1",), (), "10.0.0.1", True),
        (("10.0.0.1",), (), "::ffff:a00:1", True),
        (("::/0",), (), "10.1.2.3", False),
        (("::/0",), (), "2001:db8::1", True),
        (("0.0.0.0/0",), (), "::1", False),
        (("0.0.0.0/0",), (), "255.255.255.255", True),
        (("2001:db8::/33",), (), "2001:db8:7fff::1", True),
        (("2001:db8::/33",), (), "2001:db8:8000::1", False),
        (("fe80::/10",), (), "fe80::1%eth0", True),
        ((), ("10.0.0.0/8",), "10.1.2.3", False),
        ((), ("10.0.0.0/8",), "11.1.2.3", True),
        ((), ("10.0.0.0/8",), "::1", True),
        (("10.0.0.0/8",), ("10.1.0.0/16",), "10.1.2.3", False),
        (("10.1.0.0/16",), ("10.0.0.0/8",), "10.1.2.3", False),
        (("10.0.0.0/8", "::1"), (), "::1", True),
        (("10.0.0.0/8",), (), "", False),
        ((), ("10.0.0.0/8",), "unknown", False),
        (NEAR, (), "127.9.9.9", True),
        (NEAR, (), "::ffff:127.0.0.1", True),
        (NEAR, (), "::1", True),
        (NEAR, (), "192.168.0.1", False),
    ],
)
def test_who_is_let_in(allow, deny, host, admitted):
    assert Networks(allow, deny).admits(host) is admitted


@pytest.mark.parametrize("network", ["", "vps", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "::/x"])
def test_what_is_no_network_is_an_error(network):
    with pytest.raises(ValueError, match=r"is no|invalid literal"):
        Networks([network])


addresses = st.ip_addresses()


@given(addresses, addresses, st.integers(0, 128))
@example(ipaddress.ip_address("::ffff:0:0"), ipaddress.ip_address("0.0.0.0"), 96)
def test_it_agrees_with_the_standard_library(base, address, ones):
    ones = min(ones, base.max_prefixlen)
    network = ipaddress.ip_network(f"{base}/{ones}", strict=False)
    mapped = getattr(address, "ipv4_mapped", None)
    inner = getattr(network.network_address, "ipv4_mapped", None)
    # A network of mapped addresses is one of IPv4, as they are.
    of_v4 = inner is not None and ones >= 96
    meant = ipaddress.ip_network(f"{inner}/{ones - 96}") if of_v4 else network
    inside = (mapped or address) in meant
    assert Networks([str(network)]).admits(str(address)) is inside
    assert Networks((), [str(network)]).admits(str(address)) is not inside
