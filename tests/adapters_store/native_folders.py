"""A folder of our own format with every kind of expert, and ways to spoil it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
from safetensors.numpy import save

from adapters_store.expert_kinds.base import Copies
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec, ThresholdSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from adapters_store.manifest import manifest_to_json
from adapters_store.types import AdapterManifest, BaseModelSpec, BlockSpec, LinearShape
from tests.adapters_store import folders
from tests.adapters_store.folders import HIDDEN, INNER, LAYERS, Tensors

HEADS = 4
LAYER, OTHER = "model.layers.0", "model.layers.1"
Q, MLP = f"{LAYER}.self_attn.q_proj", f"{LAYER}.mlp"

BASE = replace(
    folders.BASE,
    linears={
        **folders.BASE.linears,
        **{
            f"model.layers.{layer}.self_attn.k_proj": LinearShape(HIDDEN, HIDDEN // 2)
            for layer in range(LAYERS)
        },
    },
    blocks=tuple(
        BlockSpec(path, f"{path}.self_attn", f"{path}.mlp")
        for path in (f"model.layers.{layer}" for layer in range(LAYERS))
    ),
    hidden_size=HIDDEN,
    num_heads=HEADS,
)
# GPT-2 has one linear layer for q, k and v.
FUSED: BaseModelSpec = replace(
    BASE,
    architecture="GPT2LMHeadModel",
    linears={
        path: shape
        for path, shape in BASE.linears.items()
        if not path.endswith(("k_proj", "v_proj"))
    },
)

MANIFEST = AdapterManifest(
    format="adaptermix",
    base_model="tiny",
    experts=(
        LoraExpertSpec(Q, 4, 2.0, HIDDEN, HIDDEN, "q.0.a", "q.0.b", gate=0),
        LoraExpertSpec(Q, 2, 2.0, HIDDEN, HIDDEN, "q.1.a", "q.1.b", gate=1),
        LoraExpertSpec(Q, 3, 1.0, HIDDEN, HIDDEN, "q.2.a", "q.2.b"),
        LoraExpertSpec(
            f"{OTHER}.mlp.up_proj",
            4,
            1.0,
            HIDDEN,
            INNER,
            "up.a",
            "up.b",
            copies=Copies((0.25, 0.75), (1.0,)),
        ),
        BottleneckExpertSpec(
            MLP, "parallel", 6, HIDDEN, "silu", "pa.d", "pa.u", "pa.db", "pa.ub", gate=2
        ),
        BottleneckExpertSpec(
            f"{OTHER}.mlp",
            "serial",
            5,
            HIDDEN,
            "gelu_tanh",
            "sa.d",
            "sa.u",
            "sa.db",
            "sa.ub",
            copies=Copies((0.5, 0.5), (0.2, 0.8)),
        ),
        PromptExpertSpec(f"{LAYER}.self_attn", 7, HIDDEN, HEADS, "p.p", "p.c", gate=3),
    ),
    routers=(
        GatingNetworkSpec(
            LAYER,
            "swiglu",
            "post_norm",
            outputs=4,
            features=HIDDEN,
            prefix="r0",
            hidden=12,
            threshold=ThresholdSpec(0.5, "t0"),
        ),
        GatingNetworkSpec(
            OTHER, "linear", "pre_norm", 3, HIDDEN, "r1", activation="softmax", top_k=2
        ),
    ),
)


def tensors(manifest: AdapterManifest = MANIFEST) -> Tensors:
    """Random values for all that the manifest names."""
    random = np.random.default_rng(0)
    return {
        key: random.normal(size=shape).astype(np.float32)
        for part in manifest.parts
        for key, shape in part.tensor_shapes.items()
    }


def document() -> dict[str, Any]:
    """adaptermix.json of MANIFEST."""
    read: dict[str, Any] = json.loads(manifest_to_json(MANIFEST))
    return read


def folder(made: Tensors | None = None, text: object = None) -> dict[str, bytes]:
    """The files by name; `text` in place of adaptermix.json, bytes as they are."""
    written = document() if text is None else text
    return {
        "adaptermix.json": written if isinstance(written, bytes) else json.dumps(written).encode(),
        "adapter_model.safetensors": save(tensors() if made is None else made),
    }
