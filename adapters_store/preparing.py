"""From an upload to a staged blob: unpack, read, validate, digest. Stores nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from adapters_store.blobs.base import CONFIG, MANIFEST, TENSORS, TEXTS, BlobStore
from adapters_store.digest import adapter_digest
from adapters_store.errors import InvalidAdapterError
from adapters_store.formats import AdapterFolder, FormatRegistry, ParsedAdapter
from adapters_store.limits import StoreLimits
from adapters_store.manifest import manifest_to_json
from adapters_store.names import name_problems
from adapters_store.problems import cut, shortened, shortened_names
from adapters_store.texts import TEXTS_FILE, read_texts, text_problems, texts_to_jsonl
from adapters_store.types import AdapterManifest, BaseModelSpec, CheckReport, Problem
from adapters_store.upload import Upload, unpack
from adapters_store.validation import validate

PublishStage = Literal["unpacked", "validated", "staged", "stored", "recorded"]
Progress = Callable[[PublishStage], None]


def no_progress(_stage: PublishStage) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What the user asks for."""

    name: str
    upload: Upload
    base: BaseModelSpec
    texts: Sequence[str] = ()
    tags: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """The report, and the folder of the blob-to-be: whole exactly when `report.loads`."""

    report: CheckReport
    folder: Path
    num_texts: int = 0


@dataclass(frozen=True, slots=True)
class Preparer:
    """Turns uploads into staged blobs; one for a store, used from many threads."""

    blobs: BlobStore
    formats: FormatRegistry
    limits: StoreLimits

    @contextmanager
    def prepare(self, wish: Publication, progress: Progress = no_progress) -> Iterator[Prepared]:
        """Yields the outcome; its folder is gone afterwards, unless it was put into the blobs."""
        problems = name_problems("name", [wish.name]) + self._tag_problems(wish.tags)
        with self.blobs.staging() as inbox, self.blobs.staging() as folder:
            try:
                uploaded = unpack(wish.upload, inbox, wanted=self._wanted, limits=self.limits)
            except InvalidAdapterError as error:
                problems += [*error.problems, *text_problems(wish.texts, self.limits)]
                yield Prepared(CheckReport(tuple(shortened(problems))), folder)
                return
            progress("unpacked")
            texts, notes, found = self._texts(wish, uploaded.files.get(TEXTS_FILE))
            problems += found
            given = AdapterFolder(uploaded.files, wish.base, self.limits)
            reading = self._read(given)
            problems += reading.problems
            if reading.manifest is not None and reading.tensors is not None:
                problems += validate(reading.manifest, reading.tensors, wish.base, self.limits)
                problems += self._room_problems(reading.manifest)
            progress("validated")
            told = (*uploaded.notes, *notes, *reading.notes, *_base_notes(reading, wish))
            report = CheckReport(
                problems=tuple(shortened(problems)),
                manifest=reading.manifest,
                unknown_keys=shortened_names(reading.unknown_keys),
                notes=tuple(map(cut, told)),
            )
            if report.loads:
                report = _stage(folder, reading, texts, report)
            progress("staged")
            yield Prepared(report, folder, len(texts))

    def _wanted(self, name: str) -> bool:
        return name == TEXTS_FILE or self.formats.wanted(name)

    def _room_problems(self, manifest: AdapterManifest) -> list[Problem]:
        most, limit = max(manifest.rows_by_site.values(), default=0), self.limits.max_site_rows
        if limit is None or most <= limit:
            return []
        told = f"needs {most} rank rows in one layer, more than the {limit} that this server holds"
        return [Problem("rank", f"{told} (ADAPTERMIX_MAX_RANK_ROWS): it could never be loaded")]

    def _tag_problems(self, tags: Sequence[str]) -> list[Problem]:
        if len(tags) > self.limits.max_tags:
            return [Problem("tags", f"are {len(tags)}, at most {self.limits.max_tags}")]
        return name_problems("tags", tags)

    def _texts(
        self, wish: Publication, path: Path | None
    ) -> tuple[Sequence[str], list[str], list[Problem]]:
        """The texts to keep: those given, else those that lie in the folder."""
        texts = wish.texts
        notes: list[str] = []
        problems: list[Problem] = []
        if path is not None and texts:
            notes.append(f"{TEXTS_FILE} of the upload is not used: texts were given beside it")
        elif path is not None:
            texts, problems = read_texts(path, self.limits)
        return texts, notes, [*problems, *text_problems(texts, self.limits)]

    def _read(self, given: AdapterFolder) -> ParsedAdapter:
        known = self.formats.recognise(given)
        if known is None:
            wanted = ", ".join(self.formats.all_files())
            message = f"holds no adapter of a known format ({', '.join(self.formats.names)}); "
            return ParsedAdapter(problems=(Problem("upload", f"{message}looked for: {wanted}"),))
        return known.read(given)


def _base_notes(reading: ParsedAdapter, wish: Publication) -> tuple[str, ...]:
    said = reading.manifest.base_model if reading.manifest is not None else None
    if not said or said == wish.base.name:
        return ()
    return (
        f"the adapter says that it was trained on {said!r}; the base here is {wish.base.name!r}",
    )


def _stage(
    folder: Path, reading: ParsedAdapter, texts: Sequence[str], report: CheckReport
) -> CheckReport:
    """Write the blob's files, and complete the report by digest and size."""
    if reading.manifest is None or reading.tensors is None:
        raise InvalidAdapterError([Problem("upload", "the format gave neither problems nor data")])
    manifest, lines = manifest_to_json(reading.manifest), texts_to_jsonl(texts)
    reading.tensors.rename(folder / TENSORS)
    if reading.config is not None:
        reading.config.rename(folder / CONFIG)
    (folder / MANIFEST).write_bytes(manifest)
    if lines:
        (folder / TEXTS).write_bytes(lines)
    return replace(
        report,
        digest=adapter_digest(manifest, folder / TENSORS, lines),
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
    )
