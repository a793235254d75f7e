"""Ways to route that are measured beside fixed weights, and the numbers made of their times."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptermix.bench.offline import Window
from adaptermix.bench.verdicts import Goal, Verdict, judge_value
from router_engine.request import LayerRouting, TokenRouting

TOP_K = 4  # weights above 0, with every router that can be told


@dataclass(frozen=True, slots=True, eq=False)
class RoutingCase:
    """One way to choose weights. `fields` are those of its requests.

    Without a routing in `fields` the weights are fixed: those that the first case of the same
    `router` had.
    """

    name: str
    router: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_routed(self) -> bool:
        return any(name.endswith("routing") for name in self.fields)


def _token(
    name: str, router: str, *, every: int = 1, lag: int = 0, reads_hidden_states: bool = False
) -> RoutingCase:
    routing = TokenRouting(router, {"top_k": TOP_K}, every, lag=lag)
    return RoutingCase(
        name, router, {"routing": routing, "reads_hidden_states": reads_hidden_states}
    )


# The first case of a router gives its baseline the weights.
CASES = (
    _token("hidden_mean", "hidden_mean", reads_hidden_states=True),
    _token("hidden_mean, every 2", "hidden_mean", every=2, reads_hidden_states=True),
    RoutingCase("fixed, above the tap", "hidden_mean", {"reads_hidden_states": True}),
    _token("similarity", "similarity"),
    _token("similarity, lag 1", "similarity", lag=1),
    _token("similarity, every 2", "similarity", every=2),
    RoutingCase("arrow", "arrow", {"layer_routing": LayerRouting("arrow", {"top_k": TOP_K})}),
)


def groups(routers: Sequence[str]) -> list[tuple[RoutingCase, list[RoutingCase]]]:
    """(fixed weights, the cases beside them) of each of these routers that has cases."""
    pairs = []
    for router in dict.fromkeys(case.router for case in CASES):
        if router in routers:
            cases = [case for case in CASES if case.router == router]
            pairs.append((RoutingCase(f"fixed, as {router}", router), cases))
    return pairs


def even_mixture(digests: Sequence[str], request: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """TOP_K candidates in turn, or all where there are fewer, with equal weights.

    The baseline of routers whose weights are not those of a whole pass.
    """
    size = min(TOP_K, len(digests))
    chosen = tuple(digests[(request * size + i) % len(digests)] for i in range(size))
    return chosen, (1 / size,) * size


def around(embeddings: ArrayLike, count: int, seed: int) -> NDArray[np.float32]:
    """Centroids [count, d] for texts with these embeddings [n, d].

    They lie as far from the mean of the embeddings as those do, in random directions at right
    angles to it. Vectors from all of space would send every text to the same adapters: what tells
    texts apart is small beside what they share.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    mean = rows.mean(axis=0)
    spread = np.sqrt(((rows - mean) ** 2).sum(axis=1).mean())
    directions = np.random.default_rng(seed).normal(size=(count, rows.shape[1]))
    directions -= np.outer(directions @ mean, mean) / (mean @ mean)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(mean + spread * directions, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Size:
    """Of a batch."""

    requests: int
    candidates: int

    @property
    def title(self) -> str:
        return f"{self.requests} requests, {self.candidates} candidates"


def line_of(
    case: RoutingCase, size: Size, routed: Sequence[Window], fixed: Sequence[Window], active: int
) -> dict[str, Any]:
    """One case at one size as written to JSON, from windows [rounds] beside fixed ones.

    A ratio is that of two windows of one round. `active`: different adapters in a fixed step.
    """
    pairs = list(zip(routed, fixed, strict=True))
    return {
        "case": case.name,
        "router": case.router,
        "requests": size.requests,
        "candidates": size.candidates,
        "active_adapters": active,
        **_spread("step_ms", [1e3 * window.seconds for window in routed]),
        **_spread("fixed_ms", [1e3 * window.seconds for window in fixed]),
        **_spread("added_ms", [1e3 * (ours.seconds - base.seconds) for ours, base in pairs]),
        **_spread("added_in_model_ms", [1e3 * (ours.model - base.model) for ours, base in pairs]),
        **_spread("ratio", [ours.seconds / base.seconds for ours, base in pairs]),
    }


def _spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    return {name: statistics.median(values), f"{name}_range": [min(values), max(values)]}


@dataclass(frozen=True, slots=True)
class RoutingTarget:
    """At most this ratio of a case to fixed weights, at every size or with so many requests."""

    what: str
    case: str
    most: float
    requests: int | None = None

    def judge(self, lines: Sequence[Mapping[str, Any]]) -> Verdict:
        """By the size at which it is worst."""
        goal = Goal(self.what, self.most, at_least=False)
        worst = self.worst(lines)
        if worst is None:
            return judge_value(goal, None)
        note = f"worst at {worst['requests']} requests, {worst['candidates']} candidates"
        return judge_value(goal, worst["ratio"], worst["ratio_range"], note)

    def worst(self, lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """The line with the highest ratio of those that count."""
        chosen = [
            line
            for line in lines
            if line["case"] == self.case and self.requests in (None, line["requests"])
        ]
        return max(chosen, key=lambda line: float(line["ratio"]), default=None)


FREE = RoutingTarget("`hidden_mean` against fixed weights, at every size", "hidden_mean", 1.03)
TARGETS = (
    FREE,
    RoutingTarget(
        "`similarity` with lag 1 against fixed weights, 8 requests", "similarity, lag 1", 1.1, 8
    ),
)
