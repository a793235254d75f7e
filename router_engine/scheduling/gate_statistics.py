"""Statistics of gates: sums over the tokens of a request, and counts for metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from router_engine.events import FinalEvent, GateStatistics
from router_engine.scheduling.observers import RequestObserver
from router_engine.scheduling.plan import Gates, GateValues, StepOutput
from router_engine.stats import GATE_BOUNDS

_BOUNDS = np.array(GATE_BOUNDS, dtype=np.float32)  # as the gates: 0.1 lies on its bound


class GateSums(RequestObserver):
    """The gates of one request's adapters over its tokens, each of which counts once.

    So every token is computed for it: blocks of the prefix cache say nothing of gates.
    """

    __slots__ = ("_adapters", "_sums", "_until")

    def __init__(self, adapters: Sequence[str]) -> None:
        self._adapters = frozenset(adapters)
        self._sums: dict[str, _Sums] = {}
        self._until = 0

    @property
    def searches_blocks(self) -> bool:
        return False

    def read(self, start: int, tokens: slice, out: StepOutput) -> None:
        """See `RequestObserver.read`."""
        if out.gates is not None:
            self.add(start, out.gates, tokens)

    def report(self, event: FinalEvent) -> FinalEvent:
        """See `RequestObserver.report`."""
        return replace(event, gates=self.statistics())

    def add(self, start: int, gates: GateValues, tokens: slice) -> None:
        """Take in the step's `tokens`, at positions from `start` on; those read change nothing."""
        num_read = max(self._until - start, 0)
        fresh = gates.values[:, tokens][:, num_read:]
        if fresh.shape[1] == 0:
            return
        self._until = start + num_read + fresh.shape[1]
        for digest, first, count in gates.columns:
            if digest in self._adapters:
                if digest not in self._sums:
                    self._sums[digest] = _Sums(len(fresh), count)
                self._sums[digest].add(fresh[:, :, first : first + count])

    def statistics(self) -> tuple[GateStatistics, ...]:
        """One for each adapter whose gates were read."""
        return tuple(sums.statistics(name) for name, sums in self._sums.items() if sums.tokens)


class _Sums:
    """Of one adapter, in float64."""

    def __init__(self, layers: int, experts: int) -> None:
        self.tokens = 0
        self._count = np.zeros((layers, experts), dtype=np.int64)
        self._sum = np.zeros((layers, experts))
        self._square = np.zeros((layers, experts))
        self._closed = 0
        self._spread = 0.0
        self._routed = 0  # pairs of a token and a layer

    def add(self, part: Gates) -> None:
        """part [layers, tokens, experts]."""
        has_gate = ~np.isnan(part)
        gates = np.where(has_gate, part, 0).astype(np.float64)
        self.tokens += int(has_gate.any(axis=(0, 2)).sum())
        self._count += has_gate.sum(axis=1)
        self._sum += gates.sum(axis=1)
        self._square += (gates**2).sum(axis=1)
        self._closed += int((has_gate & (gates == 0)).sum())
        experts = has_gate.sum(axis=2)
        several = np.maximum(experts, 1)
        mean = gates.sum(axis=2) / several
        apart = np.where(has_gate, gates - mean[:, :, None], 0)
        self._spread += float(np.sqrt((apart**2).sum(axis=2) / several).sum())
        self._routed += int((experts > 0).sum())

    def statistics(self, adapter: str) -> GateStatistics:
        count = np.maximum(self._count, 1)
        mean = self._sum / count
        std = np.sqrt(np.maximum(self._square / count - mean**2, 0))
        return GateStatistics(
            adapter,
            tokens=self.tokens,
            mean=self._rows(mean),
            std=self._rows(std),
            spread=self._spread / self._routed,
            closed=self._closed / int(self._count.sum()),
        )

    def _rows(self, values: NDArray[np.float64]) -> tuple[tuple[float | None, ...], ...]:
        has_gate = (self._count > 0).tolist()
        return tuple(
            tuple(value if has else None for value, has in zip(*row, strict=True))
            for row in zip(values.tolist(), has_gate, strict=True)
        )


class GateCounts:
    """How many gates lay at or below each of GATE_BOUNDS and above the one before."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(_BOUNDS) + 1, dtype=np.int64)
        self.total = 0.0

    @property
    def counts(self) -> tuple[int, ...]:
        """One a bound, and one above all."""
        return tuple(self._counts.tolist())

    def add(self, gates: GateValues, tokens: NDArray[np.intp]) -> None:
        """Count the gates of some tokens of a step."""
        values = gates.values[:, tokens].ravel()
        values = values[~np.isnan(values)]
        places = np.searchsorted(_BOUNDS, values, side="left")
        self._counts += np.bincount(places, minlength=len(self._counts))
        self.total += float(values.sum(dtype=np.float64))
