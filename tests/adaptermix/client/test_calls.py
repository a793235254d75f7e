"""Server-sent events, byte by byte."""

from __future__ import annotations

import json

import pytest

from adaptermix import BrokenStreamError
from adaptermix.client.calls import EventReader
from adaptermix.client.reading import as_json

ODD = "a\x85b\u2028c\td\r\ne\x0bf\x1cg \x00h"


def frames_of(*texts: str) -> bytes:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    return "".join(f"data: {line}\r\n\r\n" for line in lines).encode()


def reader() -> EventReader[str]:
    """Of events that are the last where they say so."""

    def parse(data: bytes) -> tuple[str, bool]:
        event = as_json(data)
        return event["text"], event["text"] == "last"

    return EventReader(parse, {}, has_end_mark=False)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_events_end_at_line_feeds_alone(size: int) -> None:
    raw = frames_of(ODD, "last")
    events = reader()
    chunks = [raw[i : i + size] for i in range(0, len(raw), size)]
    assert [text for chunk in chunks for text in events.feed(chunk)] == [ODD, "last"]
    events.end()


def test_a_stream_without_its_last_event_is_cut() -> None:
    events = reader()
    assert list(events.feed(frames_of("a", "b"))) == ["a", "b"]
    with pytest.raises(BrokenStreamError, match="cut"):
        events.end()
