"""`adaptermix keys`: API keys, directly in the store. No server need run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from adaptermix.cli.output import JsonOption, console, errors, fail, moment, write_json, write_text
from server.printable import as_markup
from server.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from adapters_store.store import AdapterStore

app = typer.Typer(help="Make, list and revoke API keys of a store.", no_args_is_help=True)

CacheOption = Annotated[Path | None, typer.Option(help="As for `adaptermix serve`.")]
StoreOption = Annotated[Path | None, typer.Option(help="As for `adaptermix serve`.")]
UrlOption = Annotated[str | None, typer.Option(help="As for `adaptermix serve`.")]


class Kind(StrEnum):
    """What a key opens."""

    USE = "use"
    ADMIN = "admin"


def register(program: typer.Typer) -> None:
    """Mount the commands on the program."""
    program.add_typer(app, name="keys")


@app.command()
def create(
    label: Annotated[str, typer.Argument(help="Whom or what the key is for.")],
    kind: Annotated[Kind, typer.Option(help="use: generate; admin: everything.")] = Kind.USE,
    cache: CacheOption = None,
    store: StoreOption = None,
    database_url: UrlOption = None,
) -> None:
    """Make a key. Its secret is printed now and never again; where it can't be, none is made."""
    with _opened(cache, store, database_url) as opened:
        key, secret = opened.create_key(label, kind.value)
        try:
            label = as_markup(key.label)
            errors.print(f"[green]made[/] {key.kind} key {key.id} for {label}; keep the secret:")
            write_text(f"{secret}\n")
        except BaseException:  # whoever was to read it has gone, or has no room
            opened.discard_key(key.id)
            raise


@app.command("ls")
def list_keys(
    as_json: JsonOption = False,
    cache: CacheOption = None,
    store: StoreOption = None,
    database_url: UrlOption = None,
) -> None:
    """List keys; secrets are not kept."""
    with _opened(cache, store, database_url) as opened:
        keys = opened.list_keys()
    if as_json:
        write_json([asdict(key) for key in keys])
        return
    table = Table("id", "label", "kind", "made", "revoked")
    for key in keys:
        table.add_row(
            key.id, as_markup(key.label), key.kind, _day(key.created_at), _day(key.revoked_at)
        )
    console.print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys ls` shows it.")],
    cache: CacheOption = None,
    store: StoreOption = None,
    database_url: UrlOption = None,
) -> None:
    """Take a key out of force, at once."""
    with _opened(cache, store, database_url) as opened:
        key = opened.revoke_key(key_id)
    console.print(f"[green]revoked[/] {key.kind} key {key.id} of {as_markup(key.label)}")


@contextmanager
def _opened(
    cache: Path | None, store: Path | None, database_url: str | None
) -> Iterator[AdapterStore]:
    # Here, not above: database libraries take long, and --help is to be fast.
    from adapters_store.errors import StoreError
    from adapters_store.store import AdapterStore

    try:
        settings = load_settings(cache=cache, store=store, database_url=database_url)
        opened = AdapterStore.open(
            settings.store_dir,
            database_url=settings.database_url,
            blobs_url=settings.blobs_url,
            patience=settings.database_patience,
        )
    except (SettingsError, StoreError) as error:
        fail(str(error), error)
    try:
        yield opened
    except StoreError as error:
        fail(str(error), error)
    finally:
        opened.close()


def _day(seconds: float | None) -> str:
    return "" if seconds is None else moment(seconds)
