"""The engine serves what the MoA recipes trained, with the logits of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapters_store.errors import InvalidAdapterError
from tests.support.harness import EngineHarness, request
from tests.support.oracle import assert_agrees, greedy
from tests.support.tiny import save_family
from tests.training.conftest import MakeRun
from tests.training.test_moa_forward import LORA, stir
from training.moa.building import moa_model, moe_lora_model
from training.moa.folder import save_moa
from training.moa.model import MoaModel
from training.settings import MoaSettings, MoeLoraSettings, RunSettings

Make = Callable[[RunSettings], MoaModel]
MODELS: dict[str, tuple[str, Make]] = {
    "soft": ("llama", lambda run: moa_model(run, MoaSettings(prompt=5, router_factor=0))),
    "pre_norm": ("llama", lambda run: moa_model(run, MoaSettings(router_input="pre_norm"))),
    "sparse": ("llama", lambda run: moa_model(run, MoaSettings(variant="sparse"))),
    "constant": (
        "llama",
        lambda run: moa_model(run, MoaSettings(variant="sparse", threshold="constant")),
    ),
    "moe-lora": ("llama", lambda run: moe_lora_model(run, MoeLoraSettings())),
    "gpt2": ("gpt2", lambda run: moa_model(run, MoaSettings(variant="sparse"))),
    "qwen3": ("qwen3", lambda run: moa_model(run, MoaSettings(prompt=3))),
}


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
    expected = greedy(model, prompt, 12)

    harness = EngineHarness(tmp_path / "engine", base)
    digest = harness.publish("mixed", folder)
    mixed, alone = harness.run(
        request("mixed", prompt, {digest: 1.0}), request("base alone", prompt)
    )
    assert_agrees(mixed, *expected, tolerance=1e-5)
    assert mixed.logprobs != alone.logprobs
    harness.close()


def test_gates_of_whole_prompts_are_published_by_no_mistake(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(lora=LORA)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_moa(moa_model(run, MoaSettings(variant="instance")), folder, "float32")
    harness = EngineHarness(tmp_path / "engine", run.base)
    with pytest.raises(InvalidAdapterError, match="gates of whole prompts"):
        harness.publish("instance", folder)
    harness.close()
