"""`adaptermix pull`: bring the base model and the sentence encoder that are to be served."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

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

from adaptermix.cli.output import console, print_error, size
from router_engine.assets import (
    DEFAULT,
    DEFAULT_ENCODER,
    AssetProgress,
    OnProgress,
    asset_name,
    ensure,
    is_hub_id,
    resolve_model,
)
from router_engine.config import TINY_RANDOM
from router_engine.errors import EngineError
from server.printable import as_markup
from server.settings import Settings, SettingsError, load_settings

_LINES = 10  # a download, where nobody sees a bar move


def register(app: typer.Typer) -> None:
    """Mount the command on the program."""
    app.command("pull")(pull)


def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models to bring: 'default', 'all-minilm-l6-v2' or hub ids; when none is named "
            "those of the settings `model` and `encoder`.",
            metavar="[NAME]...",
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            help="Branch, tag or commit of hub ids; for the settings' own model the setting "
            "`revision` when left out."
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Cache directory; the setting `cache` when left out.")
    ] = None,
) -> None:
    """Bring the models that are to be served, and say where they are.

    The default base model and the sentence encoder come into the setting `cache`, models of the hub
    into Hugging Face's own (HF_HOME). What is there as a whole is not asked for again.
    """
    bound = Console(file=sys.stderr)  # bound now: a conversion hides what libraries write
    try:
        settings = load_settings(cache=cache, revision=None if names else revision)
        with _bars(bound) if bound.is_terminal else _lines(bound) as on_progress:
            for name in names or _of_settings(settings):
                own = settings.revision if name == settings.model else None
                path = _bring(name, revision or own, settings.cache_dir, on_progress)
                if path is None:
                    bound.print(as_markup(f"{name}: nothing to bring"), soft_wrap=True)
                else:
                    console.print(as_markup(str(path)), soft_wrap=True)
    except (EngineError, SettingsError) as error:
        print_error(error)
        raise typer.Exit(1) from error


def _of_settings(settings: Settings) -> list[str]:
    """The base model, and the sentence encoder where the settings name no folder of one."""
    from server.models import is_tiny_encoder

    has_default = settings.encoder == DEFAULT and not is_tiny_encoder(settings)
    return [settings.model, *([DEFAULT_ENCODER] if has_default else [])]


def _bring(name: str, revision: str | None, cache: Path, on_progress: OnProgress) -> Path | None:
    """Where the model is; None where it was there already without anybody's bringing it."""
    from router_engine.hub import bring_model, check_revision

    check_revision(name, revision)
    if (asset := asset_name(name)) is not None:
        return ensure(asset, cache, on_progress)
    if is_hub_id(name):
        return bring_model(name, revision, on_progress)
    if name != TINY_RANDOM:
        resolve_model(name, cache)
    return None


@contextmanager
def _bars(console: Console) -> Iterator[OnProgress]:
    """One progress bar a model."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
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


@contextmanager
def _lines(console: Console) -> Iterator[OnProgress]:
    """For a log: a line a stage, and some while a file comes."""
    told: set[str] = set()
    begun: set[str] = set()

    def on_progress(event: AssetProgress) -> None:
        if event.stage == "done" and event.name not in begun:  # there already
            return
        begun.add(event.name)
        line = f"{event.name}: {event.stage}"
        if event.total:
            part = min(_LINES * event.done // event.total, _LINES)
            line += f" {size(event.total)}, {100 * part // _LINES} %"
        if line not in told:
            told.add(line)
            console.print(as_markup(line), soft_wrap=True)

    yield on_progress
