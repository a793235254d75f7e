"""The MoA recipes: they learn, resume, measure their gates, and write whole folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adaptermix.training.errors import CheckpointError, TrainingError
from adaptermix.training.loop import StepReport
from adaptermix.training.moa.budget import (
    lora_of_size,
    lora_parameters,
    moe_lora_of_size,
    parameters,
    shape_of_base,
)
from adaptermix.training.moa.building import moa_model, moe_lora_model
from adaptermix.training.moa.folder import load_moa
from adaptermix.training.moa.gates import GateSummary, mean_and_spread
from adaptermix.training.moa.plan import moa_manifest, moe_lora_manifest, shape_of
from adaptermix.training.recipes.moa import train_moa, train_moe_lora
from adaptermix.training.run import Outcome
from adaptermix.training.settings import (
    GatedLoraSettings,
    LoraSettings,
    MoaSettings,
    MoeLoraSettings,
)
from adapters_store.formats.tensor_file import TENSOR_FILE
from adapters_store.manifest import manifest_from_json
from tests.adaptermix.training.conftest import MakeRun
from tests.support.tiny import family_model

SHORT: dict[str, Any] = {"data": {"max_rows": 24, "epochs": 2}}
Train = Callable[..., Outcome]
RECIPES: dict[str, Train] = {
    "soft": partial(train_moa, moa=MoaSettings(prompt=3)),
    "sparse": partial(train_moa, moa=MoaSettings(variant="sparse", threshold="straight_through")),
    "frozen": partial(train_moa, moa=MoaSettings(variant="sparse", router_factor=0)),
    "instance": partial(train_moa, moa=MoaSettings(variant="instance")),
    "moe-lora": partial(train_moe_lora, moe=MoeLoraSettings()),
}


@pytest.fixture(params=list(RECIPES))
def train(request: pytest.FixtureRequest) -> Train:
    return RECIPES[request.param]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / TENSOR_FILE))


def test_training_lowers_the_loss(train: Train, make_run: MakeRun, tmp_path: Path) -> None:
    outcome = train(make_run(), tmp_path / "a")
    assert outcome.dev_before is not None
    assert outcome.dev_after is not None
    assert outcome.dev_after < 0.6 * outcome.dev_before
    for curve in ("loss", "gate mean", "gate std"):
        assert len(outcome.curves[curve]) == outcome.steps
    assert all(0 < value < 1 for value in outcome.curves["gate mean"])


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    train: Train, make_run: MakeRun, tmp_path: Path
) -> None:
    def interrupt(report: StepReport) -> None:
        if report.step == 5:
            raise KeyboardInterrupt

    whole = train(make_run(**SHORT), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(make_run(**SHORT), tmp_path / "cut", checkpoint_every=3, on_step=interrupt)
    steps: list[int] = []
    resumed = train(
        make_run(**SHORT), tmp_path / "cut", on_step=lambda report: steps.append(report.step)
    )
    assert steps[0] == 4  # the checkpoint stands after step 3
    assert resumed.curves == whole.curves
    assert resumed.notes == whole.notes
    ours, theirs = _tensors(tmp_path / "whole"), _tensors(tmp_path / "cut")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_under_other_experts_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    def interrupt(report: StepReport) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        RECIPES["soft"](make_run(), out, checkpoint_every=1, on_step=interrupt)
    with pytest.raises(CheckpointError, match=r"variant \(then 'soft', now 'sparse'\)"):
        RECIPES["sparse"](make_run(), out)
    with pytest.raises(CheckpointError, match=r"variant \(then 'soft', now None\)"):
        RECIPES["moe-lora"](make_run(), out)


def test_the_folder_is_whole_and_says_what_was_done(make_run: MakeRun, tmp_path: Path) -> None:
    out = tmp_path / "a"
    moa = MoaSettings(variant="sparse", ranks=("q_proj=2",), router_input="pre_norm")
    outcome = train_moa(make_run(**SHORT), out, moa=moa)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "adapter_model.safetensors",
        "adaptermix.json",
        "gates.png",
        "loss.png",
        "texts.jsonl",
    ]
    manifest = manifest_from_json((out / "adaptermix.json").read_bytes())
    assert json.loads((out / "adaptermix.json").read_bytes())["format"] == "adaptermix"
    assert manifest.base_model == "tiny"
    assert sum(tensor.numel() for tensor in _tensors(out).values()) == parameters(manifest)
    card = (out / "README.md").read_text()
    for part in (
        "library_name: adaptermix",
        "A MoA adapter for `tiny`, trained with `adaptermix train moa`",
        "| MoA | sparse gates by a SwiGLU x 4 router at pre_norm, bottleneck 16, ",
        "own ranks q_proj=2, threshold at most 0.5, frozen, LoRA of rank 4, alpha 8, ",
        f"| parameters | {parameters(manifest):,} of experts and routers |",
        f"| gates | {outcome.notes['gates']} |",
        "std over the experts of a token",
    ):
        assert part in card


def test_tensors_are_stored_in_the_bases_dtype(make_run: MakeRun, tmp_path: Path) -> None:
    train_moa(make_run(dtype="bfloat16", **SHORT), tmp_path, moa=MoaSettings(prompt=2))
    assert {tensor.dtype for tensor in _tensors(tmp_path).values()} == {torch.bfloat16}
    model = load_moa(tmp_path, make_run(dtype="bfloat16"))
    assert model(torch.arange(20, 40)[None]).logits.dtype == torch.bfloat16


def test_a_folder_without_a_manifest_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds no adaptermix\.json"):
        load_moa(tmp_path / "absent", make_run())


def test_statistics_of_gates() -> None:
    statistics = GateSummary()
    gates = torch.tensor([[[0.2, 0.6], [0.0, 0.4]], [[1.0, 1.0], [0.5, 0.7]]])  # 2 layers, 2 tokens
    statistics.add(gates[:, :1])
    statistics.add(gates[:, 1:])
    torch.testing.assert_close(statistics.means, torch.tensor([[0.1, 0.5], [0.75, 0.85]]))
    spread = (0.2 + 0.2 + 0.0 + 0.1) / 4  # half the distance of two gates
    assert statistics.spread == pytest.approx(spread)
    assert statistics.closed == pytest.approx(1 / 8)
    mean, same = mean_and_spread(gates)
    assert [mean.item(), same.item()] == pytest.approx([0.55, spread])


def test_gates_are_named_after_what_they_weigh(make_run: MakeRun) -> None:
    base = shape_of("tiny", family_model("llama"))
    moa = moa_manifest(base, GatedLoraSettings(), MoaSettings(prompt=2))
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "prompt", "down_proj", "parallel"]
    assert moa.gate_labels == tuple(names)
    moe = moe_lora_manifest(base, GatedLoraSettings(), MoeLoraSettings(experts=3))
    assert moe.gate_labels == ("0", "1", "2")


def test_a_budget_counts_what_trains_and_finds_the_nearest_rank(
    make_run: MakeRun, tiny_base: Path
) -> None:
    shape = shape_of_base(str(tiny_base))
    settings = make_run(lora={"targets": GatedLoraSettings().targets})
    for model in (
        moa_model(settings, MoaSettings(prompt=4, variant="sparse", threshold="straight_through")),
        moe_lora_model(settings, MoeLoraSettings()),
    ):
        learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert parameters(model.manifest) == learnt
    moa = parameters(moa_manifest(shape, GatedLoraSettings(), MoaSettings()))
    plain = lora_of_size(shape, LoraSettings(), moa)
    assert plain.alpha / plain.rank == 2
    one = lora_parameters(shape, LoraSettings(rank=1))
    assert lora_parameters(shape, plain) == plain.rank * one
    assert abs(lora_parameters(shape, plain) - moa) <= one / 2
    moe = MoeLoraSettings()
    mixed = moe_lora_of_size(shape, GatedLoraSettings(), moe, moa)
    sizes = [
        abs(parameters(moe_lora_manifest(shape, GatedLoraSettings(rank=rank), moe)) - moa)
        for rank in range(1, 20)
    ]
    assert mixed.rank == 1 + sizes.index(min(sizes))


@pytest.mark.parametrize(
    ("settings", "wrong", "told"),
    [
        (MoaSettings, {"variant": "hard"}, "variant is 'hard'; it must be soft, sparse or inst"),
        (MoaSettings, {"parallel": -1}, "parallel is -1; it must be at least 0"),
        (MoaSettings, {"router_input": "raw"}, "router_input is 'raw'; it must be pre_norm or"),
        (MoaSettings, {"threshold": "none"}, "threshold is 'none'; it must be frozen, straight"),
        (MoaSettings, {"gamma_max": 2.0}, "gamma_max is 2.0; it must be from 0 to 1"),
        (MoaSettings, {"gamma_max": 0.3}, "gamma_max is 0.3; it must be left at 0.5 where noth"),
        (MoaSettings, {"threshold": "constant"}, "threshold is 'constant'; it must be left at"),
        (MoaSettings, {"variant": "sparse", "temperature": 1.0}, "temperature is 1.0; it must be"),
        (MoaSettings, {"ranks": ("q_proj=0",)}, "ranks is .*; it must be as 'down_proj=16'"),
        (MoeLoraSettings, {"experts": 1}, "experts is 1; it must be at least 2"),
        (MoeLoraSettings, {"top_k": 5}, "top_k is 5; it must be from 1 to experts, 4"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    settings: type[Any], wrong: dict[str, Any], told: str
) -> None:
    with pytest.raises(TrainingError, match=told):
        settings(**wrong)
