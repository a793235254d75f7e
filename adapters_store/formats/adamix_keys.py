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
from itertools import islice
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from adapters_store.types import Problem

Array = NDArray[Any]
Side = Literal["A", "B"]
_SHOWN = 8

_INDEX = r"(?:0|[1-9]\d{0,2})"
_LORA_KEY = re.compile(
    rf"transformer\.h\.(?P<layer>{_INDEX})\.attn\.c_attn\.(?:"
    rf"experts_lora_(?P<side>[AB])\.(?P<expert>{_INDEX})"
    r"|lora_(?P<alias>[AB])_w"
    r"|lora_expert_score_weight)"
)
_BLOCK_KEY = re.compile(rf"transformer\.h\.(?P<layer>{_INDEX})\.(?P<name>.+)")
# GPT-2's own tensors in full checkpoints, those of a block by what follows transformer.h.<i>. The
# names of sizes stand for the same number wherever they occur.
_BASE_SHAPES: Mapping[str, tuple[str, ...]] = {
    "attn.bias": ("1", "1", "context", "context"),  # the causal mask
    "attn.c_attn.weight": ("d", "3d"),
    "attn.c_attn.bias": ("3d",),
    "attn.c_proj.weight": ("d", "d"),
    "attn.c_proj.bias": ("d",),
    "mlp.c_fc.weight": ("d", "inner"),
    "mlp.c_fc.bias": ("inner",),
    "mlp.c_proj.weight": ("inner", "d"),
    "mlp.c_proj.bias": ("d",),
    **{f"ln_{n}.{part}": ("d",) for n in (1, 2) for part in ("weight", "bias")},
}
_OUTER_SHAPES: Mapping[str, tuple[str, ...]] = {
    "transformer.wte.weight": ("vocabulary", "d"),
    "transformer.wpe.weight": ("positions", "d"),
    "transformer.ln_f.weight": ("d",),
    "transformer.ln_f.bias": ("d",),
    "lm_head.decoder.weight": ("vocabulary", "d"),  # tied to wte
}


@dataclass(slots=True)
class Layer:
    """The copies of A and B of one layer by expert; sizes hold once `problems` are none."""

    where: str
    a: dict[int, Array] = field(default_factory=dict)
    b: dict[int, Array] = field(default_factory=dict)
    score: Array | None = None
    aliases: dict[Side, Array] = field(default_factory=dict)

    @property
    def num_experts(self) -> int:
        """M."""
        if self.score is not None and self.score.ndim == 1:
            return len(self.score)
        return max([0, *self.a, *self.b]) + 1

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
        given = np.zeros(self.num_experts) if self.score is None else self.score
        score = given.astype(np.float32)
        powers: Array = np.exp(score - score.max())
        weights: Array = powers / powers.sum()
        return weights

    def average(self, copies: Mapping[int, Array]) -> Array:
        """The experts' average in float32; a shared side is its only copy."""
        if len(copies) == 1:
            return np.ascontiguousarray(copies[0], dtype=np.float32)
        stacked = np.stack([copies[expert] for expert in sorted(copies)])
        with np.errstate(invalid="ignore", over="ignore"):  # the store refuses what isn't finite
            averaged = np.einsum("e,eij->ij", self.weights, stacked, dtype=np.float32)
        return np.ascontiguousarray(averaged)

    def problems(self) -> list[Problem]:
        """Everything that is wrong in this layer by itself."""
        missing = [*self._missing("A", self.a), *self._missing("B", self.b)]
        if missing:
            return missing
        return [*self._score_problems(), *self._shape_problems(), *self._alias_problems()]

    def _missing(self, side: Side, copies: Mapping[int, Array]) -> Iterator[Problem]:
        """A side holds one copy, of expert 0, or a copy for each expert."""
        name, count = f"experts_lora_{side}", self.num_experts
        if not copies:
            yield Problem(self.where, f"has no {name}: is the file whole?")
        elif copies.keys() == {0}:
            return
        elif max(copies) >= count:
            yield Problem(
                f"{self.where}.{name}.{max(copies)}",
                f"is one expert too many: there are {count} scores in lora_expert_score_weight",
            )
        elif len(copies) < count:
            absent = (f"{name}.{expert}" for expert in range(count) if expert not in copies)
            named = ", ".join(islice(absent, _SHOWN))
            left = count - len(copies) - _SHOWN
            more = f" and {left} more" if left > 0 else ""
            yield Problem(self.where, f"lacks {named}{more} of {count} experts: is the file whole?")

    def _score_problems(self) -> Iterator[Problem]:
        score = self.score
        if score is None:
            return
        where = f"{self.where}.lora_expert_score_weight"
        if score.ndim != 1 or not len(score) or score.dtype.kind != "f":
            yield Problem(where, f"is {score.dtype} {list(score.shape)}, expected a float [M]")
        elif not np.isfinite(score).all():
            yield Problem(where, "holds values that are NaN or infinite")

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
class Keys:
    """A checkpoint's tensors by what they are."""

    layers: dict[int, Layer] = field(default_factory=dict)
    base: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = field(default_factory=dict)
    base_layers: frozenset[int] = frozenset()
    unknown: list[str] = field(default_factory=list)


def sort_keys(state: Mapping[str, Array]) -> Keys:
    """Which tensor is what. Of base weights only shapes are kept: (found, expected)."""
    keys = Keys()
    blocks: set[int] = set()
    for name, array in state.items():
        lora = _LORA_KEY.fullmatch(name)
        block = _BLOCK_KEY.fullmatch(name)
        if lora is not None:
            _put(keys.layers, lora, array)
        elif block is not None and block["name"] in _BASE_SHAPES:
            blocks.add(int(block["layer"]))
            keys.base[name] = (array.shape, _BASE_SHAPES[block["name"]])
        elif name in _OUTER_SHAPES:
            keys.base[name] = (array.shape, _OUTER_SHAPES[name])
        else:
            keys.unknown.append(name)
    keys.base_layers = frozenset(blocks)
    return keys


def base_problems(
    base: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]], hidden_size: int
) -> Iterator[Problem]:
    """Base weights whose shapes don't fit a LoRA of this hidden size, or each other."""
    sizes = {"1": 1, "d": hidden_size, "3d": 3 * hidden_size}
    for name, (shape, symbols) in base.items():
        expected = symbols if len(shape) == len(symbols) else ()
        for symbol, size in zip(expected, shape, strict=False):
            sizes.setdefault(symbol, size)
        if shape != tuple(sizes[symbol] for symbol in expected):
            wanted = [sizes.get(symbol, symbol) for symbol in symbols]
            yield Problem(
                name, f"has shape {list(shape)}, but the LoRA is for a GPT-2 with {wanted}"
            )


def _put(layers: dict[int, Layer], match: re.Match[str], array: Array) -> None:
    index = int(match["layer"])
    layer = layers.setdefault(index, Layer(f"transformer.h.{index}.attn.c_attn"))
    if match["side"] is not None:
        copies = layer.a if match["side"] == "A" else layer.b
        copies[int(match["expert"])] = array
    elif match["alias"] is not None:
        layer.aliases[cast(Side, match["alias"])] = array
    else:
        layer.score = array
