"""Numbers between host and device, without a wait that nobody needs.

A copy from memory that isn't pinned waits for all that the device has yet to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, once that gets to it."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def write(target: Tensor, values: Tensor) -> None:
    """Let a tensor of the device hold those of the host, once that gets to it."""
    if target.device.type == "cuda":
        values = values.pin_memory()
    target.copy_(values, non_blocking=True)


class ReadBack:
    """A step's results on their way to the host, by one copy: each alone would wait again.

    Those that are on the host already are not copied, but where `keeps` says that they may be
    overwritten before they are looked at.
    """

    def __init__(self, tensors: Sequence[Tensor], *, keeps: bool = False) -> None:
        self._tensors = [
            tensor.clone() if keeps and not is_away(tensor) else tensor for tensor in tensors
        ]
        self._away = [tensor for tensor in tensors if is_away(tensor)]
        self._whole: Tensor | None = None
        self._done: torch.cuda.Event | None = None
        if self._away:
            self._begin(packed(self._away))

    def _begin(self, whole: Tensor) -> None:
        if whole.device.type != "cuda":
            self._whole = whole
            return
        self._whole = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=True)
        self._whole.copy_(whole, non_blocking=True)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record()

    def arrays(self) -> list[Array]:
        """All of them, in their order: waits for the device."""
        if self._done is not None:
            self._done.synchronize()
        read = iter(() if self._whole is None else unpacked(self._whole.cpu(), self._away))
        return [next(read) if is_away(tensor) else tensor.numpy() for tensor in self._tensors]


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
