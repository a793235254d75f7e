"""The count of usable cores: affinity mask and CPU quota, over files as Linux shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from router_engine.processors import (
    ThreadsError,
    allowed_cores,
    check_threads,
    cores_within,
    cpu_quota,
    usable_cores,
)

V2 = "0::{path}\n"
V2_MOUNT = "30 23 0:26 {shown} {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "9:name=systemd:/\n4:cpu,cpuacct:{path}\n3:cpuset:/elsewhere\n0::/\n"
V1_MOUNT = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "32 31 0:29 {shown} {mount} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)
UNIFIED = "/sys/fs/cgroup"
CPU = "/sys/fs/cgroup/cpu,cpuacct"


class Tree:
    """A root folder with `/proc/self` and the cgroups' files, as a process would find them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, text: str) -> None:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def v2(self, path: str = "/", shown: str = "/", mount: str = UNIFIED) -> None:
        self.write("proc/self/cgroup", V2.format(path=path))
        self.write("proc/self/mountinfo", V2_MOUNT.format(shown=shown, mount=mount))

    def v1(self, path: str = "/", shown: str = "/", mount: str = CPU) -> None:
        self.write("proc/self/cgroup", V1.format(path=path))
        self.write("proc/self/mountinfo", V1_MOUNT.format(shown=shown, mount=mount))

    def limit_v1(self, folder: str, quota: int, period: int = 100_000) -> None:
        self.write(f"{folder}/cpu.cfs_quota_us", f"{quota}\n")
        self.write(f"{folder}/cpu.cfs_period_us", f"{period}\n")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_container_of_one_and_a_half_cores_gets_one_thread(tree: Tree) -> None:
    """In a container the namespace shows its own cgroup as the root of all."""
    tree.v2()
    tree.write("sys/fs/cgroup/cpu.max", "150000 100000\n")
    assert cpu_quota(tree.root) == 1.5
    assert usable_cores(tree.root) == 1


def test_the_same_under_version_1(tree: Tree) -> None:
    tree.v1()
    tree.limit_v1(CPU, 150_000)
    assert cpu_quota(tree.root) == 1.5
    assert usable_cores(tree.root) == 1


@pytest.mark.parametrize(
    ("allowed", "quota", "cores"),
    [
        (8, None, 8),
        (8, 0.25, 1),
        (8, 1.0, 1),
        (8, 1.5, 1),
        (8, 1.999, 1),
        (8, 2.0, 2),
        (8, 3.5, 3),
        (8, 64.0, 8),
        (1, 3.5, 1),
    ],
)
def test_a_quota_is_rounded_down_and_no_mask_exceeded(
    allowed: int, quota: float | None, cores: int
) -> None:
    assert cores_within(allowed, quota) == cores


def test_a_quota_above_the_mask_leaves_the_mask(tree: Tree) -> None:
    tree.v2()
    tree.write("sys/fs/cgroup/cpu.max", f"{100_000 * allowed_cores() + 50_000} 100000\n")
    assert usable_cores(tree.root) == allowed_cores()


@pytest.mark.parametrize(
    ("limits", "quota"),
    [
        ({"": "max 100000", "pod": "400000 100000", "pod/server": "250000 100000"}, 2.5),
        ({"pod": "50000 100000", "pod/server": "400000 100000"}, 0.5),
        ({"pod": "200000 100000", "pod/server": "max 100000"}, 2.0),
        ({"": "300000 100000", "pod": "max 100000"}, 3.0),
        ({"pod/server": "30000 20000"}, 1.5),
        ({"pod": "max 100000", "pod/server": "max 100000"}, None),
        ({"other": "100000 100000", "pod/server/inner": "100000 100000"}, None),
    ],
)
def test_the_smallest_of_nested_quotas_holds(
    tree: Tree, limits: dict[str, str], quota: float | None
) -> None:
    tree.v2("/pod/server")
    for folder, text in limits.items():
        tree.write(f"sys/fs/cgroup/{folder}/cpu.max", f"{text}\n")
    assert cpu_quota(tree.root) == quota


