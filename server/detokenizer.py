"""Token ids to text, as they come. Owns one answer's text; knows nothing of requests or HTTP."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    """Finds the first of several stop strings in a growing text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in stops), default=0)

    def find(self, text: str, start: int, added: int) -> int | None:
        """Where the earliest stop string begins, at or after `start`; None without one.

        Only matches that end in the last `added` characters are new, so only they are looked for.
        """
        begin = max(start, len(text) - added - self._longest + 1, 0)
        found = [at for stop in self._stops if (at := text.find(stop, begin)) >= 0]
        return min(found) if found else None

    def held_back(self, text: str, start: int) -> int:
        """Length of the longest end of `text` that may become a stop string."""
        tail = text[max(start, len(text) - self._longest + 1) :] if self._longest else ""
        for offset in range(len(tail)):
            end = tail[offset:]
            if any(stop.startswith(end) for stop in self._stops):
                return len(end)
        return 0
