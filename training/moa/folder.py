"""The folder of a trained adapter, written and read: what the store takes, or what only trains."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from adapters_store.errors import IntegrityError
from adapters_store.formats.native import INSTANCE_FILE, MANIFEST_FILE
from adapters_store.formats.tensor_file import TENSOR_FILE
from adapters_store.manifest import manifest_from_json
from training.errors import TrainingError
from training.moa.building import frozen_base
from training.moa.model import MoaModel
from training.moa.router import RouterTraining
from training.native import write_folder
from training.settings import DTypeName, RunSettings

SERVED = MANIFEST_FILE
NOT_SERVED = INSTANCE_FILE
TENSORS = TENSOR_FILE
WHY_NOT = (
    "the server has no gates of whole prompts, so no store takes this folder; "
    "the variants soft and sparse are served"
)


def save_moa(model: MoaModel, out: Path, dtype: DTypeName) -> None:
    """Write manifest and tensors, in the dtype of the base that they were trained for.

    The manifest of an instance-level model has another name, so that no store takes the folder.
    """
    manifest = NOT_SERVED if model.takes_prompt_mask else SERVED
    write_folder(out, model.manifest, model.tensors, dtype, manifest)


def load_moa(folder: Path, settings: RunSettings) -> MoaModel:
    """The base of `settings` with the adapter that `save_moa` wrote, to be measured in training's
    own code; raises TrainingError where the folder holds none."""
    found = [folder / name for name in (SERVED, NOT_SERVED) if (folder / name).is_file()]
    if not found:
        raise TrainingError(f"{folder} holds neither {SERVED} nor {NOT_SERVED}")
    try:
        manifest = manifest_from_json(found[0].read_bytes())
    except IntegrityError as error:
        raise TrainingError(f"{found[0]}: {error}") from error
    training = RouterTraining(pooled=found[0].name == NOT_SERVED)
    model = MoaModel(frozen_base(settings), manifest, training)
    model.load(load_file(folder / TENSORS))
    return model.eval()
