"""What a GGUF file says of its model is applied or refused by name; nothing beside it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from router_engine import assets
from router_engine.config import ModelConfig
from router_engine.errors import UnsupportedModelError
from router_engine.model.gguf_config import llama3_factors
from router_engine.model.gguf_tokenizer import load_gguf_tokenizer
from router_engine.model.loader import described_by, load_model
from router_engine.model.tiny import tiny_config, tiny_model
from tests.support.gguf import Value, save_gguf
from tests.support.tiny import family_model, make_lora_folder

IDS = torch.tensor([[(7 * index) % 250 + 5 for index in range(200)]])
WIDTH = 16  # of a tiny model's head

Keys = dict[str, Value]


@torch.no_grad()
def _logits(model: PreTrainedModel) -> torch.Tensor:
    model.set_attn_implementation("eager")
    logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


def _served(file: Path) -> PreTrainedModel:
    return load_model(ModelConfig(str(file), dtype="float32", device="cpu")).model


def _floats(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "qwen3", "gpt2"])
def test_a_file_of_each_family_is_its_model(tmp_path: Path, family: str) -> None:
    model = family_model(family)
    file = save_gguf(tmp_path / "tiny.gguf", model, "smollm")
    assert torch.allclose(_logits(_served(file)), _logits(model), atol=1e-4)


def _named(theta: float = 1e4, **parameters: Any) -> PreTrainedModel:
    """The tiny model with another rope."""
    config = tiny_config()
    config.rope_parameters = {"rope_theta": theta, "rope_type": "default", **parameters}
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(tiny_model().state_dict())
    return model


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FACTORS = llama3_factors(1e4, WIDTH, 8.0).astype(np.float32)
APPLIED = [
    ({"llama.rope.freq_base": 500.0}, {}, {"theta": 500.0}),
    (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {},
        {"rope_type": "linear", "factor": 4.0},
    ),
    ({"llama.rope.scaling.factor": 4.0}, {}, {"rope_type": "linear", "factor": 4.0}),
    ({"llama.rope.scale_linear": 4.0}, {}, {"rope_type": "linear", "factor": 4.0}),
    (
        {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 64,
            "llama.rope.scaling.yarn_beta_fast": 16.0,
            "llama.rope.scaling.finetuned": True,
        },
        {},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16.0,
        },
    ),
    ({}, {"rope_freqs.weight": FACTORS}, LLAMA3),
]


@pytest.mark.parametrize(("keys", "tensors", "rope"), APPLIED)
def test_a_rope_is_scaled_as_the_file_says(
    tmp_path: Path, keys: Keys, tensors: dict[str, Any], rope: dict[str, Any]
) -> None:
    model = tiny_model()
    file = save_gguf(tmp_path / "tiny.gguf", model, "smollm", keys=keys, tensors=tensors)
    found = _logits(_served(file))
    assert torch.allclose(found, _logits(_named(**rope)), atol=1e-4)
    assert not torch.allclose(found, _logits(model), atol=1e-3)


IDLE: list[tuple[Keys, dict[str, Any]]] = [
    ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, {}),
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0}, {}),
    ({"llama.rope.scaling.original_context_length": 64}, {}),
    ({"llama.rope.scaling.attn_factor": 1.0}, {}),
    ({"llama.attention.key_length": WIDTH, "llama.attention.value_length": WIDTH}, {}),
    ({"llama.attention.causal": True, "llama.expert_count": 0}, {}),
    ({"llama.attention.sliding_window": 0}, {}),
    ({"llama.use_parallel_residual": True}, {}),
    ({"llama.tensor_data_layout": "Meta AI original pth"}, {}),
    ({"general.name": "mistral", "general.type": "model", "general.file_type": 0}, {}),
    ({"split.count": 0, "quantize.imatrix.entries_count": 7}, {}),
    ({}, {"rope_freqs.weight": np.ones(WIDTH // 2, dtype=np.float32)}),
]


@pytest.mark.parametrize(("keys", "tensors"), IDLE)
def test_what_changes_nothing_is_let_by(
    tmp_path: Path, keys: Keys, tensors: dict[str, Any]
) -> None:
    model = tiny_model()
    file = save_gguf(tmp_path / "tiny.gguf", model, "smollm", keys=keys, tensors=tensors)
    assert torch.allclose(_logits(_served(file)), _logits(model), atol=1e-4)


WORKS = "supported: none, linear with llama.rope.scaling.factor"
KEYS: list[tuple[Keys, str]] = [
    ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}, WORKS),
    ({"llama.rope.scaling.type": "dynamic", "llama.rope.scaling.factor": 4.0}, WORKS),
    ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, WORKS),
    ({"llama.rope.scaling.type": "yarn"}, WORKS),
    (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.yarn_beta_fast": 16.0},
        "llama.rope.scaling.type = linear",
    ),
    ({"llama.rope.scaling.yarn_ext_factor": 0.5}, "llama.rope.scaling.yarn_ext_factor = 0.5"),
    ({"llama.rope.scaling.attn_factor": 1.5}, "llama.rope.scaling.attn_factor = 1.5"),
    ({"llama.rope.scaling.alpha": 2.0}, "llama.rope.scaling.alpha = 2.0"),
    ({"llama.rope.scaling.factor": 0.0}, "llama.rope.scaling.factor is 0.0"),
    ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count = 8"),
    ({"llama.attention.key_length": 32}, "only heads of 32, rotated whole, are supported"),
    ({"llama.attention.value_length": 8}, "llama.attention.value_length = 8"),
    ({"llama.rope.dimension_sections": [4, 2, 2]}, "llama.rope.dimension_sections = a list"),
    ({"llama.attention.scale": 0.5}, "llama.attention.scale = 0.5"),
    ({"llama.attention.sliding_window": 8}, "llama.attention.sliding_window = 8"),
    ({"llama.attention.causal": False}, "llama.attention.causal = False"),
    ({"llama.attention.head_count_kv": [2, 4]}, "llama.attention.head_count_kv is a list"),
    ({"llama.feed_forward_length": [128, 128]}, "llama.feed_forward_length is a list"),
    ({"llama.logit_scale": 8.0}, "llama.logit_scale = 8.0"),
    ({"llama.residual_scale": 0.5}, "llama.residual_scale = 0.5"),
    ({"llama.embedding_scale": 12.0}, "llama.embedding_scale = 12.0"),
    ({"llama.final_logit_softcapping": 30.0}, "llama.final_logit_softcapping = 30.0"),
    ({"llama.expert_count": 8}, "llama.expert_count = 8"),
    ({"llama.what_comes_next": "x" * 9999}, "llama.what_comes_next = xxx"),
    ({"llama.block_count": "2"}, "llama.block_count is 2"),
    ({"general.type": "adapter", "adapter.type": "lora"}, "is of type 'adapter', not a model"),
    ({"adapter.lora.alpha": 2.0}, "not a model"),
    ({"split.count": 3, "split.no": 0}, "is one of 3 parts"),
]


@pytest.mark.parametrize(("keys", "words"), KEYS, ids=lambda of: next(iter(of), "")[:40])
def test_a_key_that_is_not_applied_is_refused_by_name(
    tmp_path: Path, keys: Keys, words: str
) -> None:
    file = save_gguf(tmp_path / "tiny.gguf", tiny_model(), "smollm", keys=keys)
    for look in (_served, lambda path: described_by(str(path))):
        with pytest.raises(UnsupportedModelError) as raised:
            look(file)
        assert words in str(raised.value)
        assert str(file) in str(raised.value)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "key",
    ["context_length", "embedding_length", "block_count", "attention.layer_norm_rms_epsilon"],
)
def test_a_key_that_is_not_there_is_named(tmp_path: Path, key: str) -> None:
    file = save_gguf(tmp_path / "tiny.gguf", tiny_model(), "smollm")
    whole, name = file.read_bytes(), f"llama.{key}".encode()
    file.write_bytes(whole.replace(name, b"X" + name[1:]))
    with pytest.raises(UnsupportedModelError, match=f"has no llama.{key}: the file is not whole"):
        _served(file)


TENSORS = [
    ("blk.0.attn_q.bias", _floats(*[1.0] * 64)),
    ("blk.9.attn_norm.weight", _floats(*[1.0] * 64)),
    ("blk.0.attn_sinks.weight", _floats(1.0, 1.0)),
    ("blk.0.ffn_gate_inp.weight", _floats(1.0, 1.0)),
    ("output.bias", _floats(*[1.0] * 259)),
    ("rope_factors_long.weight", _floats(*[2.0] * 8)),
    ("x", _floats(1.0)),
    ("rope_freqs.weight", _floats(*[2.0] * 8)),
    ("rope_freqs.weight", _floats(1.0, 2.0)),
    ("rope_freqs.weight", FACTORS * _floats(*[1.001] * 8)),
]


@pytest.mark.parametrize(("name", "values"), TENSORS, ids=lambda of: of if type(of) is str else "")
def test_a_tensor_that_nothing_reads_is_refused_by_name(
    tmp_path: Path, name: str, values: Any
) -> None:
    file = save_gguf(tmp_path / "tiny.gguf", tiny_model(), "smollm", tensors={name: values})
    with pytest.raises(UnsupportedModelError) as raised:
        _served(file)
    assert name in str(raised.value)
    assert str(file) in str(raised.value)


def test_two_scalings_of_one_rope_are_refused(tmp_path: Path) -> None:
    keys: Keys = {"llama.rope.scaling.factor": 4.0}
    tensors = {"rope_freqs.weight": FACTORS}
    file = save_gguf(tmp_path / "tiny.gguf", tiny_model(), "smollm", keys=keys, tensors=tensors)
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        _served(file)


def test_the_default_model_is_made_by_the_same_rules(tmp_path: Path) -> None:
    convert = assets.ASSETS[assets.DEFAULT_MODEL].convert
    assert convert is not None
    (name,) = assets.ASSETS[assets.DEFAULT_MODEL].checksums
    bias = {"blk.0.attn_q.bias": np.ones(64, dtype=np.float32)}
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    model = tiny_model()
    save_gguf(source / name, model, "smollm", tensors=bias)
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_q\.bias"):
        convert(source, target)
    save_gguf(source / name, model, "smollm")
    convert(source, target)
    made = AutoModelForCausalLM.from_pretrained(target)
    assert torch.equal(made.lm_head.weight, model.lm_head.weight.bfloat16())
    assert "_name_or_path" not in json.loads((target / "config.json").read_text())


NEIGHBOURS = {
    "config.json": {"model_type": "gpt2", "auto_map": {"AutoConfig": "mine.Config"}},
    "tokenizer_config.json": {
        "tokenizer_class": "GPT2Tokenizer",
        "auto_map": {"AutoTokenizer": ["mine.Slow", "mine.Fast"]},
        "chat_template": "mine",
    },
    "generation_config.json": {"eos_token_id": 7},
    "special_tokens_map.json": {"eos_token": "mine"},
    "added_tokens.json": {"mine": 3},
}


def test_nothing_beside_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    alone = save_gguf(tmp_path / "tiny.gguf", model, "smollm")
    folder = make_lora_folder(tmp_path / "crowd")
    for name, content in NEIGHBOURS.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "mine.py").write_text("raise RuntimeError('code of the folder')")
    (folder / "chat_template.jinja").write_text("mine")
    beside = save_gguf(folder / "tiny.gguf", model, "smollm")
    # In the working directory lies another model of the same name.
    (tmp_path / "here").mkdir()
    save_gguf(tmp_path / "here" / "tiny.gguf", tiny_model(seed=5), "smollm")
    monkeypatch.chdir(tmp_path / "here")
    config = ModelConfig(str(beside), dtype="float32", device="cpu")
    loaded, expected = load_model(config), model.state_dict()
    assert set(loaded.model.state_dict()) == set(expected)
    assert all(torch.equal(loaded.model.state_dict()[name], expected[name]) for name in expected)
    assert loaded.eos_token_ids == (258,)
    ours, theirs = load_gguf_tokenizer(beside), load_gguf_tokenizer(alone)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template
