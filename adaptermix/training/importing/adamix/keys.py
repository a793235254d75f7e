"""The keys of an AdaMix LoRA checkpoint: which layer and expert each belongs to, and its shape.

With d the hidden size, r the rank of q and of v, M the number of experts, the keys of layer i are
`transformer.h.<i>.attn.c_attn.` and then `experts_lora_A.<e>` [2r, d], `experts_lora_B.<e>` [2d, r]
or `lora_expert_score_weight` [M]. `lora_A_w` or `lora_B_w` is a stray: where all experts share a
side, the trainer's first evaluation registers that side's only copy once more, under this name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from adaptermix.training.importing.adamix.base_tensors import INDEX, BaseTensors
from adaptermix.training.importing.adamix.copies import (
    copy_weights,
    count_copies,
    missing_copies,
    score_problems,
)
from adapters_store.types import Problem

Array = NDArray[Any]
Side = Literal["A", "B"]
_SCORES = "lora_expert_score_weight"

_LORA_KEY = re.compile(
    rf"transformer\.h\.(?P<layer>{INDEX})\.attn\.c_attn\.(?:"
    rf"experts_lora_(?P<side>[AB])\.(?P<expert>{INDEX})"
    r"|lora_(?P<alias>[AB])_w"
    rf"|{_SCORES})"
)


@dataclass(slots=True)
class AdamixLayer:
    """The copies of A and B of one layer by expert; sizes hold once `problems` are none."""

    where: str
    a: dict[int, Array] = field(default_factory=dict)
    b: dict[int, Array] = field(default_factory=dict)
    score: Array | None = None
    aliases: dict[Side, Array] = field(default_factory=dict)

    @property
    def num_experts(self) -> int:
        """M."""
        return count_copies(self.score, self.a, self.b)

    @property
    def rank(self) -> int:
        """r, of q and of v each."""
        return int(self.b[0].shape[1])

    @property
    def hidden_size(self) -> int:
        """d."""
        return int(self.a[0].shape[1])

    @property
    def sizes(self) -> str:
        """Everything in which layers must agree, for people."""
        return (
            f"M = {self.num_experts}, {len(self.a)} of A, {len(self.b)} of B, r = {self.rank}, "
            f"d = {self.hidden_size}, {'no scores' if self.score is None else 'scores'}"
        )

    @property
    def weights(self) -> Array:
        """softmax(score) [M] in float32; 1/M where there are no scores."""
        return copy_weights(self.score, self.num_experts)

    def problems(self) -> list[Problem]:
        """Everything that is wrong in this layer by itself."""
        missing = [*self._missing("A", self.a), *self._missing("B", self.b)]
        if missing:
            return missing
        scores = score_problems(f"{self.where}.{_SCORES}", self.score)
        return [*scores, *self._shape_problems(), *self._alias_problems()]

    def _missing(self, side: Side, copies: Mapping[int, Array]) -> Iterator[Problem]:
        names = f"experts_lora_{side}.{{}}"
        return missing_copies(self.where, names, copies, self.num_experts, scores=_SCORES)

    def _shape_problems(self) -> Iterator[Problem]:
        a, b = self.a[0], self.b[0]
        rank = b.shape[1] if b.ndim == 2 else 0
        width = a.shape[1] if a.ndim == 2 else 0
        sides = (("A", self.a, (2 * rank, width)), ("B", self.b, (2 * width, rank)))
        for side, copies, expected in sides:
            for expert, array in sorted(copies.items()):
                if array.dtype.kind != "f" or 0 in array.shape or array.shape != expected:
                    yield Problem(
                        f"{self.where}.experts_lora_{side}.{expert}",
                        f"is {array.dtype} {list(array.shape)}, expected floats in A [2r, d] and "
                        f"B [2d, r], LoRA on q and v alone; here B gives r = {rank}, A d = {width}",
                    )

    def _alias_problems(self) -> Iterator[Problem]:
        for side, alias in self.aliases.items():
            copies = self.a if side == "A" else self.b
            if len(copies) > 1 or not np.array_equal(alias, copies[0], equal_nan=True):
                yield Problem(
                    f"{self.where}.lora_{side}_w",
                    f"is no copy of a shared experts_lora_{side}.0: the trainer writes it as one, "
                    "so the file was changed",
                )


@dataclass(slots=True)
class AdamixKeys:
    """A checkpoint's tensors by what they are."""

    layers: dict[int, AdamixLayer] = field(default_factory=dict)
    base: BaseTensors = field(default_factory=BaseTensors)


def sort_keys(state: Mapping[str, Array]) -> AdamixKeys:
    """The tensors of a checkpoint by their meaning. Of base weights only shapes are kept."""
    keys = AdamixKeys()
    for name, array in state.items():
        lora = _LORA_KEY.fullmatch(name)
        if lora is not None:
            _put(keys.layers, lora, array)
        else:
            keys.base.add(name, array)
    return keys


def _put(layers: dict[int, AdamixLayer], match: re.Match[str], array: Array) -> None:
    index = int(match["layer"])
    layer = layers.setdefault(index, AdamixLayer(f"transformer.h.{index}.attn.c_attn"))
    if match["side"] is not None:
        copies = layer.a if match["side"] == "A" else layer.b
        copies[int(match["expert"])] = array
    elif match["alias"] is not None:
        layer.aliases[cast(Side, match["alias"])] = array
    else:
        layer.score = array
