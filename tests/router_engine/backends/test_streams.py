"""Adapters come and go on a stream of their own; no step reads what is not there, or no more."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from router_engine.config import AdapterPoolConfig, SchedulerConfig
from router_engine.experts.memory import CudaMemory, DeviceMemory
from tests.support.card_engine import EVERY_LINEAR, card_engine, publish_loras
from tests.support.fake_card import OnLaunch
from tests.support.harness import EngineHarness, request
from tests.support.streams import FakeStream, StreamChecker, StreamError, fake_streams

ROOM = 300_000  # bytes: for some of the adapters


@contextmanager
def _engine(root: Path, checker: StreamChecker) -> Iterator[tuple[EngineHarness, list[str]]]:
    """Over an arena that is too small for all adapters at once."""

    def memory_for(device: torch.device, num_bytes: int) -> DeviceMemory:
        made = CudaMemory(num_bytes, device)
        checker.watch(made._buffer)
        return made

    limits = SchedulerConfig(max_step_tokens=64, max_running=6)
    room = AdapterPoolConfig(memory_bytes=ROOM, host_bytes=1 << 30)
    with pytest.MonkeyPatch.context() as patch, fake_streams(checker):
        patch.setattr("router_engine.assembly.memory_for", memory_for)
        with card_engine(root, limits, adapters=room) as (card, harness):
            card.on_launch = _tiles_read(checker)
            ranks = (4, 8, 16, 4, 12, 8, 20, 4)
            yield harness, publish_loras(harness, root, *((rank, EVERY_LINEAR) for rank in ranks))


def _tiles_read(
    checker: StreamChecker,
) -> OnLaunch:
    """Tells of the rows that a launch over tiles reads, as the kernel finds them: by address."""

    def on_launch(name: str, grid: tuple[int, ...], given: Mapping[str, Any]) -> None:
        if name not in ("shrink_tiles_kernel", "expand_tiles_kernel"):
            return
        is_shrink = name.startswith("shrink")
        modules = grid[0] // given["capacity"] if is_shrink else grid[2]
        ranks, addresses = given["ranks"].numpy(), given["addresses"].numpy()
        reads = []
        for slot, _, row in given["tiles"][: int(given["count"])].tolist():
            for own in range(modules):
                module = given["first_module"] + own
                rows = min(16, int(ranks[slot, module]) - row)
                if rows <= 0:
                    continue
                width = given["width"] if is_shrink else int(given["spans"][own, 1])
                line = width * given["x" if is_shrink else "y"].element_size()
                first = int(addresses[slot, module, 0 if is_shrink else 1]) + row * line
                reads.append((first, first + rows * line))
        checker.launch(name, reads)

    return on_launch


def _serve(root: Path, checker: StreamChecker, requests: int = 60) -> None:
    """Random mixtures, so that adapters come, move and go."""
    draw = random.Random(3)
    with checker, _engine(root, checker) as (harness, digests):
        for number in range(requests):
            mixture = dict.fromkeys(draw.sample(digests, draw.randint(1, 2)), 0.5)
            length, answer = draw.choice([2, 30]), draw.randint(1, 8)
            made = request(f"r{number}", range(5, 5 + length), mixture, max_new_tokens=answer)
            harness.add(made)
            for _ in range(draw.randint(0, 4)):
                if not _all_ended(harness):
                    harness.step()
        while not _all_ended(harness):
            harness.step()
        assert all(answer.end.error is None for answer in harness.answers.values())


def _all_ended(harness: EngineHarness) -> bool:
    return all(answer.is_finished for answer in harness.answers.values())


@pytest.mark.parametrize("delay", [0, 3])
def test_every_read_waits_for_what_was_written(tmp_path: Path, delay: int) -> None:
    checker = StreamChecker(delay)
    _serve(tmp_path, checker)
    assert len(checker.streams) == 2
    assert checker.checked > 100


@pytest.mark.parametrize("fault", ["arrived", "leaving", "moved"])
def test_what_does_not_wait_is_found(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker finds each of the waits that is left out."""
    if fault == "arrived":
        monkeypatch.setattr(CudaMemory, "arrived", lambda memory, digest: True)
    elif fault == "moved":
        monkeypatch.setattr(CudaMemory, "_move", DeviceMemory._move)
    else:
        monkeypatch.setattr(FakeStream, "wait_stream", lambda stream, other: None)
    with pytest.raises(StreamError, match="does not wait"):
        _serve(tmp_path, StreamChecker(delay=3))
