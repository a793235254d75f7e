"""Does an adapter fit the base model, and are its numbers sound? All problems at once."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from adapters_store.errors import TensorFileError
from adapters_store.expert_types import LoraExpertSpec
from adapters_store.limits import StoreLimits
from adapters_store.tensor_header import TensorHeader, count_non_finite, read_header
from adapters_store.types import AdapterManifest, BaseModelSpec, Problem

DTYPES = ("F32", "F16", "BF16")
MAX_PROBLEMS = 32
_OTHER_TARGETS = "LoRA works on linear layers only"


def validate(
    manifest: AdapterManifest, tensors: Path, base: BaseModelSpec, limits: StoreLimits
) -> list[Problem]:
    """Every reason why this adapter cannot run on `base`, none if it can.

    Checks modules, shapes, ranks, dtypes, limits and, in tensors that passed the rest, NaN and
    Inf. At most MAX_PROBLEMS are spelled out; the last then says how many more there are.
    """
    try:
        header = read_header(
            tensors, max_header_bytes=limits.max_header_bytes, max_tensors=limits.max_tensors
        )
    except TensorFileError as error:
        return [Problem("tensors", text) for text in error.problems]
    problems = list(_twice(manifest))
    for expert in manifest.lora_experts:
        found = list(_expert_problems(expert, header, base, limits))
        problems += found or _value_problems(expert, header, tensors)
    return shortened(problems)


def _twice(manifest: AdapterManifest) -> Iterator[Problem]:
    seen: set[str] = set()
    for expert in manifest.experts:
        if expert.module in seen:
            yield Problem(expert.module, "has more than one LoRA; an adapter may hold one")
        seen.add(expert.module)


def _expert_problems(
    expert: LoraExpertSpec, header: TensorHeader, base: BaseModelSpec, limits: StoreLimits
) -> Iterator[Problem]:
    if expert.rank > limits.max_rank:
        yield Problem(
            expert.module, f"has rank {expert.rank}, at most {limits.max_rank} is accepted"
        )
    shape = base.linears.get(expert.module)
    if shape is None:
        yield Problem(expert.module, _unknown_module(expert.module, base))
    elif (shape.in_features, shape.out_features) != (expert.in_features, expert.out_features):
        yield Problem(
            expert.module,
            f"is [out {expert.out_features}, in {expert.in_features}] in the adapter, but "
            f"[out {shape.out_features}, in {shape.in_features}] in {base.name} "
            f"({base.architecture}): the adapter was made for another base model",
        )
    yield from _tensor_problems(
        expert.tensor_a, (expert.rank, expert.in_features), header, expert.module
    )
    yield from _tensor_problems(
        expert.tensor_b, (expert.out_features, expert.rank), header, expert.module
    )


def _tensor_problems(
    key: str, shape: tuple[int, int], header: TensorHeader, module: str
) -> Iterator[Problem]:
    tensor = header.tensors.get(key)
    if tensor is None:
        yield Problem(module, f"the tensor {key!r} is missing")
        return
    if tensor.shape != shape:
        yield Problem(key, f"has shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.dtype not in DTYPES:
        yield Problem(key, f"has dtype {tensor.dtype}, accepted are {', '.join(DTYPES)}")


def _unknown_module(module: str, base: BaseModelSpec) -> str:
    if module in base.other_modules:
        return f"is no linear layer of {base.name}: {_OTHER_TARGETS}"
    near = _near_modules(module, base)
    hint = f"; near names: {', '.join(near)}" if near else ""
    return f"is no module of {base.name} ({base.architecture}){hint}"


def _near_modules(module: str, base: BaseModelSpec) -> list[str]:
    """Names that look alike, sought among those that end alike: a model has thousands."""
    last = module.rpartition(".")[2]
    alike = [name for name in base.linears if name.rpartition(".")[2] == last]
    return get_close_matches(module, (alike or list(base.linears))[:256], n=3, cutoff=0.5)


def _value_problems(expert: LoraExpertSpec, header: TensorHeader, tensors: Path) -> list[Problem]:
    problems = []
    for key in (expert.tensor_a, expert.tensor_b):
        count = count_non_finite(tensors, header.tensors[key])
        if count:
            problems.append(Problem(key, f"holds {count} values that are NaN or infinite"))
    return problems


def shortened(problems: list[Problem]) -> list[Problem]:
    """At most MAX_PROBLEMS; the last then says how many more there are."""
    if len(problems) <= MAX_PROBLEMS:
        return problems
    more = len(problems) - MAX_PROBLEMS + 1
    return [*problems[: MAX_PROBLEMS - 1], Problem("adapter", f"and {more} more problems")]
