"""`adaptermix adapters`: what is on the shelf of a running server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from adaptermix.cli import importing
from adaptermix.cli.client import KeyOption, UrlOption, connect
from adaptermix.cli.output import JsonOption, console, moment, size, write_json, write_text
from adaptermix.cli.uploading import print_notes, print_warnings, publish_adapter, stem_of, watched
from adaptermix.client import adapters as calls
from adaptermix.client import system
from server.printable import as_markup
from server.schemas.adapters import AdapterReply, ResidencyReply

app = typer.Typer(help="Publish, list, check and remove adapters.", no_args_is_help=True)
app.add_typer(importing.app, name="import")

SourceArgument = Annotated[
    Path,
    typer.Argument(exists=True, help="A PEFT folder, or a .zip, .tar or .tar.gz of one."),
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="The adapter's name; the folder's when left out.")
]
TextsOption = Annotated[
    Path | None,
    typer.Option(
        "--texts",
        exists=True,
        dir_okay=False,
        help="Sample texts, JSONL, for routing by similarity; texts.jsonl of the folder when left "
        "out.",
    ),
]
TagsOption = Annotated[list[str] | None, typer.Option("--tag", help="A tag; may be repeated.")]
ReferenceArgument = Annotated[str, typer.Argument(help="name, name@version or name@alias")]


def register(program: typer.Typer) -> None:
    """Mount the commands on the program."""
    program.add_typer(app, name="adapters")


@app.command()
def publish(
    source: SourceArgument,
    name: NameOption = None,
    texts: TextsOption = None,
    tags: TagsOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Upload an adapter; it can be used at once."""
    with connect(url, key) as client:
        publish_adapter(client, source, _name(source, name), tags or (), texts)


