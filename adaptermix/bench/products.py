"""The linear layers of one step, by everything that can compute them on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptermix.bench.subject import Subject
from router_engine.backends.cpu.library import Library
from router_engine.errors import EngineError
from router_engine.model.quantized import Int8Linear

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
    found = {
        "q, k, v": ((heads, hidden), layers),
        "o": ((hidden, config.num_attention_heads * width), layers),
        "gate, up": ((2 * wide, hidden), layers),
        "down": ((hidden, wide), layers),
        "lm_head": ((config.vocab_size, hidden), 1),
    }
    return {f"{name} {i} -> {o}": ((o, i), n) for name, ((o, i), n) in found.items()}


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
    found: Mapping[str, tuple[Shape, int]],
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
    for name, ((outputs, inputs), count) in found.items():
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
                "us": {one: 1e6 * taken / count for one, taken in seconds.items()},
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
    for one in contenders:
        try:
            job = _MAKE[one](library, x, weights)
            job()
        except _CANNOT as error:
            missing[one] = " ".join(str(error).split())
        else:
            jobs[one] = job
    return jobs, missing


def left_out(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Contenders that are missing from some product, each with its first reason."""
    found: dict[str, str] = {}
    for line in lines:
        for one, reason in line.get("missing", {}).items():
            found.setdefault(one, reason)
    return found


def best_us(line: Mapping[str, Any]) -> float:
    """Microseconds of a product in bf16, by what computes it fastest."""
    return float(min(us for one, us in line["us"].items() if one not in _OTHER_FORMATS))


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
    packed = _packed(library, [one.values for one in layers], [one.scale for one in layers])
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
