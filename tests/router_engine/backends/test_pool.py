"""The pool of threads of the C++ kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from router_engine.backends.cpu.build import build

_FEW_THREADS = """
import resource, sys
import torch
from pathlib import Path
from router_engine.backends.cpu.library import Library

library = Library(Path(sys.argv[1]))
weight = torch.randn(512, 512)
packed = torch.empty(library.packed_size(weight.shape, weight.dtype), dtype=weight.dtype)
library.pack(weight, packed)
x = torch.randn(32, 512)
alone = library.linears(x, [packed], 512)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (64 << 20),) * 2)  # stacks of a few threads
torch.set_num_threads(512)
assert torch.equal(library.linears(x, [packed], 512), alone)
"""


def test_with_fewer_threads_than_asked_for_all_is_computed(kernel_cache: Path) -> None:
    """As where the system lets a process have so many and no more."""
    command = [sys.executable, "-c", _FEW_THREADS, str(build(kernel_cache))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
