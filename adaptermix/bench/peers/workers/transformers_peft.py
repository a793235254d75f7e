"""transformers' `generate` in static batches, PEFT for adapters: mixed ones by `adapter_names`.

    python -m adaptermix.bench.peers.workers.transformers_peft MODEL ADAPTERS THREADS

ADAPTERS is a folder of PEFT folders. Runs in the peer's environment, in bf16 or, where products in
that are slower, in fp32.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from adaptermix.bench.peers.workers.wire import Handle, serve
from router_engine.model.dtypes import behind

Job = dict[str, Any]


class Clock:
    """A stopping criterion: it is asked after every token, and never stops."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.moments.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class TransformersPeer:
    """The plain model for the base, a second one with all adapters."""

    def __init__(self, model: str, adapters: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        width = int(AutoConfig.from_pretrained(model).hidden_size)
        self._dtype = torch.bfloat16 if behind(torch.bfloat16, width) <= 1 else torch.float32
        self._base = self._load(model)
        folders = sorted(folder for folder in adapters.iterdir() if folder.is_dir())
        first, *others = folders
        self._tuned = PeftModel.from_pretrained(
            self._load(model), str(first), adapter_name=first.name
        )
        for folder in others:
            self._tuned.load_adapter(str(folder), adapter_name=folder.name)
        self._tuned.eval()

    @torch.inference_mode()
    def round(self, message: dict[str, Any]) -> dict[str, Any]:
        """All jobs in static batches: the next begins when the whole of the last has ended."""
        clients, jobs = message["clients"], message["jobs"]
        samples = []
        started = time.perf_counter()
        for first in range(0, len(jobs), clients):
            samples += self._batch(jobs[first : first + clients])
        return {"seconds": time.perf_counter() - started, "samples": samples}

    def _batch(self, jobs: list[Job]) -> list[dict[str, Any]]:
        sent = time.perf_counter()
        width = max(len(job["tokens"]) for job in jobs)
        ids = torch.zeros(len(jobs), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, job in enumerate(jobs):  # on the left, so that all answers begin together
            tokens = torch.tensor(job["tokens"])
            ids[row, width - len(tokens) :] = tokens
            mask[row, width - len(tokens) :] = 1
        clock, count = Clock(), jobs[0]["new_tokens"]
        model, more = self._model([job["adapter"] for job in jobs])
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=[clock],
            **more,
        )
        return [{"sent": sent, "arrivals": clock.moments} for _ in jobs]

    @property
    def dtype(self) -> str:
        return str(self._dtype).removeprefix("torch.")

    def _model(self, names: list[str | None]) -> tuple[Any, dict[str, Any]]:
        """Mixed batches cost PEFT most: they are asked for only where they are needed."""
        if not any(names):
            return self._base, {}
        if len(set(names)) == 1:
            self._tuned.set_adapter(names[0])
            return self._tuned, {}
        return self._tuned, {"adapter_names": [name or "__base__" for name in names]}

    def _load(self, model: str) -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=self._dtype).eval()
        loaded.generation_config.eos_token_id = None  # cheaper than to forbid it at each token
        return loaded


def make() -> tuple[dict[str, Any], Handle]:
    model, adapters, threads = sys.argv[1:]
    peer = TransformersPeer(model, Path(adapters), int(threads))
    about = {"threads": torch.get_num_threads(), "dtype": peer.dtype}
    return about, peer.round


if __name__ == "__main__":
    serve(make)
