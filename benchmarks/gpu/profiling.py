"""Three decode steps kernel by kernel: which take the time, how many, and what lies between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.phases import CardCell
from benchmarks.gpu.site import Site
from benchmarks.gpu.work import CardBatch, CaseName

_STEPS = 3
_KERNELS = 40  # that the result names, those that take longest
_CASES: tuple[CaseName, ...] = ("mixtures", "base")


@dataclass(frozen=True, slots=True)
class KernelRun:
    """A kernel that ran, in microseconds on the device's clock; on a CPU torch's own operators."""

    name: str
    start: float
    end: float


def profile_cells(site: Site) -> list[CardCell]:
    """A cell a case."""
    return [CardCell(case, partial(_measure, site, case)) for case in _CASES]


def summary(launches: Iterable[KernelRun]) -> dict[str, Any]:
    """Microseconds from the first kernel to the last, in kernels, between them; and by name.

    Kernels that run beside one another count once in `busy`.
    """
    order = sorted(launches, key=lambda launch: launch.start)
    by_name: dict[str, list[float]] = {}
    busy = longest = 0.0
    end = order[0].start if order else 0.0
    for launch in order:
        by_name.setdefault(launch.name, []).append(launch.end - launch.start)
        longest = max(longest, launch.start - end)
        busy += max(0.0, launch.end - max(launch.start, end))
        end = max(end, launch.end)
    span = end - order[0].start if order else 0.0
    rows = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:_KERNELS]
    return {
        "steps": _STEPS,
        "launches": len(order),
        "span": span,
        "busy": busy,
        "gaps": span - busy,
        "longest_gap": longest,
        "kernels": [
            {"name": name, "launches": len(times), "us": sum(times)} for name, times in rows
        ],
    }


def _measure(site: Site, case: CaseName) -> dict[str, Any]:
    """Profile steps of the goals' batch, after a turn without the profiler."""
    engine, work = site.engine, site.work(case)
    batch = CardBatch(*site.settings.sizes.goal)
    turn = work.turn(case, batch, 1)
    engine.decode(turn.requests, turn.skip, 1)
    on_device = site.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    profiler = profile(activities=activities)
    turn = work.turn(case, batch, _STEPS)
    engine.decode(turn.requests, turn.skip, _STEPS, within=profiler)
    kind = "CUDA" if on_device else "CPU"
    untyped: Any = profiler
    return summary(
        KernelRun(event.name, event.time_range.start, event.time_range.end)
        for event in untyped.events()
        if event.device_type.name == kind and not event.is_user_annotation
    )
