"""Checks whether this machine gives shmq what it needs, and says what to do where it does not.

Each check is a small function from paths or numbers to one `Verdict`, so that a test can hand it a
made-up /proc or cgroup tree. Kernel features are tried, not looked up by version: containers and
sandboxes refuse calls which their kernel version promises. Nothing in them changes the machine, and
rendering is left to `shmq.cli`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import shlex
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from typing import IO, Literal

import shmq

from .limits import cgroup_levels, cgroup_memory, mounts, read_number, read_text

DEFAULT_QUEUE_BYTES = 44 << 20
"""Upper bound of the segment that `Queue(name)` makes with default geometry."""
ROOMY_QUEUES = 4
"""Below room for so many default queues a finding is a warning."""
STUCK_S = 60.0
"""A segment that is still initialising after so long has lost its creator."""

FUTEX_WAIT_BITSET, MEMBARRIER_QUERY, MADV_POPULATE_WRITE = 9, 0, 23
MEMBARRIER_GLOBAL_EXPEDITED = 0b110  # GLOBAL_EXPEDITED | REGISTER_GLOBAL_EXPEDITED
SYSCALLS = {"x86_64": {"futex": 202, "membarrier": 324}, "aarch64": {"futex": 98, "membarrier": 283}}.get(
    platform.machine(), {}
)

Status = Literal["ok", "warn", "fail"]
Verdict = tuple[Status, str, str]
"""Status, value, advice (one sentence, or empty)."""


@dataclass(frozen=True)
class Finding:
    """Result of one check: ok, warn (works, but slower or with less than it could), fail."""

    check: str
    status: Status
    value: str
    advice: str = ""


@dataclass(frozen=True)
class Surveyed:
    """One name in /dev/shm: what `list_segments` and `inspect` say, or why `inspect` could not."""

    info: shmq.SegmentInfo
    snapshot: shmq.Snapshot | None
    problem: str = ""


def human_bytes(count: float) -> str:
    """`count` bytes for people: about three digits and a binary unit."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.{0 if count >= 100 or count == int(count) else 1}f} {units[0]}"


def survey() -> list[Surveyed]:
    """Looks at every shmq segment of this host, read-only; leaves out what vanishes meanwhile."""
    seen = []
    for info in shmq.list_segments():
        try:
            seen.append(Surveyed(info, shmq.inspect(info.name)))
        except shmq.SegmentNotFound:
            continue
        except (shmq.ShmqError, OSError) as error:
            seen.append(Surveyed(info, None, f"{type(error).__name__}: {error}"))
    return seen


def diagnose() -> Iterator[Finding]:
    """Runs every check on this machine, in the order in which they are worth reading."""
    proc, shm = Path("/proc/self"), Path("/dev/shm")
    huge = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    maps = Path("/proc/sys/vm/max_map_count")
    plan: tuple[tuple[str, Callable[[], Verdict]], ...] = (
        ("system", system),
        ("shm mount", lambda: shm_mount(proc, shm)),
        ("shm space", lambda: shm_space(*shutil.disk_usage(shm)[::2])),
        ("memory limit", lambda: memory_limit(proc)),
        ("OFD locks", ofd_locks),
        ("futex", futex),
        ("membarrier", membarrier),
        ("prefault", populate_write),
        ("huge pages", lambda: huge_pages(proc, shm, huge)),
        ("cores", lambda: cores(proc, len(os.sched_getaffinity(0)))),
        ("open files", lambda: at_least(1024, getrlimit(RLIMIT_NOFILE)[0], "ulimit -n 1024")),
        ("memory maps", lambda: at_least(65530, read_number(maps), "sysctl vm.max_map_count=65530")),
        ("C compiler", lambda: compiler(os.environ.get("CC", ""))),
        ("numpy", lambda: package("numpy", "Needed to pass arrays: pip install numpy.")),
        ("torch", lambda: package("torch", "Only needed to pass torch tensors.")),
        ("ml_dtypes", lambda: package("ml_dtypes", "Only for bfloat16 and float8 in numpy.")),
        ("stale segments", lambda: stale_segments(survey(), time.time(), os.geteuid())),
        ("doorbells", lambda: doorbells(doorbell_directory(), os.geteuid())),
    )
    for check, run in plan:
        try:
            yield Finding(check, *run())
        except Exception as error:  # whatever it meets, the other checks matter
            problem = f"cannot be checked: {type(error).__name__}: {error}"
            yield Finding(check, *_warn(problem, "The other checks may say why."))


