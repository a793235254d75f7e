"""Token routers that need nobody's help: each answer is there at the next `poll`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router_engine.errors import RouterError
from router_engine.request import TokenRouting
from router_engine.routers.base import RoutedWeights

# (tokens of the prompt, tokens so far) -> weights [candidates]; raises RouterError.
Rule = Callable[[int, int], tuple[float, ...]]
# (params, number of candidates) -> the rule of one request; raises RouterError.
MakeRule = Callable[[Mapping[str, Any], int], Rule]


@dataclass(slots=True)
class _Session:
    rule: Rule
    num_prompt_tokens: int
    num_tokens: int


class InstantTokenRouter:
    """`TokenRouter` over a rule that each request gets for its parameters."""

    def __init__(self, make_rule: MakeRule, *, wake: Callable[[], None] = lambda: None) -> None:
        self._make_rule = make_rule
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
            rule = self._make_rule(routing.params, len(candidates))
        except RouterError as error:
            self._answer(RoutedWeights(request_id, count, error=str(error)))
            return
        self._sessions[request_id] = _Session(rule, count, count)
        self.extend(request_id, ())

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        session = self._sessions.get(request_id)
        if session is None:
            return
        session.num_tokens += len(token_ids)
        count = session.num_tokens
        try:
            weights = session.rule(session.num_prompt_tokens, count)
        except RouterError as error:
            self._answer(RoutedWeights(request_id, count, error=str(error)))
            return
        self._answer(RoutedWeights(request_id, count, weights))

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
