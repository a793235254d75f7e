"""Blobs in an object store (S3, GCS, Azure, memory) through obstore, read through a disk cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore

from adapters_store.blobs.base import (
    FILES,
    MANIFEST,
    REQUIRED,
    AdapterFiles,
    StoredBlob,
    hex_of,
    verify_files,
)
from adapters_store.blobs.cache import BlobCache
from adapters_store.errors import (
    AdapterNotFoundError,
    StoreBrokenError,
    StoreFullError,
    StoreUnavailableError,
)

_NO_ROOM = ("507", "StorageFull", "QuotaExceeded", "InsufficientStorage")


@contextmanager
def _store_errors() -> Iterator[None]:
    """Raises the store's own errors for those of the object store."""
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise StoreBrokenError(f"the blob store refuses: {_line(error)}") from error
    except BaseError as error:
        if any(sign in str(error) for sign in _NO_ROOM):
            raise StoreFullError(f"the blob store has no room left: {_line(error)}") from error
        raise StoreUnavailableError(f"the blob store does not answer: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class RemoteBlobs:
    """A blob is four objects under `sha256/<2 hex>/<64 hex>/`; the manifest is written last."""

    def __init__(self, store: ObjectStore, cache: BlobCache) -> None:
        self._store = store
        self._cache = cache

    def staging(self) -> AbstractContextManager[Path]:
        return self._cache.local.staging()

    def put(self, digest: str, staged: Path) -> None:
        # Written again even when held: it heals a damaged copy and renews its age for `gc`.
        for name in FILES:
            if (staged / name).exists():
                with _store_errors():
                    obstore.put(self._store, _key(digest, name), staged / name)

    def contains(self, digest: str) -> bool:
        try:
            with _store_errors():
                obstore.head(self._store, _key(digest, MANIFEST))
        except FileNotFoundError:
            return False
        return True

    def fetch(self, digest: str) -> AdapterFiles:
        return self._cache.fetch(digest, lambda folder: self._download(digest, folder))

    def blobs(self) -> Iterator[StoredBlob]:
        sizes: dict[str, int] = defaultdict(int)
        modified: dict[str, float] = defaultdict(float)
        with _store_errors():
            objects = [item for batch in obstore.list(self._store, "sha256") for item in batch]
        for item in objects:
            digest = f"sha256:{item['path'].split('/')[-2]}"
            sizes[digest] += item["size"]
            modified[digest] = max(modified[digest], item["last_modified"].timestamp())
        for digest, size in sizes.items():
            yield StoredBlob(digest, size, modified[digest])

    def delete(self, digest: str) -> int:
        self._cache.discard(digest)
        prefix = _key(digest, "")
        with _store_errors():
            sizes = {
                item["path"]: item["size"]
                for batch in obstore.list(self._store, prefix)
                for item in batch
            }
            # The manifest goes first: what is left of a broken delete is no adapter.
            for path in sorted(sizes, key=lambda path: not path.endswith(MANIFEST)):
                obstore.delete(self._store, path)
        return sum(sizes.values())

    def sweep(self) -> int:
        return self._cache.local.sweep()

    def _download(self, digest: str, folder: Path) -> None:
        for name in reversed(FILES):
            try:
                with _store_errors():
                    result = obstore.get(self._store, _key(digest, name))
            except FileNotFoundError as error:
                if name in REQUIRED:
                    raise AdapterNotFoundError(digest) from error
                continue
            with _store_errors(), (folder / name).open("wb") as stream:
                for chunk in result.stream():
                    stream.write(chunk)
        verify_files(folder, digest)


def _key(digest: str, name: str) -> str:
    digits = hex_of(digest)
    return f"sha256/{digits[:2]}/{digits}/{name}"
