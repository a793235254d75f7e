"""AdapterManifest to canonical JSON and back: the bytes that the digest covers."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from adapters_store.errors import IntegrityError
from adapters_store.types import AdapterManifest

SCHEMA = 1
_LATER = ("gate", "copies")
_ADAPTER = TypeAdapter(AdapterManifest)


def manifest_to_json(manifest: AdapterManifest) -> bytes:
    """Canonical bytes: sorted keys, no spaces, UTF-8; equal manifests give equal bytes."""
    text = json.dumps(
        _fields(asdict(manifest)),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )
    return text.encode()


def _fields(manifest: dict[str, Any]) -> dict[str, Any]:
    """The fields without those at their default that manifests once lacked: digests stay equal."""
    experts = [
        {key: value for key, value in expert.items() if key not in _LATER or value is not None}
        for expert in manifest["experts"]
    ]
    routers = [
        {key: value for key, value in router.items() if key != "scope" or value != "token"}
        for router in manifest["routers"]
    ]
    fields = manifest | {"experts": experts, "routers": routers}
    return {key: value for key, value in fields.items() if key != "routers" or value}


def manifest_from_json(data: bytes) -> AdapterManifest:
    """Read what `manifest_to_json` wrote.

    Raises IntegrityError for anything else: broken JSON, a newer schema, an unknown key.
    """
    try:
        manifest = _ADAPTER.validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"manifest.json cannot be read: {error}") from error
    if manifest.schema != SCHEMA:
        raise IntegrityError(
            f"manifest.json has schema {manifest.schema}, this version reads schema {SCHEMA}"
        )
    if manifest_to_json(manifest) != data:
        raise IntegrityError("manifest.json holds keys that this version does not know")
    return manifest
