"""The experts of the running step, shared by every wrapped layer of one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from router_engine.experts.rows import ActiveRows, RowPool
from router_engine.kernels.base import Operations, RowBlocks
from router_engine.kernels.reference.gates import gate_weights
from router_engine.mixture.weights import StepGates, StepWeights

_Key = tuple[int, tuple[tuple[int, int], ...]]  # a matrix of weights, a layout of rows


class StepExperts:
    """Adds the mixture of the step to a linear layer's output.

    The runner calls `begin` before a pass; each wrapped layer calls `apply`. What depends on the
    layout of the rows alone (not on the layer) is computed once a step.
    """

    def __init__(
        self,
        pool: RowPool,
        operations: Operations,
        is_below_tap: Callable[[str], bool] = lambda module: False,
    ) -> None:
        self.pool = pool
        self._is_below_tap = is_below_tap
        self._operations = operations
        self._weights: StepWeights | None = None
        self._spread: dict[_Key, Tensor] = {}
        self._blocks: dict[_Key, RowBlocks | None] = {}

    def begin(self, weights: StepWeights | None) -> None:
        """Set the weights of the next pass; None for the bare base."""
        self._weights = weights
        self._spread.clear()
        self._blocks.clear()

    @contextmanager
    def rows(self, index: Tensor) -> Iterator[None]:
        """Within it layers see the tokens `index` [n] only: lm_head runs on sampled rows alone."""
        whole = self._weights
        self.begin(None if whole is None else whole.rows(index))
        try:
            yield
        finally:
            self.begin(whole)

    def apply(self, module: str, x: Tensor, y: Tensor) -> Tensor:
        """y + the mixture at this layer. x [..., in]; y [..., out], changed in place.

        Sources: design section 4 (`sum`); PEFT `add_weighted_adapter` (`linear`).
        """
        weights = self._weights
        if weights is not None and weights.lower is not None and self._is_below_tap(module):
            weights = weights.lower
        if weights is None:
            return y
        rows = self.pool.active(module, weights.digests)
        if rows is None:
            return y
        flat_x = x.reshape(-1, x.shape[-1])
        flat_y = y.view(-1, y.shape[-1])
        if weights.gates is not None:
            self._gated(flat_y, flat_x, rows, weights.total, weights.gates)
        elif weights.total is not None:
            self._sum(flat_y, flat_x, rows, weights.total, weights.fill)
        if weights.root is not None:
            self._linear(flat_y, flat_x, rows, weights.root, sign=1.0)
        if weights.merged_root is not None:
            self._linear(flat_y, flat_x, rows, weights.merged_root, sign=-1.0)
        return y

    def _per_row(self, weights: Tensor, rows: ActiveRows) -> Tensor:
        """Weights [tokens, adapters] spread over rank rows [tokens, rows]."""
        key = (id(weights), rows.layout)
        spread = self._spread.get(key)
        if spread is None:
            spread = weights.index_select(1, rows.owner)
            self._spread[key] = spread
        return spread

    def _sum(self, y: Tensor, x: Tensor, rows: ActiveRows, total: Tensor, fill: float) -> None:
        spread = self._per_row(total, rows)
        key = (id(total), rows.layout)
        if key not in self._blocks:
            self._blocks[key] = self._operations.row_blocks(spread, fill)
        self._operations.mix_sum(y, x, rows.a, rows.b, spread, self._blocks[key])

    def _gated(
        self, y: Tensor, x: Tensor, rows: ActiveRows, total: Tensor | None, gates: StepGates
    ) -> None:
        """As `_sum`, with the weights that the layer finds added to those that are given."""
        parts = (gates.candidates, gates.top_k, gates.temperature)
        weights = gate_weights(x, rows.a, rows.prototype, rows.owner, *parts)
        if total is not None:
            weights += total
        spread = weights.index_select(1, rows.owner)
        self._operations.mix_sum(y, x, rows.a, rows.b, spread)

    def _linear(self, y: Tensor, x: Tensor, rows: ActiveRows, root: Tensor, *, sign: float) -> None:
        spread = self._per_row(root, rows)
        self._operations.mix_linear(
            y,
            x,
            rows.a,
            rows.b,
            spread * rows.scale_root,
            spread * (sign / rows.scale_root),
            rows.rank_index,
            rows.max_rank,
        )
