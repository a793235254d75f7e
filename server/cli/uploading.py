"""How adapters get from this machine to a running server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from adapters_store.errors import InvalidAdapterError
from adapters_store.folders import archive_problems, local_problems, select
from adapters_store.texts import texts_file_problems
from adapters_store.types import Problem
from server.cli.client import CommandError, body_of, console, errors

_Part = tuple[str, tuple[str, Any]]


def publish_adapter(
    client: httpx.Client, source: Path, form: Mapping[str, Any], texts: Path | None = None
) -> None:
    """Upload an adapter and say what it became. Raises CommandError."""
    made = upload(client, "/admin/adapters", source, form, texts)
    console.print(f"[green]published[/] {made['name']}@{made['version']}  {made['digest']}")
    print_notes(made["notes"])
    print_warnings([made])


def upload(
    client: httpx.Client,
    path: str,
    source: Path,
    form: Mapping[str, Any],
    texts: Path | None,
) -> Any:
    """Send files with a progress bar; the JSON of the answer. Raises CommandError.

    What the server would refuse whatever its base model is, is refused before anything is sent;
    what is no part of the adapter is left out of a folder.
    """
    sent = [("files", name, file) for name, file in _adapter_files(source).items()]
    if texts is not None:
        _refuse(texts_file_problems(texts))
        sent.append(("texts", texts.name, texts))
    with opened(sent) as parts:
        return body_of(client.post(path, data=dict(form), files=parts))


def _adapter_files(source: Path) -> Mapping[str, Path]:
    """What to send, by name. Raises CommandError."""
    if not source.is_dir():
        _refuse(archive_problems(source))
        return {source.name: source}
    try:
        found = select(source)
    except InvalidAdapterError as error:
        raise CommandError(str(error)) from error
    _refuse(local_problems(found.files))
    if found.note is not None:
        print_notes([found.note])
    return found.files


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        raise CommandError(f"nothing was sent: {InvalidAdapterError(problems)}")


@contextmanager
def opened(sent: Sequence[tuple[str, str, Path]]) -> Iterator[list[_Part]]:
    """Parts of a multipart form, (field, name, file), each with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=errors) as bars, ExitStack() as stack:
        yield [
            (field, (name, stack.enter_context(bars.open(path, "rb", description=name))))
            for field, name, path in sent
        ]


def print_notes(notes: Sequence[str]) -> None:
    """What is worth knowing of an upload, and no reason to refuse it."""
    for note in notes:
        console.print(f"[yellow]note[/]: {escape(note)}", soft_wrap=True)


def print_warnings(adapters: Sequence[Mapping[str, Any]]) -> None:
    """What the server finds odd about adapters."""
    for adapter in adapters:
        for warning in adapter["warnings"]:
            console.print(f"[yellow]warning[/]: {escape(warning)}", soft_wrap=True)
