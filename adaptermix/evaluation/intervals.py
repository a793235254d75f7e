"""Means with their intervals, {mean, low, high}, as text."""

from __future__ import annotations

from collections.abc import Mapping

NONE = "-"  # of what was not measured

Interval = Mapping[str, float]


def interval(cell: Interval | None, *, scale: float = 1, sign: str = "") -> str:
    """Mean and interval; per cent (a scale of 100) with one digit, nats with three."""
    if cell is None:
        return NONE
    digits = 3 if scale == 1 else 1
    mean, low, high = (f"{scale * cell[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def difference(cell: Interval | None, *, scale: float = 1) -> str:
    """The same with its sign; bold where the interval excludes 0."""
    text = interval(cell, scale=scale, sign="+")
    return f"**{text}**" if cell and (cell["low"] > 0 or cell["high"] < 0) else text
