"""What this machine has for this process: processors and memory, within the limits of its group."""

import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def memory(groups: Path = _GROUPS) -> tuple[int, int]:
    """Bytes of memory that are available, and that there are, as far as this process may go."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    available = total
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = {line.split(":")[0]: line.split()[1] for line in lines}
        available = int(fields["MemAvailable"]) * 1024
    except (OSError, KeyError):
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            available = os.sysconf("SC_AVPHYS_PAGES") * page
    limit = _read(groups / "memory.max")
    if limit.isdecimal() and int(limit) < total:
        total = int(limit)
        used = _read(groups / "memory.current")
        available = min(available, max(0, total - int(used or "0")))
    return available, total


def processors(groups: Path = _GROUPS) -> int:
    """How many processors this process may use at once, at least one."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota, _, period = _read(groups / "cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        count = min(count, -(-int(quota) // int(period)))
    return max(1, count)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
