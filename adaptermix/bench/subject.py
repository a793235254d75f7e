"""The base model under load, and random adapters that fit it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from adaptermix.bench.server import default_model
from adapters_store.types import BaseModelSpec, LinearShape
from router_engine.assets import DEFAULT
from router_engine.model.loader import base_spec, described_by
from router_engine.model.tiny import TINY_RANDOM, tiny_config, tiny_tokenizer
from router_engine.model.tokenizer import read_tokenizer

RANK = 8
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_TARGETS = (*TARGETS, "gate_proj", "up_proj", "down_proj")
# Small enough that a mixture of several leaves the activations in their usual range.
DELTA_STD = 0.002

Linear = tuple[str, int, int]  # path, in_features, out_features


@dataclass(frozen=True, slots=True)
class Subject:
    """A base model as the benchmark sees it.

    `model` is what `serve --model` takes, `name` what the report says.
    """

    model: str
    name: str
    config: Any
    tokenizer: Any

    @classmethod
    def of(cls, model: str) -> Subject:
        """The tiny random model by that name, otherwise a checkpoint directory.

        Raises UnsupportedModelError for one that could not be served.
        """
        if model == TINY_RANDOM:
            return cls(model, model, tiny_config(), tiny_tokenizer())
        return cls(
            model,
            Path(model).name,
            described_by(model),
            read_tokenizer(model),
        )

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def targeted_linears(self, targets: Sequence[str] = TARGETS) -> Iterator[Linear]:
        """(path, in_features, out_features) of every linear layer that the adapters change."""
        for path, module in self._shape().named_modules():
            if path.rpartition(".")[2] in targets:
                yield path, module.in_features, module.out_features

    def base(self) -> BaseModelSpec:
        """The model's shape as the store knows it."""
        model = self._shape()
        linears = {
            path: LinearShape(module.in_features, module.out_features)
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear)
        }
        return base_spec(self.name, model, linears)

    def num_parameters(self) -> int:
        """A tied embedding counts once."""
        return sum(parameter.numel() for parameter in self._shape().parameters())

    def _shape(self) -> Any:
        """The model without its weights."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config)


def resolve(model: str) -> Subject:
    """The subject of `--model`; the default model is brought where it is not there yet."""
    return Subject.of(default_model() if model == DEFAULT else model)


def write_adapters(
    subject: Subject,
    folder: Path,
    names: Sequence[str],
    ranks: Sequence[int] = (RANK,),
    targets: Sequence[str] = TARGETS,
) -> list[Path]:
    """PEFT folders of random LoRAs, one a name, ranks in turn; equal places get equal weights.

    Speed does not depend on what an adapter has learnt, only on its shape. B is not zero, as it is
    in an untrained LoRA, so that nothing can take a short cut.
    """
    linears = list(subject.targeted_linears(targets))
    if not linears:
        raise ValueError(f"{subject.name} has none of the linear layers {', '.join(targets)}")
    return [
        _write_adapter(folder / name, linears, seed, ranks[seed % len(ranks)], targets)
        for seed, name in enumerate(names)
    ]


def device_room(folders: Iterable[Path]) -> int:
    """Bytes on a device that adapters take at most: float32 of bfloat16, keys of a prompt."""
    files = [path for folder in folders for path in folder.glob("*.safetensors")]
    return max(1, 4 * sum(path.stat().st_size for path in files))


def _write_adapter(
    folder: Path, linears: Sequence[Linear], seed: int, rank: int, targets: Sequence[str]
) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for path, inputs, outputs in linears:
        prefix = f"base_model.model.{path}"
        a = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
        tensors[f"{prefix}.lora_A.weight"] = a.bfloat16()
        b = torch.randn(outputs, rank, generator=generator) * DELTA_STD
        tensors[f"{prefix}.lora_B.weight"] = b.bfloat16()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(targets),
        "bias": "none",
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    return folder
