"""Requests as a caller hands them to the engine: frozen data, tokens and digests only."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from adapters_store.types import Combination, ResolvedMixture

Context = Literal["keep", "recompute"]
MAX_LAG = 64  # tokens
MAX_MEMBERS = 16  # of an ensemble
Level = Literal["request", "token", "layer"]  # at which routers work


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How the next token is drawn from the logits [vocab].

    temperature 0 is greedy. Penalties as in vLLM: repetition acts on prompt and generated tokens,
    presence and frequency on generated ones. `top_k` 0 and `top_p` 1 are off. The draw depends on
    (seed, position) alone, never on the rest of the batch.
    """

    max_new_tokens: int = 16
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()  # end the text, are not part of it; eos ids go here too
    top_n_tokens: int = 0  # alternatives to report per token; chosen token's logprob always comes
    # The answer itself, to be scored: each pass yields its next token instead of drawing one.
    given_token_ids: tuple[int, ...] = ()
    report_entropy: bool = False  # of the raw distribution of each token; ensembles always do

    @property
    def is_penalised(self) -> bool:
        """Whether the draw depends on the tokens before."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )


@dataclass(frozen=True, slots=True)
class TokenRouting:
    """Weights that are renewed while the text grows.

    The candidates are `EngineRequest.adapters`. Weights come from `router` after the prompt and
    after every `every` generated tokens. context `keep`: a token's KV stays as computed under its
    own weights; `recompute`: all of it is computed again under the newest.

    The pass that yields token t runs under weights from the text that ends `lag` tokens before t
    (or with the prompt), so that a router works while the passes between them run.
    """

    router: str
    params: dict[str, Any] = field(default_factory=dict)
    every: int = 1
    context: Context = "keep"
    lag: int = 0


@dataclass(frozen=True, slots=True)
class LayerRouting:
    """Weights that arise inside the layers: every token's, at each layer, from what it reads.

    The candidates are `EngineRequest.adapters`.
    """

    router: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reports:
    """What the events of a request tell beside its tokens."""

    weights: bool = False  # each token's, with its event
    hidden_mean: bool = False  # of the prompt's hidden states, with the final event
    # Statistics of the gates inside layers, with the final event. All its tokens are computed for
    # it: blocks of the prefix cache say nothing of gates. Of an ensemble, its first member's.
    gates: bool = False


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One generation. Exactly one final event answers it."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingSpec = SamplingSpec()
    adapters: tuple[str, ...] = ()  # digests; with a routing the candidates
    weights: tuple[float, ...] = ()  # one per adapter; empty with a routing
    combination: Combination = "sum"
    routing: TokenRouting | None = None
    priority: int = 0  # lower runs first
    is_background: bool = False  # nobody waits for it: behind all others, a little in each step
    # The experts act only from the engine's probe layer on, so that the hidden states there are the
    # base's whatever the weights: what a router that reads them needs.
    reads_hidden_states: bool = False
    layer_routing: LayerRouting | None = None  # instead of `routing`, under combination `sum`
    # An ensemble: for each further member its adapters, under the same weights. All members read
    # the same text; each token is drawn from the mean of their next-token probabilities.
    ensemble: tuple[tuple[str, ...], ...] = ()
    reports: Reports = Reports()

    @property
    def all_adapters(self) -> tuple[str, ...]:
        """Those of every member, each once."""
        return tuple(dict.fromkeys(chain(self.adapters, *self.ensemble)))

    @classmethod
    def from_mixture(
        cls,
        mixture: ResolvedMixture,
        request_id: str,
        prompt_token_ids: tuple[int, ...],
        sampling: SamplingSpec,
    ) -> EngineRequest:
        """A request under a fixed mixture."""
        return cls(
            request_id,
            prompt_token_ids,
            sampling,
            mixture.digests,
            mixture.weights,
            mixture.combination,
        )
