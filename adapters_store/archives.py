"""Reading .zip and .tar(.gz) without trusting them: entries as streams, never as paths."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO

from adapters_store.limits import StoreLimits
from adapters_store.tar_members import Member

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
OTHER_ARCHIVES = (  # that people have, and nothing here reads
    *(".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".lzma", ".zst", ".tzst", ".gz", ".lz4", ".br", ".z"),
    *(".7z", ".rar", ".iso", ".cab", ".whl", ".egg", ".jar"),
)
BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    OverflowError,
    RecursionError,  # of extended headers that follow each other
    NotImplementedError,
)

_RATIO_FREE_BYTES = 16 << 20  # below this a high ratio is normal: a fresh LoRA B is all zeros
_PACKED_FREE_BYTES = 1 << 20  # of headers and empty parts of a gzip file
_MAX_DIRECTORY_BYTES = 1 << 20
_PIECE = 1 << 16
_MAX_TAR_READ = 4 << 20  # entries are read in smaller pieces
_MAX_TAR_HEADERS = 1 << 20  # bytes of all headers together, which tarfile makes objects of

_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR = struct.Struct("<4sLQL")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")


class ArchiveError(ValueError):
    """The archive as a whole is refused; the message says why."""


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """One entry of an upload: a file, a link, a device."""

    name: str  # as sent, not to be trusted
    open: Callable[[], IO[bytes]]
    refusal: str | None = None  # set when it is no plain file


def is_archive(name: str) -> bool:
    """Whether a file's name says that it is an archive that `read_archive` reads."""
    return name.lower().endswith(SUFFIXES)


def unpack_limit(path: Path, limits: StoreLimits) -> int:
    """Bytes that this archive may unpack to: a total and, past 16 MiB, a ratio."""
    ratio = max(_RATIO_FREE_BYTES, path.stat().st_size * limits.max_unpack_ratio)
    return min(limits.max_unpacked_bytes, ratio)


def read_archive(path: Path, name: str, limits: StoreLimits) -> Iterator[ArchiveEntry]:
    """Entries of an archive in order; folders are left out. Read each before the next.

    Raises ArchiveError, or one of BROKEN from the archive libraries. The caller counts entries
    and bytes against the limits while it reads.
    """
    if name.lower().endswith(".zip"):
        yield from _read_zip(path)
    else:
        yield from _read_tar(path, unpack_limit(path, limits))


def _read_zip(path: Path) -> Iterator[ArchiveEntry]:
    with path.open("rb") as stream:
        _check_zip_directory(stream)
        with zipfile.ZipFile(stream) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield ArchiveEntry(
                        info.orig_filename, partial(archive.open, info), _zip_refusal(info)
                    )


def _zip_refusal(info: zipfile.ZipInfo) -> str | None:
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "is a link or a device, only plain files are accepted"
    if info.flag_bits & 1:
        return "is encrypted; send a zip without a password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed by a method other than store and deflate"
    return None


def _check_zip_directory(stream: BinaryIO) -> None:
    """Bound the central directory before zipfile reads it whole into memory."""
    size = stream.seek(0, io.SEEK_END)
    tail_size = min(size, _ZIP_END.size + 0xFFFF)
    start = size - tail_size
    stream.seek(start)
    tail = stream.read(tail_size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _ZIP_END.size > len(tail):
        raise ArchiveError("is no zip file, or is truncated")
    directory_bytes = _ZIP_END.unpack_from(tail, at)[5]
    end64_at = start + at - _ZIP64_LOCATOR.size - _ZIP64_END.size
    if end64_at >= 0:
        stream.seek(end64_at)
        end64 = stream.read(_ZIP64_END.size)
        if stream.read(4) == b"PK\x06\x07":
            directory_bytes = max(directory_bytes, _ZIP64_END.unpack(end64)[8])
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise ArchiveError(
            f"has a directory of {directory_bytes} bytes, at most {_MAX_DIRECTORY_BYTES} "
            "are accepted: too many entries"
        )


def _read_tar(path: Path, limit: int) -> Iterator[ArchiveEntry]:
    with path.open("rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        packed = _Packed(raw)
        stream: io.BufferedIOBase = gzip.GzipFile(fileobj=packed) if is_packed else raw
        # Headers and padding come on top of the files' bytes.
        bounded = _BoundedReader(stream, limit + _RATIO_FREE_BYTES, packed)
        with tarfile.open(fileobj=bounded, mode="r:", tarinfo=Member) as archive:
            while (member := archive.next()) is not None:
                if member.isdir():
                    continue
                bounded.is_header = False
                yield ArchiveEntry(member.name, _tar_opener(archive, member), _tar_refusal(member))
                bounded.is_header = True
            # tarfile takes a broken header for the end.
            bounded.seek(archive.offset)
            if any(bounded.read(tarfile.BLOCKSIZE)):
                raise ArchiveError("is broken, or cut short, behind its last readable entry")
            if is_packed:  # gzip tells at its very end whether all of it is as it was packed
                bounded.is_header = False
                while bounded.read(_PIECE):
                    pass


def _tar_opener(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def open_member() -> IO[bytes]:
        stream = archive.extractfile(member)
        if stream is None:
            raise ArchiveError(f"{member.name!r} cannot be read")
        return stream

    return open_member


def _tar_refusal(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return f"is a link to {member.linkname!r}, only plain files are accepted"
    if not member.isreg():
        return "is a device, a pipe or of another special kind, only plain files are accepted"
    if member.issparse():
        return "is a sparse file, only plain files are accepted"
    return None


class _Packed(io.RawIOBase):
    """A gzip file's bytes, as many as what they unpack to may need: parts of it may be empty."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self._most = _PACKED_FREE_BYTES

    def expect(self, unpacked: int) -> None:
        """Let so much be read as this many bytes may take; stored ones take most."""
        self._most = _PACKED_FREE_BYTES + unpacked + unpacked // 16

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if self._raw.tell() > self._most:
            raise ArchiveError("is packed so that it takes more bytes than it unpacks to")
        return self._raw.read(size)


class _BoundedReader(io.RawIOBase):
    """A tar's bytes up to a limit: skipping over an entry unpacks it as well."""

    def __init__(self, stream: io.BufferedIOBase, limit: int, packed: _Packed) -> None:
        self._stream = stream
        self._packed = packed
        self._limit = limit
        self._headers_left = _MAX_TAR_HEADERS
        self.is_header = True  # what is read now, and no entry's bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET:
            self._check(offset)
        return self._stream.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_TAR_READ:
            raise ArchiveError(f"asks to read {size} bytes at once: no honest tar file does")
        if self.is_header:
            self._headers_left -= size
            if self._headers_left < 0:
                raise ArchiveError(
                    f"has more than {_MAX_TAR_HEADERS} bytes of headers: too many entries"
                )
        self._check(self._stream.tell() + size)
        return self._stream.read(size)

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise ArchiveError(f"unpacks to more than the limit of {self._limit} bytes")
        self._packed.expect(position)
