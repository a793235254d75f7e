"""The work of a step's attention as items of about equal length, whoever's they are.

A tile is some tokens of one request, which read the same context. A context that is long beside
the others' is shared among several items, so that one request of many thousand positions among
short ones keeps the whole card busy (flash-decoding, Dao et al. 2023, over a list of work).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK_N = 64  # context positions of one turn of an item
LEAST_TURNS = 4  # of an item: a shorter share is not worth a program and a row to join
ITEM_NUMBERS = 7
JOIN_NUMBERS = 4

_Ints = NDArray[np.signedinteger[Any]]


class WorkRoom(NamedTuple):
    """The most of each that a `HostWork` may have."""

    items: int
    joins: int
    rows: int


@dataclass(frozen=True, slots=True)
class Cutting:
    """What a cut depends on beside the step.

    heads: of queries. tile: tokens of a tile. programs: items that fill the card, for each kv head.
    window: positions that a token sees; None for all. least: turns of an item that is a part.
    """

    heads: int
    tile: int
    programs: int
    window: int | None = None
    least: int = LEAST_TURNS

    def room(self, tokens: int, requests: int) -> WorkRoom:
        """For every step of up to so many tokens and requests."""
        tiles = requests + tokens // self.tile
        if self.tile == 1:
            tiles = requests = tokens
        items = tiles + self.programs
        return WorkRoom(items, requests, items * self.heads)


@dataclass(frozen=True, slots=True)
class HostWork:
    """The items of a step.

    items [items, 7]: request, first token of the flat batch, tokens, position of the first, first
    position of the context that is read, the one past the last, and the row of the parts where
    what is found goes, -1 where the item has its tile alone. joins [tokens, 4] of the tiles with
    several items: token, first row, rows from one item's to the next, items. rows: of all parts;
    a token has as many as there are heads.
    """

    items: NDArray[np.int32]
    joins: NDArray[np.int32]
    rows: int


@dataclass(frozen=True, slots=True)
class _Tiles:
    """All tiles of a step, one number each."""

    request: _Ints
    first: _Ints  # token of the flat batch
    tokens: _Ints
    position: _Ints  # of the first token
    begin: _Ints  # of the context
    end: _Ints

    @property
    def turns(self) -> _Ints:
        return -(-(self.end - self.begin) // BLOCK_N)


def cut(
    lengths: _Ints, contexts: _Ints, cutting: Cutting, room: WorkRoom | None = None
) -> HostWork:
    """The work of requests that follow one another in the flat batch.

    lengths, contexts [requests]: tokens in this step, and positions that the last of them sees;
    requests without a token may be among them. room: where there would be more, only contexts of
    single tokens are shared.
    """
    tiles = _tiles(lengths, contexts, cutting)
    turns = tiles.turns
    share = max(cutting.least, -(-int(turns.sum()) // cutting.programs))
    parts = np.maximum(-(-turns // share), 1)
    rows = np.where(parts > 1, tiles.tokens * cutting.heads, 0)
    if room is not None and (
        rows.sum() > room.joins * cutting.heads or (rows * parts).sum() > room.rows
    ):
        parts[tiles.tokens > 1] = 1
        rows = np.where(parts > 1, tiles.tokens * cutting.heads, 0)
    ends = (rows * parts).cumsum()
    starts = ends - rows * parts
    return HostWork(
        items=_items(tiles, parts, rows, starts),
        joins=_joins(tiles, parts, rows, starts, cutting.heads),
        rows=int(ends[-1]) if len(ends) else 0,
    )


def _tiles(lengths: _Ints, contexts: _Ints, cutting: Cutting) -> _Tiles:
    counts = -(-lengths // cutting.tile)
    request = np.repeat(np.arange(len(lengths)), counts)
    before = (np.arange(len(request)) - (counts.cumsum() - counts)[request]) * cutting.tile
    tokens = np.minimum(cutting.tile, lengths[request] - before)
    position = contexts[request] - lengths[request] + before
    begin = np.zeros_like(position)
    if cutting.window is not None:
        begin = np.maximum(position - cutting.window + 1, 0) // BLOCK_N * BLOCK_N
    first = (lengths.cumsum() - lengths)[request] + before
    return _Tiles(request, first, tokens, position, begin, position + tokens)


def _items(tiles: _Tiles, parts: _Ints, rows: _Ints, starts: _Ints) -> NDArray[np.int32]:
    tile = np.repeat(np.arange(len(parts)), parts)
    part = np.arange(len(tile)) - (parts.cumsum() - parts)[tile]
    share = -(-tiles.turns // parts)[tile] * BLOCK_N  # the same for all items of a tile
    begin = tiles.begin[tile] + part * share
    end = np.minimum(tiles.end[tile], begin + share)
    row = np.where(parts[tile] > 1, starts[tile] + part * rows[tile], -1)
    columns = (tiles.request, tiles.first, tiles.tokens, tiles.position)
    items = np.stack((*(column[tile] for column in columns), begin, end, row), axis=1)
    longest_first = np.argsort(begin - end, kind="stable")
    return items[longest_first].astype(np.int32)


def _joins(
    tiles: _Tiles, parts: _Ints, rows: _Ints, starts: _Ints, heads: int
) -> NDArray[np.int32]:
    shared = np.flatnonzero(parts > 1)
    tokens = tiles.tokens[shared]
    tile = np.repeat(shared, tokens)
    within = np.arange(len(tile)) - np.repeat(tokens.cumsum() - tokens, tokens)
    numbers = (tiles.first[tile] + within, starts[tile] + within * heads, rows[tile], parts[tile])
    return np.stack(numbers, axis=1).astype(np.int32)
