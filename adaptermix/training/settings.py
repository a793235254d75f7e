"""Settings of a training run. Each field with a help text is an option of its command."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from adaptermix.training.errors import TrainingError

Schedule = Literal["cosine", "linear", "constant_with_warmup"]
DTypeName = Literal["bfloat16", "float32"]
Routing = Literal["batch", "example"]
Share = Literal["none", "down", "up"]
Init = Literal["shared", "independent"]
Kind = Literal["lora", "bottleneck"]
Variant = Literal["soft", "sparse", "instance"]
RouterInput = Literal["pre_norm", "post_norm"]
Threshold = Literal["frozen", "straight_through", "constant"]


def about(text: str) -> dict[str, str]:
    """Metadata of a field: what `--help` shows for it."""
    return {"help": text}


def _check(name: str, value: object, allowed: str, *, holds: bool) -> None:
    if not holds:
        raise TrainingError(f"{name} is {value!r}; it must be {allowed}")


def _check_sizes(settings: object, *names: str) -> None:
    """Widths and numbers of parts: what is far beyond a model's own is a slip of the hand."""
    for name in names:
        value = getattr(settings, name)
        _check(name, value, f"at most {_LARGEST}", holds=value is None or value <= _LARGEST)


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """The adapter: y = W x + scale * B (A x), scale = alpha / rank, or alpha / sqrt(rank)."""

    rank: int = field(default=8, metadata=about("Rank of each pair."))
    alpha: float = field(default=16.0, metadata=about("Numerator of the scale."))
    targets: tuple[str, ...] = field(
        default=("q_proj", "k_proj", "v_proj", "o_proj"),
        metadata=about("Linear layer to adapt, by the end of its name."),
    )
    rslora: bool = field(
        default=False, metadata=about("Scale by alpha / sqrt(rank) instead of alpha / rank.")
    )
    dropout: float = field(default=0.0, metadata=about("Dropout before A while training."))

    def __post_init__(self) -> None:
        _check("rank", self.rank, "at least 1", holds=self.rank >= 1)
        _check_sizes(self, "rank")
        _check("alpha", self.alpha, "a number above 0", holds=0 < self.alpha < math.inf)
        _check("targets", self.targets, "at least one name", holds=len(self.targets) > 0)
        _check("dropout", self.dropout, "from 0 to below 1", holds=0 <= self.dropout < 1)


@dataclass(frozen=True, slots=True)
class AdamixSettings:
    """Copies of the way down (LoRA's A) and up (B): drawn while training, averaged at the end."""

    kind: Kind = field(
        default="lora",
        metadata=about("What there are copies of: LoRA pairs, or a bottleneck a layer."),
    )
    size: int | None = field(
        default=None, metadata=about("Width of a bottleneck; 16 when left out. Of them only.")
    )
    copies: int = field(default=4, metadata=about("Copies of each side that isn't shared."))
    share: Share = field(
        default="up", metadata=about("Side with one copy only: up (B), down (A) or none.")
    )
    routing: Routing = field(
        default="batch", metadata=about("Draw once a linear map for the batch, or an example.")
    )
    consistency: float = field(
        default=100.0,
        metadata=about("Weight of the loss between two passes; 0 leaves out the second pass."),
    )
    init: Init | None = field(
        default=None,
        metadata=about(
            "Copies begin equal (shared) or each with its own weights (independent); shared for "
            "LoRA when left out, a bottleneck's are independent always."
        ),
    )
    draws: int = field(
        default=4, metadata=about("Random draws of copies to measure on the dev rows at the end.")
    )
    keep_copies: bool = field(
        default=False, metadata=about("Keep the copies, too, as an adapter in <out>.copies.")
    )

    def __post_init__(self) -> None:
        _check("kind", self.kind, "lora or bottleneck", holds=self.kind in get_args(Kind))
        of_lora = self.kind == "lora"
        _check("size", self.size, "left out with LoRA", holds=self.size is None or not of_lora)
        _check("size", self.size, "at least 1", holds=self.size is None or self.size >= 1)
        _check("copies", self.copies, "at least 1", holds=self.copies >= 1)
        _check_sizes(self, "size", "copies")
        _check("share", self.share, "none, down or up", holds=self.share in get_args(Share))
        _check("routing", self.routing, "batch or example", holds=self.routing in get_args(Routing))
        weight = self.consistency
        _check("consistency", weight, "a number of at least 0", holds=0 <= weight < math.inf)
        is_known = self.init in (None, *get_args(Init))
        _check("init", self.init, "shared or independent", holds=is_known)
        alone = of_lora and (self.share == "down" or self.copies == 1)
        allowed = "shared where there is one copy of A"
        _check("init", self.init, allowed, holds=not alone or self.init != "independent")
        allowed = "independent for bottlenecks"
        _check("init", self.init, allowed, holds=of_lora or self.init != "shared")
        _check("draws", self.draws, "at least 0", holds=self.draws >= 0)

    @property
    def bottleneck_size(self) -> int:
        """Rows of a bottleneck's way down."""
        return 16 if self.size is None else self.size


