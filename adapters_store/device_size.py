"""The size of an adapter on a device, told by its manifest alone.

There it is one slab: at each site A and B in the base's number format, then a number for each row
of what else there is, then its gating networks; every tensor begins at a multiple of `ALIGN`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adapters_store.base_model import BaseModelSpec
from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec
from adapters_store.types import AdapterManifest

ALIGN = 64  # bytes: a cache line, and what the widest loads of any kernel want
_FLOAT = 4  # bytes of what is float32 or an index whatever the base's format


def padded(num_bytes: int) -> int:
    """What a tensor of so many bytes takes of a slab."""
    return -(-num_bytes // ALIGN) * ALIGN


def device_bytes(manifest: AdapterManifest, base: BaseModelSpec) -> int:
    """Bytes of an adapter's slab beside a base; 0 for experts that cannot act there."""
    by_site: dict[str, list[ExpertSpec]] = {}
    for expert in manifest.experts:
        by_site.setdefault(expert.site, []).append(expert)
    tensors = [size for experts in by_site.values() for size in _rows(experts, base)]
    for network in manifest.routers:
        tensors += _network(network, base.element_bytes)
    return sum(map(padded, tensors))


def _rows(experts: Sequence[ExpertSpec], base: BaseModelSpec) -> Iterator[int]:
    """Bytes of the tensors at one site."""
    rows = sum(expert.rows for expert in experts)
    a, b, *others = experts[0].row_widths(base)
    yield rows * a * base.element_bytes
    yield rows * b * base.element_bytes
    yield rows * _FLOAT  # of what layer routers score with
    for width in others:
        yield rows * width * _FLOAT
    if any(expert.gate is not None for expert in experts):
        yield rows * _FLOAT


def _network(network: GatingNetworkSpec, element_bytes: int) -> Iterator[int]:
    """Bytes of a gating network's tensors: what reads the layer's input, then what follows."""
    yield network.wide_rows * network.features * element_bytes
    yield network.wide_rows * _FLOAT
    if network.kind == "swiglu":
        yield network.outputs * network.hidden * _FLOAT
        yield network.outputs * _FLOAT
