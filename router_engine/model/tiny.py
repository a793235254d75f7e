"""A tiny random base model and byte tokenizer, made on the spot: nothing is downloaded.

`serve --model tiny-random` and the quick tests run on it. Its text is noise, its engine is real.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from router_engine.config import TINY_RANDOM as TINY_RANDOM
from router_engine.model.tiny_tokenizer import tiny_tokenizer as tiny_tokenizer


def tiny_config() -> LlamaConfig:
    """Two layers of width 64 with grouped-query attention: the shape of a Llama, small."""
    return LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """The model in fp32; equal for equal seeds. The caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config())
        # The usual 0.02 makes nearly flat logits; wider ones make greedy text well defined.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model.eval()


def save_tiny(directory: Path, seed: int = 0) -> Path:
    """Write model and tokenizer as a checkpoint directory."""
    tiny_model(seed).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory
