"""`adaptermix adapters import`: other trainers' checkpoints, read here and never on a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from adaptermix.cli.client import KeyOption, UrlOption, connect
from adaptermix.cli.output import console, print_error
from adaptermix.cli.uploading import publish_adapter
from adapters_store.errors import InvalidAdapterError
from adapters_store.names import name_problems
from server.printable import as_markup


def _check_name(name: str | None) -> str | None:
    """Before the work is done."""
    for problem in () if name is None else name_problems("name", [name]):
        raise typer.BadParameter(problem.message)
    return name


OutOption = Annotated[Path, typer.Option(help="Adapter folder to write; new or empty.")]
NameOption = Annotated[
    str | None,
    typer.Option(help="Publish it to a running server too, under this name.", callback=_check_name),
]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def formats() -> None:
    """Turn a checkpoint of another trainer into an adapter folder."""


@app.command()
def adamix(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="model.<step>.pt or model.final.pt of AdaMix's GPT-2 training. It is a pickle: "
            "only its tensors are read, and only on this machine.",
        ),
    ],
    out: OutOption,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="The lora_alpha of the training, which no checkpoint holds: 32 in the published "
            "scripts, 128 by the trainer's default. Must be given for the LoRA variant."
        ),
    ] = None,
    keep_copies: Annotated[
        bool,
        typer.Option(
            "--keep-copies",
            help="Keep the experts apart, with the weights of their average, instead of the "
            "average alone.",
        ),
    ] = False,
    name: NameOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Average an AdaMix checkpoint of GPT-2, LoRA or bottlenecks, into one adapter."""
    from adaptermix.training.importing.adamix.importer import import_adamix

    with _told():
        imported = import_adamix(checkpoint, alpha, out, keep_copies=keep_copies)
    _tell("kept" if keep_copies else "averaged", imported.summary, out)
    _publish(out, name, url, key)


@app.command("moa-hf")
def moa_hf(
    folder: Annotated[
        Path,
        typer.Argument(
            exists=True,
            file_okay=False,
            help="Folder with adapter_config.json and adapter_model.bin of MoA's port to "
            "transformers, soft or sparse. The latter is a pickle: only its tensors are read, and "
            "only on this machine.",
        ),
    ],
    out: OutOption,
    gamma_max: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="The highest threshold of a sparse adapter, which the folder does not hold: 0.5 "
            "(as published) unless given.",
        ),
    ] = None,
    name: NameOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Turn a MoA adapter of the port to transformers into a folder of our own format."""
    from adaptermix.training.importing.moa.importer import import_hf

    with _told():
        imported = import_hf(folder, gamma_max, out)
    _tell("imported", imported.summary, out, imported.adapter.notes)
    _publish(out, name, url, key)


@app.command("moa-native")
def moa_native(
    folder: Annotated[
        Path,
        typer.Argument(
            exists=True,
            file_okay=False,
            help="Folder with adapter_params.json and adapter.pth of MoA's own implementation, "
            "soft or sparse. The latter is a pickle: only its tensors are read, and only on this "
            "machine.",
        ),
    ],
    out: OutOption,
    heads: Annotated[
        int | None, typer.Option(min=1, help="The base's attention heads, 32 of Llama 3.1 8B.")
    ] = None,
    kv_heads: Annotated[
        int | None,
        typer.Option(min=1, help="The base's heads of keys and values, 8 of Llama 3.1 8B."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="The base's checkpoint folder, whose config.json tells both.",
        ),
    ] = None,
    name: NameOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Turn a MoA adapter of the original, on Meta's Llama, into a folder of our own format."""
    from adaptermix.training.importing.moa.importer import import_native
    from adaptermix.training.importing.moa.native import Heads

    with _told():
        imported = import_native(folder, Heads(heads, kv_heads), base, out)
    _tell("imported", imported.summary, out, imported.adapter.notes)
    _publish(out, name, url, key)


@contextmanager
def _told() -> Iterator[None]:
    """Print what is wrong, each reason by itself, and end the command."""
    try:
        yield
    except InvalidAdapterError as error:
        for problem in error.problems:
            print_error(problem)
        raise typer.Exit(1) from error
    except OSError as error:
        print_error(error)
        raise typer.Exit(1) from error


def _tell(verb: str, summary: str, out: Path, notes: tuple[str, ...] = ()) -> None:
    for note in notes:
        console.print(f"[yellow]note[/]: {as_markup(note)}", soft_wrap=True)
    console.print(f"[green]{verb}[/] {as_markup(summary)}", soft_wrap=True)
    console.print(as_markup(str(out)), soft_wrap=True)


def _publish(out: Path, name: str | None, url: str | None, key: str | None) -> None:
    if name is not None:
        with connect(url, key) as client:
            publish_adapter(client, out, name)
