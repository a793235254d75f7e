"""What goes from the scheduler to the runner and back: frozen data, one object a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from adapters_store.types import Combination
from router_engine.events import TokenUncertainty
from router_engine.request import SamplingParams
from router_engine.routers.base import LayerRoutingParams
from router_engine.scheduling.gate_statistics import GateValues, PromptGates
from router_engine.scheduling.state import RequestState
from router_engine.scheduling.weights_history import WeightRun


class EnsembleMember(NamedTuple):
    """A row's place in an ensemble. draws: its logits are the last that the others wait for."""

    ensemble: str  # the request
    member: int
    size: int
    samples_token: bool


class PlannedRow(msgspec.Struct, frozen=True):
    """One request's chunk of a step: tokens at positions [start, start + len(token_ids)).

    A Struct, as a dataclass that is frozen takes several times as long to make, for each row of
    each step.
    """

    request_id: str
    token_ids: tuple[int, ...]
    start: int
    block_ids: tuple[int, ...]  # cover positions [0, start + len(token_ids))
    sample: bool  # the chunk ends with the last known token: its logits are wanted
    weight_runs: tuple[
        WeightRun, ...
    ]  # (number of tokens, weights of the adapters), cover the chunk
    adapters: tuple[str, ...]  # digests
    combination: Combination
    is_routed: bool  # weights differ from token to token
    reads_hidden_states: (
        bool  # a router reads its hidden states; its experts act from the probe layer on
    )
    sampling: SamplingParams
    num_generated: int  # index of the token that a sample yields
    prompt_token_ids: tuple[int, ...]
    known_tokens: Sequence[int]  # all tokens so far, in place: read it during the step only
    arrival: int  # tells the request from a later one of the same id
    gate: LayerRoutingParams | None = None  # instead of the weights of `weight_runs`
    ensemble_member: EnsembleMember | None = None  # of an ensemble's member whose logits are wanted
    reads_whole_prompt: bool = False  # some adapter has routers of whole prompts
    prompt_gates: PromptGates | None = None  # theirs; None: this chunk holds the prompt

    @property
    def finds_prompt_gates(self) -> bool:
        """Whether the whole prompt is in this chunk, for the routers that read it so."""
        return self.reads_whole_prompt and self.prompt_gates is None

    @property
    def samples_token(self) -> bool:
        """Whether a new token comes of this row."""
        return self.sample and (self.ensemble_member is None or self.ensemble_member.samples_token)

    @property
    def stop(self) -> int:
        return self.start + len(self.token_ids)

    @property
    def generated_token_ids(self) -> Sequence[int]:
        return self.known_tokens[len(self.prompt_token_ids) :]

    @classmethod
    def of(
        cls, state: RequestState, stop: int, ensemble_member: EnsembleMember | None
    ) -> PlannedRow:
        """Compute `state` up to position `stop`; its block table must cover that."""
        request, start = state.request, state.num_computed
        return cls(
            request_id=state.request_id,
            token_ids=tuple(state.tokens[start:stop]),
            start=start,
            block_ids=tuple(state.block_table.block_ids),
            sample=stop == len(state.tokens),
            weight_runs=state.weights_history.between(start, stop),
            adapters=request.adapters,
            combination=request.combination,
            is_routed=request.routing is not None or state.gate is not None,
            reads_hidden_states=request.reads_hidden_states,
            sampling=request.sampling,
            num_generated=state.num_generated,
            prompt_token_ids=request.prompt_token_ids,
            known_tokens=state.tokens,
            arrival=state.arrival,
            gate=state.gate,
            ensemble_member=ensemble_member,
            reads_whole_prompt=state.reads_whole_prompt,
            prompt_gates=state.prompt_gates,
        )


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass: the rows' chunks, one after another, are its flat token batch."""

    rows: tuple[PlannedRow, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)

    @property
    def parts(self) -> Iterator[tuple[PlannedRow, slice]]:
        """Each row, and where its tokens lie in the flat batch."""
        first = 0
        for row in self.rows:
            tokens = slice(first, first + len(row.token_ids))
            first = tokens.stop
            yield row, tokens

    @property
    def reads_hidden_states(self) -> bool:
        return any(row.reads_hidden_states for row in self.rows)

    @property
    def rows_with_logits(self) -> tuple[PlannedRow, ...]:
        return tuple(row for row in self.rows if row.sample)

    @property
    def logit_tokens(self) -> NDArray[np.intp]:
        """Where the last tokens of `sampled_rows` stand in the flat batch."""
        last = np.cumsum([len(row.token_ids) for row in self.rows]) - 1
        return last[[row.sample for row in self.rows]]

    @property
    def sampling_rows(self) -> tuple[PlannedRow, ...]:
        """Those of `sampled_rows` of which a token comes."""
        return tuple(row for row in self.rows if row.samples_token)


class SampledToken(msgspec.Struct, frozen=True):
    """A drawn token. Log probabilities are of the raw logits."""

    token_id: int
    logprob: float
    top_tokens: tuple[tuple[int, float], ...] = ()  # (id, logprob), best first
    uncertainty: TokenUncertainty | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """One sample for each of the plan's `drawn_rows`, in their order.

    hidden_states [tokens, hidden]: the base's hidden states at the probe layer, each of root mean
    square 1, where the plan is probed. gates: None where no adapter of the step has routers inside
    layers. finite [tokens]: whether all that was computed of a token are numbers; None: of all
    tokens.
    """

    samples: tuple[SampledToken, ...]
    hidden_states: NDArray[np.float32] | None = None
    gates: GateValues | None = None
    finite: NDArray[np.bool_] | None = None

    def is_finite(self, tokens: slice, sample: SampledToken | None) -> bool:
        """Whether all that was computed of a row are numbers.

        tokens: where it lies in the flat batch. sample: its token, where it draws one.
        """
        if self.finite is not None and not self.finite[tokens].all():
            return False
        if sample is None:
            return True
        best = (logprob for _, logprob in sample.top_tokens)
        return math.isfinite(sample.logprob) and all(map(math.isfinite, best))
