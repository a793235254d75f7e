"""MoA's own implementation on Meta's Llama -> our own format.

A folder holds adapter_params.json and adapter.pth, a pickle that no store opens: whoever opens one
brings its tensors here. Which experts a layer has stands in the params, as spans of layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from adaptermix.training.importing.moa.building import Convention, build, half_split_rows, refuse
from adaptermix.training.importing.moa.keys import (
    GATE_ORDER,
    LINEAR,
    PARALLEL,
    PROMPT,
    SWIGLU,
    THRESHOLD,
    Array,
    MoaKeys,
    MoaLayer,
    Naming,
    sort_keys,
)
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from adapters_store.formats.config_files import parse_flat_config
from adapters_store.formats.native import NativeAdapter
from adapters_store.problems import name_list
from adapters_store.types import AdapterManifest, Problem

PARAMS_FILE = "adapter_params.json"
TENSOR_FILE = "adapter.pth"

_TARGETS = {
    **{part: part for part in ("Q", "K", "V", "O")},
    **{f"FFN_{part}": part for part in ("UP", "GATE", "DOWN")},
}
_NAMING = Naming(
    prefix="llama.layers.",
    parts={
        **{part: f"attention.lora_{part}." for part in ("Q", "K", "V", "O")},
        **{part: f"feed_forward.lora_{part}." for part in ("UP", "GATE", "DOWN")},
        PROMPT: "attention.prompt.",
        PARALLEL: "p_adapter.",
        LINEAR: "adapter_type_router.",
        SWIGLU: "adapter_type_router.",
        THRESHOLD: "adapter_threshold_fn.",
    },
)
_SPAN = re.compile(r"\s*(\d{1,4})\s*-\s*(\d{1,4})\s*")
_NOISE = re.compile(r"adapter_\w*nois\w*\.(weight|bias)")


class _Params(BaseModel):
    """Every key of adapter_params.json."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    lora_layers: str
    lora_rank: Annotated[int, Field(gt=0)]
    lora_targets: str
    lora_alpha: float
    swi_x: Annotated[int, Field(ge=0)]
    p_adapter_layers: str
    p_adapter_size: int
    prompt_layers: str
    prompt_len: int
    max_threshold: Annotated[float, Field(ge=0, le=1)] | None = None  # of sparse alone
    const_threshold: bool = False
    expert_num: int = 1
    w_bias: bool = False
    bf16: bool = True
    adapter_noisy: bool = False
    bool_weights: bool = False
    # Of one expert a kind nothing is shared or weighed; the others change no result.
    hydra_moe: Any = None
    p_adapter_hydra: Any = None
    expert_weight: Any = None
    max_seq_len: Any = None
    flash_attention2: Any = None

    @property
    def is_sparse(self) -> bool:
        return self.max_threshold is not None


@dataclass(frozen=True, slots=True)
class Heads:
    """Of the base's attention: queries, and keys and values; None where nobody said."""

    query: int | None = None
    key_value: int | None = None


def convert(params: Mapping[str, Any], state: Mapping[str, Array], heads: Heads) -> NativeAdapter:
    """The adapter that a folder's params and tensors are, for a base in Hugging Face's layout.

    The scale of every LoRA is lora_alpha / lora_rank, the router reads the layer's input before its
    norm, and the rows of B of queries and keys are put in the order of the base's rotation. Raises
    InvalidAdapterError with every problem.
    """
    said = parse_flat_config(_Params, params, PARAMS_FILE)
    refuse(_unsupported(said))
    keys = sort_keys(state, replace(_NAMING, harmless=_NOISE if said.adapter_noisy else None))
    refuse(keys.problems(TENSOR_FILE))
    refuse(_span_problems(said, keys))
    refuse(_order_rows(keys, heads))
    convention = Convention(
        said.lora_alpha / said.lora_rank, "pre_norm", said.max_threshold, said.const_threshold
    )
    made = build(keys, convention)
    refuse(_size_problems(said, made.manifest, heads))
    return replace(made, notes=tuple(_notes(said, keys)))


def _unsupported(said: _Params) -> Iterator[Problem]:
    if said.expert_num > 1:
        yield Problem(
            f"{PARAMS_FILE}: expert_num",
            f"is {said.expert_num}: several experts of one kind with a router of their own are not "
            "supported; train with 1",
        )
    if said.w_bias:
        yield Problem(
            f"{PARAMS_FILE}: w_bias",
            "is true: trained biases of the base's layers are not supported; train with false",
        )
    if said.const_threshold and not said.is_sparse:
        yield Problem(
            f"{PARAMS_FILE}: const_threshold", "is true without max_threshold, its value: give it"
        )
    for key in ("lora_layers", "p_adapter_layers", "prompt_layers"):
        if _span(getattr(said, key)) is None:
            yield Problem(
                f"{PARAMS_FILE}: {key}",
                f"is {getattr(said, key)!r}: give spans of layers without their end, as 0-8,24-32",
            )
    unknown = [name for name in _targets(said) if name not in _TARGETS]
    if unknown:
        yield Problem(
            f"{PARAMS_FILE}: lora_targets",
            f"names {name_list(unknown)}: targets are {', '.join(_TARGETS)}",
        )


