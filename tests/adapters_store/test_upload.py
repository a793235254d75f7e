"""Uploads as people send them, and as attackers do: nothing leaves the folder it belongs in."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapters_store.errors import InvalidAdapterError
from adapters_store.limits import StoreLimits
from adapters_store.upload import Upload, UploadedFiles, unpack
from tests.adapters_store.folders import adapter, special, tarred, zipped

GOOD = adapter()
LIMITS = StoreLimits(max_files=16, max_unpacked_bytes=32 << 20, max_upload_bytes=1 << 20)


def unpacked(upload: Upload, into: Path, limits: StoreLimits = LIMITS) -> UploadedFiles:
    into.mkdir()
    return unpack(upload, into, wanted=lambda name: name in GOOD, limits=limits)


def contents(uploaded: UploadedFiles) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in uploaded.files.items()}


def inside(files: Mapping[str, bytes], folder: str) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def tar_of_format(kind: int) -> bytes:
    """Names that only an extended header holds, and what else its writers put there."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind, pax_headers={"comment": "x"}) as archive:
        for name, content in GOOD.items():
            info = tarfile.TarInfo(f"{'é' * 30}/{'m' * 130}/{name}")
            info.size, info.mtime = len(content), 1.5
            info.pax_headers = {"SCHILY.xattr.user.note": "1 2 3\n4 5=6\n"}
            archive.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def tar_by_extended_headers() -> bytes:
    """Headers whose name and size the extended ones before them replace."""
    made = b""
    for name, content in GOOD.items():
        records = b"".join(
            b"%d %s=%s\n" % (len(key) + len(value) + 5, key, value)
            for key, value in ((b"path", name.encode()), (b"size", b"%d" % len(content)))
        )
        head = special("head", tarfile.XHDTYPE)
        head.size = len(records)
        for part, data in ((head, records), (tarfile.TarInfo("nothing"), content)):
            made += part.tobuf() + data + bytes(-len(data) % tarfile.BLOCKSIZE)
    return made + bytes(2 * tarfile.BLOCKSIZE)


ACCEPTED: dict[str, dict[str, bytes]] = {
    "files": GOOD,
    "zip": {"a.zip": zipped(GOOD)},
    "stored zip": {"a.ZIP": zipped(GOOD, compression=zipfile.ZIP_STORED)},
    "zip with a folder": {"a.zip": zipped(inside(GOOD, "math"))},
    "tar": {"a.tar": tarred(GOOD)},
    "tar.gz with a folder": {"a.tar.gz": tarred(inside(GOOD, "./math"), mode="w:gz")},
    "tgz with folder entries": {
        "a.tgz": tarred(inside(GOOD, "math"), [special("math/sub", tarfile.DIRTYPE)], mode="w:gz")
    },
    "tar in pax's format": {"a.tar": tar_of_format(tarfile.PAX_FORMAT)},
    "tar in GNU's format": {"a.tar": tar_of_format(tarfile.GNU_FORMAT)},
    "tar by its extended headers": {"a.tar": tar_by_extended_headers()},
    "tar that is packed, whatever it is called": {"a.tar": tarred(GOOD, mode="w:gz")},
}


