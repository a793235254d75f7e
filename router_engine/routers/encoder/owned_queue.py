"""The queue before the encoder: each thing in it has an owner, who may take it back."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Generic, TypeVar

Client = bytes  # the socket identity of whoever asked
Owner = tuple[Client, int | str]  # one ask by its id, or a session by its name

T = TypeVar("T")


class OwnedQueue(Generic[T]):
    """Items in the order in which they came. Dropping an owner's costs nothing for the others."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._items: OrderedDict[int, tuple[Owner, T]] = OrderedDict()
        self._owned: dict[Owner, set[int]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def put(self, owner: Owner, item: T) -> None:
        """Append it."""
        number = next(self._numbers)
        self._items[number] = owner, item
        self._owned.setdefault(owner, set()).add(number)

    def take(self, most: int) -> list[tuple[Owner, T]]:
        """The first `most` items, or as many as there are, which it no longer holds."""
        taken = []
        for _ in range(min(most, len(self._items))):
            number, (owner, item) = self._items.popitem(last=False)
            numbers = self._owned[owner]
            numbers.remove(number)
            if not numbers:
                del self._owned[owner]
            taken.append((owner, item))
        return taken

    def drop(self, owner: Owner) -> int:
        """Drop the owner's items; how many there were."""
        numbers = self._owned.pop(owner, set())
        for number in numbers:
            del self._items[number]
        return len(numbers)

    def drop_client(self, client: Client) -> None:
        """Drop the items of all owners that belong to a client."""
        for owner in [owner for owner in self._owned if owner[0] == client]:
            self.drop(owner)
