"""`adaptermix bench`: what serving costs, on this machine, now."""

from __future__ import annotations

import functools
import importlib.util
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import typer

from adaptermix.bench import forced
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.peers.settings import ContentionSettings, IsaSettings, PeerSettings
from adaptermix.bench.settings import (
    AdapterSettings,
    EngineSettings,
    ExpertSettings,
    KernelSettings,
    ModelSettings,
    QuantizationSettings,
    RoutingSettings,
    ServeSettings,
    WorkSettings,
)
from adaptermix.bench.soak.settings import SoakSettings
from adaptermix.cli import experiments
from adaptermix.cli.fields import command_of
from adaptermix.cli.output import console, print_error
from adaptermix.evaluation.settings import UncertaintySettings
from adaptermix.training.errors import TrainingError
from router_engine.errors import EngineError
from server.printable import as_markup
from server.settings import SettingsError, load_settings, use_process_environment

_EXTRA = ("aiohttp", "matplotlib", "peft", "sacrebleu")


def register(app: typer.Typer) -> None:
    """Mount the commands on the program."""
    group = typer.Typer(help="Measure serving, the engine and its kernels.", no_args_is_help=True)
    group.command("serve")(reporting(command_of(serve)))
    group.command("engine")(reporting(command_of(engine)))
    group.command("kernels")(reporting(command_of(kernels)))
    group.command("quantization")(reporting(command_of(quantization)))
    group.command("routing")(reporting(command_of(routing)))
    group.command("uncertainty")(reporting(command_of(uncertainty)))
    group.command("experts")(reporting(command_of(experts)))
    group.command("peers")(reporting(command_of(peers)))
    group.command("contention")(reporting(command_of(contention)))
    group.command("isa")(reporting(command_of(isa)))
    group.command("soak")(reporting(command_of(soak)))
    experiments.register(group, reporting)
    app.add_typer(group, name="bench")


def serve(
    serve: ServeSettings, work: WorkSettings, adapters: AdapterSettings, model: ModelSettings
) -> None:
    """Load over HTTP, closed or open loop; a server of its own unless --url names one."""
    from adaptermix.bench.plots import plot
    from adaptermix.bench.report import markdown, result_table
    from adaptermix.bench.serve import run_serve

    result = run_serve(serve, work, adapters, model)
    console.print(result_table(result))
    write(serve.out, result, markdown, plot)
    _require_all(result["missing"])


def engine(
    engine: EngineSettings, work: WorkSettings, adapters: AdapterSettings, model: ModelSettings
) -> None:
    """The engine in this process, without HTTP: the same cases, and curves of step time."""
    _threads(model.threads)
    from adaptermix.bench.engine import markdown, run_engine
    from adaptermix.bench.plots import plot, plot_curves
    from adaptermix.bench.report import result_table

    result = run_engine(engine, work, adapters, model)
    if result["cells"]:
        console.print(result_table(result))
    write(engine.out, result, markdown, plot_curves if result["points"] else plot)
    _require_all(result["missing"])


def kernels(kernels: KernelSettings, model: ModelSettings) -> None:
    """Microseconds of each kernel on the model's shapes: reference beside cpu."""
    _threads(model.threads)
    from adaptermix.bench.kernels import markdown, result_table, run_kernels
    from adaptermix.bench.plots import plot_kernels

    result = run_kernels(kernels, model)
    console.print(result_table(result))
    write(kernels.out, result, markdown, plot_kernels)


def quantization(quantization: QuantizationSettings, model: ModelSettings) -> None:
    """What 8-bit weights cost in NLL on test rows, and what they give in tokens a second."""
    _threads(model.threads)
    from adaptermix.bench.quantization import markdown, result_tables, run_quantization
    from adaptermix.evaluation.quantization import compare_nll, task_adapters

    adapters = task_adapters(quantization.adapters)
    result = run_quantization(
        quantization, model, lambda subject: compare_nll(subject, adapters, quantization)
    )
    for table in result_tables(result):
        console.print(table)
    write(quantization.out, result, markdown)
    _require_all(result["missing"])


