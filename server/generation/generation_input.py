"""The inputs of generation in nobody's wire format, and the names that an API has for them."""

from __future__ import annotations

from dataclasses import dataclass

from router_engine.request import SamplingSpec
from server.schemas.mixture import MixtureChoice


@dataclass(frozen=True, slots=True)
class InputNames:
    """An API's names for the parts of a GenerationInput, for the errors that name them."""

    prompt: str = "inputs"
    most: str = "max_new_tokens"
    least: str = "min_new_tokens"
    shorten: str = "shorten the prompt or set truncate"  # the advice where it is too long


NATIVE = InputNames()


@dataclass(frozen=True, slots=True)
class GenerationInput:
    """One answer as an API asks for it, in nobody's wire format."""

    prompt_ids: tuple[int, ...]  # token ids
    text: str  # of the prompt, for request routers
    sampling: SamplingSpec
    # None: the server's default, or the room that is left in model and KV cache if that is less.
    max_new_tokens: int | None = None
    mixture: MixtureChoice | None = None
    adapter: str | None = None  # a reference at weight 1; excludes `mixture`
    stops: tuple[str, ...] = ()  # stop strings
    ignore_eos: bool = False
    priority: int = 0  # lower goes first
    endpoint: str = "generate"  # for metrics
    report_gates: bool = False  # statistics of the gating networks
    fields: InputNames = NATIVE
