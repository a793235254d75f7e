"""The calls about adapters: /admin/adapters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adaptermix.client.calls import Call, Request, path_of
from adaptermix.client.reading import picked, shaped
from server.schemas.adapters import (
    AdapterList,
    AdapterReply,
    CheckReply,
    DeletedReply,
    ResidencyReply,
    TextsReply,
    UnloadReply,
)

if TYPE_CHECKING:
    from adaptermix.client.uploads import Source, Watcher

_ALL = ("admin", "adapters")


def publish(
    source: Source,
    name: str | None = None,
    *,
    tags: Sequence[str] = (),
    texts: str | Path | Sequence[str] | None = None,
    watcher: Watcher | None = None,
) -> Call[AdapterReply]:
    """Upload an adapter as the next version of its name; it can be used at once.

    What any server would refuse is refused before anything is sent, by InvalidInputError.

    source: a PEFT folder, a .zip, .tar or .tar.gz of one, or its files by name as bytes or paths.
    name: the folder's, or the archive's, when left out.
    texts: sample texts for routing by similarity: a JSONL file, or the texts themselves.
    watcher: is told what is left out of a folder, and what is read.
    """
    request = _upload_request(path_of(*_ALL), source, name, tags, texts, watcher)
    return Call(request, shaped(AdapterReply))


def check(
    source: Source,
    name: str | None = None,
    *,
    tags: Sequence[str] = (),
    texts: str | Path | Sequence[str] | None = None,
    watcher: Watcher | None = None,
) -> Call[CheckReply]:
    """Whether an upload would load, every problem, and what it would cost. Nothing is stored."""
    request = _upload_request(path_of(*_ALL, "check"), source, name, tags, texts, watcher)
    return Call(request, shaped(CheckReply))


def list_adapters(tag: str | None = None) -> Call[list[AdapterReply]]:
    """Every version of every adapter, or of those that carry a tag."""
    params = None if tag is None else {"tag": tag}
    request = Request(method="GET", path=path_of(*_ALL), params=params)
    return Call(request, picked(AdapterList, lambda reply: reply.adapters))


def show(reference: str) -> Call[list[AdapterReply]]:
    """Every version of a name, or the one that name@version, name@alias or a digest means."""
    request = Request(method="GET", path=adapter_path(reference))
    return Call(request, picked(AdapterList, lambda reply: reply.adapters))


def delete(reference: str, *, force: bool = False) -> Call[DeletedReply]:
    """Delete one version, or all versions of a bare name; force: also while pinned or in use."""
    params = {"force": str(force).lower()}
    request = Request(method="DELETE", path=adapter_path(reference), params=params)
    return Call(request, shaped(DeletedReply))


def texts(reference: str) -> Call[list[str]]:
    """The sample texts in force."""
    request = Request(method="GET", path=adapter_path(reference, "texts"))
    return Call(request, picked(TextsReply, lambda reply: reply.texts))


def set_texts(
    reference: str, texts: str | Path | Sequence[str], *, watcher: Watcher | None = None
) -> Call[AdapterReply]:
    """Replace the sample texts: those of a JSONL file, or the texts themselves; none takes away."""
    from adaptermix.client.uploads import texts_form

    request = Request(
        method="PUT",
        path=adapter_path(reference, "texts"),
        form=partial(texts_form, texts, watcher),
    )
    return Call(request, shaped(AdapterReply))


def set_alias(name: str, alias: str, version: int) -> Call[AdapterReply]:
    """Point an alias at a version, from now on: afterwards name@alias can be used."""
    request = Request(
        method="PUT", path=adapter_path(name, "aliases", alias), json={"version": version}
    )
    return Call(request, shaped(AdapterReply))


def delete_alias(name: str, alias: str) -> Call[DeletedReply]:
    """Remove an alias; the version stays."""
    request = Request(method="DELETE", path=adapter_path(name, "aliases", alias))
    return Call(request, shaped(DeletedReply))


def load(reference: str) -> Call[ResidencyReply]:
    """Bring an adapter to the device, so that its first request doesn't wait."""
    request = Request(method="POST", path=adapter_path(reference, "load"))
    return Call(request, shaped(ResidencyReply))


def pin(reference: str, *, pinned: bool = True) -> Call[ResidencyReply]:
    """Load an adapter and keep it on the device, or with `pinned` False let it go again."""
    request = Request(method="POST", path=adapter_path(reference, "pin"), json={"pinned": pinned})
    return Call(request, shaped(ResidencyReply))


def unload(reference: str) -> Call[UnloadReply]:
    """Drop an adapter from device and host; it stays in the store."""
    request = Request(method="POST", path=adapter_path(reference, "unload"))
    return Call(request, shaped(UnloadReply))


def adapter_path(reference: str, *parts: str) -> str:
    """The admin route of an adapter, whatever characters the reference holds."""
    return path_of(*_ALL, reference, *parts)


def _upload_request(
    path: str,
    source: Source,
    name: str | None,
    tags: Sequence[str],
    texts: str | Path | Sequence[str] | None,
    watcher: Watcher | None,
) -> Request:
    # Here, not above: archives and their checks take long to import, and most calls need none.
    from adaptermix.client.uploads import adapter_form

    form = partial(adapter_form, source, name, tuple(tags), texts, watcher)
    return Request(method="POST", path=path, form=form)
