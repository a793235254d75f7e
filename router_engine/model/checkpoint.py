"""Checks of a model's files before anything reads their weights: one sentence where they won't do.

Needs no torch: a server looks before it starts the process that computes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

from adapters_store.home import expanded
from adapters_store.upload import is_pointer
from router_engine.errors import UnsupportedModelError
from router_engine.model.packed.scheme import STORED, scheme_of

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
# Of tensors, with torch's names for them.
_FORMATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_MASKS = (".attn.bias", ".attn.masked_bias")  # of an old GPT-2: nothing reads them
# An index may name it though no file holds it: converters leave out a head that is tied. One that
# is not tied is found missing by the loader.
_HEAD = "lm_head.weight"
_JSON = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "added_tokens.json"),
    *("special_tokens_map.json", "generation_config.json", "chat_template.json"),
)
_TEXTS = ("merges.txt", "*.jinja", "additional_chat_templates/*.jinja")
# transformers would load other files for them than are looked at here, or make other classes.
_REDIRECTS = ("transformers_weights", "fusion_config")
_LONGEST = 600  # characters of another library's error
_MAX_HEADER = 100_000_000  # bytes, as safetensors itself allows
_CONTEXT = ("max_position_embeddings", "n_positions")  # GPT-2's is the latter
_MAX_CONTEXT = 2**31 - 1
_NUMBERS = range(-(2**63), 2**63)  # that whole numbers of a config may be


def check_model(path: Path, *, with_tokenizer: bool = True) -> None:
    """Look at a checkpoint's directory or a GGUF file, in milliseconds.

    `with_tokenizer`: whether the directory has to hold one.
    Raises UnsupportedModelError, which says what to do, for one that cannot be served.
    """
    try:
        if path.is_dir():
            _check_folder(path, with_tokenizer=with_tokenizer)
        elif is_gguf(path):
            _check_gguf(path)
        else:
            raise UnsupportedModelError(f"{path} is no directory and no .gguf file")
    except OSError as error:
        raise UnsupportedModelError(f"{path} cannot be read: {error}") from error


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name; a folder may be called anything."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse by name, from the keys of config.json, what would not be served as it is meant."""
    _check_numbers(config, where)
    names = config.get("architectures")
    listed = names if isinstance(names, list) else [names]
    if names is not None and not all(isinstance(one, str) for one in listed):
        raise UnsupportedModelError(
            f"{where}: architectures is {str(names)[:80]}: the config names one class there, in a "
            f"list; supported: {', '.join(SUPPORTED)}"
        )
    name = architecture(names, str(config.get("model_type")))
    if config.get("auto_map"):
        raise UnsupportedModelError(
            f"{where}: the config names code of its own (auto_map), which is never run: if "
            f"transformers' own {name} computes this model, remove auto_map from config.json"
        )
    if name not in SUPPORTED:
        raise UnsupportedModelError(
            f"{where}: architecture {name!r} is not supported; supported: {', '.join(SUPPORTED)}"
        )
    made = ARCHITECTURES.get(str(config.get("model_type")), name)
    if made != name:
        raise UnsupportedModelError(
            f"{where}: the config names the architecture {name}, but of its model_type "
            f"{config['model_type']!r} transformers makes a {made}: set both to those of one model"
        )
    for key in _REDIRECTS:
        if config.get(key) is not None:
            raise UnsupportedModelError(
                f"{where}: the config's {key} is not supported: remove it, and keep the weights in "
                f"{_WEIGHTS} or in the files that {_INDEX} names"
            )
    if config.get("quantization_config"):
        scheme_of(config["quantization_config"], where)


