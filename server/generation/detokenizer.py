"""Token ids to text, as they come. Owns one answer's text; knows nothing of requests or HTTP."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

REPLACEMENT = "\ufffd"
_HELD = 8  # tokens; an unfinished character has at most 3 bytes, and so as many tokens
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class TokenDecoder(Protocol):
    """The part of a tokenizer that detokenization needs."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        ...

    def is_skipped(self, token_id: int) -> bool:
        """Whether `decode` leaves a token out: a special one."""
        ...

    def token_of(self, token_id: int) -> str:
        """The vocabulary's own spelling of a token."""
        ...


class Detokenizer:
    """Incremental decoding whose deltas join to `decode` of all tokens.

    A character may take several tokens. Text is held back while it ends in an unfinished character
    or in byte-fallback tokens (`<0xE2>`), which a later byte can still change. Where it has ended
    so for longer than a character can be unfinished, all but the last one is settled: a token costs
    the same however many came before it.
    """

    def __init__(self, decoder: TokenDecoder) -> None:
        self._decoder = decoder
        self._ids: list[int] = []
        self._window = 0  # start of the last settled piece: context for joining the next
        self._settled = 0  # tokens whose text has been handed out
        self._before = ""  # text of the tokens [window, settled)

    @property
    def num_pending(self) -> int:
        """The number of last tokens whose text has not been handed out."""
        return len(self._ids) - self._settled

    def push(self, token_id: int) -> str:
        """The text that this token settles; "" while it may still change."""
        if self._decoder.is_skipped(token_id):
            return ""  # to the decoder the bytes around it are neighbours
        was_pending = self.num_pending > 0
        self._ids.append(token_id)
        if _BYTE_TOKEN.fullmatch(self._decoder.token_of(token_id)):
            return ""
        if was_pending and not self._decoder.decode([token_id]):
            return ""
        delta = self._delta()
        if not delta.endswith(REPLACEMENT):
            return self._settle(delta)
        return self._settle_all_but_last(delta) if self.num_pending > _HELD else ""

    def flush(self) -> str:
        """The text that is still held back, at the end of the answer."""
        return self._settle(self._delta()) if self.num_pending else ""

    def _delta(self) -> str:
        return self._decoder.decode(self._ids[self._window :])[len(self._before) :]

    def _settle_all_but_last(self, delta: str) -> str:
        """Hand out all characters but the last: bytes to come can change no other."""
        settled = delta[:-1]
        self._before += settled
        self._settled = len(self._ids) - 1
        middle = len(self._ids) - _HELD
        first = self._decoder.decode(self._ids[self._window : middle])
        last = self._decoder.decode(self._ids[middle:])
        if self._before.startswith(first) and first + last == self._before + delta[-1]:
            self._window, self._before = middle, self._before[len(first) :]
        return settled

    def _settle(self, delta: str) -> str:
        # A piece that decodes to "" gives no context, so it joins the window
        if delta:
            self._window = self._settled
        self._settled = len(self._ids)
        self._before = self._decoder.decode(self._ids[self._window :])
        return delta


class StopMatcher:
    """Finds the first of several stop strings in a growing text.

    What is added costs as much as it is long, however long text and stop strings are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [_Progress(stop) for stop in dict.fromkeys(stops)]

    def push(self, added: str) -> int | None:
        """Read on: the distance of the earliest stop string's beginning from the text's end.

        In characters. Of those that end in what was added; None without one.
        """
        distances = [at for stop in self._stops if (at := stop.push(added)) is not None]
        return max(distances) if distances else None

    @property
    def held_back(self) -> int:
        """Length of the longest end of the text that may become a stop string."""
        return max((stop.length for stop in self._stops), default=0)

    def reset(self) -> None:
        """The text begins here."""
        for stop in self._stops:
            stop.length = 0


class _Progress:
    """The length of one stop string's beginning that the text ends in (Knuth, Morris and Pratt)."""

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._borders = _borders(stop)
        self.length = 0

    def push(self, added: str) -> int | None:
        """The distance of the stop string's first beginning from the text's end, or None.

        The text is what it becomes with `added`, in which the stop string ends.
        """
        stop, borders, length, distance = self._stop, self._borders, self.length, None
        for index, character in enumerate(added, 1):
            while length and stop[length] != character:
                length = borders[length]
            if stop[length] == character:
                length += 1
            if length == len(stop):
                if distance is None:
                    distance = length + len(added) - index
                length = borders[length]
        self.length = length
        return distance


@lru_cache(maxsize=256)  # the answers of one request have theirs in common
def _borders(stop: str) -> Sequence[int]:
    """For each length of a beginning of `stop`, that of the longest shorter one that it ends in."""
    borders = array("L", [0, 0])
    border = 0
    for character in stop[1:]:
        while border and stop[border] != character:
            border = borders[border]
        if stop[border] == character:
            border += 1
        borders.append(border)
    return borders
