"""The card of an adapter: its training data and their licence, its settings and its losses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from adaptermix.training.run import Outcome
    from adaptermix.training.settings import RunSettings

_TEMPLATE = """\
---
library_name: {library}
base_model: {base}
license: other
license_name: {licence}
tags: [{tag}, adaptermix]
---

# {name}

A {kind} adapter for `{base}`{revision}, \
trained with `adaptermix {command}` on completion tokens only.

The licence of the data binds the adapter: **{licence}**.

| | |
|---|---|
| data | {files} |
| rows | {train_rows} to train, {dev_rows} for dev ({left_out} over {max_length} tokens left out) |
| {kind} | {experts} |{notes}
| optimizer | AdamW, peak {learning_rate:g}, {schedule}, warm-up {warmup:.0%}, clip {clip:g} |
| batches | {steps} steps of at most {batch_tokens} tokens, {epochs} epoch(s), seed {seed} |
| numbers | {dtype} base, fp32 {kind} weights, stored as {dtype} |
| compute | {tokens} tokens in {seconds:.0f} s on {threads} threads of {device} |
| dev loss | {before} before, {after} after (nats per completion token, end-of-text included) |

![training loss](loss.png)
"""


@dataclass(frozen=True, slots=True)
class Described:
    """The description of an adapter's experts in a card."""

    kind: str
    library: str  # whose folder it is
    experts: str  # their sizes and places


def describe_lora(settings: RunSettings) -> Described:
    """A LoRA adapter of PEFT."""
    lora = settings.lora
    scale = "alpha / sqrt(rank) (rsLoRA)" if lora.rslora else "scale alpha / rank"
    text = (
        f"rank {lora.rank}, alpha {lora.alpha:g}, {scale}, dropout {lora.dropout:g}, "
        f"on {', '.join(lora.targets)}"
    )
    return Described("LoRA", "peft", text)


def write_card(
    out: Path, settings: RunSettings, outcome: Outcome, command: str, described: Described
) -> None:
    """Write `out/README.md`; `command` is that of the recipe."""
    loop, data = settings.loop, settings.data
    text = _TEMPLATE.format(
        name=out.resolve().name,
        base=settings.base_name,
        revision=f" at revision `{settings.revision}`" if settings.revision else "",
        command=command,
        licence=settings.licence,
        files=", ".join(f"{path.resolve().parent.name}/{path.name}" for path in settings.files),
        train_rows=outcome.train_rows,
        dev_rows=outcome.dev_rows,
        left_out=outcome.left_out,
        max_length=data.max_length,
        kind=described.kind,
        tag=described.kind.lower(),
        library=described.library,
        experts=described.experts,
        notes="".join(f"\n| {what} | {said} |" for what, said in outcome.notes.items()),
        learning_rate=loop.learning_rate,
        schedule=loop.schedule,
        warmup=loop.warmup_ratio,
        clip=loop.max_grad_norm,
        steps=outcome.steps,
        batch_tokens=data.batch_tokens,
        epochs=data.epochs,
        seed=loop.seed,
        dtype=settings.dtype,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
        threads=torch.get_num_threads(),
        device=settings.device,
        before=_nats(outcome.dev_before),
        after=_nats(outcome.dev_after),
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _nats(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
