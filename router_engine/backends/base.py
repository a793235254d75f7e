"""What runs whole steps of one model, and what a step of it gives back."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from router_engine.experts.gate_tensors import GateTensors
from router_engine.mixture.weights import StepWeights
from router_engine.model.sampler import LogitSummary
from router_engine.scheduling.plan import StepPlan


class BodyOutput(NamedTuple):
    """logits [samples, vocab]: of the plan's `sampled_rows`, and what is known of them.

    hidden_states [tokens, hidden]: the hidden states that enter the probe layer, where the plan is
    probed. gates: what routers inside layers said, None where no adapter of the step has one.
    finite [tokens] bool: `model.finite.are_finite` of what enters the last norm.
    """

    logits: Tensor
    summary: LogitSummary | None = None
    hidden_states: Tensor | None = None
    gates: GateTensors | None = None
    finite: Tensor | None = None


class Body(Protocol):
    """Runs whole steps of one model. The keys and values of all rows are kept."""

    def run(self, plan: StepPlan, weights: StepWeights | None) -> BodyOutput: ...
