"""Adapter folders made by hand: sound ones, and ones that lie."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from adapters_store.types import BaseModelSpec, LinearShape

HIDDEN, INNER, VOCABULARY, LAYERS = 16, 32, 40, 2
PREFIX = "base_model.model."

BASE = BaseModelSpec(
    name="tiny",
    architecture="LlamaForCausalLM",
    linears={
        **{
            f"model.layers.{layer}.{module}": shape
            for layer in range(LAYERS)
            for module, shape in {
                "self_attn.q_proj": LinearShape(HIDDEN, HIDDEN),
                "self_attn.v_proj": LinearShape(HIDDEN, HIDDEN // 2),
                "mlp.up_proj": LinearShape(HIDDEN, INNER),
            }.items()
        },
        "lm_head": LinearShape(HIDDEN, VOCABULARY),
    },
    other_modules=("model.embed_tokens", "model.norm"),
)

Tensors = dict[str, NDArray[Any]]


def config(**changes: Any) -> dict[str, Any]:
    """A config as PEFT 0.18 writes it, at its defaults but for the targets."""
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": "tiny",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "inference_mode": True,
        "lora_dropout": 0.05,
        **changes,
    }


def tensors(targets: Sequence[str] = ("q_proj", "v_proj"), rank: int = 4, seed: int = 0) -> Tensors:
    """Random A and B for every module of BASE that ends in one of `targets`."""
    random = np.random.default_rng(seed)
    made: Tensors = {}
    for module, shape in BASE.linears.items():
        if module.endswith(tuple(targets)):
            a = random.normal(size=(rank, shape.in_features))
            b = random.normal(size=(shape.out_features, rank))
            made[f"{PREFIX}{module}.lora_A.weight"] = a.astype(np.float32)
            made[f"{PREFIX}{module}.lora_B.weight"] = b.astype(np.float32)
    return made


def adapter(made: Tensors | None = None, **changes: Any) -> dict[str, bytes]:
    """A folder's files by name."""
    return {
        "adapter_config.json": json.dumps(config(**changes)).encode(),
        "adapter_model.safetensors": save(tensors() if made is None else made),
    }


def raw_safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with any header, true or not; `header` may be bytes that are no JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(
    begin: int, end: int, dtype: str = "F32", shape: Sequence[int] | None = None
) -> Mapping[str, Any]:
    """A header's entry for one tensor; the shape follows from the range unless given."""
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else list(shape),
        "data_offsets": [begin, end],
    }


def zipped(
    files: Mapping[str, bytes] | Sequence[tuple[str | zipfile.ZipInfo, bytes]],
    *,
    compression: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    """A zip; as a sequence it may hold entries with odd attributes."""
    sink = io.BytesIO()
    items = files.items() if isinstance(files, Mapping) else files
    with zipfile.ZipFile(sink, "w", compression) as archive:
        for name, content in items:
            archive.writestr(name, content)
    return sink.getvalue()


def tarred(
    files: Mapping[str, bytes], extra: Sequence[tarfile.TarInfo] = (), *, mode: str = "w"
) -> bytes:
    """A tar ("w") or tar.gz ("w:gz"); `extra` members come last and have no content."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return sink.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A tar member that is no plain file."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info
