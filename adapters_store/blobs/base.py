"""The seam between the store and where its bytes live."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adapters_store.digest import adapter_digest
from adapters_store.errors import IntegrityError, InvalidReferenceError
from adapters_store.manifest import manifest_from_json
from adapters_store.types import AdapterManifest

MANIFEST = "manifest.json"
TENSORS = "adapter.safetensors"
CONFIG = "adapter_config.json"
TEXTS = "texts.jsonl"
# The manifest comes last: where there is no rename, its presence says that the rest is there.
FILES = (TENSORS, CONFIG, TEXTS, MANIFEST)
REQUIRED = (TENSORS, MANIFEST)

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class AdapterFiles:
    """An adapter on this machine's disk, its digest verified.

    Hold on to the object while you read: a cache does not evict what somebody holds.
    """

    manifest: AdapterManifest
    tensors: Path  # safetensors; `manifest.experts[i].tensor_a` are its keys
    texts: Path | None = None  # JSONL, one JSON string a line
    config: Path | None = None  # the foreign config as uploaded


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """One line of a listing of blobs."""

    digest: str
    size_bytes: int
    modified_at: float  # seconds since the epoch


class BlobStore(Protocol):
    """Immutable adapters by digest. Safe to use from many threads and processes."""

    def staging(self) -> AbstractContextManager[Path]:
        """A fresh private folder to write an adapter's files into; gone afterwards."""

    def put(self, digest: str, staged: Path) -> None:
        """Keep the files of a staged folder under `digest`: all of them or none.

        Does nothing when the digest is held already; replaces a copy that is damaged. The folder
        may be moved away. The caller has computed `digest` from these files.
        """

    def contains(self, digest: str) -> bool:
        """Whether `fetch` would find it."""

    def fetch(self, digest: str) -> AdapterFiles:
        """Files of an adapter, verified on the first fetch by this object.

        Raises AdapterNotFoundError; IntegrityError when the bytes are not what was published.
        """

    def blobs(self) -> Iterator[StoredBlob]:
        """All that is held, whole or not, in no order."""

    def delete(self, digest: str) -> int:
        """Remove a blob; the bytes freed, 0 when there was none."""

    def sweep(self) -> int:
        """Remove what uploads left behind whose process has died; the bytes freed."""


def hex_of(digest: str) -> str:
    """The 64 hex digits of a digest; raises InvalidReferenceError for anything else."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise InvalidReferenceError(digest)
    return match[1]


def verify_files(folder: Path, digest: str) -> None:
    """Raises IntegrityError when the files of a blob's folder do not hash to `digest`."""
    try:
        texts = (folder / TEXTS).read_bytes() if (folder / TEXTS).exists() else b""
        actual = adapter_digest((folder / MANIFEST).read_bytes(), folder / TENSORS, texts)
    except OSError as error:
        raise IntegrityError(f"{digest} cannot be read: {error}") from error
    if actual != digest:
        raise IntegrityError(
            f"{digest} does not hold what its digest says (its files hash to {actual}): "
            "publish the adapter again to replace the damaged copy"
        )


def read_files(folder: Path) -> AdapterFiles:
    """The files of a verified folder; raises IntegrityError when its manifest cannot be read."""
    try:
        manifest = manifest_from_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise IntegrityError(f"{folder / MANIFEST} cannot be read: {error}") from error
    texts, config = folder / TEXTS, folder / CONFIG
    return AdapterFiles(
        manifest=manifest,
        tensors=folder / TENSORS,
        texts=texts if texts.exists() else None,
        config=config if config.exists() else None,
    )
