"""Our own adapter folder: experts that no other format has a place for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from adaptermix.training.settings import DTypeName, RunSettings
from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec
from adapters_store.formats.native import FORMAT, MANIFEST_FILE
from adapters_store.formats.tensor_file import TENSOR_FILE
from adapters_store.manifest import manifest_to_json
from adapters_store.types import AdapterManifest


def save_native(
    out: Path,
    settings: RunSettings,
    experts: Sequence[ExpertSpec],
    tensors: Mapping[str, Tensor],
    routers: Sequence[GatingNetworkSpec] = (),
) -> None:
    """Write `adaptermix.json` and the tensors, in the dtype of the base, into `out`.

    tensors: under the keys that experts and routers name.
    """
    out.mkdir(parents=True, exist_ok=True)
    manifest = AdapterManifest(
        format=FORMAT,
        experts=tuple(experts),
        base_model=settings.base_name,
        routers=tuple(routers),
    )
    write_folder(out, manifest, tensors, settings.dtype)


def write_folder(
    out: Path,
    manifest: AdapterManifest,
    tensors: Mapping[str, Tensor],
    dtype: DTypeName,
) -> None:
    """Write manifest and tensors into the folder `out`, the tensors in `dtype`."""
    (out / MANIFEST_FILE).write_bytes(manifest_to_json(manifest))
    stored = {
        name: tensor.detach().to(getattr(torch, dtype)).cpu().contiguous()
        for name, tensor in tensors.items()
    }
    save_file(stored, out / TENSOR_FILE)
