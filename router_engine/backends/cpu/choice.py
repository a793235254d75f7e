"""The choice of an instruction set of the C++ decoder, or of plain torch: by measurement.

One set computes all steps: each packs weights its own way, and a request's tokens must not depend
on how many others happen to run. It is the one that is, over all numbers of rows, the least behind
what is fastest at each. Torch is chosen where even that one is behind it by more than a fiftieth.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adapters_store.home import expanded
from router_engine.backends.base import TORCH
from router_engine.backends.cpu.build import processor
from router_engine.backends.cpu.library import Library, supported_isas
from router_engine.backends.cpu.trial import ROWS, LayerShape, times
from router_engine.backends.json_cache import read_cached, write_cached
from router_engine.config import KernelConfig
from router_engine.errors import EngineError
from router_engine.model.layout import Layout

_MARGIN = 1.02
_MOST = 3  # sets that are tried, the widest that run
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """chosen: an instruction set or TORCH. seconds: of one layer, by candidate and rows."""

    chosen: str
    seconds: Mapping[str, Mapping[int, float]]

    @property
    def isa(self) -> str:
        """The instruction set that is the fastest of the library's, chosen or not."""
        behind = self.behind
        return min((name for name in behind if name != TORCH), key=behind.__getitem__)

    @property
    def behind(self) -> dict[str, float]:
        """By candidate, how many times as long as the fastest it takes: a mean over the rows."""
        common = set.intersection(*(set(rows) for rows in self.seconds.values()))
        best = {n: min(rows[n] for rows in self.seconds.values()) for n in common}
        return {
            name: math.exp(sum(math.log(rows[n] / best[n]) for n in common) / len(common))
            for name, rows in self.seconds.items()
        }


def running(config: KernelConfig, choice: Choice) -> str:
    """The set that computes where this was measured, or TORCH; the decoder can run the model."""
    if config.kernels == "reference":
        return TORCH
    if config.isa is not None:
        return config.isa
    return choice.isa if config.kernels == "cpu" else choice.chosen


def layer_shape(layout: Layout) -> LayerShape:
    """That of a model's layers."""
    return LayerShape(
        hidden=layout.hidden,
        heads=layout.heads,
        kv_heads=layout.kv_heads,
        head_dim=layout.head_dim,
        intermediate=layout.intermediate,
    )


def choose(path: Path, cache: Path, shape: LayerShape, dtype: torch.dtype, *, int8: bool) -> Choice:
    """The choice for a library and a model's shape: measured once, kept in `cache`.

    Where another process measured at the same time, the first one's counts. A file there that is no
    choice is measured again. Raises EngineError where no set of the library runs here, and for
    layers that the decoder cannot run.
    """
    if shape.refusal is not None:
        raise EngineError(f"the C++ decoder cannot run such layers: {shape.refusal}")
    isas = supported_isas(path)
    if not isas:
        raise EngineError(f"no instruction set of {path.name} runs on this processor")
    file = expanded(cache) / f"choice-{_key(path, isas, shape, dtype, int8=int8)}.json"
    tried = isas[-_MOST:]
    parse = partial(parse_choice, (*tried, *([] if int8 else [TORCH])))
    before = read_cached(file, parse)
    if before is not None:
        return before
    measured = _measure(path, tried, shape, dtype, int8=int8)
    write_cached(file, asdict(measured), stays=lambda: read_cached(file, parse) is not None)
    behind = ", ".join(f"{name} {factor:.2f}" for name, factor in measured.behind.items())
    _log.info("CPU kernels: %s, by measurement (times the fastest: %s)", measured.chosen, behind)
    return read_cached(file, parse) or measured


def _measure(
    path: Path, isas: tuple[str, ...], shape: LayerShape, dtype: torch.dtype, *, int8: bool
) -> Choice:
    libraries = {isa: Library(path, isa) for isa in isas}
    seconds = times(libraries, shape, dtype, int8=int8)
    choice = Choice(TORCH, seconds)
    behind = choice.behind
    ours = choice.isa
    is_behind = TORCH in behind and behind[ours] > _MARGIN * behind[TORCH]
    return Choice(TORCH if is_behind else ours, seconds)


def _key(
    path: Path, isas: tuple[str, ...], shape: LayerShape, dtype: torch.dtype, *, int8: bool
) -> str:
    # Not the number of threads: how many there are may not change what is computed.
    parts = (path.name, isas, asdict(shape), str(dtype), int8, torch.__version__, processor())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def parse_choice(candidates: Sequence[str], stored: Any) -> Choice:
    """A choice among candidates, out of JSON. What it raises for what is none is no matter."""
    seconds = {
        str(name): {int(rows): float(taken) for rows, taken in of.items()}
        for name, of in stored["seconds"].items()
    }
    every = [taken for of in seconds.values() for taken in of.values()]
    if (
        set(seconds) != set(candidates)
        or stored["chosen"] not in candidates
        or not all(ROWS[0] in of for of in seconds.values())
        or not all(0 < taken < math.inf for taken in every)
    ):
        raise ValueError
    return Choice(stored["chosen"], seconds)
