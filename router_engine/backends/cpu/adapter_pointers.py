"""The places of resident adapters, as the C++ decoder reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from router_engine.backends.cpu.structures import (
    ACTIVATIONS,
    THRESHOLDS,
    ExpertStruct,
    GatingNetworkStruct,
)
from router_engine.experts.base import HostGatingNetwork
from router_engine.experts.resident import Resident, RowPointers
from router_engine.experts.rows import RowPool


class AdapterPointers:
    """An adapter's experts, site by site, and its gating networks, layer by layer.

    They are kept for as long as the adapter is on the device.
    """

    def __init__(self, pool: RowPool, sites: Mapping[str, int], layers: Sequence[str]) -> None:
        """sites: their indices in a list of experts. layers: the paths of the decoder's layers."""
        self._pool = pool
        self._sites = sites
        self._layers = layers
        self._experts: WeakKeyDictionary[Resident, ctypes.Array[ExpertStruct]] = WeakKeyDictionary()
        self._networks: WeakKeyDictionary[Resident, ctypes.Array[GatingNetworkStruct]] = (
            WeakKeyDictionary()
        )

    def experts(self, digest: str) -> ctypes.Array[ExpertStruct]:
        """[sites]: rank 0 where the adapter does not touch one."""
        resident = self._pool.residents[digest]
        experts = self._experts.get(resident)
        if experts is None:
            experts = (ExpertStruct * len(self._sites))()
            for site in resident.num_rows:
                rows = resident.located(site)
                if rows is not None:
                    experts[self._sites[site]] = _expert(rows)
            self._experts[resident] = experts
        return experts

    def networks(self, digest: str) -> ctypes.Array[GatingNetworkStruct]:
        """[layers]: no outputs where the adapter has no gating network."""
        resident = self._pool.residents[digest]
        networks = self._networks.get(resident)
        if networks is None:
            by_layer = (resident.routers.get(layer) for layer in self._layers)
            structs = (
                GatingNetworkStruct() if each is None else _network(each) for each in by_layer
            )
            networks = (GatingNetworkStruct * len(self._layers))(*structs)
            self._networks[resident] = networks
        return networks


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
