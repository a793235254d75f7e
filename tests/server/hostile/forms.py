"""Texts, names and tags, and forms that are none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from tests.server.hostile.cases import CONFIG, Body, Case, Good, Parts, files

_TYPE = "multipart/form-data; boundary=XX"
Head = Mapping[str, str] | None


def part(headers: bytes, content: bytes) -> bytes:
    """One part of a form, as it goes over the wire."""
    return b"--XX\r\n" + headers + b"\r\n\r\n" + content + b"\r\n"


def field(name: bytes, content: bytes) -> bytes:
    return part(b'Content-Disposition: form-data; name="' + name + b'"', content)


def file(name: bytes, content: bytes, more: bytes = b"") -> bytes:
    head = b'Content-Disposition: form-data; name="files"; filename="' + name + b'"'
    return part(head + more, content)


def whole(good: Good) -> bytes:
    """The parts of a sound upload."""
    sent = b"".join(file(name.encode(), content) for name, content in good.items())
    return field(b"name", b"sound") + sent


def body(
    make: Callable[[bytes], bytes], kind: str = _TYPE, end: bytes = b"--XX--\r\n"
) -> Callable[[Good], Body]:
    """A body made of a sound upload's parts."""
    return lambda good: (make(whole(good)) + end, kind)


def bare(content: bytes, kind: str = _TYPE) -> Callable[[Good], Body]:
    """This as the body."""
    return lambda good: (content, kind)


def texts(content: bytes) -> Callable[[Good], Parts]:
    """A sound adapter with sample texts."""
    return lambda good: [*files(*good.items()), ("texts", ("texts.jsonl", content))]


def folder_texts(content: bytes) -> Callable[[Good], Parts]:
    """The same, the texts among its files."""
    return lambda good: files(*{**good, "texts.jsonl": content}.items())


def fields(**values: str | list[str]) -> Callable[[Good], Parts]:
    """A sound adapter with fields beside it."""

    def make(good: Good) -> Parts:
        every = [
            (name, (None, value.encode()))
            for name, given in values.items()
            for value in ([given] if isinstance(given, str) else given)
        ]
        return [*files(*good.items()), *every]

    return make


LINES: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "none": (b"", (201,)),
    "one": (b'"a"', (201,)),
    "an object": (b'{"text": "a"}\n', (201,)),
    "blank lines": (b"\n \r\n\n", (201,)),
    "NUL": (rb'"\u0000"', (201,)),
    "odd line ends": ('"a\u0085b\u2028c"\r\n"d"'.encode(), (201,)),
    "no text": (b'""', (422,)),
    "spaces": (b'"  "', (422,)),
    "number": (b"1", (422,)),
    "null": (b"null", (422,)),
    "list": (b'["a"]', (422,)),
    "a key more": (b'{"text": "a", "x": 1}', (422,)),
    "another key": (b'{"texts": "a"}', (422,)),
    "cut": (b'{"text"', (422,)),
    "surrogate": (rb'"\ud800"', (422,)),
    "not UTF-8": (b'"\xff"', (422,)),
    "UTF-16": ('"a"'.encode("utf-16"), (422,)),
    "deep": (b"[" * 100_000, (422,)),
    "many digits": (b"1" * 100_000, (422,)),
    "many values": (b"[" + b"1," * 1_000_000 + b"1]", (422,)),
    "a long one": (json.dumps("x" * 40_000).encode(), (422,)),
    "a very long one": (b'"' + b"x" * 3_000_000 + b'"', (422,)),
    "too many": (b'"a"\n' * 10_000, (422,)),
    "ten megabytes of bad lines": (b"not json\n" * 1_200_000, (422,)),
    "ten megabytes of blank lines": (b"\n" * 10_000_000, (422,)),
    "ten megabytes of good lines": (b'"a"\n' * 2_500_000, (422,)),
}
_NAMES = {
    **{"empty": "", "spaces": "  ", "a slash": "a/b", "parent": "..", "hidden": ".a", "at": "a@1"},
    **{"long": "x" * 129, "a megabyte": "x" * 1_000_000, "unicode": "\u00e4", "NUL": "a\0b"},
    **{"newline": "a\nb", "digest": "sha256:" + "0" * 64, "the base": "tiny-random", "html": "<b>"},
}
_LATIN = "multipart/form-data; boundary=XX; charset="

