"""MoA checkpoints of two layers in the original's layouts, with random numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.moa_original import HEADS, HIDDEN, SHAPES

RANK, SIZE, LENGTH, LAYERS = 3, 5, 7, 2
SOFT = ("Q", "K", "V", "prompt", "O", "DOWN", "parallel")  # the columns of routers, as published
SPARSE = ("Q", "K", "V", "O", "DOWN", "parallel")
EVERY = ("Q", "K", "V", "prompt", "O", "UP", "GATE", "DOWN", "parallel")

_COMMON = {
    "parallel": "p_adapter",
    "router": "adapter_type_router",
    "threshold": "adapter_threshold_fn",
}
HF_NAMES = {
    **{part: f"self_attn.lora_{part}" for part in "QKVO"},
    "DOWN": "mlp.lora_down",
    "prompt": "self_attn.prompt",
    **_COMMON,
}
NATIVE_NAMES = {
    **{part: f"attention.lora_{part}" for part in "QKVO"},
    **{part: f"feed_forward.lora_{part}" for part in ("UP", "GATE", "DOWN")},
    "prompt": "attention.prompt",
    **_COMMON,
}
HF_PREFIX, NATIVE_PREFIX = "base_model.model.model.layers", "llama.layers"


def named(prefix: str, names: Mapping[str, str], layer: int) -> dict[str, str]:
    """What the parts of a layer are called."""
    return {part: f"{prefix}.{layer}.{name}" for part, name in names.items()}


def layer_state(
    names: Mapping[str, str], order: Sequence[str], *, swi: int = 0, is_sparse: bool = False
) -> dict[str, Tensor]:
    """The tensors of one layer; `swi` is the width of a SwiGLU router for each gate, 0 linear."""
    state: dict[str, Tensor] = {}

    def put(name: str, out_features: int, in_features: int) -> None:
        state[f"{name}.weight"] = torch.randn(out_features, in_features)
        state[f"{name}.bias"] = torch.randn(out_features)

    for part in order:
        if part in SHAPES:
            out_features, in_features = SHAPES[part]
            state[f"{names[part]}.lora_A.weight"] = torch.randn(RANK, in_features)
            state[f"{names[part]}.lora_B.weight"] = torch.randn(out_features, RANK)
    if "prompt" in order:
        state[f"{names['prompt']}.weight"] = torch.randn(LENGTH, HIDDEN)
        state[f"{names['prompt']}_gate"] = torch.randn(1, HEADS, 1, 1)
    if "parallel" in order:
        put(f"{names['parallel']}.down_proj", SIZE, HIDDEN)
        put(f"{names['parallel']}.up_proj", HIDDEN, SIZE)
    if swi:
        put(f"{names['router']}.w1", swi * len(order), HIDDEN)
        put(f"{names['router']}.w3", swi * len(order), HIDDEN)
        put(f"{names['router']}.w2", len(order), swi * len(order))
    else:
        put(names["router"], len(order), HIDDEN)
    if is_sparse:
        put(names["threshold"], 1, HIDDEN)
    return state


def state(
    prefix: str, names: Mapping[str, str], order: Sequence[str], **options: Any
) -> dict[str, Tensor]:
    """The tensors of all layers, drawn anew from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        made: dict[str, Tensor] = {}
        for layer in range(LAYERS):
            made |= layer_state(named(prefix, names, layer), order, **options)
    return made


def hf_config(**changes: Any) -> dict[str, Any]:
    """As the port writes it: the rank is not that of the tensors."""
    return {
        "auto_mapping": None,
        "base_model_name_or_path": "Qwen/Qwen3-8B",
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "lora_rank": 16,
        "peft_type": "SOFTMOA",
        "revision": None,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        **changes,
    }


def native_params(order: Sequence[str], *, swi: int = 0, **changes: Any) -> dict[str, Any]:
    """As the original's extraction writes it, of an adapter with these experts in all layers."""
    all_layers = f"0-{LAYERS}"
    targets = [part if part in "QKVO" else f"FFN_{part}" for part in order if part in SHAPES]
    return {
        "w_bias": False,
        "lora_layers": all_layers,
        "lora_rank": RANK,
        "lora_targets": ",".join(targets),
        "lora_alpha": 2 * RANK,
        "swi_x": swi,
        "p_adapter_layers": all_layers if "parallel" in order else "0-0",
        "p_adapter_size": SIZE,
        "p_adapter_hydra": False,
        "prompt_layers": all_layers if "prompt" in order else "0-0",
        "prompt_len": LENGTH,
        "max_seq_len": 300,
        "flash_attention2": False,
        "bf16": True,
        **changes,
    }


SOFT_PARAMS = {"expert_num": 1, "hydra_moe": False, "expert_weight": False}
SPARSE_PARAMS = {
    "max_threshold": 0.5,
    "bool_weights": False,
    "adapter_noisy": False,
    "const_threshold": False,
}


def save_hf(folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Path:
    """The folder as the port writes it."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save(dict(tensors), folder / "adapter_model.bin")
    return folder


def save_native(folder: Path, tensors: Mapping[str, Any], params: Mapping[str, Any]) -> Path:
    """The folder as the original writes it."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_params.json").write_text(json.dumps(params))
    torch.save(dict(tensors), folder / "adapter.pth")
    return folder
