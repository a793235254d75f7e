"""Adapters' sample texts as admins see them: their centroids, and which lie too near together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import structlog

from adapters_store.errors import StoreError
from adapters_store.types import AdapterRecord
from router_engine.errors import RouterError
from router_engine.routers.centroid_overlap import (
    BOUND,
    RATIO,
    TEMPERATURE,
    CentroidOverlap,
    overlapping_centroids,
)
from router_engine.routers.centroids import Centroid, CentroidService
from server.generation.centroids import routable
from server.schemas.adapters import TextState

log = structlog.get_logger(__name__)

_NAMED = 3  # adapters that one warning names


class TextStates:
    """The centroids of sample texts: has them made, and says how those of the encoder stand.

    `hidden` are the centroids of the routers that read hidden states: the engine makes them.
    """

    def __init__(
        self, centroids: CentroidService | None, hidden: CentroidService | None, encoder: str
    ) -> None:
        """None: of those nothing is made here; whoever needs them has them made."""
        self._centroids = centroids
        self._hidden = hidden
        self._encoder = encoder
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop what goes on in the background."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def make(self, record: AdapterRecord, *, seconds: float = 0.0) -> None:
        """Begin to compute centroids, so that the first routed request need not.

        Waits for that of the encoder, where it is there, at most `seconds`.
        """
        if record.num_texts == 0:
            return
        if self._hidden is not None:
            self._start(self._hidden, record)
        if self._centroids is None:
            return
        task = self._start(self._centroids, record)
        if seconds and self._centroids.is_connected:
            await asyncio.wait({task}, timeout=seconds)

    def _start(self, centroids: CentroidService, record: AdapterRecord) -> asyncio.Task[None]:
        task = asyncio.create_task(_logged(centroids.ensure([routable(record)]), record.label))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def forget(self, record: AdapterRecord) -> None:
        """Drop a deleted adapter's centroid from memory."""
        for centroids in (self._centroids, self._hidden):
            if centroids is not None:
                centroids.forget(record.digest)

    async def of(
        self, records: Sequence[AdapterRecord], newest: Sequence[AdapterRecord]
    ) -> dict[str, TextState]:
        """States by digest. `newest`, a version of each name, are whom the warnings compare."""
        if self._centroids is None:
            return {record.digest: TextState() for record in records}
        ready = await self._centroids.ready(map(routable, [*records, *newest]))
        warnings = await asyncio.to_thread(_warnings, records, newest, ready)
        return {
            record.digest: TextState(
                centroid="ready" if record.digest in ready else "pending",
                encoder=self._encoder,
                warnings=warnings.get(record.digest, ()),
            )
            if record.num_texts
            else TextState()
            for record in records
        }


def _warnings(
    records: Sequence[AdapterRecord],
    newest: Sequence[AdapterRecord],
    ready: Mapping[str, Centroid],
) -> dict[str, tuple[str, ...]]:
    """By digest. Names of one digest are one adapter: nothing has to tell them apart."""
    by_digest = {record.digest: record for record in newest if record.digest in ready}
    compared = list(by_digest.values())
    wanted = {record.digest for record in records}
    of = [index for index, record in enumerate(compared) if record.digest in wanted]
    if not of:
        return {}
    centroids = [ready[record.digest] for record in compared]
    return {
        compared[near.index].digest: (_warning(near, compared),)
        for near in overlapping_centroids(centroids, of)
    }


def _warning(near: CentroidOverlap, compared: Sequence[AdapterRecord]) -> str:
    pairs = zip(near.others[:_NAMED], near.cosines, strict=False)
    named = ", ".join(f"{compared[index].label} ({cosine:.3f})" for index, cosine in pairs)
    more = len(near.others) - _NAMED
    and_more = f" and {more} more" if more > 0 else ""
    return (
        f"{compared[near.index].label} is hard to tell from {named}{and_more} by its sample texts: "
        f"the cosine of their centroids is above {BOUND:.3f}, so under similarity at temperature "
        f"{TEMPERATURE:g} even a text at the centroid of one gives it less than {RATIO:g} times "
        "the weight of the other; set texts that differ more"
    )


async def _logged(work: Coroutine[Any, Any, None], label: str) -> None:
    try:
        await work
    except (RouterError, StoreError, OSError) as error:
        log.warning("no centroid yet", adapter=label, reason=str(error))
