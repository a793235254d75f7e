"""The bottleneck variant of an AdaMix checkpoint of GPT-2 -> serial bottlenecks of our own format.

AdaMix (https://arxiv.org/abs/2205.12410) trains M copies ("experts") of a bottleneck's two sides
after each feed-forward module, u -> u + B gelu(A u + a) + b with GELU's tanh form, and serves their
average: A and a by the softmax of their scores, B and b by that of theirs. With d the hidden size
and r the bottleneck's, the keys of layer i are `transformer.h.<i>.mlp.ExpertSoup.` and then
`MoA_A.deepspeed_experts.<e>.weight` [r, d] and `.bias` [r], `MoA_B.deepspeed_experts.<e>.weight`
[d, r] and `.bias` [d], and `expert_score_weight` [M] or [1] of each side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptermix.training.importing.adamix.base_tensors import INDEX, BaseTensors
from adaptermix.training.importing.adamix.copies import (
    average,
    copy_weights,
    count_copies,
    missing_copies,
    score_problems,
    stacked,
    weights_of,
)
from adaptermix.training.importing.adamix.state import STATE, check_layers, refusal
from adapters_store.expert_kinds.base import Copies
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.formats.native import FORMAT, NativeAdapter
from adapters_store.problems import name_list
from adapters_store.types import AdapterManifest, Problem

Array = NDArray[Any]

_SCORES = "expert_score_weight"
_KEY = re.compile(
    rf"transformer\.h\.(?P<layer>{INDEX})\.mlp\.ExpertSoup\.MoA_(?P<way>[AB])\.(?:"
    rf"deepspeed_experts\.(?P<expert>{INDEX})\.(?P<piece>weight|bias)|{_SCORES})"
)


@dataclass(slots=True)
class Side:
    """The copies of one side of one layer, A and a or B and b, by expert."""

    where: str
    matrices: dict[int, Array] = field(default_factory=dict)
    biases: dict[int, Array] = field(default_factory=dict)
    score: Array | None = None

    @property
    def num_experts(self) -> int:
        """M, or 1 where all experts share it."""
        return count_copies(self.score, self.matrices, self.biases)

    @property
    def weights(self) -> Array:
        """softmax(score) [M] in float32; 1/M where there are no scores."""
        return copy_weights(self.score, self.num_experts)

    @property
    def copy_weights(self) -> tuple[float, ...]:
        """The same by copy: a shared side has one."""
        return weights_of(self.matrices, self.weights)

    def missing(self) -> Iterator[Problem]:
        """Copies that are not there."""
        for piece, copies in (("weight", self.matrices), ("bias", self.biases)):
            names = f"deepspeed_experts.{{}}.{piece}"
            yield from missing_copies(self.where, names, copies, self.num_experts, scores=_SCORES)
        if len(self.matrices) != len(self.biases):
            yield Problem(
                self.where,
                f"has {len(self.matrices)} weights and {len(self.biases)} biases: is the file "
                "whole?",
            )

    def wrong(self, shape: tuple[int, int]) -> Iterator[Problem]:
        """Scores, dtypes and shapes that cannot be."""
        yield from score_problems(f"{self.where}.{_SCORES}", self.score)
        pieces = (("weight", self.matrices, shape), ("bias", self.biases, shape[:1]))
        for piece, copies, expected in pieces:
            for expert, array in sorted(copies.items()):
                if array.dtype.kind != "f" or 0 in array.shape or array.shape != expected:
                    yield Problem(
                        f"{self.where}.deepspeed_experts.{expert}.{piece}",
                        f"is {array.dtype} {list(array.shape)}, expected floats {list(expected)}",
                    )


@dataclass(slots=True)
class AdamixBottleneckLayer:
    """Both sides of one layer; sizes hold once `problems` are none."""

    where: str  # the feed-forward module
    a: Side
    b: Side

    @classmethod
    def of(cls, index: int) -> AdamixBottleneckLayer:
        where = f"transformer.h.{index}.mlp"
        soup = f"{where}.ExpertSoup"
        return cls(where, Side(f"{soup}.MoA_A"), Side(f"{soup}.MoA_B"))

    @property
    def size(self) -> int:
        """r."""
        return int(self.a.matrices[0].shape[0])

    @property
    def hidden_size(self) -> int:
        """d."""
        return int(self.a.matrices[0].shape[1])

    @property
    def sizes(self) -> str:
        """Everything in which layers must agree, for people."""
        return (
            f"{len(self.a.matrices)} of A, {len(self.b.matrices)} of B, r = {self.size}, "
            f"d = {self.hidden_size}"
        )

    def problems(self) -> list[Problem]:
        """Everything that is wrong in this layer by itself."""
        missing = [*self.a.missing(), *self.b.missing()]
        if missing:
            return missing
        first = self.a.matrices[0]
        size, width = first.shape if first.ndim == 2 else (0, 0)
        return [*self.a.wrong((size, width)), *self.b.wrong((width, size))]


@dataclass(frozen=True, slots=True)
class AdamixBottleneck:
    """The bottleneck variant, by layers."""

    layers: tuple[AdamixBottleneckLayer, ...]

    @property
    def copies_a(self) -> int:
        """M, or 1 where all experts share the way down."""
        return len(self.layers[0].a.matrices)

    @property
    def copies_b(self) -> int:
        """M, or 1 where all experts share the way up."""
        return len(self.layers[0].b.matrices)

    @property
    def weighted(self) -> bool:
        """Whether some scores differ, so that the average isn't the mean."""
        sides = (side for layer in self.layers for side in (layer.a, layer.b))
        return any(np.ptp(side.weights) > 0 for side in sides)

    @property
    def size(self) -> int:
        """r."""
        return self.layers[0].size

    def native(self, *, keep_copies: bool) -> NativeAdapter:
        """A serial bottleneck a layer, averaged or with its copies as the leading dimension."""
        experts = []
        tensors: dict[str, Array] = {}
        for layer in self.layers:
            copies = Copies(layer.a.copy_weights, layer.b.copy_weights)
            expert = BottleneckExpertSpec(
                module=layer.where,
                placement="serial",
                size=self.size,
                features=layer.hidden_size,
                activation="gelu_tanh",
                tensor_down=f"{layer.where}.serial.down_proj.weight",
                tensor_up=f"{layer.where}.serial.up_proj.weight",
                tensor_down_bias=f"{layer.where}.serial.down_proj.bias",
                tensor_up_bias=f"{layer.where}.serial.up_proj.bias",
                copies=copies if keep_copies else None,
            )
            experts.append(expert)
            for way, side in (("down", layer.a), ("up", layer.b)):
                name = f"{layer.where}.serial.{way}_proj"
                tensors[f"{name}.weight"] = _one(side.matrices, side, keep_copies=keep_copies)
                tensors[f"{name}.bias"] = _one(side.biases, side, keep_copies=keep_copies)
        return NativeAdapter(AdapterManifest(FORMAT, tuple(experts)), tensors)


