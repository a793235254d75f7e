"""What an API asks of generation, in nobody's wire format, and what it calls the parts of it."""

from __future__ import annotations

from dataclasses import dataclass

from router_engine.request import SamplingParams
from server.schemas.mixture import Mixture


@dataclass(frozen=True, slots=True)
class InputNames:
    """What an API calls the parts of an GenerationInput, for the errors that name them."""

    prompt: str = "inputs"
    most: str = "max_new_tokens"
    least: str = "min_new_tokens"
    shorten: str = "shorten the prompt or set truncate"


NATIVE = InputNames()


@dataclass(frozen=True, slots=True)
class GenerationInput:
    """What an API asks for, in nobody's wire format.

    `max_new_tokens` None means the server's default, or the room that is left in model and KV cache
    if that is less.
    """

    prompt_ids: tuple[int, ...]
    text: str  # what request routers read
    sampling: SamplingParams
    max_new_tokens: int | None = None
    mixture: Mixture | None = None
    adapter: str | None = None
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False
    priority: int = 0
    endpoint: str = "generate"
    report_gates: bool = False
    fields: InputNames = NATIVE
