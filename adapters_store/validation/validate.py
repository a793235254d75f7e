"""All checks of an adapter, in order."""

from __future__ import annotations

from pathlib import Path

from adapters_store.errors import TensorFileError
from adapters_store.limits import StoreLimits
from adapters_store.near_names import MOST_HINTED
from adapters_store.tensor_header import read_header
from adapters_store.types import AdapterManifest, BaseModelSpec, Problem
from adapters_store.validation.fit import misfits_of
from adapters_store.validation.structure import structure_problems, values_of
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
    for part in (*manifest.experts, *manifest.routers):
        found = [
            *values_of(part, limits),
            *misfits_of(part, base, hints=len(problems) < MOST_HINTED),
            *tensor_problems(part, header),
        ]
        problems += found or value_problems(part, header, tensors)
    return list(dict.fromkeys(problems))