def _ok(value: str, advice: str = "") -> Verdict:
    return "ok", value, advice


def _warn(value: str, advice: str) -> Verdict:
    return "warn", value, advice


def _fail(value: str, advice: str) -> Verdict:
    return "fail", value, advice


# -- the machine ----------------------------------------------------------------------------------


def system(name: str = sys.platform, byteorder: str = sys.byteorder) -> Verdict:
    """Operating system, processor and Python; shmq runs on little-endian 64-bit Linux."""
    kernel = f"{platform.system()} {platform.release()} {platform.machine()}"
    value = f"{kernel}, {platform.python_implementation()} {platform.python_version()}"
    if name == "linux" and byteorder == "little" and sys.maxsize > 2**32:
        return _ok(value)
    return _fail(value, "shmq needs 64-bit little-endian Linux: run it there.")


def shm_mount(proc: Path, shm: Path) -> Verdict:
    """Is a writable tmpfs mounted at `shm` (from `proc`/mountinfo)?"""
    here = [mount for mount in mounts(proc) if mount.point == shm]
    if not here:
        advice = f"As root: mount -t tmpfs -o mode=1777 tmpfs {shm}"
        return _fail(f"no file system of its own at {shm}", advice)
    mount = here[-1]  # the last one mounted hides the others
    value = f"{mount.fstype} at {shm}"
    if mount.fstype != "tmpfs":
        return _fail(value, f"Mount a tmpfs at {shm}: queues live in memory.")
    if "ro" in mount.options:
        return _fail(f"{value}, read-only", f"As root: mount -o remount,rw {shm}")
    return _ok(value)


def shm_space(size_bytes: int, free_bytes: int) -> Verdict:
    """Is there room for queues? `size_bytes` 0 is a tmpfs without a limit."""
    if size_bytes == 0:
        return _ok("no limit")
    remedy = "enlarge /dev/shm (docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm)"
    value = f"{human_bytes(free_bytes)} free of {human_bytes(size_bytes)}"
    return _room(value, free_bytes, remedy)


def memory_limit(proc: Path) -> Verdict:
    """The tightest memory limit of this process's cgroup and all above it, and what is left of it."""
    tightest = min(cgroup_memory(proc), default=None)
    if tightest is None:
        return _ok("no cgroup limit")
    headroom, limit, level = tightest
    value = f"{human_bytes(headroom)} left of {human_bytes(limit)} ({level})"
    return _room(value, headroom, "give the container or service more memory")


def _room(value: str, free_bytes: int, remedy: str) -> Verdict:
    """Judges free bytes by how many queues of default geometry they hold."""
    queues = free_bytes // DEFAULT_QUEUE_BYTES
    if queues >= ROOMY_QUEUES:
        return _ok(value)
    advice = (
        f"Queues of default size ({human_bytes(DEFAULT_QUEUE_BYTES)}) that fit: {queues}; "
        f"{remedy}, remove stale segments, or pass a smaller arena_bytes."
    )
    return _warn(value, advice) if queues else _fail(value, advice)


def cores(proc: Path, usable: int) -> Verdict:
    """Cores this process may run on, and its cgroup's CPU quota (v2 cpu.max, v1 cpu.cfs_*)."""
    quota = min((q for level in cgroup_levels(proc, "cpu") if (q := _quota(level))), default=None)
    value = f"{usable} usable, " + (f"quota of {quota:.3g} cores" if quota else "no quota")
    if min(usable, quota or usable) >= 2:
        return _ok(value)
    return _warn(value, "Give it two: with fewer a wait cannot spin, each message costs a wake-up.")


def huge_pages(proc: Path, shm: Path, shmem_enabled: Path) -> Verdict:
    """Can `shm` have 2 MiB pages? Its mount option huge= decides; shmem_enabled may override it."""
    override = read_text(shmem_enabled).partition("[")[2].partition("]")[0] or "absent"
    options = [option for mount in mounts(proc) if mount.point == shm for option in mount.options]
    huge = next((o.partition("=")[2] for o in reversed(options) if o.startswith("huge=")), "never")
    value = f"mount option huge={huge}, shmem_enabled {override}"
    if override == "absent":
        return _warn(value, "This kernel has none: large tensors cost more TLB misses.")
    # Not huge=advise: memory is reserved before it is mapped, when there is no madvise to see yet.
    if override == "force" or (override != "deny" and huge in ("always", "within_size")):
        return _ok(value)
    allow = f"echo never > {shmem_enabled} && " if override == "deny" else ""
    remedy = f"{allow}mount -o remount,huge=within_size {shm}"
    return _warn(value, f"For fewer TLB misses in large tensors, as root: {remedy}")


