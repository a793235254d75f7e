"""One run: its identity, by which the journal knows it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptermix.evaluation.recipes.settings import ExperimentSizes


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """An arm on a task under a seed."""

    experiment: str
    arm: str
    task: str
    seed: int
    sizes: ExperimentSizes
    base_name: str

    @property
    def key(self) -> str:
        """Equal for equal runs."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def label(self) -> str:
        """For people and for the run's folder."""
        return f"{self.experiment}-{self.task}-{self.arm}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run finds and leaves its files."""

    base: str  # what transformers loads
    data: Path
    folder: Path  # of the adapter and the rows that it learns


def to_json(job: TrainingJob, place: Place) -> str:
    """What a run's process is told."""
    paths = {name: str(path) for name, path in asdict(place).items()}
    return json.dumps({"job": asdict(job), "place": paths})


def from_json(text: str) -> tuple[TrainingJob, Place]:
    """What `to_json` wrote."""
    value: dict[str, Any] = json.loads(text)
    job, place = value["job"], value["place"]
    return (
        TrainingJob(**job | {"sizes": ExperimentSizes(**job["sizes"])}),
        Place(place["base"], Path(place["data"]), Path(place["folder"])),
    )
