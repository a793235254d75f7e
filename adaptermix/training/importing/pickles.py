"""Tensors out of a file that `torch.save` wrote, and nothing else: no object of it is ever made."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters_store.errors import InvalidAdapterError
from adapters_store.types import Problem

_FOREIGN = re.compile(r"\bGLOBAL (?P<name>[\w.]+)")  # how torch names what it refuses to make


def read_pickle(stream: BinaryIO) -> object:
    """The contents of the file: tensors on the CPU and plain containers of them.

    torch's restricted unpickler knows tensors, numbers, texts and containers; at anything else it
    stops before that is imported or called. Raises InvalidAdapterError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles, which the errors below tell of
            loaded: object = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file ends in whatever error its bytes lead to
        raise InvalidAdapterError([Problem("checkpoint", _reason(error))]) from error
    return loaded


def _reason(error: Exception) -> str:
    foreign = _FOREIGN.search(str(error))
    if isinstance(error, pickle.UnpicklingError) and foreign is not None:
        return (
            f"holds {foreign['name']}, not only tensors: such a file can run code when it is read, "
            "so nothing of it was. Where it was written, save the tensors alone"
        )
    return "is no file of torch.save, or is damaged"


def arrays_of(state: Mapping[str, object]) -> dict[str, NDArray[np.generic]]:
    """The tensors as numpy arrays; floating numbers of any width as float32.

    Raises InvalidAdapterError with every value that is no dense tensor of numbers.
    """
    problems = [
        Problem(name, f"is {_kind(value)}, expected a dense tensor")
        for name, value in state.items()
        if not _is_dense(value)
    ]
    if problems:
        raise InvalidAdapterError(problems)
    return {name: _array(value) for name, value in state.items() if isinstance(value, Tensor)}


def _is_dense(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor of {value.dtype}, {value.layout}, on {value.device.type}"


def _array(tensor: Tensor) -> NDArray[np.generic]:
    plain = tensor.detach()
    array: NDArray[np.generic] = (plain.float() if plain.is_floating_point() else plain).numpy()
    return array
