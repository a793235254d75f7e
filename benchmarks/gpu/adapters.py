"""Random adapters by number: PEFT folders of one shape that differ in one value.

Speed depends on an adapter's shape only, and each lies in memory of its own. To draw all values of
each anew would take a minute of a card's time for a hundred adapters of an 8B shape.
"""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adaptermix.bench.subject import Subject, write_adapters
from benchmarks.gpu.settings import RANK

_TENSORS = "adapter_model.safetensors"
_EXACT = 256  # whole numbers from 0 on that bf16 can tell apart


class AdapterFolders:
    """Folders `a0`, `a1`, ... below one folder, for a checkpoint; each written when asked for."""

    def __init__(self, folder: Path, model: Path, modules: tuple[str, ...]) -> None:
        self._folder = folder
        self._model = model
        self._modules = modules

    @property
    def num_bytes(self) -> int:
        """Of one adapter's file."""
        return (self._first / _TENSORS).stat().st_size

    def write(self, number: int) -> Path:
        """The folder of an adapter, written if need be."""
        folder = self._folder / f"a{number}"
        if number == 0 or folder.exists():
            return self._first if number == 0 else folder
        shutil.copytree(self._first, folder, ignore=shutil.ignore_patterns(_TENSORS))
        name, tensor = next(iter(self._tensors.items()))
        changed = tensor.clone()
        high, low = divmod(number, _EXACT)
        changed.view(-1)[:2] = torch.tensor([low / _EXACT, high / _EXACT], dtype=changed.dtype)
        save_file({**self._tensors, name: changed}, folder / _TENSORS)
        return folder

    @cached_property
    def _first(self) -> Path:
        folder = self._folder / "a0"
        if folder.exists():
            return folder
        subject = Subject.of(str(self._model))
        return write_adapters(subject, self._folder, ["a0"], (RANK,), self._modules)[0]

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return dict(load_file(self._first / _TENSORS))
