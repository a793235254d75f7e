"""A slab: one buffer with every tensor of an adapter, so that the adapter moves in one copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from adapters_store.device_size import padded


class TensorParts(Protocol):
    """A record of tensors."""

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed, always in the same order."""
        ...


P = TypeVar("P", bound=TensorParts)


def pack(parts: P) -> tuple[Tensor, P]:
    """A slab [bytes] uint8 with a copy of every tensor, and the parts as views of it."""
    size = 0

    def measure(tensor: Tensor) -> Tensor:
        nonlocal size
        size += padded(tensor.nbytes)
        return tensor

    parts.mapped(measure)
    slab, first = torch.empty(size, dtype=torch.uint8), 0

    def put(tensor: Tensor) -> Tensor:
        nonlocal first
        view = slab[first : first + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        first += padded(tensor.nbytes)
        return view.copy_(tensor)

    return slab, parts.mapped(put)


def outline(parts: P) -> P:
    """The places, shapes and dtypes of the parts in their slab, without the slab: on `meta`."""

    def of(tensor: Tensor) -> Tensor:
        start = offset(tensor)
        buffer = torch.empty(start + padded(tensor.nbytes), dtype=torch.uint8, device="meta")
        return buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    return parts.mapped(of)


def part_of(slab: Tensor, like: Tensor) -> Tensor:
    """The part of a slab that lies where `like` lies in its own one."""
    start = offset(like)
    return slab[start : start + like.nbytes].view(like.dtype).view(like.shape)


def offset(part: Tensor) -> int:
    """The bytes of a slab before a part of it."""
    return int(part.storage_offset()) * part.itemsize
