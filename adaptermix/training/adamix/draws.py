"""The choice of the copy that a call takes, by a seeded generator or fixed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from adaptermix.training.errors import TrainingError
from adaptermix.training.settings import Routing


class Draws:
    """Uniform draws, each call's independent of all others; none outside of `random`.

    `generator` is what training draws from; its state belongs into a checkpoint.
    """

    def __init__(self, routing: Routing, seed: int) -> None:
        self.generator = seeded(seed)
        self._routing = routing
        self._source: torch.Generator | None = None

    @contextmanager
    def random(self, generator: torch.Generator | None = None) -> Iterator[None]:
        """Calls inside take copies at random, from `generator` where one is given."""
        self._source = self.generator if generator is None else generator
        try:
            yield
        finally:
            self._source = None

    def choose(self, copies: int, shape: Sequence[int]) -> list[int] | None:
        """Copies for an input of `shape`: one for all, or one an example; None is their mean.

        Where there is one copy only nothing is drawn. Raises TrainingError where examples cannot
        be told apart.
        """
        if self._source is None:
            return None
        if copies == 1:
            return [0]
        if self._routing == "example" and len(shape) != 3:
            raise TrainingError(
                f"routing is 'example', but a target's input has {len(shape)} dimensions in place "
                "of [examples, tokens, width]; use 'batch'"
            )
        examples = 1 if self._routing == "batch" else shape[0]
        drawn: list[int] = torch.randint(copies, (examples,), generator=self._source).tolist()
        return drawn


def seeded(seed: int) -> torch.Generator:
    """A generator whose stream has nothing to do with that of torch's own under equal seeds."""
    return torch.Generator().manual_seed(random.Random(f"draws/{seed}").getrandbits(63))
