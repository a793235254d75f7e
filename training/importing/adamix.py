"""An AdaMix LoRA checkpoint of GPT-2 -> a PEFT folder with its experts averaged."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file

from adapters_store.errors import InvalidAdapterError
from adapters_store.formats.adamix import AdamixLora, average, checked_alpha, state_of
from adapters_store.formats.peft import CONFIG_FILE, TENSOR_FILE
from adapters_store.types import Problem
from training.importing.pickles import arrays_of, read_pickle

_CARD = """\
---
library_name: peft
license: unknown
tags: [lora, adamix, adaptermix]
---

# {name}

A LoRA adapter for GPT-2, imported by `adaptermix adapters import adamix` from an AdaMix checkpoint
([paper](https://arxiv.org/abs/2205.12410)): its experts are averaged as AdaMix averages them to
serve, in each layer by itself, A and B apart.

The checkpoint names neither its base model nor the data that it learnt from; the licences of both
bind the adapter.

| | |
|---|---|
| checkpoint | {file}, sha256 `{sha256}` |
| averaged | {num_a} of A, {num_b} of B, in each of {layers} layers, by {weights} |
| trained as | rank {rank} on q and v each, alpha {alpha:g} (given at import), scale {scale:g} |
| stored as | rank {fused} on the fused `attn.c_attn`, alpha {doubled:g}, the same scale, float32 |
| not imported | base weights and expert scores, where the checkpoint has them |
"""


@dataclass(frozen=True, slots=True)
class Imported:
    """What was read, and where it went."""

    lora: AdamixLora
    alpha: float
    sha256: str  # of the checkpoint, hexadecimal
    folder: Path


def import_adamix(checkpoint: Path, alpha: float | None, out: Path) -> Imported:
    """Read a checkpoint and write `out`, a PEFT folder for the GPT-2 that it was trained on.

    `alpha` is the one of the training: no checkpoint holds it. Raises InvalidAdapterError with
    every reason why the checkpoint is no AdaMix LoRA, and OSError; then nothing is written.
    """
    alpha = checked_alpha(alpha)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidAdapterError(
            [Problem("--out", f"{out} exists already: name a new or an empty folder")]
        )
    with checkpoint.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        lora = average(arrays_of(state_of(read_pickle(stream))))
    imported = Imported(lora, alpha, sha256, out)
    out.mkdir(parents=True, exist_ok=True)
    save_file(lora.peft_tensors(), out / TENSOR_FILE, metadata={"format": "pt"})
    config = json.dumps(lora.peft_config(alpha), indent=2) + "\n"
    (out / CONFIG_FILE).write_text(config, encoding="utf-8")
    (out / "README.md").write_text(_card(imported, checkpoint.name), encoding="utf-8")
    return imported


def _card(imported: Imported, file: str) -> str:
    lora, alpha = imported.lora, imported.alpha
    return _CARD.format(
        name=imported.folder.resolve().name,
        file=file,
        sha256=imported.sha256,
        num_a=_copies(lora.copies_a),
        num_b=_copies(lora.copies_b),
        layers=len(lora.layers),
        weights="softmax of their scores" if lora.weighted else "equal weights",
        rank=lora.rank,
        alpha=alpha,
        scale=alpha / lora.rank,
        fused=2 * lora.rank,
        doubled=2 * alpha,
    )


def _copies(count: int) -> str:
    return "the only copy (shared)" if count == 1 else f"{count} experts"