def _targets(said: _Params) -> list[str]:
    return [name.strip() for name in said.lora_targets.split(",") if name.strip()]


def _span(text: str) -> frozenset[int] | None:
    """The layers of half-open spans such as 0-8,24-32; None where it is no such text."""
    layers: set[int] = set()
    for part in filter(None, text.split(",")):
        match = _SPAN.fullmatch(part)
        if match is None or int(match[1]) > int(match[2]):
            return None
        layers.update(range(int(match[1]), int(match[2])))
    return frozenset(layers)


def _span_problems(said: _Params, keys: MoaKeys) -> Iterator[Problem]:
    """Each layer must have exactly the experts that the params give it."""
    wanted: dict[int, set[str]] = {}
    spans = {
        **{_TARGETS[name]: said.lora_layers for name in _targets(said)},
        PARALLEL: said.p_adapter_layers,
        PROMPT: said.prompt_layers,
    }
    for part, text in spans.items():
        for index in _span(text) or ():
            wanted.setdefault(index, set()).add(part)
    for index in sorted(wanted.keys() | keys.layers.keys()):
        layer = keys.layers.get(index, MoaLayer(index))
        ours, theirs = wanted.get(index, set()), set(layer.experts)
        where = f"{_NAMING.prefix}{index}"
        if ours - theirs:
            named = ", ".join(part for part in GATE_ORDER if part in ours - theirs)
            yield Problem(where, f"lacks {named}, which {PARAMS_FILE} gives it")
        if theirs - ours:
            named = ", ".join(part for part in GATE_ORDER if part in theirs - ours)
            yield Problem(where, f"has {named}, which {PARAMS_FILE} does not give it")
        if THRESHOLD in layer.parts and not said.is_sparse:
            yield Problem(
                where, f"has an adapter_threshold_fn, but {PARAMS_FILE} has no max_threshold"
            )


def _order_rows(keys: MoaKeys, heads: Heads) -> list[Problem]:
    """Put the rows of B of queries and keys in the order of halves, in place; why that fails."""
    problems = []
    for part, option, count in (
        ("Q", "--heads", heads.query),
        ("K", "--kv-heads", heads.key_value),
    ):
        layers = [layer for layer in keys.layers.values() if part in layer.parts]
        if not layers:
            continue
        if count is None or count < 1:
            problems.append(
                Problem(
                    option,
                    f"is {'missing' if count is None else count}: rows of lora_{part}.lora_B are "
                    "ordered anew in each head, so give the base's number of heads, or its "
                    "checkpoint by --base",
                )
            )
            continue
        for layer in layers:
            problems += _order_rows_of(layer, part, option, count)
    return problems


def _order_rows_of(layer: MoaLayer, part: str, option: str, heads: int) -> list[Problem]:
    b = layer.parts[part]["lora_B.weight"]
    if len(b) % (2 * heads):
        where = layer.keys[part, "lora_B.weight"]
        message = f"has {len(b)} rows, which {heads} heads ({option}) of even size cannot have"
        return [Problem(where, message)]
    layer.parts[part]["lora_B.weight"] = half_split_rows(b, heads)
    return []


def _size_problems(said: _Params, manifest: AdapterManifest, heads: Heads) -> Iterator[Problem]:
    for expert in manifest.experts:
        if isinstance(expert, LoraExpertSpec):
            yield from _unlike(expert.site, "lora_rank", said.lora_rank, expert.rank)
        elif isinstance(expert, PromptExpertSpec):
            yield from _unlike(expert.site, "prompt_len", said.prompt_len, expert.length)
            if heads.query is not None and expert.heads != heads.query:
                yield Problem(
                    expert.site, f"has {expert.heads} heads, but --heads is {heads.query}"
                )
        elif isinstance(expert, BottleneckExpertSpec):
            yield from _unlike(expert.site, "p_adapter_size", said.p_adapter_size, expert.size)
    for router in manifest.routers:
        if router.hidden != said.swi_x * router.outputs:
            yield Problem(
                f"router of {router.layer}",
                f"is {router.kind} with hidden size {router.hidden} for {router.outputs} gates, "
                f"but {PARAMS_FILE} says swi_x {said.swi_x}",
            )


def _unlike(where: str, key: str, stated: int, actual: int) -> Iterator[Problem]:
    if stated != actual:
        yield Problem(where, f"has {key} {actual} by its tensors, but {PARAMS_FILE} says {stated}")


def _notes(said: _Params, keys: MoaKeys) -> Iterator[str]:
    for key in ("bool_weights", "adapter_noisy"):
        if getattr(said, key):
            yield f"{key} has no effect: the published code does not use it"
    if keys.harmless:
        yield f"left out, as nothing uses them: {name_list(keys.harmless)}"
    if said.const_threshold and any(THRESHOLD in layer.parts for layer in keys.layers.values()):
        yield "left out, as the threshold is constant: adapter_threshold_fn of every layer"
    empty = [str(layer.index) for layer in keys.layers.values() if not layer.experts]
    if empty:
        yield f"layers without experts, whose routers are left out: {', '.join(empty)}"
    if not said.bf16 and not said.is_sparse:
        yield "the original clamps what layers put out at 65500 without bf16; here nothing does"
