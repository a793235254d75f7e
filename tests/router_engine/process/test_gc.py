"""Full collections of a process that serves: in one of its own, as nothing thaws what is frozen."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import gc, weakref
import transformers
from router_engine.process.gc import freeze_loaded

class Ring:
    pass

def leave_one():
    ring = Ring()
    ring.itself = ring
    return weakref.ref(ring)

before = leave_one()
freeze_loaded()
assert before() is None, "garbage must go before the rest is kept"
seen = len(gc.get_objects())
assert seen < 1000 < gc.get_freeze_count(), seen
after = leave_one()
gc.collect()
assert after() is None, "what comes later is collected as ever"
"""


def test_what_was_loaded_is_not_looked_at_again() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
