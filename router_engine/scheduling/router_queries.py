"""Owns what the routers are still to be asked, and how long each of their answers holds."""

from __future__ import annotations

from collections import deque

from router_engine.errors import RouterError
from router_engine.request import EngineRequest
from router_engine.routers.base import HiddenQuery
from router_engine.scheduling.hidden_means import RunningMean, RunningMeans
from router_engine.scheduling.request_validation import weights_problem
from router_engine.scheduling.state import RequestState, RequestStatus
from router_engine.sparse_weights import SparseWeights


class RouterQueries:
    """Answers are taken in the order of the questions.

    A router that reads text is asked about the prompt by whoever adds the request, then here after
    each `every` generated tokens. One that reads hidden states is asked for a prior, about 0
    tokens, and then whenever the states of all tokens are there whose weights are known: the pass
    over a token cannot depend on its own state, so its weights come from the tokens before.
    """

    def __init__(self, means: RunningMeans) -> None:
        self._means = means
        self._text: list[RequestState] = []
        self._tapped: list[tuple[RequestState, RunningMean, str]] = []

    @staticmethod
    def first(request: EngineRequest) -> deque[int]:
        """The lengths of text that are asked about when a request comes."""
        if request.routing is None:
            return deque()
        return deque([0 if request.reads_hidden_states else len(request.prompt_token_ids)])

    def sampled(self, state: RequestState) -> None:
        """A token was drawn. Asks when weights are due and will hold at some token."""
        routing, generated = state.request.routing, state.num_generated
        if (
            routing is not None
            and not state.request.reads_hidden_states
            and generated % routing.every == 0
            and generated + routing.lag < state.request.sampling.max_new_tokens
        ):
            self._text.append(state)

    def computed(self, state: RequestState) -> None:
        """Tokens were computed, or found in the prefix cache."""
        running, routing = state.running_mean, state.request.routing
        if running is None or routing is None or state.pending_queries:
            return
        if state.num_computed == state.weights_history.known_until:
            state.pending_queries.append(state.num_computed)
            self._tapped.append((state, running, routing.router))

    def take(self) -> list[tuple[str, list[int]]]:
        """(request id, tokens new since it was last asked about) for each text router's renewal."""
        pending_queries: list[tuple[str, list[int]]] = []
        for state in self._text:
            if state.status is not RequestStatus.FINISHED:
                pending_queries.append((state.request_id, state.tokens[state.num_routed_tokens :]))
                state.num_routed_tokens = len(state.tokens)
                state.pending_queries.append(state.num_routed_tokens)
        self._text = []
        return pending_queries

    def take_hidden(self) -> dict[str, list[HiddenQuery]]:
        """What is to be asked now of each router that reads hidden states."""
        due = [each for each in self._tapped if each[0].status is not RequestStatus.FINISHED]
        self._tapped = []
        means = self._means.means([running for _, running, _ in due])
        pending_queries: dict[str, list[HiddenQuery]] = {}
        for (state, _, router), mean in zip(due, means, strict=True):
            question = HiddenQuery(state.request_id, state.pending_queries[0], mean)
            pending_queries.setdefault(router, []).append(question)
        return pending_queries

    @staticmethod
    def accept(
        state: RequestState, num_tokens: int, weights: SparseWeights, at_most: int | None
    ) -> int:
        """Take an answer; the position until which it holds.

        Raises RouterError if it is no answer to the oldest question, or its weights are of no use.
        """
        routing = state.request.routing
        if routing is None or not state.pending_queries or num_tokens != state.pending_queries[0]:
            raise RouterError(
                f"request {state.request_id!r} did not ask for weights from {num_tokens} tokens"
            )
        problem = weights_problem(weights.values)
        if problem or weights.size != len(state.request.adapters):
            raise RouterError(
                problem
                or f"weights has {weights.size} values: {len(state.request.adapters)} candidates "
                "need one each"
            )
        state.pending_queries.popleft()
        if not state.request.reads_hidden_states:
            # Weights from n tokens hold from the pass over the last of them (the first yields come
            # from it) until the pass over the last token of the next text that is asked about; both
            # `lag` passes later, but for the prompt's, which hold from the start.
            return num_tokens + routing.lag + routing.every - 1
        last = state.num_prompt - 1
        if num_tokens < last:
            return last if at_most is None else min(num_tokens + at_most, last)
        return num_tokens + routing.every
