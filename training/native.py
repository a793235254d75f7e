"""Our own adapter folder: experts that no other format has a place for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters_store.expert_types import ExpertSpec, LayerRouterSpec
from adapters_store.manifest import manifest_to_json
from adapters_store.types import AdapterManifest
from training.settings import RunSettings

FORMAT = "adaptermix"


def save_native(
    out: Path,
    settings: RunSettings,
    experts: Sequence[ExpertSpec],
    tensors: Mapping[str, Tensor],
    routers: Sequence[LayerRouterSpec] = (),
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
    (out / "adaptermix.json").write_bytes(manifest_to_json(manifest))
    dtype = getattr(torch, settings.dtype)
    stored = {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(stored, out / "adapter_model.safetensors")
