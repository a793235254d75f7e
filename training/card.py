"""The adapter's card: what it learnt from, under which licence, how, and how far it came."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from training.run import Outcome, Recipe
    from training.settings import RunSettings

_TEMPLATE = """\
---
library_name: {library}
base_model: {base}
license: other
license_name: {licence}
tags: [{tag}, adaptermix]
---

# {name}

A {what} adapter for `{base}`, trained with `adaptermix {command}` on completion tokens only.

The licence of the data binds the adapter: **{licence}**.

| | |
|---|---|
| data | {files} |
| rows | {train_rows} to train, {dev_rows} for dev ({left_out} over {max_length} tokens left out) |
| LoRA | rank {rank}, alpha {alpha:g}, {kind}, dropout {dropout:g}, on {targets} |{notes}
| optimizer | AdamW, peak {learning_rate:g}, {schedule}, warm-up {warmup:.0%}, clip {clip:g} |
| batches | {steps} steps of at most {batch_tokens} tokens, {epochs} epoch(s), seed {seed} |
| numbers | {dtype} base, fp32 adapter weights, stored as {dtype} |
| compute | {tokens} tokens in {seconds:.0f} s on {threads} threads of {device} |
| dev loss | {before} before, {after} after (nats per completion token, end-of-text included) |

![training loss](loss.png)
"""


def write_card(out: Path, settings: RunSettings, outcome: Outcome, recipe: Recipe) -> None:
    """Write `out/README.md`."""
    lora, loop, data = settings.lora, settings.loop, settings.data
    text = _TEMPLATE.format(
        name=out.resolve().name,
        base=settings.base_name,
        library="peft" if recipe.kind == "LoRA" else "adaptermix",
        tag=recipe.kind.lower(),
        what=recipe.kind,
        command=recipe.command,
        licence=settings.licence,
        files=", ".join(f"{path.resolve().parent.name}/{path.name}" for path in settings.files),
        train_rows=outcome.train_rows,
        dev_rows=outcome.dev_rows,
        left_out=outcome.left_out,
        max_length=data.max_length,
        rank=lora.rank,
        alpha=lora.alpha,
        kind="alpha / sqrt(rank) (rsLoRA)" if lora.rslora else "scale alpha / rank",
        dropout=lora.dropout,
        targets=", ".join(lora.targets),
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
