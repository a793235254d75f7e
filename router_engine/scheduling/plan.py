"""Plans and their outputs, between scheduler and runner: frozen data, one object a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from adapters_store.types import Combination
from router_engine.events import TokenUncertainty
from router_engine.request import EngineRequest, SamplingSpec
from router_engine.routers.base import LayerRoutingParams
from router_engine.scheduling.weights_history import WeightRun

Gates = NDArray[np.float32]
GateColumns = tuple[tuple[str, int, int], ...]  # (digest, first, count)
PromptGates = Mapping[str, Gates]
"""Of one request whose adapters have gating networks of whole prompts: [layers, outputs] by
digest."""


class EnsembleMember(NamedTuple):
    """A row's place in an ensemble."""

    ensemble: str  # the request
    member: int
    size: int  # members
    samples_token: bool  # its logits are the last that the others wait for


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The largest step. max_model_len: tokens of the longest sequence."""

    tokens: int
    requests: int
    max_model_len: int
    block_size: int


class PlannedRow(msgspec.Struct, frozen=True):
    """One request's chunk of a step: tokens at positions [start, start + len(token_ids)).

    A Struct, as a dataclass that is frozen takes several times as long to make, for each row of
    each step. What is the same in each of them is in `request`, and not copied.
    """

    request: EngineRequest
    arrival: int  # tells the request from a later one of the same id
    token_ids: tuple[int, ...]
    start: int
    block_ids: tuple[int, ...]  # cover positions [0, start + len(token_ids))
    needs_logits: bool  # the chunk ends with the last known token: its logits are wanted
    weight_runs: tuple[WeightRun, ...]  # (number of tokens, weights of the adapters), in order
    known_tokens: Sequence[int]  # all tokens so far, in place: read it during the step only
    layer_routing: LayerRoutingParams | None = None  # instead of the weights of `weight_runs`
    ensemble_member: EnsembleMember | None = None  # of an ensemble's member whose logits are wanted
    observers: tuple[object, ...] = ()  # of the request's features, which know theirs by its type
    unknown: int = 0  # tokens before those of a sample that are not in `known_tokens` yet

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def adapters(self) -> tuple[str, ...]:
        """Digests, one a weight."""
        return self.request.adapters

    @property
    def combination(self) -> Combination:
        return self.request.combination

    @property
    def sampling(self) -> SamplingSpec:
        return self.request.sampling

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        return self.request.prompt_token_ids

    @property
    def is_routed(self) -> bool:
        """Whether weights differ from token to token."""
        return self.request.routing is not None or self.layer_routing is not None

    @property
    def reads_hidden_states(self) -> bool:
        """Whether a router reads them: the experts act from the probe layer on only."""
        return self.request.reads_hidden_states

    @property
    def samples_token(self) -> bool:
        """Whether a new token comes of this row."""
        return self.needs_logits and (
            self.ensemble_member is None or self.ensemble_member.samples_token
        )

    @property
    def stop(self) -> int:
        return self.start + len(self.token_ids)

    @property
    def num_generated(self) -> int:
        """Index of the token that a sample yields."""
        return len(self.known_tokens) + self.unknown - len(self.request.prompt_token_ids)

    @property
    def generated_token_ids(self) -> Sequence[int]:
        return self.known_tokens[len(self.request.prompt_token_ids) :]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass: the rows' chunks, one after another, are its flat token batch.

    fed: of a step that is begun before the last one's tokens are known: which of that step's
    samples is each row's token. What `token_ids` say is not read then.
    """

    rows: tuple[PlannedRow, ...]
    fed: tuple[int, ...] | None = None

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
        return tuple(row for row in self.rows if row.needs_logits)

    @property
    def logit_tokens(self) -> NDArray[np.intp]:
        """Where the last tokens of `rows_with_logits` stand in the flat batch."""
        last = np.cumsum([len(row.token_ids) for row in self.rows]) - 1
        return last[[row.needs_logits for row in self.rows]]

    @property
    def sampling_rows(self) -> tuple[PlannedRow, ...]:
        """Those of `rows_with_logits` of which a token comes."""
        return tuple(row for row in self.rows if row.samples_token)


class SampledToken(msgspec.Struct, frozen=True):
    """A drawn token. Log probabilities are of the raw logits."""

    token_id: int
    logprob: float
    top_tokens: tuple[tuple[int, float], ...] = ()  # (id, logprob), best first
    uncertainty: TokenUncertainty | None = None


@dataclass(frozen=True, slots=True)
class GateValues:
    """As `router_engine.experts.gate_tensors.GateTensors`, without torch."""

    values: Gates  # [layers, tokens, width]
    columns: GateColumns  # whose gates stand where in the width
    of_prompts: Mapping[str, PromptGates] = field(default_factory=dict)  # by request


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step has computed."""

    samples: tuple[SampledToken, ...]  # one for each of the plan's `sampling_rows`, in their order
    # [tokens, hidden]: the base's hidden states at the probe layer, each of root mean square 1,
    # where some row reads them.
    hidden_states: NDArray[np.float32] | None = None
    gates: GateValues | None = None  # None where no adapter of the step has gating networks
    finite: NDArray[np.bool_] | None = (
        None  # [tokens]: all computed of it are numbers; None: of all
    )

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
