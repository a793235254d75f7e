"""A backend by name: what it is made of, and how a package registers one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router_engine.backends.base import Backend
from router_engine.backends.proof import Proof
from router_engine.backends.torch.wrapped_layers import MixtureLinear
from router_engine.config import KernelConfig
from router_engine.experts.step import StepExperts
from router_engine.kernels.base import Operations
from router_engine.kv.paged_cache import PagedCache
from router_engine.model.loader import LoadedModel
from router_engine.scheduling.plan import StepLimits


@dataclass(frozen=True, slots=True)
class BackendParts:
    """The parts that a backend is made of."""

    config: KernelConfig
    loaded: LoadedModel  # transformers' model, its linear layers wrapped
    linears: Mapping[str, MixtureLinear]  # the wrapped layers by path
    experts: StepExperts  # the mixture of a step, for code that computes on tensors
    cache: PagedCache
    operations: Operations  # the set of kernels that was chosen beside the backend
    proof: Proof  # compares what it computes with transformers' own code
    limits: StepLimits  # of the steps that it will be asked for


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """One backend by name: what a package registers in the group `adaptermix.backends`.

    kernels: the set of kernels beside it, `auto` or a name of `kernels.dispatch`.
    refusal: why it cannot run a model, or None if it can.
    make: the backend. Raises EngineError, with the reason, where it cannot be made.
    """

    name: str
    summary: str
    kernels: str
    refusal: Callable[[LoadedModel], str | None]
    make: Callable[[BackendParts], Backend]
