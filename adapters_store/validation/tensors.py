"""The tensors that experts and routers name: their shapes, dtypes and values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec
from adapters_store.problems import Problem
from adapters_store.tensor_header import TensorHeader, count_non_finite

Part = ExpertSpec | GatingNetworkSpec

DTYPES = ("F32", "F16", "BF16")


def tensor_problems(part: Part, header: TensorHeader) -> Iterator[Problem]:
    """Tensors that are missing, or have another shape or dtype."""
    where = part.where if isinstance(part, GatingNetworkSpec) else part.site
    for key, shape in part.tensor_shapes.items():
        tensor = header.tensors.get(key)
        if tensor is None:
            yield Problem(where, f"the tensor {key!r} is missing")
            continue
        if tensor.shape != shape:
            yield Problem(key, f"has shape {list(tensor.shape)}, expected {list(shape)}")
        if tensor.dtype not in DTYPES:
            yield Problem(key, f"has dtype {tensor.dtype}, accepted are {', '.join(DTYPES)}")


def value_problems(part: Part, header: TensorHeader, tensors: Path) -> list[Problem]:
    """NaN and Inf, in tensors that `tensor_problems` found nothing wrong with."""
    problems = []
    for key in part.tensor_shapes:
        count = count_non_finite(tensors, header.tensors[key])
        if count:
            problems.append(Problem(key, f"holds {count} values that are NaN or infinite"))
    return problems
