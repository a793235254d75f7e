"""How the time of a decode step grows: with requests, context, adapters, mixture size, rank."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from adaptermix.bench.bandwidth import read_bandwidth
from adaptermix.bench.cases import CaseMixture, Job
from adaptermix.bench.offline import Offline, Sizes, Step
from adaptermix.bench.prompts import make_prompts
from adaptermix.bench.settings import EngineSettings
from adaptermix.bench.subject import Subject
from adaptermix.bench.turns import Turns

CONTEXT = 128
RANK = 8
NUM_ADAPTERS = 8  # where their number is not what is varied


@dataclass(frozen=True, slots=True)
class Point:
    """A batch of equal requests. `adapters` take turns, `size` of them in each mixture."""

    curve: str
    axis: str
    x: int
    case: str
    requests: int
    context: int = CONTEXT
    adapters: int = 0
    size: int = 1
    rank: int = RANK

    def names(self, request: int) -> tuple[str, ...]:
        """Adapters of one request."""
        return tuple(
            name_of(self.rank, (request + i) % self.adapters)
            for i in range(self.size if self.adapters else 0)
        )

    @property
    def title(self) -> str:
        return f"{self.curve} {self.x}, {self.case}"

    @property
    def active(self) -> set[str]:
        return {name for request in range(self.requests) for name in self.names(request)}


def name_of(rank: int, number: int) -> str:
    return f"rank{rank}-{number}"


def _requests(x: int) -> list[Point]:
    at = ("requests", "requests", x)
    return [Point(*at, "base", x), Point(*at, "eight adapters", x, adapters=NUM_ADAPTERS)]


def _context(x: int) -> list[Point]:
    at = ("context", "context in tokens, 8 requests", x)
    eight = Point(*at, "eight adapters", 8, x, adapters=NUM_ADAPTERS)
    return [Point(*at, "base", 8, x), eight]


def _adapters(x: int) -> list[Point]:
    return [Point("adapters", "active adapters, 64 requests", x, "single", 64, adapters=x)]


def _mixture(x: int) -> list[Point]:
    at = ("mixture", "adapters a mixture, 32 requests", x)
    return [Point(*at, "mixtures", 32, adapters=NUM_ADAPTERS, size=x)]


def _rank(x: int) -> list[Point]:
    at = ("rank", "rank of eight adapters, 32 requests", x)
    return [Point(*at, "eight adapters", 32, adapters=NUM_ADAPTERS, rank=x)]


_AXES = {
    "requests": (_requests, (1, 2, 4, 8, 16, 32, 64, 128)),
    "context": (_context, (128, 256, 512, 1024, 2048, 4096)),
    "adapters": (_adapters, (1, 2, 4, 8, 16, 32, 64)),
    "mixture": (_mixture, (1, 2, 4, 8)),
    "rank": (_rank, (4, 8, 16, 32, 64)),
}


def curves(settings: EngineSettings) -> list[Point]:
    """The points of the curves that are asked for."""
    low, high = settings.smallest or 0, settings.largest or 1 << 62
    return [
        point
        for name in dict.fromkeys(settings.curve)
        for x in _AXES[name][1]
        if low <= x <= high
        for point in _AXES[name][0](x)
    ]


def population_of(points: Sequence[Point]) -> dict[str, int]:
    """Name -> rank of every adapter that some point needs."""
    return {name: point.rank for point in points for name in sorted(point.active)}


def needs(points: Sequence[Point], steps: int) -> Sizes:
    """The most requests and tokens of any point; every prompt stays in the prefix cache."""
    requests = max(point.requests for point in points)
    tokens = max(point.requests * (point.context + steps + point.requests) for point in points)
    prompts = {(point.context, request) for point in points for request in range(point.requests)}
    kept = sum(context for context, _ in prompts)
    return Sizes(requests, tokens + min(kept, tokens), 0)


def measure_curves(
    system: Offline,
    subject: Subject,
    points: Sequence[Point],
    settings: EngineSettings,
    rounds: int,
    console: Console,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """All points in turn, round after round, and which are missing, and why.

    The first round is not counted. Raises BenchmarkError where all points fail.
    """
    speed = read_bandwidth(rounds=5)
    jobs = {point: _jobs(point, subject) for point in points}
    turns = Turns[Point, list[Step]](points, lambda point: point.title, console)
    for number, point in turns.rounds(rounds + 1, "curves"):
        with turns.turn(point) as steps:
            measured = system.decode_steps(jobs[point], settings.steps)
            if number > 0:
                steps.append(measured)
    turns.require_some()
    points_written = [
        _written(system, point, steps, speed) for point, steps in turns.values.items()
    ]
    return points_written, turns.missing


def _jobs(point: Point, subject: Subject) -> list[Job]:
    jobs = []
    for request in range(point.requests):
        (text,) = make_prompts([point.context], f"{request}", subject.count_tokens)
        names = point.names(request)
        jobs.append(Job(text, 0, CaseMixture(names, (1 / max(1, len(names)),) * len(names))))
    return jobs


def _written(
    system: Offline, point: Point, rounds: Sequence[Sequence[Step]], speed: float
) -> dict[str, Any]:
    medians = [statistics.median(step.seconds for step in one) for one in rounds]
    adapters = system.adapter_bytes(sorted(point.active))
    context = point.requests * point.context * system.kv_bytes_per_token
    total = system.weight_bytes + adapters + context
    return {
        "curve": point.curve,
        "axis": point.axis,
        "x": point.x,
        "case": point.case,
        "requests": point.requests,
        "context": point.context,
        "active_adapters": len(point.active),
        "mixture_size": point.size if point.adapters else 0,
        "rank": point.rank if point.adapters else 0,
        "step_ms": 1e3 * statistics.median(medians),
        "step_ms_range": [1e3 * min(medians), 1e3 * max(medians)],
        "model_ms": 1e3 * statistics.median(step.model for one in rounds for step in one),
        "bytes": {"weights": system.weight_bytes, "adapters": adapters, "context": context},
        "bytes_per_second": speed,
        "floor_ms": 1e3 * total / speed,
    }
