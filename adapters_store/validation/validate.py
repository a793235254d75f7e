"""All checks of an adapter, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adapters_store.base_model import BaseModelSpec
from adapters_store.errors import TensorFileError
from adapters_store.expert_kinds.base import HINTS
from adapters_store.limits import StoreLimits
from adapters_store.near_names import MOST_HINTED
from adapters_store.problems import Problem
from adapters_store.tensor_header import read_header
from adapters_store.types import AdapterManifest
from adapters_store.validation.structure import structure_problems
from adapters_store.validation.tensors import tensor_problems, value_problems


def validate(
    manifest: AdapterManifest, tensors: Path, base: BaseModelSpec, limits: StoreLimits
) -> list[Problem]:
    """Every reason why this adapter cannot run on `base`, none if it can.

    Checks what experts and routers say of themselves and each other, modules, shapes, ranks,
    dtypes, limits and, in tensors that passed the rest, NaN and Inf.
    """
    try:
        header = read_header(
            tensors, max_header_bytes=limits.max_header_bytes, max_tensors=limits.max_tensors
        )
    except TensorFileError as error:
        return [Problem("tensors", text) for text in error.problems]
    problems = list(structure_problems(manifest))
    for part in manifest.parts:
        part_problems = [
            *part.problems(limits),
            *part.misfits(base, HINTS if len(problems) < MOST_HINTED else 0),
            *tensor_problems(part, header),
        ]
        problems += part_problems or value_problems(part, header, tensors)
    return list(dict.fromkeys(problems))


def misfits(manifest: AdapterManifest, base: BaseModelSpec) -> Iterator[Problem]:
    """The reasons why an adapter cannot act in `base`, whatever its tensors hold."""
    for part in manifest.parts:
        yield from part.misfits(base, HINTS)
