"""AdapterMix from Python. Each name is imported when it is first used: no torch for a client."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptermix.mixture import Mixture
    from adaptermix.sampling import SamplingParams

_MODULES = {  # of each name
    "Mixture": "mixture",
    "SamplingParams": "sampling",
}

__all__ = ["Mixture", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next use finds it here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
