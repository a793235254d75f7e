"""One run: a checkpoint, the engine's steps in rounds, PEFT's steps on the same card."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from adaptermix.bench.machine import describe_machine
from adaptermix.bench.subject import ALL_TARGETS, TARGETS, Subject, write_adapters
from benchmarks.gpu.peft import PeftSteps
from benchmarks.gpu.shape import write_checkpoint
from benchmarks.gpu.steps import CASES, CardSizes, CardTurn, EngineSteps

ADAPTERS = 8
RANK = 16
_TARGETS = {"all": ALL_TARGETS, "attention": TARGETS}


@dataclass(frozen=True, slots=True)
class CardPlan:
    """The work of a run. targets: `all` seven linears under adapters, or `attention`'s four."""

    shape: str
    kernels: str
    sizes: CardSizes
    rounds: int
    peft_tokens: int
    targets: str = "all"


def run(plan: CardPlan, folder: Path | None, console: Console) -> dict[str, Any]:
    """Measure everything; `folder` holds the checkpoint while it runs (memory is fastest)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="adaptermix-gpu-", dir=folder) as temporary:
        started = time.perf_counter()
        model = write_checkpoint(Path(temporary) / "model", plan.shape, device)
        adapters = write_adapters(
            Subject.of(str(model)),
            Path(temporary) / "adapters",
            [f"a{index}" for index in range(ADAPTERS)],
            (RANK,),
            _TARGETS[plan.targets],
        )
        console.print(f"checkpoint and adapters: {time.perf_counter() - started:.0f} s")
        bandwidth = memory_bandwidth(device)
        turns, weight_bytes, dtype = _engine(plan, model, adapters, console)
        _free()
        peft = _peft(plan, model, adapters, device, console)
    floor = weight_bytes / bandwidth
    return {
        "kind": "gpu",
        "machine": describe_machine(),
        "torch": torch.__version__,
        "dtype": dtype,
        "plan": asdict(plan),
        "bandwidth": bandwidth,
        "weight_bytes": weight_bytes,
        "floor_seconds": floor,
        "steps": {case: [asdict(turn) for turn in own] for case, own in turns.items()},
        "peft_step_seconds": peft,
        "scalars": scalars(turns, floor, peft),
    }


def scalars(
    turns: dict[str, list[CardTurn]], floor: float, peft: Sequence[float]
) -> dict[str, list[float]]:
    """Scalars of the targets (`adaptermix.bench.goals`), one value a round."""
    steps = {case: [statistics.median(turn.seconds) for turn in own] for case, own in turns.items()}
    graphs = [turn.device_seconds for turn in turns["base"] if turn.device_seconds is not None]
    mixed = [turn.device_seconds for turn in turns["mixtures"] if turn.device_seconds is not None]
    return {
        "gpu_step_over_floor": [step / floor for step in steps["base"]],
        "gpu_graph_over_floor": [step / floor for step in graphs],
        "gpu_mixtures_over_base": [
            one / other for one, other in zip(steps["mixtures"], steps["base"], strict=True)
        ],
        "gpu_graph_mixtures_over_base": [
            one / other for one, other in zip(mixed, graphs, strict=True)
        ],
        "gpu_over_peft": [statistics.median(peft) / step for step in steps["eight"]],
    }


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second, reading and writing counted, of a copy far larger than any cache."""
    size = 1 << 32 if device.type == "cuda" else 1 << 26
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(6):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size / best


def _engine(
    plan: CardPlan, model: Path, adapters: Sequence[Path], console: Console
) -> tuple[dict[str, list[CardTurn]], int, str]:
    """All cases in turn, round by round, so that a slow moment falls on all alike."""
    started = time.perf_counter()
    engine = EngineSteps(model, adapters, plan.kernels, plan.sizes)
    try:
        console.print(f"engine: {time.perf_counter() - started:.0f} s")
        for case in CASES:
            engine.turn(case)  # kernels are compiled, graphs captured
        turns: dict[str, list[CardTurn]] = {case: [] for case in CASES}
        for number in range(plan.rounds):
            for case in CASES:
                turns[case].append(engine.turn(case))
            console.print(f"round {number + 1}: {_milliseconds(turns)}")
        return turns, engine.weight_bytes, engine.engine.info.dtype
    finally:
        engine.close()


def _peft(
    plan: CardPlan, model: Path, adapters: Sequence[Path], device: torch.device, console: Console
) -> list[float]:
    peft = PeftSteps(model, adapters, device)
    peft.step_seconds(plan.sizes, 1)
    seconds = [peft.step_seconds(plan.sizes, plan.peft_tokens) for _ in range(3)]
    console.print(f"PEFT: {1000 * statistics.median(seconds):.1f} ms a step")
    return seconds


def _milliseconds(turns: dict[str, list[CardTurn]]) -> str:
    return ", ".join(
        f"{case} {1000 * statistics.median(own[-1].seconds):.2f} ms" for case, own in turns.items()
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
