"""PEFT LoRA folders: adapter_config.json and adapter_model.safetensors.

Keys are `base_model.model.<module>.lora_A[.<adapter>].weight`; see
peft.utils.save_and_load.get_peft_model_state_dict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapters_store.base_copies import is_own
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.formats.base import AdapterFolder, ParsedAdapter
from adapters_store.formats.config_files import ConfigError, load_json
from adapters_store.formats.patterns import Matcher, PatternError, Targets
from adapters_store.formats.peft_config import (
    PeftLoraConfig,
    key_problems,
    parse_lora_config,
    type_problem,
)
from adapters_store.formats.tensor_file import TENSOR_FILE, read_tensor_file
from adapters_store.problems import name_list
from adapters_store.tensor_header import TensorHeader, TensorInfo
from adapters_store.types import AdapterManifest, BaseModelSpec, Problem

CONFIG_FILE = "adapter_config.json"

_PREFIX = "base_model.model."
_LORA_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
# Kinds of tensors beside A and B, most specific first, and why they cannot be used.
_FOREIGN: tuple[tuple[str, str], ...] = (
    (r"\.lora_embedding_[AB]", "LoRA on an embedding is not supported; target linear layers only"),
    (r"\.lora_magnitude_vector", "DoRA is not supported; train with use_dora=False"),
    (r"\.lora_[AB](\.[^.]+)?\.bias$", "a bias on B is not supported; train with lora_bias=False"),
    (r"\.bias$", 'trained biases are not supported; train with bias="none"'),
    (r"(^|\.)(lora_|vera_|hada_|lokr_|ia3_|prompt_)", "this kind of tensor is not supported"),
)
_BACKWARD_ONLY = re.compile(r".+\.lora_velora_embed(\.[^.]+)?")
# PEFT saves copies of the embeddings where a LoRA targets one of them, and where it is told to.
_WHOLE_WEIGHT = re.compile(
    r"(?P<module>.+?)(\.(base_layer|original_module|modules_to_save(\.[^.]+)?))?\.weight"
)
_EMBEDDINGS = ("embed_tokens", "wte", "lm_head")


class PeftLoraFormat:
    """LoRA and rsLoRA as PEFT writes them, any version."""

    name = "peft"
    files = frozenset({CONFIG_FILE, TENSOR_FILE})

    def recognises(self, folder: AdapterFolder) -> bool:
        return CONFIG_FILE in folder.files or TENSOR_FILE in folder.files

    def read(self, folder: AdapterFolder) -> ParsedAdapter:
        problems: list[Problem] = []
        config, unknown = _read_config(folder, problems)
        header = read_tensor_file(folder, CONFIG_FILE, problems)
        manifest = None
        notes: tuple[str, ...] = ()
        if config is not None and header is not None:
            builder = _Builder(config, header, folder.files[TENSOR_FILE], folder.base)
            manifest = builder.build()
            problems += builder.problems
            notes = tuple(builder.notes)
        return ParsedAdapter(
            tensors=folder.files.get(TENSOR_FILE),
            config=folder.files.get(CONFIG_FILE),
            manifest=manifest,
            problems=tuple(problems),
            unknown_keys=tuple(unknown),
            notes=notes,
        )


def _read_config(
    folder: AdapterFolder, problems: list[Problem]
) -> tuple[PeftLoraConfig | None, list[str]]:
    path = folder.files.get(CONFIG_FILE)
    if path is None:
        problems.append(Problem(CONFIG_FILE, f"is missing beside {TENSOR_FILE}"))
        return None, []
    try:
        raw = load_json(path, folder.limits.max_config_bytes)
    except ConfigError as error:
        problems.append(Problem(CONFIG_FILE, str(error)))
        return None, []
    other = type_problem(raw)
    if other is not None:
        problems.append(other)
        return None, []
    problems_of_keys, unknown = key_problems(raw)
    config, wrong = parse_lora_config(raw)
    problems += [*problems_of_keys, *wrong]
    return config, unknown


@dataclass(slots=True)
class _Pair:
    """Keys of A and B of one module."""

    a: str | None = None
    b: str | None = None


@dataclass(slots=True)
class _Builder:
    """Sorts the tensors of a file into pairs, and gives each its rank and scale."""

    config: PeftLoraConfig
    header: TensorHeader
    tensors: Path
    base: BaseModelSpec
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    backward_only: list[str] = field(default_factory=list)
    base_copies: list[str] = field(default_factory=list)  # keys of the base's own weights
    matcher: Matcher = field(default_factory=Matcher)

    def build(self) -> AdapterManifest:
        pairs = self._pairs()
        if not pairs and not self.problems:
            self._refuse(TENSOR_FILE, "holds no LoRA tensors")
        experts = []
        try:
            for module, pair in sorted(pairs.items()):
                expert = self._expert(module, pair)
                if expert is not None:
                    experts.append(expert)
            self._check_targets(pairs)
        except PatternError as error:
            self._refuse(CONFIG_FILE, str(error))
        return AdapterManifest(
            "peft", tuple(experts), base_model=self.config.base_model_name_or_path
        )

    def _pairs(self) -> Mapping[str, _Pair]:
        pairs: dict[str, _Pair] = {}
        adapters: dict[str, str] = {}  # adapter name inside the keys -> one such key
        for key, tensor in self.header.tensors.items():
            match = _LORA_KEY.fullmatch(key.removeprefix(_PREFIX))
            if match is None:
                self._judge_other(key, tensor)
                continue
            adapters.setdefault(match["adapter"] or "", key)
            pair = pairs.setdefault(match["module"], _Pair())
            twin = pair.a if match["side"] == "A" else pair.b
            if twin is not None:
                self._refuse(key, f"is the same matrix as {twin!r}")
            elif match["side"] == "A":
                pair.a = key
            else:
                pair.b = key
        if self.backward_only:
            self.notes.append(
                f"not applied, as only training uses it: {name_list(self.backward_only)}"
            )
        if self.base_copies:
            self.notes.append(
                f"not applied, as it is the base's own weight: {name_list(self.base_copies)}"
            )
        if len(adapters) > 1:
            named = name_list(name or "no name" for name in adapters)
            self._refuse(TENSOR_FILE, f"holds several adapters ({named}): publish each by itself")
        return pairs

    def _judge_other(self, key: str, tensor: TensorInfo) -> None:
        name = key.removeprefix(_PREFIX)
        weight_key = _WHOLE_WEIGHT.fullmatch(name)
        if _BACKWARD_ONLY.fullmatch(name):
            self.backward_only.append(key)
        elif weight_key is None or not self._judge_copy(key, weight_key["module"], tensor):
            reason = next((why for pattern, why in _FOREIGN if re.search(pattern, name)), None)
            self._refuse(
                key,
                reason
                or "is no LoRA tensor: whole weights beside LoRA (modules_to_save, resized or "
                "trained embeddings) are not supported; train without them",
            )

    def _judge_copy(self, key: str, module: str, tensor: TensorInfo) -> bool:
        """Whether it is an embedding's weight: then it is the base's own, or refused."""
        last = module.rpartition(".")[2]
        if not self.base.linears and last in _EMBEDDINGS:
            return True  # no base is known here
        paths = [path for path in self.base.embeddings if path.rpartition(".")[2] == last]
        if not paths:
            return False
        embedding = self.base.embeddings[paths[0]]
        if tensor.shape != embedding.shape:
            self._refuse(
                key,
                f"has shape {list(tensor.shape)}, the base has {list(embedding.shape)}: resized "
                "embeddings are not supported",
            )
        elif is_own(self.tensors, tensor, embedding):
            self.base_copies.append(key)
        else:
            self._refuse(
                key,
                f"holds other numbers than the base's {paths[0]}: trained or changed embeddings "
                "are not supported; train LoRA alone, and save with save_embedding_layers=False",
            )
        return True

    def _expert(self, module: str, pair: _Pair) -> LoraExpertSpec | None:
        if pair.a is None or pair.b is None:
            present, missing = ("B", "A") if pair.a is None else ("A", "B")
            self._refuse(module, f"has lora_{present} but no lora_{missing}")
            return None
        shape_a = self.header.tensors[pair.a].shape
        shape_b = self.header.tensors[pair.b].shape
        rank_key = self.matcher.first_key(self.config.rank_pattern, module)
        alpha_key = self.matcher.first_key(self.config.alpha_pattern, module)
        rank = self.config.r if rank_key is None else self.config.rank_pattern[rank_key]
        alpha = self.config.lora_alpha
        if alpha_key is not None:
            alpha = self.config.alpha_pattern[alpha_key]
        if len(shape_a) != 2 or len(shape_b) != 2:
            self._refuse(
                module,
                f"has lora_A {list(shape_a)} and lora_B {list(shape_b)}: LoRA on a linear layer "
                "has A [rank, in] and B [out, rank]; other layers are not supported",
            )
            return None
        if shape_a[0] != rank or shape_b[1] != rank:
            self._refuse(
                module,
                f"has lora_A {list(shape_a)} and lora_B {list(shape_b)}, but the config gives it "
                f"rank {rank} (A [{rank}, in], B [out, {rank}])",
            )
            return None
        scale = self.config.scale(rank, alpha)
        return LoraExpertSpec(module, rank, scale, shape_a[1], shape_b[0], pair.a, pair.b)

    def _check_targets(self, present: Iterable[str]) -> None:
        """PEFT adapts exactly the targeted modules; a file that differs is not what it says."""
        config = self.config
        targets = Targets(
            config.target_modules,
            config.exclude_modules,
            config.layers_to_transform,
            config.layers_pattern,
            self.matcher,
        )
        stray = [module for module in present if not targets.may_include(module)]
        if stray:
            self._refuse(
                f"{CONFIG_FILE}: target_modules",
                f"does not name {name_list(stray)}, for which there are tensors: correct the "
                "config",
            )
        if not targets.explicit:
            return
        have = set(present)
        absent = [name for name in self.base.linears if name not in have and targets.include(name)]
        if absent and have & self.base.linears.keys():
            self._refuse(
                TENSOR_FILE,
                f"holds no tensors for {name_list(absent)}, which target_modules names: made for "
                "another base, or cut short; if it is meant, say so by layers_to_transform or "
                "exclude_modules",
            )

    def _refuse(self, where: str, message: str) -> None:
        self.problems.append(Problem(where, message))
