"""The config of a GGUF file, whole: a key or tensor that shapes the model is applied or refused.

transformers takes the keys and tensors that its own tables name and passes over all others: of a
scaled rope or a bias of attention nothing would be left, and nothing said.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from router_engine.errors import UnsupportedModelError
from router_engine.model import gguf_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_TOKEN_LIST = f"{gguf_vocabulary.PREFIX}tokens"
_READ = tuple(f"{gguf_vocabulary.PREFIX}{name}" for name in gguf_vocabulary.LISTS)
_NAMED = 8  # keys or tensors, where many are wrong
_LONGEST = 80  # characters of one that are shown
_FREQUENCIES = "rope_freqs.weight"
_DEFAULT_BASE = 10_000.0  # of a rope, where the file names none: as in llama.cpp

# By key below the architecture's name: what transformers' config calls it.
_COMMON = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
}
_LLAMA = {
    **_COMMON,
    "feed_forward_length": "intermediate_size",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_GPT2 = {
    **_COMMON,
    "feed_forward_length": "n_inner",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
# Every one of these is needed; the name of an architecture is transformers' model type as well.
_KEYS = {"llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gpt2": _GPT2}
_OPTIONAL = {"attention.head_count_kv": "num_key_value_heads", "vocab_size": "vocab_size"}
_WIDTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count")  # of a head
_WITH_WIDTH = ("llama", "qwen3")  # whose config may name it
_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}

# Keys that say how a file was made, and values that change nothing of what is computed.
_SILENT = (
    *("tensor_data_layout", "pooling_type", "rope.scaling.finetuned"),
    "use_parallel_residual",  # GPT-NeoX's; converters once wrote it for every architecture
)
_IDLE: Mapping[str, Any] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1,
}
_YARN = {"rope.scaling.yarn_beta_fast": "beta_fast", "rope.scaling.yarn_beta_slow": "beta_slow"}
_LENGTH_BEFORE = "rope.scaling.original_context_length"
_SCALING = ("rope.scaling.type", "rope.scaling.factor", _LENGTH_BEFORE, "rope.scale_linear", *_YARN)

# Of every Llama 3.1, 3.2 and 3.3; a file holds what they make of a rope, not these themselves.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_SAME = 1e-5  # relative: what is rounded to fp32 on the way into a file


@contextmanager
def alone(file: Path) -> Iterator[tuple[str, str]]:
    """(folder, name) of a GGUF file in a folder of its own, for transformers.

    It would take configs, adapters and code from the files beside it, and the weights from a file
    of the same name in the working directory, so the name is one that nobody else has.
    """
    with tempfile.TemporaryDirectory(prefix="adaptermix-gguf-") as folder:
        link = Path(folder) / f"{Path(folder).name}.gguf"
        link.symlink_to(file.absolute())
        yield folder, link.name


def read_config(file: Path) -> PreTrainedConfig:
    """transformers' config of a GGUF file.

    Raises UnsupportedModelError for a key or a rope that it cannot express, by name, and whatever
    the reader raises for a file that is none.
    """
    from transformers import AutoConfig

    header = _Header.read(file)
    header.check_kind()
    header.check_keys()
    header.check_vocabulary()
    model_type = header.architecture
    values = {
        **{name: header.number(key, needed=True) for key, name in _KEYS[model_type].items()},
        **{name: header.number(key) for key, name in _OPTIONAL.items() if key in header.keys},
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    values.setdefault("vocab_size", len(header.fields.get(_TOKEN_LIST, ())))
    if model_type != "gpt2":  # as in llama.cpp
        values.setdefault("num_key_value_heads", values["num_attention_heads"])
    for name, kind in _TOKENS.items():
        values[name] = header.fields.get(f"tokenizer.ggml.{kind}_token_id")
    if values["pad_token_id"] not in range(values["vocab_size"]):  # nothing is padded here
        values["pad_token_id"] = None
    width = header.head_width()
    if model_type in _WITH_WIDTH:
        values["head_dim"] = width
    if model_type != "gpt2":
        values["rope_parameters"] = header.rope(width)
    return AutoConfig.for_model(model_type, **values)


def read_keys(file: Path) -> Mapping[str, Any]:
    """A GGUF file's keys, by their whole names; of its lists only those of the vocabulary.

    Raises UnsupportedModelError for a key of the vocabulary that nothing here applies, by name, and
    whatever the reader raises for a file that is none.
    """
    header = _Header.read(file)
    header.check_vocabulary()
    return header.fields


def refuse_unread(file: Path, model: PreTrainedModel) -> None:
    """Raises UnsupportedModelError for tensors that a model made of the file has no place for."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    header = _Header.read(file)
    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    layers = int(model.config.num_hidden_layers)
    names = get_tensor_name_map(kinds[header.architecture], layers)
    read = {_FREQUENCIES} if header.architecture != "gpt2" else set()
    for parameter in model.state_dict():
        path, _, kind = parameter.rpartition(".")
        read.add(f"{names.get_name(path)}.{kind}")
    unread = sorted(header.tensors - read)
    if unread:
        raise UnsupportedModelError(
            f"{file}: tensors that {type(model).__name__} has no place for: {_some(unread)}. A "
            "checkpoint directory of the same model may say what they are"
        )


