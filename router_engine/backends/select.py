"""What runs a model's steps faster than transformers' own code, where something does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from router_engine.config import KernelConfig
from router_engine.experts.step import StepExperts
from router_engine.kernels.base import KernelSpec, Operations
from router_engine.kv.paged_cache import PagedCache
from router_engine.merging.merged_base import BaseWeights
from router_engine.backends.base import Body
from router_engine.backends.cpu.cpu_backend import FastPath
from router_engine.backends.cpu.trial import TORCH
from router_engine.model.loader import LoadedModel
from router_engine.backends.proof import Proof
from router_engine.backends.torch.torch_backend import ParameterWeights
from router_engine.backends.torch.wrapped_layers import MixtureLinear


class Fast(BaseWeights, Protocol):
    """Has a body, will have one, or never has: then transformers' own code runs.

    Whoever computes holds the weights, so they are read and written through it.
    """

    name: str  # of what computes: an instruction set of the decoder in C++, torch, or triton

    def body(self) -> Body | None: ...


class Plain(ParameterWeights):
    """Nothing faster than transformers' code."""

    name = TORCH

    def body(self) -> None:
        return None


def choose_fast(
    config: KernelConfig,
    kernels: KernelSpec,
    operations: Operations,
    loaded: LoadedModel,
    linears: Mapping[str, MixtureLinear],
    experts: StepExperts,
    cache: PagedCache,
    proof: Proof,
) -> Fast:
    """The fast way for a model, given the kernels that were chosen for its device and dtype.

    Raises UnsupportedModelError or KernelBuildError under `cpu`, which has no fallback.
    """
    if kernels.name == "triton":
        # Imported here alone: a machine without Triton never gets this far.
        from router_engine.backends.cuda.cuda_backend import CudaPath

        return CudaPath(loaded, linears, experts, cache, operations, proof)
    if config.kernels in ("auto", "cpu"):
        return FastPath(config, loaded, linears, experts.pool, cache, proof)
    return Plain(loaded, linears)
