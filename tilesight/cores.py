"""How many cores this process may really use, which a container seldom tells its programs."""

import math
import os
from pathlib import Path


def usable_cores(
    cgroup: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int:
    """The cores of this process: its affinity, cut by the quota of its control groups."""
    return max(1, math.floor(min(_affinity(), _quota(cgroup, membership))))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(cgroup: Path, membership: Path) -> float:
    """The smallest quota on the way from the process's group to the root; infinite without one."""
    quotas = [_version_2(folder) for folder in _groups(cgroup, membership)]
    quotas.append(_version_1(cgroup / "cpu"))
    return min(quotas)


def _groups(cgroup: Path, membership: Path) -> list[Path]:
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    inside = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    group = Path(inside)
    return [cgroup / part for part in (group, *group.parents)]


def _version_2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return math.inf
    return math.inf if quota == "max" else int(quota) / int(period)


def _version_1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return math.inf
    return quota / period if quota > 0 else math.inf
