"""Where adapters that are not plain LoRA are refused: by name, with what would work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adapters_store.types import ResolvedMixture
from router_engine.config import CacheConfig, EngineConfig, MergeConfig
from router_engine.errors import MixtureError
from router_engine.events import FinishReason
from router_engine.request import EngineRequest, LayerRouting, SamplingSpec
from tests.router_engine.conftest import MakeHarness
from tests.support.expert_adapters import LORA, PROMPT, SERIAL, SOFT, make_expert_folder
from tests.support.harness import EngineHarness, request

TEXT = tuple(range(5, 20))
SPECIAL = {
    "soft": (SOFT, "a gate on the LoRA"),
    "serial": (SERIAL, "a bottleneck expert"),
    "prompt": (PROMPT, "a prompt expert"),
    "copies": (replace(LORA, copies=2), "copies of the LoRA"),
}


@pytest.fixture
def publish(tmp_path: Path) -> Callable[[EngineHarness, str], str]:
    def put(harness: EngineHarness, kind: str) -> str:
        layers = LORA if kind == "lora" else SPECIAL[kind][0]
        return harness.publish(kind, make_expert_folder(tmp_path / "made" / kind, layers))

    return put


@pytest.mark.parametrize("kind", SPECIAL)
def test_linear_merges_and_arrow_refuse(
    kind: str, make_harness: MakeHarness, publish: Callable[[EngineHarness, str], str]
) -> None:
    harness = make_harness(config=_config("manual"))
    digest, held = publish(harness, kind), SPECIAL[kind][1]
    arrow = EngineRequest(
        "arrow",
        TEXT,
        SamplingSpec(max_new_tokens=2),
        (digest,),
        layer_routing=LayerRouting("arrow", {}),
    )
    answers = harness.run(
        request("linear", TEXT, {digest: 1.0}, combination="linear"),
        arrow,
        request("sum", TEXT, {digest: 1.0}),
    )
    for answer, works in zip(answers, ("combination 'sum'", "level 'request'"), strict=False):
        assert answer.end.reason is FinishReason.REFUSED
        assert f"{digest}, which holds {held}" in str(answer.end.error)
        assert works in str(answer.end.error)
    assert answers[2].end.reason is FinishReason.LENGTH
    with pytest.raises(MixtureError, match=rf"{held}.*with each request"):
        harness.wait(harness.engine.merge(ResolvedMixture((digest,), (1.0,))))
    assert harness.engine.merged().mixture is None


def test_auto_never_merges_them(
    make_harness: MakeHarness, publish: Callable[[EngineHarness, str], str]
) -> None:
    """A LoRA is merged as it dominates; then a MoA does, and the base is restored."""
    harness = make_harness(config=_config("auto"))
    lora, soft = publish(harness, "lora"), publish(harness, "soft")
    (first,) = harness.run(request("first", TEXT, {soft: 1.0}, max_new_tokens=8))
    assert harness.engine.stats().merges == 0
    harness.run(request("lora", TEXT, {lora: 1.0}, max_new_tokens=8))
    assert harness.engine.merged().mixture == ResolvedMixture((lora,), (1.0,))
    (again,) = harness.run(request("again", TEXT, {soft: 1.0}, max_new_tokens=8))
    assert harness.engine.merged().mixture is None
    assert again.ids == first.ids


def _config(mode: str) -> EngineConfig:
    merge = MergeConfig(mode="auto" if mode == "auto" else "manual", half_life=4)
    return EngineConfig(cache=CacheConfig(num_blocks=64, prefix_cache=False), merge=merge)
