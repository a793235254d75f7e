"""Owns what the routers are still to be asked, and how long each of their answers holds."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from router_engine.errors import RouterError
from router_engine.request import EngineRequest, TokenRouting
from router_engine.routers.base import HiddenQuery
from router_engine.scheduling.hidden_means import RunningMean, RunningMeans
from router_engine.scheduling.request_validation import weights_problem
from router_engine.scheduling.state import PendingQueries, RequestState, RequestStatus
from router_engine.sparse_weights import SparseWeights


class TextQuery(NamedTuple):
    """Weights are due of a text that has grown, from a router that reads text."""

    router: str
    request_id: str
    token_ids: list[int]  # new since the router was last asked


class DueQueries(NamedTuple):
    """What routers are to be asked now."""

    text: list[TextQuery]
    hidden: dict[str, list[HiddenQuery]]  # by router


class RouterQueries:
    """Answers are taken in the order of the queries.

    A router that reads text is asked about the prompt by whoever adds the request, then here after
    each `every` generated tokens. One that reads hidden states is asked for a prior, about 0
    tokens, and then whenever the states of all tokens are there whose weights are known: the pass
    over a token cannot depend on its own state, so its weights come from the tokens before.
    """

    def __init__(self, means: RunningMeans) -> None:
        self._means = means
        self._text: list[tuple[RequestState, PendingQueries, str]] = []
        self._hidden: list[tuple[RequestState, int, RunningMean, str]] = []  # (.., tokens, ..)

    @staticmethod
    def first(request: EngineRequest) -> PendingQueries | None:
        """What is asked when a request comes; None where no token router weighs its adapters."""
        if request.routing is None:
            return None
        size = len(request.prompt_token_ids)
        return PendingQueries(deque([0 if request.reads_hidden_states else size]), size)

    def sampled(self, state: RequestState) -> None:
        """A token was drawn. Asks when weights are due and will hold at some token."""
        routing, queries = state.request.routing, state.queries
        if routing is None or queries is None or state.request.reads_hidden_states:
            return
        generated = state.num_generated
        will_hold = generated + routing.lag < state.request.sampling.max_new_tokens
        if generated % routing.every == 0 and will_hold:
            self._text.append((state, queries, routing.router))

    def computed(self, state: RequestState) -> None:
        """Tokens were computed, or found in the prefix cache."""
        routing, queries = state.request.routing, state.queries
        if routing is None or queries is None or queries.lengths:
            return
        if state.num_computed != state.weights_history.known_until:
            return
        running = self._means.find(state.request_id)
        if running is not None:
            queries.lengths.append(state.num_computed)
            self._hidden.append((state, state.num_computed, running, routing.router))

    def take(self) -> DueQueries:
        """Those due since the last call."""
        return DueQueries(self._take_text(), self._take_hidden())

    def _take_text(self) -> list[TextQuery]:
        taken: list[TextQuery] = []
        for state, queries, router in self._text:
            if state.status is not RequestStatus.FINISHED:
                fresh = state.tokens[queries.num_routed_tokens :]
                taken.append(TextQuery(router, state.request_id, fresh))
                queries.num_routed_tokens = len(state.tokens)
                queries.lengths.append(queries.num_routed_tokens)
        self._text = []
        return taken

    def _take_hidden(self) -> dict[str, list[HiddenQuery]]:
        due = [each for each in self._hidden if each[0].status is not RequestStatus.FINISHED]
        self._hidden = []
        means = self._means.means([running for _, _, running, _ in due])
        taken: dict[str, list[HiddenQuery]] = {}
        for (state, num_tokens, _, router), mean in zip(due, means, strict=True):
            query = HiddenQuery(state.request_id, num_tokens, mean)
            taken.setdefault(router, []).append(query)
        return taken

    def accept(
        self,
        state: RequestState,
        num_tokens: int,
        weights: SparseWeights,
        at_most: int | None,
        window: int | None,
    ) -> int:
        """Take an answer, or a `Prior`; the position until which it holds.

        Raises RouterError if it is no answer to the oldest query, or its weights are of no use.
        """
        routing, queries = state.request.routing, state.queries
        oldest = None if queries is None or not queries.lengths else queries.lengths[0]
        if routing is None or queries is None or num_tokens != oldest:
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
        queries.lengths.popleft()
        running = self._means.find(state.request_id)
        if running is None:
            return _until_after_text(num_tokens, routing)
        if window is not None:
            running.window = window
        last = state.num_prompt - 1
        if num_tokens < last:
            return last if at_most is None else min(num_tokens + at_most, last)
        return num_tokens + routing.every


def _until_after_text(num_tokens: int, routing: TokenRouting) -> int:
    """The position until which weights hold that were made from a text of `num_tokens` tokens.

    From the pass over the last of them (the first yields come from it) until the pass over the last
    token of the next text that is asked about; both `lag` passes later, but for the prompt's, which
    hold from the start.
    """
    return num_tokens + routing.lag + routing.every - 1
