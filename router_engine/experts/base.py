"""What an expert kind is: a spec on disk, weights on the host, rows or buffers on the device.

Three types a kind (`adapters_store.types.*ExpertSpec` -> host weights -> what is applied in a step)
keep files, memory and mathematics apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from adapters_store.types import AdapterManifest


class AdapterFiles(Protocol):
    """What a blob store hands out for a digest."""

    @property
    def manifest(self) -> AdapterManifest: ...

    @property
    def tensors(self) -> Path: ...


class AdapterSource(Protocol):
    """Where adapters come from, by digest: `adapters_store.blobs` in production."""

    def fetch(self, digest: str) -> AdapterFiles:
        """Files of a digest, local. Raises AdapterNotFoundError or IntegrityError."""
        ...


@dataclass(frozen=True, slots=True)
class LowRankPair:
    """One low-rank expert on the host.

    delta y = B^T (A x) per rank row, the scale already in B:
    a [rank, in_features]; b [rank, out_features]; scale is kept because `linear` splits it.
    prototype [rank] fp32: what layer routers score with (`experts.lora.prototypes`).
    """

    a: Tensor
    b: Tensor
    scale: float
    prototype: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """An adapter's weights in host memory, ready to be copied to the device."""

    digest: str
    manifest: AdapterManifest
    pairs: dict[str, LowRankPair]  # by module path
    load_seconds: float
    num_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        tensors = (
            tensor for pair in self.pairs.values() for tensor in (pair.a, pair.b, pair.prototype)
        )
        object.__setattr__(self, "num_bytes", sum(tensor.nbytes for tensor in tensors))
