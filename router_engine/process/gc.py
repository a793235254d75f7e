"""Garbage collection of a serving process: what was loaded to serve is never looked at again."""

from __future__ import annotations

import gc


def freeze_loaded() -> None:
    """Take all that lives now out of the garbage collector's sight; called once, when all is there.

    torch and transformers alone leave some 400,000 objects. A full collection looks at each and
    stops the process for a fifth of a second, in the middle of everyone's stream.
    """
    gc.collect()
    gc.freeze()
