"""`adaptermix bench kernels`: microseconds of the linear layers of a step, by kernel."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import origin, read_bandwidth
from adaptermix.bench.report import provenance, row, table_head
from adaptermix.bench.settings import KernelSettings, ModelSettings
from adaptermix.bench.subject import Subject, resolve
from router_engine.backends.cpu.build import KernelBuildError, build
from router_engine.backends.cpu.library import Library
from router_engine.config import KernelConfig
from router_engine.errors import EngineError
from router_engine.kernels.reference.low_rank import mix_sum
from router_engine.model.quantized import Int8Linear
from router_engine.model.sampler import Sampler, SamplingRow
from router_engine.request import SamplingSpec

Shape = tuple[int, int]  # outputs, inputs
Jobs = Mapping[str, Callable[[], object]]

CPU = "cpu"  # ours
REFERENCE = "reference"  # F.linear
ONEDNN = "onednn"  # weights packed by oneDNN for the number of rows
FP32 = "reference fp32"  # F.linear in fp32, which every processor has products for
INT8 = "int8"  # ours, with weights in 8 bits; rounding x is a part of it
INDUCTOR = "inductor"  # frozen, the best of its C++ templates and of what ATen has
CONTENDERS = (CPU, REFERENCE, ONEDNN)  # in bf16, and without a compiler's minutes
_OTHER_FORMATS = (INT8, FP32)
_PEAK = "peak"
_CANNOT = (RuntimeError, AttributeError, EngineError)  # the second: an operation torch lacks here


def shapes(subject: Subject) -> dict[str, tuple[Shape, int]]:
    """Name -> (shape, how many a step has) of the products of a Llama, fused where it can be."""
    config = subject.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * width
    hidden, wide, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    products = {
        "q, k, v": ((heads, hidden), layers),
        "o": ((hidden, config.num_attention_heads * width), layers),
        "gate, up": ((2 * wide, hidden), layers),
        "down": ((hidden, wide), layers),
        "lm_head": ((config.vocab_size, hidden), 1),
    }
    return {f"{name} {i} -> {o}": ((o, i), n) for name, ((o, i), n) in products.items()}


def measure(jobs: Jobs, rounds: int) -> dict[str, float]:
    """Median seconds of each job; all in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


@torch.inference_mode()
def products(
    library: Library,
    shapes: Mapping[str, tuple[Shape, int]],
    rows: int,
    rounds: int,
    speed: float,
    contenders: Sequence[str] = CONTENDERS,
) -> list[dict[str, Any]]:
    """Each product, over as many distinct weights as the model has: none stays in a cache.

    `us` are microseconds of one product by contender; `speed` is what memory reads, in bytes/s;
    `peak` is what fused multiply-adds in fp32 reach in registers, in operations a second, measured
    in turn with the products: others on the machine slow both.
    Who cannot compute it on this machine is in `missing`, with the reason.
    """
    lines = []
    for name, ((outputs, inputs), count) in shapes.items():
        weights = [torch.randn(outputs, inputs).bfloat16() for _ in range(count)]
        x = torch.randn(rows, inputs).bfloat16()
        jobs, missing = _able(library, x, weights, contenders)
        peaks: list[float] = []
        jobs[_PEAK] = partial(_note_peak, library, peaks)
        seconds = measure(jobs, rounds)
        del seconds[_PEAK]
        lines.append(
            {
                "product": name,
                "rows": rows,
                "count": count,
                "us": {contender: 1e6 * taken / count for contender, taken in seconds.items()},
                "missing": missing,
                "flops": 2 * rows * outputs * inputs,
                "peak": statistics.median(peaks),
                "floor_us": 1e6 * outputs * inputs * 2 / speed,
            }
        )
    return lines


def _note_peak(library: Library, peaks: list[float]) -> None:
    peaks.append(library.peak())


