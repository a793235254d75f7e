"""Entry points: the formats, experts, routers and kernels that installed packages add."""

from __future__ import annotations

import functools
import sys
from importlib.metadata import EntryPoint, entry_points


def installed(group: str) -> tuple[EntryPoint, ...]:
    """Entry points of a group, of the packages that `sys.path` leads to.

    Looked for once a path: every installed package is read for it. What is installed while the
    process runs is seen by the next one.
    """
    return _installed(group, tuple(sys.path))


@functools.cache
def _installed(group: str, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))
