"""Names, archives and folders."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping

from tests.adapters_store.folders import special, tarred, zipped
from tests.server.hostile.cases import CONFIG, TENSORS, Case, Good, Parts, files

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"


def beside(name: str, content: bytes = b"x") -> Callable[[Good], Parts]:
    """One more file beside a sound adapter."""
    return lambda good: files(*good.items(), (name, content))


def in_zip(*names: str) -> Callable[[Good], Parts]:
    """A zip of a sound adapter and files of these names."""
    return lambda good: files(("a.zip", zipped([*good.items(), *((name, b"x") for name in names)])))


def in_tar(name: str, kind: bytes, target: str = "") -> Callable[[Good], Parts]:
    """A tar of a sound adapter and something special."""
    return lambda good: files(("a.tar", tarred(good, [special(name, kind, target)])))


def raw(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Good], Parts]:
    """This and nothing else. What takes long to make is made when it is asked for."""
    return lambda good: files((name, content if isinstance(content, bytes) else content()))


def below(folder: str) -> Callable[[Good], Parts]:
    """A zip of a sound adapter, and another in a folder of it."""
    return lambda good: files(
        ("a.zip", zipped({**good, **{f"{folder}/{name}": data for name, data in good.items()}}))
    )


def _pax(records: Mapping[str, str], count: int = 1) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for index in range(count):
            info = tarfile.TarInfo(f"{index}.md")
            info.pax_headers = dict(records)
            archive.addfile(info)
    return sink.getvalue()


def _extended(
    body: bytes, kind: bytes = tarfile.XHDTYPE, files: Mapping[str, bytes] | None = None
) -> bytes:
    """Files behind an extended header of any content."""
    info = tarfile.TarInfo("x")
    info.type = kind
    info.size = len(body)
    return info.tobuf() + body + bytes(-len(body) % 512) + tarred(files or {"x.md": b"y"})


def _sound_behind(body: bytes, kind: bytes) -> Callable[[Good], Parts]:
    """A sound adapter behind an extended header."""
    return lambda good: files(("a.tar", _extended(body, kind, good)))


def _record(key: bytes, value: bytes) -> bytes:
    """One of an extended header: its length counts itself."""
    size = len(key) + len(value) + 3
    length = size + len(b"%d" % (size + len(b"%d" % size)))
    return b"%d %s=%s\n" % (length, key, value)


def _pax_chain(count: int) -> bytes:
    """Extended headers that follow each other, with no file behind them."""
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    info.size = 11
    return (info.tobuf() + b"11 path=ab\n".ljust(512, b"\0")) * count


def _sparse(numbers: int) -> bytes:
    body = (b"%d\n" % numbers) + b"0\n" * numbers
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("x.md")
        info.size = len(body)
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "x",
        }
        archive.addfile(info, io.BytesIO(body))
    return sink.getvalue()


def _behind(good: Good, content: bytes) -> bytes:
    """A tar of a sound adapter with this in place of its end."""
    sound = tarred(good)
    used = len(sound.rstrip(b"\0"))
    return sound[: used + -used % 512] + content


def _in_parts(content: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield gzip.compress(content[start : start + size])


def _below_zero() -> bytes:
    """A file that begins where it ends, again and again."""
    info = tarfile.TarInfo("x.md")
    info.size = -512
    return info.tobuf(format=tarfile.GNU_FORMAT) + bytes(1024)


def _directories(count: int) -> bytes:
    info = tarfile.TarInfo("d")
    info.type = tarfile.DIRTYPE
    return gzip.compress(info.tobuf() * count)


def _twice() -> bytes:
    made = zipped({"adapter_config.json": b"1", "adapter_CONFIG.json": b"2"})
    return made.replace(b"CONFIG", b"config")


def _flags(bit: int) -> bytes:
    made = bytearray(zipped({CONFIG: b"{}"}))
    for at in (made.find(b"PK\x03\x04") + 6, made.find(b"PK\x01\x02") + 8):
        made[at] |= bit
    return bytes(made)


# As extended headers of a tar: what takes long to search, and what is no header.
_BODIES = {
    "digits": b"1" * 900_000,
    "lengths without a key": b"2 " * 450_000 + b"=",
    "a digit and spaces": b"1" + b" " * 900_000,
    "one length, long": b"9" * 900_000 + b" path=x\n",
    "a length of 0": b"0 path=x\n",
    "a length of 1": b"1 path=x\n",
    "a length below 0": b"-9 path=x\n",
    "a length beyond it": b"99 path=x\n",
    "a length in other digits": "\u0661\u0661 path=xyz\n".encode(),
    "no key": b"5 ab\n",
    "no line's end": b"10 path=xy",
    "NUL": bytes(100_000),
    "a text for a size": _record(b"size", b"x" * 100_000),
    "a size below 0": _record(b"size", b"-512"),
    "a size of many digits": _record(b"size", b"1" * 100_000),
    "a huge size": _record(b"size", b"9" * 18),
    "sparse offsets": _record(b"GNU.sparse.size", b"9") + _record(b"x", b"1" * 800_000),
    "a sparse map": _record(b"GNU.sparse.map", b"1," * 400_000 + b"1"),
    "a path that is no UTF-8": _record(b"path", b"\xff.md"),
    "a path of a megabyte": _record(b"path", b"x" * 900_000),
    "a link's path": _record(b"path", b"../adapter_config.json"),
}
# In these tarfile's own expressions take long, though there is nothing wrong.
_SOUND_BODIES = {
    "digits in a value": _record(b"comment", b"1" * 900_000),
    "lengths in a value": _record(b"comment", b"2 " * 450_000),
    "a sparse key's digits": _record(b"comment", b"1" * 450_000 + b" GNU.sparse.offset="),
    "many records": b"".join(_record(b"k%d" % i, b"v") for i in range(60_000)),
    "an odd charset": _record(b"hdrcharset", b"\xff"),
}

_KINDS = {
    "an extended header": tarfile.XHDTYPE,
    "a global header": tarfile.XGLTYPE,
    "a header of Solaris": tarfile.SOLARIS_XHDTYPE,
}

_NAMES = {
    "parent": "../adapter_config.json",
    "deep parent": "a/../../x.md",
    "absolute": "/etc/passwd",
    "absolute twice": "//etc/passwd.md",
    "backslash": "..\\x.md",
    "drive": "C:x.md",
    "stream": "x.md:hidden",
    "dot": "a/./x.md",
    "empty part": "a//x.md",
    "newline": "x\ny.md",
    "escape": "x\x1b[2J.md",
    "delete": "x\x7f.md",
    "right to left": "x\u202edm.exe",
    "zero width": "adapter\u200b_config.json",
    "long": "x" * 256 + ".md",
    "huge": "x" * 20_000 + ".md",
    "program": "run.sh",
    "library": "evil.so",
    "python": "modeling.py",
    "pickle": "training_args.bin",
    "pickle in capitals": "OPTIMIZER.PT",
    "random state": "rng_state.pth",
    "numpy": "x.npy",
    "second tensors": "model.safetensors",
    "shards": "adapter_model.safetensors.index.json",
    "archive in it": "b.zip",
    "no suffix": "core",
    "config in capitals": "ADAPTER_CONFIG.JSON",
    "fullwidth": "ａdapter_config.json.exe",
}

# A form writes the first of them otherwise, and its reader takes no header as long as the second.
_LOOSE = {"newline": (201,), "huge": (400, 422)}

CASES: dict[str, Case] = {
    **{
        f"name {key}: loose": Case(beside(name), statuses=_LOOSE.get(key, (422,)))
        for key, name in _NAMES.items()
    },
    **{f"name {key}: zip": Case(in_zip(name)) for key, name in _NAMES.items() if key != "huge"},
    **{
        f"name {key}: tar": Case(raw("a.tar", tarred({name: b"x"})))
        for key, name in _NAMES.items()
        if key not in ("archive in it",)
    },
    "symbolic link": Case(in_tar("x.md", tarfile.SYMTYPE, "/etc/passwd"), "link"),
    "symbolic link of the tensors": Case(in_tar(TENSORS, tarfile.SYMTYPE, "/etc/passwd")),
    "link of a huge name": Case(in_tar("x.md", tarfile.SYMTYPE, "y" * 100_000)),
    "hard link": Case(in_tar("x.md", tarfile.LNKTYPE, CONFIG), "link"),
    "character device": Case(in_tar("x.md", tarfile.CHRTYPE), "device"),
    "block device": Case(in_tar("x.md", tarfile.BLKTYPE), "device"),
    "pipe": Case(in_tar("x.md", tarfile.FIFOTYPE), "pipe"),
    "contiguous": Case(in_tar("x.md", tarfile.CONTTYPE), statuses=(201,)),
    "unknown kind": Case(in_tar("x.md", b"Z"), statuses=(201, 422)),
    "zip with a name twice": Case(raw("a.zip", _twice()), "twice"),
    "zip with a NUL": Case(raw("a.zip", zipped({"x?.md": b""}).replace(b"?", b"\0"))),
    "zip with a password": Case(raw("a.zip", _flags(1)), "encrypted"),
    "zip of odd packing": Case(
        raw("a.zip", zipped({CONFIG: b"{}"}, compression=zipfile.ZIP_BZIP2))
    ),
    "zip with strong encryption": Case(raw("a.zip", _flags(0x40))),
    "zip bomb": Case(raw("a.zip", lambda: zipped({TENSORS: bytes(64 << 20)})), "limit"),
    "zip of a zip bomb": Case(raw("a.zip", zipped({"b.zip": zipped({TENSORS: bytes(1 << 20)})}))),
    "zip of many files": Case(raw("a.zip", zipped({f"{i}.md": b"" for i in range(300)})), "256"),
    "zip of many folders": Case(
        raw("a.zip", lambda: zipped({f"{i}/": b"" for i in range(3000)})), "looked for"
    ),
    "zip without entries": Case(raw("a.zip", zipped({})), "looked for"),
    "no zip": Case(raw("a.zip", b"PK\x03\x04 nope"), "zip"),
    "empty zip": Case(raw("a.zip", b"")),
    "zip cut short": Case(lambda good: files(("a.zip", zipped(good)[:-40]))),
    "zip with its start cut off": Case(lambda good: files(("a.zip", zipped(good)[200:]))),
    "zip with junk before it": Case(
        lambda good: files(("a.zip", bytes(999) + zipped(good))), statuses=(201,)
    ),
    "tar bomb": Case(
        raw("a.tgz", lambda: gzip.compress(tarred({TENSORS: bytes(64 << 20)}))), "limit"
    ),
    "tar of many files": Case(raw("a.tar", tarred({f"{i}.md": b"" for i in range(300)}))),
    "tar of many folders": Case(raw("a.tgz", lambda: _directories(100_000)), "headers"),
    "tar of long headers": Case(
        raw("a.tar", lambda: _pax({"comment": "x" * 400_000}, 4)), "headers"
    ),
    "tar of many records": Case(
        raw("a.tar", lambda: _pax({f"k{i}": "v" for i in range(60_000)}, 2)), "headers"
    ),
    "tar of a huge header": Case(raw("a.tar", lambda: _pax({"comment": "x" * (5 << 20)})), "read"),
    **{
        f"tar of {kind} with {key}": Case(raw("a.tar", _extended(body, of)))
        for key, body in _BODIES.items()
        for kind, of in _KINDS.items()
    },
    **{
        f"tar of {kind} with {key}": Case(_sound_behind(body, of), statuses=(201,))
        for key, body in _SOUND_BODIES.items()
        for kind, of in _KINDS.items()
    },
    "tar of folders behind many records": Case(
        raw(
            "a.tgz",
            lambda: gzip.compress(
                _extended(_SOUND_BODIES["many records"], tarfile.XGLTYPE)[:-10_240]
                + gzip.decompress(_directories(400))
            ),
        )
    ),
    "tar with a size below 0": Case(raw("a.tar", _below_zero())),
    "tar of an extended header alone": Case(raw("a.tar", _extended(b"")[:512])),
    "tar of a path for all files": Case(
        raw("a.tar", _extended(_record(b"path", b"a.md"), tarfile.XGLTYPE)), "every file"
    ),
    "tar of a chain of headers": Case(raw("a.tar", _pax_chain(3000))),
    "tar of a sparse file": Case(raw("a.tar", _sparse(10))),
    "tar of a sparse map": Case(raw("a.tgz", lambda: gzip.compress(_sparse(2_000_000)))),
    "no tar": Case(raw("a.tar", b"nope")),
    "empty tar": Case(raw("a.tar", b"")),
    "tar cut in its last header": Case(
        lambda good: files(("a.tar", _behind(good, tarred({"x.md": b"x"})[:200]))), "cut short"
    ),
    "tar with a broken header": Case(
        lambda good: files(("a.tar", _behind(good, b"x" * 512))), "is broken"
    ),
    "tar without its end": Case(lambda good: files(("a.tar", _behind(good, b""))), statuses=(201,)),
    "tar cut short": Case(lambda good: files(("a.tar", tarred(good)[:1500]))),
    "gzip of empty parts": Case(
        raw("a.tgz", lambda: gzip.compress(b"") * 200_000), "than it unpacks to"
    ),
    "gzip of a long name": Case(
        raw("a.tgz", b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 4_000_000), "than it unpacks to"
    ),
    "gzip of empty blocks": Case(
        raw("a.tgz", b"\x1f\x8b\x08" + bytes(7) + b"\0\0\0\xff\xff" * 800_000)
    ),
    "gzip in parts": Case(
        lambda good: files(("a.tgz", b"".join(_in_parts(tarred(good), 100)))), statuses=(201,)
    ),
    "no gzip": Case(raw("a.tgz", b"\x1f\x8bnope")),
    "gzip cut short": Case(lambda good: files(("a.tgz", tarred(good, mode="w:gz")[:-80]))),
    "gzip with junk behind it": Case(
        lambda good: files(("a.tgz", tarred(good, mode="w:gz") + b"junk")), statuses=(201, 422)
    ),
    "archive beside files": Case(beside("b.zip", zipped({})), "alone"),
    "two archives": Case(
        lambda good: files(("a.zip", zipped(good)), ("b.zip", zipped(good))), "alone"
    ),
    "two adapters": Case(below("checkpoint-10"), "leave out checkpoint-10/"),
    "two adapters, none on top": Case(
        lambda good: files(
            ("a.zip", zipped({f"{x}/{n}": c for x in "ab" for n, c in good.items()}))
        ),
        "several folders",
    ),
    "a trainer's folder": Case(
        in_zip("training_args.bin", "optimizer.pt", "global_step10/state.pt", ".git/config"),
        "training_args.bin",
    ),
    "what does no harm": Case(
        in_zip(
            "README.md", "tokenizer.json", "__MACOSX/._x", ".DS_Store", "runs/events.out.tfevents.1"
        ),
        statuses=(201,),
    ),
    "pointer for tensors": Case(lambda good: files(*{**good, TENSORS: POINTER}.items()), "git lfs"),
    "pointer for the config": Case(
        lambda good: files(*{**good, CONFIG: POINTER}.items()), "git lfs"
    ),
    "pointer for texts": Case(beside("texts.jsonl", POINTER), "git lfs"),
    "only a pickle": Case(raw("adapter_model.bin", b"\x80\x04."), "pickle"),
    "nothing known": Case(raw("README.md", b"hello"), CONFIG),
    "many pickles": Case(
        lambda good: files(*good.items(), *((f"{i}.bin", b"x") for i in range(200))), "192 more"
    ),
}
