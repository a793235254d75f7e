"""Checkpoints of an interrupted run: adapter, optimizer, schedule, random state and position."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptermix.training.errors import CheckpointError

_FILE = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after `step` optimizer steps.

    `settings` is everything that the result depends on; a run with other settings is refused.
    """

    settings: Mapping[str, Any]
    step: int
    adapter: Mapping[str, torch.Tensor]  # every trained parameter, by name
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    random_state: torch.Tensor
    device_random_states: list[torch.Tensor]  # of each CUDA device
    generator_states: list[torch.Tensor]  # of the recipe's own generators
    curves: Mapping[str, list[float]]
    dev_before: float | None
    seconds: float


def save(directory: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: a reader sees the old checkpoint or the new one."""
    temporary = directory / f".{_FILE}.{os.getpid()}"
    values = {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    try:
        torch.save(values, temporary)
        temporary.replace(directory / _FILE)
    finally:
        temporary.unlink(missing_ok=True)


def load(directory: Path, settings: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint of `directory`, None where there is none.

    Raises CheckpointError, naming each setting that differs, where it belongs to another run, or
    where another version wrote it.
    """
    path = directory / _FILE
    if not path.exists():
        return None
    values = torch.load(path, weights_only=True)
    if set(values) != set(Checkpoint.__slots__):
        raise CheckpointError(f"{path} is of another version of the program: restart")
    checkpoint = Checkpoint(**values)
    differing = [
        f"{name} (then {checkpoint.settings.get(name)!r}, now {settings.get(name)!r})"
        for name in sorted({*settings, *checkpoint.settings})
        if checkpoint.settings.get(name) != settings.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"{path} is of a run with other settings: {', '.join(differing)}; use those settings, "
            "another output directory, or restart"
        )
    return checkpoint


def remove(directory: Path) -> None:
    """Forget the checkpoint."""
    (directory / _FILE).unlink(missing_ok=True)
