"""Folders and files that look like a model and are none that can be served, with what is said."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"

Spoil = Callable[[Path], object]


@dataclass(frozen=True)
class Bad:
    """What is done to a sound checkpoint's folder, and words of the error."""

    name: str
    spoil: Spoil
    words: tuple[str, ...]


def keys(**changed: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))

    return spoil


def removed(*names: str) -> Spoil:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def written(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, size: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def grown(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"more")


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def adapter(folder: Path) -> None:
    emptied(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors")


def adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def gguf_inside(folder: Path) -> None:
    emptied(folder)
    (folder / "small.gguf").write_bytes(b"GGUF")


def pickled(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def sharded(folder: Path) -> None:
    """Two files by an index, the second of which is not there."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = {name: names[index % 2] for index, name in enumerate(tensors)}
    first = {name: tensors[name] for name in tensors if places[name] == names[0]}
    save_file(first, folder / names[0], metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_of(content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_bytes(content)

    return spoil


def in_format(dtype: torch.dtype) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(128, 64).to(dtype)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def _quantised(method: str, **more: Any) -> Bad:
    config = {"quant_method": method, **more}
    words = (f"its weights are quantised ({method})", "--quantization int8")
    return Bad(f"quantised by {method}", keys(quantization_config=config), words)


SAFETENSORS = "is no whole safetensors file: fetch it again"
BAD = [
    Bad("empty folder", emptied, ("is empty", "config.json")),
    Bad("no config", removed("config.json"), ("has no config.json",)),
    Bad("an adapter", adapter, ("is an adapter, not a base model", "publish")),
    Bad("an adapter beside", adapter_beside, ("is an adapter, not a base model",)),
    Bad("a folder of GGUF", gguf_inside, ("name the file: ", "small.gguf")),
    Bad("config of other bytes", written("config.json", b"{'a': 1}"), ("is not valid JSON",)),
    Bad("config in UTF-16", written("config.json", b"\xff\xfe{\0"), ("is not valid JSON",)),
    Bad("empty config", written("config.json", b""), ("is not valid JSON",)),
    Bad("a list", written("config.json", b"[]"), ("holds no JSON object",)),
    Bad("deep", written("config.json", b"[" * 100_000), ("is not valid JSON",)),
    Bad("config in LFS", written("config.json", POINTER), ("git-lfs pointer", "git lfs pull")),
    Bad("weights in LFS", written("model.safetensors", POINTER), ("git-lfs pointer",)),
    Bad("tokenizer in LFS", written("tokenizer.json", POINTER), ("git-lfs pointer",)),
    Bad("no tokenizer", removed("tokenizer.json"), ("has no tokenizer: copy tokenizer.json",)),
    Bad("no tokenizer config either",
        removed("tokenizer.json", "tokenizer_config.json"), ("has no tokenizer",)),
    Bad("half a tokenizer", cut("tokenizer.json", 100), ("tokenizer.json is not valid JSON",)),
    Bad("no weights", removed("model.safetensors"), ("has no weights",)),
    Bad("a pickle", pickled, ("pytorch_model.bin alone", "save_pretrained")),
    Bad("cut in the header", cut("model.safetensors", 50), (SAFETENSORS,)),
    Bad("cut at once", cut("model.safetensors", 4), (SAFETENSORS,)),
    Bad("empty weights", cut("model.safetensors", 0), (SAFETENSORS,)),
    Bad("cut in the data", cut("model.safetensors", 90_000), ("is not whole: 90000 bytes of",)),
    Bad("longer than it says", grown, ("is not whole",)),
    Bad("huge header",
        written("model.safetensors", struct.pack("<Q", 2**63) + b"{}"), (SAFETENSORS,)),
    Bad("odd header",
        written("model.safetensors", struct.pack("<Q", 9) + b'{"a": []}'), (SAFETENSORS,)),
    Bad("a page", written("model.safetensors", b"<html>" * 99), (SAFETENSORS,)),
    Bad("a missing shard", sharded, ("lacks model-00002-of-00002.safetensors",)),
    Bad("half an index", index_of(b'{"weight_map"'), ("is not valid JSON",)),
    Bad("an index of nothing", index_of(b"{}"), ("has no weight_map",)),
    Bad("eight bits", in_format(torch.int8), ("is in I8, which is not supported",)),
    Bad("fp8", in_format(torch.float8_e4m3fn), ("is in F8_E4M3, which is not supported",)),
    _quantised("gptq", bits=4),
    _quantised("awq", bits=4),
    _quantised("bitsandbytes", load_in_4bit=True),
    _quantised("fp8"),
    _quantised("compressed-tensors"),
    _quantised("mxfp4"),
    Bad("code of its own",
        keys(auto_map={"AutoModelForCausalLM": "modeling_x.X"}), ("auto_map", "never run")),
    Bad("encoder and decoder",
        keys(architectures=["T5ForConditionalGeneration"], model_type="t5"),
        ("'T5ForConditionalGeneration' is not supported; supported: ",)),
    Bad("vision",
        keys(architectures=["LlavaForConditionalGeneration"], model_type="llava"),
        ("'LlavaForConditionalGeneration' is not supported",)),
    Bad("an encoder",
        keys(architectures=["BertModel"], model_type="bert"), ("'BertModel' is not supported",)),
    Bad("a classifier",
        keys(architectures=["LlamaForSequenceClassification"]),
        ("'LlamaForSequenceClassification' is not supported",)),
    Bad("an unknown type",
        keys(architectures=None, model_type="martian"), ("'martian' is not supported",)),
    Bad("no type at all", keys(architectures=None, model_type=None), ("is not supported",)),
]  # fmt: skip

# What is found once the config is read for what it means, or the weights are.
ODD = [
    Bad("layers as text", keys(num_hidden_layers="2"), ("num_hidden_layers",)),
    Bad("layers that are not there", keys(num_hidden_layers=3), ("missing tensors",)),
    Bad("heads that do not fit", keys(num_attention_heads=3), ("number of attention heads",)),
    Bad("no heads", keys(num_attention_heads=0), ("its ",)),
    Bad("no width", keys(head_dim=0), ("model",)),
    Bad("unknown activation", keys(hidden_act="nope"), ("nope",)),
    Bad("epsilon as text", keys(rms_norm_eps="1e-5"), ("rms_norm_eps",)),
    Bad("padding outside", keys(pad_token_id=300), ("adding",)),
    Bad("end as text", keys(eos_token_id="x"), ("eos_token_id",)),
    Bad("no positions", keys(max_position_embeddings=0), ("max_position_embeddings is 0",)),
    Bad("a dynamic rope", keys(rope_scaling={"type": "dynamic", "factor": 2.0}), ("dynamic",)),
    Bad("a part of a head",
        keys(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4,
             "partial_rotary_factor": 0.5}), ("its own code cannot run it",)),
    Bad("numbers of 64 bits", keys(dtype="float64"), ("torch.float64", "--dtype")),
    Bad("whole numbers", keys(dtype="int8"), ("int8",)),
    Bad("a dtype that is none", keys(dtype="nope"), ("nope",)),
    Bad("another vocabulary", keys(vocab_size=258), ("mismatched tensors",)),
    Bad("a map of code", keys(model_type="mistral", architectures=["MistralForCausalLM"],
        layer_types=["sliding_attention"] * 2),
        ("MinistralForCausalLM", "not supported")),
]  # fmt: skip
