"""Blobs in a local directory: `<root>/sha256/<2 hex>/<64 hex>/{manifest.json,...}`."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapters_store.blobs.base import (
    MANIFEST,
    AdapterFiles,
    StoredBlob,
    hex_of,
    read_files,
    verify_files,
)
from adapters_store.errors import AdapterNotFoundError, IntegrityError


class LocalBlobs:
    """A blob is a folder that appears by one rename: it is there whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._staging = self.root / "staging"
        self._staging.mkdir(parents=True, exist_ok=True)
        self._verified: set[str] = set()
        self._lock = threading.Lock()

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A private folder under a file lock that dies with the process (see `sweep`)."""
        folder, descriptor = self._claim_folder()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)

    def put(self, digest: str, staged: Path) -> None:
        target = self.folder(digest)
        if target.is_dir() and not self._discard_damaged(digest):
            os.utime(target)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in staged.iterdir():
            _fsync(path)
        _fsync(staged)
        try:
            staged.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else somebody else has just put the same bytes
        for parent in (target.parent, target.parent.parent, self.root):
            _fsync(parent)

    def contains(self, digest: str) -> bool:
        return (self.folder(digest) / MANIFEST).exists()

    def fetch(self, digest: str) -> AdapterFiles:
        folder = self.folder(digest)
        if not folder.is_dir():
            self._forget(digest)
            raise AdapterNotFoundError(digest)
        with self._lock:
            is_verified = digest in self._verified
        if not is_verified:
            verify_files(folder, digest)
            with self._lock:
                self._verified.add(digest)
        return read_files(folder)

    def blobs(self) -> Iterator[StoredBlob]:
        for folder in self.root.glob("sha256/??/*"):
            with suppress(FileNotFoundError):  # deleted meanwhile
                modified = folder.stat().st_mtime
                yield StoredBlob(f"sha256:{folder.name}", _size(folder), modified)

    def delete(self, digest: str) -> int:
        """Rename away, then delete: nobody ever sees half a blob."""
        self._forget(digest)
        folder = self.folder(digest)
        trash = self._staging / uuid.uuid4().hex
        size = _size(folder)
        try:
            folder.rename(trash)
        except FileNotFoundError:
            return 0
        shutil.rmtree(trash, ignore_errors=True)
        return size

    def sweep(self) -> int:
        freed = 0
        for folder in self._staging.iterdir():
            with suppress(FileNotFoundError, BlockingIOError):
                descriptor = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    freed += _size(folder)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)
        return freed

    def folder(self, digest: str) -> Path:
        """The folder of a digest, whether it exists or not."""
        name = hex_of(digest)
        return self.root / "sha256" / name[:2] / name

    def _claim_folder(self) -> tuple[Path, int]:
        while True:
            folder = self._staging / uuid.uuid4().hex
            folder.mkdir()
            with suppress(FileNotFoundError):
                descriptor = os.open(folder, os.O_RDONLY)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if folder.exists():
                    return folder, descriptor
                os.close(descriptor)  # a sweep took it before the lock did

    def _discard_damaged(self, digest: str) -> bool:
        try:
            verify_files(self.folder(digest), digest)
        except IntegrityError:
            self.delete(digest)
            return True
        return False

    def _forget(self, digest: str) -> None:
        with self._lock:
            self._verified.discard(digest)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
