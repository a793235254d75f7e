"""Facts of adapters that decide whether they can be mixed. Manifests are long: facts are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapters_store.metadata.recent import Recent
from adapters_store.types import AdapterManifest, AdapterRecord
from router_engine.mixture.rules import FACTORS_ONLY, NOT_BEFORE_THE_PROMPT
from server.errors import InputError


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of one manifest that mixtures need."""

    rows: Mapping[str, int]  # rank rows at each place of the model
    extras: str | None  # what it holds beside plain LoRA, None for nothing
    reads_whole_prompts: bool

    @classmethod
    def of(cls, manifest: AdapterManifest) -> Facts:
        return cls(manifest.rows_by_site, manifest.not_plain, manifest.reads_whole_prompts)


class Refusals:
    """Refuses adapters that cannot be mixed as asked. For any thread but the event loop's."""

    def __init__(self, max_rank_rows: int | None) -> None:
        """max_rank_rows: of one layer, for all adapters of a request; None: any number."""
        self._max_rank_rows = max_rank_rows
        self._facts: Recent[str, Facts] = Recent()  # by digest

    def of(self, record: AdapterRecord) -> Facts:
        """The facts of an adapter."""
        facts = self._facts.get(record.digest)
        if facts is None:
            facts = Facts.of(record.manifest)
            self._facts.put(record.digest, facts)
        return facts

    def many_rows(
        self, records: Sequence[AdapterRecord], path: str, members: Sequence[Sequence[str]] = ()
    ) -> None:
        """Raises InputError where the adapters could never be on the device together.

        members: the digests of an ensemble's, aligned with the records; each takes rows of its own.
        """
        rows: Counter[str] = Counter()
        for index, record in enumerate(records):
            variants = len({member[index] for member in members}) or 1
            for site, count in self.of(record).rows.items():
                rows[site] += variants * count
        most, limit = max(rows.values(), default=0), self._max_rank_rows
        if limit is not None and most > limit:
            raise InputError(
                path,
                f"{len(records)} adapters",
                f"need {most} rank rows in one layer, and all that are on the device at once have "
                f"{limit} (ADAPTERMIX_MAX_RANK_ROWS): use fewer, or of lower rank",
            )

    def special(self, records: Sequence[AdapterRecord], path: str, reason: str) -> None:
        """Raises InputError, for this reason, where one holds more than plain LoRA."""
        for record in records:
            extras = self.of(record).extras
            if extras is not None:
                raise InputError(path, f"{record.label}, which holds {extras}", reason)

    def whole_prompts(self, records: Sequence[AdapterRecord], path: str) -> None:
        """Raises InputError for an adapter whose gates come of a whole prompt."""
        for record in records:
            if self.of(record).reads_whole_prompts:
                raise InputError(path, record.label, NOT_BEFORE_THE_PROMPT)

    def unequal_ranks(self, records: Sequence[AdapterRecord], path: str) -> None:
        """Raises InputError where `linear` cannot sum factors: all is plain LoRA of equal ranks.

        Of plain LoRA the rows at a place are the rank there.
        """
        self.special(records, path, FACTORS_ONLY)
        ranks: dict[str, tuple[int, str]] = {}
        for record in records:
            for site, own_rank in self.of(record).rows.items():
                rank, label = ranks.setdefault(site, (own_rank, record.label))
                if rank != own_rank:
                    raise InputError(
                        path,
                        f"{label} of rank {rank} with {record.label} of rank {own_rank}",
                        "combination linear needs equal ranks: use combination sum",
                    )
