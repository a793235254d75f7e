"""Runs a step: plan -> the backend's forward pass -> ensembles -> one sample a row."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch

from adapters_store.types import ResolvedMixture
from router_engine.backends.base import Backend, ForwardOutput
from router_engine.events import TokenUncertainty
from router_engine.mixture.weights import step_weights
from router_engine.model.ensemble_logits import Ensembles
from router_engine.model.probe import normed
from router_engine.model.sampler import Drawn, Sampler, SamplingRow
from router_engine.scheduling.plan import GateValues, StepOutput, StepPlan
from router_engine.transfers import ReadBack


@dataclass(eq=False, slots=True)
class RunningStep:
    """A step that the device may still work on."""

    plan: StepPlan
    _read_back: ReadBack
    _drawn: Drawn | None
    _uncertain: dict[int, TokenUncertainty]
    _gates: GateValues | None
    _out: ForwardOutput

    def output(self) -> StepOutput:
        """The results, once the device has them."""
        host = self._read_back.arrays()
        finite = None if self._out.finite is None else host.pop(0)
        hidden_states = None if self._out.hidden_states is None else normed(host.pop(0))
        samples = [] if self._drawn is None else self._drawn.tokens(host)
        for index, uncertainty in self._uncertain.items():
            samples[index] = msgspec.structs.replace(samples[index], uncertainty=uncertainty)
        return StepOutput(tuple(samples), hidden_states, self._gates, finite)


class ModelRunner:
    """Knows of a request what the plan says, no more."""

    def __init__(self, backend: Backend, device: torch.device) -> None:
        """device: where the weights of a step's tokens lie."""
        self._backend = backend
        self._device = device
        self._sampler = Sampler()
        self._ensembles = Ensembles()

    @property
    def runs_ahead(self) -> bool:
        """Whether a step may begin before the results of the last one are there."""
        return self._backend.feed is not None

    def run(self, plan: StepPlan, merged: ResolvedMixture | None) -> StepOutput:
        """One forward pass under the plan's weights; samples for its `drawn_rows`, in order."""
        return self.begin(plan, merged).output()

    @torch.inference_mode()
    def begin(self, plan: StepPlan, merged: ResolvedMixture | None) -> RunningStep:
        """The same, without the wait for the device. A plan that is fed follows the last one."""
        weights = step_weights(plan.rows, merged, self._device)
        out = self._backend.forward(plan, weights)
        rows = [
            SamplingRow(
                params=row.sampling,
                prompt_token_ids=row.prompt_token_ids,
                generated_token_ids=row.generated_token_ids if row.sampling.is_penalised else (),
                position=row.num_generated,
            )
            for row in plan.sampling_rows
        ]
        logits, uncertain = self._ensembles.draw_from(out.logits, plan.rows_with_logits)
        summary = out.summary if logits is out.logits else None
        drawn = self._sampler.draw(logits, rows, summary) if rows else None
        if drawn is not None and self._backend.feed is not None:
            self._backend.feed.give(drawn.token_ids)
        self._ensembles.drawn(plan.rows_with_logits)
        gates = None if out.gates is None else out.gates.as_numpy()
        found = [each for each in (out.finite, out.hidden_states) if each is not None]
        results = [*found, *([] if drawn is None else drawn.tensors)]
        read_back = ReadBack(results, keeps=self.runs_ahead)
        return RunningStep(plan, read_back, drawn, uncertain, gates, out)

    def forget(self, request_id: str) -> None:
        """A request has ended: nothing is kept of it."""
        self._ensembles.forget(request_id)