def routing(routing: RoutingSettings, model: ModelSettings) -> None:
    """What each router adds to a step, beside fixed weights; what it costs a request."""
    _threads(model.threads)
    from adaptermix.bench.routing.report import markdown, plot, result_tables
    from adaptermix.bench.routing.run import run_routing
    from adaptermix.evaluation.contexts import compare_contexts, task_folders

    compare = None
    if routing.data is not None:
        task_folders(routing.adapters)  # refused now and not after minutes of measuring
        compare = partial(compare_contexts, routing, model)
    environment = load_settings().child_environment(routing.encoder_threads)
    result = run_routing(routing, model, environment, compare)
    for table in result_tables(result):
        console.print(table)
    write(routing.out, result, markdown, plot)
    _require_all(result["missing"])


def uncertainty(uncertainty: UncertaintySettings, model: ModelSettings) -> None:
    """An ensemble of copies beside their average on ARC: calibration, and what doubt tells."""
    from adaptermix.evaluation.uncertainty.report import markdown, plot
    from adaptermix.evaluation.uncertainty.run import run_uncertainty

    result = run_uncertainty(uncertainty, model)
    write(uncertainty.out, result, markdown, plot)
    _require_all(result["missing"])


def experts(experts: ExpertSettings, model: ModelSettings) -> None:
    """What each kind of expert costs a decode step, beside LoRA of equal parameters."""
    _threads(model.threads)
    from adaptermix.bench.experts import markdown, result_table, run_experts

    result = run_experts(experts, model)
    console.print(result_table(result))
    write(experts.out, result, markdown)
    _require_all(result["missing"])


def peers(peers: PeerSettings) -> None:
    """AdapterMix beside its peers, each in its own environment: the table of targets."""
    use_process_environment(forced.environment(peers.isa))  # which all that it starts inherits
    from adaptermix.bench.peers.run import markdown, run_peers
    from adaptermix.bench.plots import plot_peers

    result = run_peers(peers)
    write(peers.out, result, markdown, plot_peers if result["cells"] else None)
    _require_all(result["failed"])


def contention(contention: ContentionSettings) -> None:
    """Tokens a second beside busy loops, as a share of those alone: ours and the peers."""
    use_process_environment(forced.environment(contention.isa))
    from adaptermix.bench.contention import markdown, run_contention

    write(contention.out, run_contention(contention), markdown)


def isa(isa: IsaSettings) -> None:
    """Products and steps under each instruction set that this machine runs."""
    from adaptermix.bench.isa import markdown, run_isa

    write(isa.out, run_isa(isa), markdown)


def soak(soak: SoakSettings, model: ModelSettings) -> None:
    """Mixed traffic for half an hour while processes die: every answer and every end is checked."""
    from adaptermix.bench.soak.report import markdown
    from adaptermix.bench.soak.run import run_soak

    result = run_soak(soak, model)
    write(soak.out, result, markdown)
    broken = [one["promise"] for one in result["verdicts"] if one["holds"] is False]
    if broken:
        log = soak.out.with_name(f"{soak.out.name}.log")
        raise BenchmarkError(f"not kept: {'; '.join(broken)}; the server's log is {log}")


def _require_all(missing: Collection[str]) -> None:
    """Raises BenchmarkError where something of ours failed; what was measured is written."""
    if missing:
        raise BenchmarkError(f"not measured: {', '.join(missing)}; the page says why")


def write(
    out: Path,
    result: dict[str, Any],
    page: Callable[[dict[str, Any]], str],
    picture: Callable[[Path, dict[str, Any]], None] | None = None,
) -> None:
    """The result as JSON, as a page and as a picture, at `out` with the ending of each."""
    from adaptermix.bench.report import write_json

    endings = (".json", ".md") if picture is None else (".json", ".md", ".png")
    names = [out.with_name(f"{out.name}{ending}") for ending in endings]
    write_json(names[0], result)
    names[1].write_text(page(result), encoding="utf-8")
    if picture is not None:
        picture(names[2], result)
    for name in names:
        console.print(as_markup(str(name)), soft_wrap=True)


def _threads(count: int | None) -> None:
    """As the engine's own process has them; before anything imports torch."""
    use_process_environment(load_settings().child_environment(count))


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Told to end (SIGTERM), a command ends what it has started, as it does on ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """The command with expected errors told in one line and exit code 1."""

    @functools.wraps(command)
    def reporting(**values: Any) -> None:
        try:
            gone = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
            if gone:
                raise BenchmarkError(
                    f"{', '.join(gone)} is missing: run `pip install 'adaptermix[bench]'`"
                )
            with _ending_in_order():
                command(**values)
        except (BenchmarkError, TrainingError, EngineError, SettingsError, OSError) as error:
            print_error(error)
            raise typer.Exit(1) from error

    return reporting
