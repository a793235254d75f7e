"""The engine serves what AdaMix trained, with the logits of training: the mean, and kept copies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptermix.training.recipes.adamix import AdamixTrainee, adamix_recipe
from adaptermix.training.settings import AdamixSettings
from tests.adaptermix.training.conftest import MakeRun
from tests.support.harness import EngineHarness, request
from tests.support.oracle import assert_agrees, greedy
from tests.support.tiny import save_family

PROMPT = list(range(5, 30))
PLAIN: Mapping[str, Any] = {"rank": 8, "alpha": 16.0, "dropout": 0.0}


@pytest.mark.parametrize(
    ("family", "adamix", "lora"),
    [
        ("llama", AdamixSettings(kind="bottleneck", size=6, copies=3, draws=0), PLAIN),
        ("gpt2", AdamixSettings(kind="bottleneck", size=6, copies=3, draws=0), PLAIN),
        ("qwen3", AdamixSettings(kind="bottleneck", copies=1, consistency=0), PLAIN),
        ("llama", AdamixSettings(copies=3, share="up", draws=0), {"rank": 4, "rslora": True}),
        (
            "gpt2",
            AdamixSettings(copies=3, share="down", draws=0),
            {"targets": ("c_attn", "mlp.c_proj")},
        ),
    ],
    ids=["bottleneck", "bottleneck-gpt2", "one", "lora", "lora-gpt2"],
)
def test_the_mean_and_the_copies_are_served_as_trained(
    family: str,
    adamix: AdamixSettings,
    lora: Mapping[str, Any],
    make_run: MakeRun,
    tmp_path: Path,
) -> None:
    base = save_family(tmp_path / "base", family)
    trainee = adamix_recipe(adamix).build(make_run(base=str(base), lora=lora))
    assert isinstance(trainee, AdamixTrainee)
    chance = torch.Generator().manual_seed(3)
    for parameter in trainee.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2, generator=chance)
    trainee.model.eval()
    expected = greedy(trainee.model, PROMPT, 12)  # outside of draws: the mean of the copies
    trainee.experts.save_copies(tmp_path / "copies")
    trainee.finish(tmp_path / "mean", lambda: None)
    trainee.save(tmp_path / "mean")

    harness = EngineHarness(tmp_path / "engine", base)
    mean, copies = (harness.publish(name, tmp_path / name) for name in ("mean", "copies"))
    served, kept, alone = harness.run(
        request("mean", PROMPT, {mean: 1.0}),
        request("copies", PROMPT, {copies: 1.0}),
        request("base alone", PROMPT),
    )
    assert_agrees(served, *expected, tolerance=1e-5)
    assert_agrees(kept, *expected, tolerance=1e-5)
    assert served.logprobs != alone.logprobs
    harness.close()
