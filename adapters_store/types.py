"""Pure data shared by every package: references, manifests, mixtures."""

from __future__ import annotations

import hashlib
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from adapters_store.base_model import BaseModelSpec as BaseModelSpec
from adapters_store.base_model import BlockSpec as BlockSpec
from adapters_store.base_model import EmbeddingSpec as EmbeddingSpec
from adapters_store.base_model import LinearShape as LinearShape
from adapters_store.errors import InvalidReferenceError
from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.problems import Problem as Problem

Combination = Literal["sum", "linear"]

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_VERSION = 2**31 - 1  # what every database's integer column holds
_DIGEST_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter as a user names it: `name`, `name@3`, `name@alias` or `sha256:...`.

    A bare name means its newest version. Exactly one of `name` and `digest` is set.
    """

    name: str | None = None
    version: int | None = None
    alias: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> AdapterRef:
        """Read a reference; raises InvalidReferenceError naming the text and the accepted forms."""
        if text.startswith("sha256:"):
            if not _DIGEST_PATTERN.fullmatch(text):
                raise InvalidReferenceError(text)
            return cls(digest=text)
        name, separator, suffix = text.partition("@")
        if not NAME_PATTERN.fullmatch(name):
            raise InvalidReferenceError(text)
        if not separator:
            return cls(name=name)
        if suffix.isdecimal() and suffix.isascii():
            if len(suffix) > len(str(MAX_VERSION)) or int(suffix) > MAX_VERSION:
                raise InvalidReferenceError(text)
            return cls(name=name, version=int(suffix))
        if not NAME_PATTERN.fullmatch(suffix):
            raise InvalidReferenceError(text)
        return cls(name=name, alias=suffix)

    def __str__(self) -> str:
        if self.digest is not None:
            return self.digest
        suffix = self.alias if self.version is None else str(self.version)
        return str(self.name) if suffix is None else f"{self.name}@{suffix}"


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """The content of an adapter, read at publish and kept beside its tensors in the blob store."""

    format: str  # in which it was uploaded, e.g. "peft"
    experts: tuple[ExpertSpec, ...]
    base_model: str | None = None  # that it says it was trained on
    routers: tuple[GatingNetworkSpec, ...] = ()  # the gating networks in its layers
    schema: int = 1  # of the manifest's JSON

    @property
    def parts(self) -> tuple[ExpertSpec | GatingNetworkSpec, ...]:
        """All that names tensors: its experts, then its gating networks."""
        return (*self.experts, *self.routers)

    @property
    def lora_experts(self) -> tuple[LoraExpertSpec, ...]:
        return tuple(expert for expert in self.experts if isinstance(expert, LoraExpertSpec))

    @property
    def extras(self) -> str | None:
        """The first part beyond plain LoRA, in words; None where there is none."""
        return next((expert.extras for expert in self.experts if expert.extras is not None), None)

    @property
    def is_plain_lora(self) -> bool:
        """Whether it is LoRA without gates or copies alone.

        Then it is one matrix product a module, which can be merged, combined by `linear` and chosen
        by `arrow`.
        """
        return self.extras is None

    @property
    def reads_whole_prompts(self) -> bool:
        """Whether gates come of all tokens of a prompt at once (instance-level MoA)."""
        return any(router.scope == "prompt" for router in self.routers)

    @property
    def max_rank(self) -> int:
        """The highest rank of a LoRA; a bottleneck's size and a prompt's length count as ranks."""
        return max((expert.rows for expert in self.experts), default=0)

    @property
    def rows_by_site(self) -> dict[str, int]:
        """Rank rows that it takes at each place of the model."""
        rows: Counter[str] = Counter()
        for expert in self.experts:
            rows[expert.site] += expert.rows
        return dict(rows)

    @property
    def rank_rows(self) -> int:
        """Rank rows over all places: what the adapter takes of the device pool."""
        return sum(expert.rows for expert in self.experts)

    @property
    def gate_labels(self) -> tuple[str, ...]:
        """A label for each output of the gating networks: `q_proj`, `prompt`, `parallel`.

        A number where a layer has several such experts, or layers have different ones.
        """
        gated: dict[int, list[str]] = {}
        for expert in self.experts:
            if expert.gate is not None:
                gated.setdefault(expert.gate, []).append(expert.site)
        outputs = max((router.outputs for router in self.routers), default=0)
        return tuple(_gate_label(gate, gated.get(gate, [])) for gate in range(outputs))


def _gate_label(gate: int, sites: Sequence[str]) -> str:
    names = {site.replace("#", ".").rpartition(".")[2] for site in sites}
    # A site that is named twice has several experts under this gate.
    is_one = len(names) == 1 and len(set(sites)) == len(sites)
    return names.pop() if is_one else str(gate)


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One stored version of an adapter. The digest is its identity; names only point at it."""

    name: str
    version: int  # from 1
    digest: str  # "sha256:..." over the manifest, the tensors and the texts
    manifest: AdapterManifest
    size_bytes: int  # of its files in the blob store
    created_at: float  # seconds since the epoch
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    num_texts: int = 0  # sample texts in force, for routers that read text
    # Names those texts, "" where there are none: the sha256 of texts that were set later, else the
    # adapter's own digest, which covers the texts that it was published with.
    texts_digest: str = ""

    @property
    def label(self) -> str:
        """The name that responses show: `math@1`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class SampleTexts:
    """The sample texts in force of an adapter."""

    digest: str  # `AdapterRecord.texts_digest` of just these
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredCentroid:
    """The centroid of an adapter's texts under one encoder."""

    texts: str  # the digest of the texts that it was made of
    vector: bytes  # [d], float32, little endian