def at_least(least: int, value: int | None, remedy: str) -> Verdict:
    """Is a limit of the system `least` or more? None and -1 are no limit."""
    if value is None or value == RLIM_INFINITY:
        return _ok("no limit")
    return _ok(str(value)) if value >= least else _warn(str(value), f"Raise it: {remedy}")


# -- the kernel: each feature is really tried -----------------------------------------------------


def ofd_locks(command: int = fcntl.F_OFD_SETLK) -> Verdict:
    """Does a lock exclude a second descriptor, and does a mapping alone keep it? (Who is alive.)

    `command` is the fcntl under test; F_SETLK, which fails this test, is the negative control.
    """
    libc = ctypes.CDLL(None)
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mmap.restype = ctypes.c_void_p
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    advice = "shmq cannot tell who is alive here: use a newer kernel or another sandbox."
    try:
        with (
            open(os.memfd_create("shmq-doctor"), "r+b") as holder,
            open(f"/proc/self/fd/{holder.fileno()}", "r+b") as other,  # a description of its own
        ):
            holder.truncate(mmap.PAGESIZE)
            if not _lock(holder, command) or _lock(other, command):
                return _fail("a second descriptor gets the same lock", advice)
            # Not mmap.mmap: that keeps a duplicate of the descriptor, which would hold the lock.
            page = libc.mmap(None, mmap.PAGESIZE, 0, mmap.MAP_SHARED, holder.fileno(), 0)
            holder.close()
            kept = not _lock(other, command)
            libc.munmap(page, mmap.PAGESIZE)
            if not kept or not _lock(other, command):
                return _fail("a mapping does not hold the lock", advice)
    except OSError as error:
        return _fail(str(error), advice)
    return _ok("exclude, and are held by a mapping")


def _lock(file: IO[bytes], command: int) -> bool:
    """Tries to lock the file's first byte for writing; False where somebody else holds it."""
    try:
        fcntl.fcntl(file, command, struct.pack("hhqqi0q", fcntl.F_WRLCK, 0, 0, 1, 0))
    except BlockingIOError:
        return False
    return True


def futex(number: int | None = SYSCALLS.get("futex")) -> Verdict:
    """Does FUTEX_WAIT_BITSET wait until an absolute time, on a shared word?"""
    if number is None:
        return _warn(f"not tried on {platform.machine()}", "Run the tests to see that waits work.")
    word, past, every = ctypes.c_uint32(7), struct.pack("qq", 0, 1), ctypes.c_uint32(0xFFFFFFFF)
    result = _syscall(number, ctypes.byref(word), FUTEX_WAIT_BITSET, word, past, None, every)
    if result == -errno.ETIMEDOUT:
        return _ok("FUTEX_WAIT_BITSET works")
    advice = "Waits need it: allow the futex system call in the sandbox, or use a newer kernel."
    return _fail(f"FUTEX_WAIT_BITSET: {os.strerror(-result)}", advice)


def membarrier(number: int | None = SYSCALLS.get("membarrier")) -> Verdict:
    """Is the global expedited memory barrier on offer?"""
    offered = -errno.ENOSYS if number is None else _syscall(number, MEMBARRIER_QUERY, 0, 0)
    if offered >= 0 and offered & MEMBARRIER_GLOBAL_EXPEDITED == MEMBARRIER_GLOBAL_EXPEDITED:
        return _ok("global expedited")
    return _warn("no global expedited command", "Works without; Linux 4.16 or newer offers it.")


def populate_write(advice: int = MADV_POPULATE_WRITE) -> Verdict:
    """Does MADV_POPULATE_WRITE (Linux 5.14) prefault pages?"""
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        try:
            page.madvise(advice)
        except OSError as error:
            remedy = "Works without, but large queues open slower; Linux 5.14 or newer has it."
            return _warn(f"MADV_POPULATE_WRITE: {error.strerror}", remedy)
    return _ok("MADV_POPULATE_WRITE works")


