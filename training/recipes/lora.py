"""Plain LoRA on PEFT: a base model and rows in, an adapter folder out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from training import checkpoint
from training.card import write_card
from training.data import Example, Split, plan_batches, read_rows, split_rows, tokenize
from training.errors import TrainingError
from training.loop import Loop, StepReport
from training.loss import nll_per_row
from training.plot import plot_losses
from training.settings import RunSettings


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
    data, seed = settings.data, settings.loop.seed
    rows = [row for path in settings.files for row in read_rows(path)]
    split = split_rows(rows, dev_rows=data.dev_rows, max_rows=data.max_rows, seed=seed)
    tokenizer = AutoTokenizer.from_pretrained(settings.base)
    examples, left_out = tokenize(split.train, tokenizer, data.max_length)
    dev, dev_left_out = tokenize(split.dev, tokenizer, data.max_length)
    plan = plan_batches(
        [len(example.tokens) for example in examples],
        batch_tokens=data.batch_tokens,
        epochs=data.epochs,
        seed=seed,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
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
    model = get_peft_model(base, _peft_config(settings, base))
    model.peft_config["default"].base_model_name_or_path = settings.base_name
    return model


def _peft_config(settings: RunSettings, base: torch.nn.Module) -> LoraConfig:
    """The configuration that PEFT reads; raises TrainingError for a target that is not there."""
    lora = settings.lora
    linears = {
        name: isinstance(module, Conv1D)
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    transposed = []
    for target in lora.targets:
        found = [t for name, t in linears.items() if f".{name}".endswith(f".{target}")]
        if not found:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            raise TrainingError(
                f"target {target!r} is no linear layer of {settings.base_name}: use {known}"
            )
        transposed += found
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=list(lora.targets),
        fan_in_fan_out=any(transposed),  # GPT-2 keeps its weights as [in, out]
    )


def _identity(settings: RunSettings, split: Split) -> dict[str, Any]:
    """Everything that the result depends on, as plain values; the rows by their digest."""
    values = {"base": settings.base_name, "dtype": settings.dtype, "rows": split.digest}
    values |= asdict(settings.lora) | asdict(settings.loop) | asdict(settings.data)
    return values | {"targets": list(settings.lora.targets)}


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
    config = json.loads((out / "adapter_config.json").read_text())
    config["target_modules"].sort()  # PEFT keeps a set, whose order changes between processes
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    plot_losses(outcome.losses, out / "loss.png")
    write_card(out, settings, outcome)
    texts = [row.prompt + row.completion for row in split.train[: settings.data.sample_texts]]
    if texts:
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        (out / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
