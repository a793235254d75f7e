"""`adaptermix adapters import`: other trainers' checkpoints, read here and never on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapters_store.errors import InvalidAdapterError
from server.cli.client import KeyOption, UrlOption, connect, console, print_error
from server.cli.uploading import publish_adapter

app = typer.Typer(no_args_is_help=True)


@app.callback()  # without one, typer would put a single command in the group's place
def formats() -> None:
    """Turn a checkpoint of another trainer into an adapter folder."""


@app.command()
def adamix(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="model.<step>.pt or model.final.pt of AdaMix's GPT-2 training, LoRA variant. It "
            "is a pickle: only its tensors are read, and only on this machine.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Adapter folder to write; new or empty.")],
    alpha: Annotated[
        float | None,
        typer.Option(
            help="The lora_alpha of the training, which no checkpoint holds: 32 in the published "
            "scripts, 128 by the trainer's default. Must be given."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Publish it to a running server too, under this name.")
    ] = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Average an AdaMix LoRA checkpoint of GPT-2 into one LoRA, as a PEFT folder."""
    from training.importing.adamix import import_adamix

    try:
        imported = import_adamix(checkpoint, alpha, out)
    except InvalidAdapterError as error:
        for problem in error.problems:
            print_error(problem)
        raise typer.Exit(1) from error
    except OSError as error:
        print_error(error)
        raise typer.Exit(1) from error
    lora = imported.lora
    console.print(
        f"[green]averaged[/] {lora.copies_a} of A and {lora.copies_b} of B in {len(lora.layers)} "
        f"layers: rank {lora.rank} on q and v, scale {imported.alpha / lora.rank:g}"
    )
    console.print(str(out), soft_wrap=True, highlight=False, markup=False)
    if name is not None:
        with connect(url, key) as client:
            publish_adapter(client, out, {"name": name, "tags": []})
