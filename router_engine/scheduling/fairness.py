"""Owns how much service each adapter set has had: virtual token counters.

Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2: among waiting
clients the one with the least service goes first, and one that comes back is lifted to the least
served waiting client, so that idle time earns no credit.
"""

from __future__ import annotations

from collections.abc import Collection

from router_engine.config import Fairness
from router_engine.request import EngineRequest

Group = str

BACKGROUND: Group = "background"  # no digest of an adapter

PROMPT_TOKEN_COST = 1  # w_p of the paper
GENERATED_TOKEN_COST = 2  # w_q of the paper
_PRUNE_ABOVE = 1024  # groups remembered before those that earn no difference are forgotten


def group_of(request: EngineRequest, fairness: Fairness) -> Group:
    """Whose service a request is: one string, whose hash is kept, unlike that of a tuple."""
    if request.is_background:
        return BACKGROUND
    return " ".join(sorted(request.adapters)) if fairness == "adapter" else ""


class ServiceCounters:
    """Service in cost units by group. A client of the paper is a set of adapters here."""

    def __init__(self) -> None:
        self._served: dict[Group, int] = {}
        self._last_left: Group | None = None

    def served(self, group: Group) -> int:
        return self._served.get(group, 0)

    def charge_prompt(self, group: Group, num_tokens: int) -> None:
        self._charge(group, PROMPT_TOKEN_COST * num_tokens)

    def charge_generated(self, group: Group, num_tokens: int) -> None:
        self._charge(group, GENERATED_TOKEN_COST * num_tokens)

    def enter(self, group: Group, waiting: Collection[Group]) -> None:
        """`group` starts to wait beside the groups `waiting` (itself not among them)."""
        floor = self._floor(waiting)
        if len(self._served) > _PRUNE_ABOVE + 2 * len(waiting):
            self._forget(floor, waiting)
        self._served[group] = max(self.served(group), floor)

    def leave(self, group: Group) -> None:
        """The last waiting request of `group` was admitted or ended."""
        self._last_left = group

    def _charge(self, group: Group, cost: int) -> None:
        self._served[group] = self.served(group) + cost

    def _floor(self, waiting: Collection[Group]) -> int:
        if waiting:
            return min(map(self.served, waiting))
        return 0 if self._last_left is None else self.served(self._last_left)

    def _forget(self, floor: int, waiting: Collection[Group]) -> None:
        """Drop groups at or under the floor: on return they would be lifted to it anyway."""
        keep = {*waiting, self._last_left}
        self._served = {
            group: cost for group, cost in self._served.items() if cost > floor or group in keep
        }
