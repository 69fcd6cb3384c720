"""Machines laid out as files in a folder: what the plan must be on each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from burnish.errors import InputError
from burnish.runtime import threads
from burnish.runtime.cgroup import cpu_quota, memory_limit
from burnish.runtime.threads import physical_cores, plan_threads

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


def v2(root: Path, group: str, files: dict[str, str]) -> Path:
    spread = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    own = {"proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": V2}
    return lay_out(root, own | spread)


def test_v2_own_group_not_only_the_root(tmp_path: Path) -> None:
    root = v2(tmp_path, "/user.slice/job", {"user.slice/job/cpu.max": "250000 100000\n"})
    assert cpu_quota(root) == 2.5


def test_v2_an_ancestor_may_be_tighter(tmp_path: Path) -> None:
    limits = {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "800000 100000\n"}
    assert cpu_quota(v2(tmp_path, "/a/b", limits)) == 1.0


def test_v2_max_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(v2(tmp_path, "/a", {"a/cpu.max": "max 100000\n"})) is None


def test_v2_container_sees_its_group_as_the_mount(tmp_path: Path) -> None:
    root = v2(tmp_path, "/../../elsewhere", {"cpu.max": "150000 100000\n"})
    assert cpu_quota(root) == 1.5


def test_v1_quota_of_the_own_group(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/cpu,cpuacct/docker/abc"
    files = {
        "proc/self/cgroup": "8:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
        "proc/self/mountinfo": V1,
        f"{group}/cpu.cfs_quota_us": "300000\n",
        f"{group}/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert cpu_quota(lay_out(tmp_path, files)) == 3.0


def test_v1_mount_root_is_the_container(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu:/docker/abc/inner\n",
        "proc/self/mountinfo": "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
        "sys/fs/cgroup/cpu/inner/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/inner/cpu.cfs_period_us": "100000\n",
    }
    assert cpu_quota(lay_out(tmp_path, files)) == 0.5


def test_v1_minus_one_is_no_limit(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/\n",
        "proc/self/mountinfo": V1,
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert cpu_quota(lay_out(tmp_path, files)) is None


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert memory_limit(tmp_path) is None


def test_memory_v2_is_the_tightest(tmp_path: Path) -> None:
    limits = {"a/memory.max": "4294967296\n", "a/b/memory.max": "max\n"}
    assert memory_limit(v2(tmp_path, "/a/b", limits)) == 4 << 30


def test_memory_v1_unlimited_is_none(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "8:memory:/\n",
        "proc/self/mountinfo": V1,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert memory_limit(lay_out(tmp_path, files)) is None


def test_two_hardware_threads_are_one_core(tmp_path: Path) -> None:
    topology = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list": f"{cpu % 4},{cpu % 4 + 4}\n"
        for cpu in range(8)
    }
    root = lay_out(tmp_path, topology)
    assert physical_cores(frozenset(range(8)), root=root) == 4
    assert physical_cores(frozenset({0, 4}), root=root) == 1


def test_old_kernels_name_the_file_differently(tmp_path: Path) -> None:
    files = {
        "sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0-1\n",
        "sys/devices/system/cpu/cpu1/topology/thread_siblings_list": "0-1\n",
    }
    assert physical_cores(frozenset({0, 1}), root=lay_out(tmp_path, files)) == 1


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "affinity", lambda: frozenset(range(8)))


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("quota", "expected"), [("200000", 2), ("150000", 2), ("20000", 1), ("max", 8), ("9900000", 8)]
)
def test_plan_takes_the_smaller_of_quota_and_cores(tmp_path: Path, quota: str, expected: int) -> None:
    plan = plan_threads(root=v2(tmp_path, "/a", {"a/cpu.max": f"{quota} 100000\n"}))
    assert plan.intra_op == expected
    assert plan.logical == 8
    assert ("quota" in plan.why) == (expected < 8)


@pytest.mark.usefixtures("eight_cpus")
def test_plan_as_asked_for(tmp_path: Path) -> None:
    assert plan_threads(3, root=tmp_path).intra_op == 3


def test_plan_refuses_zero(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        plan_threads(0, root=tmp_path)
    assert caught.value.code == "THREADS"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_this_machine_respects_the_affinity_mask() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert plan_threads().intra_op == 1
        assert plan_threads().logical == 1
    finally:
        os.sched_setaffinity(0, before)
