"""The base and its PEFT adapters as systems that can be scored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel

from adaptermix.evaluation.scoring.tasks import options_of
from adaptermix.training.base import check_base, padding_tokenizer, read_base
from adaptermix.training.data import Row, tokenize
from adaptermix.training.errors import TrainingError
from adaptermix.training.loss import nll_per_row
from adaptermix.training.moa.plan import shape_of
from adaptermix.training.settings import DTypeName
from adapters_store.formats import AdapterFolder
from adapters_store.formats.peft import PeftLoraFormat
from adapters_store.limits import StoreLimits
from adapters_store.problems import bounded_problems
from adapters_store.types import BaseModelSpec, Problem
from adapters_store.validation import validate
from router_engine.model.checkpoint import refused
from router_engine.model.embeddings import embedding_specs


def check_adapter(folder: Path, base: Any) -> None:
    """Raises TrainingError with every reason why a server of `base` would not load the folder."""
    spec = replace(shape_of("the base", base), embeddings=embedding_specs(base))
    problems = bounded_problems(list(_problems(folder, spec)))
    if problems:
        raise TrainingError(f"adapter {folder}: {'; '.join(map(str, problems))}")


def _problems(folder: Path, base: BaseModelSpec) -> Iterator[Problem]:
    reader, limits = PeftLoraFormat(), StoreLimits()
    files = {name: folder / name for name in reader.files if (folder / name).is_file()}
    if not files:
        wanted = " and ".join(sorted(reader.files))
        yield Problem("files", f"{wanted} are not there: name a folder that PEFT has written")
        return
    reading = reader.read(AdapterFolder(files, base, limits))
    yield from reading.problems
    if reading.manifest is not None and reading.tensors is not None:
        yield from validate(reading.manifest, reading.tensors, base, limits)


T = TypeVar("T")

BASE = "base"
_NLL_TOKENS = 2048  # of one batch
_GENERATE_ROWS = 50


class Systems:
    """One base model with adapters beside it, one of which answers at a time.

    Raises TrainingError for adapters that do not fit it, UnsupportedModelError for a base that
    could not be served.
    """

    def __init__(
        self,
        base: str,
        adapters: Mapping[str, Path],
        dtype: DTypeName,
        device: str,
        revision: str | None = None,
    ) -> None:
        """revision: branch, tag or commit of a base that is a hub id."""
        if not adapters or BASE in adapters:
            raise TrainingError(f"name at least one adapter, none of them {BASE!r}")
        check_base(base, revision)
        self.tokenizer = padding_tokenizer(base, revision)
        model = read_base(base, dtype, device, revision)
        self._device = model.device
        for folder in adapters.values():
            check_adapter(folder, model)
        # PEFT allows no dots in its names.
        self._peft_names = {name: f"adapter{index}" for index, name in enumerate(adapters)}
        self._model: Any = None
        for name, folder in adapters.items():
            first = partial(PeftModel.from_pretrained, model)
            load = first if self._model is None else self._model.load_adapter
            put = partial(
                load, folder, adapter_name=self._peft_names[name], autocast_adapter_dtype=False
            )
            put_in = refused(str(folder), "PEFT cannot load it", put)
            self._model = put_in if self._model is None else self._model
        self._model.eval()
        self.names = (BASE, *adapters)

    @contextmanager
    def _under(self, name: str) -> Iterator[Any]:
        if name != BASE:
            self._model.set_adapter(self._peft_names[name])
        with torch.no_grad(), self._model.disable_adapter() if name == BASE else nullcontext():
            yield self._model

    def nll(self, name: str, rows: Sequence[Row]) -> tuple[list[float], list[int]]:
        """Summed NLL in nats of each row's completion without end-of-text, and its tokens.

        End-of-text is left out since the base was never told where these answers end.
        """
        examples, _ = tokenize(rows, self.tokenizer, 1 << 30)
        plain = [example.without_end() for example in examples]
        with self._under(name) as model:
            return nll_per_row(model, plain, batch_tokens=_NLL_TOKENS, device=self._device)

    def choose(self, name: str, rows: Sequence[Row]) -> list[str]:
        """The most likely option letter, with its leading space, after each prompt."""
        options = [
            (index, Row(row.prompt, f" {letter}"))
            for index, row in enumerate(rows)
            for letter in options_of(row.prompt)
        ]
        nll, _ = self.nll(name, [option for _, option in options])
        best: dict[int, tuple[float, str]] = {}
        for (index, option), value in zip(options, nll, strict=True):
            best[index] = min(best.get(index, (math.inf, "")), (value, option.completion))
        return [best[index][1] for index in range(len(rows))]

    def generate(self, name: str, rows: Sequence[Row], max_new_tokens: int) -> list[str]:
        """Greedy answers, in the order of the rows."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt))
        answers = [""] * len(rows)
        with self._under(name) as model:
            for chunk in _chunks(order, _GENERATE_ROWS):
                prompts = [rows[index].prompt for index in chunk]
                batch = self.tokenizer(prompts, return_tensors="pt", padding=True)
                batch = batch.to(self._device)
                output = model.generate(
                    **batch,
                    do_sample=False,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
                new = output[:, batch.input_ids.shape[1] :]
                texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
                for index, text in zip(chunk, texts, strict=True):
                    answers[index] = text
        return answers


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