def _check_numbers(config: Mapping[str, Any], where: str) -> None:
    for key, number in _numbers(config):
        if number not in _NUMBERS:
            raise UnsupportedModelError(
                f"{where}: its config's {key} is a number of {number.bit_length()} bits: whole "
                "numbers of up to 64 are supported"
            )
    for key in _CONTEXT:
        positions = config.get(key)
        if isinstance(positions, int) and positions > _MAX_CONTEXT:
            raise UnsupportedModelError(
                f"{where}: its config's {key} is {positions}: at most {_MAX_CONTEXT} is supported"
            )


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every whole number of a config, however deep, with the key that it is below."""
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, int):
            yield key, value
        elif isinstance(value, Mapping):
            waiting += [(f"{key}.{name}", each) for name, each in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(key, each) for each in value]


def architecture(names: Any, model_type: str) -> str:
    """The class that a checkpoint is of: as it says, or else what its model type is as a decoder.

    GGUF files name no class, and some configs leave it out.
    """
    if names:
        return str(names if isinstance(names, str) else names[0])
    return ARCHITECTURES.get(model_type, model_type)


def _check_folder(folder: Path, *, with_tokenizer: bool) -> None:
    names = {file.name for file in folder.iterdir()}
    if "adapter_config.json" in names:
        raise UnsupportedModelError(
            f"{folder} is an adapter, not a base model: serve the model that it was trained on, "
            "and publish it there (`adaptermix adapters publish`)"
        )
    if "config.json" not in names:
        files = sorted(name for name in names if is_gguf(folder / name))
        advice = (
            f"name the file: {folder / files[0]}"
            if files
            else "a checkpoint holds config.json, model.safetensors and tokenizer.json"
        )
        raise UnsupportedModelError(
            f"{folder} {'has no config.json' if names else 'is empty'}: {advice}"
        )
    config = read_json(folder / "config.json")
    check_config(config, str(folder))
    _check_weights(folder, is_packed=bool(config.get("quantization_config")))
    if with_tokenizer:
        _check_tokenizer(folder)
    for name in _JSON:
        if (folder / name).is_file():
            read_json(folder / name)
    for pattern in _TEXTS:
        for file in sorted(folder.glob(pattern)):
            _read_text(file)


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
    for file in files:
        _refuse_pointer(file)


def stored_dtype(folder: Path) -> str:
    """torch's name of the format that most of a checkpoint's values are in.

    Raises UnsupportedModelError as `check_model` does.
    """
    sizes = dict.fromkeys(_FORMATS, 0)
    for file in _shards(folder):
        for tensor in _tensors(file).values():
            if tensor.format in sizes:
                sizes[tensor.format] += tensor.end - tensor.begin
    return _FORMATS[max(sizes, key=sizes.__getitem__)]


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold the weights. Raises UnsupportedModelError as `check_model` does."""
    return tuple(_shards(folder))


def _check_weights(folder: Path, *, is_packed: bool) -> None:
    """That each tensor is once, and where the index says. is_packed: some are quantised."""
    places: dict[str, str] = {}
    formats = _FORMATS | STORED if is_packed else _FORMATS
    for file, wanted in _shards(folder).items():
        tensors = _tensors(file)
        _check_formats(file, tensors, formats)
        for name in tensors:
            if name in places:
                raise UnsupportedModelError(
                    f"{folder}: {name} is in {places[name]} and in {file.name}: one of both is "
                    "another checkpoint's: fetch them again"
                )
            places[name] = file.name
        for name in sorted(wanted - tensors.keys() - {_HEAD}):
            raise UnsupportedModelError(
                f"{file} lacks {name}, which {_INDEX} says is there: fetch both again"
            )


def _shards(folder: Path) -> dict[Path, set[str]]:
    """The files that hold the weights, all of them there, with the tensors that an index names."""
    names = {file.name for file in folder.iterdir()}
    if _WEIGHTS in names:
        return {folder / _WEIGHTS: set()}
    if _INDEX in names:
        return _indexed(folder)
    if pickles := sorted(name for name in names if name.endswith((".bin", ".pt", ".pth"))):
        raise UnsupportedModelError(
            f"{folder} has its weights in {pickles[0]} alone, a pickle, which is never loaded: "
            "write it as safetensors (load it with transformers, then save_pretrained)"
        )
    raise UnsupportedModelError(
        f"{folder} has no weights: neither {_WEIGHTS} nor {_INDEX} is there"
    )


