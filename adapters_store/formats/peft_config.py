"""PEFT's LoRA config: keys that are applied, that may say anything, that are refused.

Derived from `peft.LoraConfig` 0.1 to 0.21; a test holds the list against the installed PEFT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters_store.types import Problem

# Read, and applied.
READ_KEYS = frozenset(
    {
        *("peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora"),
        *("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"),
        *("layers_to_transform", "layers_pattern"),
    }
)

# Any value gives the same answers: training, provenance, or how PEFT itself goes to work.
HARMLESS_KEYS = frozenset(
    {
        *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode"),
        *("lora_dropout", "merge_weights", "runtime_config", "ensure_weight_tying"),
        *("megatron_config", "megatron_core"),
        # A, B have one layout whatever the base layer's is (GPT-2's Conv1D has the other).
        "fan_in_fan_out",
        # Only read while `init_lora_weights` names them, and that key is judged by itself.
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        "qalora_group_size",  # only read with use_qalora
        "velora_config",  # compresses activations for the backward pass
    }
)

# Must be at a value that means "not used"; else refused, with what would work.
UNSUPPORTED_KEYS: Mapping[str, str] = {
    "bias": 'biases beside LoRA are not supported; train with bias="none"',
    "lora_bias": "a bias on B is not supported; train with lora_bias=False",
    "use_dora": "DoRA is not supported; train with use_dora=False",
    "use_qalora": "QALoRA is not supported; train with use_qalora=False",
    "modules_to_save": "whole modules beside LoRA are not supported; train without them",
    "layer_replication": "replicated layers are not supported; serve the expanded model",
    "trainable_token_indices": "trained token embeddings are not supported; train without them",
    "alora_invocation_tokens": "aLoRA is not supported; train plain LoRA",
    "target_parameters": "LoRA on bare parameters is not supported; target linear modules",
    "monteclora_config": "MonteCLoRA is not supported; train plain LoRA",
    "use_bdlora": "BD-LoRA is not supported; train plain LoRA",
    "arrow_config": "Arrow's config is not read from an adapter; ask for routing in the request",
    "kasa_config": "KaSA changes the base weights and is not supported; train plain LoRA",
    "enable_lora": "LoRA on parts of a fused layer is not supported; target whole layers",
}

# Ways to start training that leave the base weights as they are.
_CLEAN_INITS = ("gaussian", "eva", "orthogonal", "mica")
_INIT_ADVICE = (
    "starts by changing the base weights (or is unknown), so the adapter does not fit the "
    "untouched base; save it by save_pretrained with path_initial_model_for_weight_conversion, or "
    f"train with one of: true, false, {', '.join(_CLEAN_INITS)}"
)
KNOWN_KEYS = READ_KEYS | HARMLESS_KEYS | UNSUPPORTED_KEYS.keys() | {"init_lora_weights"}

_TYPE = "adapter_config.json: peft_type"
_TYPES = 'supported is "LORA" (LoRA and rsLoRA); what other kinds there are come in adaptermix.json'

_MOST_PATTERNS = 4096  # of one key: each is tried on every module that has tensors
Rank = Annotated[int, Field(gt=0, lt=1 << 31)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]
Names = Annotated[list[str], Field(max_length=_MOST_PATTERNS)]
Layers = Annotated[list[int], Field(max_length=_MOST_PATTERNS)]


class PeftLoraConfig(BaseModel):
    """The keys of an adapter_config.json that we apply; absent and null mean PEFT's default."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    peft_type: Literal["LORA"]
    base_model_name_or_path: Annotated[str, Field(max_length=4096)] | None = None
    r: Rank = 8
    lora_alpha: Alpha = 8
    use_rslora: bool = False
    rank_pattern: Annotated[dict[str, Rank], Field(max_length=_MOST_PATTERNS)] = {}
    alpha_pattern: Annotated[dict[str, Alpha], Field(max_length=_MOST_PATTERNS)] = {}
    target_modules: str | Names | None = None
    exclude_modules: str | Names | None = None
    layers_to_transform: int | Layers | None = None
    layers_pattern: str | Names | None = None

    def scale(self, rank: int, alpha: float) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA (https://arxiv.org/abs/2312.03732)."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def type_problem(raw: Mapping[str, Any]) -> Problem | None:
    """The problem of a config of another kind of adapter; then its keys are not judged."""
    if "peft_type" not in raw:
        return Problem(_TYPE, f"is missing: {_TYPES}")
    peft_type = raw["peft_type"]
    return None if peft_type == "LORA" else Problem(_TYPE, f"is {_shown(peft_type)}: {_TYPES}")


def key_problems(raw: Mapping[str, Any]) -> tuple[list[Problem], list[str]]:
    """Problems with keys that we do not apply, and the names of all unknown keys."""
    problems = []
    unknown = sorted(set(raw) - KNOWN_KEYS)
    for key in unknown:
        if not _unused(raw[key]):
            problems.append(
                _problem(key, raw[key], "the key is unknown; remove it if it changes nothing")
            )
    for key, advice in UNSUPPORTED_KEYS.items():
        value = raw.get(key)
        if not _unused(value) and not (key == "bias" and value == "none"):
            problems.append(_problem(key, value, advice))
    init = raw.get("init_lora_weights")
    clean = isinstance(init, str) and init.lower() in _CLEAN_INITS
    if not (init is None or isinstance(init, bool) or clean):
        problems.append(_problem("init_lora_weights", init, _INIT_ADVICE))
    return problems, unknown


def parse_lora_config(raw: Mapping[str, Any]) -> tuple[PeftLoraConfig | None, list[Problem]]:
    """The keys that we apply; or every problem with their values."""
    values = {key: value for key, value in raw.items() if value is not None}
    try:
        return PeftLoraConfig.model_validate(values), []
    except ValidationError as error:
        messages: dict[str, list[str]] = {}
        for item in error.errors():
            messages.setdefault(str(item["loc"][0]), []).append(item["msg"])
        return None, [
            _problem(key, raw.get(key), "; ".join(dict.fromkeys(texts)))
            for key, texts in messages.items()
        ]


def _problem(key: str, value: object, message: str) -> Problem:
    return Problem(f"adapter_config.json: {key}", f"is {_shown(value)}: {message}")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _unused(value: object) -> bool:
    """null, false or empty: how PEFT writes that something is not used."""
    return value is None or value is False or value in ("", [], {})
