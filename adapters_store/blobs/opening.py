"""Blob stores by path or URL."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from adapters_store.blobs.base import BlobStore
from adapters_store.blobs.local import LocalBlobs
from adapters_store.errors import StoreError
from adapters_store.home import expanded, is_homeless

REMOTE_SCHEMES = ("s3", "gs", "az", "memory")
_RETRY_FOR = timedelta(seconds=20)  # of one question
DEFAULT_CACHE_BYTES = 16 << 30
_CACHE = "~/.cache/adaptermix/blobs"


def open_blobs(
    url_or_path: str | Path,
    *,
    cache_dir: Path | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    options: Mapping[str, Any] | None = None,
) -> BlobStore:
    """Blobs at a local directory, or at `s3://`, `gs://`, `az://` or `memory://`. No SQL needed.

    A remote store is read through `cache_dir` (None: ~/.cache/adaptermix/blobs),
    which holds at most `cache_bytes`. `options` go to the object store client (endpoint, region,
    credentials); what is not given there it takes from its cloud's usual environment.
    Raises StoreError for an unknown scheme or when obstore is not installed.
    """
    text = str(url_or_path)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return LocalBlobs(Path(url_or_path))
    if scheme == "file":
        return LocalBlobs(Path(text.removeprefix("file://")))
    if scheme not in REMOTE_SCHEMES:
        raise StoreError(
            f"blobs at {text!r}: unknown scheme {scheme!r}; use a directory or one of "
            + ", ".join(f"{name}://" for name in REMOTE_SCHEMES)
        )
    try:
        from obstore.store import from_url

        from adapters_store.blobs.cache import BlobCache
        from adapters_store.blobs.remote import RemoteBlobs
    except ImportError as error:
        raise StoreError(f"blobs at {text!r} need the package obstore: {error}") from error
    root = cache_dir or expanded(_CACHE)
    if is_homeless(root):
        raise StoreError(f"blobs at {text!r} are cached in {root}, but no home directory is known")
    client_options = {} if scheme == "memory" else {"retry_config": {"retry_timeout": _RETRY_FOR}}
    store = from_url(text, **client_options | dict(options or {}))
    return RemoteBlobs(store, BlobCache(root, cache_bytes))
