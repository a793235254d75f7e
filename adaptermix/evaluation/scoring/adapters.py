"""Whether a folder holds a PEFT adapter that fits a base; PEFT passes over what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptermix.training.errors import TrainingError
from adaptermix.training.moa.plan import shape_of
from adapters_store.formats import AdapterFolder
from adapters_store.formats.peft import PeftLoraFormat
from adapters_store.limits import StoreLimits
from adapters_store.problems import bounded_problems
from adapters_store.types import BaseModelSpec, Problem
from adapters_store.validation import validate
from router_engine.model.embeddings import embedding_specs


def check_adapter(folder: Path, base: Any) -> None:
    """Raises TrainingError with every reason why a server of `base` would not load the folder."""
    spec = replace(shape_of("the base", base), embeddings=embedding_specs(base))
    problems = bounded_problems(list(_problems(folder, spec)))
    if problems:
        raise TrainingError(f"adapter {folder}: {'; '.join(map(str, problems))}")


def _problems(folder: Path, base: BaseModelSpec) -> Iterator[Problem]:
    reader, limits = PeftLoraFormat(), StoreLimits()
    files = {name: folder / name for name in reader.files if (folder / name).is_file()}
    if not files:
        wanted = " and ".join(sorted(reader.files))
        yield Problem("files", f"{wanted} are not there: name a folder that PEFT has written")
        return
    reading = reader.read(AdapterFolder(files, base, limits))
    yield from reading.problems
    if reading.manifest is not None and reading.tensors is not None:
        yield from validate(reading.manifest, reading.tensors, base, limits)
