"""The base under a LoRA adapter of PEFT: made for a run, and saved as the folder that is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers.pytorch_utils import Conv1D

from adaptermix.training.base import read_base
from adaptermix.training.errors import TrainingError
from adaptermix.training.settings import RunSettings


def lora_model(settings: RunSettings) -> Any:
    """The frozen base in `dtype` with fresh LoRA pairs in fp32 (A random, B zero)."""
    base = read_base(settings.base, settings.dtype, settings.device, settings.revision)
    model = get_peft_model(base, _peft_config(settings, base))
    model.peft_config["default"].base_model_name_or_path = settings.base_name
    return model


def save_lora(model: Any, out: Path, settings: RunSettings) -> None:
    """Write PEFT's folder, its tensors in the dtype of the base that they were trained for."""
    dtype = getattr(torch, settings.dtype)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    stored = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    model.save_pretrained(out, state_dict=stored, save_embedding_layers=False)
    config = json.loads((out / "adapter_config.json").read_text())
    config["target_modules"].sort()  # PEFT keeps a set, whose order changes between processes
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _peft_config(settings: RunSettings, base: torch.nn.Module) -> LoraConfig:
    """The configuration that PEFT reads; raises TrainingError for a target that is not there."""
    lora = settings.lora
    linears = {
        name: isinstance(module, Conv1D)
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    transposed = []
    for target in lora.targets:
        matching = [t for name, t in linears.items() if f".{name}".endswith(f".{target}")]
        if not matching:
            names = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            raise TrainingError(
                f"target {target!r} is no linear layer of {settings.base_name}: use {names}"
            )
        transposed += matching
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=list(lora.targets),
        fan_in_fan_out=any(transposed),  # GPT-2 keeps its weights as [in, out]
    )
