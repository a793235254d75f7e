"""The kernels on ARM: NEON alone, and with its instructions for bf16 and int8."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest

from router_engine.backends.cpu.build import ISAS_OF, SOURCES
from tests.router_engine.backends.neon.emulator import NEWEST, WITHOUT_BF16, Arm

pytestmark = pytest.mark.arm
OPTIONS = (f"-I{SOURCES}", "-Wno-psabi")
ISAS = ISAS_OF["aarch64"]
FORMATS = ("fp32", "bf16", "int8")
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33)
# What is one wrong number in the plain loops, and the smallest case that has it.
ALTERED = {
    "weight": "prompt",
    "position": "prompt",
    "adapter": "mixture",
    "bias": "extended",
    "norm": "extended",
    "window": "extended",
}


@pytest.fixture(scope="module")
def kernels(arm: Arm) -> list[Path]:
    """Object files: the kernels of both sets, each its own, and what they share."""
    own = [
        arm.part(f"{isa}.o", SOURCES / "kernels.cpp", "-Wno-psabi", f"-DMIX_{isa.upper()}")
        for isa in ISAS
    ]
    return [*own, *(arm.part(f"{name}.o", SOURCES / f"{name}.cpp") for name in ("library", "pool"))]


@pytest.fixture(scope="module")
def checks(arm: Arm, kernels: list[Path]) -> Path:
    return arm.compile("checks", [Path(__file__).with_name("checks.cpp"), *kernels], *OPTIONS)


@pytest.fixture(scope="module")
def steps(arm: Arm, kernels: list[Path]) -> Path:
    return arm.compile("steps", [Path(__file__).with_name("steps.cpp"), *kernels], *OPTIONS)


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The instruction sets that ran, in turn."""
    return re.findall(r"^\w+$", done.stdout, re.M)


@pytest.mark.parametrize(
    ("cpu", "isas", "rows"), [(NEWEST, ISAS, ROWS), (WITHOUT_BF16, ISAS[:1], (1, 5))]
)
def test_products_are_those_of_plain_loops_and_of_no_others(
    arm: Arm, checks: Path, cpu: str, isas: Sequence[str], rows: Sequence[int]
) -> None:
    """Every product differs from loops with one wrong weight, and nothing else differs.

    A processor without bf16 runs the one set; all numbers of rows are tried on the other.
    """
    done = arm.attempt(checks, *map(str, rows), cpu=cpu)
    assert done.returncode == 1
    failed = re.findall(r"^(\w+): (.+), (outputs .+)$", done.stdout, re.M)
    shapes = {shape for _, _, shape in failed}
    assert len(shapes) == 4 * len(rows) + 3
    spoiled = [f"spoiled {number_format}" for number_format in FORMATS]
    assert sorted(failed) == sorted(product(isas, spoiled, shapes))
    assert told(done) == list(isas)


def test_steps_of_a_decoder_are_those_of_plain_loops_and_of_no_others(
    arm: Arm, steps: Path
) -> None:
    """Steps differ from loops with one wrong number, and from no right ones, in no case."""
    done = arm.attempt(steps, *(f"{case}:{what}" for what, case in ALTERED.items()))
    assert done.returncode == 1
    failed = re.findall(r"^(.+): (.+)$", done.stdout, re.M)
    expected = {
        (f"{what} {isa} {number_format} {case}", "logits")
        for what, case in ALTERED.items()
        for isa, number_format in product(ISAS, FORMATS)
    }
    assert sorted(failed) == sorted(expected)
    assert told(done) == list(ISAS)
