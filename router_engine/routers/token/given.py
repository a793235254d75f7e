"""The token router `given`: the request brings its weights. An oracle, and routing at no cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

from router_engine.errors import RouterError
from router_engine.request import TokenRouting
from router_engine.routers.base import RoutedWeights
from router_engine.routers.errors import RouterInputError
from router_engine.routers.params import parse_params
from router_engine.routers.registry import RouterSpec

Number = Annotated[float, Strict()]  # no text, no bool


class GivenParams(BaseModel):
    """Parameters of the router `given`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weights: tuple[tuple[Number, ...], ...] = Field(
        min_length=1,
        description="One row per generated token, one number per candidate: row i is in force in "
        "the pass that yields token i. With `every: n` rows 0, n, 2n, ... are used.",
    )


@dataclass(slots=True)
class _Session:
    rows: tuple[tuple[float, ...], ...]
    num_prompt_tokens: int
    num_tokens: int


class GivenTokenRouter:
    """`TokenRouter` that answers at once; each answer is there at the next `poll`."""

    def __init__(self, *, wake: Callable[[], None] = lambda: None) -> None:
        self._wake = wake
        self._sessions: dict[str, _Session] = {}
        self._answers: deque[RoutedWeights] = deque()

    def begin(
        self,
        request_id: str,
        token_ids: Sequence[int],
        candidates: Sequence[str],
        routing: TokenRouting,
    ) -> None:
        count = len(token_ids)
        try:
            rows = parse_params(GivenParams, "given", routing.params).weights
            _require_width(rows, len(candidates))
        except RouterError as error:
            self._answer(RoutedWeights(request_id, count, error=str(error)))
            return
        self._sessions[request_id] = _Session(rows, count, count)
        self.extend(request_id, ())

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        session = self._sessions.get(request_id)
        if session is None:
            return
        session.num_tokens += len(token_ids)
        row = session.num_tokens - session.num_prompt_tokens
        if row < len(session.rows):
            answer = RoutedWeights(request_id, session.num_tokens, session.rows[row])
        else:
            error = f"weights has {len(session.rows)} rows; token {row} needs one more"
            answer = RoutedWeights(request_id, session.num_tokens, error=error)
        self._answer(answer)

    def end(self, request_id: str) -> None:
        self._sessions.pop(request_id, None)

    def poll(self) -> Sequence[RoutedWeights]:
        return [self._answers.popleft() for _ in range(len(self._answers))]

    def close(self) -> None:
        self._sessions.clear()

    def _answer(self, answer: RoutedWeights) -> None:
        self._answers.append(answer)
        if len(self._answers) == 1:  # the others are polled with it
            self._wake()


def _require_width(rows: tuple[tuple[float, ...], ...], num_candidates: int) -> None:
    for index, row in enumerate(rows):
        if len(row) != num_candidates:
            raise RouterInputError(
                f"router 'given': weights.{index} has {len(row)} numbers for "
                f"{num_candidates} candidates"
            )


SPEC = RouterSpec(
    name="given",
    summary="The request brings the weights of every token.",
    params=GivenParams,
    token=lambda services: GivenTokenRouter(wake=services.wake),
)
