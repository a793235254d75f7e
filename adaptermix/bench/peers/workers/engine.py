"""Our own engine without HTTP, as a worker among the peers; also single steps and products.

    python -m adaptermix.bench.peers.workers.engine MODEL ADAPTERS CLIENTS TOKENS KERNELS [DTYPE]

ADAPTERS is a folder of PEFT folders; CLIENTS requests of at most TOKENS tokens run at once.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from adaptermix.bench.kernels import CONTENDERS, best_seconds, left_out, products, shapes
from adaptermix.bench.load import Load
from adaptermix.bench.machine import read_bandwidth
from adaptermix.bench.offline import Offline, Sizes, offline
from adaptermix.bench.peers.workers.wire import Handle, serve
from adaptermix.bench.subject import Subject
from adaptermix.bench.workload import CaseMixture, Job, make_prompts
from router_engine.backends.cpu.build import build
from router_engine.backends.cpu.library import Library
from router_engine.config import KernelConfig

CONTEXT = 128
STEPS = 16
_ROUNDS = 3  # of the products, in each turn


class Ours:
    """An engine, and what is asked of it."""

    def __init__(self, subject: Subject, system: Offline) -> None:
        self._subject = subject
        self._system = system

    def handle(self, message: dict[str, Any]) -> dict[str, Any]:
        """A round as any peer, `decode` steps of the base, or the `products` of a step."""
        operations = {"round": self._round, "decode": self._decode, "products": self._products}
        return operations[message["op"]](message)

    def _round(self, message: dict[str, Any]) -> dict[str, Any]:
        jobs = [_job(job, self._subject) for job in message["jobs"]]
        load = Load(clients=message["clients"])
        done = asyncio.run(self._system.round("", load, jobs, lambda: None))
        samples = [{"sent": s.sent, "arrivals": list(s.arrivals)} for s in done.samples]
        return {"seconds": done.seconds, "samples": samples}

    def _decode(self, message: dict[str, Any]) -> dict[str, Any]:
        """Seconds of decode steps with so many requests."""
        rows = message["rows"]
        texts = make_prompts([CONTEXT] * rows, "decode", self._subject.count_tokens)
        steps = self._system.decode_steps([Job(text, 0) for text in texts], STEPS)
        return {"seconds": [step.seconds for step in steps]}

    def _products(self, message: dict[str, Any]) -> dict[str, Any]:
        """The products of a step, and the seconds of all, each by what computes it fastest."""
        library = Library(build(KernelConfig().cache))
        linears = shapes(self._subject)
        rounds = message.get("rounds", _ROUNDS)
        contenders = message.get("contenders", CONTENDERS)
        lines = products(library, linears, message["rows"], rounds, read_bandwidth(1), contenders)
        return {"seconds": best_seconds(lines), "lines": lines, "missing": left_out(lines)}


def _job(job: dict[str, Any], subject: Subject) -> Job:
    adapter = job["adapter"]
    mixture = CaseMixture() if adapter is None else CaseMixture((adapter,), (1.0,))
    return Job(subject.tokenizer.decode(job["tokens"]), job["new_tokens"], mixture)


def main() -> None:
    model, adapters, clients, tokens, kind, *rest = sys.argv[1:]
    (dtype,) = rest or ["auto"]
    with ExitStack() as stack:

        def make() -> tuple[dict[str, Any], Handle]:
            subject = Subject.of(model)
            folders = sorted(Path(adapters).iterdir())
            store = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sizes = Sizes(int(clients), 2 * int(clients) * int(tokens))
            made = offline(subject, folders, sizes, store, dtype=dtype, kernels=kind)
            system = stack.enter_context(made)
            return {"threads": torch.get_num_threads()}, Ours(subject, system).handle

        serve(make)


if __name__ == "__main__":
    main()
