"""The tensors that experts and routers name: their shapes, dtypes and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from adapters_store.expert_types import (
    BottleneckExpertSpec,
    Copies,
    ExpertSpec,
    GatingNetworkSpec,
    LoraExpertSpec,
    PromptExpertSpec,
)
from adapters_store.tensor_header import TensorHeader, count_non_finite
from adapters_store.types import Problem

Part = ExpertSpec | GatingNetworkSpec
Shape = tuple[int, ...]

DTYPES = ("F32", "F16", "BF16")


def tensor_shapes(part: Part) -> Mapping[str, Shape]:
    """The keys that an expert or a router names, with the shapes that the tensors must have."""
    if isinstance(part, LoraExpertSpec):
        return _lora(part)
    if isinstance(part, BottleneckExpertSpec):
        return _bottleneck(part)
    if isinstance(part, PromptExpertSpec):
        return _prompt(part)
    return _router(part)


def tensor_problems(part: Part, header: TensorHeader) -> Iterator[Problem]:
    """Tensors that are missing, or have another shape or dtype."""
    for key, shape in tensor_shapes(part).items():
        tensor = header.tensors.get(key)
        if tensor is None:
            yield Problem(where_of(part), f"the tensor {key!r} is missing")
            continue
        if tensor.shape != shape:
            yield Problem(key, f"has shape {list(tensor.shape)}, expected {list(shape)}")
        if tensor.dtype not in DTYPES:
            yield Problem(key, f"has dtype {tensor.dtype}, accepted are {', '.join(DTYPES)}")


def value_problems(part: Part, header: TensorHeader, tensors: Path) -> list[Problem]:
    """NaN and Inf, in tensors that `tensor_problems` found nothing wrong with."""
    problems = []
    for key in tensor_shapes(part):
        count = count_non_finite(tensors, header.tensors[key])
        if count:
            problems.append(Problem(key, f"holds {count} values that are NaN or infinite"))
    return problems


def where_of(part: Part) -> str:
    """How problems name an expert or a router."""
    return f"router of {part.layer}" if isinstance(part, GatingNetworkSpec) else part.site


def _lora(expert: LoraExpertSpec) -> Mapping[str, Shape]:
    down, up = _leading(expert.copies)
    return {
        expert.tensor_a: (*down, expert.rank, expert.in_features),
        expert.tensor_b: (*up, expert.out_features, expert.rank),
    }


def _bottleneck(expert: BottleneckExpertSpec) -> Mapping[str, Shape]:
    down, up = _leading(expert.copies)
    shapes: dict[str, Shape] = {
        expert.tensor_down: (*down, expert.size, expert.features),
        expert.tensor_up: (*up, expert.features, expert.size),
    }
    if expert.tensor_down_bias is not None:
        shapes[expert.tensor_down_bias] = (*down, expert.size)
    if expert.tensor_up_bias is not None:
        shapes[expert.tensor_up_bias] = (*up, expert.features)
    return shapes


def _leading(copies: Copies | None) -> tuple[Shape, Shape]:
    """The leading dimensions of the way down and the way up."""
    return ((), ()) if copies is None else ((len(copies.down),), (len(copies.up),))


def _prompt(expert: PromptExpertSpec) -> Mapping[str, Shape]:
    return {
        expert.tensor_prompt: (expert.length, expert.features),
        expert.tensor_head_gates: (expert.heads,),
    }


def _router(router: GatingNetworkSpec) -> Mapping[str, Shape]:
    prefix, features = router.prefix, router.features
    shapes: dict[str, Shape] = {}
    if router.kind == "linear":
        shapes |= _layer(prefix, router.outputs, features)
    else:
        shapes |= _layer(f"{prefix}.w1", router.hidden, features)
        shapes |= _layer(f"{prefix}.w3", router.hidden, features)
        shapes |= _layer(f"{prefix}.w2", router.outputs, router.hidden)
    if router.threshold is not None and router.threshold.prefix is not None:
        shapes |= _layer(router.threshold.prefix, 1, features)
    return shapes


def _layer(prefix: str, out_features: int, in_features: int) -> Mapping[str, Shape]:
    return {f"{prefix}.weight": (out_features, in_features), f"{prefix}.bias": (out_features,)}
