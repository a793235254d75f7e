"""The kernels on ARM: NEON alone, and with its instructions for bf16 and int8."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from router_engine.kernels.cpu.build import ISAS_OF, SOURCES
from tests.router_engine.kernels.neon.emulator import WITHOUT_BF16, Arm

pytestmark = pytest.mark.arm
OPTIONS = (f"-I{SOURCES}", "-Wno-psabi")
ISAS = ISAS_OF["aarch64"]
FORMATS = ("fp32", "bf16", "int8")
SHAPES = 47  # of the products in checks.cpp
CASES = ("prompt", "batch", "mixture", "extended")  # in steps.cpp
# What is one wrong number in its plain loops, and the cases that have it.
ALTERED = {
    "weight": CASES,
    "position": CASES,
    "adapter": ("mixture", "extended"),
    "bias": ("extended",),
    "norm": ("extended",),
    "window": ("extended",),
}


@pytest.fixture(scope="module")
def kernels(arm: Arm) -> list[Path]:
    """The kernels of both sets, each its own object file, and what they share."""
    own = [
        arm.part(f"{isa}.o", SOURCES / "kernels.cpp", "-Wno-psabi", f"-DMIX_{isa.upper()}")
        for isa in ISAS
    ]
    return [SOURCES / "library.cpp", SOURCES / "pool.cpp", *own]


@pytest.fixture(scope="module")
def checks(arm: Arm, kernels: list[Path]) -> Path:
    return arm.compile("checks", [Path(__file__).with_name("checks.cpp"), *kernels], *OPTIONS)


@pytest.fixture(scope="module")
def steps(arm: Arm, kernels: list[Path]) -> Path:
    return arm.compile("steps", [Path(__file__).with_name("steps.cpp"), *kernels], *OPTIONS)


def test_products_are_those_of_plain_loops(arm: Arm, checks: Path) -> None:
    assert arm.run(checks).split() == list(ISAS)


def test_a_processor_without_bf16_runs_the_other(arm: Arm, checks: Path) -> None:
    assert arm.run(checks, cpu=WITHOUT_BF16).split() == ["neon"]


def test_one_wrong_weight_fails_every_product_and_nothing_else(arm: Arm, checks: Path) -> None:
    done = arm.attempt(checks, "spoil")
    assert done.returncode == 1
    failed = re.findall(r"^(\w+): (.+), (outputs .+)$", done.stdout, re.M)
    shapes = {shape for _, _, shape in failed}
    assert len(shapes) == SHAPES
    assert set(failed) == set(product(ISAS, FORMATS, shapes))


def test_steps_of_a_decoder_are_those_of_plain_loops_and_of_no_others(
    arm: Arm, steps: Path
) -> None:
    """Steps differ from loops with one wrong number, where they have it, and from no right ones."""
    done = arm.attempt(steps, *ALTERED)
    assert done.returncode == 1
    failed = re.findall(r"^(.+): (.+)$", done.stdout, re.M)
    expected = {
        (f"{what} {isa} {number_format} {case}", "logits")
        for what, cases in ALTERED.items()
        for isa, number_format, case in product(ISAS, FORMATS, cases)
    }
    assert sorted(failed) == sorted(expected)
    told = re.findall(r"^\w+$", done.stdout, re.M)
    assert told == list(ISAS)
