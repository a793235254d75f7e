"""A step's results on the host, by one copy: each alone would wait for the device again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def read_back(tensors: Sequence[Tensor]) -> list[Array]:
    """Tensors as arrays, in their order. Those that are on the host already are not copied."""
    away = [tensor for tensor in tensors if is_away(tensor)]
    read = iter(unpacked(packed(away).cpu(), away)) if away else iter(())
    return [next(read) if is_away(tensor) else tensor.numpy() for tensor in tensors]


def is_away(tensor: Tensor) -> bool:
    """Whether a tensor is not on the host."""
    return tensor.device.type != "cpu"


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of tensors of one device, one after another."""
    return torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors])


def unpacked(whole: Tensor, like: Sequence[Tensor]) -> list[Array]:
    """The arrays in what `packed` has made of tensors `like` these, once it is on the host."""
    arrays: list[Array] = []
    first = 0
    for tensor in like:
        part = whole[first : first + tensor.nbytes].numpy()
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        arrays.append(part.view(dtype).reshape(tensor.shape))
        first += tensor.nbytes
    return arrays
