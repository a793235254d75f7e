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
OLD_POINTER = b"version https://hawser.github.com/spec/v1\noid sha256:00\nsize 5\n"

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


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def sharded(folder: Path) -> None:
    """Two files by an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: SHARDS[index % 2] for index, name in enumerate(tensors)}
    for shard in SHARDS:
        part = {name: tensors[name] for name in tensors if places[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def without_a_shard(folder: Path) -> None:
    sharded(folder)
    (folder / SHARDS[1]).unlink()


def moved(*, copied: bool) -> Spoil:
    """A tensor of the second file is in the first, or in both."""

    def spoil(folder: Path) -> None:
        sharded(folder)
        first, second = (load_file(folder / shard) for shard in SHARDS)
        name = sorted(second)[0]
        first[name] = second[name].clone()
        if not copied:
            del second[name]
        for shard, tensors in zip(SHARDS, (first, second), strict=True):
            save_file(tensors, folder / shard, metadata={"format": "pt"})

    return spoil


def listed(folder: Path) -> None:
    """The index names a tensor that no file has."""
    sharded(folder)
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.one_more"] = SHARDS[0]
    file.write_text(json.dumps(index))


def header(text: bytes) -> Spoil:
    return written("model.safetensors", struct.pack("<Q", len(text)) + text)


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
    Bad("a missing shard", without_a_shard, ("lacks model-00002-of-00002.safetensors",)),
    Bad("a tensor in another shard", moved(copied=False),
        (SHARDS[1], "lacks model.embed_tokens.weight, which", "index.json says is there")),
    Bad("a tensor in two shards", moved(copied=True), ("is in model-00001", "and in model-00002")),
    Bad("a tensor in no shard", listed, ("lacks model.one_more",)),
    Bad("a deep header", header(b'{"a":' * 100_000 + b"}" * 100_000), (SAFETENSORS,)),
    *(
        Bad(f"offsets {offsets}",
            header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":%s}}' % offsets.encode()),
            (SAFETENSORS,))
        for offsets in ('[0,"4"]', "[0,null]", "[0]", "[0,4,8]", "[0,4.5]", '"04"', "4", "null")
    ),
    Bad("a header in UTF-16", header('{"a":1}'.encode("utf-16")), (SAFETENSORS,)),
    *(
        Bad(f"{name} {kind}", written(name, content), (f"{name} {words}",))
        for name in (
            "generation_config.json", "added_tokens.json", "special_tokens_map.json",
            "tokenizer_config.json", "chat_template.json", "vocab.json",
        )
        for kind, content, words in (
            ("in LFS", POINTER, "is a git-lfs pointer"),
            ("in LFS of old", OLD_POINTER, "is a git-lfs pointer"),
            ("that is none", b"{bad", "is not valid JSON"),
            ("that is empty", b"", "is not valid JSON"),
            ("in UTF-16", '{"eos_token_id": 5}'.encode("utf-16"), "is not valid JSON"),
            ("that is a list", b"[]", "holds no JSON object"),
        )
    ),
    *(
        Bad(f"{name} {kind}", written(name, content), (f"{name} {words}",))
        for name in ("chat_template.jinja", "merges.txt")
        for kind, content, words in (
            ("in LFS", POINTER, "is a git-lfs pointer"),
            ("in LFS of old", OLD_POINTER, "is a git-lfs pointer"),
            ("in UTF-16", "{{ x }}".encode("utf-16"), "is not UTF-8"),
        )
    ),
    Bad("weights in LFS of old", written("model.safetensors", OLD_POINTER), ("git-lfs pointer",)),
    Bad("half an index", index_of(b'{"weight_map"'), ("is not valid JSON",)),
    Bad("an index of nothing", index_of(b"{}"), ("has no weight_map",)),
    Bad("eight bits", in_format(torch.int8), ("is in I8, which is not supported",)),
    Bad("fp8", in_format(torch.float8_e4m3fn), ("is in F8_E4M3, which is not supported",)),
    _quantised("bitsandbytes", load_in_4bit=True),
    _quantised("mxfp4"),
    Bad("code of its own",
        keys(auto_map={"AutoModelForCausalLM": "modeling_x.X"}), ("auto_map", "never run")),
    *(
        Bad(f"architectures {value!r}", keys(architectures=value),
            ("architectures is ", "in a list; supported: "))
        for value in (5, {"a": 1}, True, 0.5, [5], [["LlamaForCausalLM"]], [None])
    ),
    *(
        Bad(f"{name} of a llama", keys(architectures=[name]),
            (f"names the architecture {name}", "makes a LlamaForCausalLM"))
        for name in ("MistralForCausalLM", "Qwen2ForCausalLM", "GPT2LMHeadModel")
    ),
    Bad("a Llama of a mistral",
        keys(model_type="mistral"), ("LlamaForCausalLM", "makes a MistralForCausalLM")),
    *(
        Bad(f"{name} of {value}", keys(**{name: value}), (f"{name} is ", "supported"))
        for name, value in (
            ("max_position_embeddings", 36893488147419103232), ("max_position_embeddings", 2**31),
            ("hidden_size", 2**70), ("vocab_size", 2**63), ("eos_token_id", [2, 2**70]),
            ("num_hidden_layers", -(2**63) - 1), ("bos_token_id", 10**4000), ("n_positions", 2**31),
        )
    ),
    Bad("a deep number", keys(extra={"a": [{"b": 2**64}]}), ("extra.a.b is a number of 65 bits",)),
    Bad("other weights",
        keys(transformers_weights="other.safetensors"), ("transformers_weights", "remove it")),
    Bad("the same weights by name",
        keys(transformers_weights="model.safetensors"), ("transformers_weights",)),
    Bad("other classes", keys(fusion_config={"x": True}), ("fusion_config",)),
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
    Bad("more than a machine holds", keys(hidden_size=2**62), ("its ",)),
    Bad("no heads", keys(num_attention_heads=0), ("its ",)),
    Bad("no width", keys(head_dim=0), ("model",)),
    Bad("unknown activation", keys(hidden_act="nope"), ("nope",)),
    Bad("epsilon as text", keys(rms_norm_eps="1e-5"), ("rms_norm_eps",)),
    Bad("padding outside", keys(pad_token_id=300), ("adding",)),
    *(
        Bad(f"end {value!r}", keys(eos_token_id=value), ("eos_token_id",))
        for value in ("x", [2, "x"], [2, [3]], 2.5, True, [2, False], {"a": 2})
    ),
    *(
        Bad(f"end of generation {value!r}",
            written("generation_config.json", json.dumps({"eos_token_id": value}).encode()),
            ("eos_token_id", "generation_config.json"))
        for value in ("x", [2, "x"], [2, [3]], 2.5, True, [2, False], {"a": 2})
    ),
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
