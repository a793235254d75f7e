"""Token ids to text, as they come. Owns one answer's text; knows nothing of requests or HTTP."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Decoder(Protocol):
    """What a tokenizer must offer here."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        ...

    def token_of(self, token_id: int) -> str:
        """The vocabulary's own spelling of a token."""
        ...


class Detokenizer:
    """Incremental decoding whose deltas join to `decode` of all tokens.

    A character may take several tokens. Text is held back while it ends in an unfinished character
    or in byte-fallback tokens (`<0xE2>`), which a later byte can still change.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._ids: list[int] = []
        self._window = 0  # start of the last settled piece: context for joining the next
        self._settled = 0  # tokens whose text has been handed out
        self._before = ""  # text of the tokens [window, settled)

    @property
    def is_pending(self) -> bool:
        """Whether tokens were pushed whose text has not been handed out."""
        return self._settled < len(self._ids)

    def push(self, token_id: int) -> str:
        """The text that this token settles; "" while it may still change."""
        was_pending = self.is_pending
        self._ids.append(token_id)
        if _BYTE_TOKEN.fullmatch(self._decoder.token_of(token_id)):
            return ""
        if was_pending and not self._decoder.decode([token_id]):
            return ""  # a special token, say: to the decoder the bytes around it are neighbours
        delta = self._delta()
        if delta.endswith(REPLACEMENT):
            return ""
        return self._settle(delta)

    def flush(self) -> str:
        """What is still held back, at the end of the answer."""
        return self._settle(self._delta()) if self.is_pending else ""

    def _delta(self) -> str:
        return self._decoder.decode(self._ids[self._window :])[len(self._before) :]

    def _settle(self, delta: str) -> str:
        # A piece of special tokens alone decodes to "": it gives no context, so it joins the window
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
        """Read on. How many characters before the end of the text the earliest stop string begins.

        Of those that end in what was added; None without one.
        """
        begun = [at for stop in self._stops if (at := stop.push(added)) is not None]
        return max(begun) if begun else None

    @property
    def held_back(self) -> int:
        """Length of the longest end of the text that may become a stop string."""
        return max((stop.length for stop in self._stops), default=0)

    def reset(self) -> None:
        """The text begins here."""
        for stop in self._stops:
            stop.length = 0


class _Progress:
    """How much of one stop string the text ends in, after Knuth, Morris and Pratt."""

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._borders = _borders(stop)
        self.length = 0

    def push(self, added: str) -> int | None:
        """How many characters before the end of the text the stop string first begins, if it does.

        The text is what it becomes with `added`, in which the stop string ends.
        """
        stop, borders, length, found = self._stop, self._borders, self.length, None
        for index, character in enumerate(added, 1):
            while length and stop[length] != character:
                length = borders[length]
            if stop[length] == character:
                length += 1
            if length == len(stop):
                if found is None:
                    found = length + len(added) - index
                length = borders[length]
        self.length = length
        return found


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
