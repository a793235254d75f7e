"""Uploads (files, a folder, an archive) as an adapter's plain files on disk."""

from __future__ import annotations

import io
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from adapters_store.archives import (
    BROKEN,
    OTHER_ARCHIVES,
    SUFFIXES,
    ArchiveEntry,
    ArchiveError,
    is_archive,
    read_archive,
    unpack_limit,
)
from adapters_store.errors import InvalidAdapterError
from adapters_store.limits import StoreLimits
from adapters_store.problems import name_list
from adapters_store.types import Problem

Upload = Path | Mapping[str, bytes | Path]
"""A folder, an archive's path, or file names with their contents (one of them may be an archive,
then it is the only one)."""


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """An upload, and what is said about it, to become the next version of a name."""

    name: str
    upload: Upload
    texts: Sequence[str] = ()  # sample texts; none: those that lie in the upload
    tags: Sequence[str] = ()


PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")

# Files that come along with adapters and say nothing about their mathematics.
HARMLESS = (
    *(
        "*.md",
        "*.txt",
        "*.json",
        "*.jsonl",
        "*.jinja",
        "*.log",
        "*.csv",
        "*.tsv",
        "*.yaml",
        "*.yml",
    ),
    *("*.toml", "*.html", "*.png", "*.jpg", "*.jpeg", "*.svg", "*.gif", "*.webp", "*.pdf"),
    *("*.model", "*.tfevents.*", "events.out.*", "licen[sc]e*", "notice*", "readme*", "copying*"),
    *(".gitattributes", ".gitignore", ".ds_store", "._*", "thumbs.db", "sha256sums"),
)

_APPLE_DOUBLE = "._"  # begins the name of what macOS keeps beside a file, whatever its suffix

POINTER = (
    "is a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned, then send "
    "it again"
)

# Of the format's present name and of its first one.
_POINTERS = (
    b"version https://git-lfs",
    b"version https://hawser.github.com/spec/",
)
_CHUNK = 1 << 20
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class UploadedFiles:
    """The files of one adapter, copied out of an upload."""

    files: Mapping[str, Path]  # by base name
    notes: tuple[str, ...]  # what was left out


def unpack(
    upload: Upload, into: Path, *, wanted: Callable[[str], bool], limits: StoreLimits
) -> UploadedFiles:
    """Copy the files whose base name is `wanted` into the empty folder `into`.

    Nothing of the upload's own names becomes a path on this machine. Raises InvalidAdapterError
    with every problem found: pickles, path tricks, links and devices, names twice, unknown files,
    broken archives, limits passed.
    """
    collector = _Collector(into, wanted, limits)
    try:
        for entry in _entries(upload, collector, limits):
            collector.add(entry)
    except ArchiveError as error:
        collector.refuse("upload", str(error))
    except BROKEN as error:
        collector.refuse("upload", f"cannot be read: {error}")
    return collector.finish()


def _entries(upload: Upload, collector: _Collector, limits: StoreLimits) -> Iterator[ArchiveEntry]:
    if isinstance(upload, Path):
        if upload.is_dir():
            return _folder_entries(upload)
        if not upload.is_file():
            raise ArchiveError(f"{upload} is neither a folder nor a file")
        upload = {upload.name: upload}
    archives = [name for name in upload if is_archive(name)]
    if not archives:
        return _file_entries(upload)
    if len(upload) > 1:
        raise ArchiveError(f"holds {archives[0]!r} beside other files: send an archive alone")
    path = _on_disk(upload[archives[0]], collector.into)
    if is_pointer(path):
        raise ArchiveError(POINTER)
    if path.stat().st_size > limits.max_upload_bytes:
        raise ArchiveError(
            f"is {path.stat().st_size} bytes long, at most {limits.max_upload_bytes} are accepted"
        )
    collector.limit = unpack_limit(path, limits)
    return read_archive(path, archives[0], limits)


def _on_disk(content: bytes | Path, folder: Path) -> Path:
    if isinstance(content, Path):
        return content
    path = folder / "archive"
    path.write_bytes(content)
    return path


def _file_entries(files: Mapping[str, bytes | Path]) -> Iterator[ArchiveEntry]:
    for name, content in files.items():
        if isinstance(content, bytes):
            yield ArchiveEntry(name, partial(io.BytesIO, content))
        else:
            yield ArchiveEntry(name, _opener(content))


def _folder_entries(folder: Path) -> Iterator[ArchiveEntry]:
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in sorted([*names, *links]):
            path = Path(parent, name)
            plain = stat.S_ISREG(path.lstat().st_mode)
            refusal = (
                None if plain else "is a link or a special file, only plain files are accepted"
            )
            yield ArchiveEntry(path.relative_to(folder).as_posix(), _opener(path), refusal)


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    def open_file() -> IO[bytes]:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")

    return open_file


