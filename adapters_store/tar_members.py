"""Members of a tar, whose extended headers are read in time linear in their length.

tarfile reads these headers by regular expressions, of which some versions take time quadratic in
the header (CVE-2024-6232), and gives each record of a global header to every member that follows.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping

_MOST_DIGITS = 19  # of a length or a size
_GLOBAL = tarfile.XGLTYPE
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, _GLOBAL)
_APPLIED = ("path", "linkpath", "size")


class Member(tarfile.TarInfo):
    """A member by its header, with the name, the link and the size that an extended one gives it.

    What else extended headers say (times, owners, attributes) is of no use here and left out.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """TarInfo's hook to read what follows a header. Raises tarfile.ReadError."""
        if self.size < 0:
            raise tarfile.ReadError(f"a member has the size {self.size}")
        if self.type not in _EXTENDED:
            read: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
            return read
        assert archive.fileobj is not None
        records = _records(archive.fileobj.read(_padded(self.size))[: self.size])
        if self.type == _GLOBAL and records:
            raise tarfile.ReadError(f"a global header gives every file one {min(records)}")
        try:
            member = type(self).fromtarfile(archive)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"behind an extended header: {error}") from error
        if self.type != _GLOBAL:
            member.offset = self.offset
            _apply(records, member, archive)
        return member


def _apply(records: Mapping[str, bytes], member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
    if "path" in records:
        member.name = _text(records["path"]).rstrip("/")
    if "linkpath" in records:
        member.linkname = _text(records["linkpath"])
    if "size" in records:
        size = records["size"]
        if not size.isdigit() or len(size) > _MOST_DIGITS:
            raise tarfile.ReadError(f"an extended header gives the size {size[:80]!r}")
        member.size = int(size)
        if member.isreg() or member.type not in tarfile.SUPPORTED_TYPES:
            archive.offset = member.offset_data + _padded(member.size)


def _records(body: bytes) -> dict[str, bytes]:
    """The records of an extended header that are applied: "<length> <key>=<value>" and LF.

    The length is the whole record's (POSIX.1-2008, pax). Raises tarfile.ReadError.
    """
    records: dict[str, bytes] = {}
    start = 0
    while start < len(body):
        space = body.find(b" ", start, start + _MOST_DIGITS + 1)
        length = body[start:space] if space > start else b""
        end = start + int(length) if length.isdigit() else 0
        key, equals, value = body[space + 1 : max(0, end - 1)].partition(b"=")
        if not (equals and end <= len(body) and body[end - 1 : end] == b"\n"):
            raise tarfile.ReadError(f"an extended header is broken at its byte {start}")
        if key.startswith(b"GNU.sparse."):
            raise tarfile.ReadError("it holds a sparse file: pack it without --sparse")
        if (name := key[: tarfile.BLOCKSIZE].decode(errors="replace")) in _APPLIED:
            records[name] = value
        start = end
    return records


def _text(value: bytes) -> str:
    """The text of a value; bytes that are no UTF-8 become unprintable, and are refused as such."""
    return value.decode(errors="surrogateescape")


def _padded(size: int) -> int:
    """Bytes that a content of this size takes, in whole blocks."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
