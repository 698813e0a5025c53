"""How much memory a new segment may take, and what limits it.

Shared memory has three limits and only one of them answers with an error: going over the memory
cgroup's limit, or over what the machine has left, is a SIGKILL to someone.  So they are asked before a
segment is made.
"""

import os
from pathlib import Path

SHM = Path("/dev/shm")
PROC = Path("/proc")


def memory_available(proc: Path = PROC) -> int | None:
    """Bytes that the machine can give without swapping; None where the kernel does not say."""
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def available_bytes(shm: Path = SHM, proc: Path = PROC) -> tuple[int, str]:
    """The least of the limits, and its name as it reads behind a number of bytes."""
    vfs = os.statvfs(shm)
    limits = []
    if vfs.f_blocks:  # a tmpfs without a size says 0
        limits.append((vfs.f_bavail * vfs.f_frsize, f"free in {shm}"))
    if (available := memory_available(proc)) is not None:
        limits.append((available, "of memory available on this machine"))
    return min(limits, default=(1 << 62, "free"))