@pytest.mark.parametrize("upload", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepts(tmp_path: Path, upload: dict[str, bytes]) -> None:
    assert contents(unpacked(upload, tmp_path / "in")) == GOOD


def test_accepts_a_folder_and_an_archive_on_disk(tmp_path: Path) -> None:
    folder = tmp_path / "math"
    folder.mkdir()
    for name, content in GOOD.items():
        (folder / name).write_bytes(content)
    (tmp_path / "math.zip").write_bytes(zipped(GOOD))
    assert contents(unpacked(folder, tmp_path / "1")) == GOOD
    assert contents(unpacked(tmp_path / "math.zip", tmp_path / "2")) == GOOD
    assert contents(unpacked({"x.zip": tmp_path / "math.zip"}, tmp_path / "3")) == GOOD
    assert (folder / "adapter_config.json").exists(), "what was sent is left as it was"


def test_names_what_it_ignores(tmp_path: Path) -> None:
    extra = {
        **{"README.md": b"#", "tokenizer.json": b"{}", "loss.png": b"\x89PNG"},
        **{"trainer_state.json": b"{}", "__MACOSX/._adapter_config.json": b"", ".DS_Store": b""},
    }
    uploaded = unpacked({"a.zip": zipped({**GOOD, **extra})}, tmp_path / "in")
    assert contents(uploaded) == GOOD
    assert all(name in uploaded.notes[0] for name in extra)


def test_what_a_mac_adds_is_left_out_whatever_it_is_called_after(tmp_path: Path) -> None:
    beside = {f"__MACOSX/._{name}": b"\0\x05\x16\7" for name in (*GOOD, "optimizer.bin", "x.zip")}
    assert contents(unpacked({"a.zip": zipped({**GOOD, **beside})}, tmp_path / "in")) == GOOD


def zip_link() -> bytes:
    link = zipfile.ZipInfo("adapter_config.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped([(link, b"/etc/passwd")])


def zip_twice() -> bytes:
    """The same name two times, which zipfile warns of when it writes."""
    files = {"adapter_config.json": b"1", "adapter_CONFIG.json": b"2"}
    return zipped(files).replace(b"CONFIG", b"config")


def zip_nul() -> bytes:
    """A name that goes on behind a NUL, where zipfile cuts it."""
    return zipped({"adapter_config.json?.png": b""}).replace(b"?", b"\0")


def zip_encrypted() -> bytes:
    data = bytearray(zipped(GOOD))
    for at in (data.find(b"PK\x03\x04") + 6, data.find(b"PK\x01\x02") + 8):
        data[at] |= 1
    return bytes(data)


def zip_with_size_lie() -> bytes:
    """The directory says 1 byte; the entry unpacks to far more."""
    data = bytearray(zipped({"adapter_config.json": bytes(100_000)}))
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<L", 1)
    return bytes(data)


def zip_with_huge_directory(*, zip64: bool) -> bytes:
    size = 1 << 31
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 46 if zip64 else size, 0, 0)
    return (end64 + locator if zip64 else b"") + end


def damaged_gzips() -> dict[str, bytes]:
    """As tar reads them there is nothing wrong: what shows it stands behind the last entry."""
    sound = gzip.compress(tarred(GOOD), 0)
    bit = bytearray(sound)
    bit[sound.index(GOOD["adapter_model.safetensors"])] ^= 1
    return {
        "with a bit flipped": bytes(bit),
        "with another checksum": sound[:-8] + bytes(4) + sound[-4:],
        "with another length": sound[:-4] + bytes(4),
        "without its checksum": sound[:-8],
        "cut before its end": sound[:-20],
        "with junk behind it": sound + b"junk",
    }


def gzip_bomb(*, header: bool) -> bytes:
    """64 MiB of zeros as one member, or as a name in an extended header."""
    member = tarfile.TarInfo("adapter_model.safetensors")
    member.size = 64 << 20
    member.type = tarfile.GNUTYPE_LONGNAME if header else tarfile.REGTYPE
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        archive.fileobj.write(member.tobuf())
        for _ in range(64):
            archive.fileobj.write(bytes(1 << 20))
    return sink.getvalue()


def broken_deflate() -> bytes:
    data = bytearray(zipped({"adapter_config.json": os.urandom(5000)}))
    data[60:200] = bytes(140)
    return bytes(data)


CONFIG = {"adapter_config.json": b"{}"}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
OLD_POINTER = b"version https://hawser.github.com/spec/v1\noid sha256:0\nsize 1\n"
HOSTILE: dict[str, tuple[dict[str, bytes], str]] = {
    "pickle .bin": ({**GOOD, "adapter_model.bin": b"x"}, "adapter_model.bin: is a pickle"),
    "pickle .pt": ({**GOOD, "OPTIMIZER.PT": b"x"}, "is a pickle"),
    "pickle in a zip": ({"a.zip": zipped({**GOOD, "training_args.bin": b"x"})}, "is a pickle"),
    "parent folder": ({"../adapter_config.json": b"{}"}, "'..' part"),
    "parent folder in a zip": ({"a.zip": zipped({"a/../../adapter_config.json": b""})}, "part"),
    "parent folder in a tar": ({"a.tar": tarred({"../adapter_config.json": b""})}, "'..' part"),
    "absolute": ({"/etc/adapter_config.json": b"{}"}, "absolute path"),
    "absolute in a tar": ({"a.tar": tarred({"/etc/adapter_config.json": b""})}, "absolute path"),
    "backslash": ({"..\\adapter_config.json": b"{}"}, "backslash"),
    "drive": ({"C:adapter_config.json": b"{}"}, "colon"),
    "nul": ({"a.zip": zip_nul()}, "not printable"),
    "no name": ({"": b""}, "empty"),
    "long name": ({"a" * 300: b""}, "longer than 255"),
    "link in a zip": ({"a.zip": zip_link()}, "is a link"),
    "link in a tar": (
        {"a.tar": tarred({}, [special("adapter_config.json", tarfile.SYMTYPE, "/etc/passwd")])},
        "is a link to '/etc/passwd'",
    ),
    "hard link in a tar": (
        {"a.tar": tarred(CONFIG, [special("x.json", tarfile.LNKTYPE, "adapter_config.json")])},
        "is a link",
    ),
    "device in a tar": ({"a.tar": tarred({}, [special("x", tarfile.CHRTYPE)])}, "is a device"),
    "pipe in a tar": ({"a.tar": tarred({}, [special("x", tarfile.FIFOTYPE)])}, "a pipe"),
    "name twice": ({"a.zip": zip_twice()}, "comes twice"),
    "name twice but for case": ({**GOOD, "Adapter_Config.json": b""}, "comes twice"),
    "two adapters": ({**GOOD, **inside(GOOD, "b")}, r"several folders \(\., b\)"),
    "archive beside files": ({**GOOD, "a.zip": zipped(GOOD)}, "send an archive alone"),
    "encrypted": ({"a.zip": zip_encrypted()}, "encrypted"),
    "odd packing": (
        {"a.zip": zipped(GOOD, compression=zipfile.ZIP_LZMA)},
        "other than store and deflate",
    ),
    "program": ({**GOOD, "run.sh": b""}, "run.sh: is no file of an adapter"),
    "second tensors": ({**GOOD, "other.safetensors": b""}, "no adapter format reads"),
    "shards": ({**GOOD, "adapter_model.safetensors.index.json": b"{}"}, "sharded"),
    "too many files": ({f"{i}.md": b"" for i in range(17)}, "more than 16 files"),
    "too many bad names": ({f"../{i}": b"" for i in range(17)}, "more than 16 files"),
    "too many entries": (
        {"a.zip": zipped({f"{i}.md": b"" for i in range(17)})},
        "more than 16 files",
    ),
    "huge zip directory": ({"a.zip": zip_with_huge_directory(zip64=False)}, "directory of"),
    "huge zip64 directory": ({"a.zip": zip_with_huge_directory(zip64=True)}, "directory of"),
    "size lie": ({"a.zip": zip_with_size_lie()}, "cannot be read"),
    "zip bomb by ratio": ({"a.zip": zipped({"adapter_config.json": bytes(20 << 20)})}, "limit of"),
    "zip bomb": ({"a.zip": zipped({"adapter_config.json": bytes(40 << 20)})}, "limit of"),
    "tar bomb": ({"a.tgz": gzip_bomb(header=False)}, "limit of"),
    "tar bomb in a header": ({"a.tgz": gzip_bomb(header=True)}, "asks to read"),
    "large files": ({"adapter_config.json": bytes(2 << 20)}, "limit of 1048576"),
    "large archive": ({"a.zip": bytes(2 << 20)}, "at most 1048576"),
    "archive in LFS": ({"a.zip": POINTER}, "Git LFS pointer.*git lfs pull"),
    "tar in LFS of old": ({"a.tar.gz": OLD_POINTER}, "Git LFS pointer.*git lfs pull"),
    "tensors in LFS of old": ({"adapter_model.safetensors": OLD_POINTER}, "Git LFS pointer"),
    **{
        f"another kind of archive: {name}": (
            {name: b"x"},
            r"is an archive that is not unpacked here: send one \.zip, \.tar, \.tar\.gz or \.tgz",
        )
        for name in ("a.tar.bz2", "a.TAR.XZ", "a.tar.zst", "a.7z", "a.rar", "a.gz", "a.tbz2")
    },
    "an archive in an archive": ({"a.zip": zipped({"b.zip": zipped(GOOD)})}, "files that are in"),
    "no zip": ({"a.zip": b"PK\x03\x04 nope"}, "no zip file"),
    "no tar": ({"a.tar": b"nope"}, "cannot be read"),
    "zip cut short": ({"a.zip": zipped(GOOD)[:-30]}, "no zip file|cannot be read"),
    "tar.gz cut short": ({"a.tar.gz": tarred(GOOD, mode="w:gz")[:-60]}, "cannot be read"),
    **{
        f"tar.gz {what}": ({"a.tar.gz": content}, "cannot be read")
        for what, content in damaged_gzips().items()
    },
    "broken deflate": ({"a.zip": broken_deflate()}, "cannot be read"),
}


@pytest.mark.parametrize(("upload", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_refuses(tmp_path: Path, upload: dict[str, bytes], message: str) -> None:
    with pytest.raises(InvalidAdapterError, match=message):
        unpacked(upload, tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["in"], "nothing was written elsewhere"
    assert all(path.name.startswith(("file-", "archive")) for path in (tmp_path / "in").iterdir())


def test_names_every_problem_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapterError) as caught:
        unpacked({**GOOD, "a.bin": b"", "../b": b"", "c.exe": b""}, tmp_path / "in")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("kind", ["link", "folder link", "pipe"])
def test_refuses_in_a_folder(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "math"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("{}")
    if kind == "pipe":
        os.mkfifo(folder / "adapter_config.json")
    elif kind == "link":
        (folder / "adapter_config.json").symlink_to(secret)
    else:
        (folder / "sub").symlink_to(tmp_path)
    with pytest.raises(InvalidAdapterError, match="is a link or a special file"):
        unpacked(folder, tmp_path / "in")


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapterError, match="neither a folder nor a file"):
        unpacked(tmp_path / "nowhere", tmp_path / "in")


def test_a_fresh_adapter_packs_well_and_is_no_bomb(tmp_path: Path) -> None:
    zeros = {"adapter_model.safetensors": bytes(8 << 20)}
    assert contents(unpacked({"a.zip": zipped(zeros)}, tmp_path / "in")) == zeros
