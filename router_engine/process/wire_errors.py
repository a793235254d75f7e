"""Carries the engine's and the store's exceptions across the process border, type and all."""

from __future__ import annotations

import msgspec

import adapters_store.errors
import router_engine.errors
from adapters_store.types import Problem
from router_engine.errors import EngineError

_KNOWN: dict[str, type[Exception]] = {
    name: kind
    for module in (adapters_store.errors, router_engine.errors)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
}
_ATTRIBUTES = ("reference", "near", "problems")


class WireError(msgspec.Struct, frozen=True):
    """An exception as data. `kind` names its class, or the nearest that both sides know.

    The rest are the attributes that some of the known errors have; None where there is none.
    """

    kind: str
    message: str
    reference: str | None = None
    near: tuple[str, ...] | None = None
    problems: tuple[Problem | str, ...] | None = None

    @classmethod
    def of(cls, error: BaseException) -> WireError:
        names = (kind.__name__ for kind in type(error).__mro__ if kind in _KNOWN.values())
        nearest = next(names, None)
        if nearest is None:
            return cls(type(error).__name__, str(error))
        return cls(nearest, str(error), *(getattr(error, name, None) for name in _ATTRIBUTES))

    def exception(self) -> Exception:
        """The same exception again; EngineError with the foreign type's name for any other."""
        kind = _KNOWN.get(self.kind)
        if kind is None:
            return EngineError(f"{self.kind}: {self.message}")
        # The message is finished text: a constructor that builds it from parts must not run again.
        error = kind.__new__(kind, self.message)
        for name in _ATTRIBUTES:
            if (value := getattr(self, name)) is not None:
                setattr(error, name, value)
        return error
