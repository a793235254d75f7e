"""How adapters get from this machine to a running server."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from adaptermix.cli.client import CommandError, body_of
from adaptermix.cli.output import console, errors, reason
from adapters_store.archives import SUFFIXES, is_archive
from adapters_store.errors import InvalidAdapterError
from adapters_store.limits import DEFAULT_LIMITS
from adapters_store.names import name_problems
from adapters_store.texts import MAX_TEXTS_BYTES, TEXTS_FILE, parse_texts, text_problems
from adapters_store.types import Problem
from server.printable import as_markup, printable
from server.schemas.adapters import AdapterReply

_CHUNK = 1 << 20
_MAGIC = {b"PK": ".zip", b"\x1f\x8b": ".tar.gz"}  # of an archive whose name doesn't tell; or .tar

_Part = tuple[str, tuple[str, Any]]
Sent = tuple[str, str, Path | bytes]
"""A part of a form: its field, its file's name, and where that is or what it holds."""


def publish_adapter(
    client: httpx.Client, source: Path, form: Mapping[str, Any], texts: Path | None = None
) -> None:
    """Upload an adapter and say what it became. Raises CommandError."""
    made = upload(client, "/admin/adapters", source, form, texts, AdapterReply)
    label = as_markup(f"{made['name']}@{made['version']}  {made['digest']}")
    console.print(f"[green]published[/] {label}")
    print_notes(made.get("notes", ()))
    print_warnings([made])


def upload(
    client: httpx.Client,
    path: str,
    source: Path,
    form: Mapping[str, Any],
    texts: Path | None,
    shape: type[BaseModel],
) -> Any:
    """Send files with a progress bar; the JSON of the answer, of a shape. Raises CommandError.

    What the server would refuse whatever its base model is, is refused before anything is sent;
    what is no part of the adapter is left out of a folder.
    """
    _refuse([*name_problems("name", [form["name"]]), *name_problems("tags", form["tags"])])
    with _adapter_files(source) as files:
        sent: list[Sent] = [("files", name, file) for name, file in files.items()]
        if texts is not None:
            sent.append(sent_texts(texts))
        with opened(sent) as parts:
            return body_of(client.post(path, data=dict(form), files=parts), shape)


def sent_texts(file: Path) -> Sent:
    """Sample texts as they are sent: read once, so that what is checked is what is sent.

    `file` may be a pipe. Raises CommandError for texts that no server takes.
    """
    with _reading(file) as opened_file:
        data = opened_file.read(MAX_TEXTS_BYTES + 1)
    if len(data) > MAX_TEXTS_BYTES:
        _refuse([Problem("texts", f"are more than {MAX_TEXTS_BYTES} bytes")])
    texts, problems = parse_texts(data)
    _refuse([*problems, *text_problems(texts, DEFAULT_LIMITS)])
    return ("texts", TEXTS_FILE, data)


def stem_of(source: Path) -> str:
    """What an adapter is called after its folder or archive, unless it is given a name.

    Raises CommandError for a pipe, which has none.
    """
    if source.is_dir():
        return source.name if source.name not in ("", "..") else source.resolve().name
    if not source.is_file() and not is_archive(source.name):
        raise CommandError(f"{source} says no name: give --name")
    endings = (len(end) for end in SUFFIXES if source.name.lower().endswith(end))
    return source.name[: len(source.name) - max(endings, default=0)]


@contextmanager
def _adapter_files(source: Path) -> Iterator[Mapping[str, Path]]:
    """What to send, by name. Raises CommandError."""
    # Here, not above: formats know numpy, which most commands have no use for.
    from adapters_store.folders import archive_problems

    with ExitStack() as stack:
        try:
            if source.is_dir():
                yield _folder_files(source)
            else:
                file = source if source.is_file() else stack.enter_context(_kept(source))
                _refuse(archive_problems(file))
                yield {file.name: file}
        except OSError as error:
            raise CommandError(f"{source} cannot be read: {reason(error)}") from error


def _folder_files(source: Path) -> Mapping[str, Path]:
    from adapters_store.folders import local_problems, select

    try:
        found = select(source)
    except InvalidAdapterError as error:
        raise CommandError(str(error)) from error
    _refuse(local_problems(found.files))
    if found.note is not None:
        print_notes([found.note], errors)  # standard output is for what the server says
    return found.files


@contextmanager
def _kept(pipe: Path) -> Iterator[Path]:
    """An archive that can be read once only, as a file: it is checked, then sent."""
    with tempfile.TemporaryDirectory(prefix="adaptermix-pipe-") as folder, _reading(pipe) as file:
        head = file.read(2)
        ending = "" if is_archive(pipe.name) else _MAGIC.get(head, ".tar")
        kept = Path(folder, f"{pipe.name}{ending}")
        with kept.open("wb") as copy:
            copy.write(head)
            left = DEFAULT_LIMITS.max_upload_bytes
            while left > 0 and (chunk := file.read(min(left, _CHUNK))):
                left -= copy.write(chunk)
        if left <= 0:
            raise CommandError(f"{pipe} holds more than {DEFAULT_LIMITS.max_upload_bytes} bytes")
        yield kept


@contextmanager
def _reading(file: Path) -> Iterator[IO[bytes]]:
    try:
        with file.open("rb") as opened_file:
            yield opened_file
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {reason(error)}") from error


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        raise CommandError(f"nothing was sent: {InvalidAdapterError(problems)}")


@contextmanager
def opened(sent: Sequence[Sent]) -> Iterator[list[_Part]]:
    """Parts of a multipart form, each with a progress bar."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=errors) as bars, ExitStack() as stack:
        parts: list[_Part] = []
        for field, name, content in sent:
            told = name.encode(errors="replace").decode()  # a header has UTF-8 alone
            file: Any
            if isinstance(content, bytes):
                file = bars.wrap_file(
                    io.BytesIO(content), len(content), description=printable(told)
                )
            else:
                file = bars.open(content, "rb", description=printable(told))
            parts.append((field, (told, stack.enter_context(file))))
        yield parts


def print_notes(notes: Sequence[str], output: Console = console) -> None:
    """What is worth knowing of an upload, and no reason to refuse it."""
    for note in notes:
        output.print(f"[yellow]note[/]: {as_markup(note)}", soft_wrap=True)


def print_warnings(adapters: Sequence[Mapping[str, Any]]) -> None:
    """What the server finds odd about adapters."""
    for adapter in adapters:
        for warning in adapter.get("warnings", ()):
            console.print(f"[yellow]warning[/]: {as_markup(warning)}", soft_wrap=True)
