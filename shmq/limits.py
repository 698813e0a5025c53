"""How much memory a new segment may take, and what limits it; read from /proc and the cgroup trees.

Shared memory has three limits and only one of them answers with an error: going over the memory
cgroup's limit, or over what the machine has left, is a SIGKILL to someone.  So they are asked before a
segment is made.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHM = Path("/dev/shm")
PROC = Path("/proc")
PROC_SELF = Path("/proc/self")
NO_LIMIT_BYTES = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2**63."""


def memory_available(proc: Path = PROC) -> int | None:
    """Bytes that the machine can give without swapping; None where the kernel does not say."""
    for line in read_text(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def cgroup_memory(proc_self: Path = PROC_SELF) -> Iterator[tuple[int, int, Path]]:
    """(bytes left, limit, cgroup) for each memory limit of this process's cgroups.

    Page cache that the kernel would drop first (inactive_file) counts as free."""
    for level in cgroup_levels(proc_self, "memory"):
        files = ("memory.max", "memory.high", "memory.limit_in_bytes")
        used = read_number(level / "memory.current") or read_number(level / "memory.usage_in_bytes") or 0
        stat = dict(line.split()[:2] for line in read_text(level / "memory.stat").splitlines())
        cache = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        for limit in (read_number(level / file) for file in files):
            if limit is not None and limit < NO_LIMIT_BYTES:
                yield max(limit - max(used - cache, 0), 0), limit, level


def available_bytes(shm: Path = SHM, proc: Path = PROC, proc_self: Path = PROC_SELF) -> tuple[int, str]:
    """The least of the limits, and its name as it reads behind a number of bytes."""
    vfs = os.statvfs(shm)
    limits = [
        (left, f"left below the memory limit of {level}") for left, _, level in cgroup_memory(proc_self)
    ]
    if vfs.f_blocks:  # a tmpfs without a size says 0
        limits.append((vfs.f_bavail * vfs.f_frsize, f"free in {shm}"))
    if (available := memory_available(proc)) is not None:
        limits.append((available, "of memory available on this machine"))
    return min(limits, default=(1 << 62, "free"))


@dataclass(frozen=True)
class Mount:
    root: Path
    point: Path
    fstype: str
    options: tuple[str, ...]  # of the mount, then of the file system


def mounts(proc: Path) -> Iterator[Mount]:
    """The mounts of `proc`/mountinfo; proc(5) has the fields."""
    for line in read_text(proc / "mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if len(head := left.split()) >= 6 and len(tail := right.split()) >= 3:
            options = (*head[5].split(","), *tail[2].split(","))
            yield Mount(Path(head[3]), Path(head[4]), tail[0], options)


def cgroup_levels(proc: Path, controller: str) -> Iterator[Path]:
    """Directories of this process's cgroups that may limit `controller`, innermost first.

    Both hierarchies are walked: a hybrid machine has its limits in v1 beside an empty v2.
    """
    lines = [line.split(":", 2) for line in read_text(proc / "cgroup").splitlines()]
    for mount in mounts(proc):
        if mount.fstype == "cgroup2":
            own = [fields[2] for fields in lines if len(fields) == 3 and fields[1] == ""]
        elif mount.fstype == "cgroup" and controller in mount.options:
            own = [f[2] for f in lines if len(f) == 3 and controller in f[1].split(",")]
        else:
            continue
        for path in map(Path, own):
            # In a container the path may lie outside what is mounted: then the mount is our level.
            inside = path.is_relative_to(mount.root) and ".." not in path.parts
            level = mount.point / path.relative_to(mount.root) if inside else mount.point
            yield level
            while level != mount.point:
                level = level.parent
                yield level


def read_text(path: Path) -> str:
    """Contents of a small file, empty where it cannot be read: absence is an answer here."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def read_number(path: Path) -> int | None:
    text = read_text(path).strip()
    return int(text) if text.isdigit() else None
