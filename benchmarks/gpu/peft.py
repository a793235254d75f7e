"""The same adapters in transformers with PEFT on the same card: `adapter_names`, a static batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.phases import CardCell
from benchmarks.gpu.settings import FEW
from benchmarks.gpu.site import Site

EIGHT = "eight"
_FEW_TOKENS = 2  # new ones of the run whose time is taken off: the prompt and what comes with it
_PART = 4  # of the engine's steps, one in so many: a step takes many times as long


def peft_cells(site: Site) -> list[CardCell]:
    """One cell."""
    return [CardCell(EIGHT, lambda: _measure(site))]


def _measure(site: Site) -> dict[str, Any]:
    """Seconds of a decode step, round by round."""
    site.close_engine()
    settings = site.settings
    folders = [site.adapters.write(number) for number in range(FEW)]
    peft = PeftSteps(site.model, folders, site.device)
    requests, context = settings.sizes.goal
    peft.step_seconds(requests, context, 1)
    tokens = max(settings.steps // _PART, 1)
    return {
        "seconds": [peft.step_seconds(requests, context, tokens) for _ in range(settings.rounds)],
        "requests": requests,
    }


class PeftSteps:
    """One model with all adapters loaded; request i runs under adapter i in turn."""

    def __init__(self, model: Path, adapters: Sequence[Path], device: torch.device) -> None:
        # Here, so that nothing else is lost where PEFT is not installed.
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16).to(device)
        self._model: Any = PeftModel.from_pretrained(base, str(adapters[0]), adapter_name="a0")
        for index, folder in enumerate(adapters[1:], 1):
            self._model.load_adapter(str(folder), adapter_name=f"a{index}")
        self._model.eval()
        self._device = device
        self._names = [f"a{index}" for index in range(len(adapters))]

    def step_seconds(self, requests: int, context: int, new_tokens: int) -> float:
        """Seconds of one decode step of so many requests, the mean of `new_tokens` steps."""
        most = self._run(requests, context, _FEW_TOKENS + new_tokens)
        return (most - self._run(requests, context, _FEW_TOKENS)) / new_tokens

    @torch.inference_mode()
    def _run(self, requests: int, context: int, new_tokens: int) -> float:
        prompts = torch.randint(
            3,
            self._model.config.vocab_size,
            (requests, context),
            generator=torch.Generator().manual_seed(0),
        ).to(self._device)
        started = time.perf_counter()
        self._model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            adapter_names=[self._names[row % len(self._names)] for row in range(requests)],
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
        ).cpu()
        return time.perf_counter() - started
