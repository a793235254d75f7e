"""What runs whole steps of one model, and what a step of it gives back."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from router_engine.experts.rows import GateColumns
from router_engine.mixture.weights import StepWeights
from router_engine.model.sampler import LogitSummary
from router_engine.scheduling.plan import StepPlan


class GateReadings(NamedTuple):
    """The gates that routers inside layers gave to the tokens of a step.

    values [layers, tokens, width] fp32 on the host: NaN where a token does not use the adapter, or
    the layer has fewer gates. columns: (digest, first, count) of each adapter with routers.
    """

    values: Tensor
    columns: GateColumns


class BodyOutput(NamedTuple):
    """logits [samples, vocab]: of the plan's `sampled_rows`, and what is known of them.

    tap [tokens, hidden]: the hidden states that enter the tap layer, where the plan is tapped.
    gates: where an adapter of the step has routers.
    """

    logits: Tensor
    summary: LogitSummary | None = None
    tap: Tensor | None = None
    gates: GateReadings | None = None


class Body(Protocol):
    """Runs whole steps of one model. The keys and values of all rows are kept."""

    def run(self, plan: StepPlan, weights: StepWeights | None) -> BodyOutput: ...
