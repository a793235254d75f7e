"""Owners that keep adapters on the device: requests while they live, admins until they let go."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from router_engine.errors import AdapterBusyError


class Holders:
    """Who uses which adapters, which are pinned, and which are held by a merged mixture."""

    def __init__(self) -> None:
        self.users: dict[str, set[str]] = {}  # owners by digest
        self.pins: set[str] = set()
        self._held: dict[str, tuple[str, ...]] = {}  # by owners that are no request
        self._for_good: set[str] = set()  # of them, those that end at an admin's word alone

    @property
    def for_good(self) -> set[str]:
        """What leaves the device at an admin's word alone: pinned, or merged by an admin."""
        return self.pins.union(*(self._held[owner] for owner in self._for_good))

    @property
    def beside_requests(self) -> set[str]:
        """What is pinned or held, whether for good or not."""
        return self.pins.union(*self._held.values())

    def grant(self, owner: str, digests: Sequence[str]) -> None:
        """The owner uses them until `release`."""
        for digest in digests:
            self.users.setdefault(digest, set()).add(owner)

    def hold(self, owner: str, digests: Sequence[str], *, for_good: bool) -> None:
        """As `grant`, by an owner that is no request; for_good: until an admin ends it."""
        self.grant(owner, digests)
        self._held[owner] = tuple(digests)
        if for_good:
            self._for_good.add(owner)

    def release(self, owner: str) -> None:
        """The owner has ended. Unknown owners are ignored."""
        self._held.pop(owner, None)
        self._for_good.discard(owner)
        for digest in [digest for digest, users in self.users.items() if owner in users]:
            self.users[digest].discard(owner)
            if not self.users[digest]:
                del self.users[digest]

    def pin(self, digest: str, *, pinned: bool) -> None:
        """Keep an adapter whether anybody uses it or not, or no longer."""
        if pinned:
            self.pins.add(digest)
        else:
            self.pins.discard(digest)

    def is_free(self, digest: str) -> bool:
        """Whether nobody keeps it."""
        return digest not in self.pins and not self.users.get(digest)

    def require_free(self, digests: Collection[str]) -> None:
        """Raises AdapterBusyError for one that is kept, saying by what."""
        for digest in digests:
            if digest in self.pins:
                raise AdapterBusyError(f"{digest} is pinned: unpin it first")
            if users := self.users.get(digest):
                raise AdapterBusyError(f"{digest} is used by {len(users)} live requests")
