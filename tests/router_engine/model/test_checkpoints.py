"""What is loaded is what was given: whole checkpoints, GGUF files, configs without a class."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from router_engine.config import ModelConfig
from router_engine.errors import UnsupportedModelError
from router_engine.model.gguf_tokenizer import load_gguf_tokenizer
from router_engine.model.loader import load_model
from router_engine.model.tiny import save_tiny, tiny_model
from tests.support.gguf import save_gguf
from tests.support.tiny import save_family

Tensors = dict[str, torch.Tensor]


def drop(tensors: Tensors) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def drop_a_bias(tensors: Tensors) -> None:
    del tensors["model.layers.0.self_attn.q_proj.bias"]


def add(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.q_proj.extra"] = torch.ones(2)


def widen(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = torch.ones(65)


@pytest.mark.parametrize(
    ("family", "spoil", "words"),
    [
        ("llama", drop, "missing tensors: model.layers.1.mlp.up_proj.weight"),
        ("qwen2", drop_a_bias, "missing tensors: model.layers.0.self_attn.q_proj.bias"),
        ("llama", add, "unexpected tensors: model.layers.0.self_attn.q_proj.extra"),
        ("llama", widen, "model.norm.weight"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(
    tmp_path: Path, family: str, spoil: Callable[[Tensors], None], words: str
) -> None:
    folder = save_family(tmp_path, family)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    spoil(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=words):
        load_model(ModelConfig(str(folder)))


@pytest.mark.parametrize("value", [None, []])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_a_config_without_a_class_is_what_its_type_is(
    tmp_path: Path, family: str, value: list[str] | None
) -> None:
    folder = save_family(tmp_path, family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": value}))
    assert type(load_model(ModelConfig(str(folder))).model).__name__ == config["architectures"][0]


def test_a_class_that_is_not_served_is_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="LlamaForSequenceClassification"):
        load_model(ModelConfig(str(folder)))


@torch.no_grad()
def test_a_gguf_file_is_the_model_that_it_was_made_of(tmp_path: Path) -> None:
    model = tiny_model()
    file = save_gguf(tmp_path / "tiny.gguf", model, "smollm")
    ids = torch.arange(5, 25)[None]
    # The attention function that `load_model` sets is the engine's: weights are what is compared.
    loaded = load_model(ModelConfig(str(file), dtype="float32")).model
    loaded.set_attn_implementation("eager")
    assert torch.allclose(loaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4)


CUTS = {
    "gpt-2": ["a", "\n\n", " 12"],
    "smollm": ["a", "\n\n ", "1", "2"],
    "llama-bpe": ["a", "\n\n", " ", "12"],
    "qwen2": ["a", "\n\n", " ", "1", "2"],
}


@pytest.mark.parametrize("pre", CUTS)
def test_a_gguf_file_says_how_text_is_cut(tmp_path: Path, pre: str) -> None:
    file = save_gguf(tmp_path / "tiny.gguf", tiny_model(), pre)
    tokenizer = load_gguf_tokenizer(file)
    text = "a\n\n 12"
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in pieces] == CUTS[pre]
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_a_way_to_cut_that_nobody_knows_is_named(tmp_path: Path) -> None:
    file = save_gguf(tmp_path / "tiny.gguf", tiny_model(), "martian")
    with pytest.raises(UnsupportedModelError, match="'martian' is not supported; supported: "):
        load_gguf_tokenizer(file)


def test_loading_shows_a_bar_on_a_terminal_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_family(tmp_path, "llama")
    load_model(ModelConfig(str(folder)))
    assert "Loading weights" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load_model(ModelConfig(str(folder)))
    assert "Loading weights" in capsys.readouterr().err
