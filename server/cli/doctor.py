"""`adaptermix doctor`: what this machine has, what computes on it, and what would be faster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from server.cli.client import print_error
from server.settings import Settings, SettingsError, load_settings, use_process_environment

if TYPE_CHECKING:
    import torch

    from router_engine.model.cpu.choice import Choice

_NO_BF16 = ("avx2", "avx2_vnni", "avx512", "avx512_vnni", "neon")  # products in fp32


def register(app: typer.Typer) -> None:
    """Mount the command on the program."""
    app.command("doctor")(doctor)


def doctor(
    model: Annotated[
        str | None, typer.Option(help="As for `adaptermix serve`: whose shape is measured.")
    ] = None,
) -> None:
    """Say what this machine has, which kernels run, what to expect, and what would be faster."""
    try:
        settings = load_settings(model=model)
        use_process_environment(settings.child_environment(settings.engine_threads))
        _report(Console(), settings)
    except SettingsError as error:
        print_error(error)
        raise typer.Exit(2) from error


def _report(console: Console, settings: Settings) -> None:
    from benchmarks.machine import describe_machine
    from router_engine.processors import allowed_cores, cpu_quota

    machine = describe_machine()
    quota = cpu_quota()
    limit = "" if quota is None else f" (of {allowed_cores()}; a quota of {quota:g} cores)"
    console.print(f"processor     {machine['processor']}", highlight=False)
    console.print(f"cores         {machine['cores']}{limit}", highlight=False)
    console.print(f"memory        {machine['memory_gib']} GiB", highlight=False)
    console.print(f"GPU           {machine['gpu'] or 'none'}", highlight=False)
    path = _library(console, settings)
    if path is not None:
        _expectations(console, settings, path)


def _library(console: Console, settings: Settings) -> Path | None:
    """Print which sets the library holds and the machine runs; compiles it if need be."""
    from router_engine.kernels.cpu.build import SHIPPED, KernelBuildError, build
    from router_engine.kernels.cpu.library import supported_isas

    try:
        path = build(settings.cache_dir / "kernels")
    except KernelBuildError as error:
        console.print("kernels       torch: the C++ kernels are not shipped and cannot be compiled")
        print_error(error)
        return None
    origin = "shipped" if path.parent == SHIPPED else "compiled here"
    isas = supported_isas(path)
    console.print(f"kernels       {', '.join(isas) or 'none that runs here'} ({origin})")
    return path if isas else None


def _expectations(console: Console, settings: Settings, path: Path) -> None:
    import torch
    from transformers import AutoConfig

    from router_engine.model.assets import AssetError, resolve_model
    from router_engine.model.cpu.choice import choose, layer_shape
    from router_engine.model.loader import dtype_of

    try:
        config: Any = AutoConfig.from_pretrained(resolve_model(settings.model, settings.cache_dir))
        shape = layer_shape(config)
    except (AssetError, OSError, AttributeError) as error:
        console.print("expected      unknown: the model's shape could not be read")
        print_error(error)
        return
    asked = settings.engine_config(settings.model).model
    found = dtype_of(asked, config, torch.device("cpu"))
    dtype = (getattr(config, "dtype", None) or torch.float32) if found == "auto" else found
    cache, is_int8 = settings.cache_dir / "kernels", settings.quantization == "int8"
    choice = choose(path, cache, shape, dtype, int8=is_int8)
    weights = config.num_hidden_layers * shape.layer_weights + config.vocab_size * shape.hidden
    scale = weights / shape.weights
    console.print(f"chosen        {choice.chosen}, for {settings.model} in {_name(dtype)}")
    console.print(_table(choice))
    for rows, what in ((1, "1 client"), (8, "8 clients"), (256, "reading prompts")):
        seconds = choice.seconds[choice.chosen].get(rows)
        if seconds is not None:
            console.print(f"expected      {rows / seconds / scale:8.0f} tokens/s, {what}")
    other = choose(path, cache, shape, dtype, int8=True) if not is_int8 else None
    for line in _advice(settings, choice, dtype, other):
        console.print(f"faster        {line}", soft_wrap=True)


def _table(choice: Choice) -> Table:
    rows = sorted(set().union(*choice.seconds.values()))
    table = Table("one layer, ms", *(f"{n} rows" for n in rows), "times the fastest", box=None)
    behind = choice.behind
    for name, seconds in choice.seconds.items():
        cells = (f"{1e3 * seconds[n]:.2f}" if n in seconds else "" for n in rows)
        table.add_row(name, *cells, f"{behind[name]:.2f}")
    return table


def _advice(
    settings: Settings, choice: Choice, dtype: torch.dtype, int8: Choice | None
) -> list[str]:
    """What would make a server here faster, where something would."""
    import torch

    found = []
    if settings.cpu_isa is not None:
        found.append(f"without ADAPTERMIX_CPU_ISA={settings.cpu_isa}, if the machine has more")
    if dtype == torch.float32 and choice.chosen not in _NO_BF16:
        found.append("--dtype bfloat16: half the bytes, and products of its own")
    if int8 is not None:
        ratio = choice.seconds[choice.chosen][1] / int8.seconds[int8.isa][1]
        if ratio > 1.1:
            found.append(f"--quantization int8: {ratio:.1f} times at one client, for some accuracy")
    found.append("more cores: nearly in proportion, until memory is read as fast as it can be")
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
