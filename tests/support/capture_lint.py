"""What a captured graph may not do, found without a card: wait for the device, or read the host.

A capture records launches. Python that looks at a value would look at an old one in each replay, a
copy from the host would copy the same bytes for ever, and memory of another size lies elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_REFUSED: frozenset[Callable[..., Any]] = frozenset(
    {
        *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.cuda, Tensor.pin_memory),
        *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__array__),
        *(Tensor.nonzero, torch.nonzero, Tensor.unique, torch.unique),
        *(Tensor.masked_select, torch.masked_select, torch.equal, Tensor.equal, torch.allclose),
        *(torch.tensor, torch.as_tensor, torch.from_numpy),
    }
)


WAITS: frozenset[Callable[..., Any]] = _REFUSED - {
    *(torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.pin_memory, Tensor.numpy, Tensor.cuda)
}
"""Calls that wait for the device; `numpy` is of what is on the host."""


class CaptureError(AssertionError):
    """Something that a graph cannot hold."""


class CaptureLint(TorchFunctionMode):
    """Raises CaptureError for what is refused. seen: each call, with the shapes that it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if func in _REFUSED:
            raise CaptureError(f"{name} in captured code")
        if func is Tensor.to and _names_device(args[1:], kwargs):
            raise CaptureError("a copy to a device in captured code")
        if func is Tensor.__getitem__ and _is_mask(args[1]):
            raise CaptureError("an index by truth values in captured code")
        made = func(*args, **kwargs)
        shapes = tuple(tuple(leaf.shape) for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        self.seen.append((name, shapes))
        return made


def _names_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return "device" in kwargs or any(isinstance(each, torch.device | str) for each in args)


def _is_mask(index: object) -> bool:
    return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in tree_leaves(index))


class CountedWaits(TorchFunctionMode):
    """Counts the calls that would wait for a device, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))
