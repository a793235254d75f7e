"""The kernels' products on ARM: NEON alone, and with its instructions for bf16 and int8."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_engine.kernels.cpu.build import ISAS_OF, SOURCES
from tests.router_engine.kernels.neon.emulator import WITHOUT_BF16, Arm

pytestmark = pytest.mark.arm
INCLUDE = f"-I{SOURCES}"


@pytest.fixture(scope="module")
def checks(arm: Arm) -> Path:
    """The program of checks.cpp with the kernels of both sets, each its own object file."""
    kernels = [
        arm.part(f"{isa}.o", SOURCES / "kernels.cpp", "-Wno-psabi", f"-DMIX_{isa.upper()}")
        for isa in ISAS_OF["aarch64"]
    ]
    source = Path(__file__).with_name("checks.cpp")
    others = [SOURCES / "library.cpp", SOURCES / "pool.cpp"]
    return arm.compile("checks", [source, *others, *kernels], INCLUDE, "-Wno-psabi")


def test_products_are_those_of_plain_loops(arm: Arm, checks: Path) -> None:
    assert arm.run(checks).split() == ["neon", "neon_bf16"]


def test_a_processor_without_bf16_runs_the_other(arm: Arm, checks: Path) -> None:
    assert arm.run(checks, cpu=WITHOUT_BF16).split() == ["neon"]
