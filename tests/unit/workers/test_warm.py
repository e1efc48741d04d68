"""The warm-up of a master: all of it happens, and it waits for nothing."""

from __future__ import annotations

from tunneltcp.net.loop import Loop
from tunneltcp.workers import warm

TURNS = 5000
"""Of both loops; about 900 do, and a pause of 0.1 s before each link costs 50,000."""


def test_all_links_and_visitors_without_a_pause(tmp_path, monkeypatch):
    turns, visits = [], []
    turn, visit = Loop.turn, warm._Tunnel.visit

    def counting_turn(self, **options):
        turns.append(self)
        turn(self, **options)

    def counting_visit(self, number):
        visit(self, number)
        visits.append(number)

    monkeypatch.setattr(Loop, "turn", counting_turn)
    monkeypatch.setattr(warm._Tunnel, "visit", counting_visit)
    monkeypatch.setattr(warm, "MAX_SECONDS", 15.0)  # a busy machine may take longer
    warm.warm_up(tmp_path / "warm-up.log", -1)

    assert len(visits) == warm.LINKS * warm.VISITORS
    assert len(turns) < TURNS
