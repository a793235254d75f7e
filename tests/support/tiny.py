"""Tiny random models of each family, and PEFT adapters for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from router_engine.model.tiny import tiny_config, tiny_model, tiny_tokenizer

_SHAPE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

FAMILIES: dict[str, Any] = {
    "llama": lambda: tiny_config(),
    "llama-tied": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_SHAPE),
    "qwen3": lambda: Qwen3Config(**_SHAPE, head_dim=16),
    "mistral": lambda: MistralConfig(**_SHAPE, sliding_window=8, head_dim=16),
    "gpt2": lambda: GPT2Config(
        vocab_size=259,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
}

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def family_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a family in fp32, wide enough in its logits to decode greedily.

    "llama" is the model that an engine serves as tiny-random.
    """
    if family == "llama":
        return tiny_model(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(FAMILIES[family]())
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=min(parameter.shape) ** -0.5)
    return model.eval()


def save_family(directory: Path, family: str, seed: int = 0) -> Path:
    """A checkpoint directory of a family, with the byte tokenizer."""
    tiny_tokenizer().save_pretrained(directory)
    family_model(family, seed).save_pretrained(directory)
    return directory


def lora_model(
    model: PreTrainedModel,
    *,
    rank: int = 4,
    targets: Sequence[str] = ATTENTION,
    seed: int = 1,
    alpha: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """A PEFT model with random A and B, strong enough to change the greedy text."""
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
        **(options or {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)
        for name, parameter in wrapped.named_parameters():
            if "lora_A" in name:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3 * parameter.shape[1] ** -0.5)
    return wrapped.eval()


def make_lora_folder(
    directory: Path,
    *,
    family: str = "llama",
    rank: int = 4,
    targets: Sequence[str] = ATTENTION,
    seed: int = 1,
    alpha: float | None = None,
    options: Mapping[str, Any] | None = None,
    save_embedding_layers: bool = False,
) -> Path:
    """A PEFT LoRA folder for a tiny family, as `save_pretrained` writes it."""
    wrapped = lora_model(
        family_model(family), rank=rank, targets=targets, seed=seed, alpha=alpha, options=options
    )
    # "auto" would add a copy of the base's lm_head where lm_head is a target, and warn about it.
    wrapped.save_pretrained(str(directory), save_embedding_layers=save_embedding_layers)
    return directory
