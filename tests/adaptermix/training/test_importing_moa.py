"""Importing MoA: both implementations in plain torch compute what our manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adaptermix.training.importing.moa.importer import ImportedMoa, import_hf, import_native
from adaptermix.training.importing.moa.native import Heads
from adapters_store.store import AdapterStore
from adapters_store.types import BaseModelSpec, BlockSpec, LinearShape
from tests.support import moa_checkpoint as checkpoint
from tests.support.moa_checkpoint import (
    EVERY,
    HF_NAMES,
    HF_PREFIX,
    LAYERS,
    NATIVE_NAMES,
    NATIVE_PREFIX,
    SOFT,
    SOFT_PARAMS,
    SPARSE,
    SPARSE_PARAMS,
    hf_config,
    named,
    native_params,
    save_hf,
    save_native,
)
from tests.support.moa_original import (
    HEADS,
    HIDDEN,
    KV_HEADS,
    SHAPES,
    LlamaLayer,
    Original,
    Served,
)

BASE = BaseModelSpec(
    "tiny",
    "LlamaForCausalLM",
    {
        f"model.layers.{layer}.{'self_attn' if part in 'QKVO' else 'mlp'}.{part.lower()}_proj": (
            LinearShape(shape[1], shape[0])
        )
        for layer in range(LAYERS)
        for part, shape in SHAPES.items()
    },
    blocks=tuple(
        BlockSpec(path, f"{path}.self_attn", f"{path}.mlp")
        for path in (f"model.layers.{layer}" for layer in range(LAYERS))
    ),
    hidden_size=HIDDEN,
    num_heads=HEADS,
)
GIVEN = Heads(HEADS, KV_HEADS)
X = torch.randn(9, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def served(imported: ImportedMoa, store_root: Path) -> tuple[Any, dict[str, Tensor]]:
    """The manifest and tensors that a store makes of the folder, once it took it."""
    store = AdapterStore.open(store_root)
    record = store.publish("moa", imported.folder, base=BASE)
    files = store.blobs.fetch(record.digest)
    tensors = load_file(files.tensors)
    store.close()
    return record.manifest, tensors


NATIVE: dict[str, tuple[tuple[str, ...], int, dict[str, Any]]] = {
    "soft, as published": (SOFT, 4, SOFT_PARAMS),
    "soft, linear router": (SOFT, 0, SOFT_PARAMS),
    "soft, every target": (EVERY, 4, SOFT_PARAMS),
    "sparse, as published": (SPARSE, 4, SPARSE_PARAMS),
    "sparse with a prompt": (SOFT, 0, SPARSE_PARAMS),
    "sparse, constant": (SPARSE, 0, {**SPARSE_PARAMS, "const_threshold": True}),
}


@pytest.mark.parametrize(("order", "swi", "params"), NATIVE.values(), ids=NATIVE.keys())
def test_the_original_computes_what_is_served(
    order: tuple[str, ...], swi: int, params: dict[str, Any], tmp_path: Path
) -> None:
    """Meta's layout there, Hugging Face's here; and not without putting rows in order."""
    is_sparse = "max_threshold" in params
    state = checkpoint.state(NATIVE_PREFIX, NATIVE_NAMES, order, swi=swi, is_sparse=is_sparse)
    folder = save_native(tmp_path / "moa", state, native_params(order, swi=swi, **params))
    imported = import_native(folder, GIVEN, None, tmp_path / "out")
    manifest, tensors = served(imported, tmp_path / "store")
    assert {router.input for router in manifest.routers} == {"pre_norm"}
    base = LlamaLayer.random()
    for layer in range(LAYERS):
        original = Original(
            state=state,
            names=named(NATIVE_PREFIX, NATIVE_NAMES, layer),
            order=order,
            scale=2.0,
            reads_normed=False,
            maximum=params.get("max_threshold"),
            is_constant=params.get("const_threshold", False),
        )
        expected = base.forward(X, original)
        ours = Served(manifest, tensors, f"model.layers.{layer}")
        torch.testing.assert_close(base.converted().forward(X, ours), expected)
        query = f"model.layers.{layer}.self_attn.q_proj.lora_B.weight"
        unordered = state[f"{NATIVE_PREFIX}.{layer}.attention.lora_Q.lora_B.weight"]
        wrong = Served(manifest, {**tensors, query: unordered}, ours.layer)
        assert not torch.allclose(base.converted().forward(X, wrong), expected, atol=1e-2)
        if is_sparse:
            assert (ours.gates == 0).any()
            assert (ours.gates > 0).any()


HF: dict[str, tuple[tuple[str, ...], int, float | None]] = {
    "soft, as published": (SPARSE, 4, None),
    "soft, linear router": (SPARSE, 0, None),
    "soft with a prompt": (SOFT, 4, None),
    "sparse, as published": (SPARSE, 4, 0.5),
    "sparse, another maximum": (SPARSE, 0, 0.9),
}


@pytest.mark.parametrize(("order", "swi", "maximum"), HF.values(), ids=HF.keys())
def test_the_port_computes_what_is_served(
    order: tuple[str, ...], swi: int, maximum: float | None, tmp_path: Path
) -> None:
    """peft_type says SOFTMOA whatever it is, and rank and alpha of the config are not used."""
    is_sparse = maximum is not None
    state = checkpoint.state(HF_PREFIX, HF_NAMES, order, swi=swi, is_sparse=is_sparse)
    state = {key: tensor.bfloat16() for key, tensor in state.items()}
    folder = save_hf(tmp_path / "moa", state, hf_config())
    given = None if maximum in (None, 0.5) else maximum
    imported = import_hf(folder, given, tmp_path / "out")
    manifest, tensors = served(imported, tmp_path / "store")
    assert manifest.base_model == "Qwen/Qwen3-8B"
    assert {router.input for router in manifest.routers} == {"post_norm"}
    base = LlamaLayer.random().converted()
    for layer in range(LAYERS):
        original = Original(
            state=state,
            names=named(HF_PREFIX, HF_NAMES, layer),
            order=order,
            scale=1.0,
            reads_normed=True,
            maximum=maximum,
        )
        expected = base.forward(X, original)
        ours = Served(manifest, tensors, f"model.layers.{layer}")
        torch.testing.assert_close(base.forward(X, ours), expected)
        original.reads_normed = False
        assert not torch.allclose(base.forward(X, original), expected, atol=1e-2)


def test_the_checkpoint_of_the_base_tells_its_heads(tmp_path: Path) -> None:
    state = checkpoint.state(NATIVE_PREFIX, NATIVE_NAMES, SOFT)
    folder = save_native(tmp_path / "moa", state, native_params(SOFT))
    base = tmp_path / "base"
    base.mkdir()
    text = f'{{"num_attention_heads": {HEADS}, "num_key_value_heads": {KV_HEADS}}}'
    (base / "config.json").write_text(text)
    by_base = import_native(folder, Heads(), base, tmp_path / "by-base").folder
    by_hand = import_native(folder, GIVEN, None, tmp_path / "by-hand").folder
    for file in ("adapter_model.safetensors", "adaptermix.json"):
        assert (by_base / file).read_bytes() == (by_hand / file).read_bytes()


def test_the_card_says_what_was_assumed(tmp_path: Path) -> None:
    state = checkpoint.state(HF_PREFIX, HF_NAMES, SPARSE, swi=4, is_sparse=True)
    imported = import_hf(save_hf(tmp_path / "moa", state, hf_config()), None, tmp_path / "out")
    said = (imported.folder / "README.md").read_text()
    for part in (
        "sparse MoA: 12 experts in 2 layers, swiglu routers with 6 gates",
        "0.5 times the sigmoid of a net; gates below count as 0",
        "| base | Qwen/Qwen3-8B |",
        "the config says rank 16, the tensors have 3",
        "the config's lora_alpha 32 has no effect",
    ):
        assert part in said
