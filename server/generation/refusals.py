"""Refusals of mixtures, in the request's words: the engine's rules, asked before it is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adapters_store.device_size import device_bytes
from adapters_store.metadata.recent import Recent
from adapters_store.types import AdapterRecord, BaseModelSpec
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

    def __init__(self, base: BaseModelSpec) -> None:
        self._base = base
        self._facts: Recent[str, MixtureFacts] = Recent()  # by digest: a manifest is long
        self._sizes: Recent[str, int] = Recent()  # bytes on the device, likewise

    def of(self, record: AdapterRecord) -> MixtureFacts:
        """The facts of an adapter."""
        facts = self._facts.get(record.digest)
        if facts is None:
            facts = MixtureFacts.of(record.manifest)
            self._facts.put(record.digest, facts)
        return facts

    def too_large(
        self, records: Sequence[AdapterRecord], path: str, members: Sequence[Sequence[str]] = ()
    ) -> None:
        """Raises InputError where the adapters could never be on the device together.

        members: the digests of an ensemble's, aligned with the records; each has bytes of its own.
        """
        limit = self._base.adapter_bytes
        if limit is None:
            return
        needed = 0
        for index, record in enumerate(records):
            variants = len({member[index] for member in members}) or 1
            needed += variants * self._size(record)
        if needed > limit:
            raise InputError(
                path,
                f"{len(records)} adapters",
                f"need {needed:,} bytes on the device, which has {limit:,} for adapters "
                "(ADAPTERMIX_ADAPTER_MEMORY): use fewer, or of lower rank",
            )

    def _size(self, record: AdapterRecord) -> int:
        size = self._sizes.get(record.digest)
        if size is None:
            size = device_bytes(record.manifest, self._base)
            self._sizes.put(record.digest, size)
        return size

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