def test_nested_quotas_of_version_1(tree: Tree) -> None:
    tree.v1("/docker/abc")
    tree.limit_v1(CPU, -1)
    tree.limit_v1(f"{CPU}/docker", 600_000)
    tree.limit_v1(f"{CPU}/docker/abc", 125_000, 50_000)
    tree.limit_v1("/sys/fs/cgroup/cpuset/docker/abc", 50_000)  # no place of the CPU controller's
    assert cpu_quota(tree.root) == 2.5


def test_no_quota_of_version_1(tree: Tree) -> None:
    tree.v1()
    tree.limit_v1(CPU, -1)
    assert cpu_quota(tree.root) is None


def test_a_mount_that_begins_at_the_container_s_cgroup(tree: Tree) -> None:
    """Without a namespace of its own a container sees the host's path and its own part mounted."""
    tree.v1("/docker/abc/inner", shown="/docker/abc")
    tree.limit_v1(CPU, 350_000)
    tree.limit_v1(f"{CPU}/inner", 150_000)
    assert cpu_quota(tree.root) == 1.5


def test_a_mount_of_a_cgroup_around_the_namespace(tree: Tree) -> None:
    tree.v2("/", shown="/../..")
    tree.write("sys/fs/cgroup/cpu.max", "150000 100000\n")
    assert cpu_quota(tree.root) == 1.5


@pytest.mark.parametrize(("path", "shown"), [("/a", "/b"), ("/../other", "/"), ("/ab", "/a")])
def test_a_cgroup_that_no_mount_shows(tree: Tree, path: str, shown: str) -> None:
    tree.v2(path, shown)
    tree.write("sys/fs/cgroup/cpu.max", "150000 100000\n")
    assert cpu_quota(tree.root) is None


@pytest.mark.parametrize("text", ["x y", "100000 0", "1 2 3", "-1 100000", "", "max"])
def test_what_is_no_quota_limits_nothing(tree: Tree, text: str) -> None:
    tree.v2()
    tree.write("sys/fs/cgroup/cpu.max", f"{text}\n")
    assert cpu_quota(tree.root) is None
    tree.v1()
    tree.limit_v1(CPU, 50_000, 0)
    assert cpu_quota(tree.root) is None


def test_a_mount_point_with_a_space(tree: Tree) -> None:
    tree.v2(mount="/my\\040groups")
    tree.write("my groups/cpu.max", "150000 100000\n")
    assert cpu_quota(tree.root) == 1.5


def test_without_cgroups_the_mask_alone_counts(tree: Tree) -> None:
    """As where there is no `/proc`: macOS, Windows."""
    assert cpu_quota(tree.root) is None
    assert usable_cores(tree.root) == allowed_cores()


def _run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_PINNED = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from router_engine.processors import usable_cores
assert "torch" not in sys.modules
print(usable_cores())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the affinity mask is Linux's")
def test_a_process_on_one_core_counts_one() -> None:
    assert _run(_PINNED) == "1"


def test_this_very_process_counts_what_it_may_use() -> None:
    assert 1 <= usable_cores() <= allowed_cores() <= (os.cpu_count() or 1)


_LIMITED = """
import threading, torch
from router_engine.processors import limit_torch, usable_cores
torch.set_num_threads({begins})
limit_torch()
later = []
thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
thread.start()
thread.join()
print(torch.get_num_threads() - usable_cores(), later[0] - usable_cores())
"""


def test_torch_is_limited_to_the_usable_cores() -> None:
    """This thread, and one that begins later."""
    assert _run(_LIMITED.format(begins=usable_cores() + 2)) == "0 0"


def test_a_lower_count_of_torch_s_threads_stays() -> None:
    less = str(1 - usable_cores())
    assert _run(_LIMITED.format(begins=1)) == f"{less} {less}"


def test_more_threads_than_cores_are_refused() -> None:
    check_threads("threads", None)
    check_threads("threads", usable_cores())
    many = usable_cores() + 1
    with pytest.raises(ThreadsError, match=rf"^threads is {many}; .* at most {many - 1}\b"):
        check_threads("threads", many)
    with pytest.raises(ThreadsError, match="threads is 0; it must be at least 1"):
        check_threads("threads", 0)
