"""Multipart forms, as what the store publishes: files on disk, texts, tags."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import UploadFile

from adapters_store.errors import InvalidAdapterError
from adapters_store.texts import MAX_TEXTS_BYTES, parse_texts
from adapters_store.upload import PublishRequest
from server.errors import InputError

_MAX_TAGS_CHARACTERS = 16 << 10


@asynccontextmanager
async def received(
    name: str, files: Sequence[UploadFile], texts: UploadFile | str | None, tags: Sequence[str]
) -> AsyncIterator[PublishRequest]:
    """Copy the uploaded files into a directory that goes with the context.

    Raises InputError, and InvalidAdapterError for texts that cannot be read.
    """
    split = _split(tags)
    parsed = await texts_of(texts)
    folder = tempfile.TemporaryDirectory(prefix="adaptermix-upload-")
    try:
        upload = await asyncio.to_thread(_copy, files, Path(folder.name))
        yield PublishRequest(name, upload, parsed, split)
    finally:  # large files take their time to go
        await asyncio.shield(asyncio.to_thread(folder.cleanup))


def _split(tags: Sequence[str]) -> list[str]:
    size = sum(map(len, tags))
    if size > _MAX_TAGS_CHARACTERS:
        raise InputError("tags", f"{size} characters", f"at most {_MAX_TAGS_CHARACTERS} are read")
    split = [tag.strip() for field in tags for tag in field.split(",") if tag.strip()]
    return list(dict.fromkeys(split))


def _copy(files: Sequence[UploadFile], directory: Path) -> dict[str, bytes | Path]:
    paths: dict[str, bytes | Path] = {}
    for index, upload in enumerate(files):
        name = upload.filename
        if not name:
            raise InputError("files", f"part {index}", "has no file name")
        if name in paths:
            raise InputError("files", repr(name[:160]), "comes twice")
        # The client's name never becomes a path; the store judges it.
        path = directory / str(index)
        with path.open("wb") as target:
            shutil.copyfileobj(upload.file, target)
        paths[name] = path
    return paths


async def texts_of(texts: UploadFile | str | None) -> Sequence[str]:
    """Sample texts from JSONL. Raises InputError, InvalidAdapterError."""
    if texts is None:
        return ()
    if isinstance(texts, str):
        data = texts.encode(errors="surrogatepass")  # which then is no UTF-8
    else:
        data = await texts.read(MAX_TEXTS_BYTES + 1)
    if len(data) > MAX_TEXTS_BYTES:
        raise InputError("texts", "the file", f"is larger than {MAX_TEXTS_BYTES} bytes")
    parsed, problems = await asyncio.to_thread(parse_texts, data)
    if problems:
        raise InvalidAdapterError(problems)
    return parsed
