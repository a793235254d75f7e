"""Errors of the engine. They speak of tokens and adapters, never of HTTP."""

from __future__ import annotations


class EngineError(Exception):
    """Base of every error that the engine raises on purpose."""


class UnsupportedModelError(EngineError):
    """The base model cannot be served; the message names the architecture and what works."""


class RequestRefusedError(EngineError):
    """The request can never run (too long, adapters too big for the pool, bad combination)."""


class MixtureError(EngineError):
    """The mixture cannot be computed as asked (unequal ranks under `linear`, ...)."""


class AdapterLoadError(EngineError):
    """An adapter could not be read; the message says which and why."""


class AdapterBusyError(EngineError):
    """The adapter is used by running requests, or pinned, so it cannot be unloaded now."""


class EngineDiedError(EngineError):
    """The engine process ended while it held work."""


class EngineNotReadyError(EngineError):
    """The engine process is starting or restarting."""


class RouterError(EngineError):
    """A router could not produce weights; the message says why."""
