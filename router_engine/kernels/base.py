"""What a set of kernels offers to the model path: mixtures over rank rows, and paged attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """One request's share of a flat batch: flat tokens [first, first + length).

    They stand at positions [start, stop) of the request, whose cache blocks are `block_ids`, and
    each sees what stands before it in the request, and itself.
    """

    first: int
    start: int
    length: int
    block_ids: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """Which blocks of rank rows act on which tiles of tokens: what lets a kernel skip the others.

    order [tiles * tile]: token of each place, tokens with equal adapters side by side; places past
    the last token hold the number of tokens. blocks [tiles, row blocks]: the blocks of a tile that
    act, then the others. counts [tiles]: how many act. All int32, all on the device.
    """

    order: Tensor
    blocks: Tensor
    counts: Tensor
    tile: int
    block: int


class StepAttention(Protocol):
    """Attention of one flat batch over the cache; the step's own keys and values are in it."""

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """query [tokens, heads, dim]; keys, values [slots, kv heads, dim] -> as query.

        A token at position p sees its request's positions q with p - window < q <= p.
        """
        ...


class Operations(Protocol):
    """What is computed in a step beside the base model's own layers.

    Every implementation agrees with `kernels.reference`, whose docstrings hold the equations. What
    a token does not use never reaches it: rows whose weight is 0 for it, whatever `a` holds, and
    cache slots past its own request's context, whatever they hold. `b` is finite in every row:
    `experts.contained` sees to that as an adapter is loaded.
    """

    def row_blocks(self, row_weights: Tensor, fill: float) -> RowBlocks | None:
        """What `mix_sum` needs in order to skip, or None where dense products cost less.

        `fill` is about the share of `row_weights` [tokens, rows] that is not zero.
        """
        ...

    def mix_sum(
        self,
        y: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        row_weights: Tensor,
        blocks: RowBlocks | None = None,
    ) -> None: ...

    def mix_linear(
        self,
        y: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        shrink_weights: Tensor,
        expand_weights: Tensor,
        rank_index: Tensor,
        max_rank: int,
    ) -> None: ...

    def attention(
        self, chunks: Sequence[Chunk], block_size: int, device: torch.device
    ) -> StepAttention: ...


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """One implementation by name.

    refusal: why it cannot serve a device and dtype, or None if it can.
    """

    name: str
    summary: str
    refusal: Callable[[torch.device, torch.dtype], str | None]
    make: Callable[[], Operations]
