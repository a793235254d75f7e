"""Where the time of a window goes, function by function."""

from __future__ import annotations

import cProfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from adaptermix.bench.machine import ROOT
from adaptermix.bench.offline import Window

Run = Callable[[AbstractContextManager[object]], Window]
_MOST = 10  # functions


def own_ms(run: Run) -> dict[str, float]:
    """Milliseconds a step in each function itself, calls to others left out.

    The profiler makes every call slower: small functions look larger than they are.
    """
    profiler = cProfile.Profile()
    window = run(profiler)
    profiler.create_stats()
    times: dict[str, float] = {}
    for entry in profiler.getstats():
        name = _name(entry.code)
        times[name] = times.get(name, 0.0) + 1e3 * entry.inlinetime / window.steps
    return times


def dearest(ours: Mapping[str, float], base: Mapping[str, float]) -> list[dict[str, Any]]:
    """The functions that take most more in `ours` than in `base`."""
    names = sorted({**ours, **base}, key=lambda name: base.get(name, 0.0) - ours.get(name, 0.0))
    return [
        {"function": name, "ms": ours.get(name, 0.0), "fixed_ms": base.get(name, 0.0)}
        for name in names[:_MOST]
    ]


def _name(code: Any) -> str:
    if isinstance(code, str):  # a function in C
        return code.strip("<>")
    path = Path(code.co_filename)
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    return f"{shown}: {code.co_qualname}"
