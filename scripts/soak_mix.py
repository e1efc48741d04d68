"""All sorts of visitors at once: what a tunnel with many users carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.support.apps import Apps
    from tests.support.visitors import GroupStats, Load

__all__ = ["PARTS", "Mix", "Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """Some visitors of each tunnel that do the same."""

    text: str
    kind: str
    """A method of :class:`tests.support.visitors.Load`."""
    count: int
    app: str
    options: Mapping[str, object] = field(default_factory=dict)
    moves: bool = True
    """Whether it is to get something done all the time."""

    @property
    def stays(self) -> bool:
        """Whether the same visitors are there all the time."""
        return "repeat" not in self.options and self.kind not in {"hasty", "torn"}


def _transfer(text: str, count: int, size: int, pause: float, flags: str = "") -> Part:
    options = {"up": size, "down": size, "flags": flags, "repeat": True, "pause": pause}
    return Part(text, "transfer", count, "pattern", options)


PARTS = (
    Part("keep-alive, mostly idle", "probe", 12, "echo", {"size": 200, "pause": 15.0}),
    Part("a question every two seconds", "probe", 7, "echo", {"size": 4096, "pause": 2.0}),
    _transfer("both ways at once", 2, 100_000, 8.0),
    _transfer("much, both ways at once", 1, 2_000_000, 20.0),
    _transfer("the visitor finishes first", 1, 50_000, 8.0, "e"),
    _transfer("the app answers after the end", 1, 50_000, 8.0, "r"),
    _transfer("the app finishes first", 1, 50_000, 8.0, "f"),
    Part("resets in the middle", "hasty", 1, "pattern", {"up": 100_000, "pause": 8.0}),
    Part("is reset by the app", "torn", 1, "resetting", {"down": 50_000, "pause": 8.0}),
    Part(
        "newcomers with one question",
        "probe",
        2,
        "echo",
        {"size": 300, "rounds": 1, "repeat": True, "pause": 3.0},
    ),
    Part(
        "sends to an app that never reads",
        "transfer",
        1,
        "deaf",
        {"up": -1},
        moves=False,
    ),
)
"""For each tunnel: twenty that stay, and ten that come and go."""


class Mix:
    """These visitors, for each of some tunnels to an app that is all of their apps."""

    def __init__(
        self, load: Load, apps: Apps, ports: Sequence[int], app_ports: Sequence[int]
    ) -> None:
        self._load, self._apps, self._app_ports = load, apps, app_ports
        self._groups = [
            (f"{port}: {part.text}", port, part) for port in ports for part in PARTS
        ]

    def begin(self, look: Callable[[], None]) -> None:
        """Send them all; between some and the next, call ``look``."""
        for number, (name, port, part) in enumerate(self._groups):
            start = getattr(self._load, part.kind)
            start(
                name,
                port,
                count=part.count,
                seed=1 + 1_000_000 * number,
                app=part.app,
                **part.options,
            )
            look()

    def stats(self) -> list[tuple[Part, GroupStats]]:
        """How they are doing; the longest stall is from here the next time."""
        found = []
        for name, _port, part in self._groups:
            found.append((part, self._load.stats(name)))
            self._load.mark(name)
        return found

    def errors(self, stats: Sequence[tuple[Part, GroupStats]]) -> list[str]:
        """What visitors and apps saw that must not be."""
        wrong = [
            f"{name}: {one.bad} of {one.started}: {error}"
            for (name, _port, _part), (_same, one) in zip(self._groups, stats, strict=True)
            for error in one.errors
        ]
        for app in map(self._apps.stats, self._app_ports):
            wrong += [f"an app got a byte that was not sent: {error}" for error in app.errors]
            if count := app.ends.get("wrong", 0) - len(app.errors):
                wrong.append(f"for an app {count} connections ended too early")
        return wrong

    def end(self) -> None:
        """End all visitors where they are."""
        for name, _port, _part in self._groups:
            self._load.end(name)

    def left(self) -> list[str]:
        """Which apps have connections whose visitors have gone, and who could know it.

        What waits for an app that never reads waits on: its visitor may have been done.
        """
        may_stay = sum(part.count for part in PARTS if not part.moves)
        return [
            f"the app {port} has {count} connections with no visitor"
            for port in self._app_ports
            if (count := self._apps.stats(port).open) > may_stay
        ]

    def reset(self) -> None:
        """Let the apps end what they never read."""
        for port in self._app_ports:
            self._apps.reset_all(port)
