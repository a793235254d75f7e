"""The AdaMix recipe: two passes, resuming, the merged folder, and the engine that serves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from adaptermix.training.data import Example
from adaptermix.training.errors import CheckpointError, TrainingError
from adaptermix.training.loop import StepReport
from adaptermix.training.loss import Batch, collate, completion_nll
from adaptermix.training.recipes.adamix import (
    AdamixTrainee,
    adamix_recipe,
    copies_folder,
    train_adamix,
)
from adaptermix.training.recipes.lora import train_lora
from adaptermix.training.settings import AdamixSettings, RunSettings
from adapters_store.expert_kinds.base import Copies
from adapters_store.manifest import manifest_from_json
from router_engine.model.tiny import tiny_model
from tests.adaptermix.training.conftest import MakeRun
from tests.support.harness import EngineHarness, request
from tests.support.oracle import assert_agrees, greedy

SHORT: dict[str, Any] = {"data": {"max_rows": 24, "epochs": 2}}
EXAMPLES = [
    Example(tuple(range(10, 30)), prompt_length=15),
    Example(tuple(range(40, 47)), prompt_length=1),
]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "adapter_model.safetensors"))


def _same(left: Path, right: Path) -> bool:
    ours, theirs = _tensors(left), _tensors(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def _trainee(settings: RunSettings, adamix: AdamixSettings) -> AdamixTrainee:
    """A trainee in the middle of its training: no B is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        trainee = adamix_recipe(adamix).build(settings)
        assert isinstance(trainee, AdamixTrainee)
        for name, parameter in trainee.model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2 if "lora_B" in name else 0.1)
    return trainee


def _batch() -> Batch:
    return collate(EXAMPLES, torch.device("cpu"))


def test_a_step_is_the_first_passs_loss_and_the_weighted_distance(make_run: MakeRun) -> None:
    """Against logits of unpadded rows under the same draws, and a KL written out."""
    trainee = _trainee(make_run(lora={"dropout": 0.0}), AdamixSettings(consistency=3.0))
    same = _trainee(make_run(lora={"dropout": 0.0}), AdamixSettings(consistency=3.0))
    losses = trainee.losses(_batch())
    batch = _batch()
    passes = []
    with same.draws.random(), torch.no_grad():
        for _ in range(2):
            logits = same.model(
                input_ids=batch.tokens,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
            ).logits
            rows = [
                logits[row, -example.completion_length - 1 : -1]
                for row, example in enumerate(EXAMPLES)
            ]
            passes.append(torch.cat(rows).log_softmax(dim=-1))
    targets = torch.tensor([t for e in EXAMPLES for t in e.tokens[e.prompt_length :]])
    p, q = passes
    task = -p[torch.arange(len(targets)), targets].mean()
    kl = 0.5 * ((q.exp() * (q - p)).sum() + (p.exp() * (p - q)).sum()) / len(targets)
    torch.testing.assert_close(losses.shown["loss"], task, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.shown["consistency"], kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.total, task + 3.0 * kl, rtol=1e-4, atol=1e-5)
    assert kl > 0.01  # the passes differ


def test_without_consistency_there_is_one_pass(make_run: MakeRun) -> None:
    settings = make_run(lora={"dropout": 0.0})
    with_one, with_two = (
        _trainee(settings, AdamixSettings(consistency=weight)) for weight in (0.0, 1.0)
    )
    one, two = with_one.losses(_batch()), with_two.losses(_batch())
    assert set(one.shown) == {"loss"}
    assert torch.equal(one.total, two.shown["loss"])
    states = [trainee.draws.generator.get_state() for trainee in (with_one, with_two)]
    assert not torch.equal(*states)
    with_one.losses(_batch())
    assert torch.equal(with_one.draws.generator.get_state(), states[1])


