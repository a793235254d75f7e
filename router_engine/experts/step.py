"""The experts of the running step, shared by every wrapped layer of one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from adapters_store.types import BlockSpec
from router_engine.experts.gate_tensors import GateTensors
from router_engine.experts.gate_values import StepGateValues
from router_engine.experts.kinds import Term, expert_kinds
from router_engine.experts.rows import GatheredRows, RowPool
from router_engine.kernels.base import Operations, RankFold, RowBlocks
from router_engine.kernels.weighted import weighted
from router_engine.mixture.weights import LayerRoutedTokens, StepWeights

_Key = tuple[int, tuple[tuple[int, int], ...]]  # a matrix of weights, a layout of rows


class StepExperts:
    """Adds the mixture of the step to what the base's modules put out.

    The runner calls `begin` before a pass. In every layer, in this order, its body calls `route`
    with what the layer reads, `apply` for each linear layer, `prompt` before o_proj and
    `feed_forward` after the feed-forward module. What depends on the layout of the rows alone (not
    on the layer) is computed once a step.
    """

    def __init__(
        self,
        pool: RowPool,
        operations: Operations,
        blocks: Sequence[BlockSpec] = (),
        probe_layer: int = 0,
    ) -> None:
        """`blocks`: the decoder's layers. Below `probe_layer` a step may have others."""
        self.pool = pool
        self.blocks = tuple(blocks)
        self._probe_layer = probe_layer
        self._layers: dict[str, int | None] = {}  # by site
        self._operations = operations
        self._kinds = expert_kinds()
        self._weights: StepWeights | None = None
        self._gates: StepGateValues | None = None
        self._spread: dict[_Key, Tensor] = {}
        self._row_blocks: dict[_Key, RowBlocks | None] = {}

    def begin(self, weights: StepWeights | None) -> None:
        """Set the weights of the next pass; None for the bare base."""
        self._see(weights)
        self._gates = None
        if weights is not None:
            columns = self.pool.gate_columns(weights.digests)
            if columns:
                layers = len(self.blocks)
                self._gates = StepGateValues(self.pool, self._operations, weights, columns, layers)

    @contextmanager
    def rows(self, index: Tensor) -> Iterator[None]:
        """Within it layers see the tokens `index` [n] only: lm_head runs on sampled rows alone."""
        whole = self._weights
        self._see(None if whole is None else whole.rows(index))
        try:
            yield
        finally:
            self._see(whole)

    def route(self, layer: int, x_pre: Tensor, x_post: Tensor) -> None:
        """Find the gates of a layer, by its index, before its attention.

        x_pre, x_post [..., hidden]: what the layer reads, before and after its first norm.
        """
        if self._gates is not None:
            width = x_pre.shape[-1]
            path = self.blocks[layer].path
            self._gates.route(layer, path, x_pre.reshape(-1, width), x_post.reshape(-1, width))

    def apply(self, module: str, x: Tensor, y: Tensor) -> Tensor:
        """y + the mixture at this linear layer. x [..., in]; y [..., out], changed in place.

        Sources: design section 4 (`sum`); PEFT `add_weighted_adapter` (`linear`).
        """
        weights = self._acting(module)
        if weights is None:
            return y
        rows, terms = self.pool.active(module, weights.digests), self._kinds.terms("linear")
        if rows is None and not terms:
            return y
        flat_x = x.reshape(-1, x.shape[-1])
        flat_y = y.view(-1, y.shape[-1])
        if rows is not None:
            self._low_rank(flat_y, flat_x, module, rows, weights)
        for term in terms:
            self._add(term, module, flat_x, flat_y)
        return y

    def feed_forward(self, module: str, x: Tensor, y: Tensor) -> Tensor:
        """y + the experts at this feed-forward module, which reads x and puts out y.

        x, y [..., hidden], y changed in place, with its LoRA experts.
        """
        for term in self._kinds.terms("feed_forward"):
            self._add(term, module, x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1]))
        return y

    def prompt(self, layer: int, query: Tensor, attended: Tensor) -> Tensor:
        """attended + the experts at a layer's attention, by its index: before what o_proj reads.

        query, attended [tokens, heads, head_dim]; the query rotated; attended changed in place.
        """
        for term in self._kinds.terms("attention"):
            self._add(term, self.blocks[layer].attention, query, attended)
        return attended

    def _add(self, term: Term, module: str, x: Tensor, y: Tensor) -> None:
        """What a kind's experts at a module add to y."""
        weighed = self._weighed(f"{module}{term.suffix}")
        if weighed is not None:
            rows, row_weights = weighed
            term.add(self._operations, y, x, rows, row_weights)

    def readings(self) -> GateTensors | None:
        """What the routers inside layers said in this pass; None where no adapter has any."""
        weights = self._weights
        if self._gates is None or weights is None:
            return None
        return self._gates.readings(weights, self._probe_layer)

    def _see(self, weights: StepWeights | None) -> None:
        self._weights = weights
        self._spread.clear()
        self._row_blocks.clear()

    def _acting(self, site: str) -> StepWeights | None:
        """The weights that hold at a site."""
        weights = self._weights
        if weights is not None and weights.below_probe is not None:
            layer = self._layer(site)
            if layer is not None and layer < self._probe_layer:
                return weights.below_probe
        return weights

    def _layer(self, site: str) -> int | None:
        """The index of the layer that a site lies in; None for lm_head."""
        if site not in self._layers:
            inside = [i for i, b in enumerate(self.blocks) if site.startswith(f"{b.path}.")]
            self._layers[site] = inside[0] if inside else None
        return self._layers[site]

    def _weighed(self, site: str) -> tuple[GatheredRows, Tensor] | None:
        """The rows at a site that is no linear layer, and what multiplies each of them."""
        weights = self._acting(site)
        if weights is None or weights.sum_weights is None:
            return None
        rows = self.pool.active(site, weights.digests)
        if rows is None:
            return None
        return rows, self._times_gates(site, rows, self._per_row(weights.sum_weights, rows))

    def _times_gates(self, site: str, rows: GatheredRows, spread: Tensor) -> Tensor:
        """Weights [tokens, rows] times the gates of the rows that have one."""
        layer = self._layer(site)
        if rows.gate is None or self._gates is None or layer is None:
            return spread
        return weighted(self._gates.per_row(layer, rows, rows.gate), spread)

    def _per_row(self, weights: Tensor, rows: GatheredRows) -> Tensor:
        """Weights [tokens, adapters] spread over rank rows [tokens, rows]."""
        key = (id(weights), rows.layout)
        spread = self._spread.get(key)
        if spread is None:
            spread = weights.index_select(1, rows.owner)
            self._spread[key] = spread
        return spread

    def _low_rank(
        self, y: Tensor, x: Tensor, module: str, rows: GatheredRows, weights: StepWeights
    ) -> None:
        """y + LoRA, in place. x [tokens, in], y [tokens, out]."""
        if weights.layer_routed is not None:
            self._gated(y, x, module, rows, weights.sum_weights, weights.layer_routed)
        elif weights.sum_weights is not None:
            self._sum(y, x, module, rows, weights.sum_weights, weights.density)
        if weights.sqrt_weights is not None:
            self._linear(y, x, rows, weights.sqrt_weights, sign=1.0)
        if weights.merged_sqrt_weights is not None:
            self._linear(y, x, rows, weights.merged_sqrt_weights, sign=-1.0)

    def _sum(
        self, y: Tensor, x: Tensor, module: str, rows: GatheredRows, total: Tensor, fill: float
    ) -> None:
        spread = self._per_row(total, rows)
        key = (id(total), rows.layout)
        if key not in self._row_blocks:
            self._row_blocks[key] = self._operations.row_blocks(spread, fill)
        gated = self._times_gates(module, rows, spread)
        self._operations.mix_sum(y, x, rows.a, rows.b, gated, self._row_blocks[key])

    def _gated(
        self,
        y: Tensor,
        x: Tensor,
        module: str,
        rows: GatheredRows,
        total: Tensor | None,
        gates: LayerRoutedTokens,
    ) -> None:
        """As `_sum`, with the weights that the layer finds added to those that are given."""
        parts = (gates.candidates, gates.top_k, gates.temperature)
        weights = self._operations.layer_routing(x, rows.a, rows.prototype, rows.owner, *parts)
        if total is not None:
            weights += total
        spread = self._times_gates(module, rows, weights.index_select(1, rows.owner))
        self._operations.mix_sum(y, x, rows.a, rows.b, spread)

    def _linear(
        self, y: Tensor, x: Tensor, rows: GatheredRows, root: Tensor, *, sign: float
    ) -> None:
        spread = self._per_row(root, rows)
        fold = RankFold(
            shrink=weighted(rows.scale_root, spread),
            expand=weighted(sign / rows.scale_root, spread),
            index=rows.rank_index,
            max_rank=rows.max_rank,
        )
        self._operations.mix_linear(y, x, rows.a, rows.b, fold)
