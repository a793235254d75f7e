"""One answer as it grows: tokens in, pieces of settled text out, cut at a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from router_engine.events import TokenEvent
from server.generation.detokenizer import Detokenizer, StopMatcher, TokenDecoder


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """A generated token with the text it adds to the answer."""

    event: TokenEvent
    text: str


class AnswerText:
    """Collects the tokens of one answer.

    Pieces leave in order, one a token, and their texts join to the whole answer. A piece waits
    while its text may still change: an unfinished character, or the beginning of a stop string.
    Stop strings count from the text of token `min_new_tokens` on.
    """

    def __init__(
        self, decoder: TokenDecoder, stops: Sequence[str] = (), min_new_tokens: int = 0
    ) -> None:
        self._detokenizer = Detokenizer(decoder)
        self._matcher = StopMatcher(stops)
        self._min_new_tokens = min_new_tokens
        self._waiting: list[AnswerPiece] = []
        self._released = 0  # characters that have left
        self.text = ""
        self.num_tokens = 0
        self.is_stopped = False

    def push(self, event: TokenEvent) -> list[AnswerPiece]:
        """Add a token; the pieces that are now settled. Must not be called once stopped."""
        self.num_tokens += 1
        return self._grow(event, self._detokenizer.push(event.token_id))

    def flush(self) -> list[AnswerPiece]:
        """End the answer: every piece that still waits."""
        text = self._detokenizer.flush()
        pieces: list[AnswerPiece] = []
        if text and self._waiting and not self.is_stopped:
            last = self._waiting.pop()
            pieces = self._grow(last.event, last.text + text, already=len(last.text))
        pieces += self._waiting
        self._waiting = []
        return pieces

    def _grow(self, event: TokenEvent, text: str, already: int = 0) -> list[AnswerPiece]:
        added = text[already:]
        self.text += added
        self._waiting.append(AnswerPiece(event, text))
        stop_length = self._matcher.push(added)
        if self.num_tokens <= self._min_new_tokens:
            self._matcher.reset()
        elif stop_length is not None:
            self._cut(len(self.text) - stop_length)
            return []
        return self._release(
            len(self.text) - self._matcher.held_back,
            len(self._waiting) - self._detokenizer.num_pending,
        )

    def _cut(self, at: int) -> None:
        """Drop the text from `at` on; it lies in waiting pieces only."""
        self.is_stopped = True
        self.text = self.text[:at]
        position = self._released
        for index, piece in enumerate(self._waiting):
            room = max(0, at - position)
            position += len(piece.text)
            self._waiting[index] = replace(piece, text=piece.text[:room])

    def _release(self, safe: int, most: int) -> list[AnswerPiece]:
        """The first pieces, at most so many, whose text ends at or before `safe`."""
        count, end = 0, self._released
        for piece in self._waiting[: max(0, most)]:
            if end + len(piece.text) > safe:
                break
            end += len(piece.text)
            count += 1
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        self._released = end
        return ready
