"""Each kind of expert and of router in a served model, token by token against its equation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.router_engine.conftest import MakeEngine
from tests.router_engine.experts.conftest import PATHS
from tests.router_engine.paths import EnginePath, path_params
from tests.support.expert_adapters import (
    GPT2_TARGETS,
    LORA,
    MOE_LORA,
    NATIVE,
    PARALLEL,
    PROMPT,
    SERIAL,
    SOFT,
    SPARSE,
    Layers,
    make_expert_folder,
)
from tests.support.expert_oracle import with_experts
from tests.support.harness import request
from tests.support.oracle import assert_agrees, greedy

# An interpreter has no time for all kinds alone; the mixed batch shows them together.
FAST_PATHS = path_params(*(path for path in PATHS if path.every == 1))
PROMPTS = [list(range(5, 30)), [40, 41, 42]]

KINDS = {
    "lora": LORA,
    "parallel": PARALLEL,
    "parallel-gelu": replace(PARALLEL, activation="gelu", biases=False),
    "serial": SERIAL,
    "serial-relu": replace(SERIAL, activation="relu"),
    "serial-after-lora": replace(SERIAL, targets=("down_proj",), parallel=4),
    "prompt": PROMPT,
    "soft": SOFT,
    "soft-pre-norm": replace(SOFT, router="swiglu", router_input="pre_norm"),
    "sparse": SPARSE,
    "sparse-constant": replace(SPARSE, router="linear", threshold=0.5, threshold_net=False),
    "native": NATIVE,
    "moe-lora": MOE_LORA,
    "moe-lora-all": replace(MOE_LORA, top_k=None),
    "copies": replace(SERIAL, targets=("q_proj", "v_proj"), copies=3),
    "upper-half": replace(NATIVE, first_layer=1),
}
GPT2_KINDS = {
    "lora": replace(LORA, targets=GPT2_TARGETS),
    "serial": SERIAL,
    "parallel": PARALLEL,
    "sparse": replace(SPARSE, targets=GPT2_TARGETS),
}


def _check(
    family: str, layers: Layers, path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    folder = make_expert_folder(tmp_path / "adapter", layers, family=family, seed=2)
    prompts = [path.short(prompt) for prompt in PROMPTS]
    engine = make_engine(family)
    digest = engine.publish("adapter", folder)
    answers = engine.run(
        *(
            request(f"r{i}", prompt, {digest: 0.8}, max_new_tokens=path.tokens)
            for i, prompt in enumerate(prompts)
        )
    )
    model = with_experts(path.base(family), [(folder, 0.8)])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, rows = greedy(model, prompt, path.tokens)
        assert_agrees(answer, ids, rows, path.tolerance)
        _, base_rows = greedy(path.base(family), prompt, 1)
        assert not torch.allclose(base_rows[0], rows[0], atol=0.01)  # negative control


@pytest.mark.parametrize("path", FAST_PATHS, indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_match_their_equations(
    kind: str, path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    _check("llama", KINDS[kind], path, make_engine, tmp_path)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_biases_and_norms_of_the_base_act_on_prompts(
    family: str, path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """Qwen 2 has biases on k and v, Qwen 3 a norm on k."""
    _check(family, NATIVE, path, make_engine, tmp_path)


@pytest.mark.parametrize("path", FAST_PATHS, indirect=True)
@pytest.mark.parametrize("kind", GPT2_KINDS)
def test_gpt2(kind: str, path: EnginePath, make_engine: MakeEngine, tmp_path: Path) -> None:
    _check("gpt2", GPT2_KINDS[kind], path, make_engine, tmp_path)