@dataclass(frozen=True, slots=True)
class _Header:
    """A file's keys and the names of its tensors."""

    file: Path
    fields: Mapping[str, Any]  # of lists only those of the vocabulary are filled
    tensors: frozenset[str]
    frequencies: NDArray[Any] | None  # factors of the rope, if the file has some

    @classmethod
    def read(cls, file: Path) -> _Header:
        """A file is read once: that of a large vocabulary takes seconds."""
        state = file.stat()
        return cls._read(file, state.st_mtime_ns, state.st_size)

    @classmethod
    @functools.lru_cache(maxsize=1)
    def _read(cls, file: Path, _changed: int, _size: int) -> _Header:
        from gguf import GGUFReader, GGUFValueType

        reader = GGUFReader(str(file))
        fields = {}
        for name, field in reader.fields.items():
            if field.types[0] != GGUFValueType.ARRAY:
                fields[name] = field.contents()
            else:
                fields[name] = _List(field.contents() if name in _READ else ())
        factors = [tensor.data for tensor in reader.tensors if tensor.name == _FREQUENCIES]
        names = frozenset(tensor.name for tensor in reader.tensors)
        # A copy: the reader's lies in the mapped file.
        return cls(file, fields, names, np.array(factors[0]) if factors else None)

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture"))

    @property
    def keys(self) -> dict[str, Any]:
        """The model's own keys, below its architecture's name."""
        prefix = f"{self.architecture}."
        fields = self.fields.items()
        return {name.removeprefix(prefix): one for name, one in fields if name.startswith(prefix)}

    def refuse(self, told: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.file}: {told}")

    def check_kind(self) -> None:
        """Raises UnsupportedModelError for what is no whole model of a known architecture."""
        kind = self.fields.get("general.type", "model")
        if kind != "model" or any(name.startswith("adapter.") for name in self.fields):
            raise self.refuse(
                f"is of type {_shown(kind)!r}, not a model: serve the GGUF file or the directory "
                "of its base model"
            )
        if self.fields.get("split.count", 1) not in (0, 1):
            raise self.refuse(
                f"is one of {self.fields['split.count']} parts: merge them into one file "
                "(`llama-gguf-split --merge`)"
            )
        if self.architecture not in _KEYS:
            raise self.refuse(
                f"architecture {_shown(self.architecture)!r} is not supported in a GGUF file; "
                f"supported: {', '.join(_KEYS)}"
            )

    def check_keys(self) -> None:
        """Raises UnsupportedModelError for keys that nothing here applies."""
        rope = _SCALING if self.architecture != "gpt2" else ()
        rope_base = ("rope.freq_base",) if self.architecture != "gpt2" else ()
        applied = {*_KEYS[self.architecture], *_OPTIONAL, *_WIDTHS, *_SILENT, *rope, *rope_base}
        length = self.keys.get("context_length")
        unknown = [
            f"{self.architecture}.{name} = {_shown(value)}"
            for name, value in self.keys.items()
            if name not in applied
            and not (name in _IDLE and value == _IDLE[name])
            and not (name == "attention.sliding_window" and value in (0, length))
        ]
        if unknown:
            raise self.refuse(
                f"not supported in a GGUF file: {_some(sorted(unknown))}. A checkpoint directory "
                "of the same model may be served"
            )

    def check_vocabulary(self) -> None:
        """Raises UnsupportedModelError for keys of the vocabulary that nothing here applies."""
        reasons = gguf_vocabulary.unapplied(self.fields)
        if reasons:
            told = [
                f"{name} = {_shown(self.fields[name])} ({why})" for name, why in reasons.items()
            ]
            raise self.refuse(
                f"not supported in a GGUF file: {_some(sorted(told))}. A checkpoint directory of "
                "the same model may be served"
            )

    def number(self, key: str, *, needed: bool = False) -> Any:
        """A key's value. Raises UnsupportedModelError for none, and for what is no number."""
        value: Any = self.keys.get(key)
        if value is None and needed:
            raise self.refuse(f"has no {self.architecture}.{key}: the file is not whole")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise self.refuse(
                f"{self.architecture}.{key} is {_shown(value)}; one number above 0 is supported"
            )
        return value

    def head_width(self) -> int:
        """Numbers of a head's key. Raises UnsupportedModelError where the file's keys differ."""
        plain = self.number("embedding_length") // self.number("attention.head_count")
        widths = {key: self.number(key) for key in _WIDTHS if key in self.keys}
        width = widths.get(_WIDTHS[0], plain) if self.architecture in _WITH_WIDTH else plain
        others = {key: one for key, one in widths.items() if one != width}
        if others:
            told = ", ".join(f"{self.architecture}.{key} = {one}" for key, one in others.items())
            raise self.refuse(f"{told}: only heads of {width}, rotated whole, are supported")
        return int(width)

    def rope(self, width: int) -> dict[str, Any]:
        """transformers' parameters. Raises UnsupportedModelError where it has none for a rope."""
        keys = self.keys
        base = float(self.number("rope.freq_base")) if "rope.freq_base" in keys else _DEFAULT_BASE
        scaling = self._scaling()
        if self.frequencies is not None:
            scaling = self._frequencies(base, width, scaling)
        return {"rope_type": "default", "rope_theta": base, **scaling}

    def _scaling(self) -> dict[str, Any]:
        """As llama.cpp reads the keys: a factor without a type is a linear one."""
        keys = self.keys
        kind = keys.get("rope.scaling.type", "linear")
        factors = [key for key in ("rope.scaling.factor", "rope.scale_linear") if key in keys]
        factor = float(self.number(factors[0])) if factors else 1.0
        yarn = {name: self.number(key) for key, name in _YARN.items() if key in keys}
        if kind == "yarn" and factors and _LENGTH_BEFORE in keys:
            before = self.number(_LENGTH_BEFORE)
            return {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": before,
                **yarn,
            }
        if kind == "none" or (kind == "linear" and factor == 1.0 and not yarn):
            return {}
        if kind == "linear" and not yarn:
            return {"rope_type": "linear", "factor": factor}
        name = f"{self.architecture}.rope.scaling"
        raise self.refuse(
            f"{name}.type = {_shown(kind)} is not supported; supported: none, linear with "
            f"{name}.factor, and yarn with {name}.factor and {name}.original_context_length"
        )

    def _frequencies(self, base: float, width: int, scaling: dict[str, Any]) -> dict[str, Any]:
        """What a file's factors of the rope come from: those of Llama 3, or none at all."""
        factors = np.asarray(self.frequencies)
        fits = factors.shape == (width // 2,) and factors.dtype == np.float32
        if fits and np.all(factors == 1.0):
            return scaling
        if fits and not scaling:
            factor = float(factors.max())
            if np.allclose(factors, llama3_factors(base, width, factor), rtol=_SAME, atol=0.0):
                return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
        raise self.refuse(
            f"{_FREQUENCIES} scales the rope in a way that is not known; supported: that of Llama "
            "3.1 to 3.3. A checkpoint directory of the same model may be served"
        )


def llama3_factors(base: float, width: int, factor: float) -> NDArray[np.float64]:
    """What the wavelengths of a rope [width / 2] are stretched by in a Llama 3.1."""
    length = float(_LLAMA3["original_max_position_embeddings"])
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    waves = 2 * math.pi * base ** (np.arange(0, width, 2) / width)
    part = np.clip((length / waves - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - part) / factor + part))


class _List(list[Any]):
    """A list of a file's; shown without what is in it."""

    def __str__(self) -> str:
        return "a list"


def _shown(value: Any) -> str:
    return str(value)[:_LONGEST]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(name[:_LONGEST] for name in names[:_NAMED])}{more}"
