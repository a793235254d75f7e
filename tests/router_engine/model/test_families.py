"""Each supported family, base and under a LoRA, token by token against transformers and PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig

from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from router_engine.errors import UnsupportedModelError
from router_engine.model.loader import check_supported
from tests.router_engine.conftest import ALL_LINEARS, MakeEngine
from tests.router_engine.paths import EnginePath
from tests.support.harness import request
from tests.support.oracle import assert_agrees, greedy
from tests.support.tiny import FAMILIES, make_lora_folder

PROMPTS = [list(range(5, 30)), [40, 41, 42], list(range(100, 137))]


def _targets(family: str) -> tuple[str, ...]:
    names = ("c_attn", "c_proj", "c_fc") if family == "gpt2" else ALL_LINEARS
    # A tied lm_head is left out: PEFT itself warns about adapters on tied layers.
    return names if family in ("gpt2", "llama-tied") else (*names, "lm_head")


@pytest.mark.parametrize("family", FAMILIES)
def test_base_matches_generate(family: str, path: EnginePath, make_engine: MakeEngine) -> None:
    """Chunked prefill of 10 tokens a step, three requests in one batch."""
    prompts = [path.short(prompt) for prompt in PROMPTS]
    config = EngineConfig(
        cache=CacheConfig(num_blocks=64), scheduler=SchedulerConfig(max_step_tokens=10)
    )
    engine = make_engine(family, config)
    answers = engine.run(
        *(request(f"r{i}", prompt, max_new_tokens=path.tokens) for i, prompt in enumerate(prompts))
    )
    model = path.base(family)
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=path.tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert answer.ids == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_matches_peft(
    family: str, path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    options = {"fan_in_fan_out": True} if family == "gpt2" else {}
    folder = make_lora_folder(
        tmp_path / "lora", family=family, rank=6, targets=_targets(family), options=options
    )
    prompts = [path.short(prompt) for prompt in PROMPTS]
    engine = make_engine(family)
    digest = engine.publish("lora", folder)
    answers = engine.run(
        *(
            request(f"r{i}", prompt, {digest: 1.0}, max_new_tokens=path.tokens)
            for i, prompt in enumerate(prompts)
        )
    )
    model = path.peft(family, [folder])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, rows = greedy(model, prompt, path.tokens)
        assert_agrees(answer, ids, rows, path.tolerance)
        with model.disable_adapter():  # negative control: the adapter does something
            _, base_rows = greedy(model, prompt, 1)
        assert not torch.allclose(base_rows[0], rows[0], atol=0.01)


def test_unknown_architecture_is_refused_by_name() -> None:
    config = GPTNeoXConfig(architectures=[GPTNeoXForCausalLM.__name__])
    with pytest.raises(UnsupportedModelError, match=r"GPTNeoXForCausalLM.*LlamaForCausalLM"):
        check_supported(config)


def test_rope_that_depends_on_the_batch_is_refused() -> None:
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    )
    with pytest.raises(UnsupportedModelError, match=r"dynamic.*default"):
        check_supported(config)
