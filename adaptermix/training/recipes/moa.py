"""MoA, and the homogeneous mixture of LoRA that it is compared with: experts and routers learn
together, the base stays as it is.

"MoA: Heterogeneous Mixture of Adapters" (arXiv 2506.05928, 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from adaptermix.training.card import Described, describe_lora
from adaptermix.training.loop import Losses, StepReport
from adaptermix.training.loss import Batch, completion_nll, mean_over_targets
from adaptermix.training.moa.budget import parameters
from adaptermix.training.moa.building import moa_model, moe_lora_model
from adaptermix.training.moa.folder import save_moa
from adaptermix.training.moa.gates import mean_and_spread, recorded
from adaptermix.training.moa.model import MoaModel
from adaptermix.training.plot import GATE_CURVES, plot_gates
from adaptermix.training.run import Outcome, Recipe, run_recipe
from adaptermix.training.settings import MoaSettings, MoeLoraSettings, RunSettings


def train_moa(
    settings: RunSettings,
    out: Path,
    *,
    moa: MoaSettings,
    checkpoint_every: int = 50,
    restart: bool = False,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> Outcome:
    """Train one MoA adapter and write it to `out`, as `run_recipe` says."""
    return run_recipe(
        moa_recipe(moa),
        settings,
        out,
        checkpoint_every=checkpoint_every,
        restart=restart,
        on_step=on_step,
    )


def moa_recipe(moa: MoaSettings) -> Recipe:
    """The recipe of `train_moa`."""

    def build(settings: RunSettings) -> MoaTrainee:
        return MoaTrainee(moa_model(settings, moa), settings)

    def describe(settings: RunSettings) -> Described:
        lora = describe_lora(settings).experts
        return Described("MoA", "adaptermix", f"{_described(moa)}, LoRA of {lora}")

    return Recipe("train moa", asdict(moa), build, describe)


def train_moe_lora(
    settings: RunSettings,
    out: Path,
    *,
    moe: MoeLoraSettings,
    checkpoint_every: int = 50,
    restart: bool = False,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> Outcome:
    """Train one homogeneous mixture of LoRA and write it to `out`, as `run_recipe` says."""
    return run_recipe(
        moe_lora_recipe(moe),
        settings,
        out,
        checkpoint_every=checkpoint_every,
        restart=restart,
        on_step=on_step,
    )


def moe_lora_recipe(moe: MoeLoraSettings) -> Recipe:
    """The recipe of `train_moe_lora`."""

    def build(settings: RunSettings) -> MoaTrainee:
        return MoaTrainee(moe_lora_model(settings, moe), settings)

    def describe(settings: RunSettings) -> Described:
        text = (
            f"{moe.top_k} of {moe.experts} LoRA experts a token at every target, by a softmax of "
            f"a linear router at {moe.router_input}, each of {describe_lora(settings).experts}"
        )
        return Described("MoE-LoRA", "adaptermix", text)

    return Recipe("train moe-lora", asdict(moe), build, describe)


@dataclass(frozen=True, slots=True)
class MoaTrainee:
    """Experts and routers in training."""

    model: MoaModel
    settings: RunSettings
    generators: tuple[torch.Generator, ...] = ()

    def losses(self, batch: Batch) -> Losses:
        """The task's loss alone; shown beside it, what the batch's gates were."""
        loss = mean_over_targets(completion_nll(self.model, batch), batch.labels)
        shown = dict(zip(GATE_CURVES, mean_and_spread(self.model.gates), strict=True))
        return Losses(loss, {"loss": loss, **shown})

    def finish(self, out: Path, dev_nll: Callable[[], float | None]) -> Mapping[str, str]:
        """Measure and draw the gates on the dev rows."""
        with recorded(self.model) as statistics:
            dev_nll()
        notes = {"parameters": f"{parameters(self.model.manifest):,} of experts and routers"}
        if statistics.tokens:
            means = statistics.means
            plot_gates(means.tolist(), self.model.manifest.gate_labels, out / "gates.png")
            notes["gates"] = (
                f"mean {means.mean():.3f}, std over the experts of a token "
                f"{statistics.spread:.3f}, {statistics.closed:.1%} are 0 "
                f"({statistics.tokens} tokens of the dev rows; gates.png)"
            )
        return notes

    def save(self, out: Path) -> None:
        save_moa(self.model, out, self.settings.dtype)


def _described(moa: MoaSettings) -> str:
    router = f"SwiGLU x {moa.router_factor}" if moa.router_factor else "linear"
    parts = [
        f"{moa.variant} gates by a {router} router at {moa.router_input}",
        f"bottleneck {moa.parallel}" if moa.parallel else "",
        f"prompt {moa.prompt}" if moa.prompt else "",
        f"own ranks {', '.join(moa.ranks)}" if moa.ranks else "",
    ]
    if moa.variant == "sparse":
        slope = f" of width {moa.temperature:g}" if moa.threshold == "straight_through" else ""
        parts.append(f"threshold at most {moa.gamma_max:g}, {moa.threshold}{slope}")
    return ", ".join(part for part in parts if part)
