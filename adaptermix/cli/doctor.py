"""`adaptermix doctor`: what this machine has, what computes on it, and what would be faster."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from adaptermix.cli.output import JsonOption, console, print_error, write_json
from server.engine_config import engine_config
from server.printable import as_markup
from server.settings import Settings, SettingsError, load_settings, use_process_environment

if TYPE_CHECKING:
    import torch

    from router_engine.backends.cpu.choice import Choice

_EXPECTED = {1: "1 client", 8: "8 clients", 256: "reading prompts"}  # by rows of a step
_NO_BF16 = ("avx2", "avx2_vnni", "avx512", "avx512_vnni", "neon", "generic")  # in fp32


def register(app: typer.Typer) -> None:
    """Mount the command on the program."""
    app.command("doctor")(doctor)


def doctor(
    model: Annotated[
        str | None, typer.Option(help="As for `adaptermix serve`: whose shape is measured.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine has, which kernels run, what to expect, and what would be faster."""
    try:
        settings = load_settings(model=model)
        use_process_environment(settings.child_environment(settings.engine_threads))
        report = Report(settings)
    except SettingsError as error:
        print_error(error)
        raise typer.Exit(2) from error
    for problem in report.problems:
        print_error(problem)
    if as_json:
        write_json(report.as_json())
    else:
        report.print(console)


class Report:
    """What was found out; what could not be is in `problems`."""

    def __init__(self, settings: Settings) -> None:
        from adaptermix.bench.machine import describe_machine
        from router_engine.processors import allowed_cores, cpu_quota

        self.problems: list[str] = []
        self.isas: tuple[str, ...] = ()
        self.origin = "cannot be compiled"
        self.choice: Choice | None = None
        self.dtype = ""
        self.expected: dict[int, float] = {}  # tokens a second by rows of a step
        self.faster: list[str] = []
        self._settings = settings
        self._machine = describe_machine()
        self._allowed, self._quota = allowed_cores(), cpu_quota()
        library = self._library()
        if library is not None:
            self._expect(library)

    def _library(self) -> Path | None:
        """The kernels, if one of their sets runs here; compiles them if need be."""
        from router_engine.backends.cpu.build import SHIPPED, build
        from router_engine.backends.cpu.library import supported_isas
        from router_engine.errors import EngineError

        try:
            path = build(self._settings.cache_dir / "kernels")
            self.isas = tuple(supported_isas(path))
        except EngineError as error:
            self.problems.append(str(error))
            return None
        self.origin = "shipped" if path.parent == SHIPPED else "compiled here"
        return path if self.isas else None

    def _expect(self, path: Path) -> None:
        import torch

        from router_engine.assets import resolve_model
        from router_engine.backends.cpu.choice import choose, running
        from router_engine.backends.cpu.library import DTYPES
        from router_engine.errors import EngineError
        from router_engine.model.checkpoint import refused
        from router_engine.model.loader import described_by, dtype_of

        settings = self._settings
        try:
            model = str(resolve_model(settings.model, settings.cache_dir))
            config: Any = described_by(model, settings.revision)
            shape = refused(model, "its own code cannot run it", partial(_shape, config))
        except EngineError as error:
            self.problems.append(f"the model's shape could not be read: {error}")
            return
        asked = engine_config(settings, settings.model)
        named = dtype_of(asked.model, config, torch.device("cpu"))
        dtype = (getattr(config, "dtype", None) or torch.float32) if named == "auto" else named
        if dtype not in DTYPES:
            told = f"nothing is measured in {dtype}: set ADAPTERMIX_DTYPE=float32 or bfloat16"
            self.problems.append(told)
            return
        cache, is_int8 = settings.cache_dir / "kernels", settings.quantization == "int8"
        measure = partial(choose, path, cache, shape, dtype)
        told = "its layers cannot be measured on this machine"
        try:
            choice = refused(model, told, partial(measure, int8=is_int8))
            other = None if is_int8 else refused(model, told, partial(measure, int8=True))
        except EngineError as error:  # such as of layers larger than the memory
            self.problems.append(str(error))
            return
        weights = config.num_hidden_layers * shape.layer_weights + config.vocab_size * shape.hidden
        scale = weights / shape.weights
        choice = replace(choice, chosen=running(asked.kernels, choice))
        self.choice, self.dtype = choice, str(dtype).removeprefix("torch.")
        measured = choice.seconds.get(choice.chosen, {})
        self.expected = {n: n / measured[n] / scale for n in _EXPECTED if n in measured}
        self.faster = _advice(settings, choice, dtype, other)

    def as_json(self) -> dict[str, Any]:
        """The same for programs; tokens a second by requests in a step."""
        choice = self.choice
        return {
            "machine": self._machine,
            "cpu_quota": self._quota,
            "kernels": {"isas": self.isas, "origin": self.origin},
            "model": self._settings.model,
            "dtype": self.dtype or None,
            "chosen": choice and choice.chosen,
            "layer_seconds": choice and choice.seconds,
            "expected_tokens_per_second": self.expected,
            "faster": self.faster,
            "problems": self.problems,
        }

    def print(self, console: Console) -> None:
        """For people."""
        machine, quota = self._machine, self._quota
        limit = "" if quota is None else f" (of {self._allowed}; a quota of {quota:g} cores)"
        runs = ", ".join(self.isas) or "none that runs here"
        lines = [
            f"processor     {machine['processor']}",
            f"cores         {machine['cores']}{limit}",
            f"memory        {machine['memory_gib']} GiB",
            f"GPU           {machine['gpu'] or 'none'}",
            f"kernels       {runs} ({self.origin})",
        ]
        choice = self.choice
        told = f"{self._settings.model} in {self.dtype}"
        lines.append(
            f"chosen        {choice.chosen}, for {told}" if choice else "chosen        torch"
        )
        for line in lines:
            console.print(as_markup(line))
        if choice is not None:
            console.print(_table(choice))
        for rows, speed in self.expected.items():
            console.print(f"expected      {speed:8.0f} tokens/s, {_EXPECTED[rows]}")
        for line in self.faster:
            console.print(f"faster        {as_markup(line)}", soft_wrap=True)


def _shape(config: Any) -> Any:
    """That of the layers of a model, without its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from router_engine.backends.cpu.choice import layer_shape
    from router_engine.model.attention_calls import attention_calls
    from router_engine.model.layout import layout_of

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return layer_shape(layout_of(skeleton, attention_calls(skeleton)))


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

    advice = []
    if settings.cpu_isa is not None:
        advice.append(f"without ADAPTERMIX_CPU_ISA={settings.cpu_isa}, if the machine has more")
    if dtype == torch.float32 and choice.isa not in _NO_BF16:
        advice.append("--dtype bfloat16: half the bytes, and products of its own")
    if int8 is not None:
        ratio = choice.seconds[choice.chosen][1] / int8.seconds[int8.isa][1]
        if ratio > 1.1:
            advice.append(
                f"--quantization int8: {ratio:.1f} times at one client, for some accuracy"
            )
    advice.append("more cores: nearly in proportion, until memory is read as fast as it can be")
    return advice
