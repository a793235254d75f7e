"""The loop between two steps: what it does, and leaves alone, while nothing can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from router_engine.engine import Engine
from router_engine.process.engine_factory import build_engine
from router_engine.process.loop import EngineLoop
from router_engine.process.messages import (
    Command,
    EngineProcessConfig,
    Report,
    Shutdown,
    StepEvents,
    Submit,
)
from router_engine.processors import usable_cores
from tests.router_engine.client.support import PROMPT
from tests.support.harness import request

_WAKE_UPS = 5


class _WokenChannel:
    """Submits a request, and when it has ended, ends some waits without a command: a wake-up."""

    def __init__(self) -> None:
        self._ended = False
        self._script = self._commands()

    def receive(self, timeout: float | None) -> Sequence[Command]:
        return next(self._script)

    def send(self, report: Report) -> None:
        self._ended = self._ended or (isinstance(report, StepEvents) and bool(report.finals))

    def wake(self) -> None:
        pass

    def _commands(self) -> Iterator[Sequence[Command]]:
        yield [Submit(request("one", PROMPT))]
        while not self._ended:
            yield []
        for _ in range(_WAKE_UPS):
            yield []
        yield [Shutdown()]


class _CountsChecks(Engine):
    checks = 0

    def check_integrity(self) -> None:
        type(self).checks += 1
        super().check_integrity()


def test_a_wake_up_is_no_idle_time_to_check_in(config: EngineProcessConfig) -> None:
    engine = build_engine(config, lambda: None)
    engine.__class__ = _CountsChecks
    EngineLoop(engine, _WokenChannel()).run()
    engine.close()
    assert _CountsChecks.checks == 1  # that of the shutdown


def test_an_engine_is_built_within_the_cores_that_may_be_used(config: EngineProcessConfig) -> None:
    """Beside a program of its own, where nothing has told torch of a quota."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(usable_cores() + 1)
        build_engine(config, lambda: None).close()
        assert torch.get_num_threads() == usable_cores()
    finally:
        torch.set_num_threads(threads)
