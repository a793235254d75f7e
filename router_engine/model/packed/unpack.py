"""Weights of quantised checkpoints as numbers again: w = (q - zero) * scale."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 32  # bits of what packed weights lie in
# The outputs that the nibbles of one of AWQ's words hold, from the lowest bits up.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def fields(words: Tensor, bits: int, dim: int) -> Tensor:
    """The fields of int32 words, from the lowest bits up, in the place of each word along `dim`."""
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    parts = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return parts.movedim(-1, dim + 1).flatten(dim, dim + 1)


def in_turn(inputs: int, group_size: int, groups: int) -> Tensor:
    """[inputs]: the group of each, as many inputs one after another; -1: one group of all.

    Raises ValueError where there are not so many groups.
    """
    size = inputs if group_size == -1 else group_size
    if groups != -(-inputs // size):
        raise ValueError(f"{inputs} inputs in groups of {size}, and {groups} scales")
    return torch.arange(inputs) // size


def awq(qweight: Tensor, qzeros: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """[out, in] fp32 from qweight [in, out / 8], qzeros [groups, out / 8], scales [groups, out]."""
    values, zeros = (_in_order(fields(each, 4, 1)) for each in (qweight, qzeros))
    groups = in_turn(len(values), group_size, len(scales))
    return ((values - zeros[groups]) * scales.float()[groups]).T.contiguous()


def _in_order(values: Tensor) -> Tensor:
    place = torch.tensor(_AWQ_ORDER).argsort()
    return values.view(len(values), -1, len(place))[:, :, place].flatten(1)


def gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, groups: Tensor, *, bits: int, zero_offset: int
) -> Tensor:
    """[out, in] fp32 from qweight [in * bits / 32, out], qzeros [groups, out * bits / 32].

    scales [groups, out]. groups [in]: of each input.
    """
    values = fields(qweight, bits, 0)
    zeros = fields(qzeros, bits, 1)[:, : scales.shape[1]] + zero_offset
    return ((values - zeros[groups]) * scales.float()[groups]).T.contiguous()


def packed_rows(words: Tensor, bits: int, columns: int) -> Tensor:
    """[rows, columns] int32 from words [rows, columns * bits / 32 or more].

    Each value is stored with half its range added, so that it is not negative.
    """
    return fields(words, bits, 1)[:, :columns] - (1 << (bits - 1))


def scaled(
    values: Tensor, scale: Tensor, zeros: Tensor | None = None, groups: Tensor | None = None
) -> Tensor:
    """[out, in] fp32 from values [out, in], and a scale for all, [out, 1], or [out, groups].

    zeros: as the scale. groups [in]: of each input; None: there is one.
    """
    values, scale = values.float(), scale.float()
    if groups is not None:
        scale = scale[:, groups]
        zeros = None if zeros is None else zeros[:, groups]
    return (values if zeros is None else values - zeros.float()) * scale


def in_blocks(values: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """[out, in] fp32 from values [out, in] and a scale [blocks, blocks]; the last may be cut.

    Raises ValueError where there are not so many blocks.
    """
    wanted = [-(-size // side) for size, side in zip(values.shape, block, strict=True)]
    if list(scale.shape) != wanted:
        raise ValueError(f"{wanted} blocks, and scales {list(scale.shape)}")
    for dim, side in enumerate(block):
        scale = scale.repeat_interleave(side, dim)
    return values.float() * scale[: values.shape[0], : values.shape[1]].float()
