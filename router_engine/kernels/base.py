"""A set of kernels: seven operations on tensors, beside the base model's own layers.

A set takes tensors and the records below, and knows nothing of requests, adapters or models.
`kernels.reference` holds the equations in plain torch; every set agrees with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters_store.expert_kinds.base import Activation

_Ids = TypeVar("_Ids", Tensor, NDArray[Any])


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
    """The blocks of rank rows that act on each tile of tokens, so that a kernel skips the others.

    All tensors are int32 and on the device.
    """

    # [tiles * tile]: token of each place, tokens with equal adapters side by side; places past the
    # last token hold the number of tokens.
    order: Tensor
    blocks: Tensor  # [tiles, row blocks]: those of a tile that act, then the others
    counts: Tensor  # [tiles]: how many act
    tile: int  # tokens of a tile
    block: int  # rank rows of a block


@dataclass(frozen=True, slots=True)
class RankFold:
    """The weights of `mix_linear`: rows of equal rank index are added before they are expanded."""

    shrink: Tensor  # [tokens, rows] fp32: multiplies A x; sqrt(weight * scale)
    expand: Tensor  # [tokens, rows] fp32: multiplies the rows of B; sqrt(weight / scale)
    index: Tensor  # [rows] int64: position within the row's adapter
    max_rank: int  # above every index


@dataclass(frozen=True, slots=True)
class GatingWeights:
    """The weights of one gating network: it weighs an adapter's experts inside one layer.

    Equation: `kernels.reference.gating_network`.
    """

    # [rows, features] in x's dtype: R [outputs] of a linear network, or W1 and then W3 [hidden
    # each] of a swiglu one; then W [1] of the threshold's own network, where it has one.
    wide: Tensor
    wide_bias: Tensor  # [rows] fp32
    narrow: Tensor | None  # W2 [outputs, hidden] fp32 of a swiglu network
    narrow_bias: Tensor | None  # [outputs] fp32
    outputs: int
    hidden: int  # of a swiglu network; 0: linear
    top_k: int  # softmax over so many highest, 0 elsewhere; 0: sigmoid
    threshold: Literal["none", "constant", "network"]  # of sigmoid
    maximum: float  # of the threshold

    @property
    def num_bytes(self) -> int:
        parts = (self.wide, self.wide_bias, self.narrow, self.narrow_bias)
        return sum(part.nbytes for part in parts if part is not None)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> GatingWeights:
        """The same with every tensor changed."""
        return replace(
            self,
            wide=change(self.wide),
            wide_bias=change(self.wide_bias),
            narrow=None if self.narrow is None else change(self.narrow),
            narrow_bias=None if self.narrow_bias is None else change(self.narrow_bias),
        )


def slots_at(blocks: _Ids, positions: _Ids, block_size: int) -> _Ids:
    """The cache slots of positions, each in the block of `blocks` beside it."""
    slots: _Ids = blocks * block_size + positions % block_size
    return slots


class StepAttention(Protocol):
    """Attention of one flat batch over the cache; the step's own keys and values are in it."""

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """query [tokens, heads, dim]; keys, values [slots, kv heads, dim] -> as query.

        A token at position p sees its request's positions q with p - window < q <= p, all q <= p
        where `window` is None: softmax(scale q K^T) V, head by head; heads // kv_heads query heads
        share a kv head. query may be a slice of a wider tensor; nothing is overwritten.
        """
        ...


