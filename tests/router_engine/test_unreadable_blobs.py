"""Files that cannot be read, asked for by a merge or an unpin: who asked is told, nobody else."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from adapters_store.errors import AdapterNotFoundError, IntegrityError
from adapters_store.types import ResolvedMixture
from router_engine.config import AdapterPoolConfig, EngineConfig, MergeConfig
from router_engine.errors import AdapterLoadError
from router_engine.events import FinishReason
from router_engine.experts.base import AdapterContents, AdapterSource
from router_engine.info import Residency
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import EngineHarness, request
from tests.support.waiting import HANG_SECONDS

PROMPT = list(range(5, 30))
# Nothing stays on the host: what is merged has to be read again.
NO_COPIES = AdapterPoolConfig(host_bytes=0)
CONFIG = EngineConfig(adapters=NO_COPIES)
AUTO = EngineConfig(adapters=NO_COPIES, merge=MergeConfig(mode="auto", half_life=8))


class _Failing:
    """A real blob store that fails from when the test says so; it notes who asks."""

    def __init__(self, source: AdapterSource) -> None:
        self._source = source
        self.error: Exception | None = None
        self.threads: set[str] = set()

    def fetch(self, digest: str) -> AdapterContents:
        self.threads.add(threading.current_thread().name)
        if self.error is not None:
            raise self.error
        return self._source.fetch(digest)


def _failing(make: MakeHarness, config: EngineConfig) -> tuple[EngineHarness, _Failing]:
    sources: list[_Failing] = []

    def wrap(source: AdapterSource) -> AdapterSource:
        sources.append(_Failing(source))
        return sources[0]

    return make(config=config, wrap_source=wrap), sources[0]


def _without_file(blob: Path) -> None:
    (blob / "adapter.safetensors").unlink()


def _cut_short(blob: Path) -> None:
    file = blob / "adapter.safetensors"
    content = file.read_bytes()
    file.chmod(0o600)
    file.write_bytes(content[: len(content) // 2])


LOST: dict[str, Callable[[Path], None]] = {
    "folder": shutil.rmtree,
    "file": _without_file,
    "half": _cut_short,
}
FAULTS = [
    FileNotFoundError(errno.ENOENT, "no such file"),
    OSError(errno.ENOSPC, "no space left on device"),
    OSError(errno.EIO, "input/output error"),
    ConnectionError("the object store is away"),
    TimeoutError("the object store gave no answer"),
    PermissionError(errno.EACCES, "permission denied"),
    AdapterNotFoundError("sha256:gone"),
    IntegrityError("the bytes have changed"),
    SafetensorError("header too large"),
    RuntimeError("whatever a client library raises"),
]


def _assert_serves(harness: EngineHarness, digest: str, tag: str) -> None:
    for answer in harness.run(
        request(f"{tag} base", PROMPT, max_new_tokens=3),
        request(f"{tag} adapter", PROMPT, {digest: 1.0}, max_new_tokens=3),
    ):
        assert answer.end.reason is FinishReason.LENGTH


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("mode", ["manual", "auto"])
def test_a_merge_whose_blob_is_gone(
    mode: str, lost: str, make_harness: MakeHarness, folders: list[Path], tmp_path: Path
) -> None:
    harness = make_harness(config=AUTO if mode == "auto" else CONFIG)
    digest = harness.publish("a", folders[0])
    _assert_serves(harness, digest, "before")
    assert harness.engine.stats().adapters_host == 0
    (file,) = (tmp_path / "0" / "store" / "blobs").rglob("adapter.safetensors")
    for path in (file.parent.parent, file.parent):
        path.chmod(0o700)
    LOST[lost](file.parent)
    if mode == "manual":
        with pytest.raises(AdapterLoadError, match=digest):
            harness.wait(harness.engine.merge(ResolvedMixture((digest,), (1.0,))))
    harness.run(*(request(f"r{i}", PROMPT, {digest: 1.0}) for i in range(4)))
    assert harness.engine.merged().mode == "unmerged"
    _assert_serves(harness, digest, "after")


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_merge_whose_store_fails(
    fault: Exception, make_harness: MakeHarness, folders: list[Path]
) -> None:
    """Others go on meanwhile, and it works once the store does."""
    harness, source = _failing(make_harness, CONFIG)
    digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders[:2])]
    mixture = ResolvedMixture(tuple(digests), (1.0, 0.5))
    for digest in digests:
        _assert_serves(harness, digest, f"before {digest}")
    harness.add(request("meanwhile", PROMPT, {digests[0]: 1.0}, max_new_tokens=3))
    source.error = fault
    either = "|".join(digests)  # whichever was found out first
    with pytest.raises(AdapterLoadError, match=f"adapter ({either}) failed to load"):
        harness.wait(harness.engine.merge(mixture))
    _assert_serves(harness, digests[0], "between")
    source.error = None
    assert harness.wait(harness.engine.merge(mixture)).mixture == mixture
    _assert_serves(harness, digests[1], "after")
    assert harness.answers["meanwhile"].end.reason is FinishReason.LENGTH


@pytest.mark.parametrize("fault", FAULTS[:4], ids=repr)
def test_the_traffic_merges_what_is_on_the_host_and_reads_nothing(
    fault: Exception, make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness, source = _failing(make_harness, AUTO)
    digest = harness.publish("a", folders[0])
    harness.wait(harness.engine.load(digest))
    source.error = fault
    source.threads.clear()
    harness.run(*(request(f"r{i}", PROMPT, {digest: 1.0}) for i in range(6)))
    assert harness.engine.merged().mode == "unmerged"
    assert not source.threads


def test_no_file_is_read_on_the_engines_thread(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness, source = _failing(make_harness, CONFIG)
    digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders[:3])]
    engine = harness.engine
    harness.wait(engine.load(digests[0]))
    harness.wait(engine.merge(ResolvedMixture((digests[0],), (1.0,))))
    harness.wait(engine.merge(ResolvedMixture((digests[0], digests[1]), (1.0, 0.5))))
    harness.wait(engine.pin(digests[1], pinned=True))
    state = engine.pin(digests[2], pinned=False).result(HANG_SECONDS)
    assert (state.residency, state.pinned, state.users) == (Residency.DISK, False, 0)
    assert state.rank_rows > 0
    assert engine.pin(digests[1], pinned=False).result(HANG_SECONDS).pinned is False
    assert source.threads
    assert all(name.startswith("adapter-loader") for name in source.threads)


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_an_unpin_of_what_cannot_be_read(
    fault: Exception, make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness, source = _failing(make_harness, CONFIG)
    digest = harness.publish("a", folders[0])
    source.error = fault
    with pytest.raises(AdapterLoadError, match=digest):
        harness.engine.pin(digest, pinned=False).result(HANG_SECONDS)
    with pytest.raises(AdapterLoadError, match=digest):
        harness.wait(harness.engine.load(digest))
    source.error = None
    _assert_serves(harness, digest, "after")
