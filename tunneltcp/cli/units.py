"""Numbers as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["show_bytes", "show_duration", "show_visitors"]


def show_bytes(count: float) -> str:
    """Return an amount of bytes: 812 B, 34.1 kB, 2.0 GB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def show_visitors(count: int) -> str:
    """Return how many visitors: 1 visitor, 2 visitors."""
    return "1 visitor" if count == 1 else f"{count} visitors"


def show_duration(since: str) -> str:
    """Return how long ago an RFC 3339 time was: 5 s, 3 min, 2 h 10 min, 4 d 3 h."""
    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
