"""Adapters and texts of this machine as parts of a form, checked before anything is sent."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, BinaryIO

from adaptermix.client.calls import Form, Part
from adaptermix.errors import InvalidInputError
from adaptermix.system_errors import reason
from adapters_store.archives import SUFFIXES, is_archive
from adapters_store.errors import InvalidAdapterError
from adapters_store.limits import DEFAULT_LIMITS
from adapters_store.names import name_problems
from adapters_store.texts import (
    MAX_TEXTS_BYTES,
    TEXTS_FILE,
    parse_texts,
    text_problems,
    texts_to_jsonl,
)
from adapters_store.types import Problem

Source = str | PathLike[str] | Mapping[str, bytes | str | PathLike[str]]
"""A folder or an archive, or files by name: their bytes, or where they are."""
Texts = str | PathLike[str] | Sequence[str]
"""Where a JSONL file of texts is, or the texts themselves."""

_CHUNK = 1 << 20
_MAGIC = {b"PK": ".zip", b"\x1f\x8b": ".tar.gz"}  # of an archive whose name doesn't tell; or .tar


class Watcher:
    """Sees an upload, and does nothing. What shows progress is made of a subclass."""

    def note(self, text: str) -> None:
        """What is worth knowing before it is sent, such as which files are left out."""

    def reading(self, name: str, file: BinaryIO, size: int) -> BinaryIO:
        """What a file of `size` bytes is read through while it is sent."""
        return file


@contextmanager
def adapter_form(
    source: Source,
    name: str | None,
    tags: Sequence[str],
    texts: Texts | None,
    watcher: Watcher | None,
) -> Iterator[Form]:
    """The form of an upload. Raises InvalidInputError for what every server would refuse."""
    watcher = watcher or Watcher()
    name = _name_of(source) if name is None else name
    _refuse([*name_problems("name", [name]), *name_problems("tags", tags)])
    with ExitStack() as stack:
        parts: list[tuple[str, str, Path | bytes]] = [
            ("files", file_name, file)
            for file_name, file in stack.enter_context(_adapter_files(source, watcher)).items()
        ]
        if texts is not None:
            parts.append(("texts", TEXTS_FILE, _texts(texts)))
        fields = {"name": name, "tags": list(tags)}
        yield Form(fields, [_opened(*part, watcher, stack) for part in parts])


@contextmanager
def texts_form(texts: Texts, watcher: Watcher | None) -> Iterator[Form]:
    """The form of sample texts. Raises InvalidInputError for texts that no server takes."""
    with ExitStack() as stack:
        part = _opened("texts", TEXTS_FILE, _texts(texts), watcher or Watcher(), stack)
        yield Form({}, [part])


def stem_of(source: Path) -> str | None:
    """What an adapter is called after its folder or archive; None for a pipe, which has no name."""
    if source.is_dir():
        return source.name if source.name not in ("", "..") else source.resolve().name
    if not source.is_file() and not is_archive(source.name):
        return None
    endings = (len(end) for end in SUFFIXES if source.name.lower().endswith(end))
    return source.name[: len(source.name) - max(endings, default=0)]


def _name_of(source: Source) -> str:
    name = None if isinstance(source, Mapping) else stem_of(Path(source))
    if name is None:
        raise InvalidInputError("name: these files say no name: name the adapter")
    return name


def _texts(texts: Texts) -> bytes:
    """As they are sent: read once, so that what is checked is what is sent.

    A path may be that of a pipe.
    """
    if isinstance(texts, str | PathLike):
        with _reading(Path(texts)) as file:
            data = file.read(MAX_TEXTS_BYTES + 1)
    else:
        data = texts_to_jsonl(texts)
    if len(data) > MAX_TEXTS_BYTES:
        _refuse([Problem("texts", f"are more than {MAX_TEXTS_BYTES} bytes")])
    parsed, problems = parse_texts(data)
    _refuse([*problems, *text_problems(parsed, DEFAULT_LIMITS)])
    return data


@contextmanager
def _adapter_files(source: Source, watcher: Watcher) -> Iterator[Mapping[str, Path]]:
    """What to send, by name."""
    # Here, not above: formats know numpy, which most calls have no use for.
    from adapters_store.folders import archive_problems, local_problems

    if isinstance(source, Mapping):
        with _laid_out(source) as files:
            _refuse(local_problems(files))
            yield files
        return
    path = Path(source)
    with ExitStack() as stack:
        try:
            if path.is_dir():
                yield _folder_files(path, watcher)
            else:
                file = path if path.is_file() else stack.enter_context(_copied(path))
                _refuse(archive_problems(file))
                yield {file.name: file}
        except OSError as error:
            raise InvalidInputError(f"{path} cannot be read: {reason(error)}") from error


def _folder_files(folder: Path, watcher: Watcher) -> Mapping[str, Path]:
    from adapters_store.folders import local_problems, select

    try:
        selection = select(folder)
    except InvalidAdapterError as error:
        raise InvalidInputError(str(error)) from error
    _refuse(local_problems(selection.files))
    if selection.note is not None:
        watcher.note(selection.note)
    return selection.files


@contextmanager
def _laid_out(
    contents: Mapping[str, bytes | str | PathLike[str]],
) -> Iterator[Mapping[str, Path]]:
    """Files by name, those of memory in a folder: checks read them there."""
    with tempfile.TemporaryDirectory(prefix="adaptermix-upload-") as folder:
        files = {}
        for number, (name, content) in enumerate(contents.items()):
            if isinstance(content, bytes):
                files[name] = Path(folder, str(number))
                files[name].write_bytes(content)
            else:
                files[name] = Path(content)
        yield files


@contextmanager
def _copied(pipe: Path) -> Iterator[Path]:
    """An archive that can be read once only, as a file: it is checked, then sent."""
    with tempfile.TemporaryDirectory(prefix="adaptermix-pipe-") as folder, _reading(pipe) as file:
        head = file.read(2)
        ending = "" if is_archive(pipe.name) else _MAGIC.get(head, ".tar")
        archive = Path(folder, f"{pipe.name}{ending}")
        with archive.open("wb") as copy:
            copy.write(head)
            left = DEFAULT_LIMITS.max_upload_bytes
            while left > 0 and (chunk := file.read(min(left, _CHUNK))):
                left -= copy.write(chunk)
        if left <= 0:
            raise InvalidInputError(
                f"{pipe} holds more than {DEFAULT_LIMITS.max_upload_bytes} bytes"
            )
        yield archive


@contextmanager
def _reading(file: Path) -> Iterator[IO[bytes]]:
    try:
        with file.open("rb") as opened_file:
            yield opened_file
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read: {reason(error)}") from error


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        raise InvalidInputError(f"nothing was sent: {InvalidAdapterError(problems)}")


def _opened(
    field: str, name: str, content: Path | bytes, watcher: Watcher, stack: ExitStack
) -> Part:
    """A part of a form, closed with the stack."""
    header = name.encode(errors="replace").decode()  # a header has UTF-8 alone
    file: BinaryIO
    if isinstance(content, bytes):
        file, size = io.BytesIO(content), len(content)
    else:
        file = stack.enter_context(content.open("rb"))
        size = content.stat().st_size
    return field, (header, watcher.reading(header, file, size))
