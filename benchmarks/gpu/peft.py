"""The same adapters in transformers with PEFT on the same card: `adapter_names`, a static batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.gpu.steps import CardSizes

_FEW = 2  # new tokens of the run whose time is taken off: the prompt and what comes with it


class PeftSteps:
    """One model with all adapters loaded; request i runs under adapter i in turn."""

    def __init__(self, model: Path, adapters: Sequence[Path], device: torch.device) -> None:
        base = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16).to(device)
        self._model: Any = PeftModel.from_pretrained(base, str(adapters[0]), adapter_name="a0")
        for index, folder in enumerate(adapters[1:], 1):
            self._model.load_adapter(str(folder), adapter_name=f"a{index}")
        self._model.eval()
        self._device = device
        self._names = [f"a{index}" for index in range(len(adapters))]

    def step_seconds(self, sizes: CardSizes, new_tokens: int) -> float:
        """Seconds of one decode step of `sizes.requests` requests."""
        return (self._run(sizes, _FEW + new_tokens) - self._run(sizes, _FEW)) / new_tokens

    @torch.inference_mode()
    def _run(self, sizes: CardSizes, new_tokens: int) -> float:
        prompts = torch.randint(
            3,
            self._model.config.vocab_size,
            (sizes.requests, sizes.context),
            generator=torch.Generator().manual_seed(0),
        ).to(self._device)
        started = time.perf_counter()
        self._model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            adapter_names=[self._names[row % len(self._names)] for row in range(sizes.requests)],
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
        ).cpu()
        return time.perf_counter() - started
