"""The contents of an AdaMix checkpoint of GPT-2, of either variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from adaptermix.training.importing.adamix.base_tensors import BaseTensors
from adapters_store.errors import InvalidAdapterError
from adapters_store.problems import bounded_problems, name_list
from adapters_store.types import Problem

STATE = "model_state_dict"
_PREFIX = "module."  # of keys that a data parallel model saved
_BOTTLENECK = ("deepspeed_experts", "ExpertSoup")


class CopiedLayer(Protocol):
    """The copies in one layer."""

    @property
    def where(self) -> str:
        """Its module."""

    @property
    def hidden_size(self) -> int:
        """d; holds once there are no problems."""

    @property
    def sizes(self) -> str:
        """Everything in which layers must agree, for people."""

    def problems(self) -> list[Problem]:
        """Everything that is wrong in this layer by itself."""


def state_of(checkpoint: object) -> Mapping[str, object]:
    """The tensors by name out of what the file holds, {"model_state_dict": tensors by name}.

    Names come without the prefix "module.". Raises InvalidAdapterError, also for AdaMix checkpoints
    of encoders.
    """
    if not isinstance(checkpoint, Mapping):
        raise refusal(
            "checkpoint",
            f"holds a {type(checkpoint).__name__}; expected a dict with the entry {STATE!r}",
        )
    state = checkpoint.get(STATE, checkpoint)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise refusal(STATE, "is no dict of tensors by name")
    _refuse_encoders(state)
    if STATE not in checkpoint:
        raise refusal(
            "checkpoint",
            f"has no entry {STATE!r} (it holds {name_list(checkpoint)}): expected a file that "
            "AdaMix's GPT-2 training saved, model.<step>.pt or model.final.pt",
        )
    others = [name for name in checkpoint if name != STATE]
    if others:
        raise refusal("checkpoint", f"holds {name_list(others)} beside {STATE!r}: save that alone")
    named = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    twice = [name for name in named if name in state and _PREFIX + name in state]
    if twice:
        raise refusal(STATE, f"holds {name_list(twice)} both with and without {_PREFIX!r}")
    return named


def has_bottlenecks(state: Mapping[str, object]) -> bool:
    """Whether it is the bottleneck variant."""
    return any(mark in name for name in state for mark in _BOTTLENECK)


def check_layers(
    layers: Mapping[int, CopiedLayer], base: BaseTensors, kind: str, tensors: str
) -> None:
    """Raise InvalidAdapterError with all that is wrong in layers, between them, or beside them."""
    problems: list[Problem] = []
    if base.unknown:
        problems.append(
            Problem(
                STATE, f"holds what GPT-2 and its AdaMix {kind} don't: {name_list(base.unknown)}"
            )
        )
    for layer in layers.values():
        problems += layer.problems()
    first = layers[min(layers)]
    for index in sorted((set(range(max(layers) + 1)) | base.layers) - layers.keys()):
        where = first.where.replace(f".{min(layers)}.", f".{index}.")
        problems.append(
            Problem(where, f"has no {tensors}, though other layers do: is the file whole?")
        )
    if not problems:
        problems += _disagreements(layers)
    if not problems:
        problems += base.problems(first.hidden_size, kind)
    if problems:
        raise InvalidAdapterError(bounded_problems(problems))


def refusal(where: str, message: str) -> InvalidAdapterError:
    """One reason."""
    return InvalidAdapterError([Problem(where, message)])


def _refuse_encoders(names: Mapping[str, object]) -> None:
    encoders = [name for name in names if any(mark in name for mark in _BOTTLENECK)]
    if encoders and not any("transformer.h." in name for name in encoders):
        raise refusal(
            "checkpoint",
            f"is an AdaMix checkpoint of an encoder that classifies (GLUE; {name_list(encoders)}), "
            "which no model that generates can run: train AdaMix on GPT-2 (NLG), which can be "
            "imported",
        )


def _disagreements(layers: Mapping[int, CopiedLayer]) -> Iterator[Problem]:
    """Layers are copies of one block, so all have the same sizes."""
    first = layers[min(layers)]
    for layer in layers.values():
        if layer.sizes != first.sizes:
            yield Problem(
                layer.where,
                f"has {layer.sizes}, but {first.where} has {first.sizes}: all layers "
                "must have the same",
            )
