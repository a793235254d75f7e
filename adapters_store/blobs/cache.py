"""A read-through cache of remote adapters on the local disk, bounded in bytes."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary, finalize

from adapters_store.blobs.base import AdapterFiles
from adapters_store.blobs.local import LocalBlobs
from adapters_store.errors import AdapterNotFoundError, IntegrityError


class BlobCache:
    """Least recently fetched adapters go first; one that somebody holds never goes.

    `max_bytes` bounds what is kept besides adapters in use. Processes may share the directory:
    whoever holds an adapter's AdapterFiles holds a file lock on its folder. In one process there
    is one download per digest at a time; different digests download at the same time.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.local = LocalBlobs(root)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held: WeakValueDictionary[str, AdapterFiles] = WeakValueDictionary()
        self._downloads: WeakValueDictionary[str, _DigestLock] = WeakValueDictionary()

    def fetch(self, digest: str, download: Callable[[Path], None]) -> AdapterFiles:
        """The adapter's local files; `download(folder)` writes them there when they are missing.

        Raises whatever `download` raises; IntegrityError when what came is not `digest`.
        """
        guard = self._digest_lock(digest)  # a name for it, or it would be gone at once
        with guard.lock:
            try:
                files = self._hold(digest)
            except (AdapterNotFoundError, IntegrityError):  # missing here, or damaged here
                with self.local.staging() as folder:
                    download(folder)
                    self.local.put(digest, folder)
                files = self._hold(digest)
        self._evict()
        return files

    def discard(self, digest: str) -> None:
        """Forget a digest: it is gone from the origin."""
        with self._lock:
            self._held.pop(digest, None)
        self.local.delete(digest)

    def _digest_lock(self, digest: str) -> _DigestLock:
        with self._lock:
            return self._downloads.setdefault(digest, _DigestLock())

    def _hold(self, digest: str) -> AdapterFiles:
        """The adapter if it is here, under a lock that lasts as long as the returned object."""
        with self._lock:
            files = self._held.get(digest)
        if files is not None:
            return files
        files = self.local.fetch(digest)
        folder = self.local.folder(digest)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError as error:
            raise AdapterNotFoundError(digest) from error
        finalize(files, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not _is_at(descriptor, folder):  # evicted by another process before the lock
            raise AdapterNotFoundError(digest)
        os.utime(folder)
        with self._lock:
            return self._held.setdefault(digest, files)

    def _evict(self) -> None:
        blobs = sorted(self.local.blobs(), key=lambda blob: blob.modified_at)
        total = sum(blob.size_bytes for blob in blobs)
        for blob in blobs:
            if total <= self._max_bytes:
                return
            total -= self._delete_unheld(blob.digest)

    def _delete_unheld(self, digest: str) -> int:
        """Bytes freed: 0 while anybody, in whatever process, holds the adapter."""
        with suppress(FileNotFoundError, BlockingIOError):
            descriptor = os.open(self.local.folder(digest), os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self.local.delete(digest)
            finally:
                os.close(descriptor)
        return 0


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


class _DigestLock:
    """A lock that lives as long as somebody waits for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