def read_bottlenecks(state: Mapping[str, Array]) -> AdamixBottleneck:
    """The bottlenecks of a checkpoint's tensors, named as `state_of` gives them.

    Base weights beside them, as in full checkpoints, are left out once their shapes agree. Values
    that aren't finite stay: the store refuses them. Raises InvalidAdapterError with every problem
    found: unknown tensors, missing layers or experts, shapes, layers that disagree.
    """
    layers: dict[int, AdamixBottleneckLayer] = {}
    base = BaseTensors()
    for name, array in state.items():
        match = _KEY.fullmatch(name)
        if match is None:
            base.add(name, array)
            continue
        index = int(match["layer"])
        layer = layers.setdefault(index, AdamixBottleneckLayer.of(index))
        side = layer.a if match["way"] == "A" else layer.b
        if match["expert"] is None:
            side.score = array
        elif match["piece"] == "weight":
            side.matrices[int(match["expert"])] = array
        else:
            side.biases[int(match["expert"])] = array
    if not layers:
        raise refusal(STATE, f"holds no AdaMix bottlenecks; it holds {name_list(state)}")
    check_layers(layers, base, "bottlenecks", "ExpertSoup")
    return AdamixBottleneck(tuple(layers[index] for index in sorted(layers)))


def _one(copies: Mapping[int, Array], side: Side, *, keep_copies: bool) -> Array:
    return stacked(copies) if keep_copies else average(copies, side.weights)
