"""`adaptermix pull`: bring the default base model and the sentence encoder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from adaptermix.cli.output import console, print_error
from router_engine.assets import (
    ASSETS,
    AssetError,
    AssetName,
    AssetProgress,
    OnProgress,
    ensure,
)
from server.printable import as_markup
from server.settings import SettingsError, load_settings


def register(app: typer.Typer) -> None:
    """Mount the command on the program."""
    app.command("pull")(pull)


def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Models to bring; all when none is named.", metavar="[NAME]..."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Cache directory; the setting `cache` when left out.")
    ] = None,
) -> None:
    """Bring the default base model and the sentence encoder into the cache."""
    bound = Console(file=sys.stderr)  # bound now: a conversion hides what libraries write
    try:
        chosen = [_asset_name(name) for name in names or list(ASSETS)]
        directory = load_settings(cache=cache).cache_dir
        with _bars(bound) as on_progress:
            paths = [ensure(name, directory, on_progress) for name in chosen]
    except (AssetError, SettingsError) as error:
        print_error(error)
        raise typer.Exit(1) from error
    for path in paths:
        console.print(as_markup(str(path)), soft_wrap=True)


def _asset_name(name: str) -> AssetName:
    if name not in ASSETS:
        raise AssetError(f"{name!r} is no model that pull brings: use {', '.join(ASSETS)}")
    return cast(AssetName, name)


@contextmanager
def _bars(console: Console) -> Iterator[OnProgress]:
    """One progress bar a model."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as progress:

        def on_progress(event: AssetProgress) -> None:
            if event.stage == "done" and event.name not in tasks:  # there already
                return
            label = f"{event.name}: {event.stage}"
            if event.name not in tasks:
                tasks[event.name] = progress.add_task(label, total=None)
            task = tasks[event.name]
            if event.total is not None:
                progress.update(task, completed=event.done, total=event.total)
            if event.stage == "done":
                total = progress.tasks[task].total or 1
                progress.update(task, completed=total, total=total)
            progress.update(task, description=label)

        yield on_progress