class Operations(Protocol):
    """The seven operations of a set of kernels, and `row_blocks`, which helps the first.

    Every set agrees with `kernels.reference`, whose docstrings hold the equations and sources.
    tokens: of the flat batch; rows: rank rows of all adapters that act at a module, one adapter
    after another. Activations, `a` and `b` share one dtype; weights of tokens are fp32. All tensors
    are on one device. A set may subclass `reference.operations.ReferenceOperations` for operations
    that it has no kernel for.

    What a token does not use never reaches it: rows whose weight is 0 for it, whatever `a` holds
    (0 times inf is no number), and cache slots past its own request's context. `b` is finite in
    every row, as are the values of prompts: `experts.contained` sees to that at loading.
    """

    def row_blocks(self, row_weights: Tensor, fill: float) -> RowBlocks | None:
        """The blocks that `mix_sum` needs in order to skip, or None where dense products cost less.

        fill: about the share of `row_weights` [tokens, rows] that is not zero.
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
    ) -> None:
        """y_t += sum_r weight_tr b_r (a_r . x_t), in place.

        y [tokens, out], which may be a slice of wider rows; x [tokens, in]; a [rows, in];
        b [rows, out]; row_weights [tokens, rows] fp32, one for each row: its adapter's, times its
        gate. blocks: `row_blocks` of weights that are 0 where these are; a set that always
        multiplies densely ignores them.
        """
        ...

    def mix_linear(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, fold: RankFold) -> None:
        """y_t += (sum_j c_tj B_j)(sum_j c_tj A_j) x_t, in place, by the weights of `fold`.

        y, x, a, b: as of `mix_sum`. z_tr = fold.shrink_tr (a_r . x_t); f_tk = the sum of z_tr over
        the rows with index k; y_t += sum_r fold.expand_tr f_t,index(r) b_r.
        """
        ...

    def layer_routing(
        self,
        x: Tensor,
        a: Tensor,
        prototype: Tensor,
        owner: Tensor,
        candidates: Tensor,
        top_k: Tensor,
        temperature: Tensor,
    ) -> Tensor:
        """Weights [tokens, adapters], fp32 and new, of tokens that are routed inside this module.

        s_tj = |x_t . v_j|, v_j = sum_r prototype_r a_r over the rows r of adapter j; the softmax of
        s_t / temperature_t over the top_k_t highest of a token's candidates that have rows here, 0
        elsewhere. Of a token's own candidates, one whose score is no number comes first.

        x [tokens, in]; a [rows, in]; prototype [rows] fp32; owner [rows] int64: a row's adapter;
        candidates [tokens, adapters] bool; top_k [tokens] int32, 0 for a token that is not routed;
        temperature [tokens] fp32.
        """
        ...

    def gating(self, v: Tensor, network: GatingWeights) -> Tensor:
        """Gates [tokens, outputs], fp32 and new, of one gating network.

        v [tokens, features]: what the layer reads, before or after its first norm. Whatever follows
        the products with v is in fp32. The equation is long: `reference.gating_network`.
        """
        ...

    def mix_bottleneck(
        self,
        y: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        row_weights: Tensor,
        bias: Tensor | None,
        activations: Sequence[tuple[Activation, int, int]],
    ) -> None:
        """y_t += sum_r weight_tr act_r(a_r . v_t + bias_r) b_r, in place.

        y [tokens, out]; v [tokens, in], which is y itself, as it was before, for serial
        bottlenecks; a [rows, in]; b [rows, out]; row_weights: as of `mix_sum`, outside the
        activation; bias [rows] fp32, None for zeros. activations: (which, first row, last row + 1),
        the identity for rows that none names.
        """
        ...

    def attend_prompts(
        self,
        attended: Tensor,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        row_weights: Tensor,
        lengths: Sequence[int],
    ) -> None:
        """attended_th += sum_j weight_tj softmax(q_th K_j^T / sqrt(head_dim)) V_jh, in place.

        attended, query [tokens, heads, head_dim], the query rotated; keys [rows, kv_heads *
        head_dim]; values [rows, heads * head_dim]; row_weights: as of `mix_sum`, equal for all rows
        of one prompt; lengths: rows of each prompt j, one after another.
        """
        ...

    def attention(
        self, chunks: Sequence[Chunk], block_size: int, device: torch.device
    ) -> StepAttention:
        """Attention of one flat batch, laid out once a step for all layers.

        chunks: the requests' shares, one after another, that together hold every token once.
        block_size: slots of a cache block; block i has the slots [i * block_size, ...).
        """
        ...


# What a set must have: `dispatch.make_operations` refuses one that lacks any.
OPERATIONS = (
    *("row_blocks", "mix_sum", "mix_linear", "layer_routing", "gating", "mix_bottleneck"),
    *("attend_prompts", "attention"),
)


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """One set of kernels by name: what a package registers in the group `adaptermix.kernels`.

    refusal: why it cannot serve a device and dtype, or None if it can.
    make: the set; it has every method of `Operations`.
    """

    name: str
    summary: str
    refusal: Callable[[torch.device, torch.dtype], str | None]
    make: Callable[[], Operations]