def test_one_copy_without_consistency_is_plain_lora(make_run: MakeRun, tmp_path: Path) -> None:
    plain = train_lora(make_run(**SHORT), tmp_path / "lora")
    adamix = AdamixSettings(copies=1, consistency=0, share="none")
    ours = train_adamix(make_run(**SHORT), tmp_path / "one", adamix=adamix)
    assert ours.losses == plain.losses
    assert _same(tmp_path / "lora", tmp_path / "one")
    train_adamix(make_run(**SHORT), tmp_path / "more", adamix=AdamixSettings(consistency=0))
    assert not _same(tmp_path / "lora", tmp_path / "more")


@pytest.mark.parametrize(
    "adamix",
    [
        AdamixSettings(consistency=1),
        AdamixSettings(
            copies=3, share="none", routing="example", init="independent", consistency=1
        ),
    ],
    ids=["batch", "example"],
)
def test_training_lowers_the_loss(
    adamix: AdamixSettings, make_run: MakeRun, tmp_path: Path
) -> None:
    outcome = train_adamix(make_run(), tmp_path / "a", adamix=adamix)
    assert outcome.dev_before is not None
    assert outcome.dev_after is not None
    assert outcome.dev_after < 0.8 * outcome.dev_before
    assert len(outcome.losses) == len(outcome.curves["consistency"]) == outcome.steps
    assert max(outcome.curves["consistency"]) > 0


