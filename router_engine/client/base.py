"""The seam between the server and the engine, wherever the engine runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from adapters_store.types import BaseModelSpec, ResolvedMixture
from router_engine.events import EngineEvent
from router_engine.processes.supervisor import RunState
from router_engine.request import EngineRequest
from router_engine.stats import EngineStats


class Residency(StrEnum):
    """Where an adapter's weights are."""

    DISK = "disk"
    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine runs: enough to validate adapters and prompts without asking again."""

    base: BaseModelSpec
    max_model_len: int  # prompt and generated tokens together
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    dtype: str  # "float32", "bfloat16", ...
    device: str  # "cpu", "cuda:0", ...
    token_routers: tuple[str, ...] = ()  # names that `TokenRouting.router` may hold
    layer_routers: tuple[str, ...] = ()  # names that `LayerRouting.router` may hold
    hidden_size: int = 0
    probe: str = ""  # digest of what hidden states at the probe layer depend on: model and layer
    kv_blocks: int = 1 << 31  # of the whole cache
    kv_block_size: int = 1  # tokens

    def longest(self, sequences: int = 1) -> int:
        """Tokens, prompt and answer, that each sequence of one request may have.

        What the model takes, or less: what the KV cache holds where nobody else is there. The last
        token is never fed back, so it needs no KV.
        """
        held = self.kv_blocks // sequences * self.kv_block_size
        return min(self.max_model_len, held + 1)


@dataclass(frozen=True, slots=True)
class AdapterResidency:
    digest: str
    residency: Residency
    pinned: bool  # by an admin
    users: int  # live requests that need it
    rank_rows: int
    device_bytes: int
    load_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class MergedState:
    """Which mixture the base weights hold; `mixture` None and mode "unmerged" for the bare base."""

    mixture: ResolvedMixture | None
    seconds: float  # what the last switch took

    @property
    def mode(self) -> str:
        return "unmerged" if self.mixture is None else "merged"


class EngineClient(Protocol):
    """One engine. All methods are called from one asyncio loop."""

    @property
    def state(self) -> RunState: ...

    async def start(self) -> None:
        """Return when the engine can take requests; raises EngineError if it cannot start."""

    async def close(self) -> None:
        """End the engine; live requests get a final event (CANCELLED)."""

    def submit(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """Token events, then one final event. Closing the generator early cancels the request.

        Nothing is sent before the first `__anext__`, which raises EngineNotReadyError when the
        engine is not ready. Events that the reader has not taken are kept, at most
        max_new_tokens + 1 of them for each request.
        """
        ...

    async def cancel(self, request_id: str) -> None:
        """End a request at the next step border; unknown ids are ignored (it may have ended)."""

    async def load(self, digest: str) -> AdapterResidency:
        """Bring an adapter to the device."""
        ...

    async def pin(self, digest: str, *, pinned: bool) -> AdapterResidency:
        """Load and keep it on the device (or let it go again)."""
        ...

    async def unload(self, digest: str) -> int:
        """Drop it from device and host; returns bytes freed.

        Raises AdapterBusyError while requests use it or it is pinned.
        """
        ...

    async def residency(self) -> tuple[AdapterResidency, ...]:
        """Every adapter that is on the host or the device."""
        ...

    async def merge(self, mixture: ResolvedMixture | None) -> MergedState:
        """Fold a mixture into the base between two steps; None restores the base bit for bit."""
        ...

    async def merged(self) -> MergedState: ...

    async def put_centroids(self, router: str, centroids: Mapping[str, Sequence[float]]) -> None:
        """Centroids by digest for a router that reads hidden states; gone when it restarts.

        Raises RouterError if there is no such router.
        """

    @property
    def restarts(self) -> int:
        """How often the engine came back after a death."""
        ...

    async def stats(self) -> EngineStats: ...

    async def info(self) -> EngineInfo:
        """What the engine runs; known from `start` on, also while it restarts."""
        ...
