"""Replies of the admin routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from adapters_store.expert_kinds.base import copies_of
from adapters_store.types import MAX_VERSION, AdapterManifest, AdapterRecord
from server.schemas.base import Body, Reply

if TYPE_CHECKING:  # who reads replies alone doesn't wait for the engine's modules
    from router_engine.info import AdapterResidency, MergedState

_BUILT_IN_KINDS = ("lora", "bottleneck", "prompt")


@dataclass(frozen=True, slots=True)
class TextState:
    """The state of an adapter's sample texts with the sentence encoder."""

    # none without texts or encoder, pending until it is computed, then ready
    centroid: Literal["none", "pending", "ready"] = "none"
    encoder: str | None = None  # whose centroid it is
    warnings: tuple[str, ...] = ()  # of other adapters whose texts are too near


class ResidencyReply(Reply):
    """Where an adapter's weights are now."""

    level: Literal["disk", "host", "device"]
    pinned: bool
    users: int = Field(description="Live requests that need it.")
    rank_rows: int
    device_bytes: int
    load_seconds: float | None = Field(description="What the last load took.")

    @classmethod
    def of(cls, residency: AdapterResidency) -> ResidencyReply:
        return cls(
            level=residency.residency.value,
            pinned=residency.pinned,
            users=residency.users,
            rank_rows=residency.rank_rows,
            device_bytes=residency.device_bytes,
            load_seconds=residency.load_seconds,
        )


class AdapterReply(Reply):
    """One stored version of an adapter."""

    name: str
    version: int
    digest: str
    format: str
    base_model: str | None = Field(description="What the adapter says that it was trained on.")
    kinds: list[str] = Field(
        description="What it holds: experts by kind, routers inside layers, copies kept apart."
    )
    max_rank: int
    rank_rows: int = Field(description="Rank rows over all layers.")
    size_bytes: int
    created_at: float = Field(description="Seconds since 1970.")
    aliases: list[str]
    tags: list[str]
    num_texts: int = Field(description="Sample texts in force, for routers that read text.")
    centroid: Literal["none", "pending", "ready"] = Field(
        description="What the sentence encoder makes of the texts: none without texts or encoder, "
        "pending until it is computed."
    )
    encoder: str | None = Field(description="The encoder of the centroid; null where none.")
    residency: ResidencyReply | None = Field(default=None, description="null: on disk only.")
    notes: list[str] = Field(default_factory=list, description="What was noticed at publish.")
    warnings: list[str] = Field(
        default_factory=list,
        description="Other adapters that routing by similarity can hardly tell from this one.",
    )

    @classmethod
    def of(
        cls, record: AdapterRecord, residency: AdapterResidency | None, texts: TextState
    ) -> AdapterReply:
        return cls(
            name=record.name,
            version=record.version,
            digest=record.digest,
            format=record.manifest.format,
            base_model=record.manifest.base_model,
            kinds=_kinds(record.manifest),
            max_rank=record.manifest.max_rank,
            rank_rows=record.manifest.rank_rows,
            size_bytes=record.size_bytes,
            created_at=record.created_at,
            aliases=list(record.aliases),
            tags=list(record.tags),
            num_texts=record.num_texts,
            centroid=texts.centroid,
            encoder=texts.encoder,
            residency=None if residency is None else ResidencyReply.of(residency),
            warnings=list(texts.warnings),
        )


def _kinds(manifest: AdapterManifest) -> list[str]:
    """The kinds of an adapter's experts, built-in ones first, then copies and routers."""
    used = {expert.kind for expert in manifest.experts}
    built_in = [kind for kind in _BUILT_IN_KINDS if kind in used]
    kinds = [*built_in, *sorted(used.difference(built_in))]
    if any(copies_of(expert) for expert in manifest.experts):
        kinds.append("copies")
    if manifest.routers:
        kinds.append("router")
    return kinds


class TextsReply(Reply):
    """The sample texts of one adapter."""

    name: str
    texts: list[str]


class AdapterList(Reply):
    adapters: list[AdapterReply]


class ProblemReply(Reply):
    where: str
    message: str


class CheckReply(Reply):
    """Whether an upload would load, and what it would cost. Nothing is stored."""

    loads: bool
    problems: list[ProblemReply]
    unknown_keys: list[str]
    notes: list[str]
    digest: str | None
    size_bytes: int
    device_bytes: int = Field(description="Bytes on the device, in the engine's number format.")
    rank_rows: int
    max_rank: int


class AliasBody(Body):
    version: int = Field(
        ge=1, le=MAX_VERSION, description="The version that the alias means from now on."
    )


class PinBody(Body):
    pinned: bool = Field(default=True, description="false lets the adapter go again.")


class DeleteQuery(Body):
    model_config = ConfigDict(strict=False)  # a URL holds text alone

    force: bool = Field(default=False, description="Also while it is pinned or in use.")


class DeletedReply(Reply):
    deleted: list[str] = Field(description="Labels of the versions or aliases that are gone.")
    freed_bytes: int = Field(
        default=0, description="Disk space that is free again; 0 while in use."
    )


class UnloadReply(Reply):
    name: str
    freed_bytes: int


class MergedReply(Reply):
    """What the base weights hold. `seconds` is what the last switch took."""

    mode: Literal["merged", "unmerged"]
    digest: str | None
    seconds: float
    adapters: list[str]
    weights: list[float]

    @classmethod
    def of(cls, state: MergedState, labels: list[str]) -> MergedReply:
        mixture = state.mixture
        return cls(
            mode="unmerged" if mixture is None else "merged",
            digest=None if mixture is None else mixture.digest,
            seconds=state.seconds,
            adapters=labels,
            weights=[] if mixture is None else list(mixture.weights),
        )


class RouterReply(Reply):
    """A router, the levels at which it runs here, and its parameters as JSON schema."""

    name: str
    summary: str
    levels: list[str]
    needs_encoder: bool
    parameters: dict[str, Any]


class RouterList(Reply):
    routers: list[RouterReply]


DIGEST = "sha256:9f2c0a4be1d5c6378f0b9e2d4a1c8e7f6b5a49382716059483726150abcdef01"
RESIDENCY_EXAMPLE = {
    "level": "device",
    "pinned": False,
    "users": 0,
    "rank_rows": 960,
    "device_bytes": 1843200,
    "load_seconds": 0.012,
}
ADAPTER_EXAMPLE = {
    "name": "math",
    "version": 1,
    "digest": DIGEST,
    "format": "peft",
    "base_model": "smollm2-135m-instruct",
    "kinds": ["lora"],
    "max_rank": 8,
    "rank_rows": 960,
    "size_bytes": 1850112,
    "created_at": 1760000000.0,
    "aliases": ["stable"],
    "tags": ["task"],
    "num_texts": 64,
    "centroid": "ready",
    "encoder": "all-minilm-l6-v2",
    "residency": None,
    "notes": [],
    "warnings": [],
}
TEXTS_EXAMPLE = {"name": "math@1", "texts": ["Question: What is 7 times 6?\n\nAnswer: 42"]}
CHECK_EXAMPLE = {
    "loads": False,
    "problems": [{"where": "use_dora", "message": "DoRA is not implemented"}],
    "unknown_keys": [],
    "notes": [],
    "digest": None,
    "size_bytes": 1850112,
    "device_bytes": 1843200,
    "rank_rows": 960,
    "max_rank": 8,
}
MERGED_EXAMPLE = {
    "mode": "merged",
    "digest": DIGEST,
    "seconds": 0.4,
    "adapters": ["math@1", "code@2"],
    "weights": [0.7, 0.3],
}
