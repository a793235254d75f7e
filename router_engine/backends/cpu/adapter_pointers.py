"""Where resident adapters lie, as the C++ decoder reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from router_engine.experts.base import HostGatingNetwork
from router_engine.experts.rows import RowPointers, RowPool
from router_engine.backends.cpu.library import (
    ACTIVATIONS,
    CONSTANT_THRESHOLD,
    NET_THRESHOLD,
    NO_THRESHOLD,
    ExpertStruct,
    GatingStruct,
)


class AdapterPointers:
    """An adapter's experts, site by site, and its routers, layer by layer.

    They are kept until the pool changes: what they point at moves then.
    """

    def __init__(self, pool: RowPool, sites: Mapping[str, int], layers: Sequence[str]) -> None:
        """sites: their indices in a list of experts. layers: the paths of the decoder's layers."""
        self._pool = pool
        self._sites = sites
        self._layers = layers
        self._experts: dict[str, ctypes.Array[ExpertStruct]] = {}
        self._routers: dict[str, ctypes.Array[GatingStruct]] = {}
        self._version = pool.version

    def experts(self, digest: str) -> ctypes.Array[ExpertStruct]:
        """[sites]: rank 0 where the adapter does not touch one."""
        self._refresh()
        if digest not in self._experts:
            experts = (ExpertStruct * len(self._sites))()
            for site in self._pool.residents[digest]:
                found = self._pool.located(site, digest)
                if found is not None:
                    experts[self._sites[site]] = _expert(found)
            self._experts[digest] = experts
        return self._experts[digest]

    def routers(self, digest: str) -> ctypes.Array[GatingStruct]:
        """[layers]: no outputs where the adapter has no router."""
        self._refresh()
        if digest not in self._routers:
            routers = self._pool.routers(digest)
            found = (routers.get(layer) for layer in self._layers)
            listed = (GatingStruct() if router is None else _router(router) for router in found)
            self._routers[digest] = (GatingStruct * len(self._layers))(*listed)
        return self._routers[digest]

    def _refresh(self) -> None:
        if self._version != self._pool.version:
            self._experts.clear()
            self._routers.clear()
            self._version = self._pool.version


def _expert(rows: RowPointers) -> ExpertStruct:
    return ExpertStruct(
        a=rows.a,
        b=rows.b,
        rank=rows.count,
        # `linear` refuses scales that are not positive; 1 keeps unused rows finite.
        scale_root=rows.scale**0.5 if rows.scale > 0 else 1.0,
        prototype=rows.prototype,
        gate=rows.gate or None,
        bias=rows.bias or None,
        activation=ACTIVATIONS[rows.activation],
        has_up_bias=rows.has_up_bias,
    )


def _router(router: HostGatingNetwork) -> GatingStruct:
    spec, threshold = router.spec, router.spec.threshold
    kind = NO_THRESHOLD
    if threshold is not None:
        kind = CONSTANT_THRESHOLD if threshold.prefix is None else NET_THRESHOLD
    return GatingStruct(
        wide=router.wide.data_ptr(),
        wide_bias=router.wide_bias.data_ptr(),
        narrow=None if router.w2 is None else router.w2.data_ptr(),
        narrow_bias=None if router.bias2 is None else router.bias2.data_ptr(),
        rows=router.wide.shape[0],
        outputs=spec.outputs,
        hidden=spec.hidden,
        pre_norm=spec.input == "pre_norm",
        top_k=(spec.top_k or spec.outputs) if spec.activation == "softmax" else 0,
        threshold=kind,
        maximum=0.0 if threshold is None else threshold.maximum,
        of_prompts=spec.scope == "prompt",
    )
