"""The seam of a format: it recognises its files, and reads them into a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adapters_store.limits import StoreLimits
from adapters_store.types import AdapterManifest, BaseModelSpec, Problem


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """The files of an upload as a format is given them."""

    files: Mapping[str, Path]  # by base name, checked to be plain files
    base: BaseModelSpec  # the model that they must fit
    limits: StoreLimits


@dataclass(frozen=True, slots=True)
class ParsedAdapter:
    """An upload as a format has read it."""

    tensors: Path | None = None  # safetensors with the keys that the manifest names
    config: Path | None = None  # kept beside the tensors, for people
    manifest: AdapterManifest | None = None  # None only if there are problems
    problems: tuple[Problem, ...] = ()
    unknown_keys: tuple[str, ...] = ()  # of the config
    notes: tuple[str, ...] = ()  # to whom publishes it: what was left out or is odd


class AdapterFormat(Protocol):
    """One foreign format."""

    @property
    def name(self) -> str:
        """The word that `AdapterManifest.format` carries."""

    @property
    def files(self) -> frozenset[str]:
        """Base names of the files that it reads; all others of an upload are left alone."""

    def recognises(self, folder: AdapterFolder) -> bool:
        """Whether these files are of this format. Reads as little as it can; never raises."""

    def read(self, folder: AdapterFolder) -> ParsedAdapter:
        """The manifest, or every reason why there is none. Never raises for bad input."""
