"""A run's process: the job comes in by standard input, its result goes into the named file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import get_args

from adaptermix.evaluation.recipes.harness import from_json
from adaptermix.evaluation.recipes.tasks import TASKS, files
from adaptermix.evaluation.scoring.tasks import Split

if __name__ == "__main__":
    job, place = from_json(sys.stdin.read())
    for split in get_args(Split):  # what is not there is told before torch takes its seconds
        files(TASKS[job.task], place.data, split)
    from adaptermix.evaluation.recipes.run import run

    result = run(job, place)
    Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")