@dataclass(slots=True)
class _Collector:
    """Judges one entry after the other and copies the wanted ones, under names of its own."""

    into: Path  # an empty folder for the copies
    wanted: Callable[[str], bool]  # by base name
    limits: StoreLimits
    limit: int = 0  # bytes that may be written
    written: int = 0  # bytes
    num_entries: int = 0
    names: dict[str, str] = field(default_factory=dict)  # without case -> as sent
    copies: dict[str, Path] = field(default_factory=dict)  # name as sent -> copy
    ignored: list[str] = field(default_factory=list)  # names of harmless files
    strays: dict[str, list[str]] = field(default_factory=dict)  # why to leave out -> names
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.limit = self.limits.max_upload_bytes

    def refuse(self, where: str, message: str) -> None:
        self.problems.append(Problem(_printable(where), message))

    def add(self, entry: ArchiveEntry) -> None:
        self.num_entries += 1
        if self.num_entries > self.limits.max_files:
            raise ArchiveError(f"holds more than {self.limits.max_files} files")
        name = entry.name.removeprefix("./")
        reason = _name_problem(name) or entry.refusal or self._duplicate(name)
        if reason is None:
            self._sort(name, entry)
        else:
            self.refuse(name, reason)

    def finish(self) -> UploadedFiles:
        folders = sorted({str(PurePosixPath(name).parent) for name in self.copies}, key=_depth)
        if len(folders) > 1:
            message = f"adapter files lie in several folders ({', '.join(folders)}): send one"
            others = name_list(f"{folder}/" for folder in folders[1:])
            self.refuse("upload", f"{message}; to send {folders[0]}, leave out {others}")
        root = "" if not folders or folders[0] == "." else f"{folders[0]}/"
        for reason, names in self.strays.items():
            places = dict.fromkeys(_below(name, root) for name in names)
            self.refuse(name_list(places), reason)
        if self.problems:
            raise InvalidAdapterError(self.problems)
        notes = (f"ignored: {name_list(self.ignored)}",) if self.ignored else ()
        return UploadedFiles(
            {PurePosixPath(name).name: path for name, path in self.copies.items()}, notes
        )

    def _duplicate(self, name: str) -> str | None:
        key = unicodedata.normalize("NFC", name).casefold()
        twin = self.names.get(key)
        self.names[key] = name
        return None if twin is None else f"comes twice, as {twin!r} too (case does not count)"

    def _sort(self, name: str, entry: ArchiveEntry) -> None:
        """Keep, ignore or refuse an honest plain file."""
        base = PurePosixPath(name).name
        if self.wanted(base):
            self._copy(name, entry)
            return
        reason = _refusal_by_name(base.lower())
        if reason is None:
            self.ignored.append(name)
        else:
            self.strays.setdefault(reason, []).append(name)

    def _copy(self, name: str, entry: ArchiveEntry) -> None:
        target = self.into / f"file-{len(self.copies)}"
        with entry.open() as source, target.open("wb") as sink:
            while chunk := source.read(_CHUNK):
                self.written += len(chunk)
                if self.written > self.limit:
                    raise ArchiveError(f"{name!r}: more than the limit of {self.limit} bytes")
                sink.write(chunk)
        if is_pointer(target):
            self.refuse(name, POINTER)
        self.copies[name] = target


def _name_problem(name: str) -> str | None:
    if not name or not name.isprintable() or len(name) > _MAX_NAME:
        return "has a name that is empty, not printable or longer than 255 characters"
    if name.startswith("/") or "\\" in name or ":" in name:
        return "is an absolute path or holds a backslash or a colon; send plain relative names"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "holds an empty, '.' or '..' part; send plain relative names"
    return None


def _depth(folder: str) -> tuple[int, str]:
    return (0 if folder == "." else folder.count("/") + 1, folder)


def _below(name: str, root: str) -> str:
    """A file by its path below the adapter's folder; of what lies deeper, the folder there."""
    first, separator, _ = name.removeprefix(root).partition("/")
    return f"{first}{separator}"


def is_pointer(path: Path) -> bool:
    """Whether a file only says where Git LFS keeps the one that is meant."""
    with path.open("rb") as stream:
        return stream.read(max(map(len, _POINTERS))).startswith(_POINTERS)


def _refusal_by_name(base: str) -> str | None:
    if base.startswith(_APPLE_DOUBLE):
        return None
    if base.endswith(PICKLE_SUFFIXES):
        return (
            "is a pickle, which can run code when it is read: leave it out, and send the weights "
            "as adapter_model.safetensors (checkpoints of AdaMix and MoA become that on your own "
            "machine by `adaptermix adapters import`)"
        )
    if base.endswith(".safetensors.index.json"):
        return "belongs to a sharded adapter; save it as one adapter_model.safetensors"
    if base.endswith(".safetensors"):
        return "is a tensor file that no adapter format reads; send one adapter_model.safetensors"
    if any(fnmatch(base, pattern) for pattern in HARMLESS):
        return None
    if base.endswith((*SUFFIXES, *OTHER_ARCHIVES)):
        return (
            f"is an archive that is not unpacked here: send one {', '.join(SUFFIXES[:-1])} or "
            f"{SUFFIXES[-1]} alone, or the files that are in it"
        )
    return "is no file of an adapter; leave it out"


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)
