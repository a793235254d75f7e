"""The `copies` of a mixture's adapters, as the variants that the engine runs."""

from __future__ import annotations

from collections.abc import Sequence

from adapters_store.expert_kinds.base import Copies, ExpertSpec, copies_of
from adapters_store.types import AdapterManifest, AdapterRecord
from router_engine.experts.variants import Soup, Stochastic, variant_digest
from server.errors import InputError
from server.schemas.copies import (
    AverageCopies,
    CopiesChoice,
    EnsembleCopies,
    SoupCopies,
    StochasticCopies,
)
from server.schemas.mixture import WeightedAdapter

Digests = tuple[str, ...]


def member_digests(
    adapters: Sequence[WeightedAdapter], records: Sequence[AdapterRecord], path: str
) -> tuple[Digests, ...]:
    """One digest an adapter for each sequence that is to run; one but for an ensemble.

    Raises InputError naming the field and what would work.
    """
    columns = [
        _digests(item.copies, record, f"{path}.{index}.copies")
        for index, (item, record) in enumerate(zip(adapters, records, strict=True))
    ]
    ensembles = [index for index, column in enumerate(columns) if len(column) > 1]
    if len(ensembles) > 1:
        raise InputError(
            f"{path}.{ensembles[1]}.copies.mode",
            "'ensemble'",
            f"adapter {ensembles[0]} of this mixture is an ensemble already: use stochastic, soup "
            "or average for all others",
        )
    members = max(map(len, columns))
    return tuple(zip(*(column * (members // len(column)) for column in columns), strict=True))


def refuse_copies(adapters: Sequence[WeightedAdapter], path: str) -> None:
    """Raises InputError where an adapter of a mixture that is to be merged says which copies."""
    for index, item in enumerate(adapters):
        if item.copies is not None:
            raise InputError(
                f"{path}.{index}.copies",
                repr(item.copies.mode),
                "adapters kept as copies cannot be merged: send the mixture with each request",
            )


def _digests(choice: CopiesChoice | None, record: AdapterRecord, path: str) -> list[str]:
    if choice is None:
        return [record.digest]
    if not _copied(record.manifest):
        raise InputError(
            path, repr(choice.mode), f"{record.label} keeps no copies apart: leave copies out"
        )
    match choice:
        case AverageCopies():
            return [record.digest]
        case SoupCopies():
            _refuse_lengths(choice, record, path)
            soup = Soup(tuple(choice.down or ()), tuple(choice.up or ()))
            return [variant_digest(record.digest, soup)]
        case StochasticCopies():
            return [variant_digest(record.digest, Stochastic(choice.seed))]
        case EnsembleCopies():
            seeds = range(choice.seed, choice.seed + choice.members)
            return [variant_digest(record.digest, Stochastic(seed)) for seed in seeds]


def _refuse_lengths(choice: SoupCopies, record: AdapterRecord, path: str) -> None:
    for expert, copies in _copied(record.manifest):
        for side, weights, published in (
            ("down", choice.down, copies.down),
            ("up", choice.up, copies.up),
        ):
            if weights is not None and len(weights) != len(published):
                raise InputError(
                    f"{path}.{side}",
                    f"{len(weights)} weights",
                    f"{record.label} keeps {len(published)} of this side at {expert.module}: give "
                    "one weight a copy, or leave the side out for its average",
                )


def _copied(manifest: AdapterManifest) -> list[tuple[ExpertSpec, Copies]]:
    copied = ((expert, copies_of(expert)) for expert in manifest.experts)
    return [(expert, copies) for expert, copies in copied if copies is not None]
