"""Mixtures under `sum` whose rows the kernels find by the adapters' table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from router_engine.backends.cuda.cuda_decoder import CudaDecoder
from router_engine.backends.cuda.slots import AdapterSlots, HostTiles, StaticTiles
from router_engine.experts.rows import RowPool
from router_engine.kernels.triton.grouped import (
    FEW_TILES,
    AdapterTable,
    Group,
    Tiles,
    mix_group,
)
from router_engine.kernels.triton.launch import ShrinkShape
from router_engine.mixture.weights import StepWeights

_Paths = tuple[str, ...]  # of a group's modules


class TableMixtures:
    """The mixtures of one decoder's steps. Used by the engine's thread."""

    def __init__(self, decoder: CudaDecoder, pool: RowPool, device: torch.device) -> None:
        self._device = device
        self._groups = {group.paths: index for index, group in enumerate(decoder.groups)}
        self._firsts = np.array([group.first for group in decoder.groups])
        self._kinds = {(group.width, group.widths): group for group in decoder.groups}.values()
        self._dtype = decoder.dtype
        self.reaches = decoder.reaches
        self._below = decoder.groups_below_probe()
        self._slots = AdapterSlots(pool, decoder.modules, device)
        self._lists: dict[int, StaticTiles] = {}  # by capacity

    def tiles(self, digests: tuple[str, ...]) -> HostTiles:
        """See `AdapterSlots.tiles`."""
        return self._slots.tiles(digests)

    def touched(self, tiles: HostTiles) -> frozenset[int]:
        """The indices of the groups that any rows act on: the others need no launch."""
        touched = np.logical_or.reduceat(tiles.touched, self._firsts)
        return frozenset(np.flatnonzero(touched).tolist())

    def reach(self, tiles: HostTiles) -> frozenset[int]:
        """The smallest of `reaches` that holds all that any rows act on: few graphs serve all."""
        touched = self.touched(tiles)
        return next(reach for reach in self.reaches if touched <= reach)

    def write(self, digests: tuple[str, ...], capacity: int) -> None:
        """Let the list of a capacity hold these adapters' tiles."""
        self._list(capacity).write(self.tiles(digests))

    def of_list(
        self, capacity: int, reach: frozenset[int], weights: Tensor, lower: Tensor
    ) -> TableMix:
        """The mixture of the tiles that the list of a capacity holds when it runs.

        lower: weights of the layers below the probe layer.
        """
        return self._mix(self._list(capacity).tiles, reach, weights, lower)

    def launch_kinds(self, tokens: int) -> None:
        """Launch every kind of mixture that steps of up to so many tokens may launch, on nothing.

        It is for `kernels.triton.compilation`: no kernel runs.
        """
        for group in self._kinds:
            lists = len(group.paths)
            blocks = range(lists * FEW_TILES, 0, -lists)
            for count, found in ShrinkShape.kinds(tokens, group.width, blocks):
                x = torch.empty(count, group.width, dtype=self._dtype, device="meta")
                y = torch.empty(count, sum(group.widths), dtype=self._dtype, device="meta")
                weights = torch.empty(count, 1, device="meta")
                tiles = StaticTiles(found // lists, self._device).tiles
                mix_group(y, x, weights, group, self._slots.table, tiles)

    def of_step(self, weights: StepWeights, tokens: int) -> TableMix:
        """The mixture of one step of so many tokens."""
        tiles, below = self.tiles(weights.digests), weights.below_probe
        lower = None if below is None else weights_of(below, tokens, self._device)
        return self._mix(
            tiles.on(self._device),
            self.touched(tiles),
            weights_of(weights, tokens, self._device),
            lower,
        )

    def _list(self, capacity: int) -> StaticTiles:
        if capacity not in self._lists:
            self._lists[capacity] = StaticTiles(capacity, self._device)
        return self._lists[capacity]

    def _mix(
        self, tiles: Tiles, touched: frozenset[int], weights: Tensor, lower: Tensor | None
    ) -> TableMix:
        below = dict.fromkeys(self._below, lower) if lower is not None else {}
        return TableMix(self._slots.table, tiles, weights, below, touched, self._groups)


@dataclass(frozen=True, slots=True)
class TableMix:
    """One step's mixture as the decoder calls it."""

    table: AdapterTable
    tiles: Tiles
    weights: Tensor  # [tokens, columns] fp32
    below: Mapping[_Paths, Tensor]  # of groups that have weights of their own
    touched: frozenset[int]  # groups that any rows act on
    groups: Mapping[_Paths, int]

    def __call__(self, group: Group, x: Tensor, y: Tensor) -> None:
        """Add the mixture of a group to y."""
        if self.groups[group.paths] in self.touched:
            weights = self.below.get(group.paths, self.weights)
            mix_group(y, x, weights[: len(x)], group, self.table, self.tiles)

    def of_tokens(self, index: Tensor) -> TableMix:
        """The same seen by some tokens only, above the probe layer."""
        return replace(self, weights=self.weights.index_select(0, index))


def weights_of(weights: StepWeights, tokens: int, device: torch.device) -> Tensor:
    """The weights [tokens, adapters] of a step under `sum`."""
    if weights.sum_weights is not None:
        return weights.sum_weights
    return torch.zeros(tokens, len(weights.digests), device=device)
