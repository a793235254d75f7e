"""Engines on a card that is none (`fake_card`): whole ones, but what kernels compute is zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from router_engine.backends.proof import Proof, ProofVerdict
from router_engine.config import (
    AdapterPoolConfig,
    CacheConfig,
    EngineConfig,
    KernelConfig,
    SchedulerConfig,
)
from tests.support.fake_card import FakeCard, fake_card
from tests.support.harness import EngineHarness
from tests.support.tiny import ATTENTION, make_lora_folder, save_family

EVERY_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@contextmanager
def card_engine(
    root: Path,
    scheduler: SchedulerConfig,
    *,
    family: str = "llama",
    adapters: AdapterPoolConfig | None = None,
    enforce_eager: bool = False,
    lints: bool = False,
) -> Iterator[tuple[FakeCard, EngineHarness]]:
    """One whose decoder was proven before: here it could not be."""
    config = EngineConfig(
        cache=CacheConfig(num_blocks=256),
        scheduler=scheduler,
        adapters=adapters or AdapterPoolConfig(),
        kernels=KernelConfig("triton", root / "kernels", enforce_eager=enforce_eager),
    )
    model = save_family(root / "model", family)
    with fake_card(lints=lints) as card, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Proof, "earlier", lambda proof, name: ProofVerdict(0.0, 1.0))
        harness = EngineHarness(root / "engine", model, config)
        try:
            yield card, harness
        finally:
            harness.close()


def publish_loras(
    harness: EngineHarness, root: Path, *loras: tuple[int, Sequence[str]]
) -> list[str]:
    """The digests of LoRAs by (rank, targets)."""
    return [
        harness.publish(
            f"lora{seed}",
            make_lora_folder(
                root / f"lora{seed}", family="llama", rank=rank, targets=tuple(targets), seed=seed
            ),
        )
        for seed, (rank, targets) in enumerate(loras, 1)
    ]
