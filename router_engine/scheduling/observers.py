"""The contract of a feature that watches requests: its duties and its rights."""

from __future__ import annotations

from collections.abc import Sequence

from router_engine.events import FinalEvent
from router_engine.scheduling.plan import StepOutput


class RequestObserver:
    """One request's record of one feature; the core carries it without looking inside.

    A base class and no Protocol, as each feature needs two or three of its calls: those that it
    leaves out ask for nothing. A request without features has no observer, and pays for none.
    """

    __slots__ = ()

    @property
    def shares_blocks(self) -> bool:
        """Whether others may use its KV blocks: not where its KV depends on tokens behind them."""
        return True

    @property
    def searches_blocks(self) -> bool:
        """Whether KV blocks of others will do for it: not where each token has to be watched."""
        return True

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether the next chunk has to hold the whole prompt, whatever the budget."""
        return False

    def resume(self, block_ids: Sequence[int]) -> None:
        """KV of the first tokens was found in the prefix cache, in these blocks."""

    def read(self, start: int, tokens: slice, out: StepOutput) -> None:
        """Take in what a step has computed; positions that were read before change nothing.

        start: position of the first token. tokens: where they lie in the step's flat batch.
        """

    def publish(self, index: int, block_id: int) -> None:
        """The request's block `index`, which has been read, will be found as `block_id`."""

    def restart(self) -> None:
        """All KV is computed again, under other weights."""

    def report(self, event: FinalEvent) -> FinalEvent:
        """The final event, with what it tells of this feature."""
        return event

    def close(self) -> None:
        """The request has ended."""
