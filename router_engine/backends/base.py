"""A backend: runs whole steps of one model and holds the base's weights.

There are three, side by side: `torch` (transformers' own code), `cpu` (C++) and `cuda` (Triton).
Installed packages may add more (`backends.select`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from router_engine.experts.gate_tensors import GateTensors
from router_engine.merging.merged_base import BaseWeights
from router_engine.mixture.weights import StepWeights
from router_engine.model.sampler import LogitSummary
from router_engine.processes.progress import OnProgress
from router_engine.scheduling.plan import StepPlan

TORCH = "torch"  # what computes where no decoder does, as metrics report it


class ForwardOutput(NamedTuple):
    """The results of one step. A backend may overwrite them in its next one."""

    logits: Tensor  # [samples, vocab], of the plan's `rows_with_logits`, in their order
    summary: LogitSummary | None = None  # of the logits, where it came for free
    # [tokens, hidden] in fp32: what enters the probe layer, where the plan reads it.
    hidden_states: Tensor | None = None
    # Gates of the adapters' gating networks; None where no adapter of the step has one.
    gates: GateTensors | None = None
    # [tokens] bool: whether what enters the last norm `are_finite` (`backends.finite`).
    finite: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The state of a backend now. It may change between two steps, as a compiler ends."""

    # The name of what computes, as metrics report it: an instruction set, `triton` or TORCH.
    kernels: str
    # Whether a decoder of its own runs the steps; False: transformers' own code does.
    has_decoder: bool
    # The kinds of experts that it runs, however long it lives; None: all, by `experts.step`.
    expert_kinds: frozenset[str] | None = None


class StepRunner(Protocol):
    """A runner of whole steps."""

    def forward(self, plan: StepPlan, weights: StepWeights | None) -> ForwardOutput:
        """Run all tokens of `plan` and store their keys and values in the cache.

        weights: of the step's tokens, one row each in the plan's order; None: the bare base.
        Called by the engine's thread alone, in inference mode.
        """
        ...


class Captures(Protocol):
    """What a backend captures before it serves, so that no step does: what takes most first."""

    def __len__(self) -> int:
        """All of them."""
        ...

    def prepare(self) -> None:
        """Make what all of them read."""
        ...

    def capture(self, count: int, on_progress: OnProgress) -> None:
        """Capture the first `count` that are not yet."""
        ...

    def clear(self) -> None:
        """Forget all, and free what they took."""
        ...


class TokenFeed(Protocol):
    """Where a step that begins before the last one's tokens are known finds them: on the device."""

    def give(self, drawn: Tensor) -> None:
        """The tokens [samples] that the last step draws, in the order of its samples."""
        ...


class Backend(StepRunner, BaseWeights, Protocol):
    """Runs whole steps of one model, and is where its linear weights are read and written.

    The weights may lie in a form of its own: merged mode, prompts' keys and the norms of routers
    reach them by `read_weight` and `write_weight` alone.
    """

    @property
    def capabilities(self) -> Capabilities:
        """Its state now. Cheap, and changes nothing."""
        ...

    @property
    def captures(self) -> Captures | None:
        """What it captures before it serves; None: nothing."""
        ...

    @property
    def feed(self) -> TokenFeed | None:
        """None: it runs no step before the last one has ended, so `StepPlan.fed` is None."""
        ...
