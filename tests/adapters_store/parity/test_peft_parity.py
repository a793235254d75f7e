"""What PEFT saves is read as PEFT reads it: modules, ranks, scales and the bytes of A and B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters_store.formats.patterns import Matcher, Targets
from adapters_store.store import AdapterStore
from adapters_store.types import AdapterManifest, BaseModelSpec, LinearShape
from router_engine.model.embeddings import embedding_specs
from tests.support.tiny import family_model, lora_model

MODULES = [
    "lm_head",
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.11.self_attn.q_proj",
    "model.layers.1.mlp.q_proj",
    "model.layers.1.mlp.experts.0.q_proj",
    "transformer.h.1.attn.c_attn",
    "model.layers.1.self_attn.big_q_proj",
]


def spec_of(model: PreTrainedModel) -> BaseModelSpec:
    """The linear layers of a base model, GPT-2's Conv1D among them."""
    linears = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            linears[name] = LinearShape(module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            linears[name] = LinearShape(module.nx, module.nf)
    return BaseModelSpec(
        "tiny",
        type(model).__name__,
        linears,
        ("model.embed_tokens",),
        embeddings=embedding_specs(model),
    )


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "all linear": ("llama", {"target_modules": "all-linear"}),
    "pattern": ("llama", {"target_modules": r".*\.1\..*(q|down)_proj"}),
    "head": ("llama", {"target_modules": ["lm_head", "o_proj"]}),
    "head by pattern": ("llama", {"target_modules": r"lm_head|.*o_proj"}),
    "head, tied": ("llama-tied", {"target_modules": ["lm_head", "q_proj"]}),
    "biases in the base": ("qwen2", {"target_modules": ["q_proj"]}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "rslora": ("llama", {"use_rslora": True, "r": 9, "lora_alpha": 7}),
    "rank pattern": ("llama", {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6}}),
    "alpha pattern": ("llama", {"alpha_pattern": {"q_proj": 3, "v_proj": 0.5}}),
    "anchored patterns": (
        "llama",
        {
            "rank_pattern": {"^model.layers.0.self_attn.q_proj": 3},
            "alpha_pattern": {"^model.layers.1.self_attn.v_proj": 5},
        },
    ),
    "first pattern wins": (
        "llama",
        {"rank_pattern": {r"layers\.\d+\.self_attn\.[qk]_proj": 3, "q_proj": 5}},
    ),
    "patterns and rslora": (
        "llama",
        {
            **{"use_rslora": True, "rank_pattern": {"q_proj": 2}, "lora_alpha": 5},
            "alpha_pattern": {r"0\.self_attn\.[qv]_proj": 11},
        },
    ),
    "some layers": ("llama", {"layers_to_transform": [1]}),
    "one layer": ("llama", {"layers_to_transform": 0, "layers_pattern": "layers"}),
    "excluded": (
        "llama",
        {"target_modules": ["q_proj"], "exclude_modules": ["0.self_attn.q_proj"]},
    ),
    "gaussian": ("llama", {"init_lora_weights": "gaussian"}),
    "no init": ("llama", {"init_lora_weights": False}),
    "orthogonal": ("llama", {"init_lora_weights": "orthogonal"}),
    "mica": ("llama", {"init_lora_weights": "mica"}),
    "velora": ("llama", {"velora_config": peft.VeloraConfig(num_groups=2)}),
    "dropout": ("llama", {"lora_dropout": 0.3}),
}


def published(model: Any, folder: Path, store: AdapterStore, base: BaseModelSpec) -> Any:
    model.save_pretrained(str(folder))
    return store.publish("x", folder, base=base)


@pytest.mark.parametrize(("family", "options"), OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Use of rsLoRA:UserWarning")
def test_reads_what_peft_saves(
    tmp_path: Path, store: AdapterStore, family: str, options: dict[str, Any]
) -> None:
    base = spec_of(family_model(family))
    model = peft.get_peft_model(
        family_model(family),
        peft.LoraConfig(
            **{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | options
        ),
    )
    record = published(model, tmp_path / "saved", store, base)
    assert facts_of(record.manifest) == facts_in(model)
    kept = load_file(store.blobs.fetch(record.digest).tensors)
    for expert in record.manifest.lora_experts:
        layer = model.get_submodule(f"base_model.model.{expert.module}")
        assert torch.equal(kept[expert.tensor_a], layer.lora_A["default"].weight)
        assert torch.equal(kept[expert.tensor_b], layer.lora_B["default"].weight)


def facts_of(manifest: AdapterManifest) -> dict[str, tuple[int, float, int, int]]:
    return {
        expert.module: (expert.rank, expert.scale, expert.in_features, expert.out_features)
        for expert in manifest.lora_experts
    }


def facts_in(model: torch.nn.Module) -> dict[str, tuple[int, float, int, int]]:
    return {
        name.removeprefix("base_model.model."): (
            *(layer.r["default"], layer.scaling["default"]),
            *(layer.in_features, layer.out_features),
        )
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def test_an_adapter_by_another_name_reads_the_same(tmp_path: Path, store: AdapterStore) -> None:
    model = lora_model(family_model("llama"))
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(str(tmp_path / "saved"), selected_adapters=["second"])
    record = store.publish("x", tmp_path / "saved" / "second", base=spec_of(family_model("llama")))
    assert {expert.rank for expert in record.manifest.lora_experts} == {2}


@pytest.mark.parametrize(
    "patterns",
    [
        ["q_proj"],
        ["^q_proj", "layers.1.self_attn.q_proj"],
        [r".*\.q_proj", "q_proj"],
        ["proj"],
        ["self_attn.q_proj|c_attn", "lm_head"],
        [r"model.layers.\d.*q_proj"],
        [r"layers\.(0|11)\..*"],
        [],
    ],
)
@pytest.mark.parametrize("module", MODULES)
def test_pattern_keys_match_as_in_peft(patterns: list[str], module: str) -> None:
    theirs = get_pattern_key(patterns, module)
    ours = Matcher().first_key(patterns, module)
    assert (module if ours is None else ours) == theirs


TARGETS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj"]},
    {"target_modules": ["self_attn.q_proj", "lm_head"]},
    {"target_modules": r".*\.q_proj"},
    {"target_modules": r"lm_head|.*c_attn"},
    {"target_modules": "(?i).*Q_PROJ"},
    {"target_modules": "(?i).*proj", "exclude_modules": r"(?i).*MLP.*"},
    {"target_modules": "(?x) .* \\.q_proj  # of every layer"},
    {"target_modules": "(?s:.)*_proj|(?i:LM_HEAD)"},
    {"target_modules": ["q_proj"], "exclude_modules": ["mlp.q_proj"]},
    {"target_modules": r".*proj", "exclude_modules": r".*\.1\..*"},
    {"target_modules": ["q_proj"], "layers_to_transform": 1},
    {"target_modules": ["q_proj"], "layers_to_transform": [0, 11]},
    {"target_modules": ["q_proj", "c_attn"], "layers_to_transform": []},
    {"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": "h"},
    {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "experts"},
]


@pytest.mark.parametrize("options", TARGETS, ids=str)
@pytest.mark.parametrize("module", MODULES)
def test_targets_match_as_in_peft(options: dict[str, Any], module: str) -> None:
    config = peft.LoraConfig(**options)
    assert Targets(**options).include(module) == bool(check_target_module_exists(config, module))
