"""Which CPU cores this process may use: its affinity mask, and how many of them its control group's quota lets it."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

from scorer.system.cgroups import OWN, ROOT, group_folders, read_text

_OWN_THREADS = "/proc/self/task"
_MOST_CORES = 8192  # the kernel leaves out those that are not there, or not ours


def usable_cores() -> int:
    """Cores this process may keep busy, at least 1: min(affinity, ceil(quota)).

    A quota of 1.5 cores counts as 2: the half would else lie idle, and the kernel throttles the rest.
    """
    quota = cpu_quota()
    cores = affinity()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def affinity() -> int:
    """Cores in this process's affinity mask; all the machine's cores where the system has no such mask."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def unbound() -> Iterator[None]:
    """Let the calling thread use all cores for a moment if it is bound to one, as by `taskset`.

    Afterwards it and the threads that anyone began meanwhile are bound as it was. Where it may use no other core,
    nothing changes.
    """
    if not os.path.isdir(_OWN_THREADS) or affinity() > 1:
        yield
        return
    bound, before = os.sched_getaffinity(0), set(os.listdir(_OWN_THREADS))
    with contextlib.suppress(OSError):  # not allowed: it stays bound
        os.sched_setaffinity(0, range(_MOST_CORES))
    freed = affinity() > 1
    try:
        yield
    finally:
        if freed:
            os.sched_setaffinity(0, bound)
            for thread in set(os.listdir(_OWN_THREADS)) - before:
                with contextlib.suppress(OSError):  # it is gone
                    os.sched_setaffinity(int(thread), bound)


def cpu_quota(groups: Path = OWN, root: Path = ROOT) -> float | None:
    """CPU seconds per second that the tightest control group above this process grants; None where nothing limits it.

    Reads version 2 (`cpu.max`) and version 1 (`cpu.cfs_quota_us`) of every ancestor, since each of them limits.
    """
    limits = [limit for folder in group_folders("cpu", groups, root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _limit(folder: Path) -> float | None:
    """Cores that one control group grants, or None."""
    quota, _, period = read_text(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = read_text(folder / "cpu.cfs_quota_us").strip(), read_text(folder / "cpu.cfs_period_us").strip()
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)
