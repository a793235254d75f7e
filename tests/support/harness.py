"""Drives a real engine over a real store, step by step, in the test's own thread."""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from adapters_store.blobs import open_blobs
from adapters_store.store import AdapterStore
from adapters_store.types import Combination
from router_engine.config import CacheConfig, EngineConfig
from router_engine.engine import Engine
from router_engine.events import EngineEvent, FinalEvent, TokenEvent
from router_engine.experts.base import AdapterSource
from router_engine.request import EngineRequest, SamplingParams
from router_engine.routers.arrow import SPEC as ARROW
from router_engine.routers.base import TokenRouter
from router_engine.routers.hidden_mean import HiddenMeanRouter
from tests.support.waiting import HANG_SECONDS

T = TypeVar("T")


@dataclass(slots=True)
class Answer:
    """Everything that an engine said about one request."""

    tokens: list[TokenEvent] = field(default_factory=list)
    final: FinalEvent | None = None

    @property
    def ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]

    @property
    def logprobs(self) -> list[float]:
        return [token.logprob for token in self.tokens]

    @property
    def end(self) -> FinalEvent:
        assert self.final is not None, "the request has not ended"
        return self.final


@functools.cache
def _new_database() -> bytes:
    """What a new store's database holds: making its tables takes as long as a tiny engine does."""
    with tempfile.TemporaryDirectory() as folder:
        AdapterStore.open(Path(folder)).close()
        return (Path(folder) / "adapters.db").read_bytes()


def _new_store(root: Path) -> AdapterStore:
    root.mkdir(parents=True)
    (root / "adapters.db").write_bytes(_new_database())
    return AdapterStore.open(root)


class EngineHarness:
    """One engine, its store, and the answers so far."""

    def __init__(
        self,
        root: Path,
        model: Path | str = "tiny-random",
        config: EngineConfig | None = None,
        routers: Mapping[str, TokenRouter] | None = None,
        wrap_source: Callable[[AdapterSource], AdapterSource] = lambda source: source,
    ) -> None:
        config = config or EngineConfig(cache=CacheConfig(num_blocks=512))
        self.news = threading.Event()
        self.store = _new_store(root / "store")
        self.engine = Engine(
            replace(config, model=replace(config.model, model=str(model))),
            adapters=wrap_source(open_blobs(root / "store" / "blobs")),
            token_routers=routers or {},
            hidden_routers={"hidden_mean": HiddenMeanRouter()},
            layer_routers={"arrow": ARROW.gate},
            wake=self.news.set,
        )
        self.answers: dict[str, Answer] = {}

    def publish(self, name: str, folder: Path) -> str:
        """Put a folder of PEFT's format or our own into the store; returns its digest."""
        return self.store.publish(name, folder, base=self.engine.base).digest

    def put_centroids(self, centroids: Mapping[str, Sequence[float]]) -> None:
        """Centroids of the router `hidden_mean`."""
        self.engine.put_centroids("hidden_mean", centroids)

    def add(self, *requests: EngineRequest) -> None:
        for request in requests:
            assert request.request_id not in self.answers
            self.answers[request.request_id] = Answer()
            self.engine.add_request(request)

    def step(self) -> list[EngineEvent]:
        """One step; waits for news first where there is nothing to do."""
        if not self.engine.has_work:
            assert self.news.wait(HANG_SECONDS), "nothing happened"
        self.news.clear()
        events = self.engine.step()
        for event in events:
            answer = self.answers[event.request_id]
            assert answer.final is None, "an event after the final one"
            if isinstance(event, TokenEvent):
                answer.tokens.append(event)
            else:
                answer.final = event
        return events

    def run(self, *requests: EngineRequest) -> list[Answer]:
        """Add requests, step until they have ended, and check the invariants."""
        self.add(*requests)
        while any(self.answers[request.request_id].final is None for request in requests):
            self.step()
        self.engine.check_integrity()
        return [self.answers[request.request_id] for request in requests]

    def wait(self, future: Future[T]) -> T:
        """Step until a future of the engine is there."""
        while not future.done():
            self.step()
        return future.result()

    def close(self) -> None:
        self.engine.check_integrity()
        self.engine.close()
        self.store.close()


def request(
    request_id: str,
    prompt: Sequence[int],
    mixture: Mapping[str, float] | None = None,
    *,
    combination: Combination = "sum",
    max_new_tokens: int = 12,
) -> EngineRequest:
    """A greedy request under {digest: weight}."""
    mixture = mixture or {}
    return EngineRequest(
        request_id,
        tuple(prompt),
        SamplingParams(max_new_tokens=max_new_tokens),
        adapters=tuple(mixture),
        weights=tuple(mixture.values()),
        combination=combination,
    )
