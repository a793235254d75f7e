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
from adaptermix.cli.client import KeyOption, UrlOption, adapter_path, body_of, connect
from adaptermix.cli.output import JsonOption, console, moment, size, write_json, write_text
from adaptermix.cli.uploading import (
    opened,
    print_notes,
    print_warnings,
    publish_adapter,
    sent_texts,
    stem_of,
    upload,
)
from server.printable import as_markup
from server.schemas.adapters import (
    AdapterList,
    AdapterReply,
    CheckReply,
    DeletedReply,
    MergedReply,
    ResidencyReply,
    TextsReply,
    UnloadReply,
)

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
        publish_adapter(client, source, _form(source, name, tags), texts)


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
    with connect(url, key) as client:
        form = _form(source, name, tags)
        report = upload(client, "/admin/adapters/check", source, form, texts, CheckReply)
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
        params = {} if tag is None else {"tag": tag}
        found = body_of(client.get("/admin/adapters", params=params), AdapterList)["adapters"]
    if as_json:
        write_json(found)
        return
    console.print(_table(found))
    print_warnings(found)


@app.command()
def show(
    name: ReferenceArgument,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show every version of a name, or the one that is meant."""
    with connect(url, key) as client:
        found = body_of(client.get(adapter_path(name)), AdapterList)["adapters"]
    if as_json:
        write_json(found)
        return
    for adapter in found:
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
        params = {"force": str(force).lower()}
        gone = body_of(client.delete(adapter_path(name), params=params), DeletedReply)["deleted"]
    console.print(f"[green]deleted[/] {as_markup(', '.join(gone))}")


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
    path = adapter_path(name, "texts")
    with connect(url, key) as client:
        if file is None:
            for text in body_of(client.get(path), TextsReply)["texts"]:
                write_text(json.dumps(text) + "\n")
            return
        with opened([sent_texts(file)]) as parts:
            made = body_of(client.put(path, files=parts), AdapterReply)
    console.print(
        f"[green]set[/] {made['num_texts']} texts of {_label(made)}, "
        f"centroid {as_markup(made['centroid'])}"
    )
    print_warnings([made])


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
        path = adapter_path(name, "aliases", alias)
        made = body_of(client.put(path, json={"version": version}), AdapterReply)
    console.print(f"[green]{as_markup(name)}@{as_markup(alias)}[/] is {_label(made)}")


@app.command()
def unalias(
    name: Annotated[str, typer.Argument(help="The adapter's name.")],
    alias: Annotated[str, typer.Argument(help="The alias; the version that it means stays.")],
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Remove an alias."""
    with connect(url, key) as client:
        answer = client.delete(adapter_path(name, "aliases", alias))
        gone = body_of(answer, DeletedReply)["deleted"]
    console.print(f"[green]removed[/] {as_markup(', '.join(gone))}")


@app.command()
def load(name: ReferenceArgument, url: UrlOption = None, key: KeyOption = None) -> None:
    """Bring an adapter to the device, so that its first request does not wait."""
    _move(name, "load", None, url, key)


@app.command()
def pin(
    name: ReferenceArgument,
    off: Annotated[bool, typer.Option("--off", help="Let it go again.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Load an adapter and keep it on the device."""
    _move(name, "pin", {"pinned": not off}, url, key)


@app.command()
def unload(name: ReferenceArgument, url: UrlOption = None, key: KeyOption = None) -> None:
    """Drop an adapter from device and host; it stays in the store."""
    with connect(url, key) as client:
        freed = body_of(client.post(adapter_path(name, "unload")), UnloadReply)
    console.print(
        f"[green]unloaded[/] {as_markup(freed['name'])}, {size(freed['freed_bytes'])} are free"
    )


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
            body = {"adapters": [weighted(text) for text in adapters]}
            answer = client.put("/admin/merged", json=body)
        else:
            answer = client.request("DELETE" if off else "GET", "/admin/merged")
        state = body_of(answer, MergedReply)
    if as_json:
        write_json(state)
        return
    pairs = zip(state["adapters"], state["weights"], strict=False)
    told = " + ".join(f"{weight:g} {as_markup(name)}" for name, weight in pairs)
    console.print(f"[green]merged[/]: {told or 'nothing, the base is as it was'}")


def weighted(text: str) -> dict[str, Any]:
    """An adapter of a mixture, from NAME or NAME=WEIGHT. Raises typer.BadParameter."""
    name, separator, given = text.partition("=")
    try:
        weight = float(given) if separator else 1.0
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: use NAME=0.7") from error
    if not isfinite(weight):
        raise typer.BadParameter(f"{text!r}: the weight must be finite; use NAME=0.7")
    return {"name": name, "weight": weight}


def _move(
    name: str, action: str, body: Mapping[str, Any] | None, url: str | None, key: str | None
) -> None:
    with connect(url, key) as client:
        where = body_of(client.post(adapter_path(name, action), json=body), ResidencyReply)
    console.print(f"[green]{as_markup(name)}[/] is on {as_markup(_where(where))}")


def _form(source: Path, name: str | None, tags: list[str] | None) -> dict[str, Any]:
    return {"name": stem_of(source) if name is None else name, "tags": tags or []}


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
            "disk" if residency is None else as_markup(_where(residency)),
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


def _where(residency: Mapping[str, Any]) -> str:
    return f"{residency['level']}, pinned" if residency["pinned"] else str(residency["level"])


def _told(field: str, value: Any) -> str:
    if field == "created_at":
        return moment(value, "%Y-%m-%d %H:%M:%S")
    if field == "size_bytes":
        return size(value)
    if field == "residency":
        return "disk" if value is None else _where(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
