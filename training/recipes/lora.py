"""Plain LoRA on PEFT: a base model and rows in, an adapter folder out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from training import checkpoint
from training.card import write_card
from training.data import Example, Split, plan_batches, read_rows, split_rows, tokenize
from training.loop import Loop, LoopSettings, StepReport
from training.loss import nll_per_row
from training.plot import plot_losses

DTypeName = Literal["bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """The adapter's shape: W x + scale * B (A x), scale = alpha / rank, or alpha / sqrt(rank)."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    rslora: bool = False
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Which rows, how long, and in what order."""

    files: tuple[Path, ...]
    licence: str
    max_rows: int | None = None
    max_length: int = 512  # tokens, end-of-text included; longer rows are left out
    dev_rows: int = 64
    batch_tokens: int = 1024  # padded tokens of one optimizer step
    epochs: int = 1
    seed: int = 0
    sample_texts: int = 64  # training texts kept in texts.jsonl for routing centroids


@dataclass(frozen=True, slots=True)
class RunSettings:
    """One training run. `base` is a directory or hub id, `base_name` what the adapter will say."""

    base: str
    base_name: str
    data: DataSettings
    lora: LoraSettings = field(default_factory=LoraSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)
    dtype: DTypeName = "bfloat16"
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run. Dev values are nats per completion token, end-of-text included."""

    train_rows: int
    dev_rows: int
    left_out: int  # rows longer than max_length
    steps: int
    tokens: int
    seconds: float
    dev_before: float | None
    dev_after: float | None
    losses: list[float]


def train_lora(
    settings: RunSettings,
    out: Path,
    *,
    checkpoint_every: int = 50,
    restart: bool = False,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> Outcome:
    """Train and write `out`: adapter, card, loss curve, sample texts.

    Goes on from the checkpoint in `out` where there is one, unless `restart`. Equal settings give
    equal adapters on one machine; the caller's random state is left as it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    if restart:
        checkpoint.remove(out)
    data = settings.data
    rows = [row for path in data.files for row in read_rows(path)]
    split = split_rows(rows, dev_rows=data.dev_rows, max_rows=data.max_rows, seed=data.seed)
    tokenizer = AutoTokenizer.from_pretrained(settings.base)
    examples, left_out = tokenize(split.train, tokenizer, data.max_length)
    dev, dev_left_out = tokenize(split.dev, tokenizer, data.max_length)
    plan = plan_batches(
        [len(example.tokens) for example in examples],
        batch_tokens=data.batch_tokens,
        epochs=data.epochs,
        seed=data.seed,
    )
    with torch.random.fork_rng():
        torch.manual_seed(data.seed)
        model = _build(settings)
        loop = Loop(model, plan, settings.loop, directory=out, identity=_identity(settings, split))
        if not loop.restore():
            loop.dev_before = _mean_nll(model, dev, settings)
        loop.run(examples, checkpoint_every=checkpoint_every, on_step=on_step)
        dev_after = _mean_nll(model, dev, settings)
    outcome = Outcome(
        train_rows=len(examples),
        dev_rows=len(dev),
        left_out=left_out + dev_left_out,
        steps=len(plan),
        tokens=data.epochs * sum(len(example.tokens) for example in examples),
        seconds=loop.seconds,
        dev_before=loop.dev_before,
        dev_after=dev_after,
        losses=loop.losses,
    )
    _write(out, model, settings, split, outcome)
    checkpoint.remove(out)
    return outcome


def _build(settings: RunSettings) -> Any:
    """The frozen base in `dtype` with fresh LoRA pairs in fp32 (A random, B zero)."""
    base = AutoModelForCausalLM.from_pretrained(
        settings.base, dtype=getattr(torch, settings.dtype)
    ).to(settings.device)
    lora = settings.lora
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=list(lora.targets),
    )
    model = get_peft_model(base, config)
    config.base_model_name_or_path = settings.base_name
    return model


def _identity(settings: RunSettings, split: Split) -> dict[str, Any]:
    """Everything that the result depends on, as plain values; the data by its digest."""
    values: dict[str, Any] = {"base": settings.base_name, "dtype": settings.dtype}
    values |= asdict(settings.lora) | asdict(settings.loop) | asdict(settings.data)
    values |= {"files": split.digest, "targets": list(settings.lora.targets)}
    return values


def _mean_nll(model: Any, examples: Sequence[Example], settings: RunSettings) -> float | None:
    """Nats per completion token over `examples`, None where there are none."""
    sums, counts = nll_per_row(
        model,
        examples,
        batch_tokens=settings.data.batch_tokens,
        device=torch.device(settings.device),
    )
    return sum(sums) / sum(counts) if counts else None


def _write(out: Path, model: Any, settings: RunSettings, split: Split, outcome: Outcome) -> None:
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    model.save_pretrained(out, state_dict=half, save_embedding_layers=False)
    plot_losses(outcome.losses, out / "loss.png")
    write_card(out, settings, outcome)
    texts = [row.prompt + row.completion for row in split.train[: settings.data.sample_texts]]
    if texts:
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        (out / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
