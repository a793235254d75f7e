"""The adapters that requests under way need, whether the engine has heard of them yet or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from router_engine.experts.variants import plain_digest


class Uses:
    """Counts the adapters of live requests. For one event loop."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @property
    def digests(self) -> frozenset[str]:
        """Digests of adapters' files, as the store knows them."""
        return frozenset(self._counts)

    @contextmanager
    def hold(self, digests: Iterable[str]) -> Iterator[None]:
        """Around a request that needs these adapters, or variants of them."""
        needed = Counter(map(plain_digest, digests))
        self._counts += needed
        try:
            yield
        finally:
            self._counts -= needed  # which drops those at 0
