"""What the phases of a run share: a checkpoint, adapters in a store, and one engine at a time."""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType

import torch

from benchmarks.gpu.adapters import AdapterFolders
from benchmarks.gpu.engine import CardEngine
from benchmarks.gpu.settings import FEW, CardSettings
from benchmarks.gpu.shape import checkpoint
from benchmarks.gpu.work import OF_A_FEW, CaseName, Work, centroids
from router_engine.process.gc import freeze_loaded

_ROOM = 1.05  # of an adapter on the device over its file: its parts lie on cache lines


class Site:
    """A context manager. Everything is made when it is first asked for.

    The checkpoint stays in `folder`, where another run finds it; without one all is temporary.
    """

    def __init__(self, settings: CardSettings, folder: Path | None) -> None:
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.started: dict[str, float] = {}  # seconds of the parts of a start
        self._stack = ExitStack()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._scratch = Path(
            self._stack.enter_context(
                tempfile.TemporaryDirectory(prefix="adaptermix-gpu-", dir=folder)
            )
        )
        self._kept = self._scratch if folder is None else folder
        self._engine: CardEngine | None = None
        self._digests: dict[int, str] = {}  # of published adapters, by number

    @cached_property
    def model(self) -> Path:
        """The checkpoint's directory."""
        started = time.perf_counter()
        shape = self.settings.shape
        made = checkpoint(self._kept / f"model-{shape}", shape, self.device)
        self.started["checkpoint"] = time.perf_counter() - started
        return made

    @cached_property
    def adapters(self) -> AdapterFolders:
        return AdapterFolders(self._scratch / "adapters", self.model, self.settings.modules)

    @property
    def engine(self) -> CardEngine:
        """The engine of all phases but the closed loop: it has room for every adapter."""
        return self.engine_with_room(FEW + self.settings.sizes.distinct)

    def engine_with_room(self, adapters: int) -> CardEngine:
        """An engine whose device holds so many adapters; another one is closed first."""
        room = int(_ROOM * adapters * self.adapters.num_bytes)
        current = self._engine
        if current is not None and current.is_sound and current.adapter_bytes == room:
            return current
        self.close_engine()
        started = time.perf_counter()
        self._engine = CardEngine(self.model, self._scratch / "store", self.settings, room)
        self.started["engine"] = time.perf_counter() - started
        freeze_loaded()  # as the engine's process does
        return self._engine

    def digests(self, count: int, first: int = 0) -> list[str]:
        """Digests of adapters by number, published where they were not.

        The files of the first few stay, for PEFT.
        """
        assert self._engine is not None  # whose base they are checked beside
        for number in range(first, first + count):
            if number not in self._digests:
                folder = self.adapters.write(number)
                self._digests[number] = self._engine.offline.publish(folder.name, folder)
                if number >= FEW:
                    shutil.rmtree(folder)
        return [self._digests[number] for number in range(first, first + count)]

    def work(self, case: CaseName) -> Work:
        """Requests of a case, whose adapters are on the device."""
        engine = self.engine
        digests: list[str] = []
        if case in OF_A_FEW:
            digests = self.digests(FEW)
        elif case == "distinct":
            digests = self.digests(self.settings.sizes.distinct, first=FEW)
        if case == "hidden":
            known = centroids(digests, engine.engine.info.hidden_size)
            engine.engine.put_centroids("hidden_mean", known)
        engine.wait_for(digests)
        own_tokens = self.settings.sizes.own_tokens
        return Work(engine.engine.info.vocab_size, {case: digests}, own_tokens)

    def close_engine(self) -> None:
        """Give the device's memory back."""
        engine, self._engine = self._engine, None
        if engine is not None:
            gc.unfreeze()  # another engine may follow, and this one must go
            engine.close()
            del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close_engine()
        finally:
            self._stack.close()
