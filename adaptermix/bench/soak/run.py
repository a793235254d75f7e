"""`adaptermix bench soak`: traffic of every kind, faults, and what was left of it all."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import aiohttp
import uvloop
from rich.console import Console

from adaptermix.bench.clients import http_client
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import origin
from adaptermix.bench.settings import ModelSettings
from adaptermix.bench.soak.admin import Admin
from adaptermix.bench.soak.answers import Manner, Told, ask, compare
from adaptermix.bench.soak.faults import Fault, Incarnation, Order, Role, Watch, strike
from adaptermix.bench.soak.questions import FRESH, SoakRequest, questions
from adaptermix.bench.soak.record import Figures, SoakRecord, pools_of
from adaptermix.bench.soak.report import verdicts
from adaptermix.bench.soak.settings import SoakSettings
from adaptermix.bench.soak.site import SoakSite, keep_log, opened
from adaptermix.bench.subject import resolve

_MANNERS: Mapping[Manner, float] = {
    "whole": 4,
    "stream": 4,
    "slow": 0.5,
    "cancel": 1,
    "leave": 0.5,
    "hurry": 1,
}
_LOOK_SECONDS = 1.0
_PROBE_SECONDS = 30.0  # a request that needs the encoder waits for it about so long
_EMPTY_SECONDS = 60.0  # until requests that were left have been taken out of the engine
_STOP_SECONDS = 120.0
_LEFT_SECONDS = 10.0  # a process that was killed takes a moment to vanish

Asked = tuple[SoakRequest, tuple[Told, ...]]  # with its references


@dataclass(slots=True)
class Soak:
    """One run under way."""

    settings: SoakSettings
    site: SoakSite
    http: aiohttp.ClientSession
    ledger: SoakRecord
    watch: Watch
    console: Console
    figures: Figures = field(default_factory=Figures)
    faults: list[Fault] = field(default_factory=list)
    manners: Counter[str] = field(default_factory=Counter)
    is_calm: bool = False
    began: float = field(default_factory=time.perf_counter)

    @property
    def progress(self) -> float:
        """From 0 to 1, by time or by answers, whichever is further."""
        passed = (time.perf_counter() - self.began) / (60 * self.settings.minutes)
        wanted = self.settings.answers
        return max(passed, self.ledger.num_answers / wanted) if wanted else passed

    def is_over(self) -> bool:
        """After the whole length, and not before every kind of fault has come."""
        return self.progress >= 1 and self.is_calm

    async def traffic(self, asked: Sequence[Asked]) -> None:
        """Clients, admin, faults and looks, until it is over and every request has ended."""
        routed = next(pair for pair in asked if pair[0].kind == "request-routed")
        admin = Admin(
            self.http,
            self.ledger,
            self.site.adapters,
            self.site.folders,
            self.site.database,
            self.settings.bound,
            random.Random(f"admin {self.settings.seed}"),
            set(FRESH),
        )
        looking = asyncio.create_task(self._look())
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self.settings.clients):
                    group.create_task(self._client(number, asked))
                group.create_task(admin.work(self.is_over))
                group.create_task(self._break(routed))
            await admin.let_go()
        finally:
            looking.cancel()
            await asyncio.wait({looking})

    async def _client(self, number: int, asked: Sequence[Asked]) -> None:
        chooser = random.Random(f"client {self.settings.seed} {number}")
        names, weights = list(_MANNERS), list(_MANNERS.values())
        while not self.is_over():
            question, references = chooser.choice(asked)
            (manner,) = chooser.choices(names, weights)
            self.manners[manner] += 1
            self.ledger.begun += 1
            calm = self.is_calm
            ended = await ask(self.http, question, question.body, manner, self.settings.bound)
            self.ledger.note(question, references, ended, calm=calm)
            if ended.pause:
                await asyncio.sleep(ended.pause * chooser.random())

    async def _break(self, routed: Asked) -> None:
        """Faults, one after so many answers, in the first part of the run, in whole rounds."""
        order = Order(random.Random(f"faults {self.settings.seed}"))

        async def works(role: Role) -> bool:
            if role == "engine":
                return True  # /health/ready speaks of it
            question = routed[0]
            ended = await ask(self.http, question, question.body, "whole", _PROBE_SECONDS)
            return ended.told is not None or ended.error == "overloaded"

        while order.left or self.progress < 1 - self.settings.calm:
            due = sum(fault.answers for fault in self.faults[-1:]) + self.settings.every
            await self.ledger.until(due, _LOOK_SECONDS)
            answers, server = self.ledger.num_answers, self.site.server.running.pid
            if answers < due:
                continue
            bound = self.settings.bound
            fault = await strike(self.http, server, order.take(), works, answers, bound)
            if fault is not None:
                self.faults.append(fault)
                self.console.print(_line(fault), highlight=False)
        self.is_calm = True

    async def _look(self) -> None:
        while True:
            self.watch.look()
            await self.figures.look(self.http)
            await asyncio.sleep(_LOOK_SECONDS)


def run_soak(settings: SoakSettings, model: ModelSettings) -> dict[str, Any]:
    """The result as written to JSON; `verdicts` say whether it held."""
    console = Console(stderr=True)
    subject = resolve(model.model)
    load = os.getloadavg()
    with opened(settings, model, subject) as site:
        chosen = questions(
            settings, site.adapters, site.server.info["model_id"], subject.count_tokens
        )
        soak, pools, seconds = uvloop.run(_run(settings, site, chosen, console))
        after = _end(soak) | {"pools": pools}
        result: dict[str, Any] = {
            **origin("soak", subject.name, site.server.serving, asdict(settings)),
            "load": {"before": load, "after": os.getloadavg()},
            "seconds": seconds,
            "requests": _requests(soak.ledger, soak.manners),
            "faults": [asdict(one) | {"recovered": one.recovered} for one in soak.faults],
            "memory": _memories(soak.watch),
            "counters": dict(soak.figures.totals),
            "after": after,
        }
        result["verdicts"] = verdicts(result)
        if any(one["holds"] is False for one in result["verdicts"]):
            keep_log(site.server.log, settings.out)
    return result


async def _run(
    settings: SoakSettings, site: SoakSite, chosen: Sequence[SoakRequest], console: Console
) -> tuple[Soak, dict[str, float], float]:
    """The run, what the pools hold after it, and its seconds."""
    async with http_client(site.server.url) as http:
        console.print(f"asking {len(chosen)} questions of the idle server", highlight=False)
        asked = [
            (question, await _references(http, question, settings, site.tolerance))
            for question in chosen
        ]
        watch = Watch(site.server.running.pid)
        soak = Soak(settings, site, http, SoakRecord(site.tolerance), watch, console)
        await soak.traffic(asked)
        seconds = time.perf_counter() - soak.began
        return soak, await pools_of(http, _EMPTY_SECONDS), seconds


async def _references(
    http: aiohttp.ClientSession, question: SoakRequest, settings: SoakSettings, tolerance: float
) -> tuple[Told, ...]:
    """The answers of an idle server, asked one at a time.

    Raises BenchmarkError where it says nothing, or the same of what must differ: then an answer
    under another adapter would pass for a right one.
    """
    answers: list[Told] = []
    for body in (*question.asks, *question.others):
        ended = await ask(http, question, body, "whole", settings.bound)
        if ended.told is None:
            raise BenchmarkError(
                f"an idle server did not answer {question.kind} on {question.route}: "
                f"{ended.status} {ended.error or ended.lost}"
            )
        answers.append(ended.told)
    for one, other in itertools.combinations(answers, 2):
        if compare(replace(one, labels=other.labels), [other], tolerance).match != "wrong":
            raise BenchmarkError(f"{question.kind}: two adapters cannot be told apart")
    return tuple(answers[: len(question.asks)])


def _end(soak: Soak) -> dict[str, Any]:
    """Tell the server to end, and see what it leaves."""
    process = soak.site.server.running.process
    process.send_signal(signal.SIGTERM)
    try:
        code: int | None = process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        code = None
    log = soak.site.server.log.read_text(encoding="utf-8", errors="replace").splitlines()
    troubles = [line for line in log if "Traceback" in line or "unexpected error" in line]
    return {
        "exit": code,
        "processes": soak.watch.left_after(_LEFT_SECONDS),
        "files": sorted(path.name for path in soak.site.temporary.iterdir()),
        "exceptions": len(troubles),
        "exception": troubles[0][:2000] if troubles else None,
    }


def _requests(ledger: SoakRecord, manners: Counter[str]) -> dict[str, Any]:
    return {
        "begun": ledger.begun,
        "answers": ledger.num_answers,
        "by_kind": dict(sorted(ledger.answers.items())),
        "by_manner": dict(manners),
        "ties": ledger.ties,
        "left": ledger.left,
        "errors": dict(ledger.errors),
        "admin": dict(sorted(ledger.admin.items())),
        "wrong": ledger.num_wrong,
        "lost": ledger.num_lost,
        "undocumented": ledger.num_undocumented,
        "unaccounted": ledger.unaccounted,
        "examples": {
            "wrong": ledger.wrong,
            "lost": ledger.lost,
            "undocumented": ledger.undocumented,
        },
        "tolerance": ledger.tolerance,
        "largest_difference": ledger.largest,
        "longest_seconds": ledger.longest,
    }


def _memories(watch: Watch) -> list[dict[str, Any]]:
    """Every incarnation; the longest-lived of each role is judged."""
    longest: dict[Role, Incarnation] = {}
    for life in watch.seen.values():
        if len(life.samples) > len(longest.get(life.role, Incarnation(life.role, 0)).samples):
            longest[life.role] = life
    return [
        {
            "role": life.role,
            "samples": len(life.samples),
            "first_bytes": life.samples[0],
            "last_bytes": life.samples[-1],
            "growth": life.growth(),
            "judged": longest[life.role] is life,
        }
        for life in watch.seen.values()
    ]


def _line(fault: Fault) -> str:
    came = "did not come back" if fault.seconds is None else f"back after {fault.seconds:.1f} s"
    return f"{fault.role}, {fault.what} after {fault.answers} answers: {came}"
