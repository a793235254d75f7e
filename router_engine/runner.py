"""Runs a step: plan -> the backend's forward pass -> ensembles -> one sample a row."""

from __future__ import annotations

import msgspec
import torch

from adapters_store.types import ResolvedMixture
from router_engine.backends.base import Backend
from router_engine.mixture.weights import step_weights
from router_engine.model.ensemble_logits import Ensembles
from router_engine.model.probe import normed
from router_engine.model.read_back import read_back
from router_engine.model.sampler import Sampler, SamplingRow
from router_engine.scheduling.plan import StepOutput, StepPlan


class ModelRunner:
    """Knows of a request what the plan says, no more."""

    def __init__(self, backend: Backend, device: torch.device) -> None:
        """device: where the weights of a step's tokens lie."""
        self._backend = backend
        self._device = device
        self._sampler = Sampler()
        self._ensembles = Ensembles()

    @torch.inference_mode()
    def run(self, plan: StepPlan, merged: ResolvedMixture | None) -> StepOutput:
        """One forward pass under the plan's weights; samples for its `drawn_rows`, in order."""
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
        self._ensembles.drawn(plan.rows_with_logits)
        gates = None if out.gates is None else out.gates.as_numpy()
        found = [each for each in (out.finite, out.hidden_states) if each is not None]
        host = read_back([*found, *([] if drawn is None else drawn.tensors)])
        finite = None if out.finite is None else host.pop(0)
        hidden_states = None if out.hidden_states is None else normed(host.pop(0))
        samples = [] if drawn is None else drawn.tokens(host)
        for index, uncertainty in uncertain.items():
            samples[index] = msgspec.structs.replace(samples[index], uncertainty=uncertainty)
        return StepOutput(tuple(samples), hidden_states, gates, finite)

    def forget(self, request_id: str) -> None:
        """A request has ended: nothing is kept of it."""
        self._ensembles.forget(request_id)
