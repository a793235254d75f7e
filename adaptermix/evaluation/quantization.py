"""NLL of test rows with 8-bit weights and with plain ones, for `bench quantization`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import track

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.quantization import DTYPE, QUANTIZATIONS
from adaptermix.bench.settings import QuantizationSettings
from adaptermix.bench.subject import Subject
from adaptermix.evaluation.scoring import bootstrap
from adaptermix.evaluation.scoring.models import BASE, Systems
from adaptermix.evaluation.scoring.tasks import TASKS, task_named
from adaptermix.training.errors import TrainingError
from router_engine.config import Quantization
from router_engine.model.quantized import quantize_linears

Scores = Mapping[tuple[str, str], tuple[list[float], list[int]]]  # (task, system) -> of each row


class _Quantized(Systems):
    """Systems on an 8-bit base. Adapters keep their format."""

    def __init__(self, base: str, adapters: Mapping[str, Path]) -> None:
        super().__init__(base, adapters, DTYPE, "cpu")
        quantize_linears(self._model, lambda path: ".lora_" not in path)


def task_adapters(folder: Path) -> dict[str, Path]:
    """The adapter folders in `folder` that are named as tasks. Raises BenchmarkError for none."""
    held = {path.parent.name: path.parent for path in folder.glob("*/adapter_config.json")}
    adapters = {name: held[name] for name in sorted(TASKS) if name in held}
    if not adapters:
        raise BenchmarkError(
            f"{folder} holds no folder with an adapter_config.json that is named as a task: "
            f"{', '.join(TASKS)}"
        )
    return adapters


def _scores(
    quantization: Quantization,
    base: str,
    adapters: Mapping[str, Path],
    settings: QuantizationSettings,
) -> Scores:
    """NLL of the base and of each task's own adapter on that task's rows."""
    tasks = [task_named(name) for name in adapters]
    int8 = quantization == "int8"
    systems = _Quantized(base, adapters) if int8 else Systems(base, adapters, DTYPE, "cpu")
    scores = {}
    for task in track(tasks, description=f"NLL, quantization {quantization}"):
        rows = task.rows(settings.data, settings.rows, settings.seed)
        for name in (BASE, task.name):
            scores[task.name, name] = systems.nll(name, rows)
    return scores


def compare_nll(
    subject: Subject, adapters: Mapping[str, Path], settings: QuantizationSettings
) -> list[dict[str, Any]]:
    """One line a task and system: its NLL with plain weights and in 8 bits, and the difference.

    Raises BenchmarkError for adapters or rows that cannot be scored.
    """
    try:
        scores = {q: _scores(q, subject.model, adapters, settings) for q in QUANTIZATIONS}
    except TrainingError as error:
        raise BenchmarkError(str(error)) from error
    return _compared(scores["none"], scores["int8"])


def _compared(plain: Scores, quantized: Scores) -> list[dict[str, Any]]:
    """Nats per completion token of each task and system, and the paired difference."""
    lines = []
    for (task, system), (values, counts) in plain.items():
        other, tokens = quantized[task, system][0], [float(count) for count in counts]
        differences = [b - a for a, b in zip(values, other, strict=True)]
        lines.append(
            {
                "task": task,
                "system": system,
                "rows": len(values),
                "tokens": sum(counts),
                "none": asdict(bootstrap.ratio(values, tokens)),
                "int8": asdict(bootstrap.ratio(other, tokens)),
                "difference": asdict(bootstrap.ratio(differences, tokens)),
            }
        )
    return lines
