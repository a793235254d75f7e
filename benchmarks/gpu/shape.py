"""Checkpoints of a shape with random weights: speed does not depend on what a model has learnt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu.shapes import SHAPES
from router_engine.model.tiny import tiny_tokenizer

_STD = 0.02
_INDEX = "model.safetensors.index.json"


def checkpoint(folder: Path, shape: str, device: torch.device) -> Path:
    """A sharded bf16 checkpoint directory, one file a decoder layer; made on `device`.

    One that is there is kept: its index is written last.
    """
    if (folder / _INDEX).exists():
        return folder
    config = LlamaConfig(
        **SHAPES[shape],
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    generator = torch.Generator(device).manual_seed(0)
    index: dict[str, str] = {}
    total = 0
    for number, names in enumerate(_shards(config)):
        file = f"model-{number:05}.safetensors"
        tensors = {name: _random(name, size, generator) for name, size in names.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, file))
        total += sum(tensor.nbytes for tensor in tensors.values())
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / _INDEX).write_text(json.dumps(document))
    return folder


def _shards(config: LlamaConfig) -> Iterator[dict[str, torch.Size]]:
    """Names and shapes of the parameters, those of one layer together."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in model.named_parameters():
        head, _, rest = name.partition(".layers.")
        key = rest.partition(".")[0] if rest else head
        shards.setdefault(key, {})[name] = parameter.shape
    yield from shards.values()


def _random(name: str, size: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if len(size) == 1:  # a norm
        return torch.ones(size, dtype=torch.bfloat16)
    values = torch.randn(size, generator=generator, device=generator.device, dtype=torch.bfloat16)
    return values.mul_(_STD).cpu()
