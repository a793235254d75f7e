"""Owns the token routers of one engine: asks them, and hands their answers to the scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from router_engine.errors import RouterError
from router_engine.events import FinishReason
from router_engine.request import EngineRequest
from router_engine.routers.base import HiddenRouter, LayerRouter, LayerRoutingParams, TokenRouter
from router_engine.routers.errors import RouterUnavailableError
from router_engine.scheduling.scheduler import Scheduler
from router_engine.sparse_weights import SparseWeights


class Fail(Protocol):
    """Ends the request of this id, with this error."""

    def __call__(
        self, request_id: str, error: str, reason: FinishReason = FinishReason.FAILED
    ) -> None: ...


class RunningRouters:
    """Those that read text answer later and are polled; those that read hidden states, at once.

    Layer routers are asked for a gate, once a request.
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

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted({*self._readers, *self._hidden}))

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(sorted(self._layer))

    def gate(self, request: EngineRequest) -> tuple[LayerRoutingParams | None, str | None]:
        """What the layers compute for a request, if it asks for that; or why it can't be routed."""
        routing = request.layer_routing
        if routing is None:
            return None, self._refusal(request)
        if routing.router not in self._layer:
            known = ", ".join(self.layer_names) or "none"
            return None, f"layer router {routing.router!r} is not served; served: {known}"
        try:
            gate = self._layer[routing.router](routing.params)
        except RouterError as error:
            return None, str(error)
        return replace(gate, top_k=min(gate.top_k, len(request.adapters))), None

    def _refusal(self, request: EngineRequest) -> str | None:
        """Why a request cannot be routed as it asks for; None if it can, or asks for nothing."""
        routing = request.routing
        if routing is None:
            return None
        if routing.router not in self.names:
            known = ", ".join(self.names) or "none"
            return f"token router {routing.router!r} is not served; served: {known}"
        if request.reads_hidden_states != (routing.router in self._hidden):
            wants = (
                "hidden states: reads_hidden_states must be true"
                if not request.reads_hidden_states
                else "text"
            )
            return f"token router {routing.router!r} reads {wants}"
        return None

    def begin(self, request: EngineRequest, scheduler: Scheduler, fail: Fail) -> None:
        """Ask the first question about a new request."""
        routing, request_id = request.routing, request.request_id
        if routing is None:
            return
        if not request.reads_hidden_states:
            router = self._readers[routing.router]
            router.begin(request_id, request.prompt_token_ids, request.adapters, routing)
            return
        try:
            prior = self._hidden[routing.router].begin(request_id, request.adapters, routing)
            scheduler.set_weights(request_id, 0, *prior)
        except RouterUnavailableError as error:
            fail(request_id, str(error), FinishReason.ROUTER_AWAY)
        except RouterError as error:
            fail(request_id, str(error))

    def ask(self, scheduler: Scheduler) -> None:
        """Tell the routers that read text of the renewals that are due."""
        for request_id, token_ids in scheduler.router_queries.take():
            routing = scheduler.live[request_id].request.routing
            assert routing is not None
            self._readers[routing.router].extend(request_id, token_ids)

    def take(self, scheduler: Scheduler, fail: Fail) -> None:
        """Weights that the routers which read text have answered with."""
        for router in self._readers.values():
            for answer in router.poll():
                if answer.error is not None:
                    reason = FinishReason.ROUTER_AWAY if answer.is_away else FinishReason.FAILED
                    fail(answer.request_id, answer.error, reason)
                else:
                    _set(answer.request_id, answer.num_tokens, answer.weights, scheduler, fail)

    def weigh(self, scheduler: Scheduler, fail: Fail) -> None:
        """Have the routers that read hidden states answer what is due."""
        for name, questions in scheduler.router_queries.take_hidden().items():
            for answer in self._hidden[name].weigh(questions):
                _set(answer.request_id, answer.num_tokens, answer.weights, scheduler, fail)

    def put(self, router: str, centroids: Mapping[str, Sequence[float]]) -> None:
        """What a router that reads hidden states knows adapters by. Raises RouterError."""
        if router not in self._hidden:
            known = ", ".join(sorted(self._hidden)) or "none"
            raise RouterError(f"router {router!r} takes no centroids here; those that do: {known}")
        self._hidden[router].put(centroids)

    def end(self, request: EngineRequest) -> None:
        """A request has ended."""
        name = request.routing.router if request.routing is not None else ""
        router = self._readers.get(name) or self._hidden.get(name)
        if router is not None:
            router.end(request.request_id)

    def close(self) -> None:
        for router in self._readers.values():
            router.close()


def _set(
    request_id: str,
    num_tokens: int,
    weights: Sequence[float] | SparseWeights,
    scheduler: Scheduler,
    fail: Fail,
) -> None:
    try:
        scheduler.set_weights(request_id, num_tokens, weights)
    except RouterError as error:
        fail(request_id, str(error))
