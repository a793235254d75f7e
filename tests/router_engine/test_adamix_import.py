"""An imported AdaMix checkpoint in the engine gives the logits of AdaMix's own forward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptermix.training.importing.adamix.importer import import_adamix
from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from tests.router_engine.conftest import MakeHarness
from tests.support.adamix_bottleneck import bottleneck_model
from tests.support.adamix_checkpoint import (
    ALPHA,
    EXPERTS,
    adamix_model,
    save_checkpoint,
    state_of,
)
from tests.support.harness import Answer, request
from tests.support.oracle import assert_agrees, greedy, peft_model
from tests.support.tiny import family_model

PROMPT = list(range(5, 30))
SCORES = [0.4 * expert for expert in range(EXPERTS)]
VARIANTS: dict[str, dict[str, Any]] = {
    "B shared, as published": {"evaluated": True},
    "A shared": {"copies": (1, EXPERTS)},
    "none shared, tuned scores": {"copies": (EXPERTS, EXPERTS), "scores": SCORES},
    "alpha of the default": {"alpha": 128.0, "rank": 8},
}


def imported(folder: Path, model: Any, alpha: float = ALPHA, *, full: bool = False) -> Path:
    file = save_checkpoint(folder / "model.final.pt", state_of(model, full=full))
    return import_adamix(file, alpha, folder / f"alpha-{alpha:g}").folder


def disagrees(answer: Answer, model: Any) -> bool:
    """Whether the first token's log probability is off by far more than the bound."""
    _, rows = greedy(model, PROMPT, 1)
    token = answer.tokens[0]
    return abs(token.logprob - float(rows[0][token.token_id])) > 1e-2


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_engine_agrees_with_the_original_forward(
    options: dict[str, Any],
    make_harness: MakeHarness,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """In chunks of 10 tokens, beside a request to the base in the same batch."""
    model = adamix_model(**options)
    folder = imported(tmp_path, model, options.get("alpha", ALPHA), full=True)
    config = EngineConfig(
        cache=CacheConfig(num_blocks=64), scheduler=SchedulerConfig(max_step_tokens=10)
    )
    harness = make_harness(family_folder("gpt2"), config)
    digest = harness.publish("adamix", folder)
    answer, base = harness.run(request("adamix", PROMPT, {digest: 1.0}), request("base", PROMPT))
    ids, rows = greedy(model, PROMPT, 12)
    assert_agrees(answer, ids, rows)
    base_ids, base_rows = greedy(family_model("gpt2"), PROMPT, 12)
    assert_agrees(base, base_ids, base_rows)
    assert not torch.allclose(base_rows[0], rows[0], atol=0.01)


@pytest.mark.parametrize("how", ["averaged", "kept"])
@pytest.mark.parametrize("copies", [(EXPERTS, 1), (EXPERTS, EXPERTS)])
def test_the_engine_agrees_with_the_original_bottlenecks(
    copies: tuple[int, int],
    how: str,
    make_harness: MakeHarness,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Averaged at the import, or by the engine as it loads them."""
    model = bottleneck_model(copies=copies, scores=SCORES)
    file = save_checkpoint(tmp_path / "model.final.pt", state_of(model, full=True))
    folder = import_adamix(file, None, tmp_path / "out", keep_copies=how == "kept").folder
    harness = make_harness(family_folder("gpt2"))
    digest = harness.publish("soup", folder)
    answer, base = harness.run(request("soup", PROMPT, {digest: 1.0}), request("base", PROMPT))
    ids, rows = greedy(model, PROMPT, 12)
    assert_agrees(answer, ids, rows)
    base_ids, base_rows = greedy(family_model("gpt2"), PROMPT, 12)
    assert_agrees(base, base_ids, base_rows)
    assert not torch.allclose(base_rows[0], rows[0], atol=0.01)


def test_copies_of_a_lora_are_averaged_as_it_loads(
    make_harness: MakeHarness, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = adamix_model(copies=(EXPERTS, EXPERTS), scores=SCORES)
    file = save_checkpoint(tmp_path / "model.final.pt", state_of(model))
    folder = import_adamix(file, ALPHA, tmp_path / "out", keep_copies=True).folder
    harness = make_harness(family_folder("gpt2"))
    digest = harness.publish("adamix", folder)
    (answer,) = harness.run(request("adamix", PROMPT, {digest: 1.0}))
    assert_agrees(answer, *greedy(model, PROMPT, 12))


def test_one_expert_or_another_alpha_would_not_agree(
    make_harness: MakeHarness, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The negative controls: what an importer that averages nothing, or guesses alpha, would do."""
    model = adamix_model()
    harness = make_harness(family_folder("gpt2"))
    digest = harness.publish("adamix", imported(tmp_path, model))
    (answer,) = harness.run(request("r", PROMPT, {digest: 1.0}))
    assert not disagrees(answer, model)
    assert disagrees(answer, adamix_model(alpha=128.0))
    for block in model.transformer.h:
        for expert in block.attn.c_attn.experts_lora_A[1:]:
            expert.data.copy_(block.attn.c_attn.experts_lora_A[0])
    assert disagrees(answer, model)


def test_peft_reads_the_folder_as_the_original(tmp_path: Path) -> None:
    model = adamix_model(copies=(EXPERTS, EXPERTS), scores=SCORES)
    theirs = peft_model(family_model("gpt2"), [imported(tmp_path, model)])
    ids, rows = greedy(model, PROMPT, 4)
    peft_ids, peft_rows = greedy(theirs, PROMPT, 4)
    assert peft_ids == ids
    for row, expected in zip(peft_rows, rows, strict=True):
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-4)
