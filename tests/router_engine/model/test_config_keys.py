"""A key of config.json acts as transformers' own code has it act, on every path: or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from router_engine.config import CacheConfig, EngineConfig, KernelConfig
from router_engine.model.tiny import tiny_tokenizer
from tests.router_engine.conftest import WITHOUT_DECODER, MakeHarness
from tests.support.harness import request
from tests.support.isas import here
from tests.support.oracle import assert_agrees, greedy
from tests.support.tiny import FAMILIES

PROMPT = [(7 * index) % 250 + 5 for index in range(60)]
NAMES = [family for family in FAMILIES if family != "llama-tied"]  # of which tying is a key


@dataclass(frozen=True)
class Case:
    """Keys on top of a family's config.json.

    plain: families that then have no decoder of ours. outside: they say how a caller wants to load
    or to be answered, not what the model is.
    """

    keys: dict[str, Any]
    plain: tuple[str, ...] = ()
    families: tuple[str, ...] = tuple(NAMES)
    outside: bool = False


LLAMAS = ("llama", "qwen2", "qwen3", "mistral")
NOT_MISTRAL = ("llama", "qwen2", "qwen3", "gpt2")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4}
CASES = [
    Case({}),
    Case({"sliding_window": 4}),
    Case({"sliding_window": None}),
    Case({**WINDOWS, "max_window_layers": 1}),
    # transformers makes another class of such a Mistral.
    Case({**WINDOWS, "layer_types": ["full_attention", "sliding_attention"]}, families=NOT_MISTRAL),
    Case({"attention_chunk_size": 4, "window_size": 4, "max_window_layers": 0}),
    Case({"hidden_act": "gelu"}, plain=LLAMAS),
    Case({"hidden_activation": "gelu", "activation": "relu"}),
    Case({"activation_function": "relu"}),
    Case({"partial_rotary_factor": 0.5, "rotary_dim": 8, "rotary_pct": 0.5}),
    Case({"rope_theta": 100.0}),
    Case({"rotary_emb_base": 100.0, "rope_local_base_freq": 100.0}),
    Case({"rope_scaling": {"type": "linear", "factor": 4.0}}, families=LLAMAS),
    Case({"rope_scaling": LLAMA3}, families=LLAMAS),
    Case({"rope_scaling": YARN}, families=LLAMAS),
    Case({"rope_parameters": {**YARN, "rope_theta": 1e4}}),
    Case({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, families=("gpt2",)),
    Case({"attention_bias": True}),
    Case({"mlp_bias": True}),
    Case({"qkv_bias": False, "use_bias": True, "bias": True, "lm_head_bias": True}),
    Case({"head_dim": 32}),
    Case({"num_key_value_heads": 1}),
    Case({"num_key_value_heads": 4}),
    Case({"multi_query": True, "num_kv_heads": 1, "n_head_kv": 1}),
    Case({"rms_norm_eps": 0.5}),
    Case({"layer_norm_epsilon": 0.5}),
    Case({"layer_norm_eps": 0.5, "norm_eps": 0.5, "norm_epsilon": 0.5}),
    Case({"attention_multiplier": 3.0, "residual_multiplier": 0.2}),
    Case({"embedding_multiplier": 12.0, "logits_scaling": 8.0, "logit_scale": 0.1}),
    Case({"final_logit_softcapping": 0.5, "attn_logit_softcapping": 0.5}),
    Case({"query_pre_attn_scalar": 2, "scale_emb": 12.0, "scale_depth": 1.4, "clip_qkv": 0.01}),
    Case({"use_qk_norm": True, "qk_layernorm": True, "qk_norm": True}),
    Case({"scale_attn_weights": False}),
    Case({"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    Case({"tie_word_embeddings": True}),
    Case({"tie_word_embeddings": False}, families=("qwen2", "mistral", "llama", "qwen3")),
    Case({"n_inner": 96}),
    Case({"n_head": 2, "n_layer": 2}, families=LLAMAS),
    Case({"n_head": 2}, families=("gpt2",)),
    Case({"n_positions": 9}, families=LLAMAS),
    Case({"return_dict": False}, outside=True),
    Case({"output_attentions": True}, outside=True),
    Case({"output_hidden_states": True, "use_cache": False}, outside=True),
    Case({"_attn_implementation": "eager"}, outside=True),
    Case({"attn_implementation": "flash_attention_2"}, outside=True),
    Case({"is_decoder": True, "is_encoder_decoder": True}),
    Case({"attention_dropout": 0.5, "attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}),
    Case({"pretraining_tp": 2, "num_experts": 4, "num_local_experts": 2}),
    Case({"pad_token_id": None, "eos_token_id": [2, 7]}),
    Case({"torch_dtype": "float32"}),
    Case({"quantization_config": None, "pruned_heads": {}}),
]


def save_with(folder: Path, family: str, keys: dict[str, Any]) -> Path:
    """A checkpoint of a family whose config.json has `keys` too, as written."""
    tiny_tokenizer().save_pretrained(folder)
    FAMILIES[family]().save_pretrained(folder)
    add_keys(folder, keys)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        for parameter in model.parameters():
            std = 0.3 if parameter.ndim == 1 else min(parameter.shape) ** -0.5
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=std)
    model.save_pretrained(folder)
    add_keys(folder, keys)
    return folder


def add_keys(folder: Path, keys: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def _cases() -> list[Any]:
    return [
        pytest.param(family, case, id=f"{family}-{'-'.join(case.keys) or 'none'}-{index}")
        for index, case in enumerate(CASES)
        for family in case.families
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "case"), _cases())
def test_a_key_acts_as_in_transformers(
    family: str, case: Case, make_harness: MakeHarness, kernel_cache: Path, tmp_path: Path
) -> None:
    folder = save_with(tmp_path / "model", family, {} if case.outside else case.keys)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids, rows = greedy(model, PROMPT, 4)
    add_keys(folder, case.keys)
    cache = CacheConfig(num_blocks=64)
    plain = family in (*WITHOUT_DECODER, *case.plain)
    for kernels in ("reference", "auto"):
        config = KernelConfig(kernels, kernel_cache, here()[-1])
        harness = make_harness(folder, config=EngineConfig(cache=cache, kernels=config))
        has_decoder = harness.engine.backend.capabilities.has_decoder
        assert has_decoder == (not plain and kernels != "reference")
        (answer,) = harness.run(request(kernels, PROMPT, max_new_tokens=4))
        assert_agrees(answer, ids, rows)


def test_a_window_of_a_llama_is_none(make_harness: MakeHarness, tmp_path: Path) -> None:
    """Negative control: the same key on a Mistral changes what comes."""
    texts = []
    for family in ("llama", "mistral"):
        for window in (None, 4):
            folder = save_with(tmp_path / f"{family}{window}", family, {"sliding_window": window})
            (answer,) = make_harness(folder).run(request("r", PROMPT, max_new_tokens=1))
            texts.append(answer.logprobs)
    assert texts[0] == texts[1]
    assert texts[2] != pytest.approx(texts[3], abs=0.01)
