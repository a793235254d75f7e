"""AdaMix LoRA checkpoints of GPT-2 -> one ordinary LoRA on the fused c_attn, as arrays.

AdaMix (https://arxiv.org/abs/2205.12410) trains M copies ("experts") of LoRA's A and B in each
layer and serves their average: w = softmax(score), A = sum_e w_e A_e, B = sum_e w_e B_e, each layer
by itself, A and B apart. A side that all experts share has one copy. This is no format of uploads:
the checkpoints are pickles, which no store opens. Whoever opens one brings its tensors here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters_store.errors import InvalidAdapterError
from adapters_store.formats.adamix_keys import Layer, base_problems, sort_keys
from adapters_store.types import Problem
from adapters_store.validation import shortened

Array = NDArray[Any]

STATE = "model_state_dict"
_PREFIX = "module."  # of keys that a data parallel model saved
_BOTTLENECK = ("deepspeed_experts", "ExpertSoup")
_TRAIN_LORA = "train the LoRA variant on GPT-2 (NLG, adamix_only=0), which can be imported"
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class AdamixLora:
    """A checkpoint with its experts averaged.

    `layers[i]` is (A [2r, d], B [2d, r]) of layer i in float32. Rows 0..r-1 of A and 0..d-1 of B
    serve q, the others v; k has no LoRA.
    """

    rank: int  # r, of q and of v
    hidden_size: int  # d
    copies_a: int  # M, or 1 where all experts share A
    copies_b: int
    weighted: bool  # whether some scores differ, so that the average isn't the mean
    layers: tuple[tuple[Array, Array], ...]

    def peft_tensors(self) -> dict[str, Array]:
        """The same as one LoRA of rank 2r on each c_attn: A [2r, d], B [3d, 2r], by PEFT's keys.

        B is zero but for the block of q, [0:d, 0:r], and that of v, [2d:3d, r:2r].
        """
        r, d = self.rank, self.hidden_size
        tensors: dict[str, Array] = {}
        for index, (a, b) in enumerate(self.layers):
            fused = np.zeros((3 * d, 2 * r), dtype=np.float32)
            fused[:d, :r] = b[:d]
            fused[2 * d :, r:] = b[d:]
            module = f"base_model.model.transformer.h.{index}.attn.c_attn"
            tensors[f"{module}.lora_A.weight"] = a
            tensors[f"{module}.lora_B.weight"] = fused
        return tensors

    def peft_config(self, alpha: float) -> dict[str, Any]:
        """adapter_config.json. The scale stays alpha / r, as 2 alpha / 2r."""
        doubled = 2 * alpha
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None,  # the checkpoint doesn't say
            "r": 2 * self.rank,
            "lora_alpha": int(doubled) if doubled.is_integer() else doubled,
            "lora_dropout": 0.0,
            "target_modules": ["c_attn"],
            "fan_in_fan_out": True,
            "bias": "none",
            "inference_mode": True,
        }


def checked_alpha(alpha: float | None) -> float:
    """The numerator of the scale, which no checkpoint holds. Raises InvalidAdapterError."""
    if alpha is None:
        raise _refusal(
            "--alpha",
            "is missing: the scale is alpha / r, and the checkpoint does not hold alpha. Give what "
            "it was trained with: 32 in the published scripts, 128 where the trainer's own "
            "--lora_alpha was left at its default",
        )
    if not math.isfinite(alpha) or alpha <= 0:
        raise _refusal("--alpha", f"is {alpha:g}: give a number above 0, 32 in the published runs")
    return float(alpha)


def state_of(checkpoint: object) -> Mapping[str, object]:
    """The tensors by name out of what the file holds, {"model_state_dict": tensors by name}.

    Names come without the prefix "module.". Raises InvalidAdapterError, also for AdaMix checkpoints
    of the bottleneck variants.
    """
    if not isinstance(checkpoint, Mapping):
        raise _refusal(
            "checkpoint",
            f"holds a {type(checkpoint).__name__}; expected a dict with the entry {STATE!r}",
        )
    state = checkpoint.get(STATE, checkpoint)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise _refusal(STATE, "is no dict of tensors by name")
    _refuse_bottlenecks(state)
    if STATE not in checkpoint:
        raise _refusal(
            "checkpoint",
            f"has no entry {STATE!r} (it holds {_some(checkpoint)}): expected a file that AdaMix's "
            "GPT-2 training saved, model.<step>.pt or model.final.pt",
        )
    others = [name for name in checkpoint if name != STATE]
    if others:
        raise _refusal("checkpoint", f"holds {_some(others)} beside {STATE!r}: save that alone")
    named = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    twice = [name for name in named if name in state and _PREFIX + name in state]
    if twice:
        raise _refusal(STATE, f"holds {_some(twice)} both with and without {_PREFIX!r}")
    return named


def average(state: Mapping[str, Array]) -> AdamixLora:
    """One LoRA a layer out of a checkpoint's tensors, named as `state_of` gives them.

    Base weights beside them, as in full checkpoints, are left out once their shapes agree with the
    LoRA's. Values that aren't finite stay: the store refuses them. Raises InvalidAdapterError with
    every problem found: unknown tensors, missing layers or experts, shapes, layers that disagree.
    """
    keys = sort_keys(state)
    if not keys.layers:
        raise _refusal(
            STATE,
            "holds no AdaMix LoRA (transformer.h.<i>.attn.c_attn.experts_lora_A.<e> and _B.<e>); "
            f"it holds {_some(state)}",
        )
    problems: list[Problem] = []
    if keys.unknown:
        problems.append(
            Problem(STATE, f"holds what GPT-2 and its AdaMix LoRA don't: {_some(keys.unknown)}")
        )
    for layer in keys.layers.values():
        problems += layer.problems()
    problems += _missing_layers(keys.layers, keys.base_layers)
    if not problems:
        problems += _disagreements(keys.layers)
    first = keys.layers[min(keys.layers)]
    if not problems:
        problems += base_problems(keys.base, first.hidden_size)
    if problems:
        raise InvalidAdapterError(shortened(problems))
    ordered = [keys.layers[index] for index in sorted(keys.layers)]
    return AdamixLora(
        rank=first.rank,
        hidden_size=first.hidden_size,
        copies_a=len(first.a),
        copies_b=len(first.b),
        weighted=any(np.ptp(layer.weights) > 0 for layer in ordered),
        layers=tuple((layer.average(layer.a), layer.average(layer.b)) for layer in ordered),
    )


def _refuse_bottlenecks(names: Mapping[str, object]) -> None:
    found = [name for name in names if any(mark in name for mark in _BOTTLENECK)]
    if not found:
        return
    if any("transformer.h." in name for name in found):
        raise _refusal(
            STATE,
            f"holds AdaMix bottleneck adapters ({_some(found)}), which are not supported: "
            + _TRAIN_LORA,
        )
    raise _refusal(
        "checkpoint",
        f"is an AdaMix checkpoint of an encoder that classifies (GLUE; {_some(found)}), which no "
        f"model that generates can run: {_TRAIN_LORA}",
    )


def _missing_layers(layers: Mapping[int, Layer], base_layers: frozenset[int]) -> Iterator[Problem]:
    expected = set(range(max(layers) + 1)) | base_layers
    for index in sorted(expected - layers.keys()):
        yield Problem(
            f"transformer.h.{index}.attn.c_attn",
            "has no experts_lora_A and experts_lora_B, though other layers do: is the file whole?",
        )


def _disagreements(layers: Mapping[int, Layer]) -> Iterator[Problem]:
    """Layers are copies of one block, so all have the same sizes."""
    first = layers[min(layers)]
    for layer in layers.values():
        if layer.sizes != first.sizes:
            yield Problem(
                layer.where,
                f"has {layer.sizes}, but {first.where} has {first.sizes}: all layers "
                "must have the same",
            )


def _refusal(where: str, message: str) -> InvalidAdapterError:
    return InvalidAdapterError([Problem(where, message)])


def _some(names: Iterable[object]) -> str:
    """The first names, and how many more there are."""
    listed = sorted(map(str, names))
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return (", ".join(listed[:_SHOWN]) + more) or "nothing"
