"""Config keys: every version's defaults load, what changes the mathematics is refused by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import peft
import pytest
from safetensors.numpy import save

from adapters_store.formats.patterns import Matcher, PatternError
from adapters_store.formats.peft_config import KNOWN_KEYS
from adapters_store.store import AdapterStore
from adapters_store.types import CheckReport
from tests.adapters_store.folders import BASE, LAYERS, PREFIX, Tensors, adapter, config, tensors

# Keys of adapter_config.json at their defaults as each PEFT version wrote them, newest last.
_0_2: dict[str, Any] = {
    **{"base_model_name_or_path": "tiny", "bias": "none", "enable_lora": None, "r": 4},
    **{"fan_in_fan_out": False, "inference_mode": True, "lora_alpha": 8, "lora_dropout": 0.05},
    **{"merge_weights": False, "modules_to_save": None, "peft_type": "LORA"},
    **{"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"},
}
_0_3 = {
    **{key: value for key, value in _0_2.items() if key not in ("enable_lora", "merge_weights")},
    **{"init_lora_weights": True, "layers_pattern": None, "layers_to_transform": None},
}
_0_6 = {**_0_3, "auto_mapping": None, "revision": None, "alpha_pattern": {}, "rank_pattern": {}}
_0_8 = {
    **_0_6,
    **{"loftq_config": {}, "megatron_config": None, "megatron_core": "megatron.core"},
    "use_rslora": False,
}
_0_10 = {**_0_8, "use_dora": False, "layer_replication": None}
_0_14 = {**_0_10, "eva_config": None, "exclude_modules": None, "lora_bias": False}
_0_17 = {
    **{**_0_14, "corda_config": None, "trainable_token_indices": None, "target_parameters": None},
    **{"qalora_group_size": 16, "use_qalora": False},
}
_0_18 = {
    **{**_0_17, "alora_invocation_tokens": None, "arrow_config": None},
    **{"ensure_weight_tying": False, "peft_version": "0.18.0"},
}
VERSIONS = {
    **{"0.2": _0_2, "0.3": _0_3, "0.6": _0_6, "0.8": _0_8, "0.10": _0_10, "0.14": _0_14},
    **{"0.17": _0_17, "0.18": _0_18},
    "installed": {**peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4).to_dict()},
}

HARMLESS: dict[str, Any] = {
    "lora_dropout": 0.9,
    "inference_mode": False,
    "task_type": "SEQ_2_SEQ_LM",
    "revision": "main",
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"},
    "peft_version": "99",
    "fan_in_fan_out": True,
    "megatron_core": "mine",
    "loftq_config": {"loftq_bits": 4},
    "eva_config": {"rho": 2.0},
    "corda_config": {"corda_method": "ipm"},
    "qalora_group_size": 32,
    "runtime_config": {"ephemeral_gpu_offload": True},
    "velora_config": {"num_groups": 4},
    "init_lora_weights": "gaussian",
    "some_new_key": None,
    "another_new_key": False,
}

REFUSED: dict[str, tuple[Any, str]] = {
    "bias": ("all", 'bias="none"'),
    "use_dora": (True, "use_dora=False"),
    "lora_bias": (True, "lora_bias=False"),
    "use_qalora": (True, "use_qalora=False"),
    "modules_to_save": (["lm_head"], "whole modules"),
    "layer_replication": ([[0, 2]], "replicated"),
    "trainable_token_indices": ([1], "token embeddings"),
    "alora_invocation_tokens": ([7], "aLoRA"),
    "target_parameters": (["mlp.experts.up"], "bare parameters"),
    "monteclora_config": ({"num_samples": 8}, "MonteCLoRA"),
    "use_bdlora": ({"nblocks": 2}, "BD-LoRA"),
    "arrow_config": ({"top_k": 3}, "routing"),
    "kasa_config": ({"beta": 1}, "KaSA"),
    "enable_lora": ([True, False, True], "fused layer"),
    "init_lora_weights": ("pissa_niter_4", "path_initial_model_for_weight_conversion"),
    "peft_type": ("LOHA", "LORA"),
    "r": (0, "greater than 0"),
    "lora_alpha": ("8", "valid number"),
    "use_rslora": ("yes", "valid boolean"),
    "rank_pattern": ({"q_proj": -1}, "greater than 0"),
    "alpha_pattern": ({"q_proj": None}, "valid number"),
    "target_modules": (3, "valid"),
    "scaling_of_the_future": (0.5, "the key is unknown"),
}


def check(store: AdapterStore, files: dict[str, bytes]) -> CheckReport:
    return store.check("x", files, base=BASE)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_config_of_any_version_loads(checker: AdapterStore, version: str) -> None:
    text = json.dumps(VERSIONS[version], default=sorted)
    report = check(checker, {**adapter(), "adapter_config.json": text.encode()})
    assert report.loads, report.problems
    assert report.unknown_keys == ()


def test_every_key_of_the_installed_peft_is_known() -> None:
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields - KNOWN_KEYS == set()


@pytest.mark.parametrize(("key", "value"), HARMLESS.items(), ids=HARMLESS.keys())
def test_a_key_that_changes_nothing_is_no_reason(
    checker: AdapterStore, key: str, value: Any
) -> None:
    assert check(checker, adapter(**{key: value})).loads


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_inits_that_leave_the_base_alone(checker: AdapterStore, init: object) -> None:
    assert check(checker, adapter(init_lora_weights=init)).loads


@pytest.mark.parametrize("init", ["pissa", "olora", "corda", "loftq", "lora_ga", "of_the_future"])
def test_inits_that_change_the_base(checker: AdapterStore, init: str) -> None:
    (problem,) = check(checker, adapter(init_lora_weights=init)).problems
    assert init in problem.message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [(key, *rest) for key, rest in REFUSED.items()],
    ids=REFUSED.keys(),
)
def test_a_key_that_is_not_applied_is_refused_by_name(
    checker: AdapterStore, key: str, value: Any, message: str
) -> None:
    (problem,) = check(checker, adapter(**{key: value})).problems
    assert problem.where == f"adapter_config.json: {key}"
    assert json.dumps(value) in problem.message
    assert message in problem.message


def test_unknown_keys_are_listed_even_when_unused(checker: AdapterStore) -> None:
    report = check(checker, adapter(zebra=1, apple=None))
    assert report.unknown_keys == ("apple", "zebra")
    assert [problem.where for problem in report.problems] == ["adapter_config.json: zebra"]


BROKEN: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{", "not JSON"),
    "a list": (b"[]", "JSON object"),
    "not UTF-8": (b"\xff\xfe\xff", "not JSON"),
    "key twice": (b'{"r": 4, "r": 8}', "twice"),
    "deep": (b"[" * 100_000, "too deeply"),
    "huge": (b" " * (2 << 20), "at most"),
    "no peft_type": (b"{}", "peft_type"),
    "endless pattern": (
        json.dumps(config(target_modules="(a+)+b" * 1000)).encode(),
        "longer than",
    ),
    "no pattern": (json.dumps(config(target_modules="(")).encode(), "no regular expression"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_config(checker: AdapterStore, text: bytes, message: str) -> None:
    report = check(checker, {**adapter(), "adapter_config.json": text})
    assert any(message in str(problem) for problem in report.problems)


def renamed(old: str, new: str) -> Tensors:
    return {key.replace(old, new): value for key, value in tensors().items()}


def test_keys_with_the_adapter_name_inside(checker: AdapterStore) -> None:
    made = renamed(".weight", ".default.weight")
    assert check(checker, adapter(made)).loads


def test_keys_without_the_prefix(checker: AdapterStore) -> None:
    assert check(checker, adapter(renamed(PREFIX, ""))).loads


def test_target_names_matched_looser_before_peft_0_4(checker: AdapterStore) -> None:
    assert check(checker, adapter(tensors(["_proj"]), target_modules=["proj"])).loads


def with_tensor(key: str, shape: tuple[int, ...] = (4, 16)) -> Tensors:
    return {**tensors(), key: np.zeros(shape, np.float32)}


Q = f"{PREFIX}model.layers.0.self_attn.q_proj"
FOREIGN: dict[str, tuple[Tensors, str]] = {
    "embedding": (with_tensor(f"{PREFIX}model.embed_tokens.lora_embedding_A"), "embedding"),
    "DoRA": (with_tensor(f"{Q}.lora_magnitude_vector"), "DoRA"),
    "bias on B": (with_tensor(f"{Q}.lora_B.bias"), "lora_bias=False"),
    "bias": (with_tensor(f"{Q}.bias"), 'bias="none"'),
    "other method": (with_tensor(f"{Q}.hada_w1_a"), "kind of tensor"),
    "saved module": (with_tensor(f"{PREFIX}lm_head.weight"), "modules_to_save"),
    "resized embeddings": (with_tensor(f"{PREFIX}model.embed_tokens.weight"), "resized"),
    "two adapters": (
        {**tensors(), f"{Q}.lora_A.other.weight": np.zeros((4, 16), np.float32)},
        "several adapters",
    ),
    "matrix twice": (
        {**tensors(), f"{Q.removeprefix(PREFIX)}.lora_A.weight": np.zeros((4, 16), np.float32)},
        "same matrix",
    ),
    "no LoRA at all": ({}, "no LoRA tensors"),
    "not targeted": (tensors(["q_proj", "v_proj", "up_proj"]), "does not name"),
    "targeted but missing": (tensors(["q_proj"]), "no tensors for"),
}


@pytest.mark.parametrize(("made", "message"), FOREIGN.values(), ids=FOREIGN.keys())
def test_tensors_that_are_not_lora(checker: AdapterStore, made: Tensors, message: str) -> None:
    report = check(checker, adapter(made))
    assert any(message in str(problem) for problem in report.problems), report.problems


def test_a_resized_head(checker: AdapterStore) -> None:
    made = tensors(["lm_head"]) | {f"{PREFIX}lm_head.base_layer.weight": np.zeros((50, 16), "f4")}
    report = check(checker, adapter(made, target_modules=["lm_head"]))
    assert "resized" in str(report.problems[0])


def test_a_pattern_that_never_ends_is_cut_off() -> None:
    matcher = Matcher(budget_seconds=0.05)
    with pytest.raises(PatternError, match="takes too long"):
        matcher.first_key(["(.|..|...)+[A-Z]"], "model.layers.0.self_attn.q_proj")


def test_a_file_is_missing(checker: AdapterStore) -> None:
    files = adapter()
    alone = {"adapter_config.json": files["adapter_config.json"]}
    assert "missing" in str(check(checker, alone).problems[0])
    alone = {"adapter_model.safetensors": files["adapter_model.safetensors"]}
    assert "missing" in str(check(checker, alone).problems[0])
    assert "no adapter of a known format" in str(check(checker, {"README.md": b""}).problems[0])


def test_all_problems_come_at_once(checker: AdapterStore) -> None:
    made = tensors(["q_proj", "v_proj"], rank=3)
    made[f"{Q}.lora_A.weight"][0, 0] = np.nan
    report = check(checker, {**adapter(made, use_dora=True, zebra=1)})
    text = " ".join(str(problem) for problem in report.problems)
    assert "use_dora" in text
    assert "zebra" in text
    assert text.count("gives it rank 4") == 2 * LAYERS


def test_a_tensor_file_that_lies(checker: AdapterStore) -> None:
    content = save(tensors())
    report = check(checker, {**adapter(), "adapter_model.safetensors": content[:-4]})
    assert "truncated" in str(report.problems[0])
