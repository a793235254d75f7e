"""Forms are parsed in pieces: however many parts arrive at once, others have their turn."""

from __future__ import annotations

import asyncio

import pytest
from starlette.formparsers import MultiPartException
from starlette.types import Message

from server.http.forms import MOST_PART_HEADER, whole
from tests.server.live import Live

KIND = "multipart/form-data; boundary=b"
END = b"--b--\r\n"


def part(name: str, more: bytes = b"", data: bytes = b"x") -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="%s"' % name.encode()
    return head + more + b"\r\n\r\n" + data + b"\r\n"


def pieces_of(body: bytes, *, at_once: int) -> list[tuple[bytes, int]]:
    """What the parser is given of a body that arrives so much at a time, and at which turn."""

    async def read() -> list[tuple[bytes, int]]:
        turn = 0
        arriving = [body[at : at + at_once] for at in range(0, len(body), at_once)]

        async def count() -> None:
            nonlocal turn
            while True:
                await asyncio.sleep(0)
                turn += 1

        async def receive() -> Message:
            await asyncio.sleep(0)
            piece = arriving.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(arriving)}

        counting = asyncio.create_task(count())
        receive_piece = whole(receive, KIND)
        found = []
        while True:
            message = await receive_piece()
            found.append((message["body"], turn))
            if not message["more_body"]:
                counting.cancel()
                return found

    return asyncio.run(read())


@pytest.mark.parametrize("at_once", [1, 7, 5000, 1 << 20])
@pytest.mark.parametrize(
    "body",
    [
        b"".join(part(f"a{index}") for index in range(200)) + END,
        part("a", data=b"\r\n-" * 5000) + END,
        part("a", data=bytes(100_000)) + part("b", data=b"{}\r\n" * 1000) + END,
    ],
    ids=["parts", "marks", "files"],
)
def test_a_form_is_the_same_in_pieces(body: bytes, at_once: int) -> None:
    assert b"".join(piece for piece, _ in pieces_of(body, at_once=at_once)) == body


def test_between_pieces_with_parts_others_have_their_turn() -> None:
    body = b"".join(part(f"a{index}") for index in range(999)) + END
    found = pieces_of(body, at_once=1 << 20)
    assert max(piece.count(b"--b\r\n") for piece, _ in found) < 32
    turns = [turn for _, turn in found]
    assert len(set(turns)) == len(turns) == len(found) > 32


def test_a_file_is_not_cut_up() -> None:
    body = part("a", data=bytes(1 << 20)) + END
    assert len(pieces_of(body, at_once=1 << 18)) < 16


@pytest.mark.parametrize("at_once", [100, 1 << 20])
def test_a_long_header_of_a_part_never_reaches_the_parser(at_once: int) -> None:
    long = part("a", b'; z="' + b";" * MOST_PART_HEADER)
    with pytest.raises(MultiPartException, match=str(MOST_PART_HEADER)):
        pieces_of(long + END, at_once=at_once)


def test_a_long_header_of_a_part_is_a_bad_request(live: Live) -> None:
    body = part("a", b'; z="' + b";" * 3800) * 64 + END
    for path in ("/admin/adapters", "/admin/adapters/check"):
        answer = live.client.post(path, content=body, headers={"Content-Type": KIND})
        assert answer.status_code == 400, answer.text
        assert str(MOST_PART_HEADER) in answer.json()["error"]


def test_a_name_may_be_as_long_as_a_file_s(live: Live) -> None:
    body = part("n" * 255) + END
    answer = live.client.post("/admin/adapters/check", content=body, headers={"Content-Type": KIND})
    assert answer.status_code == 422
    assert "name" in answer.json()["error"]
