"""`adaptermix bench routing`: what each router adds to a step, and what it costs a request."""

from __future__ import annotations

import asyncio
import cProfile
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import ROOT, default_kernels, describe_machine, describe_software
from adaptermix.bench.offline import Sizes, Window, offline
from adaptermix.bench.rounds import FAILURES, Turns, attempt
from adaptermix.bench.routing.cases import FREE, TARGETS, TOP_K, RoutingCase, Size, groups, line_of
from adaptermix.bench.routing.rig import (
    CONTEXT,
    Rig,
    cache_tokens,
    centroid_service,
    encoder_worker,
)
from adaptermix.bench.settings import ModelSettings, RoutingSettings
from adaptermix.bench.subject import Subject, resolve, write_adapters
from adaptermix.bench.workload import make_prompts
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.registry import RequestServices, RouterRegistry

Run = Callable[[AbstractContextManager[object]], Window]
_MOST = 10  # functions


def own_ms(run: Run) -> dict[str, float]:
    """Milliseconds a step in each function itself, calls to others left out.

    The profiler makes every call slower: small functions look larger than they are.
    """
    profiler = cProfile.Profile()
    window = run(profiler)
    profiler.create_stats()
    times: dict[str, float] = {}
    for entry in profiler.getstats():
        name = _name(entry.code)
        times[name] = times.get(name, 0.0) + 1e3 * entry.inlinetime / window.steps
    return times


def dearest(ours: Mapping[str, float], base: Mapping[str, float]) -> list[dict[str, Any]]:
    """The functions that take most more in `ours` than in `base`."""
    names = sorted({**ours, **base}, key=lambda name: base.get(name, 0.0) - ours.get(name, 0.0))
    return [
        {"function": name, "ms": ours.get(name, 0.0), "fixed_ms": base.get(name, 0.0)}
        for name in names[:_MOST]
    ]


def _name(code: Any) -> str:
    if isinstance(code, str):  # a function in C
        return code.strip("<>")
    path = Path(code.co_filename)
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    return f"{shown}: {code.co_qualname}"


RANK = 4
_ROUTES = 20  # timed requests of a request router
_UNCOUNTED = 2

Windows = Mapping[tuple[RoutingCase, Size], Sequence[Window]]
# (subject, endpoint of the encoder's worker, folder for a store)
CompareContexts = Callable[[Subject, str, Path], Coroutine[Any, Any, dict[str, Any]]]
Group = tuple[RoutingCase, Sequence[RoutingCase]]  # fixed weights, and what is compared with them


def run_routing(
    settings: RoutingSettings,
    model: ModelSettings,
    environment: Mapping[str, str],
    compare: CompareContexts | None = None,
) -> dict[str, Any]:
    """Measure; the result as written to JSON, `missing` being what failed.

    environment: that of the encoder's process. compare: gives `contexts` of the result. Raises
    BenchmarkError, or EngineError, for what cannot be measured, and where all steps fail.
    """
    console, missing = Console(stderr=True), dict[str, str]()
    subject = resolve(model.model)
    with tempfile.TemporaryDirectory(prefix="adaptermix-bench-") as temporary:
        folder = Path(temporary)
        own = folder / "worker"
        own.mkdir()
        with encoder_worker(subject, settings, own, environment) as endpoint:
            measured = asyncio.run(
                _measure(subject, settings, model, endpoint, folder, missing, console)
            )
            if compare is not None:
                with attempt(missing, "contexts", console):
                    measured["contexts"] = asyncio.run(compare(subject, endpoint, folder))
    return {
        "kind": "routing",
        "model": subject.name,
        "machine": describe_machine(),
        "software": describe_software(),
        "settings": asdict(settings) | {"data": None},
        **measured,
        "missing": missing,
    }


async def _measure(
    subject: Subject,
    settings: RoutingSettings,
    model: ModelSettings,
    endpoint: str,
    folder: Path,
    missing: dict[str, str],
    console: Console,
) -> dict[str, Any]:
    """Steps, requests, and a profile where one is called for."""
    kernels, profile = model.kernels or default_kernels(), None
    chosen = groups(RouterRegistry.discover().names)
    names = [f"a{index}" for index in range(max(settings.candidates))]
    num_cases = sum(1 + len(cases) for _, cases in chosen)
    most = max(*settings.requests, 1)
    sizes = Sizes(most, cache_tokens(settings, num_cases))
    with console.status(f"writing {len(names)} adapters"):
        folders = write_adapters(subject, folder / "adapters", names, (RANK,))
    with offline(
        subject,
        folders,
        sizes,
        folder / "store",
        dtype=model.dtype,
        kernels=kernels,
        encoder=endpoint,
    ) as system:
        async with EncoderClient(endpoint) as client:
            rig = Rig(system, subject, client, settings)
            with console.status(f"loading {len(names)} adapters"):
                await rig.prepare()
            rounds, windows = await _rounds(rig, settings, chosen, missing, console)
            lines = _lines(rig, chosen, windows)
            routes, left_out = await _routes(rig, subject, settings)
            with attempt(missing, "profile", console):
                profile = _profile(rig, chosen, lines)
        dtype = system.engine.info.dtype
    return {
        "serving": {"dtype": dtype, "kernels": kernels, "threads": torch.get_num_threads()},
        "rounds": rounds,
        "context": CONTEXT,
        "rank": RANK,
        "steps": lines,
        "targets": [asdict(target.judge(lines)) for target in TARGETS],
        "profile": profile,
        "routes": routes,
        "left_out": left_out,
    }


