"""Experts and routers against a base model: the places where they act, and the widths there."""

from __future__ import annotations

from collections.abc import Iterator

from adapters_store.expert_types import (
    BottleneckExpertSpec,
    GatingNetworkSpec,
    LoraExpertSpec,
    PromptExpertSpec,
)
from adapters_store.near_names import near_names
from adapters_store.types import AdapterManifest, BaseModelSpec, Problem
from adapters_store.validation.tensors import Part, where_of

_OTHER_TARGETS = "LoRA works on linear layers only"
_HINTS = 3


def misfits(manifest: AdapterManifest, base: BaseModelSpec) -> Iterator[Problem]:
    """Why an adapter cannot act in `base`, whatever its tensors hold; none where it can."""
    for part in (*manifest.experts, *manifest.routers):
        yield from misfits_of(part, base)


def misfits_of(part: Part, base: BaseModelSpec, *, hints: bool = True) -> Iterator[Problem]:
    """The same of one expert or router; with `hints`, unknown names get those that look alike."""
    most = _HINTS if hints else 0
    if isinstance(part, LoraExpertSpec):
        yield from _lora(part, base, most)
    elif isinstance(part, BottleneckExpertSpec):
        modules = [block.feed_forward for block in base.blocks]
        yield from _place(part.site, part.module, "feed-forward module", modules, base, most)
        yield from _features(part, base)
    elif isinstance(part, PromptExpertSpec):
        yield from _prompt(part, base, most)
    else:
        layers = [block.path for block in base.blocks]
        yield from _place(where_of(part), part.layer, "layer", layers, base, most)
        yield from _features(part, base)


def _lora(expert: LoraExpertSpec, base: BaseModelSpec, hints: int) -> Iterator[Problem]:
    shape = base.linears.get(expert.module)
    if shape is None:
        yield Problem(expert.module, _unknown_linear(expert.module, base, hints))
    elif (shape.in_features, shape.out_features) != (expert.in_features, expert.out_features):
        yield Problem(
            expert.module,
            f"is [out {expert.out_features}, in {expert.in_features}] in the adapter, but "
            f"[out {shape.out_features}, in {shape.in_features}] in {_named(base)}",
        )


def _prompt(expert: PromptExpertSpec, base: BaseModelSpec, hints: int) -> Iterator[Problem]:
    modules = [block.attention for block in base.blocks]
    unplaced = list(_place(expert.site, expert.module, "attention module", modules, base, hints))
    yield from unplaced
    absent = [
        name for name in ("k_proj", "v_proj") if f"{expert.module}.{name}" not in base.linears
    ]
    if absent and not unplaced:
        yield Problem(
            expert.site,
            f"needs a {' and a '.join(absent)}, through which its keys and values are made; "
            f"{_named(base)} has none there: prompt experts work on Llama and its like",
        )
    yield from _features(expert, base)
    if expert.heads != base.num_heads:
        yield Problem(
            expert.site,
            f"has {expert.heads} heads in the adapter, but {base.num_heads} in {_named(base)}",
        )


def _features(
    part: BottleneckExpertSpec | PromptExpertSpec | GatingNetworkSpec, base: BaseModelSpec
) -> Iterator[Problem]:
    if part.features != base.hidden_size:
        yield Problem(
            where_of(part),
            f"has {part.features} features in the adapter, but {base.hidden_size} in "
            f"{_named(base)}",
        )


def _place(
    where: str, path: str, kind: str, known: list[str], base: BaseModelSpec, hints: int
) -> Iterator[Problem]:
    if path not in known:
        near = _near(path, known, hints)
        yield Problem(where, f"{path} is no {kind} of {_named(base)}{_hint(near)}")


def _unknown_linear(module: str, base: BaseModelSpec, hints: int) -> str:
    if module in base.other_modules:
        return f"is no linear layer of {base.name}: {_OTHER_TARGETS}"
    return f"is no module of {_named(base)}{_hint(_near_linears(module, base, hints))}"


def _near_linears(module: str, base: BaseModelSpec, hints: int) -> list[str]:
    """Names that look alike, sought among those that end alike: a model has thousands."""
    if not hints:
        return []
    last = module.rpartition(".")[2]
    alike = [name for name in base.linears if name.rpartition(".")[2] == last]
    return _near(module, alike or list(base.linears), hints)


def _near(path: str, known: list[str], hints: int) -> list[str]:
    return near_names(path, known, most=hints) if hints else []


def _hint(near: list[str]) -> str:
    return f"; near names: {', '.join(near)}" if near else ""


def _named(base: BaseModelSpec) -> str:
    return f"{base.name} ({base.architecture})"
