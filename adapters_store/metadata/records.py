"""Records by reference, as they were at a count of changes."""

from __future__ import annotations

import threading
from collections import OrderedDict

from adapters_store.types import AdapterRecord, AdapterRef


class RecordCache:
    """The most recently used ones. Each holds only at the count of changes that it was read at."""

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._records: OrderedDict[AdapterRef, tuple[int, AdapterRecord]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, ref: AdapterRef, changes: int) -> AdapterRecord | None:
        with self._lock:
            found = self._records.get(ref)
            if found is None or found[0] != changes:
                return None
            self._records.move_to_end(ref)
            return found[1]

    def put(self, ref: AdapterRef, changes: int, record: AdapterRecord) -> None:
        with self._lock:
            self._records[ref] = (changes, record)
            self._records.move_to_end(ref)
            while len(self._records) > self._capacity:
                self._records.popitem(last=False)
