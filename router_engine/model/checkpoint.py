"""What a model's files are, before anything reads their weights: one sentence where they won't do.

Needs no torch: a server looks before it starts the process that computes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from router_engine.errors import UnsupportedModelError

# Each proven token by token against `generate()`; by the model type that their configs name.
ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
SUPPORTED = tuple(ARCHITECTURES.values())

# Rotary embeddings that depend on a token's own position alone. `dynamic` and `longrope` change
# with the longest sequence of the batch: a request's text would depend on its neighbours.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FORMATS = ("F64", "F32", "F16", "BF16")  # of tensors
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_MASKS = (".attn.bias", ".attn.masked_bias")  # of an old GPT-2: nothing reads them
_POINTER = b"version https://git-lfs"
_MAX_HEADER = 100_000_000  # bytes, as safetensors itself allows


def check_model(path: Path) -> None:
    """Look at a checkpoint's directory or a GGUF file, in milliseconds.

    Raises UnsupportedModelError, which says what to do, for one that cannot be served.
    """
    try:
        if path.is_dir():
            _check_folder(path)
        elif path.suffix == ".gguf":
            _check_gguf(path)
        else:
            raise UnsupportedModelError(f"{path} is no directory and no .gguf file")
    except OSError as error:
        raise UnsupportedModelError(f"{path} cannot be read: {error}") from error


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse by name, from the keys of config.json, what would not be served as it is meant."""
    name = architecture(config.get("architectures"), str(config.get("model_type")))
    if config.get("auto_map"):
        raise UnsupportedModelError(
            f"{where}: the config names code of its own (auto_map), which is never run: if "
            f"transformers' own {name} computes this model, remove auto_map from config.json"
        )
    if name not in SUPPORTED:
        raise UnsupportedModelError(
            f"{where}: architecture {name!r} is not supported; supported: {', '.join(SUPPORTED)}"
        )
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise UnsupportedModelError(
            f"{where}: its weights are quantised ({method or 'quantization_config'}), which is not "
            "supported: take the checkpoint that it was made from, with --quantization int8 for "
            "weights of 8 bits, or a GGUF file"
        )


def architecture(names: Any, model_type: str) -> str:
    """The class that a checkpoint is of: as it says, or else what its model type is as a decoder.

    GGUF files name no class, and some configs leave it out.
    """
    if names:
        return str(names if isinstance(names, str) else names[0])
    return ARCHITECTURES.get(model_type, model_type)


def _check_folder(folder: Path) -> None:
    names = {file.name for file in folder.iterdir()}
    if "adapter_config.json" in names:
        raise UnsupportedModelError(
            f"{folder} is an adapter, not a base model: serve the model that it was trained on, "
            "and publish it there (`adaptermix adapters publish`)"
        )
    if "config.json" not in names:
        files = sorted(name for name in names if name.endswith(".gguf"))
        advice = (
            f"name the file: {folder / files[0]}"
            if files
            else "a checkpoint holds config.json, model.safetensors and tokenizer.json"
        )
        raise UnsupportedModelError(
            f"{folder} {'has no config.json' if names else 'is empty'}: {advice}"
        )
    check_config(_read_json(folder / "config.json"), str(folder))
    shards = list(_shards(folder, names))
    for shard in shards:
        _check_safetensors(shard)
    _check_tokenizer(folder)


def _check_tokenizer(folder: Path) -> None:
    for needed in _TOKENIZERS:
        files = [folder / name for name in needed]
        if all(file.is_file() for file in files):
            break
    else:
        raise UnsupportedModelError(
            f"{folder} has no tokenizer: copy tokenizer.json and tokenizer_config.json from the "
            "model that it was made from"
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            _read_json(folder / name)
    for file in files:
        _refuse_pointer(file)


def _shards(folder: Path, names: set[str]) -> Iterator[Path]:
    """The files that hold the weights; all are there."""
    if _WEIGHTS in names:
        yield folder / _WEIGHTS
    elif _INDEX in names:
        parts = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise UnsupportedModelError(f"{folder / _INDEX} has no weight_map: fetch it again")
        for name in sorted({str(part) for part in parts.values()}):
            if not (folder / name).is_file():
                raise UnsupportedModelError(
                    f"{folder} lacks {name}, which {_INDEX} names: fetch the missing file"
                )
            yield folder / name
    elif pickles := sorted(name for name in names if name.endswith((".bin", ".pt", ".pth"))):
        raise UnsupportedModelError(
            f"{folder} has its weights in {pickles[0]} alone, a pickle, which is never loaded: "
            "write it as safetensors (load it with transformers, then save_pretrained)"
        )
    else:
        raise UnsupportedModelError(
            f"{folder} has no weights: neither {_WEIGHTS} nor {_INDEX} is there"
        )


def _check_safetensors(file: Path) -> None:
    """By its header: that it is whole, and in formats that are served."""
    _refuse_pointer(file)
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(_MAX_HEADER, size - 8):
                raise ValueError
            header = json.loads(stream.read(length))
        tensors = {name: one for name, one in header.items() if name != "__metadata__"}
        end = max((one["data_offsets"][1] for one in tensors.values()), default=0)
        formats = {
            str(one["dtype"]): name for name, one in tensors.items() if not name.endswith(_MASKS)
        }
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, struct.error):
        raise UnsupportedModelError(
            f"{file} is no whole safetensors file: fetch it again"
        ) from None
    if 8 + length + end != size:
        raise UnsupportedModelError(
            f"{file} is not whole: {size} bytes of {8 + length + end}: fetch it again"
        )
    for kind in sorted(set(formats) - set(_FORMATS)):
        raise UnsupportedModelError(
            f"{file}: {formats[kind]} is in {kind}, which is not supported ({', '.join(_FORMATS)} "
            "are): take the checkpoint in full precision"
        )


def _check_gguf(file: Path) -> None:
    _refuse_pointer(file)
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UnsupportedModelError(f"{file} is no GGUF file: fetch it again")


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise UnsupportedModelError(
                f"{file} is a git-lfs pointer, not the file itself: run `git lfs pull`"
            )


def _read_json(file: Path) -> dict[str, Any]:
    _refuse_pointer(file)
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UnsupportedModelError(f"{file} holds no JSON object")
    return found


def called(model: str) -> str:
    """How an error names a model: whoever mistypes a path asks the hub."""
    return (
        model if Path(model).expanduser().exists() else f"{model} (an id on the hub: no such path)"
    )


def one_line(error: BaseException) -> str:
    """What another library's error says, as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def refused(name: str, what: str, read: Callable[[], Any]) -> Any:
    """What `read` returns. Raises UnsupportedModelError, in one line, for whatever it raises.

    transformers and the libraries below it have no common error for files that won't do.
    """
    try:
        return read()
    except UnsupportedModelError:
        raise
    except Exception as error:
        raise UnsupportedModelError(f"{name}: {what}: {one_line(error)}") from error
