"""What experts and routers say of themselves and of each other, without a base or tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from adapters_store.expert_types import (
    BottleneckExpertSpec,
    Copies,
    ExpertSpec,
    GatingNetworkSpec,
    LoraExpertSpec,
    PromptExpertSpec,
    ThresholdSpec,
)
from adapters_store.limits import StoreLimits
from adapters_store.types import AdapterManifest, Problem
from adapters_store.validation.tensors import Part, where_of

_SUM_TOLERANCE = 1e-4  # of the weights of copies
_MOST_SCALE = 3.4e38  # float32


def structure_problems(manifest: AdapterManifest) -> Iterator[Problem]:
    """Experts in each other's way, and gates that no router gives."""
    if not manifest.experts:
        yield Problem("experts", "are none; an adapter holds at least one")
    yield from _twice(manifest)
    routers: dict[str, GatingNetworkSpec] = {}
    for router in manifest.routers:
        if router.layer in routers:
            yield Problem(where_of(router), "comes twice; a layer has one router at most")
        routers.setdefault(router.layer, router)
    for expert in manifest.experts:
        if expert.gate is not None:
            yield from _gate(expert, expert.gate, _router_of(expert.module, routers))


def values_of(part: Part, limits: StoreLimits) -> Iterator[Problem]:
    """Numbers of one expert or router that cannot be."""
    if isinstance(part, GatingNetworkSpec):
        yield from _router(part)
        return
    sizes = _sizes(part)
    yield from _positive(part, sizes)
    name = next(iter(sizes))
    if sizes[name] > limits.max_rank:
        yield Problem(
            where_of(part),
            f"has {name} {sizes[name]}, at most {limits.max_rank} is accepted",
        )
    if not isinstance(part, PromptExpertSpec):
        if not abs(part.scale) <= _MOST_SCALE:
            told = f"has scale {part.scale:g}: give a finite number that float32 holds"
            yield Problem(where_of(part), told)
        if part.copies is not None:
            yield from _copies(where_of(part), part.copies)


def _sizes(expert: ExpertSpec) -> dict[str, int]:
    """What must be above 0; first what is bounded as a rank."""
    sizes: tuple[str, ...]
    if isinstance(expert, LoraExpertSpec):
        sizes = ("rank", "in_features", "out_features")
    elif isinstance(expert, BottleneckExpertSpec):
        sizes = ("size", "features")
    else:
        sizes = ("length", "features", "heads")
    return {name: getattr(expert, name) for name in sizes}


def _positive(part: Part, sizes: dict[str, int]) -> Iterator[Problem]:
    for name, size in sizes.items():
        if size <= 0:
            yield Problem(where_of(part), f"has {name} {size}: give a number above 0")


def _twice(manifest: AdapterManifest) -> Iterator[Problem]:
    """A gate tells two LoRA of one module apart; nothing tells two other experts apart."""
    counts = Counter(
        (expert.site, expert.kind, expert.gate if expert.kind == "lora" else None)
        for expert in manifest.experts
    )
    for (site, kind, gate), count in counts.items():
        if count == 1:
            continue
        if kind != "lora":
            yield Problem(site, f"has {count} experts; an adapter may hold one there")
        elif gate is None:
            yield Problem(
                site,
                "has more than one LoRA; an adapter may hold one, and more where each has a gate "
                "of its own",
            )
        else:
            yield Problem(site, f"has {count} LoRA with gate {gate}; give each a gate of its own")


def _router_of(module: str, routers: dict[str, GatingNetworkSpec]) -> GatingNetworkSpec | None:
    """The router of the layer that a module lies in."""
    layer = module
    while layer:
        layer = layer.rpartition(".")[0]
        if layer in routers:
            return routers[layer]
    return None


def _gate(expert: ExpertSpec, gate: int, router: GatingNetworkSpec | None) -> Iterator[Problem]:
    """`gate` indexes the outputs of its layer's router."""
    if router is None:
        yield Problem(
            expert.site,
            f"has gate {gate}, but the adapter has no router of its layer: add one, or leave the "
            "gate out",
        )
    elif not 0 <= gate < router.outputs:
        yield Problem(
            expert.site,
            f"has gate {gate}, but the router of {router.layer} has {router.outputs} outputs: "
            f"give 0 to {router.outputs - 1}",
        )


def _copies(where: str, copies: Copies) -> Iterator[Problem]:
    for side, weights in (("down", copies.down), ("up", copies.up)):
        name = f"copies.{side}"
        if not weights:
            yield Problem(where, f"{name} is empty: give a weight for each copy, [1] where shared")
        elif not all(map(math.isfinite, weights)):
            yield Problem(where, f"{name} holds weights that are NaN or infinite")
        elif abs(math.fsum(weights) - 1) > _SUM_TOLERANCE:
            yield Problem(where, f"{name} adds up to {math.fsum(weights):g}: weights add up to 1")


def _router(router: GatingNetworkSpec) -> Iterator[Problem]:
    where = where_of(router)
    yield from _positive(router, {"outputs": router.outputs, "features": router.features})
    if router.kind == "swiglu":
        yield from _positive(router, {"hidden": router.hidden})
    elif router.hidden != 0:
        yield Problem(where, f"is linear and has hidden {router.hidden}: only swiglu has it")
    if router.top_k is not None:
        if router.activation != "softmax":
            yield Problem(
                where, f"has top_k {router.top_k} with {router.activation}: softmax can have it"
            )
        elif not 1 <= router.top_k <= router.outputs:
            yield Problem(where, f"has top_k {router.top_k}: give 1 to {router.outputs} (outputs)")
    if router.threshold is not None:
        yield from _threshold(where, router, router.threshold)


def _threshold(
    where: str, router: GatingNetworkSpec, threshold: ThresholdSpec
) -> Iterator[Problem]:
    if router.activation != "sigmoid":
        yield Problem(where, f"has a threshold with {router.activation}: sigmoid can have it")
    if not 0 <= threshold.maximum <= 1:
        yield Problem(where, f"has a threshold of maximum {threshold.maximum:g}: give 0 to 1")
