"""The base and its adapters as systems that can be scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.data import Row, tokenize
from training.errors import DataError, TrainingError
from training.evaluation.tasks import options_of
from training.loss import nll_per_row
from training.settings import DTypeName

T = TypeVar("T")

BASE = "base"
_NLL_TOKENS = 2048  # of one batch
_GENERATE_ROWS = 50


class Systems:
    """One base model with adapters beside it, one of which answers at a time."""

    def __init__(
        self, base: str, adapters: Mapping[str, Path], dtype: DTypeName, device: str
    ) -> None:
        if not adapters or BASE in adapters:
            raise TrainingError(f"name at least one adapter, none of them {BASE!r}")
        self.tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token_id = self.tokenizer.eos_token_id
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).to(device)
        self._device = torch.device(device)
        first, *others = adapters
        self._model = PeftModel.from_pretrained(
            model, adapters[first], adapter_name=first, autocast_adapter_dtype=False
        ).eval()
        for name in others:
            self._model.load_adapter(adapters[name], name, autocast_adapter_dtype=False)
        self.names = (BASE, *adapters)

    @contextmanager
    def _under(self, name: str) -> Iterator[Any]:
        if name != BASE:
            self._model.set_adapter(name)
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
        """The most likely option letter after each prompt."""
        answers = []
        with self._under(name) as model:
            for chunk in _chunks(rows, _GENERATE_ROWS):
                batch = self._prompts(chunk)
                logits = model(**batch, logits_to_keep=1).logits[:, -1]
                for row, scores in zip(chunk, logits, strict=True):
                    letters = options_of(row.prompt)
                    best = scores[[self._letter(letter) for letter in letters]].argmax()
                    answers.append(f" {letters[int(best)]}")
        return answers

    def _prompts(self, rows: Sequence[Row]) -> Any:
        prompts = [row.prompt for row in rows]
        return self.tokenizer(prompts, return_tensors="pt", padding=True).to(self._device)

    def _letter(self, letter: str) -> int:
        tokens: list[int] = self.tokenizer(f" {letter}", add_special_tokens=False).input_ids
        if len(tokens) != 1:
            raise DataError(f"option {letter!r} is {len(tokens)} tokens of this model; 1 is needed")
        return tokens[0]

    def generate(self, name: str, rows: Sequence[Row], max_new_tokens: int) -> list[str]:
        """Greedy answers, in the order of the rows."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt))
        answers = [""] * len(rows)
        with self._under(name) as model:
            for chunk in _chunks(order, _GENERATE_ROWS):
                batch = self._prompts([rows[index] for index in chunk])
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
