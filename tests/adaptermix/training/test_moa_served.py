"""The engine serves what the MoA recipes trained, with the logits of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptermix.training.moa.building import moa_model, moe_lora_model
from adaptermix.training.moa.folder import save_moa
from adaptermix.training.moa.model import MoaModel
from adaptermix.training.settings import MoaSettings, MoeLoraSettings, RunSettings
from tests.adaptermix.training.conftest import MakeRun
from tests.adaptermix.training.test_moa_forward import LORA, stir
from tests.support.harness import EngineHarness, request
from tests.support.oracle import assert_agrees, greedy
from tests.support.tiny import save_family

Make = Callable[[RunSettings], MoaModel]
MODELS: dict[str, tuple[str, Make]] = {
    "soft": ("llama", lambda run: moa_model(run, MoaSettings(prompt=5, router_factor=0))),
    "pre_norm": ("llama", lambda run: moa_model(run, MoaSettings(router_input="pre_norm"))),
    "sparse": ("llama", lambda run: moa_model(run, MoaSettings(variant="sparse"))),
    "constant": (
        "llama",
        lambda run: moa_model(run, MoaSettings(variant="sparse", threshold="constant")),
    ),
    "instance": ("llama", lambda run: moa_model(run, MoaSettings(variant="instance", prompt=3))),
    "moe-lora": ("llama", lambda run: moe_lora_model(run, MoeLoraSettings())),
    "gpt2": ("gpt2", lambda run: moa_model(run, MoaSettings(variant="sparse"))),
    "qwen3": ("qwen3", lambda run: moa_model(run, MoaSettings(prompt=3))),
}


def told(model: MoaModel, prompt_length: int) -> Callable[..., Any]:
    """`model`, which hears where the prompt ends if it asks for that."""

    def call(input_ids: Tensor, **options: Any) -> Any:
        if model.takes_prompt_mask:
            is_prompt = torch.arange(input_ids.shape[1]) < prompt_length
            options["prompt_mask"] = is_prompt[None].long()
        return model(input_ids, **options)

    return call


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_serves_what_was_trained(name: str, make_run: MakeRun, tmp_path: Path) -> None:
    family, make = MODELS[name]
    base = save_family(tmp_path / "base", family)
    lora = {**LORA, "targets": ("c_attn", "mlp.c_proj")} if family == "gpt2" else LORA
    model = stir(make(make_run(base=str(base), lora=lora))).eval()
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_moa(model, folder, "float32")
    prompt = list(range(5, 30))
    expected = greedy(told(model, len(prompt)), prompt, 12)

    harness = EngineHarness(tmp_path / "engine", base)
    digest = harness.publish("mixed", folder)
    mixed, alone = harness.run(
        request("mixed", prompt, {digest: 1.0}), request("base alone", prompt)
    )
    assert_agrees(mixed, *expected, tolerance=1e-5)
    assert mixed.logprobs != alone.logprobs
    harness.close()
