"""The tensors of a MoA checkpoint by layer: which expert, router or threshold each belongs to.

MoA (https://arxiv.org/abs/2506.05928) was published twice, with other names for the same parts; a
`Naming` holds one set of names. In each layer a part is complete or absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from adapters_store.problems import name_list
from adapters_store.types import Problem

Array = NDArray[Any]

LORA = ("Q", "K", "V", "O", "UP", "GATE", "DOWN")
PROMPT, PARALLEL, THRESHOLD = "prompt", "parallel", "threshold"
LINEAR: Literal["linear"] = "linear"  # kinds of routers
SWIGLU: Literal["swiglu"] = "swiglu"
# The columns of the router, of those experts that there are.
GATE_ORDER = ("Q", "K", "V", PROMPT, "O", "UP", "GATE", "DOWN", PARALLEL)

_WEIGHT_AND_BIAS = {"weight": 2, "bias": 1}
# Pieces of each part, with their dimensions; None: as the part likes it.
PIECES: Mapping[str, Mapping[str, int | None]] = {
    **{part: {"lora_A.weight": 2, "lora_B.weight": 2} for part in LORA},
    PROMPT: {"weight": 2, "gate": None},
    PARALLEL: {
        f"{way}_proj.{piece}": dimensions
        for way in ("down", "up")
        for piece, dimensions in _WEIGHT_AND_BIAS.items()
    },
    LINEAR: _WEIGHT_AND_BIAS,
    SWIGLU: {
        f"{one}.{piece}": dimensions
        for one in ("w1", "w2", "w3")
        for piece, dimensions in _WEIGHT_AND_BIAS.items()
    },
    THRESHOLD: _WEIGHT_AND_BIAS,
}


@dataclass(frozen=True, slots=True)
class Naming:
    """The names of one implementation's parts.

    A key is `prefix` + layer + "." + the part's name + a piece of it.
    """

    prefix: str  # up to the number of the layer
    parts: Mapping[str, str]  # what stands before the pieces, by part
    harmless: re.Pattern[str] | None = None  # of rests that have no effect

    def find(self, rest: str) -> tuple[str, str] | None:
        """The part and the piece that a key means by what follows the layer."""
        if rest == f"{self.parts[PROMPT].removesuffix('.')}_gate":
            return PROMPT, "gate"
        for part, name in self.parts.items():
            piece = rest.removeprefix(name)
            if rest.startswith(name) and piece in PIECES[part]:
                return part, piece
        return None


@dataclass(slots=True)
class MoaLayer:
    """One layer's tensors by part and piece, and the keys that they had."""

    index: int
    parts: dict[str, dict[str, Array]] = field(default_factory=dict)
    keys: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def experts(self) -> tuple[str, ...]:
        """Its experts in the order of the router's columns."""
        return tuple(part for part in GATE_ORDER if part in self.parts)

    def problems(self) -> Iterator[Problem]:
        """Pieces that are missing or no floats, or have too few or too many dimensions."""
        for part, pieces in self.parts.items():
            for piece, dimensions in PIECES[part].items():
                array = pieces.get(piece)
                if array is None:
                    there = next(key for (name, _), key in self.keys.items() if name == part)
                    yield Problem(there, f"has no {piece} beside it: is the file whole?")
                    continue
                right = dimensions is None or array.ndim == dimensions
                if array.dtype.kind != "f" or not right:
                    yield Problem(
                        self.keys[part, piece],
                        f"is {array.dtype} {list(array.shape)}, expected floats"
                        + ("" if right else f" in {dimensions} dimensions"),
                    )


@dataclass(slots=True)
class MoaKeys:
    """A checkpoint's tensors by what they are."""

    layers: dict[int, MoaLayer] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    harmless: list[str] = field(default_factory=list)

    def problems(self, file: str) -> Iterator[Problem]:
        """Tensors that nobody knows, layers that are missing, parts that are not whole."""
        if self.unknown:
            yield Problem(file, f"holds what MoA's adapters don't: {name_list(self.unknown)}")
        if not self.layers:
            yield Problem(file, "holds no layer of MoA: is it the right file?")
        for index in range(max(self.layers, default=-1) + 1):
            if index not in self.layers:
                yield Problem(file, f"holds nothing of layer {index}: is the file whole?")
        for layer in self.layers.values():
            yield from layer.problems()


def sort_keys(state: Mapping[str, Array], naming: Naming) -> MoaKeys:
    """The tensors of a checkpoint by their meaning."""
    keys = MoaKeys()
    pattern = re.compile(re.escape(naming.prefix) + r"(0|[1-9]\d{0,2})\.(.+)")
    for key, array in state.items():
        match = pattern.fullmatch(key)
        place = None if match is None else naming.find(match[2])
        if match is not None and place is not None:
            part, piece = place
            layer = keys.layers.setdefault(int(match[1]), MoaLayer(int(match[1])))
            layer.parts.setdefault(part, {})[piece] = array
            layer.keys[part, piece] = key
        elif match is not None and naming.harmless and naming.harmless.fullmatch(match[2]):
            keys.harmless.append(key)
        else:
            keys.unknown.append(key)
    keys.layers = dict(sorted(keys.layers.items()))
    return keys
