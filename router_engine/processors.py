"""The processors that this process may use: what the system lets it run on, and for how long."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from router_engine.errors import EngineError

_ROOT = Path("/")
_V1_CONTROLLER = "cpu"


class ThreadsError(EngineError, ValueError):
    """A count of threads that cannot be used; the message names the setting and what would work."""


def usable_cores(root: Path = _ROOT) -> int:
    """Threads that can compute all the time: the affinity mask, within the cgroups' CPU quota.

    `root` is where `/proc` and what it names are found.
    """
    return cores_within(allowed_cores(), cpu_quota(root))


def cores_within(allowed: int, quota: float | None) -> int:
    """`allowed` cores, or as many as `quota` (in cores; None: no limit) keeps busy; 1 at least.

    A quota is rounded down. With more threads than it, all are stopped once they have used up the
    period's time together: two threads under 1.5 cores stand still for a quarter of every 100 ms,
    and as the threads of a step wait for each other at every phase, one that is stopped stops the
    step while the others spin the rest of the quota away. The part of a core that rounding leaves
    over isn't lost: HTTP, tokenizing and the sentence encoder run beside the engine on it.
    """
    return allowed if quota is None else max(1, min(allowed, math.floor(quota)))


def allowed_cores() -> int:
    """Cores of the affinity mask; all of the machine's where the system has no such mask."""
    # Linux alone has the mask, which cpusets (`docker --cpuset-cpus`) narrow too.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = _ROOT) -> float | None:
    """The smallest CPU quota, in cores, of the process's cgroup and those around it; None if none.

    Both versions are read, as a machine may have both: of version 2 `cpu.max`, of version 1
    `cpu.cfs_quota_us` and `cpu.cfs_period_us` (Linux's Documentation/admin-guide/cgroup-v2.rst and
    scheduler/sched-bwc.rst). Where there are none of these files there is no limit.
    """
    quotas = [
        quota
        for folder in _cgroup_folders(root)
        for quota in (_quota_v2(folder), _quota_v1(folder))
        if quota is not None
    ]
    return min(quotas, default=None)


def check_threads(name: str, threads: int | None) -> None:
    """Refuse a count of threads below 1 or above the usable cores; None is no count.

    Raises ThreadsError, which names the setting `name`.
    """
    if threads is None:
        return
    if threads < 1:
        raise ThreadsError(f"{name} is {threads}; it must be at least 1")
    if threads > (cores := usable_cores()):
        raise ThreadsError(
            f"{name} is {threads}; it must be at most {cores}, the cores that this process may use "
            "(its affinity mask and CPU quota)"
        )


def limit_torch() -> None:
    """Lower torch's count of threads to the usable cores, for this thread and those that begin.

    torch's own default heeds the affinity mask and OMP_NUM_THREADS, but no quota. A count that is
    lower already was chosen, and stays.
    """
    import torch  # here: what counts cores only must not load it

    cores = usable_cores()
    if torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """The folders of the process's cgroups and of those around them, as far as mounts show them."""
    paths = dict(_memberships(root / "proc/self/cgroup"))
    for version, shown, mount in _mounts(root / "proc/self/mountinfo"):
        inside = _below(paths.get(version), shown)
        if inside is None:
            continue
        top = root / mount.relative_to("/")
        yield top
        for depth in range(len(inside.parts)):
            yield top.joinpath(*inside.parts[: depth + 1])


def _memberships(file: Path) -> Iterator[tuple[int, PurePosixPath]]:
    """(version, path of the process's cgroup) of the hierarchies that can limit processors."""
    for line in _lines(file):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield 2, PurePosixPath(path)
        elif _V1_CONTROLLER in controllers.split(","):
            yield 1, PurePosixPath(path)


def _mounts(file: Path) -> Iterator[tuple[int, PurePosixPath, PurePosixPath]]:
    """(version, cgroup at its top, where it is) of every mount of such a hierarchy: proc(5)."""
    for line in _lines(file):
        # Optional fields stand before the dash, as many as there are.
        place, _, kind = line.partition(" - ")
        shown, mount = (PurePosixPath(_plain(field)) for field in place.split(" ")[3:5])
        system, _, options = kind.split(" ", 2)
        if system == "cgroup2":
            yield 2, shown, mount
        elif system == "cgroup" and _V1_CONTROLLER in options.split(","):
            yield 1, shown, mount


def _below(path: PurePosixPath | None, shown: PurePosixPath) -> PurePosixPath | None:
    """Where a cgroup lies below the top of a mount; None where the mount doesn't show it.

    A mount that was made outside the process's cgroup namespace shows one around it, as `/..`: the
    names on the way down are hidden, but the top is around the process and its limit holds.
    """
    if path is None or ".." in path.parts:
        return None
    if ".." in shown.parts:
        return PurePosixPath()
    return path.relative_to(shown) if path.is_relative_to(shown) else None


def _quota_v2(folder: Path) -> float | None:
    words = " ".join(_lines(folder / "cpu.max")).split()
    return _ratio(*words) if len(words) == 2 else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = (_lines(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return _ratio(quota[0], period[0]) if quota and period else None


def _ratio(quota: str, period: str) -> float | None:
    """Microseconds of processor time in microseconds of time; "max" and -1 are no limit."""
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or what only an imitation of cgroups writes
        return None
    return None if share < 0 else share


def _plain(field: str) -> str:
    """A field of mountinfo with the characters that it writes in octal: `\\040` is a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _lines(file: Path) -> list[str]:
    """Lines of a file; none where it can't be read: it's another system, or another container's."""
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return [line for line in text.split("\n") if line]  # a path may hold other ends of lines
