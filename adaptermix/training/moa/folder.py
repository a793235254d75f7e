"""The folder of a trained adapter, written and read."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from adaptermix.training.errors import TrainingError
from adaptermix.training.moa.building import frozen_base
from adaptermix.training.moa.model import MoaModel
from adaptermix.training.native import write_folder
from adaptermix.training.settings import DTypeName, RunSettings
from adapters_store.errors import IntegrityError
from adapters_store.formats.native import MANIFEST_FILE
from adapters_store.formats.tensor_file import TENSOR_FILE
from adapters_store.manifest import manifest_from_json


def save_moa(model: MoaModel, out: Path, dtype: DTypeName) -> None:
    """Write manifest and tensors, in the dtype of the base that they were trained for."""
    write_folder(out, model.manifest, model.tensors, dtype)


def load_moa(folder: Path, settings: RunSettings) -> MoaModel:
    """The base of `settings` with the adapter that `save_moa` wrote, to be measured in training's
    own code; raises TrainingError where the folder holds none."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise TrainingError(f"{folder} holds no {MANIFEST_FILE}")
    try:
        manifest = manifest_from_json(path.read_bytes())
    except IntegrityError as error:
        raise TrainingError(f"{path}: {error}") from error
    model = MoaModel(frozen_base(settings), manifest)
    model.load(load_file(folder / TENSOR_FILE))
    return model.eval()
