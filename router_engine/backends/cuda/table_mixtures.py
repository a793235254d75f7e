"""Mixtures of plain LoRA, whose rows the kernels find by the adapters' table."""

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
    mix_group_linear,
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

    def of_list(self, capacity: int, reach: frozenset[int], weights: ColumnWeights) -> TableMix:
        """The mixture of the tiles that the list of a capacity holds when it runs."""
        return self._mix(self._list(capacity).tiles, reach, weights)

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
                for mix in (mix_group, mix_group_linear):
                    mix(y, x, weights, group, self._slots.table, tiles)

    def of_step(self, weights: StepWeights, tokens: int) -> TableMix:
        """The mixture of one step of so many tokens."""
        tiles, below = self.tiles(weights.digests), weights.below_probe or weights
        device = self._device
        token_weights = ColumnWeights(
            sums=_matrix(weights, weights.sum_weights, tokens, device),
            lower=_matrix(weights, below.sum_weights, tokens, device),
        )
        if weights.sqrt_weights is not None:
            token_weights = replace(
                token_weights,
                roots=weights.sqrt_weights,
                lower_roots=_matrix(weights, below.sqrt_weights, tokens, device),
            )
        return self._mix(tiles.on(device), self.touched(tiles), token_weights)

    def _list(self, capacity: int) -> StaticTiles:
        if capacity not in self._lists:
            self._lists[capacity] = StaticTiles(capacity, self._device)
        return self._lists[capacity]

    def _mix(self, tiles: Tiles, touched: frozenset[int], weights: ColumnWeights) -> TableMix:
        return TableMix(self._slots.table, tiles, weights, self._below, touched, self._groups)


@dataclass(frozen=True, slots=True)
class ColumnWeights:
    """Weights of a step's tokens, [tokens, columns] fp32 each.

    sums: under `sum`. roots: square roots of those under `linear`; None where there are none.
    lower, lower_roots: the same for the layers below the probe layer.
    """

    sums: Tensor
    lower: Tensor
    roots: Tensor | None = None
    lower_roots: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Those that there are: of sums, and of roots."""
        found = (self.sums, self.lower, self.roots, self.lower_roots)
        return tuple(part for part in found if part is not None)

    def picked(self, index: Tensor) -> ColumnWeights:
        """The same of some tokens, above the probe layer."""
        sums = self.sums.index_select(0, index)
        roots = None if self.roots is None else self.roots.index_select(0, index)
        return ColumnWeights(sums, sums, roots, roots)


@dataclass(frozen=True, slots=True)
class TableMix:
    """One step's mixture as the decoder calls it."""

    table: AdapterTable
    tiles: Tiles
    weights: ColumnWeights
    below: frozenset[_Paths]  # groups below the probe layer
    touched: frozenset[int]  # groups that any rows act on
    groups: Mapping[_Paths, int]

    def __call__(self, group: Group, x: Tensor, y: Tensor) -> None:
        """Add the mixture of a group to y."""
        if self.groups[group.paths] not in self.touched:
            return
        weights, parts = self.weights, (group, self.table, self.tiles)
        is_below = group.paths in self.below
        mix_group(y, x, weights.lower if is_below else weights.sums, *parts)
        roots = weights.lower_roots if is_below else weights.roots
        if roots is not None:
            mix_group_linear(y, x, roots, *parts)

    def of_tokens(self, index: Tensor) -> TableMix:
        """The same seen by some tokens only, above the probe layer."""
        return replace(self, weights=self.weights.picked(index))


def _matrix(weights: StepWeights, part: Tensor | None, tokens: int, device: torch.device) -> Tensor:
    """A part of a step's weights [tokens, adapters], zeros where it is None."""
    return torch.zeros(tokens, len(weights.digests), device=device) if part is None else part
