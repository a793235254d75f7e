"""The gates of one step: what every layer's routers say of every token, kept until its end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from router_engine.experts.readings import GateReadings
from router_engine.experts.rows import ActiveRows, RowPool
from router_engine.kernels.reference.layer_router import layer_gates
from router_engine.scheduling.gates import GateColumns


class StepGateValues:
    """Gates [layers, tokens, 1 + width] of the adapters of a step that have routers.

    Column 0 holds ones: rows without a gate read it.
    """

    def __init__(
        self, pool: RowPool, digests: tuple[str, ...], columns: GateColumns, layers: int
    ) -> None:
        self._pool = pool
        self._digests = digests
        self._columns = columns
        self._layers = layers
        self._values: Tensor | None = None
        firsts = {digest: 1 + first for digest, first, _ in columns}
        self._starts = torch.tensor([firsts.get(digest, 0) for digest in digests])

    def route(self, layer: int, path: str, x_pre: Tensor, x_post: Tensor) -> None:
        """Find the gates of one layer. x_pre, x_post [tokens, hidden]."""
        values = self._storage(x_post)
        for digest, first, _ in self._columns:
            router = self._pool.routers(digest).get(path)
            if router is not None:
                v = x_pre if router.spec.input == "pre_norm" else x_post
                found = 1 + first
                gates = layer_gates(router, v)
                values[layer, :, found : found + router.spec.outputs] = gates

    def per_row(self, layer: int, rows: ActiveRows, gate: Tensor) -> Tensor:
        """[tokens, rows]: what multiplies each row at a site of a layer; `gate` is `rows.gate`."""
        assert self._values is not None, "the layer has not been routed"
        starts = self._starts.to(gate.device)
        index = torch.where(gate < 0, 0, starts[rows.owner] + gate)
        return self._values[layer].index_select(1, index)

    def readings(self, used: Sequence[Tensor]) -> GateReadings:
        """What was said; used[layer] [tokens, adapters] bool: which adapters acted there."""
        assert self._values is not None, "no layer has been routed"
        values = self._values[:, :, 1:].clone()
        column_of = {digest: index for index, digest in enumerate(self._digests)}
        for digest, first, count in self._columns:
            for layer, uses in enumerate(used):
                part = values[layer, :, first : first + count]
                part[~uses[:, column_of[digest]]] = torch.nan
        return GateReadings(values.cpu(), self._columns)

    def _storage(self, like: Tensor) -> Tensor:
        if self._values is None:
            width = sum(count for _, _, count in self._columns)
            shape = (self._layers, len(like), 1 + width)
            self._values = torch.full(shape, torch.nan, device=like.device)
            self._values[:, :, 0] = 1.0
        return self._values
