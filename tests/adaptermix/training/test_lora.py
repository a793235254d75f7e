"""The LoRA recipe on a tiny model: it learns, repeats, resumes, and writes a whole adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from adaptermix.training.errors import CheckpointError, TrainingError
from adaptermix.training.loop import StepReport
from adaptermix.training.recipes.lora import train_lora
from router_engine.model.tiny import tiny_model
from tests.adaptermix.training.conftest import MakeRun
from tests.support.tiny import save_family


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "adapter_model.safetensors"))


def _same(left: Path, right: Path) -> bool:
    ours, theirs = _tensors(left), _tensors(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_training_lowers_the_loss(make_run: MakeRun, tmp_path: Path) -> None:
    outcome = train_lora(make_run(), tmp_path / "a")
    assert outcome.dev_before is not None
    assert outcome.dev_after is not None
    assert outcome.dev_after < 0.6 * outcome.dev_before
    assert outcome.steps == len(outcome.losses)
    assert (outcome.train_rows, outcome.dev_rows, outcome.left_out) == (56, 8, 0)


def test_equal_seeds_give_equal_adapters_and_leave_the_random_state(
    make_run: MakeRun, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_lora(make_run(loop={"seed": seed}), tmp_path / name)
    assert torch.equal(state, torch.get_rng_state())
    assert _same(tmp_path / "a", tmp_path / "b")
    assert not _same(tmp_path / "a", tmp_path / "c")
    config = "adapter_config.json"
    assert (tmp_path / "a" / config).read_bytes() == (tmp_path / "b" / config).read_bytes()


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    make_run: MakeRun, tmp_path: Path
) -> None:
    def interrupt(report: StepReport) -> None:
        if report.step == 7:
            raise KeyboardInterrupt

    whole = train_lora(make_run(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_lora(make_run(), tmp_path / "cut", checkpoint_every=3, on_step=interrupt)
    assert not (tmp_path / "cut" / "adapter_model.safetensors").exists()
    steps: list[int] = []
    resumed = train_lora(
        make_run(), tmp_path / "cut", on_step=lambda report: steps.append(report.step)
    )
    assert steps[0] == 7  # the checkpoint stands after step 6
    assert resumed.losses == whole.losses
    assert resumed.dev_before == whole.dev_before
    assert _same(tmp_path / "whole", tmp_path / "cut")
    assert not (tmp_path / "cut" / "checkpoint.pt").exists()


def test_a_checkpoint_of_another_run_is_refused_unless_restarted(
    make_run: MakeRun, tmp_path: Path
) -> None:
    def interrupt(report: StepReport) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        train_lora(make_run(), out, checkpoint_every=1, on_step=interrupt)
    other = make_run(lora={"rank": 2})
    with pytest.raises(CheckpointError, match=r"rank \(then 4, now 2\)"):
        train_lora(other, out)
    train_lora(other, out, restart=True)
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2


def test_a_checkpoint_of_another_version_is_refused_unless_restarted(
    make_run: MakeRun, tmp_path: Path
) -> None:
    torch.save({"settings": {}, "step": 3}, tmp_path / "checkpoint.pt")
    run = make_run(data={"max_rows": 8})
    with pytest.raises(CheckpointError, match="of another version of the program: restart"):
        train_lora(run, tmp_path)
    assert train_lora(run, tmp_path, restart=True).losses


def test_the_adapter_loads_with_peft_and_changes_the_logits(
    make_run: MakeRun, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    train_lora(make_run(lora={"rslora": True, "targets": ("q_proj", "down_proj")}), out)
    assert {tensor.dtype for tensor in _tensors(out).values()} == {torch.float32}
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert (config["use_rslora"], config["lora_alpha"], config["r"]) == (True, 8, 4)
    tokens = torch.arange(20, 40)[None]
    with torch.no_grad():
        plain = tiny_model()(tokens).logits
        adapted = PeftModel.from_pretrained(tiny_model(), str(out))(tokens).logits
    assert (plain - adapted).abs().max() > 0.1


def test_the_card_and_the_texts_say_what_was_done(
    make_run: MakeRun, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    outcome = train_lora(make_run(), out)
    card = (out / "README.md").read_text()
    for part in (
        "**CC0**",
        f"{rows_file.parent.name}/train.jsonl.gz",
        "56 to train, 8 for dev",
        "rank 4, alpha 8",
        f"{outcome.dev_before:.4f} before, {outcome.dev_after:.4f} after",
    ):
        assert part in card
    assert str(tmp_path) not in card
    texts = [json.loads(line) for line in (out / "texts.jsonl").read_text().splitlines()]
    assert len(texts) == 5
    assert all(set(text) == {"text"} and ": yes " in text["text"] for text in texts)
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_texts_that_are_there_stay_when_none_are_asked_for(
    make_run: MakeRun, tmp_path: Path
) -> None:
    own = tmp_path / "a" / "texts.jsonl"
    own.parent.mkdir()
    own.write_text('{"text": "mine"}\n')
    train_lora(make_run(data={"sample_texts": 0, "max_rows": 8}), own.parent)
    assert own.read_text() == '{"text": "mine"}\n'


def test_a_target_that_is_not_there_is_refused_with_those_that_are(
    make_run: MakeRun, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"'c_attn' is no linear layer of tiny: use .*q_proj"):
        train_lora(make_run(lora={"targets": ("c_attn",)}), tmp_path / "a")


def test_layers_that_keep_their_weights_transposed_are_trained(
    make_run: MakeRun, tmp_path: Path
) -> None:
    base = save_family(tmp_path / "gpt2", "gpt2")
    run = make_run(base=str(base), lora={"targets": ("c_attn",)}, data={"max_rows": 16})
    train_lora(run, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["fan_in_fan_out"]


def test_bfloat16_trains_with_fp32_adapter_weights(make_run: MakeRun, tmp_path: Path) -> None:
    outcome = train_lora(make_run(dtype="bfloat16"), tmp_path / "a")
    assert {tensor.dtype for tensor in _tensors(tmp_path / "a").values()} == {torch.bfloat16}
    assert outcome.dev_before is not None
    assert outcome.dev_after is not None
    assert outcome.dev_after < 0.6 * outcome.dev_before