@app.command()
def check(
    source: SourceArgument,
    name: NameOption = None,
    texts: TextsOption = None,
    tags: TagsOption = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Say whether an adapter would load and what it would cost; store nothing."""
    with connect(url, key) as client, watched() as watcher:
        label = _name(source, name)
        call = calls.check(source, label, tags=tags or (), texts=texts, watcher=watcher)
        report = client.send(call.raw())
    if as_json:
        write_json(report)
    else:
        _print_report(report)
    if not report["loads"]:
        raise typer.Exit(1)


def _print_report(report: Mapping[str, Any]) -> None:
    for problem in report["problems"]:
        where, message = as_markup(problem["where"]), as_markup(problem["message"])
        console.print(f"[red]{where}[/]: {message}", soft_wrap=True)
    for key_name in report["unknown_keys"]:
        console.print(f"[yellow]unknown key[/]: {as_markup(key_name)}", soft_wrap=True)
    print_notes(report["notes"])
    if report["loads"]:
        console.print(
            f"[green]would load[/]: rank {report['max_rank']}, {report['rank_rows']} rank rows, "
            f"{size(report['device_bytes'])} on the device"
        )


@app.command("ls")
def list_adapters(
    tag: Annotated[str | None, typer.Option(help="Only those that carry this tag.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List every version of every adapter."""
    with connect(url, key) as client:
        adapters = client.send(calls.list_adapters(tag).raw())["adapters"]
    if as_json:
        write_json(adapters)
        return
    console.print(_table(adapters))
    for adapter in adapters:
        print_warnings(adapter.get("warnings", ()))


@app.command()
def show(
    name: ReferenceArgument,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show every version of a name, or the one that is meant."""
    with connect(url, key) as client:
        adapters = client.send(calls.show(name).raw())["adapters"]
    if as_json:
        write_json(adapters)
        return
    for adapter in adapters:
        table = Table("", "", show_header=False, box=None)
        for field, value in adapter.items():
            table.add_row(f"[dim]{as_markup(field)}[/]", as_markup(_told(field, value)))
        console.print(table)


@app.command("rm")
def remove(
    name: ReferenceArgument,
    force: Annotated[bool, typer.Option("--force", help="Also while pinned or in use.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Delete one version, or all versions of a bare name."""
    with connect(url, key) as client:
        reply = client.adapters.delete(name, force=force)
    console.print(f"[green]deleted[/] {as_markup(', '.join(reply.deleted))}")


@app.command()
def texts(
    name: ReferenceArgument,
    file: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, help="Sample texts, JSONL. Left out: show."),
    ] = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show an adapter's sample texts as JSONL, or put those of a file in their place."""
    with connect(url, key) as client, watched() as watcher:
        if file is None:
            for text in client.adapters.texts(name):
                write_text(json.dumps(text) + "\n")
            return
        adapter = client.adapters.set_texts(name, file, watcher=watcher)
    console.print(
        f"[green]set[/] {adapter.num_texts} texts of {_version(adapter)}, "
        f"centroid {as_markup(adapter.centroid)}"
    )
    print_warnings(adapter.warnings)


@app.command()
def alias(
    name: Annotated[str, typer.Argument(help="The adapter's name.")],
    alias: Annotated[str, typer.Argument(help="The alias: afterwards name@alias can be used.")],
    version: Annotated[int, typer.Argument(min=1, help="The version that it means from now on.")],
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Point an alias at a version."""
    with connect(url, key) as client:
        adapter = client.adapters.set_alias(name, alias, version)
    console.print(f"[green]{as_markup(name)}@{as_markup(alias)}[/] is {_version(adapter)}")


@app.command()
def unalias(
    name: Annotated[str, typer.Argument(help="The adapter's name.")],
    alias: Annotated[str, typer.Argument(help="The alias; the version that it means stays.")],
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Remove an alias."""
    with connect(url, key) as client:
        reply = client.adapters.delete_alias(name, alias)
    console.print(f"[green]removed[/] {as_markup(', '.join(reply.deleted))}")


@app.command()
def load(name: ReferenceArgument, url: UrlOption = None, key: KeyOption = None) -> None:
    """Bring an adapter to the device, so that its first request does not wait."""
    with connect(url, key) as client:
        _print_residency(name, client.adapters.load(name))


@app.command()
def pin(
    name: ReferenceArgument,
    off: Annotated[bool, typer.Option("--off", help="Let it go again.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Load an adapter and keep it on the device."""
    with connect(url, key) as client:
        _print_residency(name, client.adapters.pin(name, pinned=not off))


@app.command()
def unload(name: ReferenceArgument, url: UrlOption = None, key: KeyOption = None) -> None:
    """Drop an adapter from device and host; it stays in the store."""
    with connect(url, key) as client:
        reply = client.adapters.unload(name)
    console.print(f"[green]unloaded[/] {as_markup(reply.name)}, {size(reply.freed_bytes)} are free")


@app.command()
def merge(
    adapters: Annotated[
        list[str] | None,
        typer.Argument(help="NAME or NAME=WEIGHT, one or several.", metavar="[ADAPTER]..."),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Restore the base.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Fold a mixture into the base; without one show what is folded in."""
    if off and adapters:
        raise typer.BadParameter("--off names no adapters")
    with connect(url, key) as client:
        if adapters:
            call = system.set_merged({"adapters": [weighted(text) for text in adapters]})
        else:
            call = system.clear_merged() if off else system.merged()
        state = client.send(call.raw())
    if as_json:
        write_json(state)
        return
    pairs = zip(state["adapters"], state["weights"], strict=False)
    told = " + ".join(f"{weight:g} {as_markup(name)}" for name, weight in pairs)
    console.print(f"[green]merged[/]: {told or 'nothing, the base is as it was'}")


def weighted(text: str) -> dict[str, Any]:
    """An adapter of a mixture, from NAME or NAME=WEIGHT. Raises typer.BadParameter."""
    name, separator, weight_text = text.partition("=")
    try:
        weight = float(weight_text) if separator else 1.0
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: use NAME=0.7") from error
    if not isfinite(weight):
        raise typer.BadParameter(f"{text!r}: the weight must be finite; use NAME=0.7")
    return {"name": name, "weight": weight}


def _print_residency(name: str, residency: ResidencyReply) -> None:
    where = _where(residency.level, pinned=residency.pinned)
    console.print(f"[green]{as_markup(name)}[/] is on {as_markup(where)}")


def _name(source: Path, name: str | None) -> str:
    return stem_of(source) if name is None else name


def _table(adapters: Sequence[Mapping[str, Any]]) -> Table:
    name = Column("adapter", no_wrap=True)  # whole, whatever else must shrink
    table = Table(name, "aliases", "kinds", "rank", "size", "where", "texts", "tags", "published")
    for adapter in adapters:
        residency = adapter.get("residency")
        table.add_row(
            _label(adapter),
            as_markup(" ".join(adapter["aliases"])),
            as_markup(" ".join(adapter["kinds"])),
            str(adapter["max_rank"]),
            size(adapter["size_bytes"]),
            "disk" if residency is None else as_markup(_place(residency)),
            _texts(adapter),
            as_markup(" ".join(adapter["tags"])),
            moment(adapter["created_at"]),
        )
    return table


def _texts(adapter: Mapping[str, Any]) -> str:
    if not adapter["num_texts"]:
        return "none"
    return as_markup(f"{adapter['num_texts']}, {adapter['centroid']}")


def _label(adapter: Mapping[str, Any]) -> str:
    return as_markup(f"{adapter['name']}@{adapter['version']}")


def _version(adapter: AdapterReply) -> str:
    return as_markup(f"{adapter.name}@{adapter.version}")


def _place(residency: Mapping[str, Any]) -> str:
    return _where(residency["level"], pinned=residency["pinned"])


def _where(level: str, *, pinned: bool) -> str:
    return f"{level}, pinned" if pinned else level


def _told(field: str, value: Any) -> str:
    if field == "created_at":
        return moment(value, "%Y-%m-%d %H:%M:%S")
    if field == "size_bytes":
        return size(value)
    if field == "residency":
        return "disk" if value is None else _place(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
