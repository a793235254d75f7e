"""The loop between two steps: what it does, and leaves alone, while nothing can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from router_engine.client.build import build_engine
from router_engine.client.loop import EngineLoop
from router_engine.client.messages import (
    Command,
    EngineProcessConfig,
    Report,
    Shutdown,
    StepEvents,
    Submit,
)
from router_engine.engine import Engine
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
