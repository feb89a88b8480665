"""How much more main memory this process may take."""

from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
# Names of a limit and of what is used of it: version 2 of control groups, and version 1.
_LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory() -> int:
    """Bytes that are free or can be had back from caches, within the limits of all control groups (containers)."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return min([int(meminfo["MemAvailable"].split()[0]) * 1024, *_left_in_cgroups()])


def _left_in_cgroups() -> list[int]:
    left = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        group = _CGROUPS / controllers / path.lstrip("/")
        # Within a container the path may be the host's, and the limit at the top is the container's.
        for folder in (group, *group.parents):
            if folder.is_relative_to(_CGROUPS):
                left += [_left_in(folder, *names) for names in _LIMITS if (folder / names[0]).is_file()]
    return [size for size in left if size is not None]


def _left_in(group: Path, limit: str, used: str, reclaimable: str) -> int | None:
    """Bytes; None where there is no limit, or no reading it."""
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return None
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(most) - int((group / used).read_text()) + int(statistics.get(reclaimable, 0))
    except (OSError, ValueError):
        return None
