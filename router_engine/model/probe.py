"""The hidden-state probe: the layer at which routers read the base's own hidden states.

What enters it is the residual stream [tokens, hidden] that the layers below have left. Requests
that are routed by it have their experts from this layer on only, so the states are the base's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from router_engine.errors import UnsupportedModelError


def layers_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder's layers and their path in the model."""
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    ]
    return lists[0]


def probe_layer_of(model: nn.Module, wanted: int | None) -> int:
    """The index of the probe layer: `wanted`, or a fifth of the way up.

    Raises UnsupportedModelError where the model has no such layer.
    """
    count = len(layers_of(model)[1])
    if wanted is None:
        return count // 5
    if not 0 <= wanted < count:
        raise UnsupportedModelError(
            f"probe_layer is {wanted}: this model has layers 0 to {count - 1}"
        )
    return wanted


def normed(states: NDArray[np.float32]) -> NDArray[np.float32]:
    """States [tokens, hidden] of root mean square 1, so that none counts for more in a mean."""
    squares = np.einsum("td,td->t", states, states) / states.shape[1]
    roots = np.sqrt(np.maximum(squares, 1e-12))
    return np.asarray(states / roots[:, None], dtype=np.float32)


def probe_digest(model: nn.Module, probe_layer: int, quantization: str) -> str:
    """sha256 over what the states at the probe layer depend on: the layer and the weights.

    Norm weights stand for all of them: no two checkpoints have the same.
    """
    digest = hashlib.sha256(f"{probe_layer} {quantization}".encode())
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            digest.update(name.encode())
            digest.update(parameter.float().cpu().numpy().tobytes())
    return digest.hexdigest()


class ProbedStates:
    """What one pass brought. value [tokens, hidden] in fp32 on the host, or None."""

    value: Tensor | None = None


class HiddenStateProbe:
    """Reads what enters the probe layer of a transformers model."""

    def __init__(self, model: nn.Module, probe_layer: int) -> None:
        self._layer = layers_of(model)[1][probe_layer]

    @contextmanager
    def reading(self, *, is_wanted: bool) -> Iterator[ProbedStates]:
        """The reading of the pass inside the block."""
        reading = ProbedStates()
        if not is_wanted:
            yield reading
            return

        def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            reading.value = hidden[0].to(torch.float32, copy=True)

        hook = self._layer.register_forward_pre_hook(read, with_kwargs=True)
        try:
            yield reading
        finally:
            hook.remove()
