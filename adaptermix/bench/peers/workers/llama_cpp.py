"""llama.cpp by the low-level API of llama-cpp-python: continuous batching over sequences.

    python -m adaptermix.bench.peers.workers.llama_cpp MODEL.gguf ADAPTERS THREADS CLIENTS TOKENS

ADAPTERS is a folder of LoRAs as GGUF; CLIENTS sequences of at most TOKENS tokens run at once. An
adapter is a state of a whole context, so sequences under different adapters are decoded one group
after another. Each adapter has a context of its own: to change that of one context makes llama.cpp
plan its graph anew, which costs a quarter of a step. Runs in the peer's environment.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from adaptermix.bench.peers.workers.wire import Handle, serve

UBATCH = 512  # tokens that are computed at once; more need memory and are not faster
_LEVELS = (3, 4)  # warnings and errors: the package takes other numbers for them


def _write(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    if level in _LEVELS:
        sys.stderr.write(text.decode(errors="replace"))


_LOG = llama_cpp.llama_log_callback(_write)  # llama.cpp keeps only its address


@dataclass
class Sequence:
    """One request in its place."""

    index: int  # of the job
    adapter: str | None
    pending: list[int]  # tokens that are still to be decoded
    left: int
    sent: float
    position: int = 0
    arrivals: list[float] = field(default_factory=list)


class LlamaPeer:
    """A model, and a context for the base and each adapter."""

    def __init__(self, model: str, adapters: Path, threads: int, clients: int, tokens: int) -> None:
        llama_cpp.llama_log_set(_LOG, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        # They hold weights in the order that a processor likes best; that of AMX ends in a
        # segmentation fault on short prompts.
        params.use_extra_bufts = b"AMX_INT8 = 1" not in llama_cpp.llama_print_system_info()
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), params)
        if not self._model:
            raise RuntimeError(f"{model} cannot be loaded")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = clients * tokens
        options.kv_unified = True  # faster than a cache for each sequence
        options.n_batch, options.n_ubatch = clients * tokens, UBATCH
        options.n_seq_max = clients
        options.n_threads = options.n_threads_batch = threads
        self._contexts: dict[str | None, Any] = {None: self._context(options, None)}
        for path in sorted(adapters.glob("*.gguf")):
            self._contexts[path.stem] = self._context(options, path)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(clients * tokens, 0, 1)

    def round(self, message: dict[str, Any]) -> dict[str, Any]:
        """A closed loop of `clients`: a place that is free takes the next job at once."""
        jobs = message["jobs"]
        waiting = deque(enumerate(jobs))
        places: list[Sequence | None] = [None] * message["clients"]
        samples: list[Any] = [None] * len(jobs)
        for context in self._contexts.values():
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), 0)
        started = time.perf_counter()
        while waiting or any(places):
            for place, held in enumerate(places):
                if held is None and waiting:
                    index, job = waiting.popleft()
                    tokens, adapter = list(job["tokens"]), job["adapter"]
                    now = time.perf_counter()
                    places[place] = Sequence(index, adapter, tokens, job["new_tokens"], now)
            self._step(places)
            for place, held in enumerate(places):
                if held is not None and held.left == 0:
                    samples[held.index] = {"sent": held.sent, "arrivals": held.arrivals}
                    memory = llama_cpp.llama_get_memory(self._contexts[held.adapter])
                    llama_cpp.llama_memory_seq_rm(memory, place, -1, -1)
                    places[place] = None
        return {"seconds": time.perf_counter() - started, "samples": samples}

    def _step(self, places: list[Sequence | None]) -> None:
        """One token for every sequence: a call for each adapter that is in use."""
        groups: dict[str | None, list[tuple[int, Sequence]]] = {}
        for place, held in enumerate(places):
            if held is not None:
                groups.setdefault(held.adapter, []).append((place, held))
        for adapter, members in groups.items():
            self._decode(self._contexts[adapter], members)

    def _decode(self, context: Any, members: list[tuple[int, Sequence]]) -> None:
        batch, count, last = self._batch, 0, []
        for place, held in members:
            for token in held.pending:
                batch.token[count] = token
                batch.pos[count] = held.position
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = place
                batch.logits[count] = 0
                held.position += 1
                count += 1
            batch.logits[count - 1] = 1
            last.append(count - 1)
        batch.n_tokens = count
        status = llama_cpp.llama_decode(context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        for index, (_, held) in zip(last, members, strict=True):
            row = llama_cpp.llama_get_logits_ith(context, index)
            logits = np.ctypeslib.as_array(row, shape=(self._vocab,))
            held.pending = [int(logits.argmax())]
            held.left -= 1
            held.arrivals.append(time.perf_counter())

    def _context(self, options: Any, adapter: Path | None) -> Any:
        context = llama_cpp.llama_init_from_model(self._model, options)
        if not context:
            raise RuntimeError("no context can be made")
        if adapter is not None:
            loaded = llama_cpp.llama_adapter_lora_init(self._model, str(adapter).encode())
            if not loaded:
                raise RuntimeError(f"{adapter} cannot be loaded")
            pointers = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
            scales = (ctypes.c_float * 1)(1.0)
            status = llama_cpp.llama_set_adapters_lora(context, pointers, 1, scales)
            if status != 0:
                raise RuntimeError(f"llama_set_adapters_lora returned {status}")
        return context


def make() -> tuple[dict[str, Any], Handle]:
    model, adapters, *numbers = sys.argv[1:]
    threads, clients, tokens = map(int, numbers)
    return {"threads": threads}, LlamaPeer(model, Path(adapters), threads, clients, tokens).round


if __name__ == "__main__":
    serve(make)
