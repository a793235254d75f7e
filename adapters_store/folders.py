"""A folder as trainers leave it: which of its files are an adapter, before anything is sent."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters_store.errors import InvalidAdapterError
from adapters_store.formats import AdapterFolder, FormatRegistry
from adapters_store.limits import DEFAULT_LIMITS, StoreLimits
from adapters_store.problems import bounded_problems, name_list
from adapters_store.texts import TEXTS_FILE, texts_file_problems
from adapters_store.types import BaseModelSpec, Problem
from adapters_store.upload import PICKLE_SUFFIXES, POINTER, is_pointer, unpack

_NAMED = 64  # files; they are the reader's own

# Stands for a base that is not known here: what depends on it is left to the store.
_ANY_BASE = BaseModelSpec(name="", architecture="", linears={})


@dataclass(frozen=True, slots=True)
class Selection:
    """An adapter's files by name, and what else lies beside them; folders end in a slash."""

    files: Mapping[str, Path]
    left_out: tuple[str, ...] = ()

    @property
    def note(self) -> str | None:
        """The files that are left out, in one line; None for none."""
        if not self.left_out:
            return None
        return f"left out, as no part of the adapter: {name_list(self.left_out, _NAMED)}"


def select(folder: Path) -> Selection:
    """Take what is an adapter's out of a folder; links are followed.

    Raises InvalidAdapterError where it holds no adapter, and says which folder below it does, and
    where one of the adapter's files is none.
    """
    formats = FormatRegistry()
    files, left_out = {}, []
    problems = [
        Problem(str(path), "is no plain file, or a link to nothing")
        for path in sorted(folder.iterdir())
        if formats.wanted(path.name) and not path.is_file()
    ]
    if problems:
        raise InvalidAdapterError(problems)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            left_out.append(f"{path.name}/")
        elif path.is_file() and (path.name == TEXTS_FILE or formats.wanted(path.name)):
            files[path.name] = path.resolve()
        else:
            left_out.append(path.name)
    if not files.keys() - {TEXTS_FILE}:
        raise InvalidAdapterError([Problem(str(folder), _nothing(folder, formats, left_out))])
    return Selection(files, tuple(left_out))


def local_problems(
    files: Mapping[str, Path], limits: StoreLimits = DEFAULT_LIMITS
) -> list[Problem]:
    """Problems that any store would refuse the files for, found before anything is sent."""
    pointers = [Problem(name, POINTER) for name, path in files.items() if is_pointer(path)]
    if pointers:
        return pointers
    folder = AdapterFolder(files, _ANY_BASE, limits)
    formats = FormatRegistry()
    adapter_format = formats.recognise(folder)
    if adapter_format is None:
        return [Problem("upload", _absent(formats))]
    problems = list(adapter_format.read(folder).problems)
    if TEXTS_FILE in files:
        problems += texts_file_problems(files[TEXTS_FILE], limits)
    return bounded_problems(problems)


def archive_problems(path: Path, limits: StoreLimits = DEFAULT_LIMITS) -> list[Problem]:
    """`local_problems` of an archive, which is sent as it is."""
    formats = FormatRegistry()
    with tempfile.TemporaryDirectory(prefix="adaptermix-check-") as scratch:
        try:
            unpacked = unpack(
                path,
                Path(scratch),
                wanted=lambda name: name == TEXTS_FILE or formats.wanted(name),
                limits=limits,
            )
        except InvalidAdapterError as error:
            return bounded_problems(error.problems)
        return local_problems(unpacked.files, limits)


def _nothing(folder: Path, formats: FormatRegistry, names: list[str]) -> str:
    deeper = sorted(
        f"{path.parent.name}/" for path in folder.glob("*/*") if formats.wanted(path.name)
    )
    if deeper:
        folders = name_list(dict.fromkeys(deeper))
        return f"holds no adapter itself; {folders} below it do: name one of them"
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    absent = _absent(formats)
    if not pickles:
        return absent
    return (
        f"{absent}; no server reads pickles ({name_list(pickles)}): save the adapter as safetensors"
    )


def _absent(formats: FormatRegistry) -> str:
    return f"holds no adapter; looked for: {', '.join(formats.all_files())}"
