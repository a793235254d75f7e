"""The test bed itself: what the kernels need of ARM compiles here and runs in the emulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.router_engine.backends.neon.emulator import BF16, DOTPROD, WITHOUT_BF16, Arm

pytestmark = pytest.mark.arm
PROBE = (Path(__file__).with_name("probe.cpp"),)


@pytest.fixture(scope="module")
def newer(arm: Arm) -> Path:
    return arm.compile("probe-bf16", PROBE, BF16)


def test_products_of_bf16_and_int8_and_threads_that_wait(arm: Arm, newer: Path) -> None:
    # Four lanes begin at 1; 16 products of int8, 8 of bf16; three threads of 500 turns.
    assert arm.run(newer, "-3", "5") == "-236 -116 1500\n"


def test_a_processor_without_bf16_runs_what_is_made_for_it_alone(arm: Arm, newer: Path) -> None:
    plain = arm.compile("probe-dotprod", PROBE, DOTPROD)
    assert arm.run(plain, "-3", "5", cpu=WITHOUT_BF16) == "-236 0 1500\n"
    done = arm.attempt(newer, "-3", "5", cpu=WITHOUT_BF16)
    assert done.returncode != 0
    assert "Illegal instruction" in done.stderr
