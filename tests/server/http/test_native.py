"""What the server says of adapters of our own format: whether they fit, and what they hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters_store.types import AdapterManifest, AdapterRecord
from server.generation.mixtures import misfit
from server.schemas.adapters import AdapterReply, TextState
from tests.adapters_store.native_folders import BASE, FUSED, MANIFEST

BOTTLENECKS = tuple(expert for expert in MANIFEST.experts if expert.kind == "bottleneck")


@pytest.mark.parametrize(
    ("manifest", "kinds"),
    [
        (MANIFEST, ["lora", "bottleneck", "prompt", "copies", "router"]),
        (AdapterManifest("adaptermix", BOTTLENECKS[:1]), ["bottleneck"]),
        (AdapterManifest("adaptermix", BOTTLENECKS[1:]), ["bottleneck", "copies"]),
        (AdapterManifest("peft", MANIFEST.lora_experts[:3]), ["lora"]),
    ],
)
def test_a_reply_tells_the_kinds_that_an_adapter_holds(
    manifest: AdapterManifest, kinds: list[str]
) -> None:
    record = AdapterRecord("x", 1, "sha256:0", manifest, 0, 0.0)
    assert AdapterReply.of(record, None, TextState()).kinds == kinds


def test_an_adapter_that_fits_is_no_misfit() -> None:
    assert misfit(MANIFEST, BASE) is None


def test_every_kind_can_be_a_misfit() -> None:
    wider = replace(BASE, name="wide", hidden_size=64)
    for expert in BOTTLENECKS:
        said = misfit(AdapterManifest("adaptermix", (expert,)), wider)
        assert said is not None
        assert said.startswith(f"was made for another base model: {expert.site} has 16 features")
    said = misfit(replace(MANIFEST, experts=MANIFEST.experts[-1:], routers=()), FUSED)
    assert said is not None
    assert "(it says tiny): model.layers.0.self_attn#prompt needs a k_proj" in said
    said = misfit(replace(MANIFEST, experts=()), wider)
    assert said is not None
    assert "router of model.layers.0 has 16 features in the adapter, but 64 in wide" in said