@pytest.mark.parametrize("routing", ["batch", "example"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    routing: Any, make_run: MakeRun, tmp_path: Path
) -> None:
    def interrupt(report: StepReport) -> None:
        if report.step == 5:
            raise KeyboardInterrupt

    adamix = AdamixSettings(routing=routing, share="none", consistency=2)
    whole = train_adamix(make_run(**SHORT), tmp_path / "whole", adamix=adamix)
    with pytest.raises(KeyboardInterrupt):
        train_adamix(
            make_run(**SHORT),
            tmp_path / "cut",
            adamix=adamix,
            checkpoint_every=3,
            on_step=interrupt,
        )
    steps: list[int] = []
    resumed = train_adamix(
        make_run(**SHORT),
        tmp_path / "cut",
        adamix=adamix,
        on_step=lambda report: steps.append(report.step),
    )
    assert steps[0] == 4  # the checkpoint stands after step 3
    assert resumed.curves == whole.curves
    assert resumed.dev_before == whole.dev_before
    assert resumed.notes == whole.notes
    assert _same(tmp_path / "whole", tmp_path / "cut")


def test_a_checkpoint_under_other_copies_or_of_plain_lora_is_refused(
    make_run: MakeRun, tmp_path: Path
) -> None:
    def interrupt(report: StepReport) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        train_adamix(
            make_run(), out, adamix=AdamixSettings(), checkpoint_every=1, on_step=interrupt
        )
    with pytest.raises(CheckpointError, match=r"copies \(then 4, now 2\)"):
        train_adamix(make_run(), out, adamix=AdamixSettings(copies=2))
    with pytest.raises(CheckpointError, match=r"routing \(then 'batch', now None\)"):
        train_lora(make_run(), out)


def test_random_draws_are_measured_from_seeds_of_their_own(make_run: MakeRun) -> None:
    trainee = _trainee(make_run(), AdamixSettings(draws=3))
    trainee.model.eval()
    before = trainee.draws.generator.get_state()

    def dev_nll() -> float:
        with torch.no_grad():
            return float(completion_nll(trainee.model, _batch()).sum())

    drawn = trainee.nll_of_draws(dev_nll)
    assert len(set(drawn)) == 3
    assert trainee.nll_of_draws(dev_nll) == drawn
    assert dev_nll() not in drawn  # the mean of the copies
    assert torch.equal(trainee.draws.generator.get_state(), before)
    assert trainee.nll_of_draws(lambda: None) == []


def test_copies_are_kept_beside_a_folder_that_holds_their_mean(
    make_run: MakeRun, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    adamix = AdamixSettings(copies=3, keep_copies=True)
    outcome = train_adamix(make_run(**SHORT), out, adamix=adamix)
    assert copies_folder(out) == tmp_path / "a.copies"
    manifest = manifest_from_json((copies_folder(out) / "adaptermix.json").read_bytes())
    kept, merged = _tensors(copies_folder(out)), _tensors(out)
    assert len(manifest.lora_experts) == len(merged) // 2
    for expert in manifest.lora_experts:
        assert expert.copies == Copies(down=(1 / 3,) * 3, up=(1.0,))
        assert (expert.rank, expert.scale) == (4, 2.0)
        down, up = kept.pop(expert.tensor_a), kept.pop(expert.tensor_b)
        assert down.shape == (3, 4, expert.in_features)
        assert up.shape == (1, expert.out_features, 4)
        assert not torch.equal(down[0], down[1])  # routing told them apart
        stem = f"base_model.model.{expert.module}"
        torch.testing.assert_close(merged[f"{stem}.lora_A.weight"], down.mean(dim=0))
        torch.testing.assert_close(merged[f"{stem}.lora_B.weight"], up[0])
    assert not kept
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.png",
        "texts.jsonl",
    ]
    card = (out / "README.md").read_text()
    assert "`adaptermix train adamix`" in card
    assert "| AdaMix | mean of 3 A and 1 B, drawn for each batch, shared initial weights" in card
    assert f"| random draws | {outcome.notes['random draws']} |" in card


def test_the_engine_serves_what_was_trained(make_run: MakeRun, tmp_path: Path) -> None:
    """The copies' mean in training against PEFT on the folder, and the engine on the store."""
    settings = make_run(lora={"targets": ("q_proj", "v_proj", "down_proj"), "rslora": True})
    trainee = _trainee(settings, AdamixSettings(copies=3, share="none", draws=0))
    folder = tmp_path / "adapter"
    trainee.model.eval()
    tokens = torch.arange(20, 40)[None]
    prompt = list(range(5, 30))
    with torch.no_grad():
        in_training = trainee.model(tokens).logits
        with trainee.draws.random():
            drawn = trainee.model(tokens).logits
    expected = greedy(trainee.model, prompt, 12)
    trainee.finish(folder, lambda: None)
    trainee.save(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    with torch.no_grad():
        served = PeftModel.from_pretrained(tiny_model(), str(folder)).eval()(tokens).logits
        plain = tiny_model()(tokens).logits
    largest = served.abs().max()
    assert (served - in_training).abs().max() <= 1e-5 * largest
    assert (served - drawn).abs().max() > 1e-2 * largest  # negative control
    assert (served - plain).abs().max() > 1e-2 * largest

    harness = EngineHarness(tmp_path / "engine", settings.base)
    digest = harness.publish("mixed", folder)
    mixed, base = harness.run(
        request("mixed", prompt, {digest: 1.0}), request("base alone", prompt)
    )
    assert_agrees(mixed, *expected, tolerance=1e-5)
    assert mixed.logprobs != base.logprobs
    harness.close()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"copies": 0}, "copies is 0; it must be at least 1"),
        ({"consistency": -1.0}, "consistency is -1.0; it must be a number of at least 0"),
        ({"consistency": float("nan")}, "consistency is nan"),
        ({"draws": -1}, "draws is -1; it must be at least 0"),
        ({"share": "both"}, "share is 'both'; it must be none, down or up"),
        ({"routing": "token"}, "routing is 'token'; it must be batch or example"),
        ({"init": "zero"}, "init is 'zero'; it must be shared or independent"),
        ({"kind": "prefix"}, "kind is 'prefix'; it must be lora or bottleneck"),
        ({"size": 8}, "size is 8; it must be left out with LoRA"),
        ({"kind": "bottleneck", "size": 0}, "size is 0; it must be at least 1"),
        (
            {"kind": "bottleneck", "init": "shared"},
            "init is 'shared'; it must be independent for bottlenecks",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        AdamixSettings(**wrong)


@pytest.mark.parametrize("alone", [{"share": "down"}, {"copies": 1}])
def test_independent_copies_of_one_a_are_refused(alone: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"init is 'independent'.*one copy of A"):
        AdamixSettings(init="independent", **alone)
