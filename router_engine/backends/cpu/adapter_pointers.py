"""The places of resident adapters, as the C++ decoder reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from router_engine.backends.cpu.structures import (
    ACTIVATIONS,
    THRESHOLDS,
    ExpertStruct,
    GatingNetworkStruct,
)
from router_engine.experts.base import HostGatingNetwork
from router_engine.experts.rows import RowPointers, RowPool


class AdapterPointers:
    """An adapter's experts, site by site, and its gating networks, layer by layer.

    They are kept until the pool changes: what they point at moves then.
    """

    def __init__(self, pool: RowPool, sites: Mapping[str, int], layers: Sequence[str]) -> None:
        """sites: their indices in a list of experts. layers: the paths of the decoder's layers."""
        self._pool = pool
        self._sites = sites
        self._layers = layers
        self._experts: dict[str, ctypes.Array[ExpertStruct]] = {}
        self._networks: dict[str, ctypes.Array[GatingNetworkStruct]] = {}
        self._version = pool.version

    def experts(self, digest: str) -> ctypes.Array[ExpertStruct]:
        """[sites]: rank 0 where the adapter does not touch one."""
        self._refresh()
        if digest not in self._experts:
            experts = (ExpertStruct * len(self._sites))()
            for site in self._pool.residents[digest]:
                rows = self._pool.located(site, digest)
                if rows is not None:
                    experts[self._sites[site]] = _expert(rows)
            self._experts[digest] = experts
        return self._experts[digest]

    def networks(self, digest: str) -> ctypes.Array[GatingNetworkStruct]:
        """[layers]: no outputs where the adapter has no gating network."""
        self._refresh()
        if digest not in self._networks:
            routers = self._pool.routers(digest)
            by_layer = (routers.get(layer) for layer in self._layers)
            networks = (
                GatingNetworkStruct() if each is None else _network(each) for each in by_layer
            )
            self._networks[digest] = (GatingNetworkStruct * len(self._layers))(*networks)
        return self._networks[digest]

    def _refresh(self) -> None:
        if self._version != self._pool.version:
            self._experts.clear()
            self._networks.clear()
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


def _network(router: HostGatingNetwork) -> GatingNetworkStruct:
    spec, network = router.spec, router.network
    narrow, narrow_bias = network.narrow, network.narrow_bias
    return GatingNetworkStruct(
        wide=network.wide.data_ptr(),
        wide_bias=network.wide_bias.data_ptr(),
        narrow=None if narrow is None else narrow.data_ptr(),
        narrow_bias=None if narrow_bias is None else narrow_bias.data_ptr(),
        rows=network.wide.shape[0],
        outputs=network.outputs,
        hidden=network.hidden,
        pre_norm=spec.input == "pre_norm",
        top_k=network.top_k,
        threshold=THRESHOLDS[network.threshold],
        maximum=network.maximum,
        of_prompts=spec.scope == "prompt",
    )
