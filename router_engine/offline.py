"""The engine in this process, stepped by whoever owns it: no thread, no asyncio, no messages.

For benchmarks, tests and anything else that wants each step for itself. What wants text, names of
adapters and many callers at once takes `adaptermix.LLM`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from adapters_store.store import AdapterStore
from router_engine.config import EngineConfig
from router_engine.engine import Engine
from router_engine.errors import EngineError
from router_engine.events import EngineEvent, FinalEvent, TokenEvent
from router_engine.process.engine_factory import build_engine
from router_engine.process.messages import EngineProcessConfig
from router_engine.request import EngineRequest

Value = TypeVar("Value")
EngineFactory = Callable[[Callable[[], None]], Engine]
"""Makes an engine; the argument is the `wake` that it may call from any thread."""


class EngineStalledError(EngineError, TimeoutError):
    """Nothing came of what the engine waits for: adapters, or weights of a router."""


@dataclass(slots=True)
class RequestOutput:
    """All that the engine has said of one request so far."""

    tokens: list[TokenEvent] = field(default_factory=list)
    final: FinalEvent | None = None  # None until it has ended

    @property
    def is_finished(self) -> bool:
        return self.final is not None

    @property
    def ids(self) -> list[int]:
        """Token ids of the answer."""
        return [token.token_id for token in self.tokens]

    @property
    def logprobs(self) -> list[float]:
        """Of the answer's tokens, in nats."""
        return [token.logprob for token in self.tokens]

    @property
    def end(self) -> FinalEvent:
        """The last event. Raises EngineError before the request has ended."""
        if self.final is None:
            raise EngineError("the request has not ended")
        return self.final


class OfflineEngine:
    """One engine and the store that its adapters come from; owns both. One thread calls it.

    A context manager: what leaves it without an error has kept the engine's invariants.
    """

    def __init__(
        self, make_engine: EngineFactory, store: AdapterStore, patience: float = 60.0
    ) -> None:
        """patience: seconds that one step waits for adapters or weights.

        Raises what `make_engine` raises, with the store closed.
        """
        self._news = threading.Event()
        self._patience = patience
        self._live: dict[str, RequestOutput] = {}
        self.store = store
        try:
            self.engine = make_engine(self._news.set)  # not of this: a ring keeps memory
        except BaseException:
            store.close()
            raise

    @classmethod
    def open(
        cls,
        config: EngineConfig,
        store: Path,
        *,
        encoder_endpoint: str | None = None,
        patience: float = 60.0,
    ) -> OfflineEngine:
        """An engine with every installed router, over the adapter store in a directory.

        encoder_endpoint: of a sentence encoder's worker that runs, for routers that read text.
        Raises EngineError, StoreError.
        """
        process = EngineProcessConfig(
            config, blobs_url=str(store / "blobs"), encoder_endpoint=encoder_endpoint
        )
        return cls(partial(build_engine, process), AdapterStore.open(store), patience)

    def publish(self, name: str, folder: Path) -> str:
        """Put an adapter folder, PEFT's or our own, into the store; its digest, which requests use.

        Raises InvalidAdapterError with every problem.
        """
        return self.store.publish(name, folder, base=self.engine.base).digest

    # Requests

    def add_request(self, request: EngineRequest) -> RequestOutput:
        """Take a request on; its output grows with every step."""
        output = self._live[request.request_id] = RequestOutput()
        self.engine.add_request(request)
        return output

    def abort_requests(self, request_ids: Iterable[str]) -> None:
        """End requests; unknown ids are ignored. Their final events come with the next step."""
        for request_id in request_ids:
            self.engine.cancel(request_id)

    @property
    def has_unfinished_requests(self) -> bool:
        return bool(self._live)

    def generate(self, requests: Sequence[EngineRequest]) -> list[RequestOutput]:
        """Run requests to their end, in one batch; outputs in their order.

        Where this fails, or is interrupted, none of them goes on.
        """
        outputs: list[RequestOutput] = []
        try:
            outputs.extend(map(self.add_request, requests))
            while not all(output.is_finished for output in outputs):
                self.step()
        except BaseException:
            self.abort_requests(request.request_id for request in requests)
            raise
        return outputs

    # Steps

    def step(self) -> list[EngineEvent]:
        """One step, once there is something to do; what happened in it.

        Raises EngineStalledError where nothing comes.
        """
        self.wait_for_work()
        return self.step_now()

    def step_now(self) -> list[EngineEvent]:
        """One step, without waiting: for whoever times it, after `wait_for_work`."""
        events = self.engine.step()
        for event in events:
            if isinstance(event, TokenEvent):
                self._live[event.request_id].tokens.append(event)
            else:
                self._live.pop(event.request_id).final = event
        return events

    def wait_for_work(self) -> None:
        """Return when a step would do something, or might: a router, a loader woke the engine."""
        if not self.engine.has_work and not self._news.wait(self._patience):
            raise EngineStalledError(
                f"neither adapters nor weights came in {self._patience:g} s, and no other request "
                "can run"
            )
        self._news.clear()

    def run_until_idle(self) -> None:
        """Step until every request has ended and nothing is left to do."""
        while self._live or self.engine.has_work:
            self.step()

    def wait(self, future: Future[Value]) -> Value:
        """Step until a future of the engine (`load`, `pin`, `merge`) is there; its result."""
        while not future.done():
            self.step()
        return future.result()

    def wake(self) -> None:
        """Let a step be made though nothing is known to be there. From any thread."""
        self._news.set()

    # The end

    def check_integrity(self) -> None:
        """The invariants of blocks, rows, pins and queues; raises naming what broke."""
        self.engine.check_integrity()

    def close(self) -> None:
        """Let go of the engine and the store."""
        self.engine.close()
        self.store.close()

    def __enter__(self) -> OfflineEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.check_integrity()
        finally:
            self.close()