def _indexed(folder: Path) -> dict[Path, set[str]]:
    parts = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UnsupportedModelError(f"{folder / _INDEX} has no weight_map: fetch it again")
    tensors: dict[Path, set[str]] = {}
    for tensor, part in sorted(parts.items(), key=str):
        file = folder / str(part)
        if not file.is_file():
            raise UnsupportedModelError(
                f"{folder} lacks {part}, which {_INDEX} names: fetch the missing file"
            )
        tensors.setdefault(file, set()).add(tensor)
    return tensors


class _Tensor(NamedTuple):
    format: str
    begin: int  # bytes from the header's end
    end: int


def _tensors(file: Path) -> dict[str, _Tensor]:
    """What a safetensors file's header says. Raises UnsupportedModelError where it isn't whole."""
    _refuse_pointer(file)
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(_MAX_HEADER, size - 8):
                raise ValueError
            header = json.loads(stream.read(length).decode())
        tensors = {
            name: _Tensor(one["dtype"], *map(index, one["data_offsets"]))
            for name, one in header.items()
            if name != "__metadata__"
        }
        end = max((tensor.end for tensor in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError):
        raise UnsupportedModelError(
            f"{file} is no whole safetensors file: fetch it again"
        ) from None
    if 8 + length + end != size:
        raise UnsupportedModelError(
            f"{file} is not whole: {size} bytes of {8 + length + end}: fetch it again"
        )
    return tensors


def _check_formats(
    file: Path, tensors: Mapping[str, _Tensor], supported: Mapping[str, str]
) -> None:
    formats = {str(one.format): name for name, one in tensors.items() if not name.endswith(_MASKS)}
    for kind in sorted(set(formats) - set(supported)):
        raise UnsupportedModelError(
            f"{file}: {formats[kind]} is in {kind}, which is not supported ({', '.join(supported)} "
            "are): take the checkpoint in full precision"
        )


def _check_gguf(file: Path) -> None:
    _refuse_pointer(file)
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UnsupportedModelError(f"{file} is no GGUF file: fetch it again")


def _refuse_pointer(file: Path) -> None:
    if is_pointer(file):
        raise UnsupportedModelError(
            f"{file} is a git-lfs pointer, not the file itself: run `git lfs pull`"
        )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises UnsupportedModelError, in one line, where the file holds none."""
    value = read_json_value(file)
    if not isinstance(value, dict):
        raise UnsupportedModelError(f"{file} holds no JSON object")
    return value


def read_json_value(file: Path) -> Any:
    """What a JSON file holds. Raises UnsupportedModelError, in one line, where it is none."""
    try:
        return json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"{file} is not valid JSON: {error}") from None


def _read_text(file: Path) -> str:
    _refuse_pointer(file)
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        kind = "valid JSON" if file.suffix == ".json" else "UTF-8"
        raise UnsupportedModelError(f"{file} is not {kind}: {error}") from None


def called(model: str) -> str:
    """How an error names a model: whoever mistypes a path asks the hub."""
    return model if expanded(model).exists() else f"{model} (an id on the hub: no such path)"


def one_line(error: BaseException) -> str:
    """What another library's error says, as one line that somebody reads."""
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust gave up, which derives from no Exception."""
    return type(error).__module__ == "pyo3_runtime"


def refused(name: str, what: str, read: Callable[[], Any]) -> Any:
    """What `read` returns. Raises UnsupportedModelError, in one line, for whatever it raises.

    transformers and the libraries below it have no common error for files that won't do.
    """
    try:
        return read()
    except UnsupportedModelError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise UnsupportedModelError(f"{name}: {what}: {one_line(error)}") from error