def _syscall(number: int, *arguments: object) -> int:
    """Result of the raw system call, or minus its errno."""
    call: Callable[..., int] = ctypes.CDLL(None, use_errno=True).syscall
    result = call(ctypes.c_long(number), *arguments)
    return -ctypes.get_errno() if result < 0 else result


# -- software and leftovers -----------------------------------------------------------------------


def compiler(preferred: str, path: str | None = None) -> Verdict:
    """First C compiler found of $CC (`preferred`), cc, gcc, clang along `path` (default $PATH)."""
    for name in (*preferred.split()[:1], "cc", "gcc", "clang"):
        if found := shutil.which(name, path=path):
            command = [found, "--version"]
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            return _ok(said.partition("\n")[0] or found)
    return _warn("none found", "Only to build from source and for C workers: install gcc or clang.")


def package(name: str, advice: str) -> Verdict:
    """Version of an installed Python package, without importing it; all but numpy are optional."""
    from importlib import metadata  # slow to load, and not for the commands that only look at queues

    try:
        return _ok(metadata.version(name))
    except metadata.PackageNotFoundError:
        return ("warn" if name == "numpy" else "ok"), "not installed", advice


def is_unused(seen: Surveyed) -> bool:
    """A sound segment that no live process has attached."""
    return seen.snapshot is not None and all(p.alive is False for p in seen.snapshot.peers)


def stale_segments(seen: Sequence[Surveyed], now: float, uid: int) -> Verdict:
    """Names of this user which no live process uses: they hold memory until somebody removes them.

    Other users' are not judged: what cannot be looked into may be at work."""
    mine = [s for s in seen if s.info.uid == uid]
    unused = [s.info for s in mine if is_unused(s)]
    stuck = [s.info for s in mine if s.info.state == "initialising" and s.info.mtime < now - STUCK_S]
    broken = [s.info for s in mine if s.info.state == "foreign"] + stuck
    if not unused and not broken:
        return _ok(f"none of {len(mine)}")
    held = human_bytes(sum(info.bytes for info in unused + broken))
    # Whoever made a foreign file chose its name: no line feed or $(...) of theirs may be pasted.
    commands = [["shmq", "rm", *(info.name for info in unused)]] if unused else []
    commands += [["rm", *(ascii(info.path)[1:-1] for info in broken)]] if broken else []
    remedy = " && ".join(map(shlex.join, commands))
    value = f"{len(unused) + len(broken)} of {len(mine)}, {held}"
    return _warn(value, f"If nobody will attach to them again: {remedy}")


def doorbell_directory() -> Path:
    """Where the event loops of this user have their FIFOs: see ``csrc/doorbell.c``."""
    return Path(f"/dev/shm/shmq-doorbells-{os.geteuid()}")


def unheard_doorbells(directory: Path) -> list[Path]:
    """FIFOs that nobody has open: their processes are dead."""
    return [path for path in sorted(directory.glob("*")) if path.is_fifo() and not _is_heard(path)]


def remove_unheard_doorbells() -> int:
    """How many there were.  One that is made meanwhile has a reader before it has its name."""
    unheard = unheard_doorbells(doorbell_directory())
    for path in unheard:
        path.unlink(missing_ok=True)
    if unheard:
        with suppress(OSError):  # others are there
            doorbell_directory().rmdir()
    return len(unheard)


def _is_heard(fifo: Path) -> bool:
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
    except OSError as error:
        return error.errno != errno.ENXIO
    return True


def doorbells(directory: Path, uid: int) -> Verdict:
    """FIFOs by which event loops are woken; those of killed processes go when the next loop makes one."""
    if not directory.is_symlink() and not directory.exists():
        return _ok("none")
    there = directory.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != uid or stat.S_IMODE(there.st_mode) != 0o700:
        return _fail(
            f"{directory} is not a directory of yours of mode 0700",
            f"Waits in event loops (shmq.aio) raise WrongOwner until it is gone: rm -rf {directory}",
        )
    unheard = len(unheard_doorbells(directory))
    heard = sum(path.is_fifo() for path in directory.glob("*")) - unheard
    left = f", {unheard} of processes that were killed" if unheard else ""
    return _ok(f"{heard} in use{left}", "shmq rm --stale removes those." if unheard else "")


def _quota(level: Path) -> float | None:
    """CPU quota of one cgroup, in cores; None where it has none."""
    quota, _, period = read_text(level / "cpu.max").strip().partition(" ")
    quota = quota or read_text(level / "cpu.cfs_quota_us").strip()
    period = period or read_text(level / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None
