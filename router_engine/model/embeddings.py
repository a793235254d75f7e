"""The base's embeddings by digest: PEFT saves copies of them, which a store compares."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adapters_store.types import EmbeddingSpec

_NAMES: Mapping[torch.dtype, str] = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
_CHUNK_NUMBERS = 1 << 22


def embedding_specs(model: PreTrainedModel) -> dict[str, EmbeddingSpec]:
    """Input and output embeddings by their modules' paths, as they are served.

    Call it before weights are quantized or merged. Those of other formats than float32, bfloat16
    and float16 are left out.
    """
    weights: dict[str, Tensor] = {}
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        path = next((name for name, one in model.named_modules() if one is module), None)
        if path is not None and module.weight.dtype in _NAMES:
            weights[path] = module.weight
    made = {id(weight): _spec(weight) for weight in weights.values()}  # tied ones are one
    return {path: made[id(weight)] for path, weight in weights.items()}


def _spec(weight: Tensor) -> EmbeddingSpec:
    """With the digests in the format that it has and in those that hold less."""
    formats = [dtype for dtype in _NAMES if dtype.itemsize < 4 or dtype == weight.dtype]
    digests = {dtype: hashlib.sha256() for dtype in formats}
    for chunk in torch.split(weight.detach().flatten(), _CHUNK_NUMBERS):
        for dtype, state in digests.items():
            state.update(chunk.to("cpu", dtype).contiguous().view(torch.uint8).numpy().data)
    return EmbeddingSpec(
        shape=tuple(weight.shape),
        dtype=_NAMES[weight.dtype],
        digests={_NAMES[dtype]: state.hexdigest() for dtype, state in digests.items()},
    )
