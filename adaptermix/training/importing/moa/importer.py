"""MoA checkpoints, of both implementations -> folders of our own format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaptermix.training.importing.folders import (
    check_out,
    read_flat,
    refuse_pointers,
    write_native,
)
from adaptermix.training.importing.moa import hf, native
from adaptermix.training.importing.moa.building import summary
from adaptermix.training.importing.moa.native import Heads
from adapters_store.errors import InvalidAdapterError
from adapters_store.formats.config_files import ConfigError, load_json
from adapters_store.formats.native import NativeAdapter
from adapters_store.types import Problem

_MAX_CONFIG_BYTES = 1 << 20
_CARD = """\
---
license: unknown
tags: [moa, adaptermix]
---

# {name}

A mixture of adapters ([MoA](https://arxiv.org/abs/2506.05928)) with routers inside layers, imported
by `adaptermix adapters import {command}`. The checkpoint does not name the data that it learnt
from; the licences of that data and of the base bind the adapter.

| | |
|---|---|
| checkpoint | {file}, sha256 `{sha256}` |
| base | {base} |
| holds | {summary} |
| routers read | {router_input} |
| thresholds | {threshold} |
| scale of LoRA | {scales} |
| stored as | float32, in the row order of Hugging Face's layout |
{notes}"""


@dataclass(frozen=True, slots=True)
class ImportedMoa:
    """The outcome of an import."""

    adapter: NativeAdapter
    summary: str
    folder: Path


def import_hf(folder: Path, gamma_max: float | None, out: Path) -> ImportedMoa:
    """Read a folder of MoA's port to transformers and write `out`, a folder of our own format.

    `gamma_max` is the highest threshold of a sparse adapter, 0.5 unless given: nothing in the
    folder says it. Raises InvalidAdapterError with every reason, and OSError; then nothing is
    written.
    """
    check_out(out)
    _require(folder, hf.CONFIG_FILE, hf.TENSOR_FILE)
    config = _load(folder / hf.CONFIG_FILE)
    state, sha256 = read_flat(folder / hf.TENSOR_FILE)
    adapter = hf.convert(config, state, gamma_max)
    return _write(adapter, out, ("moa-hf", hf.TENSOR_FILE, sha256))


def import_native(folder: Path, heads: Heads, base: Path | None, out: Path) -> ImportedMoa:
    """Read a folder of MoA's own implementation and write `out`, a folder of our own format.

    The base's heads come from `heads` or from the config.json of the checkpoint at `base`. Raises
    InvalidAdapterError with every reason, and OSError; then nothing is written.
    """
    check_out(out)
    if base is not None:
        heads = _heads_of(base, heads)
    _require(folder, native.PARAMS_FILE, native.TENSOR_FILE)
    params = _load(folder / native.PARAMS_FILE)
    state, sha256 = read_flat(folder / native.TENSOR_FILE)
    adapter = native.convert(params, state, heads)
    return _write(adapter, out, ("moa-native", native.TENSOR_FILE, sha256))


def _load(path: Path) -> dict[str, object]:
    try:
        return load_json(path, _MAX_CONFIG_BYTES)
    except ConfigError as error:
        raise InvalidAdapterError([Problem(path.name, str(error))]) from error


def _require(folder: Path, *names: str) -> None:
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise InvalidAdapterError([Problem(name, f"is missing in {folder}") for name in absent])
    refuse_pointers(*(folder / name for name in names))


def _heads_of(base: Path, heads: Heads) -> Heads:
    if heads != Heads():
        raise InvalidAdapterError(
            [Problem("--base", "is given with --heads or --kv-heads: give one or the other")]
        )
    _require(base, "config.json")
    config = _load(base / "config.json")
    query = config.get("num_attention_heads")
    key_value = config.get("num_key_value_heads", query)
    if type(query) is not int or type(key_value) is not int:
        raise InvalidAdapterError(
            [Problem("--base", f"{base}/config.json has no num_attention_heads: give --heads")]
        )
    return Heads(query, key_value)


def _write(adapter: NativeAdapter, out: Path, source: tuple[str, str, str]) -> ImportedMoa:
    """`source`: the command, the file, its sha256."""
    command, file, sha256 = source
    manifest = adapter.manifest
    router = manifest.routers[0]
    scales = sorted({expert.scale for expert in manifest.lora_experts})
    threshold = "none: every expert runs for every token"
    if router.threshold is not None:
        net = "" if router.threshold.prefix is None else " times the sigmoid of a net"
        threshold = f"{router.threshold.maximum:g}{net}; gates below count as 0"
    when = "before" if router.input == "pre_norm" else "after"
    said = summary(adapter)
    card = _CARD.format(
        name=out.resolve().name,
        command=command,
        file=file,
        sha256=sha256,
        base=manifest.base_model or "not named in the checkpoint",
        summary=said,
        router_input=f"what a layer reads, {when} its first norm",
        threshold=threshold,
        scales=", ".join(f"{scale:g}" for scale in scales) or "no LoRA",
        notes="".join(f"\nNote: {note}.\n" for note in adapter.notes),
    )
    write_native(out, adapter, card)
    return ImportedMoa(adapter, said, out)