CASES: dict[str, Case] = {
    **{f"texts {key}": Case(texts(data), statuses=said) for key, (data, said) in LINES.items()},
    **{
        f"texts of the folder {key}": Case(folder_texts(data), statuses=said)
        for key, (data, said) in LINES.items()
    },
    **{f"called {key}": Case(fields(name=name)) for key, name in _NAMES.items()},
    **{
        f"tag {key}": Case(fields(tags=name))
        for key, name in _NAMES.items()
        if name.strip() and key != "the base"
    },
    "no tag": Case(fields(tags=" , ,"), statuses=(201,)),
    "many tags": Case(fields(tags=",".join(f"t{i}" for i in range(40))), "at most 32"),
    "very many tags": Case(fields(tags=["a," * 400_000] * 20), "tags"),
    "too many fields": Case(fields(tags=["a"] * 1500), statuses=(400,)),
    "too many files": Case(
        lambda good: files(*((f"{i}.md", b"") for i in range(1500))), statuses=(400,)
    ),
    "more files than are read": Case(
        lambda good: files(*((f"{i}.md", b"") for i in range(300))), "256"
    ),
    "a field of two megabytes": Case(fields(tags="a" * (2 << 20)), statuses=(400,)),
    "an unknown field": Case(fields(zebra="1"), "zebra"),
    "texts as a field": Case(fields(texts='"a"'), statuses=(201,)),
    "bad texts as a field": Case(fields(texts="a"), "texts"),
    "files as a field": Case(lambda good: [("files", (None, b"x"))], "files"),
    "name as a file": Case(lambda good: [*files(*good.items()), ("name", ("x", b"y"))]),
    "tags as a file": Case(lambda good: [*files(*good.items()), ("tags", ("x", b"y"))], "tags"),
    "texts twice": Case(
        lambda good: [*files(*good.items()), *[("texts", ("t", b'"a"'))] * 2], "send one"
    ),
    "a file twice": Case(lambda good: files(*good.items(), (CONFIG, good[CONFIG])), "comes twice"),
    "no file": Case(lambda good: [("x", (None, b"y"))], "files"),
    "a file of no name": Case(body(lambda sent: sent + file(b"", b"x"))),
    "whole": Case(body(lambda sent: sent), statuses=(201,)),
    "no body": Case(bare(b"")),
    "only an end": Case(bare(b"--XX--\r\n")),
    "another boundary": Case(
        body(lambda sent: sent.replace(b"--XX", b"--YY")), statuses=(400, 422)
    ),
    "cut in a part": Case(body(lambda sent: sent[:-50], end=b""), "cut short", (400,)),
    "cut in a header": Case(bare(b"--XX\r\nContent-Dispo"), statuses=(400, 422)),
    "no end": Case(body(lambda sent: sent, end=b""), "cut short", (400,)),
    "junk behind the end": Case(body(lambda sent: sent, end=b"--XX--\r\njunk"), statuses=(400,)),
    "no boundary": Case(body(lambda sent: sent, "multipart/form-data"), statuses=(400, 422)),
    "an empty boundary": Case(
        body(lambda sent: sent, "multipart/form-data; boundary="), statuses=(400, 422)
    ),
    "a huge boundary": Case(
        body(lambda sent: sent, "multipart/form-data; boundary=" + "X" * 5000), statuses=(415,)
    ),
    "no disposition": Case(bare(part(b"X: y", b"z") + b"--XX--\r\n"), statuses=(400, 422)),
    "no name": Case(
        bare(part(b"Content-Disposition: form-data", b"z") + b"--XX--\r\n"), statuses=(400, 422)
    ),
    "no headers": Case(bare(b"--XX\r\n\r\nz\r\n--XX--\r\n"), statuses=(400, 422)),
    "a header without a colon": Case(
        bare(part(b"nothing", b"z") + b"--XX--\r\n"), statuses=(400, 422)
    ),
    "a header with NUL": Case(bare(part(b"\0: \0", b"z") + b"--XX--\r\n"), statuses=(400, 422)),
    "a huge header": Case(
        bare(part(b"X: " + b"y" * 1_000_000, b"z") + b"--XX--\r\n"), statuses=(400, 422)
    ),
    "many headers": Case(
        bare(part(b"\r\n".join(b"X%d: y" % i for i in range(10_000)), b"z") + b"--XX--\r\n"),
        statuses=(400, 422),
    ),
    "parts within parts": Case(
        body(
            lambda sent: (
                sent + file(b"x.md", b"y", b"\r\nContent-Type: multipart/mixed; boundary=ZZ")
            )
        ),
        statuses=(201,),
    ),
    "another encoding": Case(
        body(lambda sent: sent + file(b"x.md", b"y", b"\r\nContent-Transfer-Encoding: base64")),
        statuses=(201, 422),
    ),
    "a name that is no UTF-8": Case(
        body(lambda sent: sent + file(b"\xff.md", b"x")), statuses=(201, 422)
    ),
    "a name with a quote": Case(
        body(lambda sent: sent + file(b'a\\"b.md', b"x")), statuses=(201, 422)
    ),
    **{
        f"charset {name}": Case(
            body(lambda sent: sent + field(b"texts", b'"+2AA-"'), _LATIN + name),
            statuses=(415,),
        )
        for name in (
            "utf-7",
            "utf-16",
            "undefined",
            "idna",
            "rot13",
            "nothing",
            "unicode_escape",
            "punycode",
        )
    },
    **{
        f"type {kind!r}": Case(bare(b"x", kind), statuses=(415,))
        for kind in (
            "",
            "text/plain",
            "application/json",
            "multipart/mixed; boundary=XX",
            "multipart",
        )
    },
}
