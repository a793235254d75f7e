"""How adapters get from this machine to a running server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from server.cli.client import body_of, console, errors

_Part = tuple[str, tuple[str, Any]]


def publish_adapter(
    client: httpx.Client, source: Path, form: Mapping[str, Any], texts: Path | None = None
) -> None:
    """Upload an adapter and say what it became. Raises CommandError."""
    made = upload(client, "/admin/adapters", source, form, texts)
    console.print(f"[green]published[/] {made['name']}@{made['version']}  {made['digest']}")
    print_warnings([made])


def upload(
    client: httpx.Client,
    path: str,
    source: Path,
    form: Mapping[str, Any],
    texts: Path | None,
) -> Any:
    """Send files with a progress bar; the JSON of the answer. Raises CommandError."""
    files = sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]
    sent = [("files", file) for file in files]
    if texts is not None:
        sent.append(("texts", texts))
    with opened(sent) as parts:
        return body_of(client.post(path, data=dict(form), files=parts))


@contextmanager
def opened(sent: Sequence[tuple[str, Path]]) -> Iterator[list[_Part]]:
    """Parts of a multipart form, (field, file), each with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=errors) as bars, ExitStack() as stack:
        yield [
            (
                field,
                (path.name, stack.enter_context(bars.open(path, "rb", description=path.name))),
            )
            for field, path in sent
        ]


def print_warnings(adapters: Sequence[Mapping[str, Any]]) -> None:
    """What the server finds odd about adapters."""
    for adapter in adapters:
        for warning in adapter["warnings"]:
            console.print(f"[yellow]warning[/]: {escape(warning)}", soft_wrap=True)
