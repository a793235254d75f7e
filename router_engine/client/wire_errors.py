"""Carries the engine's and the store's exceptions across the process border, type and all."""

from __future__ import annotations

import msgspec

import adapters_store.errors
import router_engine.errors
from adapters_store.errors import AdapterNotFoundError, InvalidAdapterError
from adapters_store.types import Problem
from router_engine.errors import EngineError

_KNOWN: dict[str, type[Exception]] = {
    name: kind
    for module in (adapters_store.errors, router_engine.errors)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
}


class WireError(msgspec.Struct, frozen=True):
    """An exception as data. `kind` names its class, or the nearest that both sides know."""

    kind: str
    message: str
    reference: str = ""  # of AdapterNotFoundError
    near: tuple[str, ...] = ()  # of AdapterNotFoundError
    problems: tuple[Problem, ...] = ()  # of InvalidAdapterError

    @classmethod
    def of(cls, error: BaseException) -> WireError:
        lineage = [kind.__name__ for kind in type(error).__mro__ if kind in _KNOWN.values()]
        kind, message = (lineage or [type(error).__name__])[0], str(error)
        if isinstance(error, AdapterNotFoundError):
            return cls(kind, message, reference=error.reference, near=error.near)
        if isinstance(error, InvalidAdapterError):
            return cls(kind, message, problems=error.problems)
        return cls(kind, message)

    def exception(self) -> Exception:
        """The same exception again; EngineError with the foreign type's name for any other."""
        kind = _KNOWN.get(self.kind)
        if kind is None:
            return EngineError(f"{self.kind}: {self.message}")
        if kind is AdapterNotFoundError:
            return AdapterNotFoundError(self.reference, self.near)
        if kind is InvalidAdapterError:
            return InvalidAdapterError(self.problems)
        # The message is finished text: a constructor that builds it from parts must not run again.
        return kind.__new__(kind, self.message)
