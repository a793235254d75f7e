"""MoA checkpoints that are refused, each for every reason by name, and what is only noted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptermix.training.importing.moa.importer import import_hf, import_native
from adaptermix.training.importing.moa.native import Heads
from adapters_store.errors import InvalidAdapterError
from tests.support import moa_checkpoint as checkpoint
from tests.support.moa_checkpoint import (
    HF_NAMES,
    HF_PREFIX,
    NATIVE_NAMES,
    NATIVE_PREFIX,
    SOFT,
    SOFT_PARAMS,
    SPARSE,
    SPARSE_PARAMS,
    hf_config,
    native_params,
    save_hf,
    save_native,
)
from tests.support.moa_original import HEADS, HIDDEN, KV_HEADS

Change = Callable[[dict[str, Any]], object]
GIVEN = Heads(HEADS, KV_HEADS)
HF_1, NATIVE_1 = f"{HF_PREFIX}.1", f"{NATIVE_PREFIX}.1"
ROUTER = "adapter_type_router.weight"
HF_FILE, NATIVE_FILE = "adapter_model.bin", "adapter.pth"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def without(*parts: str) -> Change:
    """Drop each tensor whose key holds one of these."""

    def change(state: dict[str, Any]) -> None:
        for key in [key for key in state if any(part in key for part in parts)]:
            del state[key]

    return change


def put(key: str, value: Any) -> Change:
    return lambda state: state.update({key: value})


def refused_hf(
    tmp_path: Path, state: dict[str, Any], gamma_max: float | None, **config: Any
) -> str:
    folder = save_hf(tmp_path / "moa", state, hf_config(**config))
    with pytest.raises(InvalidAdapterError) as raised:
        import_hf(folder, gamma_max, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("base_model.model.model.norm.weight", torch.ones(3)), "don't: base_model.model.model"),
        (put(f"{HF_1}.mlp.lora_up.lora_A.weight", torch.ones(3, 16)), "mlp.lora_up.lora_A.weight"),
        (put(f"{HF_1}.self_attn.lora_Q.router.weight", torch.ones(3)), "lora_Q.router.weight"),
        (without(f"{HF_1}.self_attn.lora_Q.lora_B"), "lora_Q.lora_A.weight: has no lora_B.weight"),
        (without(f"{HF_1}.p_adapter.up_proj.bias"), "has no up_proj.bias beside it"),
        (without(f"{HF_1}.self_attn.lora_Q"), "layers.1: has DOWN, K, O, V, linear, parallel, but"),
        (without("self_attn.lora_Q"), "has a router of 6 gates for 5 experts (K, V, O, DOWN, para"),
        (without("adapter_type_router"), "model.layers.0: has no router, expected one"),
        (without(f"{HF_PREFIX}.0."), "holds nothing of layer 0: is the file whole?"),
        (without(HF_PREFIX), "holds no layer of MoA: is it the right file?"),
        (put(f"{HF_1}.{ROUTER}", torch.ones(7, HIDDEN)), "a router of 7 gates for 6 experts"),
        (put(f"{HF_1}.{ROUTER}", torch.ones(6)), "is float32 [6], expected floats in 2 dimensions"),
        (put(f"{HF_1}.{ROUTER}", torch.ones(6, HIDDEN).int()), "is int32 [6, 16], expected floats"),
        (put(f"{HF_1}.self_attn.lora_Q.lora_B.weight", torch.ones(16, 4)), "expected [16, 3] by"),
        (put(f"{HF_1}.adapter_type_router.w1.weight", torch.ones(6, 16)), "has no w1.bias beside"),
    ],
)
def test_tensors_of_the_port_that_cannot_be(change: Change, said: str, tmp_path: Path) -> None:
    state: dict[str, Any] = checkpoint.state(HF_PREFIX, HF_NAMES, SPARSE)
    change(state)
    assert said in refused_hf(tmp_path, state, None)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LORA"}, "peft_type: is \"LORA\": Input should be 'SOFTMOA'"),
        ({"bias": "all"}, "bias: is \"all\": Input should be 'none'"),
        ({"top_k": 2}, "top_k: is 2: the key is unknown"),
    ],
)
def test_configs_of_the_port_that_cannot_be(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    state = checkpoint.state(HF_PREFIX, HF_NAMES, SPARSE)
    assert f"adapter_config.json: {said}" in refused_hf(tmp_path, state, None, **config)


def test_thresholds_belong_to_sparse_adapters(tmp_path: Path) -> None:
    soft = checkpoint.state(HF_PREFIX, HF_NAMES, SPARSE)
    assert "--gamma-max: is 0.5, but the adapter is soft" in refused_hf(tmp_path, soft, 0.5)
    sparse = checkpoint.state(HF_PREFIX, HF_NAMES, SPARSE, is_sparse=True)
    assert "--gamma-max: is 2: give 0 to 1" in refused_hf(tmp_path, sparse, 2.0)
    without(f"{HF_1}.adapter_threshold_fn")(sparse)
    assert "layers.1: has DOWN, K, O, Q, V" in refused_hf(tmp_path, sparse, None)


def test_a_folder_must_hold_both_files(tmp_path: Path) -> None:
    (tmp_path / "moa").mkdir()
    said = "adapter_config.json: is missing .*adapter_model.bin: is missing"
    with pytest.raises(InvalidAdapterError, match=said):
        import_hf(tmp_path / "moa", None, tmp_path / "out")
    said = "adapter_params.json: is missing .*adapter.pth: is missing"
    with pytest.raises(InvalidAdapterError, match=said):
        import_native(tmp_path / "moa", GIVEN, None, tmp_path / "out")


def refused_native(
    tmp_path: Path, state: dict[str, Any], heads: Heads = GIVEN, **changes: Any
) -> str:
    """Of a soft adapter, unless the changes say something else."""
    folder = save_native(tmp_path / "moa", state, {**native_params(SOFT), **changes})
    with pytest.raises(InvalidAdapterError) as raised:
        import_native(folder, heads, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(raised.value)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"expert_num": 4}, "expert_num: is 4: several experts of one kind with a router of their"),
        ({"w_bias": True}, "w_bias: is true: trained biases of the base's layers are not"),
        ({"const_threshold": True}, "const_threshold: is true without max_threshold"),
        ({"max_threshold": 1.5}, "max_threshold: is 1.5: Input should be less than or equal to 1"),
        ({"lora_layers": "0..2"}, "lora_layers: is '0..2': give spans of layers without their end"),
        ({"lora_layers": "2-0"}, "lora_layers: is '2-0': give spans"),
        ({"lora_targets": "Q,FFN"}, "lora_targets: names FFN: targets are Q, K, V, O, FFN_UP"),
        ({"instance_level": True}, "instance_level: is true: the key is unknown"),
        ({"lora_rank": "8"}, 'lora_rank: is "8": Input should be a valid integer'),
        (
            {"prompt_layers": "0-1"},
            "llama.layers.1: has prompt, which adapter_params.json does",
        ),
        ({"p_adapter_layers": "0-3"}, "llama.layers.2: lacks parallel, which adapter_params.json"),
        ({"lora_targets": "Q,K,V,O,FFN_UP,FFN_DOWN"}, "llama.layers.0: lacks UP, which"),
        ({"lora_rank": 8}, "has lora_rank 3 by its tensors, but adapter_params.json says 8"),
        ({"p_adapter_size": 16}, "#parallel: has p_adapter_size 5 by its tensors"),
        ({"prompt_len": 10}, "#prompt: has prompt_len 7 by its tensors"),
        ({"swi_x": 4}, "is linear with hidden size 0 for 7 gates, but adapter_params.json says"),
        (SPARSE_PARAMS, "model.layers.0: has no adapter_threshold_fn, which sparse MoA has"),
    ],
)
def test_params_that_do_not_fit(params: dict[str, Any], said: str, tmp_path: Path) -> None:
    state = checkpoint.state(NATIVE_PREFIX, NATIVE_NAMES, SOFT)
    assert said in refused_native(tmp_path, state, **params)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(f"{NATIVE_1}.attention.lora_Q.router.weight", torch.ones(2)), "lora_Q.router.weight"),
        (put("model.layers.0.p_adapter.down_proj.bias", torch.ones(2)), "adapters don't: model."),
        (
            put(f"{NATIVE_1}.adapter_noisy_fn.weight", torch.ones(2)),
            "don't: llama.layers.1.",
        ),
        (without(f"{NATIVE_1}.attention.lora_V"), "llama.layers.1: lacks V, which adapter_params"),
        (put(f"{NATIVE_1}.adapter_threshold_fn.weight", torch.ones(1, 16)), "has no bias beside"),
        (
            put(f"{NATIVE_1}.attention.lora_K.lora_B.weight", torch.ones(9, 3)),
            "has 9 rows",
        ),
    ],
)
def test_tensors_of_the_original_that_cannot_be(change: Change, said: str, tmp_path: Path) -> None:
    state: dict[str, Any] = checkpoint.state(NATIVE_PREFIX, NATIVE_NAMES, SOFT)
    change(state)
    assert said in refused_native(tmp_path, state)


def test_a_soft_adapter_has_no_thresholds(tmp_path: Path) -> None:
    state = checkpoint.state(NATIVE_PREFIX, NATIVE_NAMES, SOFT, is_sparse=True)
    said = refused_native(tmp_path, state)
    assert "has an adapter_threshold_fn, but adapter_params.json has no max_threshold" in said


def test_the_heads_must_be_told(tmp_path: Path) -> None:
    state = checkpoint.state(NATIVE_PREFIX, NATIVE_NAMES, SOFT)
    said = refused_native(tmp_path, state, Heads())
    assert "--heads: is missing: rows of lora_Q.lora_B are ordered anew in each head" in said
    assert "--kv-heads: is missing" in said
    said = refused_native(tmp_path, state, Heads(2, KV_HEADS))
    assert "#prompt: has 4 heads, but --heads is 2" in said
    with pytest.raises(InvalidAdapterError, match="--base: is given with --heads"):
        import_native(tmp_path / "moa", GIVEN, tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidAdapterError, match="has no num_attention_heads: give --heads"):
        import_native(tmp_path / "moa", Heads(), tmp_path, tmp_path / "out")


def test_spans_make_layers_differ(tmp_path: Path) -> None:
    """Layer 0 has LoRA alone, layer 1 a parallel bottleneck alone, layer 2 nothing."""
    names = [checkpoint.named(NATIVE_PREFIX, NATIVE_NAMES, layer) for layer in range(3)]
    state: dict[str, Any] = {
        **checkpoint.layer_state(names[0], ("V", "O")),
        **checkpoint.layer_state(names[1], ("parallel",)),
        **checkpoint.layer_state(names[2], ()),
    }
    params = native_params(("V", "O", "parallel"), lora_layers="0-1", p_adapter_layers="1-2")
    folder = save_native(tmp_path / "moa", state, {**params, **SOFT_PARAMS})
    imported = import_native(folder, Heads(), None, tmp_path / "out")
    manifest = imported.adapter.manifest
    assert [(router.layer, router.outputs) for router in manifest.routers] == [
        ("model.layers.0", 2),
        ("model.layers.1", 1),
    ]
    assert [(expert.site, expert.gate) for expert in manifest.experts] == [
        ("model.layers.0.self_attn.v_proj", 0),
        ("model.layers.0.self_attn.o_proj", 1),
        ("model.layers.1.mlp#parallel", 0),
    ]
    assert "layers without experts, whose routers are left out: 2" in imported.adapter.notes


@pytest.mark.parametrize("content", [POINTER, b"garbage"])
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path: Path, content: bytes) -> None:
    hf = save_hf(tmp_path / "hf", {}, hf_config())
    native = save_native(tmp_path / "native", {}, native_params(SOFT))
    told = "is a Git LFS pointer.*git lfs pull" if content == POINTER else "or is damaged$"
    (hf / HF_FILE).write_bytes(content)
    with pytest.raises(InvalidAdapterError, match=told):
        import_hf(hf, None, tmp_path / "out")
    (native / NATIVE_FILE).write_bytes(content)
    with pytest.raises(InvalidAdapterError, match=told):
        import_native(native, GIVEN, None, tmp_path / "out")
    (native / "adapter_params.json").write_bytes(POINTER)
    with pytest.raises(InvalidAdapterError, match=r"adapter_params.json.*Git LFS pointer"):
        import_native(native, GIVEN, None, tmp_path / "out")


def test_what_has_no_effect_is_noted(tmp_path: Path) -> None:
    """Flags without effect, the linear layer that nothing uses, the net of a constant threshold."""
    state: dict[str, Any] = checkpoint.state(NATIVE_PREFIX, NATIVE_NAMES, SPARSE, is_sparse=True)
    state[f"{NATIVE_1}.adapter_noisy_fn.weight"] = torch.ones(6, HIDDEN)
    flags = {"bool_weights": True, "adapter_noisy": True, "const_threshold": True}
    params = {**native_params(SPARSE), **SPARSE_PARAMS, **flags}
    folder = save_native(tmp_path / "moa", state, params)
    notes = import_native(folder, GIVEN, None, tmp_path / "out").adapter.notes
    assert notes == (
        "bool_weights has no effect: the published code does not use it",
        "adapter_noisy has no effect: the published code does not use it",
        f"left out, as nothing uses them: {NATIVE_1}.adapter_noisy_fn.weight",
        "left out, as the threshold is constant: adapter_threshold_fn of every layer",
    )
    soft = checkpoint.state(NATIVE_PREFIX, NATIVE_NAMES, SOFT)
    folder = save_native(tmp_path / "moa", soft, native_params(SOFT, bf16=False))
    (note,) = import_native(folder, GIVEN, None, tmp_path / "soft").adapter.notes
    assert "clamps what layers put out at 65500" in note
