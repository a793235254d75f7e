"""Decides from the traffic which mixture the base weights should hold. Imports no torch.

A merged mixture runs at the speed of the bare base while every other one pays for a correction, so
merging helps only where one mixture dominates (dLoRA, Wu et al., OSDI 2024, switches by credit).
"""

from __future__ import annotations

from collections.abc import Iterable

from adapters_store.types import ResolvedMixture
from router_engine.config import MergeConfig
from router_engine.mixture.rules import without_zeros
from router_engine.scheduling.plan import PlannedRow

_FORGET = 1e-3  # a share below this is not worth remembering


class MergePolicy:
    """Keeps each mixture's decayed share of the computed tokens.

    After `half_life` tokens an observation counts half. A mixture is merged once its share reaches
    `enter`, and let go when it falls below `leave`: the gap keeps it from switching to and fro.
    """

    def __init__(self, config: MergeConfig) -> None:
        self._config = config
        self._shares: dict[ResolvedMixture | None, float] = {}

    def observe(self, rows: Iterable[PlannedRow]) -> None:
        """Count a step's tokens by the mixture that they run under."""
        tokens: dict[ResolvedMixture | None, int] = {}
        for row in rows:
            mixture = _fixed_mixture(row)
            tokens[mixture] = tokens.get(mixture, 0) + len(row.token_ids)
        total = sum(tokens.values())
        decay = 0.5 ** (total / self._config.half_life)
        for mixture in [m for m, share in self._shares.items() if share * decay < _FORGET]:
            del self._shares[mixture]
        for mixture in {*self._shares, *tokens}:
            newest = tokens.get(mixture, 0) / total
            self._shares[mixture] = decay * self._shares.get(mixture, 0.0) + (1 - decay) * newest

    def choose(self, held: ResolvedMixture | None) -> ResolvedMixture | None:
        """The mixture that the base should hold now; None for the bare base."""
        if held is not None and self._shares.get(held, 0.0) >= self._config.leave:
            return held
        leading = max(self._shares, key=lambda m: self._shares[m], default=None)
        if leading is None or self._shares[leading] < self._config.enter:
            return None
        return leading


def _fixed_mixture(row: PlannedRow) -> ResolvedMixture | None:
    """The mixture of a row that has one; None for the base and for weights that may change."""
    if not row.adapters or row.is_routed or len(row.weight_runs) != 1:
        return None
    weights = row.weight_runs[0][1]
    pairs = sorted((row.adapters[column], weight) for column, weight in weights.items())
    mixture = ResolvedMixture(
        tuple(digest for digest, _ in pairs), tuple(w for _, w in pairs), row.combination
    )
    return without_zeros(mixture)
