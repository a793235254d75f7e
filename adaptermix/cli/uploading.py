"""Uploads from this machine to a running server, as people see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from adaptermix.cli.client import CommandError
from adaptermix.cli.output import console, errors
from adaptermix.client import Client, uploads
from adaptermix.client.uploads import Watcher
from server.printable import as_markup, printable


def publish_adapter(
    client: Client,
    source: Path,
    name: str,
    tags: Sequence[str] = (),
    texts: Path | None = None,
) -> None:
    """Upload an adapter and say what it became."""
    with watched() as watcher:
        adapter = client.adapters.publish(source, name, tags=tags, texts=texts, watcher=watcher)
    label = as_markup(f"{adapter.name}@{adapter.version}  {adapter.digest}")
    console.print(f"[green]published[/] {label}")
    print_notes(adapter.notes)
    print_warnings(adapter.warnings)


def stem_of(source: Path) -> str:
    """What an adapter is called after its folder or archive, unless it is given a name.

    Raises CommandError for a pipe, which has none.
    """
    stem = uploads.stem_of(source)
    if stem is None:
        raise CommandError(f"{source} says no name: give --name")
    return stem


@contextmanager
def watched() -> Iterator[Watcher]:
    """What shows an upload: a progress bar for each file, and notes before them."""
    watcher = _Bars()
    try:
        yield watcher
    finally:
        watcher.close()


class _Bars(Watcher):
    """Progress bars, which are there from the first file on."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def note(self, text: str) -> None:
        """See Watcher."""
        print_notes([text], errors)  # standard output is for what the server says

    def reading(self, name: str, file: BinaryIO, size: int) -> BinaryIO:
        """See Watcher."""
        if self._progress is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
            )
            self._progress = Progress(*columns, TransferSpeedColumn(), console=errors)
            self._progress.start()
        return self._progress.wrap_file(file, size, description=printable(name))

    def close(self) -> None:
        """Leave the bars as they are."""
        if self._progress is not None:
            self._progress.stop()


def print_notes(notes: Sequence[str], output: Console = console) -> None:
    """What is worth knowing of an upload, and no reason to refuse it."""
    for note in notes:
        output.print(f"[yellow]note[/]: {as_markup(note)}", soft_wrap=True)


def print_warnings(warnings: Sequence[str]) -> None:
    """What the server finds odd about adapters."""
    for warning in warnings:
        console.print(f"[yellow]warning[/]: {as_markup(warning)}", soft_wrap=True)
