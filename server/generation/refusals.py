"""Refusals of mixtures, in the request's words: the engine's rules, asked before it is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from adapters_store.metadata.recent import Recent
from adapters_store.types import AdapterRecord
from router_engine.mixture.rules import (
    NOT_BEFORE_THE_PROMPT,
    MixtureFacts,
    MixtureFault,
    extras_faults,
    linear_faults,
)
from server.errors import InputError


class Refusals:
    """Refuses adapters that cannot be mixed as asked. For any thread but the event loop's."""

    def __init__(self, max_rank_rows: int | None) -> None:
        """max_rank_rows: of one layer, for all adapters of a request; None: any number."""
        self._max_rank_rows = max_rank_rows
        self._facts: Recent[str, MixtureFacts] = Recent()  # by digest: a manifest is long

    def of(self, record: AdapterRecord) -> MixtureFacts:
        """The facts of an adapter."""
        facts = self._facts.get(record.digest)
        if facts is None:
            facts = MixtureFacts.of(record.manifest)
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

    def extras(self, records: Sequence[AdapterRecord], path: str, reason: str) -> None:
        """Raises InputError, for this reason, where one holds more than plain LoRA."""
        _refuse(extras_faults(list(map(self.of, records)), reason), records, path)

    def whole_prompts(self, records: Sequence[AdapterRecord], path: str) -> None:
        """Raises InputError for an adapter whose gates come of a whole prompt."""
        for record in records:
            if self.of(record).reads_whole_prompts:
                raise InputError(path, record.label, NOT_BEFORE_THE_PROMPT)

    def linear(
        self, records: Sequence[AdapterRecord], path: str, weights: Sequence[float] = ()
    ) -> None:
        """Raises InputError where `linear` is not defined for them: `rules.linear_faults`."""
        _refuse(linear_faults(list(map(self.of, records)), weights), records, path)


def _refuse(faults: Iterator[MixtureFault], records: Sequence[AdapterRecord], path: str) -> None:
    labels = [record.label for record in records]
    for fault in faults:
        field = f"{path}.{fault.index}.weight" if fault.is_weight else path
        raise InputError(field, fault.told(labels), fault.reason)
