"""Held down to an instruction set: by the environment, by a build, and what then can't be done."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest

from adaptermix.bench import forced
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.kernels import best_us, left_out, markdown
from adaptermix.bench.peers import llama_cpp, vllm_cpu
from adaptermix.bench.peers.settings import PeerSettings
from adaptermix.bench.peers.systems import Context
from adaptermix.bench.plots import plot_kernels

KERNELS = """
import sys
from adaptermix.cli.main import run
sys.argv = ["adaptermix", "bench", "kernels", "--model", "tiny-random", "--rows", "1",
            "--rounds", "1", "--threads", "1", "--out", sys.argv[1]]
run()
"""


def encode(text: str) -> list[int]:
    return [0] * len(text)


def test_nothing_is_forced_without_a_name() -> None:
    assert forced.environment(None) == {}
    assert forced.pairs(None) == []
    assert forced.cmake_options(None) == ["-DGGML_NATIVE=ON"]


def test_every_library_is_held_down() -> None:
    assert forced.environment("avx2") == {
        "ADAPTERMIX_CPU_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
    assert "MKL_ENABLE_INSTRUCTIONS" not in forced.environment("amx")


def test_a_build_for_an_instruction_set_switches_all_others_off() -> None:
    options = forced.cmake_options("avx2")
    assert {"-DGGML_NATIVE=OFF", "-DGGML_FMA=ON", "-DGGML_AVX512=OFF"} <= set(options)
    assert "-DGGML_AMX_INT8=OFF" in options
    x86 = [isa for isa in forced.ISAS if not isa.startswith("neon")]
    assert len({llama_cpp.build(isa) for isa in (None, *x86)}) == len(x86) + 1


def test_on_arm_ours_alone_is_held_down() -> None:
    assert forced.environment("neon_bf16") == {"ADAPTERMIX_CPU_ISA": "neon_bf16"}


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="one of avx2, avx2_vnni, avx512"):
        PeerSettings(isa="sse9")


def test_a_build_has_a_home_of_its_own(tmp_path: Path) -> None:
    homes = {llama_cpp.home(tmp_path, isa).folder for isa in (None, "avx2", "avx512")}
    assert {home.name for home in homes} == {"llama", "llama-avx2", "llama-avx512"}


def test_vllm_cannot_be_held_down_and_says_so(tmp_path: Path) -> None:
    with ExitStack() as stack:
        context = Context(
            *("model", (tmp_path,), 16, 8, 160, 2, tmp_path, tmp_path, encode, "avx2", stack)
        )
        with pytest.raises(BenchmarkError, match="can't be held down to avx2"):
            vllm_cpu.open_peer(context)
    assert not (tmp_path / "vllm").exists()


class TestLeftOut:
    RESULT: ClassVar[dict[str, Any]] = {
        "model": "m",
        "machine": {"processor": "p", "cores": 1},
        "software": {"commit": "c", "date": "2026-01-01"},
        "bytes_per_second": 1e9,
        "products": [
            {
                "product": "o 8 -> 8",
                "rows": rows,
                "count": 1,
                "flops": 1,
                "floor_us": 1.0,
                "us": {"reference": 5.0, "reference fp32": 1.0} | more,
                "missing": missing,
            }
            for rows, more, missing in ((1, {}, {"onednn": "no AVX-512"}), (8, {"cpu": 2.0}, {}))
        ],
        "missing": {"onednn": "no AVX-512"},
        "others": [],
    }

    def test_a_dash_stands_for_it_and_the_reason_below(self) -> None:
        page = markdown(self.RESULT)
        assert "| o 8 -> 8 | 1 | 1 | 5 | 1 | - | - |" in page
        assert "| o 8 -> 8 | 8 | 1 | 5 | 1 | 2 | 2.00 |" in page
        assert "onednn is left out: no AVX-512" in page

    def test_the_picture_is_drawn_all_the_same(self, tmp_path: Path) -> None:
        plot_kernels(tmp_path / "kernels.png", self.RESULT)
        assert (tmp_path / "kernels.png").stat().st_size > 5_000

    def test_other_formats_are_not_the_best_in_16_bits(self) -> None:
        assert best_us(self.RESULT["products"][0]) == 5.0
        assert left_out(self.RESULT["products"]) == {"onednn": "no AVX-512"}


@pytest.mark.slow
def test_kernels_below_avx512_are_measured_without_onednn(tmp_path: Path) -> None:
    """oneDNN packs no bf16 there: the rest must not be lost with it."""
    variables = ["ONEDNN_MAX_CPU_ISA=AVX2", "ATEN_CPU_CAPABILITY=avx2"]
    command = ["env", *variables, sys.executable, "-c", KERNELS, str(tmp_path / "kernels")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "kernels.json").read_text())
    assert "onednn" in result["missing"]
    assert all({"cpu", "reference"} <= set(line["us"]) for line in result["products"])
    assert "onednn is left out" in (tmp_path / "kernels.md").read_text()
