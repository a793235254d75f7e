"""The size of an adapter on the device, as its manifest tells it, is what it takes there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapters_store.device_size import device_bytes
from router_engine.config import CacheConfig, DType, EngineConfig, ModelConfig
from tests.router_engine.conftest import MakeHarness
from tests.support.expert_adapters import (
    INSTANCE,
    LORA,
    MOE_LORA,
    NATIVE,
    PARALLEL,
    PROMPT,
    SERIAL,
    SOFT,
    SPARSE,
    Layers,
    make_expert_folder,
)
from tests.support.room import slab_bytes

KINDS = {
    "soft": SOFT,
    "sparse": SPARSE,
    "native": NATIVE,
    "instance": INSTANCE,
    "moe lora": MOE_LORA,
    "parallel": PARALLEL,
    "serial": SERIAL,
    "no biases": Layers(parallel=5, biases=False),
    "prompt": PROMPT,
    "lora": LORA,
    "odd rank": Layers(("q_proj", "o_proj"), rank=3),
    "copies": Layers(("q_proj",), rank=5, copies=3),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_manifest_tells_the_size_of_every_kind(
    family: str,
    dtype: DType,
    make_harness: MakeHarness,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    config = EngineConfig(model=ModelConfig(dtype=dtype), cache=CacheConfig(num_blocks=64))
    harness = make_harness(config=config, model=family_folder(family))
    base, residency = harness.engine.base, harness.engine._residency
    for kind, layers in KINDS.items():
        folder = make_expert_folder(tmp_path / kind.replace(" ", "-"), layers, family=family)
        copy = residency.host_copy(harness.publish(kind.replace(" ", "-"), folder))
        assert device_bytes(copy.manifest, base) == copy.num_bytes, kind


def test_the_files_of_a_lora_tell_it_too(make_harness: MakeHarness, folders: list[Path]) -> None:
    harness = make_harness()
    for index, folder in enumerate(folders):
        copy = harness.engine._residency.host_copy(harness.publish(f"a{index}", folder))
        assert slab_bytes([folder]) == copy.num_bytes
