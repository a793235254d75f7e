"""Answers of an engine about itself: what it runs, where adapters are, what the base holds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from adapters_store.types import BaseModelSpec, ResolvedMixture


class Residency(StrEnum):
    """Where an adapter's weights are."""

    DISK = "disk"
    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """What a part of the device's memory is for."""

    name: str
    num_bytes: int
    told: str  # for people: what fits there


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine runs: enough to validate adapters and prompts without asking again."""

    base: BaseModelSpec  # its linear layers and blocks by path
    max_model_len: int  # prompt and generated tokens together
    vocab_size: int  # rows of the input embeddings
    eos_token_ids: tuple[int, ...]  # those that end an answer
    dtype: str  # "float32", "bfloat16", ...
    device: str  # "cpu", "cuda:0", ...
    token_routers: tuple[str, ...] = ()  # names that `TokenRouting.router` may hold
    layer_routers: tuple[str, ...] = ()  # names that `LayerRouting.router` may hold
    hidden_size: int = 0  # of the model's hidden states
    probe: str = ""  # digest of what hidden states at the probe layer depend on: model and layer
    kv_blocks: int = 1 << 31  # of the whole cache
    kv_block_size: int = 1  # tokens
    memory: tuple[MemoryPart, ...] = ()  # of the device: on a GPU, all of it

    def longest(self, sequences: int = 1) -> int:
        """Tokens, prompt and answer, that each sequence of one request may have.

        What the model takes, or less: what the KV cache holds where nobody else is there. The last
        token is never fed back, so it needs no KV.
        """
        held = self.kv_blocks // sequences * self.kv_block_size
        return min(self.max_model_len, held + 1)


@dataclass(frozen=True, slots=True)
class AdapterResidency:
    """One adapter in the engine's memory."""

    digest: str
    residency: Residency
    pinned: bool  # by an admin
    users: int  # live requests that need it
    rank_rows: int  # of the device pool, over all sites
    device_bytes: int  # that it takes there; 0 of one that is on disk
    load_seconds: float | None = None  # reading it took; None: it is on disk


@dataclass(frozen=True, slots=True)
class MergedState:
    """Which mixture the base weights hold."""

    mixture: ResolvedMixture | None  # None: the bare base
    seconds: float  # what the last switch took

    @property
    def mode(self) -> str:
        return "unmerged" if self.mixture is None else "merged"
