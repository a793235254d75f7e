"""Experts and routers of an adapter against each other, without a base or tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec
from adapters_store.problems import Problem
from adapters_store.types import AdapterManifest


def structure_problems(manifest: AdapterManifest) -> Iterator[Problem]:
    """Experts in each other's way, and gates that no router gives."""
    if not manifest.experts:
        yield Problem("experts", "are none; an adapter holds at least one")
    yield from _twice(manifest)
    routers: dict[str, GatingNetworkSpec] = {}
    for router in manifest.routers:
        if router.layer in routers:
            yield Problem(router.where, "comes twice; a layer has one router at most")
        routers.setdefault(router.layer, router)
    for expert in manifest.experts:
        if expert.gate is not None:
            yield from _gate(expert, expert.gate, _router_of(expert.module, routers))


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
