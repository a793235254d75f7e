"""The worker's end: JSON lines in, JSON lines out. The standard library alone is imported."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Handle = Callable[[dict[str, Any]], dict[str, Any]]


def serve(make: Callable[[], tuple[dict[str, Any], Handle]]) -> None:
    """Say what `make` tells of the peer, then answer until standard input ends.

    What libraries print goes to standard error. An exception is an answer with an `error`.
    """
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)

        def say(answer: dict[str, Any]) -> None:
            out.write(json.dumps(answer) + "\n")
            out.flush()

        try:
            about, handle = make()
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})
            raise
        say(about)
        for line in sys.stdin:
            try:
                answer = handle(json.loads(line))
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            say(answer)
