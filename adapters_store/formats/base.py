"""What a format must do: recognise its files, and read them into a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adapters_store.limits import StoreLimits
from adapters_store.types import AdapterManifest, BaseModelSpec, Problem


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """The uploaded files by name, checked to be plain files; the model that they must fit."""

    files: Mapping[str, Path]
    base: BaseModelSpec
    limits: StoreLimits


@dataclass(frozen=True, slots=True)
class ParsedAdapter:
    """What a format made of the files. The manifest is None only if there are problems."""

    tensors: Path | None = None  # safetensors with the keys that the manifest names
    config: Path | None = None  # kept beside the tensors, for people
    manifest: AdapterManifest | None = None
    problems: tuple[Problem, ...] = ()
    unknown_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class AdapterFormat(Protocol):
    """One foreign format."""

    @property
    def name(self) -> str:
        """The word that `AdapterManifest.format` carries."""

    @property
    def files(self) -> frozenset[str]:
        """Base names of the files that it reads; all others of an upload are left alone."""

    def recognises(self, given: AdapterFolder) -> bool:
        """Whether these files are of this format. Reads as little as it can; never raises."""

    def read(self, given: AdapterFolder) -> ParsedAdapter:
        """The manifest, or every reason why there is none. Never raises for bad input."""