@dataclass(frozen=True, slots=True)
class GatedLoraSettings(LoraSettings):
    """LoRA experts under a router: those of MoA, as published."""

    alpha: float = field(default=8.0, metadata=about("Numerator of the scale."))
    targets: tuple[str, ...] = field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"),
        metadata=about("Linear layer to adapt, by the end of its name."),
    )


@dataclass(frozen=True, slots=True)
class MoaSettings:
    """Experts of several kinds in every layer, and the router there that gates each of them."""

    variant: Variant = field(
        default="soft",
        metadata=about(
            "Gates of each token; sparse: those below a threshold are 0; instance: one "
            "for the whole prompt, which isn't served."
        ),
    )
    parallel: int = field(
        default=16, metadata=about("Size of the bottleneck beside the feed-forward part; 0: none.")
    )
    prompt: int = field(
        default=0, metadata=about("Learned keys and values beside the attention; 0: none.")
    )
    ranks: tuple[str, ...] = field(
        default=(), metadata=about("Rank of one target in place of --rank, as 'down_proj=16'.")
    )
    router_factor: int = field(
        default=4, metadata=about("Hidden width of a router in outputs (SwiGLU); 0: it is linear.")
    )
    router_input: RouterInput = field(
        default="post_norm", metadata=about("Routers read before or after the layer's first norm.")
    )
    gamma_max: float = field(default=0.5, metadata=about("Highest threshold of sparse."))
    threshold: Threshold = field(
        default="frozen",
        metadata=about("Threshold of sparse: a random net, a trained one, or gamma_max itself."),
    )
    temperature: float = field(
        default=0.1, metadata=about("Width of the slope by which straight_through trains.")
    )

    def __post_init__(self) -> None:
        _check("variant", self.variant, "soft, sparse or instance", holds=self.variant in _VARIANTS)
        for name in ("parallel", "prompt", "router_factor"):
            value = getattr(self, name)
            _check(name, value, "at least 0", holds=value >= 0)
        _check_sizes(self, "parallel", "prompt", "router_factor")
        read_at = self.router_input
        holds = read_at in get_args(RouterInput)
        _check("router_input", read_at, "pre_norm or post_norm", holds=holds)
        allowed = "frozen, straight_through or constant"
        _check("threshold", self.threshold, allowed, holds=self.threshold in get_args(Threshold))
        _check("gamma_max", self.gamma_max, "from 0 to 1", holds=0 <= self.gamma_max <= 1)
        _check("temperature", self.temperature, "above 0", holds=self.temperature > 0)
        read = all(_RANK.fullmatch(text) for text in self.ranks)
        _check("ranks", self.ranks, "as 'down_proj=16'", holds=read)
        small = all(rank <= _LARGEST for rank in self.rank_of.values())
        _check("ranks", self.ranks, f"of at most {_LARGEST}", holds=small)
        for name, unused in (
            ("gamma_max", self.variant != "sparse"),
            ("threshold", self.variant != "sparse"),
            ("temperature", self.threshold != "straight_through"),
        ):
            value, default = getattr(self, name), _default_of(type(self), name)
            allowed = f"left at {default!r} where nothing reads it"
            _check(name, value, allowed, holds=value == default or not unused)

    @property
    def rank_of(self) -> dict[str, int]:
        """Target to its own rank."""
        pairs = (text.split("=") for text in self.ranks)
        return {target: int(rank) for target, rank in pairs}


