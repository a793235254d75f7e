"""AdapterManifest to canonical JSON and back: the bytes that the digest covers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from adapters_store.errors import IntegrityError
from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec
from adapters_store.expert_kinds.registry import expert_specs
from adapters_store.expert_kinds.unknown import UnknownExpertSpec
from adapters_store.types import AdapterManifest

SCHEMA = 1
_LATER = ("gate", "copies")


@dataclass(frozen=True, slots=True)
class _Document:
    """The fields of AdapterManifest; experts are read by their kinds."""

    format: str
    experts: list[Any]
    base_model: str | None = None
    routers: tuple[GatingNetworkSpec, ...] = ()
    schema: int = 1


_DOCUMENT = TypeAdapter(_Document)


def manifest_to_json(manifest: AdapterManifest) -> bytes:
    """Canonical bytes: sorted keys, no spaces, UTF-8; equal manifests give equal bytes."""
    text = json.dumps(
        _fields(manifest),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )
    return text.encode()


def _fields(manifest: AdapterManifest) -> dict[str, Any]:
    """The fields without those at their default that manifests once lacked: digests stay equal."""
    routers = [
        {key: value for key, value in asdict(router).items() if (key, value) != ("scope", "token")}
        for router in manifest.routers
    ]
    fields: dict[str, Any] = {
        "format": manifest.format,
        "experts": [_expert_fields(expert) for expert in manifest.experts],
        "base_model": manifest.base_model,
        "schema": manifest.schema,
    }
    return fields | ({"routers": routers} if routers else {})


def _expert_fields(expert: ExpertSpec) -> dict[str, Any]:
    if isinstance(expert, UnknownExpertSpec):
        return dict(expert.stored)
    fields = asdict(expert)
    return {key: value for key, value in fields.items() if key not in _LATER or value is not None}


def manifest_from_json(data: bytes) -> AdapterManifest:
    """Read what `manifest_to_json` wrote.

    Raises IntegrityError for anything else: broken JSON, a newer schema, an unknown key. Experts of
    a kind that is not installed become `UnknownExpertSpec`.
    """
    try:
        document = _DOCUMENT.validate_json(data)
        experts = _experts(document.experts)
    except ValidationError as error:
        raise IntegrityError(f"manifest.json cannot be read: {error}") from error
    manifest = AdapterManifest(
        document.format, experts, document.base_model, document.routers, document.schema
    )
    if manifest.schema != SCHEMA:
        raise IntegrityError(
            f"manifest.json has schema {manifest.schema}, this version reads schema {SCHEMA}"
        )
    if manifest_to_json(manifest) != data:
        raise IntegrityError("manifest.json holds keys that this version does not know")
    return manifest


def _experts(values: list[Any]) -> tuple[ExpertSpec, ...]:
    registry = expert_specs()
    unknown = registry.kinds_of(values).difference(registry.names)
    reader = registry.reader(values)
    if not unknown:
        return reader.validate_json(json.dumps(values))
    return tuple(
        UnknownExpertSpec(value)
        if registry.kinds_of([value]) <= unknown
        else reader.validate_json(json.dumps([value]))[0]
        for value in values
    )
