"""A closed loop of requests, while adapters that nobody has asked for before arrive.

All adapters are in the store before: publishing is another process' work in a server. What is
measured is what the engine does at an adapter's first use: it is read from disk, sent to the
device, where others leave for it, and entered in the tables. The device holds half of them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu.builds import counted_compiles
from benchmarks.gpu.engine import CardEngine
from benchmarks.gpu.phases import CardCell
from benchmarks.gpu.settings import FEW, CardSizes
from benchmarks.gpu.site import Site
from router_engine.errors import EngineError
from router_engine.events import FinalEvent, FinishReason
from router_engine.request import EngineRequest, SamplingSpec

CLOSED_LOOP = "closed loop"


def churn_cells(site: Site) -> list[CardCell]:
    """One cell: rounds of steps with arrivals, and of as many without."""
    return [CardCell(CLOSED_LOOP, lambda: _measure(site))]


@dataclass(frozen=True, slots=True)
class LoopStep:
    """One step of the engine. seconds: host included. is_decode: no prompt was computed in it."""

    seconds: float
    is_decode: bool


class ClosedLoop:
    """As many clients as the goals have requests, each with one request after another.

    Each asks for one of the latest adapters. Those that arrive are asked for when they are due and
    a client is free, and are the latest from then on.
    """

    def __init__(self, engine: CardEngine, sizes: CardSizes, adapters: Sequence[str]) -> None:
        self._engine = engine
        self._sizes = sizes
        self._latest = deque(adapters, maxlen=len(adapters))
        self._chance = random.Random(0)
        self._vocabulary = engine.engine.info.vocab_size
        self._sent = 0
        self._live: dict[str, str] = {}  # adapters of requests

    def run(self, steps: int, arrivals: Sequence[str] = ()) -> list[LoopStep]:
        """So many steps or more: until each arrival was asked for and had its first token."""
        done: list[LoopStep] = []
        due, unseen = deque(arrivals), set(arrivals)
        started = time.monotonic()
        while len(done) < steps or due or unseen:
            while len(self._live) < self._sizes.goal[0]:
                passed = (time.monotonic() - started) * self._sizes.arrivals_a_second
                is_due = due and len(arrivals) - len(due) <= passed
                self._send(due.popleft() if is_due else None)
            done += self._step(unseen)
        return done

    def end(self) -> None:
        """Abandon what is under way."""
        self._engine.offline.abort_requests(self._live)
        self._engine.offline.run_until_idle()

    def _send(self, arrival: str | None) -> None:
        if arrival is not None:
            self._latest.append(arrival)
        adapter = self._chance.choice(self._latest) if arrival is None else arrival
        prompt = self._chance.randint(*self._sizes.churn_prompts)
        tokens = tuple(self._chance.randrange(3, self._vocabulary) for _ in range(prompt))
        sampling = SamplingSpec(max_new_tokens=self._chance.randint(*self._sizes.churn_answers))
        request_id = f"loop {self._sent}"
        self._sent += 1
        self._live[request_id] = adapter
        self._engine.offline.add_request(
            EngineRequest(request_id, tokens, sampling, (adapter,), (1.0,))
        )

    def _step(self, unseen: set[str]) -> list[LoopStep]:
        """The engine's step, if there was one to make. Raises EngineError where a request fails."""
        offline, engine = self._engine.offline, self._engine.engine
        offline.wait_for_work()
        before = engine.stats()
        started = time.perf_counter()
        events = offline.step_now()
        seconds = time.perf_counter() - started
        after = engine.stats()
        for event in events:
            if not isinstance(event, FinalEvent):
                unseen.discard(self._live[event.request_id])
                continue
            del self._live[event.request_id]
            if event.reason is not FinishReason.LENGTH:
                raise EngineError(f"a request ended: {event.error or event.reason}")
        if after.steps == before.steps:
            return []
        return [LoopStep(seconds, after.prompt_tokens == before.prompt_tokens)]


def _measure(site: Site) -> dict[str, Any]:
    settings, sizes = site.settings, site.settings.sizes
    used, rounds = sizes.churn_adapters, settings.rounds
    engine = site.engine_with_room((used + sizes.arrivals) // 2)
    digests = site.digests(used + sizes.arrivals, first=FEW)
    arrivals = digests[used:]
    early, late = np.split(np.array(arrivals), [len(arrivals) // 2])
    loop = ClosedLoop(engine, sizes, digests[:used])
    try:
        loop.run(settings.steps, early.tolist())  # kernels are compiled, graphs captured
        loop.run(settings.steps)
        with counted_compiles() as compiles:
            captures, before = engine.captures, engine.engine.stats()
            turns = []
            for part in np.array_split(late, rounds):
                busy = loop.run(settings.steps, part.tolist())
                turns.append({"arrivals": _told(busy), "steady": _told(loop.run(len(busy)))})
            after = engine.engine.stats()
            return {
                "turns": turns,
                "arrivals": len(late),
                "loads": after.adapter_loads - before.adapter_loads,
                "evictions": after.adapter_evictions - before.adapter_evictions,
                "compiles": compiles.count,
                "captures": engine.captures - captures,
            }
    finally:
        loop.end()


def _told(steps: Sequence[LoopStep]) -> dict[str, Any]:
    seconds = [step.seconds for step in steps]
    decodes = [step.seconds for step in steps if step.is_decode]
    return {
        "steps": len(steps),
        "median": statistics.median(seconds),
        "p99": float(np.quantile(seconds, 0.99)),
        "longest": max(seconds),
        "decodes": len(decodes),
        "decode_median": statistics.median(decodes) if decodes else None,
    }
