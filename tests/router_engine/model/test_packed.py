"""Quantised checkpoints are the numbers that they stand for, and what is not read is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from router_engine.config import ModelConfig
from router_engine.errors import UnsupportedModelError
from router_engine.model.loader import load_model, read_checkpoint
from router_engine.model.packed.scheme import scheme_of
from tests.support.harness import EngineHarness, request
from tests.support.packed_checkpoints import LAYOUTS, awq, compressed, gptq, save_packed

WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_is_the_numbers_that_it_stands_for(name: str, tmp_path: Path) -> None:
    packed, plain = save_packed(tmp_path, LAYOUTS[name])
    wanted = read_checkpoint(str(plain), torch.float32).state_dict()
    loaded = load_model(ModelConfig(str(packed), device="cpu", dtype="float32"))
    found = loaded.model.state_dict()
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-8)
    assert not hasattr(loaded.model.config, "quantization_config")


@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "qwen3", "mistral"])
def test_every_family(family: str, tmp_path: Path) -> None:
    packed, plain = save_packed(tmp_path, awq(), family)
    wanted = read_checkpoint(str(plain), torch.float32).state_dict()
    found = read_checkpoint(str(packed), torch.float32).state_dict()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-8)


def test_an_engine_answers_as_on_the_plain_weights(tmp_path: Path) -> None:
    texts = []
    for folder in save_packed(tmp_path, gptq(4)):
        harness = EngineHarness(tmp_path / folder.name / "engine", folder)
        try:
            (answer,) = harness.run(request("r", range(5, 20)))
            texts.append(answer.ids)
        finally:
            harness.close()
    assert texts[0] == texts[1]


def _without(folder: Path, part: str) -> None:
    file = folder / "model.safetensors"
    tensors = {name: each for name, each in load_file(file).items() if not name.endswith(part)}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(("awq", part) for part in ("qzeros", "scales")),
        *(("gptq", part) for part in ("qzeros", "scales")),
        *(("packed, 4 bits", part) for part in ("weight_scale", "weight_shape")),
    ],
)
def test_a_part_that_is_missing_is_named(name: str, part: str, tmp_path: Path) -> None:
    packed, _ = save_packed(tmp_path, LAYOUTS[name])
    _without(packed, part)
    with pytest.raises(UnsupportedModelError, match=f"_proj lacks {part}, without which"):
        load_model(ModelConfig(str(packed), device="cpu"))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("awq", "scales"),
        ("gptq", "scales"),
        ("packed, 4 bits", "weight_scale"),
        ("int8", "weight_scale"),
        ("fp8 in blocks", "weight_scale_inv"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(name: str, part: str, tmp_path: Path) -> None:
    packed, _ = save_packed(tmp_path, LAYOUTS[name])
    file = packed / "model.safetensors"
    tensors = {
        key: torch.cat([each, each]) if key.endswith(part) else each
        for key, each in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="_proj do not fit together"):
        load_model(ModelConfig(str(packed), device="cpu"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quant_method": "bitsandbytes"}, r"quantised \(bitsandbytes\), which is not read; awq"),
        ({"quant_method": None}, r"quantised \(quantization_config\)"),
        ({"quant_method": "awq", "bits": 3}, "of awq: bits is 3: 4"),
        ({"quant_method": "awq", "version": "gemv"}, "of awq: version is 'gemv': 'gemm'"),
        ({"quant_method": "awq", "zero_point": False}, "of awq: zero_point is not true"),
        ({"quant_method": "awq", "group_size": "x"}, "of awq: group_size is x"),
        ({"quant_method": "awq", "group_size": True}, "of awq: group_size is True"),
        ({"quant_method": "gptq", "bits": 2}, "of gptq: bits is 2: 4, 8 are read"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"quant_method": "gptq", "group_size": 0}, "of gptq: group_size is 0"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "of fp8: fmt is 'e5m2'"),
        ({"quant_method": "fp8", "weight_block_size": [1]}, "weight_block_size is \\[1\\]: two"),
        ({"quant_method": "fp8", "weight_block_size": [1, 0]}, "weight_block_size is"),
        ({"quant_method": "compressed-tensors"}, "config_groups is empty"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "format is 'marlin-24'"),
        (
            {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24"}},
            "sparsity_config is given",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {}}}},
            "lacks weights or targets",
        ),
        (
            dict(compressed("pack-quantized", **WEIGHTS).config)
            | {"config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 3}}}},
            r"weights of 3 bits \(int\)",
        ),
        (
            dict(compressed("pack-quantized", **WEIGHTS).config)
            | {
                "config_groups": {"a": {"targets": [], "weights": {"num_bits": 4, "type": "float"}}}
            },
            r"weights of 4 bits \(float\)",
        ),
        ("awq", "quantization_config is no object"),
    ],
)
def test_what_is_not_read_is_refused_by_name(changes: Any, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        scheme_of(changes, "here")


def test_a_config_that_says_it_of_plain_weights_is_refused(tmp_path: Path) -> None:
    packed, plain = save_packed(tmp_path, awq())
    (plain / "config.json").write_bytes((packed / "config.json").read_bytes())
    with pytest.raises(UnsupportedModelError, match="it is quantised; no layer is"):
        load_model(ModelConfig(str(plain), device="cpu"))


def test_groups_are_chosen_by_their_targets(tmp_path: Path) -> None:
    """A layer that none of them names is not guessed."""
    packed, _ = save_packed(tmp_path, LAYOUTS["packed, 4 bits"])
    file = packed / "config.json"
    config = json.loads(file.read_text())
    groups = config["quantization_config"]["config_groups"]
    groups["group_0"]["targets"] = ["re:.*self_attn.*", "down_proj", "gate_proj"]
    file.write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"up_proj is packed, but config_groups"):
        load_model(ModelConfig(str(packed), device="cpu"))
    groups["group_1"] = groups["group_0"] | {"targets": ["model.layers.0.mlp.up_proj", "up_proj"]}
    file.write_text(json.dumps(config))
    load_model(ModelConfig(str(packed), device="cpu"))
