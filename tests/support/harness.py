"""The engine of this process over a store of its own, with the answers that a test looks at."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adapters_store.blobs import open_blobs
from adapters_store.store import AdapterStore
from adapters_store.types import Combination
from router_engine.config import CacheConfig, EngineConfig
from router_engine.engine import Engine
from router_engine.experts.base import AdapterSource
from router_engine.offline import OfflineEngine, RequestOutput
from router_engine.request import EngineRequest, SamplingSpec
from router_engine.routers.arrow import SPEC as ARROW
from router_engine.routers.base import TokenRouter
from router_engine.routers.hidden_mean import HiddenMeanRouter
from tests.support.waiting import HANG_SECONDS

Answer = RequestOutput


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


class EngineHarness(OfflineEngine):
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

        def make_engine(wake: Callable[[], None]) -> Engine:
            return Engine(
                replace(config, model=replace(config.model, model=str(model))),
                adapters=wrap_source(open_blobs(root / "store" / "blobs")),
                token_routers=routers or {},
                hidden_routers={"hidden_mean": HiddenMeanRouter()},
                layer_routers={"arrow": ARROW.gate},
                wake=wake,
            )

        super().__init__(make_engine, _new_store(root / "store"), patience=HANG_SECONDS)
        self.answers: dict[str, Answer] = {}

    def put_centroids(self, centroids: Mapping[str, Sequence[float]]) -> None:
        """Centroids of the router `hidden_mean`."""
        self.engine.put_centroids("hidden_mean", centroids)

    def add(self, *requests: EngineRequest) -> None:
        for request in requests:
            assert request.request_id not in self.answers
            self.answers[request.request_id] = self.add_request(request)

    def run(self, *requests: EngineRequest) -> list[Answer]:
        """Add requests, step until they have ended, and check the invariants."""
        self.add(*requests)
        while not all(self.answers[request.request_id].is_finished for request in requests):
            self.step()
        self.check_integrity()
        return [self.answers[request.request_id] for request in requests]

    def close(self) -> None:
        """Check the invariants, and end."""
        self.check_integrity()
        super().close()


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
        SamplingSpec(max_new_tokens=max_new_tokens),
        adapters=tuple(mixture),
        weights=tuple(mixture.values()),
        combination=combination,
    )
