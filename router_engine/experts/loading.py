"""Reads an adapter: every kind of expert into rank rows by site, and its routers."""

from __future__ import annotations

import time

import torch
from safetensors import safe_open

from adapters_store.types import AdapterManifest
from router_engine.errors import EngineError
from router_engine.experts.base import (
    AdapterContents,
    AdapterParts,
    BaseProjections,
    ExpertRows,
    HostAdapter,
)
from router_engine.experts.contained import contained
from router_engine.experts.copies import AdapterTensors
from router_engine.experts.gating import router_weights
from router_engine.experts.kinds import Loading, expert_kinds
from router_engine.experts.variants import Variant, average


def load_adapter(
    digest: str,
    files: AdapterContents,
    dtype: torch.dtype,
    base: BaseProjections,
    variant: Variant = average,
) -> HostAdapter:
    """Read an adapter's rank rows and routers in `dtype`, every scale folded in in fp32.

    `base` makes a prompt's keys and values. `variant` weighs the copies of experts that have them.
    Numbers that are not finite are contained (`experts.contained`).
    """
    started = time.perf_counter()
    manifest = files.manifest
    with safe_open(str(files.tensors), framework="pt") as file:
        tensors = AdapterTensors(file, variant)
        rows = _rows(manifest, tensors, Loading(dtype, base, manifest.is_plain_lora))
        routers = {spec.layer: router_weights(spec, tensors, dtype) for spec in manifest.routers}
    parts = AdapterParts({site: contained(each) for site, each in rows.items()}, routers)
    return HostAdapter.packed(digest, manifest, parts, time.perf_counter() - started)


def _rows(
    manifest: AdapterManifest, tensors: AdapterTensors, loading: Loading
) -> dict[str, ExpertRows]:
    """Those of every kind. Raises EngineError for a kind that is unknown or takes others' sites."""
    rows: dict[str, ExpertRows] = {}
    for name in dict.fromkeys(expert.kind for expert in manifest.experts):
        kind = expert_kinds().get(name)
        specs = [expert for expert in manifest.experts if expert.kind == name]
        loaded = kind.load(specs, tensors, loading)
        suffixes = tuple(term.suffix for term in kind.terms)
        strangers = [site for site in loaded if kind.terms and not site.endswith(suffixes)]
        if strangers:
            raise EngineError(f"expert kind {name!r} has no term for its site {strangers[0]}")
        rows |= loaded
    return rows