@dataclass(frozen=True, slots=True)
class ResolvedMixture:
    """A mixture whose adapters are digests: what the engine runs under.

    sum:    y = W x + sum_j w_j s_j B_j A_j x
    linear: y = W x + (sum_j sqrt(w_j s_j) B_j) (sum_j sqrt(w_j s_j) A_j) x
            (PEFT `add_weighted_adapter(combination_type="linear")`: equal ranks, w_j >= 0)
    """

    digests: tuple[str, ...]  # of adapters, or of variants of them
    weights: tuple[float, ...]  # one for each digest, never normalised
    combination: Combination = "sum"

    @property
    def digest(self) -> str:
        """Content address of the mixture: equal exactly when the mathematics is."""
        return mixture_digest(dict(zip(self.digests, self.weights, strict=True)), self.combination)


ZEROS = (struct.pack("<f", 0.0), struct.pack("<f", -0.0))  # what tiny weights are rounded to


def mixture_key(weights: Mapping[str, float], combination: Combination) -> bytes:
    """Canonical bytes of a mixture: float32 weights, zeros dropped, sorted by digest.

    The base (no adapter with weight) is b"" whatever the combination.
    """
    # Most of a router's many candidates have weight 0: they go before anything is sorted.
    nonzero = sorted(item for item in weights.items() if item[1] != 0)
    packed = [(digest, struct.pack("<f", weight)) for digest, weight in nonzero]
    parts = [digest.encode() + weight for digest, weight in packed if weight not in ZEROS]
    return combination.encode() + b"|" + b"|".join(parts) if parts else b""


def mixture_digest(weights: Mapping[str, float], combination: Combination) -> str:
    """ "sha256:..." of `mixture_key`."""
    return "sha256:" + hashlib.sha256(mixture_key(weights, combination)).hexdigest()


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The answer to a dry run: every problem at once, and what the adapter would cost."""

    problems: tuple[Problem, ...] = ()
    manifest: AdapterManifest | None = None  # where a format could read it
    digest: str | None = None  # where nothing is wrong
    size_bytes: int = 0  # of its files, where nothing is wrong
    unknown_keys: tuple[str, ...] = ()  # of its config
    notes: tuple[str, ...] = ()  # to whom publishes it

    @property
    def loads(self) -> bool:
        return not self.problems


KeyKind = Literal["use", "admin"]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the store knows it: never the secret itself."""

    id: str
    label: str  # for people
    kind: KeyKind
    created_at: float  # seconds since the epoch
    revoked_at: float | None = None  # likewise; None while it is in force
