"""Owns the token and layer routers of one engine: where live requests meet them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from router_engine.errors import RouterError
from router_engine.events import FinishReason
from router_engine.request import EngineRequest, TokenRouting
from router_engine.routers.base import HiddenRouter, LayerRouter, LayerRoutingParams, TokenRouter
from router_engine.routers.errors import RouterUnavailableError
from router_engine.scheduling.router_queries import DueQueries
from router_engine.sparse_weights import SparseWeights


class RoutedRequests(Protocol):
    """What routers need of the scheduler."""

    def take_queries(self) -> DueQueries:
        """What the routers are to be asked, since the last call."""
        ...

    def set_weights(
        self,
        request_id: str,
        num_tokens: int,
        weights: Sequence[float] | SparseWeights,
        at_most: int | None = None,
        window: int | None = None,
    ) -> None:
        """An answer. Unknown ids are ignored; raises RouterError where it is of no use."""


class RoutingFailure(NamedTuple):
    """A request that cannot go on, as its router has failed."""

    request_id: str
    error: str
    reason: FinishReason = FinishReason.FAILED


class RunningRouters:
    """Those that read text answer later and are polled; those that read hidden states, at once.

    Layer routers are asked for the parameters of their layers, once a request. A router that no
    live request uses is not called at all.
    """

    def __init__(
        self,
        readers: Mapping[str, TokenRouter],
        hidden: Mapping[str, HiddenRouter],
        layer: Mapping[str, LayerRouter],
    ) -> None:
        self._readers = dict(readers)
        self._hidden = dict(hidden)
        self._layer = dict(layer)
        self._users: dict[str, set[str]] = {}  # by token router: the live requests that it weighs

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted({*self._readers, *self._hidden}))

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(sorted(self._layer))

    def layer_routing(self, request: EngineRequest) -> tuple[LayerRoutingParams | None, str | None]:
        """What the layers compute for a request, if it asks for that; or why it can't be routed."""
        routing = request.layer_routing
        if routing is None:
            return None, self._refusal(request)
        if routing.router not in self._layer:
            served = ", ".join(self.layer_names) or "none"
            return None, f"layer router {routing.router!r} is not served; served: {served}"
        try:
            params = self._layer[routing.router](routing.params)
        except RouterError as error:
            return None, str(error)
        return replace(params, top_k=min(params.top_k, len(request.adapters))), None

    def _refusal(self, request: EngineRequest) -> str | None:
        """Why a request cannot be routed as it asks for; None if it can, or asks for nothing."""
        routing = request.routing
        if routing is None:
            return None
        if routing.router not in self.names:
            served = ", ".join(self.names) or "none"
            return f"token router {routing.router!r} is not served; served: {served}"
        if request.reads_hidden_states != (routing.router in self._hidden):
            wants = (
                "hidden states: reads_hidden_states must be true"
                if not request.reads_hidden_states
                else "text"
            )
            return f"token router {routing.router!r} reads {wants}"
        return None

    def begin(self, request: EngineRequest, requests: RoutedRequests) -> RoutingFailure | None:
        """Ask a new request's token router for the first time, if it has one."""
        routing = request.routing
        if routing is None:
            return None
        users = self._users.setdefault(routing.router, set())
        users.add(request.request_id)
        if request.reads_hidden_states:
            return self._begin_hidden(request, routing, requests)
        router = self._readers[routing.router]
        if len(users) == 1:
            router.poll()  # answers to requests that ended before they came: nobody's
        router.begin(request.request_id, request.prompt_token_ids, request.adapters, routing)
        return None

    def _begin_hidden(
        self, request: EngineRequest, routing: TokenRouting, requests: RoutedRequests
    ) -> RoutingFailure | None:
        request_id = request.request_id
        try:
            prior = self._hidden[routing.router].begin(request_id, request.adapters, routing)
            requests.set_weights(request_id, 0, *prior)
        except RouterUnavailableError as error:
            return RoutingFailure(request_id, str(error), FinishReason.ROUTER_AWAY)
        except RouterError as error:
            return RoutingFailure(request_id, str(error))
        return None

    def advance(self, requests: RoutedRequests) -> Sequence[RoutingFailure]:
        """Ask what is due, and hand on what has been answered; the requests that this ends.

        Once before a step and once behind it. Routers that read text may answer later; those that
        read hidden states, and some others, answer here.
        """
        if not self._users:
            return ()
        failures: list[RoutingFailure] = []
        queries = requests.take_queries()
        for query in queries.text:
            self._readers[query.router].extend(query.request_id, query.token_ids)
        for name, due in queries.hidden.items():
            for weighed in self._hidden[name].weigh(due):
                failures += _set(requests, *weighed)
        for name in self._users:
            for answer in self._readers[name].poll() if name in self._readers else ():
                if answer.error is None:
                    failures += _set(requests, answer.request_id, answer.num_tokens, answer.weights)
                    continue
                reason = FinishReason.ROUTER_AWAY if answer.is_away else FinishReason.FAILED
                failures.append(RoutingFailure(answer.request_id, answer.error, reason))
        return failures

    def put(self, router: str, centroids: Mapping[str, Sequence[float]]) -> None:
        """What a router that reads hidden states knows adapters by. Raises RouterError."""
        if router not in self._hidden:
            takers = ", ".join(sorted(self._hidden)) or "none"
            raise RouterError(f"router {router!r} takes no centroids here; those that do: {takers}")
        self._hidden[router].put(centroids)

    def end(self, request: EngineRequest) -> None:
        """A request has ended, whether or not it was begun."""
        if request.routing is None:
            return
        name = request.routing.router
        users = self._users.get(name, set())
        users.discard(request.request_id)
        if not users:
            self._users.pop(name, None)
        router = self._readers.get(name) or self._hidden.get(name)
        if router is not None:
            router.end(request.request_id)

    def close(self) -> None:
        for router in self._readers.values():
            router.close()


def _set(
    requests: RoutedRequests,
    request_id: str,
    num_tokens: int,
    weights: Sequence[float] | SparseWeights,
) -> Sequence[RoutingFailure]:
    try:
        requests.set_weights(request_id, num_tokens, weights)
    except RouterError as error:
        return (RoutingFailure(request_id, str(error)),)
    return ()
