"""The targets by instruction set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptermix.bench.goals import LLAMA, OURS, Goal
from adaptermix.bench.products import CPU

TORCH = "plain torch, fp32"
BEFORE = "adaptermix before"

Scalars = Mapping[str, Sequence[float]]
_Times = dict[tuple[str, int, str], list[float]]  # {(kind, size, system): ms, one a round}

_NARROW, _PAIRS, _TILES = "avx2", "avx512_bf16", "amx"
_PROMPT, _LONG = 64, 256  # tokens


def of_peak(isa: str, rows: int) -> str:
    """The scalar of all products of a step with so many rows."""
    return f"{isa} products {rows} of peak"


def scalars_of(isas: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """What the targets are judged by, and how every step compares to that of the others."""
    found: dict[str, list[float]] = {}
    times = {one["isa"]: _times(one) for one in isas}
    for one in isas:
        isa = one["isa"]
        for rows in sorted({line["rows"] for line in one["products"]}):
            lines = [line for line in one["products"] if line["rows"] == rows]
            if all(CPU in line["us"] for line in lines):
                found[of_peak(isa, rows)] = [_of_peak(lines)]
        for (kind, size, name), theirs in times[isa].items():
            ours = times[isa].get((kind, size, OURS))
            if ours and name != OURS:
                found[f"{isa} {kind} {size} over {name}"] = _ratios(theirs, ours)
    here, there = (times.get(isa, {}).get(("prefill", _LONG, OURS)) for isa in (_TILES, _PAIRS))
    if here and there:
        found[f"{_TILES} prefill {_LONG} over {_PAIRS}"] = _ratios(there, here)
    return found


def goals(scalars: Scalars) -> list[Goal]:
    """Those of the instruction sets that the project has targets for."""
    what = f"{_NARROW}: products of {{}} rows over the peak in fp32"
    found = [Goal(what.format(n), 0.7, scalar=of_peak(_NARROW, n)) for n in (64, 256)]
    for clients, bound in ((1, 1.1), (8, 2.0)):
        name = f"{_NARROW} decode {clients} over {LLAMA}"
        what = f"{_NARROW}: decode step against llama.cpp, {clients} requests"
        found.append(Goal(what, bound, scalar=name))
    name = f"{_NARROW} prefill {_PROMPT} over {TORCH}"
    what = f"{_NARROW}: first token of {_PROMPT} tokens against plain torch in fp32"
    found.append(Goal(what, 2, scalar=name))
    what = f"{_TILES}: prefill of {_LONG} tokens against {_PAIRS}"
    found.append(Goal(what, 2, scalar=f"{_TILES} prefill {_LONG} over {_PAIRS}"))
    ends, starts = f" over {BEFORE}", f"{_PAIRS} "
    for name in scalars:
        if name.startswith(starts) and name.endswith(ends):
            what = name.removeprefix(starts).removesuffix(ends)
            found.append(Goal(f"{_PAIRS}: {what}, against the commit before", 0.98, scalar=name))
    return found


def _of_peak(lines: Sequence[Mapping[str, Any]]) -> float:
    """All products of a step: operations a second over what registers alone reach."""
    seconds = sum(line["count"] * line["us"][CPU] for line in lines) / 1e6
    at_peak = sum(line["count"] * line["flops"] / line["peak"] for line in lines)
    return float(at_peak / seconds)


def _times(one: Mapping[str, Any]) -> _Times:
    return {(s["kind"], s["size"], s["system"]): s["ms_rounds"] for s in one["steps"]}


def _ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """One a round: what came in turn, under what else the machine did just then."""
    return [a / b for a, b in zip(theirs, ours, strict=False)]
