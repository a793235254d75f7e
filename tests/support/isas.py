"""The instruction sets that tests of the C++ kernels run on: all that the machine has.

A run that is forced down, as by `make test ISA=avx2`, keeps to those that it may use.
"""

from __future__ import annotations

import os
from typing import cast

from router_engine.backends.cpu.build import known_isas, machine_isas
from router_engine.config import CpuIsa

LIMIT = os.environ.get("ADAPTERMIX_CPU_ISA")


def here() -> tuple[CpuIsa, ...]:
    """From narrow to wide."""
    allowed = known_isas()
    if LIMIT in allowed:
        allowed = allowed[: allowed.index(LIMIT) + 1]
    return tuple(cast(CpuIsa, isa) for isa in machine_isas() if isa in allowed)
