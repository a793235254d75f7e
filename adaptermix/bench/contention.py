"""`adaptermix bench contention`: each system beside busy loops, as a share of itself alone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import uvloop

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.goals import LLAMA, OURS, PEERS, PEFT
from adaptermix.bench.load import Load
from adaptermix.bench.machine import origin
from adaptermix.bench.peers.plan import SUITES, jobs, traffics, wave
from adaptermix.bench.peers.settings import ContentionSettings
from adaptermix.bench.peers.site import (
    PeerSite,
    open_peers,
    over_http,
    prepared,
    serve,
    serving_of,
)
from adaptermix.bench.report import goal_table, missing_lines, provenance, row, table_head
from adaptermix.bench.rounds import PRACTICE, Cell, System, round_title
from adaptermix.bench.verdicts import Goal, judge

_SPIN = "print(flush=True)\nwhile True: pass"


@contextlib.contextmanager
def busy(count: int) -> Iterator[list[int]]:
    """So many busy loops run during the block, by their process ids; they end with it."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            command = [sys.executable, "-c", _SPIN]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        for process in started:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise BenchmarkError("a busy loop did not start")
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


Rates = dict[str, dict[int, list[float]]]  # {system: {busy loops: tokens/s, one a round}}
MOST = 8
GOAL = Goal(
    f"slowdown beside {MOST} busy loops over that of the best peer",
    1.3,
    at_least=False,
    scalar="slowdown_over_best_peer",
)
_SYSTEMS = (OURS, PEFT, LLAMA)


def run_contention(settings: ContentionSettings) -> dict[str, Any]:
    """Start everything, measure in turn; the result as written to JSON."""
    suites = [suite for suite in SUITES if suite.name == PEERS]
    with prepared(settings.as_peers(), suites) as site:
        opened, versions = open_peers(site)
        running = serve(site, site.options("store", suites), "server.log", {})
        systems = {OURS: over_http(running)} | {n: opened[n] for n in _SYSTEMS if n in opened}
        serving = serving_of(site, running)
        rates = uvloop.run(_measure(site, systems, settings))
    scalars = over_best_peer(rates)
    return {
        **origin("contention", site.subject.name, serving, asdict(settings)),
        "versions": versions,
        "missing": site.missing,
        "cells": [line for name, by_loops in rates.items() for line in lines(name, by_loops)],
        "scalars": scalars,
        "goals": [asdict(judge(GOAL, {}, scalars))],
    }


async def _measure(
    site: PeerSite, systems: Mapping[str, System], settings: ContentionSettings
) -> Rates:
    """All systems in turn beside each number of loops, round after round; a practice first.

    Who fails has no further turns, and keeps what it has.
    """
    traffic = traffics(settings.new_tokens, site.subject.count_tokens)[PEERS]
    load = Load(clients=settings.clients)
    left = dict(systems)
    rates: Rates = {name: {} for name in systems}

    async def once(name: str, loops: int, part: str) -> None:
        cell = Cell(name, "base", load, wave(settings.clients), PEERS)
        work = jobs(cell, f"{part} {loops} loops", traffic)
        try:
            done = await left[name].round(cell.case, load, work, lambda: None)
        except BenchmarkError as error:
            del left[name]
            site.leave_out(f"{name}, {loops} busy loops, {part}", error)
        else:
            if part != PRACTICE:
                rates[name].setdefault(loops, []).append(done.tokens_per_second)

    for name in list(left):
        await once(name, 0, PRACTICE)
    for number in range(settings.rounds):
        for loops in (0, *settings.loops):
            site.console.print(f"{round_title(number)}: {loops} busy loops", highlight=False)
            with busy(loops):
                for name in list(left):
                    await once(name, loops, round_title(number))
    return rates


def lines(name: str, by_loops: Mapping[int, Sequence[float]]) -> list[dict[str, Any]]:
    """A system beside each number of loops."""
    alone = median(by_loops[0]) if 0 in by_loops else None
    return [
        {
            "system": name,
            "loops": loops,
            "tokens_per_second": median(values),
            "tokens_per_second_rounds": list(values),
            "share_of_alone": None if alone is None else median(values) / alone,
        }
        for loops, values in by_loops.items()
    ]


def over_best_peer(rates: Rates) -> dict[str, Sequence[float]]:
    """Our slowdown beside the most loops over the least of a peer's, one a round."""
    slow = {
        name: [a / b for a, b in zip(by_loops[0], by_loops[MOST], strict=False)]
        for name, by_loops in rates.items()
        if by_loops.get(0) and by_loops.get(MOST)
    }
    peers = [median(values) for name, values in slow.items() if name != OURS]
    if OURS not in slow or not peers:
        return {}
    return {"slowdown_over_best_peer": [one / min(peers) for one in slow[OURS]]}


def markdown(result: Mapping[str, Any]) -> str:
    """The target, then a row for each system and number of loops."""
    settings = result["settings"]
    heads = ("system", "busy loops", "tokens/s", "over rounds", "of alone")
    lines = ["# Beside busy loops", "", provenance(result), "", *goal_table(result["goals"]), ""]
    lines += [
        f"{settings['clients']} clients, {settings['new_tokens']} new tokens each, the base model; "
        f"medians of {settings['rounds']} rounds, systems in turn. A busy loop is a process that "
        "spins. Who has no turn is stopped, or sleeps.",
        "",
        *missing_lines(result["missing"]),
        "",
        *table_head(heads),
    ]
    for cell in result["cells"]:
        values = cell["tokens_per_second_rounds"]
        shown = _shown(cell["share_of_alone"])
        rate, spread = f"{cell['tokens_per_second']:.1f}", f"{min(values):.1f}-{max(values):.1f}"
        lines.append(row([cell["system"], str(cell["loops"]), rate, spread, shown]))
    return "\n".join([*lines, ""])


def share_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each system as a share of itself alone, by the number of busy loops."""
    loops = sorted({cell["loops"] for cell in cells})
    lines = table_head(["busy loops", *map(str, loops)])
    for system in dict.fromkeys(cell["system"] for cell in cells):
        share = {c["loops"]: c["share_of_alone"] for c in cells if c["system"] == system}
        lines.append(row([system, *(_shown(share.get(count)) for count in loops)]))
    return lines


def _shown(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f}"