def _able(
    library: Library, x: Tensor, weights: list[Tensor], contenders: Sequence[str]
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Those contenders that compute the product here, and why the others do not.

    oneDNN, for one, packs bf16 for AVX-512 alone. Some tell only once they are run.
    """
    jobs: dict[str, Callable[[], object]] = {}
    missing: dict[str, str] = {}
    for contender in contenders:
        try:
            job = _MAKE[contender](library, x, weights)
            job()
        except _CANNOT as error:
            missing[contender] = " ".join(str(error).split())
        else:
            jobs[contender] = job
    return jobs, missing


def left_out(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Contenders that are missing from some product, each with its first reason."""
    reasons: dict[str, str] = {}
    for line in lines:
        for contender, reason in line.get("missing", {}).items():
            reasons.setdefault(contender, reason)
    return reasons


def best_us(line: Mapping[str, Any]) -> float:
    """Microseconds of a product in bf16, by what computes it fastest."""
    return float(min(us for contender, us in line["us"].items() if contender not in _OTHER_FORMATS))


def best_seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of all products of a step in bf16, each by what computes it fastest."""
    return float(sum(line["count"] * best_us(line) for line in lines) / 1e6)


def _packed(
    library: Library, weights: Sequence[Tensor], scales: Sequence[Tensor | None]
) -> list[Tensor]:
    """As the decoder holds them: one block in large pages."""
    first = weights[0]
    size = library.packed_size(first.shape, first.dtype)
    block = torch.empty(len(weights), size, dtype=first.dtype)
    library.large_pages(block)
    for weight, scale, place in zip(weights, scales, block, strict=True):
        library.pack(weight, place, scale)
    return list(block)


def _ours(library: Library, x: Tensor, weights: list[Tensor]) -> Callable[[], object]:
    packed = _packed(library, weights, [None] * len(weights))
    return lambda: library.linears(x, packed, weights[0].shape[0])


def _int8(library: Library, x: Tensor, weights: list[Tensor]) -> Callable[[], object]:
    layers = [Int8Linear(weight, None) for weight in weights]
    packed = _packed(library, [layer.values for layer in layers], [layer.scale for layer in layers])
    return lambda: library.linears(x, packed, weights[0].shape[0])


def _reference(library: Library, x: Tensor, weights: list[Tensor]) -> Callable[[], object]:
    def run() -> None:
        for weight in weights:
            functional.linear(x, weight)

    return run


def _fp32(library: Library, x: Tensor, weights: list[Tensor]) -> Callable[[], object]:
    return _reference(library, x.float(), [weight.float() for weight in weights])


def _onednn(library: Library, x: Tensor, weights: list[Tensor]) -> Callable[[], object]:
    operations = torch.ops.mkldnn
    packed = [operations._reorder_linear_weight(weight, x.shape[0]) for weight in weights]

    def run() -> None:
        for weight in packed:
            operations._linear_pointwise(x, weight, None, "none", [], "")

    return run


def _inductor(library: Library, x: Tensor, weights: list[Tensor]) -> Callable[[], object]:
    from torch._inductor import config as inductor  # by whoever asks for it alone: it is slow

    class Linears(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(
                nn.Parameter(weight, requires_grad=False) for weight in weights
            )

        def forward(self, x: Tensor) -> list[Tensor]:
            return [functional.linear(x, weight) for weight in self.weights]

    torch._dynamo.reset()
    options = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
    with inductor.patch(options):
        compiled = torch.compile(Linears().eval())
        compiled(x)
    return lambda: compiled(x)


_MAKE: Mapping[str, Callable[[Library, Tensor, list[Tensor]], Callable[[], object]]] = {
    CPU: _ours,
    REFERENCE: _reference,
    FP32: _fp32,
    ONEDNN: _onednn,
    INT8: _int8,
    INDUCTOR: _inductor,
}


RANK_ROWS = 64  # eight adapters of rank 8


def run_kernels(kernels: KernelSettings, model: ModelSettings) -> dict[str, Any]:
    """Measure; the result as written to JSON. Raises BenchmarkError where nothing compiles."""
    subject = resolve(model.model)
    try:
        library = Library(build(KernelConfig().cache))
    except KernelBuildError as error:
        raise BenchmarkError(f"the C++ kernels cannot be built: {error}") from error
    speed = read_bandwidth(rounds=5)
    contenders = (*CONTENDERS, INT8, *([INDUCTOR] if kernels.inductor else []))
    linears = shapes(subject)
    lines = [
        line
        for rows in kernels.rows
        for line in products(library, linears, rows, kernels.rounds, speed, contenders)
    ]
    return {
        **origin(
            "kernels",
            subject.name,
            {
                "dtype": "bfloat16",
                "kernels": "cpu and reference",
                "threads": torch.get_num_threads(),
            },
            asdict(kernels),
        ),
        "bytes_per_second": speed,
        "products": lines,
        "missing": left_out(lines),
        "others": [line for rows in kernels.rows for line in others(subject, rows, kernels.rounds)],
    }


def others(subject: Subject, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Kernels of one implementation: the reference mixture of a square linear, greedy sampling."""
    hidden = subject.config.hidden_size
    x, y = torch.randn(rows, hidden).bfloat16(), torch.zeros(rows, hidden).bfloat16()
    a, b = (torch.randn(RANK_ROWS, hidden).bfloat16() for _ in range(2))
    weights = torch.rand(rows, RANK_ROWS)
    logits = torch.randn(rows, subject.config.vocab_size)
    sampler = Sampler()
    sampled = [SamplingRow(params=SamplingSpec()) for _ in range(rows)]
    jobs = {
        f"mixture, reference, {RANK_ROWS} rank rows, {hidden} -> {hidden}": lambda: mix_sum(
            y, x, a, b, weights
        ),
        "greedy sampling": lambda: sampler.sample(logits, sampled),
    }
    seconds = measure(jobs, rounds)
    return [{"kernel": name, "rows": rows, "us": 1e6 * s} for name, s in seconds.items()]


def heads(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the table of products."""
    names = (f"{contender} us" for contender in measured(result))
    return ("product", "rows", "floor us", *names, "cpu / floor")


def measured(result: Mapping[str, Any]) -> list[str]:
    """Contenders that have computed some product."""
    return list(dict.fromkeys(contender for line in result["products"] for contender in line["us"]))


def cells(line: Mapping[str, Any], contenders: Sequence[str]) -> list[str]:
    """A product's row under `heads`; a dash where a contender is left out."""
    us, floor = line["us"], line["floor_us"]
    times = [f"{us[contender]:.0f}" if contender in us else "-" for contender in contenders]
    ratio = f"{us[CPU] / floor:.2f}" if CPU in us else "-"
    return [line["product"], str(line["rows"]), f"{floor:.0f}", *times, ratio]


def product_table(result: Mapping[str, Any]) -> list[str]:
    """The products in Markdown."""
    titles = heads(result)
    lines = table_head(titles)
    lines += [row(cells(line, measured(result))) for line in result["products"]]
    reasons = result.get("missing", {}).items()
    return lines + [
        line for contender, why in reasons for line in ("", f"{contender} is left out: {why}")
    ]


def result_table(result: Mapping[str, Any]) -> Table:
    """The products for a terminal."""
    speed = result["bytes_per_second"] / 1e9
    table = Table(*heads(result), title=f"memory reads at {speed:.1f} GB/s")
    for line in result["products"]:
        table.add_row(*cells(line, measured(result)))
    return table


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    speed = result["bytes_per_second"] / 1e9
    lines = ["# `adaptermix bench kernels`", "", provenance(result), ""]
    lines += [f"Memory reads at {speed:.1f} GB/s; the floor is a weight's bytes over that.", ""]
    lines += product_table(result)
    lines += ["", *table_head(("kernel", "rows", "us"))]
    lines += [
        row((line["kernel"], str(line["rows"]), f"{line['us']:.0f}")) for line in result["others"]
    ]
    return "\n".join([*lines, ""])
