"""The contract of an expert's spec, and checks that several kinds share."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Literal, Protocol

from adapters_store.base_model import BaseModelSpec
from adapters_store.limits import StoreLimits
from adapters_store.near_names import near_names
from adapters_store.problems import Problem

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Shape = tuple[int, ...]

HINTS = 3  # near names of one unknown name
_SUM_TOLERANCE = 1e-4  # of the weights of copies
_MOST_SCALE = 3.4e38  # float32


class ExpertSpec(Protocol):
    """One trainable piece that acts at one place: a frozen dataclass for each kind, without torch.

    Its fields are what manifests hold of it, in JSON; a field `kind` with the kind's name as its
    only value, and fields `module` and `gate`, are among them.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def kind(self) -> str:
        """The name of the kind, as in the entry point that adds it."""
        ...

    @property
    def module(self) -> str:
        """The path of the module at which it acts: "model.layers.0.mlp"."""
        ...

    @property
    def gate(self) -> int | None:
        """The output of its layer's gating network that multiplies it; None: no gate."""
        ...

    @property
    def site(self) -> str:
        """The place whose rank rows it takes: for LoRA the module, else module + "#" + a word."""
        ...

    @property
    def rows(self) -> int:
        """Rank rows that it takes there."""
        ...

    def row_widths(self, base: BaseModelSpec) -> tuple[int, ...]:
        """Numbers of one of them on the device: in A, in B, and in what is float32 besides.

        All 0 where it cannot act in `base`.
        """
        ...

    @property
    def extras(self) -> str | None:
        """Its part beyond plain LoRA, in words that go on "it has ..."; None without one."""
        ...

    @property
    def tensor_shapes(self) -> Mapping[str, Shape]:
        """The keys that it names in the adapter's safetensors, and their tensors' shapes."""
        ...

    def problems(self, limits: StoreLimits) -> Iterator[Problem]:
        """Numbers of its own that cannot be, whatever the base."""
        ...

    def misfits(self, base: BaseModelSpec, hints: int) -> Iterator[Problem]:
        """The reasons why it cannot act in `base`; at most `hints` near names for unknown ones."""
        ...


@dataclass(frozen=True, slots=True)
class Copies:
    """Trained copies of one expert's two sides that are kept apart (AdaMix).

    down, up: the weights of the copies in their average, one a copy, which add up to 1; a side that
    all copies share has one. The tensors of a side then have the copies as a leading dimension.
    Source: Wang et al., "AdaMix" (2022), section 3.
    """

    down: tuple[float, ...]
    up: tuple[float, ...]

    def problems(self, where: str) -> Iterator[Problem]:
        """Weights that are none, no numbers, or add up to something else."""
        for side, weights in (("down", self.down), ("up", self.up)):
            name = f"copies.{side}"
            if not weights:
                yield Problem(
                    where, f"{name} is empty: give a weight for each copy, [1] where shared"
                )
            elif not all(map(math.isfinite, weights)):
                yield Problem(where, f"{name} holds weights that are NaN or infinite")
            elif abs(math.fsum(weights) - 1) > _SUM_TOLERANCE:
                total = math.fsum(weights)
                yield Problem(where, f"{name} adds up to {total:g}: weights add up to 1")


def copies_of(expert: ExpertSpec) -> Copies | None:
    """Its copies; None for one that has none, and for those of kinds that never have any."""
    copies: Copies | None = getattr(expert, "copies", None)
    return copies


def leading(copies: Copies | None) -> tuple[Shape, Shape]:
    """The leading dimensions of the tensors of the way down and of the way up."""
    return ((), ()) if copies is None else ((len(copies.down),), (len(copies.up),))


def size_problems(where: str, sizes: Mapping[str, int]) -> Iterator[Problem]:
    """Sizes that are not above 0, by their names."""
    for name, size in sizes.items():
        if size <= 0:
            yield Problem(where, f"has {name} {size}: give a number above 0")


def rank_problems(where: str, sizes: Mapping[str, int], limits: StoreLimits) -> Iterator[Problem]:
    """As `size_problems`; the first of them is bounded as a rank."""
    yield from size_problems(where, sizes)
    name, size = next(iter(sizes.items()))
    if size > limits.max_rank:
        yield Problem(where, f"has {name} {size}, at most {limits.max_rank} is accepted")


def scale_problems(where: str, scale: float) -> Iterator[Problem]:
    """A scale that float32 cannot hold."""
    if not abs(scale) <= _MOST_SCALE:
        yield Problem(where, f"has scale {scale:g}: give a finite number that float32 holds")


def place_misfits(
    where: str, path: str, noun: str, paths: Collection[str], base: BaseModelSpec, hints: int
) -> Iterator[Problem]:
    """A path that is none of `paths`, the base's modules of the kind that `noun` names."""
    if path not in paths:
        near = near_names(path, paths, most=hints) if hints else []
        yield Problem(where, f"{path} is no {noun} of {named(base)}{hint(near)}")


def width_misfits(where: str, features: int, base: BaseModelSpec) -> Iterator[Problem]:
    """Another width than that of the base's hidden states."""
    if features != base.hidden_size:
        yield Problem(
            where,
            f"has {features} features in the adapter, but {base.hidden_size} in {named(base)}",
        )


def linear_misfits(
    module: str, in_features: int | None, out_features: int, base: BaseModelSpec, hints: int
) -> Iterator[Problem]:
    """A module that is no linear layer of the base, or one of other widths; None: any width."""
    shape = base.linears.get(module)
    if shape is None:
        yield Problem(module, _unknown_linear(module, base, hints))
        return
    wanted = (shape.in_features if in_features is None else in_features, out_features)
    if (shape.in_features, shape.out_features) != wanted:
        yield Problem(
            module,
            f"is [out {out_features}, in {wanted[0]}] in the adapter, but "
            f"[out {shape.out_features}, in {shape.in_features}] in {named(base)}",
        )


def named(base: BaseModelSpec) -> str:
    """The base's name in problems."""
    return f"{base.name} ({base.architecture})"


def hint(near: list[str]) -> str:
    """Near names as the end of a message; empty where there are none."""
    return f"; near names: {', '.join(near)}" if near else ""


def _unknown_linear(module: str, base: BaseModelSpec, hints: int) -> str:
    if module in base.other_modules:
        return f"is no linear layer of {base.name}: LoRA works on linear layers only"
    return f"is no module of {named(base)}{hint(_near_linears(module, base, hints))}"


def _near_linears(module: str, base: BaseModelSpec, hints: int) -> list[str]:
    """Names that look alike, sought among those that end alike: a model has thousands."""
    if not hints:
        return []
    last = module.rpartition(".")[2]
    alike = [name for name in base.linears if name.rpartition(".")[2] == last]
    return near_names(module, alike or list(base.linears), most=hints)
