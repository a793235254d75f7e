"""Preparation of an upload as a staged blob: unpack, read, validate, digest. Stores nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from adapters_store.blobs.base import CONFIG, MANIFEST, TENSORS, TEXTS, BlobStore
from adapters_store.device_size import device_bytes
from adapters_store.digest import adapter_digest
from adapters_store.errors import InvalidAdapterError
from adapters_store.formats import AdapterFolder, FormatRegistry, ParsedAdapter
from adapters_store.limits import StoreLimits
from adapters_store.manifest import manifest_to_json
from adapters_store.names import name_problems
from adapters_store.problems import bounded_names, bounded_problems, bounded_text
from adapters_store.texts import TEXTS_FILE, read_texts, text_problems, texts_to_jsonl
from adapters_store.types import AdapterManifest, BaseModelSpec, CheckReport, Problem
from adapters_store.upload import PublishRequest, unpack
from adapters_store.validation import validate

PublishStage = Literal["unpacked", "validated", "staged", "stored", "recorded"]
Progress = Callable[[PublishStage], None]


def no_progress(_stage: PublishStage) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class PreparedAdapter:
    """An upload read and judged, its blob staged where nothing is wrong with it."""

    report: CheckReport
    folder: Path  # the blob-to-be: whole exactly when `report.loads`
    num_texts: int = 0  # sample texts in the blob


@dataclass(frozen=True, slots=True)
class Preparer:
    """Turns uploads into staged blobs; one for a store, used from many threads."""

    blobs: BlobStore
    formats: FormatRegistry
    limits: StoreLimits

    @contextmanager
    def prepare(
        self, request: PublishRequest, base: BaseModelSpec, progress: Progress = no_progress
    ) -> Iterator[PreparedAdapter]:
        """Yields the outcome; its folder is gone afterwards, unless it was put into the blobs."""
        problems = name_problems("name", [request.name]) + self._tag_problems(request.tags)
        with self.blobs.staging() as inbox, self.blobs.staging() as folder:
            try:
                uploaded = unpack(request.upload, inbox, wanted=self._wanted, limits=self.limits)
            except InvalidAdapterError as error:
                problems += [*error.problems, *text_problems(request.texts, self.limits)]
                yield PreparedAdapter(CheckReport(tuple(bounded_problems(problems))), folder)
                return
            progress("unpacked")
            texts, notes, wrong_texts = self._texts(request, uploaded.files.get(TEXTS_FILE))
            problems += wrong_texts
            parsed = self._parse(AdapterFolder(uploaded.files, base, self.limits))
            problems += parsed.problems
            if parsed.manifest is not None and parsed.tensors is not None:
                problems += validate(parsed.manifest, parsed.tensors, base, self.limits)
                problems += _room_problems(parsed.manifest, base)
            progress("validated")
            all_notes = (*uploaded.notes, *notes, *parsed.notes, *_base_notes(parsed, base))
            report = CheckReport(
                problems=tuple(bounded_problems(problems)),
                manifest=parsed.manifest,
                unknown_keys=bounded_names(parsed.unknown_keys),
                notes=tuple(map(bounded_text, all_notes)),
            )
            if report.loads:
                report = _stage(folder, parsed, texts, report)
            progress("staged")
            yield PreparedAdapter(report, folder, len(texts))

    def _wanted(self, name: str) -> bool:
        return name == TEXTS_FILE or self.formats.wanted(name)

    def _tag_problems(self, tags: Sequence[str]) -> list[Problem]:
        if len(tags) > self.limits.max_tags:
            return [Problem("tags", f"are {len(tags)}, at most {self.limits.max_tags}")]
        return name_problems("tags", tags)

    def _texts(
        self, request: PublishRequest, path: Path | None
    ) -> tuple[Sequence[str], list[str], list[Problem]]:
        """(texts to keep, notes, problems): the request's texts, else those in the folder."""
        texts = request.texts
        notes: list[str] = []
        problems: list[Problem] = []
        if path is not None and texts:
            notes.append(f"{TEXTS_FILE} of the upload is not used: texts were given beside it")
        elif path is not None:
            texts, problems = read_texts(path, self.limits)
        return texts, notes, [*problems, *text_problems(texts, self.limits)]

    def _parse(self, folder: AdapterFolder) -> ParsedAdapter:
        adapter_format = self.formats.recognise(folder)
        if adapter_format is None:
            wanted = ", ".join(self.formats.all_files())
            message = f"holds no adapter of a known format ({', '.join(self.formats.names)}); "
            return ParsedAdapter(problems=(Problem("upload", f"{message}looked for: {wanted}"),))
        return adapter_format.read(folder)


def _room_problems(manifest: AdapterManifest, base: BaseModelSpec) -> list[Problem]:
    needed, limit = device_bytes(manifest, base), base.adapter_bytes
    if limit is None or needed <= limit:
        return []
    excess = f"needs {needed:,} bytes on the device, which has {limit:,} for adapters"
    return [Problem("size", f"{excess} (ADAPTERMIX_ADAPTER_MEMORY): it could never be loaded")]


def _base_notes(parsed: ParsedAdapter, base: BaseModelSpec) -> tuple[str, ...]:
    trained_on = parsed.manifest.base_model if parsed.manifest is not None else None
    if not trained_on or trained_on == base.name:
        return ()
    return (
        f"the adapter says that it was trained on {trained_on!r}; the base here is {base.name!r}",
    )


def _stage(
    folder: Path, parsed: ParsedAdapter, texts: Sequence[str], report: CheckReport
) -> CheckReport:
    """Write the blob's files, and complete the report by digest and size."""
    if parsed.manifest is None or parsed.tensors is None:
        raise InvalidAdapterError([Problem("upload", "the format gave neither problems nor data")])
    manifest, lines = manifest_to_json(parsed.manifest), texts_to_jsonl(texts)
    parsed.tensors.rename(folder / TENSORS)
    if parsed.config is not None:
        parsed.config.rename(folder / CONFIG)
    (folder / MANIFEST).write_bytes(manifest)
    if lines:
        (folder / TEXTS).write_bytes(lines)
    return replace(
        report,
        digest=adapter_digest(manifest, folder / TENSORS, lines),
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
    )