async def _rounds(
    rig: Rig,
    settings: RoutingSettings,
    chosen: Sequence[Group],
    missing: dict[str, str],
    console: Console,
) -> tuple[int, Windows]:
    """All cases in turn, round after round; the first is not counted, and tells the time."""
    sizes = [Size(n, k) for k in settings.candidates for n in settings.requests]
    # The fixed weights are known once the first case has run.
    parts = [
        (case, size)
        for size in sizes
        for fixed, (first, *others) in chosen
        for case in (first, fixed, *others)
    ]
    turns = Turns[tuple[RoutingCase, Size], Window](
        parts, lambda part: f"{part[0].name}, {part[1].title}", console
    )
    started = time.perf_counter()
    for _, part in turns.rounds(1, "practice"):
        with turns.turn(part):
            rig.practise(*part)
            await rig.settle()
    rounds = fitting_rounds(settings, time.perf_counter() - started)
    for _, part in turns.rounds(rounds, f"{rounds} rounds"):
        with turns.turn(part) as windows:
            windows.append(rig.window(*part))
            await rig.settle()
    turns.require_some()
    missing |= turns.missing
    return rounds, turns.values


def fitting_rounds(settings: RoutingSettings, seconds: float) -> int:
    """The number of rounds of so many seconds that there is time for, at least one."""
    return max(1, min(settings.rounds, int(60 * settings.minutes / seconds)))


def _lines(rig: Rig, chosen: Sequence[Group], windows: Windows) -> list[dict[str, Any]]:
    lines = []
    for fixed, cases in chosen:
        sizes = [size for case, size in windows if case is fixed]
        lines += [
            line_of(
                case,
                size,
                windows[case, size],
                windows[fixed, size],
                rig.active(case.router, size),
            )
            for case in cases
            for size in sizes
            if (case, size) in windows
        ]
    return lines


def _profile(
    rig: Rig, chosen: Sequence[Group], lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """A profile at the size at which the router that should be free is not."""
    worst = FREE.worst(lines)
    if worst is None or FREE.judge(lines).status != "missed":
        return None
    size = Size(worst["requests"], worst["candidates"])
    fixed, case = next(
        (fixed, case) for fixed, cases in chosen for case in cases if case.name == FREE.case
    )
    ours, base = (own_ms(functools.partial(rig.window, one, size)) for one in (case, fixed))
    return {"case": case.name, **asdict(size), "functions": dearest(ours, base)}


async def _routes(
    rig: Rig, subject: Subject, settings: RoutingSettings
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Milliseconds of a request's route at each number of candidates; and who gave none, why."""
    centroids = await centroid_service(rig.client, rig.centroids)
    registry, services = RouterRegistry.discover(), RequestServices(rig.client, centroids)
    lines: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for name in registry.names:
        spec = registry.get(name)
        if spec.request is None:
            continue
        params = {"top_k": TOP_K} if "top_k" in spec.params.model_fields else {}
        try:
            router = spec.request(services)
            for candidates in settings.candidates:
                digests = rig.system.digests[:candidates]
                seed = f"{name} {candidates} {settings.seed}"
                lengths = [CONTEXT] * (_ROUTES + _UNCOUNTED)
                times = []
                for text in make_prompts(lengths, seed, subject.count_tokens):
                    started = time.perf_counter()
                    await router.route(text, digests, params)
                    times.append(1e3 * (time.perf_counter() - started))
                counted = times[_UNCOUNTED:]
                spread = [min(counted), max(counted)]
                ms = statistics.median(counted)
                lines.append(
                    {"router": name, "candidates": candidates, "ms": ms, "ms_range": spread}
                )
        except FAILURES as error:
            left_out[name] = str(error)
    if not lines and not left_out:
        raise BenchmarkError("there is no router that works at level request")
    return lines, left_out
