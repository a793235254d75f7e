"""Runs a step: plan -> flat batch -> one forward pass -> one sample a row."""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from adapters_store.types import ResolvedMixture
from router_engine.experts.step import StepExperts
from router_engine.kernels.base import Operations
from router_engine.kv.paged_cache import PagedCache
from router_engine.mixture.weights import StepWeights, step_weights
from router_engine.backends.torch.step_batch import build_batch
from router_engine.backends.base import Body, BodyOutput
from router_engine.model.ensemble_logits import Ensembles
from router_engine.backends.select import Fast
from router_engine.backends.finite import FiniteReader
from router_engine.model.loader import LoadedModel
from router_engine.model.probe import HiddenStateProbe, normed
from router_engine.backends.proof import Proof
from router_engine.model.sampler import Sampler, SamplingRow
from router_engine.scheduling.plan import StepOutput, StepPlan


class ModelRunner:
    """Owns the base model and its KV storage; knows of a request what the plan says, no more."""

    def __init__(
        self,
        loaded: LoadedModel,
        experts: StepExperts,
        cache: PagedCache,
        operations: Operations,
        fast: Fast,
    ) -> None:
        model: Any = loaded.model
        self._body: nn.Module = model.base_model
        self._head: nn.Module = model.get_output_embeddings()
        self._device = loaded.device
        self._experts = experts
        self._cache = cache
        self._operations = operations
        self._fast = fast
        self._probe = HiddenStateProbe(loaded.model, loaded.probe_layer)
        self._finite = FiniteReader(loaded.model)
        self._sampler = Sampler()
        self._ensembles = Ensembles()

    @property
    def body(self) -> Body | None:
        """What runs steps instead of transformers' code, if anything does."""
        return self._fast.body()

    @property
    def kernels(self) -> str:
        """The name of what computes steps now."""
        return self._fast.name

    def prove(self, proof: Proof) -> None:
        """Where transformers' code computes, on operations of ours: that nothing else comes of it.

        Raises UnsupportedModelError.
        """
        if self._fast.body() is None:
            proof.require(type(self._operations).__name__, self._run)

    @torch.inference_mode()
    def run(self, plan: StepPlan, merged: ResolvedMixture | None) -> StepOutput:
        """One forward pass under the plan's weights; samples for its `drawn_rows`, in order."""
        weights = step_weights(plan.rows, merged, self._device)
        body = self._fast.body()
        out = self._run(plan, weights) if body is None else body.run(plan, weights)
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
        samples = self._sampler.sample(logits, rows, summary) if rows else []
        for index, uncertainty in uncertain.items():
            samples[index] = msgspec.structs.replace(samples[index], uncertainty=uncertainty)
        hidden_states = None if out.hidden_states is None else normed(out.hidden_states.numpy())
        gates = None if out.gates is None else out.gates.as_numpy()
        finite = None if out.finite is None else out.finite.cpu().numpy()
        return StepOutput(tuple(samples), hidden_states, gates, finite)

    def forget(self, request_id: str) -> None:
        """A request has ended: nothing is kept of it."""
        self._ensembles.forget(request_id)

    def _run(self, plan: StepPlan, weights: StepWeights | None) -> BodyOutput:
        """By transformers' own code."""
        batch = build_batch(plan, self._cache, self._operations, self._experts, self._device)
        self._experts.begin(weights)
        with (
            self._probe.reading(is_wanted=plan.reads_hidden_states) as probed,
            self._finite.reading() as finite,
        ):
            hidden = self._body(
                input_ids=batch.token_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                step=batch,
            ).last_hidden_state[0]
        with self._experts.rows(batch.sample_index):
            logits: Tensor = self._head(hidden[batch.sample_index])
        gates = self._experts.readings()
        return BodyOutput(logits, hidden_states=probed.value, gates=gates, finite=finite.tokens)
