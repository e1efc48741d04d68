"""What a worker may say."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneltcp.advice import Trouble
from tunneltcp.errors import ControlChannelError
from tunneltcp.master.messages import (
    LinkChanged,
    Ready,
    Replace,
    Resolve,
    TargetChanged,
    Warned,
    parse_message,
)


def test_what_is_known():
    assert parse_message({"type": "ready"}) == Ready()
    assert parse_message({"type": "replace"}) == Replace()
    assert parse_message({"type": "resolve", "host": "a", "port": 0}) == Resolve(
        host="a", port=0
    )
    up = {"type": "link", "state": "up", "peer": "1.2.3.4:5", "reason": None, "seconds": 2}
    assert parse_message(up) == LinkChanged(
        state="up", peer="1.2.3.4:5", reason="", seconds=2.0
    )
    down = parse_message({"type": "link", "state": "down", "reason": "x" * 1000})
    assert isinstance(down, LinkChanged)
    assert (len(down.reason), down.peer, down.seconds) == (400, "", None)


def test_what_a_person_should_see():
    down = {"type": "link", "state": "down", "trouble": "refuses", "detail": "x" * 1000}
    found = parse_message(down)
    assert isinstance(found, LinkChanged)
    assert (found.trouble, len(found.detail)) == (Trouble.REFUSES, 400)
    unknown: object
    for unknown in ("of tomorrow", None, 5, ["refuses"], {}):
        found = parse_message(down | {"trouble": unknown})
        assert isinstance(found, LinkChanged)
        assert found.trouble is None
    assert parse_message({"type": "target", "reason": ""}) == TargetChanged(reason="")
    assert parse_message({"type": "warning", "text": "a" * 500}) == Warned(text="a" * 400)


@pytest.mark.parametrize(
    "message",
    [{}, {"type": "x"}, {"type": "link"}, {"type": "link", "state": "sideways"}, {"type": 1},
     {"type": "target"}, {"type": "target", "reason": None}, {"type": "warning", "text": 1},
     {"type": "resolve", "host": "", "port": 1},
     {"type": "resolve", "host": "a", "port": 70_000},
     {"type": "resolve", "host": "a"}, {"type": "resolve", "host": "a", "port": "1"},
     {"type": "resolve", "host": "a" * 254, "port": 1}],
)  # fmt: skip
def test_what_is_not(message):
    with pytest.raises(ControlChannelError):
        parse_message(message)


@given(st.dictionaries(
    st.sampled_from(["type", "state", "host", "port", "peer", "seconds"]),
    st.none() | st.text() | st.integers() | st.floats() | st.lists(st.text())
    | st.sampled_from(["link", "up", "resolve"]),
))  # fmt: skip
def test_anything_is_a_message_or_an_error(message):
    with suppress(ControlChannelError):
        parse_message(message)