@dataclass(frozen=True, slots=True)
class MoeLoraSettings:
    """LoRA experts of one kind: several at every target, under one router a layer."""

    experts: int = field(default=4, metadata=about("LoRA experts at every target."))
    top_k: int = field(default=2, metadata=about("Experts that a token takes; the others are 0."))
    router_input: RouterInput = field(
        default="post_norm", metadata=about("Routers read before or after the layer's first norm.")
    )

    def __post_init__(self) -> None:
        _check("experts", self.experts, "at least 2", holds=self.experts >= 2)
        _check_sizes(self, "experts")
        allowed = f"from 1 to experts, {self.experts}"
        _check("top_k", self.top_k, allowed, holds=1 <= self.top_k <= self.experts)
        read_at = self.router_input
        holds = read_at in get_args(RouterInput)
        _check("router_input", read_at, "pre_norm or post_norm", holds=holds)


_VARIANTS = get_args(Variant)
_LARGEST = 65_536
_SEEDS = range(-(2**63), 2**64)  # that torch.manual_seed takes
_RANK = re.compile(r"[\w.]+=[1-9]\d*")


def _default_of(settings: type[MoaSettings], name: str) -> object:
    return next(each.default for each in fields(settings) if each.name == name)


@dataclass(frozen=True, slots=True)
class DataSettings:
    """The rows of a run, and their batches."""

    max_rows: int | None = field(
        default=None, metadata=about("Rows to train on, chosen by seed; all when left out.")
    )
    max_length: int = field(
        default=512, metadata=about("Tokens of a row, end-of-text included; longer ones go out.")
    )
    dev_rows: int = field(
        default=64, metadata=about("Rows held out to measure the loss before and after.")
    )
    batch_tokens: int = field(default=1024, metadata=about("Padded tokens of one optimizer step."))
    epochs: int = field(default=1, metadata=about("Times that each row is seen."))
    sample_texts: int = field(
        default=64, metadata=about("Training texts to keep as texts.jsonl, for routing centroids.")
    )

    def __post_init__(self) -> None:
        _check(
            "max_rows",
            self.max_rows,
            "at least 1",
            holds=self.max_rows is None or self.max_rows >= 1,
        )
        _check("max_length", self.max_length, "at least 2", holds=self.max_length >= 2)
        _check("dev_rows", self.dev_rows, "at least 0", holds=self.dev_rows >= 0)
        _check("batch_tokens", self.batch_tokens, "at least 1", holds=self.batch_tokens >= 1)
        _check("epochs", self.epochs, "at least 1", holds=self.epochs >= 1)
        _check("sample_texts", self.sample_texts, "at least 0", holds=self.sample_texts >= 0)


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Settings of the optimizer (AdamW)."""

    learning_rate: float = field(default=1e-3, metadata=about("Peak learning rate."))
    schedule: Schedule = field(
        default="cosine", metadata=about("Shape of the learning rate after the warm-up.")
    )
    warmup_ratio: float = field(
        default=0.05, metadata=about("Part of the steps in which the learning rate rises.")
    )
    max_grad_norm: float = field(
        default=1.0, metadata=about("Norm to which the gradient is clipped.")
    )
    weight_decay: float = field(
        default=0.0, metadata=about("Weight decay of the adapter's tensors.")
    )
    seed: int = field(
        default=0, metadata=about("Decides initial weights, rows, their order and dropout.")
    )

    def __post_init__(self) -> None:
        rate, warmup = self.learning_rate, self.warmup_ratio
        _check("learning_rate", rate, "a number above 0", holds=0 < rate < math.inf)
        _check("warmup_ratio", warmup, "from 0 to 1", holds=0 <= warmup <= 1)
        _check("max_grad_norm", self.max_grad_norm, "above 0", holds=self.max_grad_norm > 0)
        decay = self.weight_decay
        _check("weight_decay", decay, "a number of at least 0", holds=0 <= decay < math.inf)
        allowed = f"from {_SEEDS[0]} to {_SEEDS[-1]}"
        _check("seed", self.seed, allowed, holds=self.seed in _SEEDS)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """One run: `base` is a directory or hub id, `base_name` what the adapter will call it."""

    base: str
    base_name: str
    files: tuple[Path, ...]  # JSON lines of {prompt, completion}, maybe gzipped
    licence: str  # of the data; the card says that it binds the adapter
    data: DataSettings = DataSettings()
    lora: LoraSettings = LoraSettings()
    loop: LoopSettings = LoopSettings()
    dtype: DTypeName = "bfloat16"
    device: str = "cpu"
    revision: str | None = None  # branch, tag or commit of a hub id
