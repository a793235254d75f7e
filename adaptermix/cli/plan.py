"""`adaptermix plan`: what a GPU's memory would be for, without the GPU."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Annotated, Any

import typer

from adaptermix.cli.output import JsonOption, console, print_error, write_json
from adaptermix.cli.setting_options import with_settings
from router_engine.errors import EngineError
from server.engine_config import engine_config
from server.printable import as_markup
from server.settings import Settings, SettingsError, load_settings
from server.shares import parse_size

_LEAST = 1 << 30  # bytes: no GPU has less
_SETTINGS = (
    *("model", "revision", "dtype", "quantization"),
    *("gpu_memory_utilization", "adapter_memory", "kv_memory"),
    *("block_size", "max_step_tokens", "max_running", "max_model_len", "enforce_eager"),
)


def register(app: typer.Typer) -> None:
    """Mount the command on the program."""
    own = [
        _option("gpu_memory", str, "Memory of the GPU: 80GiB.", inspect.Parameter.empty),
        _option("adapters", int | None, "Adapters on the GPU at once, for --adapter-memory."),
        _option("rank", int, "Their rank, on every linear layer of the blocks.", 16),
        inspect.Parameter(
            "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption
        ),
    ]
    app.command("plan")(with_settings(plan, _SETTINGS, own))


def plan(
    gpu_memory: str, adapters: int | None, rank: int, *, as_json: bool, **options: Any
) -> None:
    """Say how a GPU's memory would be divided among weights, adapters and the KV cache.

    `serve` shows the same table at its start, where it measures what a step takes. A folder with
    a config.json will do for a model.
    """
    try:
        for name, value in (("adapters", adapters), ("rank", rank)):
            if value is not None and value < 1:
                raise SettingsError(f"--{name} {value}: it must be at least 1")
        if adapters is not None and options["adapter_memory"] is not None:
            raise SettingsError("give --adapters or --adapter-memory, not both")
        made = _planned(load_settings(**options), _total(gpu_memory), adapters, rank)
    except (SettingsError, EngineError) as error:
        print_error(error)
        raise typer.Exit(2 if isinstance(error, SettingsError) else 1) from error
    if as_json:
        write_json(made)
    else:
        for line in made["table"].splitlines():
            console.print(as_markup(line), soft_wrap=True)


def _option(name: str, kind: Any, text: str, default: Any = None) -> inspect.Parameter:
    option = typer.Option(f"--{name.replace('_', '-')}", help=text)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _total(gpu_memory: str) -> int:
    try:
        total = parse_size(gpu_memory)
    except ValueError as error:
        raise SettingsError(f"--gpu-memory {gpu_memory!r}: {error}: give it like 80GiB") from error
    if total < _LEAST:
        raise SettingsError(f"--gpu-memory {gpu_memory!r} is {total:,} bytes: give it like 80GiB")
    return total


def _planned(settings: Settings, total: int, adapters: int | None, rank: int) -> dict[str, Any]:
    import torch

    from router_engine.assets import resolve_model
    from router_engine.memory.budget import limits_of
    from router_engine.memory.defaults import suited
    from router_engine.memory.device_plan import Taken, planned
    from router_engine.memory.sizes import sizes_of_checkpoint
    from router_engine.memory.table import table

    model = str(resolve_model(settings.model, settings.cache_dir))
    asked = engine_config(settings, model)
    config = suited(asked, int(total * asked.gpu_memory_utilization))
    sizes = sizes_of_checkpoint(config.model, torch.device("cuda"))
    made = planned(
        sizes,
        limits_of(config, sizes),
        total=total,
        utilization=config.gpu_memory_utilization,
        adapters=adapters * sizes.lora_bytes(rank) if adapters else config.adapter_bytes,
        kv=config.cache.memory_bytes,
        taken=Taken(graphs=0) if config.kernels.enforce_eager else None,
    )
    parts = made.parts()
    return {
        "model": settings.model,
        "parts": [asdict(part) for part in parts],
        "kv_tokens": made.kv_tokens,
        "adapter_bytes": sizes.lora_bytes(rank),
        "table": table(parts),
    }
