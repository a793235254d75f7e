"""Errors of the store. Each names the value that was wrong and says what would work."""

from __future__ import annotations

from collections.abc import Sequence

from adapters_store.problems import Problem

_MOST_ECHOED = 160  # characters of what was sent, in a message


class StoreError(Exception):
    """Base of every error that the store raises on purpose."""


class InvalidReferenceError(StoreError):
    """The text is no adapter reference."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text[:_MOST_ECHOED]!r} is not an adapter reference: use name, name@version, "
            "name@alias or sha256:<64 hex digits> (names: letters, digits, '.', '_', '-', at most "
            "128; versions: up to 2147483647)"
        )


class AdapterNotFoundError(StoreError):
    """No such adapter, version or alias; `near` holds names that look like it."""

    def __init__(self, reference: str, near: Sequence[str] = ()) -> None:
        self.reference = reference
        self.near = tuple(near)
        hint = f"; near names: {', '.join(self.near)}" if self.near else ""
        super().__init__(f"adapter {reference!r} does not exist{hint}")


class InvalidAdapterError(StoreError):
    """The adapter was refused; `problems` holds every reason at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


class AdapterInUseError(StoreError):
    """The adapter is pinned, so it is not deleted unless forced."""


class IntegrityError(StoreError):
    """A blob does not hold what its digest says."""


class StoreUnavailableError(StoreError):
    """The database or the blob store is locked or away: the same may work in a moment."""


class StoreFullError(StoreError):
    """No room is left on the disk of the database or of the blobs."""


class StoreBrokenError(StoreError):
    """The database or the blob store cannot be used as it is: read-only, damaged, forbidden."""


class TensorFileError(StoreError):
    """A safetensors file is malformed; `problems` holds every reason at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class KeyNotFoundError(StoreError):
    """No such API key."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"API key {key_id!r} does not exist")
