"""Spares the HTTP process torch, which it has no use for: the engine computes in another one.

transformers, of which the tokenizer is wanted alone, imports torch and all that comes with it
wherever it finds it: 300 MB and two seconds.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from types import ModuleType
from typing import cast

from router_engine.routers.registry import GROUP


@contextmanager
def without_torch() -> Iterator[None]:
    """Within it transformers finds no torch, and remembers that; `import torch` works afterwards.

    Nothing is hidden where torch is loaded already, nor beside routers of other packages: they run
    in this process, and may want transformers' models.
    """
    if "torch" in sys.modules or entry_points(group=GROUP):
        yield
        return
    logger = logging.getLogger("transformers")
    logger.addFilter(_is_other_news)
    modules = cast("dict[str, ModuleType | None]", sys.modules)
    modules["torch"] = None  # as Python marks what is not there
    try:
        yield
    finally:
        del modules["torch"]
        logger.removeFilter(_is_other_news)


def _is_other_news(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in record.getMessage()
