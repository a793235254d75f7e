"""Systems beside each other on one machine: our servers, our engine alone, and the peers."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from adaptermix.bench.clients import GenerateClient
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.goals import OWN, PEERS
from adaptermix.bench.machine import ROOT
from adaptermix.bench.peers import llama_cpp, transformers_peft, vllm_cpu
from adaptermix.bench.peers.plan import LONGEST_PROMPT, SUITES, PeerSuite, write_suites
from adaptermix.bench.peers.settings import PeerSettings, worker_of
from adaptermix.bench.peers.systems import Context, HttpSystem, OpenPeer, Worker
from adaptermix.bench.rounds import System
from adaptermix.bench.server import Running, info, publish, server_options, started, words
from adaptermix.bench.subject import Subject, device_room, resolve
from router_engine.processors import usable_cores

KV_BYTES = 256 << 20
_MARGIN = 16  # tokens that a prompt may be longer in another tokenizer's eyes
_OPEN: Mapping[str, OpenPeer] = {
    "transformers": transformers_peft.open_peer,
    "vllm": vllm_cpu.open_peer,
    "llama": llama_cpp.open_peer,
}


@dataclass(frozen=True, slots=True)
class PeerSite:
    """The state that the parts of a run share."""

    settings: PeerSettings
    subject: Subject
    folder: Path  # of all that is written, gone with the run
    folders: Mapping[str, Sequence[Path]]  # of the adapters, by suite
    threads: int  # of each system
    stack: ExitStack  # ends what was started
    console: Console
    missing: dict[str, str] = field(default_factory=dict)  # left out: the reason

    @property
    def tokens(self) -> int:
        """The most of a prompt and its answer."""
        return LONGEST_PROMPT + self.settings.new_tokens + _MARGIN

    def options(self, store: str, suites: Sequence[PeerSuite] = SUITES) -> list[str]:
        """Of `adaptermix serve`, with room for the adapters of `suites`."""
        settings = self.settings
        options = server_options(self.subject.model, "auto", settings.kernels, settings.threads)
        own = {
            "store": self.folder / store,
            "adapter-memory": device_room(
                path for suite in suites for path in self.folders[suite.name]
            ),
            "kv-memory": KV_BYTES,
            "encoder": "none",
        }
        return words(options | own)

    def leave_out(self, name: str, error: Exception) -> None:
        """Note what is missing from the result, and go on."""
        reason = str(error) or type(error).__name__
        self.missing[name] = reason
        self.console.print(f"{name} is left out: {reason}", style="yellow", markup=False)


@contextmanager
def prepared(settings: PeerSettings, suites: Sequence[PeerSuite] = SUITES) -> Iterator[PeerSite]:
    """A site with adapters, without systems; what is started on it ends with the block."""
    subject = resolve(settings.model)
    with tempfile.TemporaryDirectory(prefix="adaptermix-peers-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        folders = write_suites(subject, folder / "adapters", suites)
        threads = settings.threads or usable_cores()
        yield PeerSite(settings, subject, folder, folders, threads, stack, Console(stderr=True))


def serve(
    site: PeerSite, options: Sequence[str], log: str, folders: Mapping[str, Sequence[Path]]
) -> Running:
    """A server of ours that runs to the end of the site, with adapters."""
    running = site.stack.enter_context(started(options, site.folder / log))
    for paths in folders.values():
        publish(running.url, paths)
    return running


def serving_of(site: PeerSite, running: Running) -> dict[str, Any]:
    """How ours computes, as a result tells it."""
    return {
        "dtype": info(running.url)["dtype"],
        "kernels": site.settings.kernels,
        "threads": site.threads,
        "isa": site.settings.isa,
    }


def over_http(running: Running) -> HttpSystem:
    """A server of ours as a system. It is not stopped: without requests it sleeps."""
    return HttpSystem(running, GenerateClient, stops=False)


def offline(site: PeerSite) -> Worker:
    """Our engine without HTTP."""
    settings = site.settings
    sizes = max(settings.concurrency), site.tokens
    worker = engine_worker(
        site.subject,
        site.folders[OWN][0].parent,
        sizes,
        settings.kernels,
        variables=[f"OMP_NUM_THREADS={site.threads}"],
        log=site.folder / "offline.log",
    )
    site.stack.callback(worker.close)
    return worker


def engine_worker(
    subject: Subject,
    adapters: Path,
    sizes: tuple[int, int],
    kernels: str,
    *,
    variables: Sequence[str],
    log: Path,
    dtype: str | None = None,
    checkout: Path = ROOT,
) -> Worker:
    """Our engine in a process with `variables`; `sizes` are requests at once and their tokens.

    `checkout` may hold another commit of this repository, which is run in place of this one.
    """
    command = [
        *("env", "-C", str(checkout), f"PYTHONPATH={checkout}"),
        *("OMP_WAIT_POLICY=PASSIVE", *variables),
        *(sys.executable, "-m", worker_of(checkout), subject.model),
        *(str(adapters), *map(str, sizes), kernels, *([dtype] if dtype else [])),
    ]
    return Worker(command, log, subject.tokenizer.encode)


def open_peers(site: PeerSite) -> tuple[dict[str, System], dict[str, Any]]:
    """Systems of the chosen peers, and their versions; who can't be opened is left out."""
    systems: dict[str, System] = {}
    versions: dict[str, Any] = {}
    suite = next(suite for suite in SUITES if suite.name == PEERS)
    for name in site.settings.chosen:
        site.console.print(f"installing and starting {name}")
        scratch = site.folder / name
        scratch.mkdir()
        context = Context(
            model=str(Path(site.subject.model).absolute()),
            adapters=tuple(site.folders[PEERS]),
            rank=max(suite.ranks),
            clients=max(site.settings.concurrency),
            tokens=site.tokens,
            threads=site.threads,
            cache=site.settings.cache,
            scratch=scratch,
            tokenize=site.subject.tokenizer.encode,
            isa=site.settings.isa,
            stack=site.stack,
        )
        try:
            opened = _OPEN[name](context)
        except (BenchmarkError, OSError) as error:
            site.leave_out(name, error)
        else:
            systems |= opened.systems
            versions[name] = dict(opened.versions)
    return systems, versions
