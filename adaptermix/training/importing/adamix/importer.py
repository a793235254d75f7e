"""An AdaMix checkpoint of GPT-2 -> an adapter folder, its experts averaged or kept as copies."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from adaptermix.training.importing.adamix.bottleneck import AdamixBottleneck, read_bottlenecks
from adaptermix.training.importing.adamix.lora import AdamixLora, checked_alpha, read_lora
from adaptermix.training.importing.adamix.state import has_bottlenecks, refusal, state_of
from adaptermix.training.importing.folders import (
    check_out,
    refuse_pointers,
    write_native,
    write_tensors,
)
from adaptermix.training.importing.pickles import arrays_of, read_pickle
from adapters_store.formats.peft import CONFIG_FILE

_CARD = """\
---
{library}license: unknown
tags: [{tag}, adamix, adaptermix]
---

# {name}

{kind} for GPT-2, imported by `adaptermix adapters import adamix` from an AdaMix checkpoint
([paper](https://arxiv.org/abs/2205.12410)):
{what}

The checkpoint names neither its base model nor the data that it learnt from; the licences of both
bind the adapter.

| | |
|---|---|
| checkpoint | {file}, sha256 `{sha256}` |
| {how} | {num_a} of A, {num_b} of B, in each of {layers} layers, by {weights} |
{rows}
| not imported | {left} |
"""
_AVERAGED = (
    "its experts are averaged as AdaMix averages them to serve, in each layer by itself, A and B\n"
    "apart."
)
_KEPT = "its experts are kept apart, with the weights of their average."


@dataclass(frozen=True, slots=True)
class ImportedAdamix:
    """The outcome of an import."""

    adapter: AdamixLora | AdamixBottleneck
    alpha: float | None  # of LoRA
    sha256: str  # of the checkpoint, hexadecimal
    folder: Path
    has_copies: bool  # kept apart

    @property
    def summary(self) -> str:
        """In one line, for people."""
        adapter = self.adapter
        if isinstance(adapter, AdamixLora):
            size = f"rank {adapter.rank} on q and v, scale {(self.alpha or 0) / adapter.rank:g}"
            layers = len(adapter.kept)
        else:
            size, layers = f"bottlenecks of size {adapter.size}", len(adapter.layers)
        return f"{adapter.copies_a} of A and {adapter.copies_b} of B in {layers} layers: {size}"


def import_adamix(
    checkpoint: Path, alpha: float | None, out: Path, *, keep_copies: bool = False
) -> ImportedAdamix:
    """Read a checkpoint and write `out`, a folder for the GPT-2 that it was trained on.

    A LoRA is averaged into a PEFT folder; bottlenecks, and whatever keeps its copies, become a
    folder of our own format. `alpha` is that of a LoRA's training: no checkpoint holds it. Raises
    InvalidAdapterError with every reason why the checkpoint is no AdaMix adapter, and OSError; then
    nothing is written.
    """
    check_out(out)
    refuse_pointers(checkpoint)
    with checkpoint.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        state = state_of(read_pickle(stream))
    if has_bottlenecks(state):
        if alpha is not None:
            raise refusal(
                "--alpha", "is given, but AdaMix's bottlenecks have no scale: leave it out"
            )
        bottleneck = read_bottlenecks(arrays_of(state))
        imported = ImportedAdamix(bottleneck, None, sha256, out, keep_copies)
        native = bottleneck.native(keep_copies=keep_copies)
        write_native(out, native, _bottleneck_card(imported, bottleneck, checkpoint.name))
        return imported
    alpha = checked_alpha(alpha)
    lora = read_lora(arrays_of(state))
    imported = ImportedAdamix(lora, alpha, sha256, out, keep_copies)
    card = _lora_card(imported, lora, alpha, checkpoint.name)
    if keep_copies:
        write_native(out, lora.native(alpha), card)
    else:
        write_tensors(out, lora.peft_tensors(), card)
        config = json.dumps(lora.peft_config(alpha), indent=2) + "\n"
        (out / CONFIG_FILE).write_text(config, encoding="utf-8")
    return imported


def _lora_card(imported: ImportedAdamix, lora: AdamixLora, alpha: float, file: str) -> str:
    stored = f"alpha {2 * alpha:g}, the same scale"
    if imported.has_copies:
        stored = "all copies, the same scale"
    rows = (
        f"| trained as | rank {lora.rank} on q and v each, alpha {alpha:g} (given at import), "
        f"scale {alpha / lora.rank:g} |\n"
        f"| stored as | rank {2 * lora.rank} on the fused `attn.c_attn`, {stored}, float32 |"
    )
    return _card(imported, file, "A LoRA adapter", rows, len(lora.kept))


def _bottleneck_card(imported: ImportedAdamix, bottleneck: AdamixBottleneck, file: str) -> str:
    rows = (
        f"| stored as | bottlenecks of size {bottleneck.size} after each `mlp`, GELU in its tanh "
        "form, float32 |"
    )
    return _card(imported, file, "Bottleneck adapters", rows, len(bottleneck.layers))


def _card(imported: ImportedAdamix, file: str, kind: str, rows: str, layers: int) -> str:
    adapter, is_kept = imported.adapter, imported.has_copies
    is_peft = isinstance(adapter, AdamixLora) and not is_kept
    return _CARD.format(
        library="library_name: peft\n" if is_peft else "",
        tag="lora" if isinstance(adapter, AdamixLora) else "bottleneck",
        name=imported.folder.resolve().name,
        kind=kind,
        what=_KEPT if is_kept else _AVERAGED,
        how="kept" if is_kept else "averaged",
        file=file,
        sha256=imported.sha256,
        num_a=_copies(adapter.copies_a),
        num_b=_copies(adapter.copies_b),
        layers=layers,
        weights="softmax of their scores" if adapter.weighted else "equal weights",
        rows=rows,
        left="base weights, where the checkpoint has them"
        if is_kept
        else "base weights and expert scores, where the checkpoint has them",
    )


def _copies(count: int) -> str:
    return "the only copy (shared)" if count == 1 else f"{count} experts"
