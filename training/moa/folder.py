"""The folder of a trained adapter, written and read: what the store takes, or what only trains."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from adapters_store.errors import IntegrityError
from adapters_store.manifest import manifest_from_json, manifest_to_json
from training.errors import TrainingError
from training.moa.building import frozen_base
from training.moa.model import MoaModel
from training.moa.router import RouterTraining
from training.settings import DTypeName, RunSettings

SERVED = ("adaptermix.json", "adapter_model.safetensors")
NOT_SERVED = ("moa_instance.json", "moa_instance.safetensors")
WHY_NOT = (
    "the server has no gates of whole prompts, so no store takes this folder; "
    "the variants soft and sparse are served"
)


def save_moa(model: MoaModel, out: Path, dtype: DTypeName) -> None:
    """Write manifest and tensors, in the dtype of the base that they were trained for.

    An instance-level model goes into files of other names, which no store takes for an adapter.
    """
    manifest, tensors = NOT_SERVED if model.takes_prompt_mask else SERVED
    (out / manifest).write_bytes(manifest_to_json(model.manifest))
    stored = {
        name: tensor.to(getattr(torch, dtype)).cpu().contiguous()
        for name, tensor in model.tensors.items()
    }
    save_file(stored, out / tensors)


def load_moa(folder: Path, settings: RunSettings) -> MoaModel:
    """The base of `settings` with the adapter that `save_moa` wrote, to be measured in training's
    own code; raises TrainingError where the folder holds none."""
    for names, pooled in ((SERVED, False), (NOT_SERVED, True)):
        manifest_file, tensors_file = (folder / name for name in names)
        if manifest_file.is_file() and tensors_file.is_file():
            try:
                manifest = manifest_from_json(manifest_file.read_bytes())
            except IntegrityError as error:
                raise TrainingError(f"{manifest_file}: {error}") from error
            model = MoaModel(frozen_base(settings), manifest, RouterTraining(pooled=pooled))
            model.load(load_file(tensors_file))
            return model.eval()
    raise TrainingError(f"{folder} holds neither {SERVED[0]} nor {NOT_SERVED[0]} with its tensors")
