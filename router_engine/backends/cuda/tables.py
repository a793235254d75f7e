"""Tables of the rank rows of a step's adapters, module by module, for the kernels that follow them.

They are rewritten when the set of adapters changes; in steady decoding nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from router_engine.experts.resident import Resident
from router_engine.experts.rows import RowPool
from router_engine.kernels.triton.grouped import RowTable


@dataclass(frozen=True, eq=False, slots=True)
class _Located:
    """The places of one adapter's rows in every module; 0 rows where it does not touch one."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    ranks: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HostRows:
    """The rows of a set of adapters, all modules one after another, each module's by adapter.

    module, place [rows]: where a row belongs in the tables; a, b: its addresses; owner: its column.
    """

    module: NDArray[np.int64]
    place: NDArray[np.int64]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    owner: NDArray[np.int32]
    counts: NDArray[np.int32]  # [modules]

    @property
    def most(self) -> int:
        """Rows of the module that has most."""
        return int(self.counts.max(initial=0))


class RowLocator:
    """Finds rows in the pool. Used by the engine's thread, between steps."""

    def __init__(
        self, pool: RowPool, modules: Sequence[str], strides: Sequence[tuple[int, int]]
    ) -> None:
        """`strides`: bytes of a row of A and of B in each module."""
        self._pool = pool
        self._modules = tuple(modules)
        self._strides = np.array(strides, dtype=np.int64).reshape(-1, 2)
        self._located: WeakKeyDictionary[Resident, _Located] = WeakKeyDictionary()
        self._rows: tuple[tuple[_Located, ...], HostRows] | None = None  # of the last set

    def rows(self, digests: tuple[str, ...]) -> HostRows:
        """The rows of `digests`, whose order is that of the weights' columns."""
        located = tuple(self._locate(self._pool.residents[digest]) for digest in digests)
        if self._rows is None or self._rows[0] != located:
            self._rows = (located, self._gather(located))
        return self._rows[1]

    def _locate(self, resident: Resident) -> _Located:
        located = self._located.get(resident)
        if located is None:
            found = [resident.located(module) for module in self._modules]
            parts = [(0, 0, 0) if rows is None else (rows.a, rows.b, rows.count) for rows in found]
            located = _Located(*np.array(parts, dtype=np.int64).reshape(-1, 3).T)
            self._located[resident] = located
        return located

    def _gather(self, adapters: Sequence[_Located]) -> HostRows:
        """Every (module, adapter) pair spread over its rows."""
        num_modules, columns = len(self._modules), len(adapters)
        ranks = np.stack([adapter.ranks for adapter in adapters], axis=1).ravel()
        total = int(ranks.sum())
        counts = ranks.reshape(num_modules, columns).sum(1)
        module = np.repeat(np.arange(num_modules), counts)
        place = np.arange(total) - np.repeat(counts.cumsum() - counts, counts)
        index = np.arange(total) - np.repeat(ranks.cumsum() - ranks, ranks)

        def spread(firsts: list[NDArray[np.int64]], stride: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.repeat(np.stack(firsts, axis=1).ravel(), ranks) + index * stride[module]

        return HostRows(
            module=module,
            place=place,
            a=spread([adapter.a for adapter in adapters], self._strides[:, 0]),
            b=spread([adapter.b for adapter in adapters], self._strides[:, 1]),
            owner=np.repeat(np.tile(np.arange(columns, dtype=np.int32), num_modules), ranks),
            counts=counts.astype(np.int32),
        )


class StaticTables:
    """Tables of a fixed capacity at fixed addresses, for all modules."""

    def __init__(self, num_modules: int, capacity: int, device: torch.device) -> None:
        self._shape = (num_modules, capacity)
        self._addresses = torch.zeros(2, *self._shape, dtype=torch.int64, device=device)
        self._owner = torch.zeros(self._shape, dtype=torch.int32, device=device)
        self._counts = torch.zeros(num_modules, dtype=torch.int32, device=device)
        self._holds: HostRows | None = None

    def write(self, rows: HostRows) -> None:
        """Let the tables say `rows`, which fit; nothing happens where they do."""
        if rows is self._holds:
            return
        addresses = np.zeros((2, *self._shape), dtype=np.int64)
        addresses[0, rows.module, rows.place] = rows.a
        addresses[1, rows.module, rows.place] = rows.b
        owner = np.zeros(self._shape, dtype=np.int32)
        owner[rows.module, rows.place] = rows.owner
        self._addresses.copy_(torch.from_numpy(addresses))
        self._owner.copy_(torch.from_numpy(owner))
        self._counts.copy_(torch.from_numpy(rows.counts))
        self._holds = rows

    def group(self, first: int, count: int) -> RowTable:
        """The tables of modules [first, first + count), as views."""
        part = slice(first, first + count)
        return RowTable(
            a=self._addresses[0, part],
            b=self._addresses[1, part],
            owner=self._owner[part],
            counts=self._counts[part],
        )
