"""A run's process: the job comes in by standard input, its result goes into the named file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.experiments.job import from_json
from benchmarks.experiments.run import run

if __name__ == "__main__":
    result = run(*from_json(sys.stdin.read()))
    Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")
