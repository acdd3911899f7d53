"""What this process may use of its machine: cores and memory, the limits of a container included.

A container (a Space, for one) may see every core of its host and be granted the time of two; as many threads as it sees
would wait for each other. Standard library only, so that it can be asked before torch reads its number of threads. This
module does not know what the cores are for.
"""

from __future__ import annotations

import os
from pathlib import Path

CONTROL_GROUP = Path("/sys/fs/cgroup")
MEMORY_TABLE = Path("/proc/meminfo")
THREADS_VARIABLE = "OMP_NUM_THREADS"


def usable_cores(group: Path = CONTROL_GROUP) -> int:
    """Cores this process may keep busy, at least 1.

    Args:
        group: folder of its control group (Linux; elsewhere there is none).
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _core_limit(group)
    return max(1, seen if limit is None else min(seen, int(limit)))


def page_threads() -> int:
    """Threads for the network when a page is served, at least 1.

    One core stays free for the encoder, the page and a browser on the same machine: two threads that wait for each
    other on a busy machine are slower than one.
    """
    return max(1, usable_cores() - 1)


def configured_threads() -> int | None:
    """Threads that ``OMP_NUM_THREADS`` asks for; None = nothing that could be read as a number."""
    said = os.environ.get(THREADS_VARIABLE, "").strip()
    return int(said) if said.isdigit() and int(said) else None


def memory_bytes(group: Path = CONTROL_GROUP, table: Path = MEMORY_TABLE) -> tuple[int, int] | None:
    """Free and all memory of this process, in bytes; None where the system does not say. Caches count as free.

    Args:
        group: folder of its control group.
        table: the system's table of memory.
    """
    rows = dict(line.split(":", 1) for line in _text(table).splitlines() if ":" in line)
    try:
        free, total = (1024 * int(rows[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    except (KeyError, ValueError, IndexError):
        return None
    limit, used = _memory_limit(group)
    if limit is not None and limit < total:
        free, total = min(free, max(0, limit - used)), limit
    return free, total


def _core_limit(group: Path) -> float | None:
    """Cores worth of time the control group grants; None = no limit."""
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")  # version 2
    if not quota:
        quota, period = (_text(group / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _memory_limit(group: Path) -> tuple[int | None, int]:
    """Bytes the control group grants (None = no limit), and bytes it uses that cannot simply be dropped."""
    for limit, used, table, dropped in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        granted, taken = _text(group / limit).strip(), _text(group / used).strip()
        if granted.isdigit() and taken.isdigit():
            rows = dict(line.partition(" ")[::2] for line in _text(group / table).splitlines())
            return int(granted), int(taken) - int(rows.get(dropped, "0"))
    return None, 0


def _text(path: Path) -> str:
    """Content of a file of the system; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
