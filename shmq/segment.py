"""Names in the file system's sense: create, attach, unlink and list segments.

A segment ``NAME`` is the POSIX shared-memory object ``/shmq.NAME``, on Linux the file
``/dev/shm/shmq.NAME``, mode 0600.  It is made with O_CREAT | O_EXCL and never through
``multiprocessing.shared_memory``, so no resource tracker deletes it behind its users.
"""

import errno
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import posix_ipc

from . import errors
from ._core import ffi, lib
from .clock import deadline_ns
from .limits import SHM, available_bytes

PREFIX = "shmq."
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")

State = Literal["ready", "initialising", "other user", "foreign"]
Handle = Any  # cffi: a shmq_queue *
Identity = tuple[int, int]  # st_dev, st_ino


def check_name(name: str) -> str:
    """The POSIX name of segment ``name``; raises ``InvalidName``."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise errors.InvalidName(
            f"queue name {name!r}: use 1 to 200 characters of A-Z a-z 0-9 . _ -, not starting with a dot"
        )
    return "/" + PREFIX + name


def _not_found(name: str) -> NoReturn:
    raise errors.SegmentNotFound(
        errno.ENOENT, f"queue {name!r}: no such segment; create it first, or see `shmq ls`"
    )


def _open(name: str, flags: int = 0) -> posix_ipc.SharedMemory:
    """shm_open that speaks our errors.  glibc adds O_NOFOLLOW: a symlink is refused by the kernel."""
    path = check_name(name)
    try:
        return posix_ipc.SharedMemory(path, flags, 0o600)
    except posix_ipc.ExistentialError:
        if flags:
            raise errors.NameTaken(
                errno.EEXIST, f"queue {name!r}: the name is taken; attach to it, or remove it (shmq rm)"
            ) from None
        _not_found(name)
    except (posix_ipc.PermissionsError, PermissionError):
        errors.raise_status(lib.SHMQ_WRONG_OWNER, name)
    except ValueError:  # posix_ipc's word for EINVAL, the kernel's for a directory
        errors.raise_status(lib.SHMQ_NOT_A_SEGMENT, name)
    except OSError as e:
        if e.errno is None:  # posix_ipc's word for EMFILE and ENFILE
            raise OSError(errno.EMFILE, f"queue {name!r}: {e}; close some, or raise ulimit -n") from None
        if e.errno == errno.ELOOP:
            errors.raise_status(
                lib.SHMQ_NOT_A_SEGMENT,
                name,
                "the name is a symbolic link, which shmq does not follow; remove it",
            )
        if e.errno in (errno.EISDIR, errno.ENXIO):
            errors.raise_status(lib.SHMQ_NOT_A_SEGMENT, name)
        raise


def _no_space(name: str, needed: int) -> NoReturn:
    free, limit = available_bytes()
    errors.raise_status(
        lib.SHMQ_OUT_OF_SPACE,
        name,
        f"needs about {needed:,} bytes of shared memory and there are {free:,} {limit}; choose smaller "
        "arena_bytes or ring_bytes, remove unused segments (shmq ls, shmq rm), or enlarge /dev/shm "
        "(docker run --shm-size=..., mount -o remount,size=... /dev/shm)",
    )


def _identity(fd: int) -> Identity:
    st = os.fstat(fd)
    return st.st_dev, st.st_ino


def _finish(handle: Handle) -> Handle:
    return ffi.gc(handle, lib.shmq_free)


def create(name: str, params: Any) -> tuple[Handle, Identity]:
    """Makes and attaches.  On any failure no name is left behind."""
    needed_bytes = lib.shmq_segment_bytes(params)
    if needed_bytes == 0:
        errors.raise_status(lib.SHMQ_INVALID, name, "these sizes do not fit together")
    memory = _open(name, posix_ipc.O_CREX)
    identity = _identity(memory.fd)
    out = ffi.new("shmq_queue **")
    status = lib.SHMQ_OUT_OF_SPACE
    try:
        os.fchmod(memory.fd, 0o600)  # whatever the umask says
        if needed_bytes <= available_bytes()[0]:
            status = lib.py_create(memory.fd, params, out)
        code = ffi.errno
    finally:
        if out[0] == ffi.NULL:
            unlink_if(name, identity)
        memory.close_fd()
    if status == lib.SHMQ_OUT_OF_SPACE:  # now that what it had reserved is free again
        _no_space(name, needed_bytes)
    if status != lib.SHMQ_OK:
        ffi.errno = code
        errors.raise_status(status, name)
    return _finish(out[0]), identity


def attach(name: str, timeout: float | None) -> tuple[Handle, Identity]:
    """Attaches; waits up to ``timeout`` seconds for a creator that is still initialising."""
    deadline = deadline_ns(timeout)
    memory = _open(name)
    out = ffi.new("shmq_queue **")
    try:
        while (status := lib.py_attach(memory.fd, out)) == lib.SHMQ_NOT_READY:
            if time.monotonic_ns() >= deadline:
                break
            time.sleep(0.001)
            if os.fstat(memory.fd).st_nlink == 0:  # its creator failed, and took the name away
                memory.close_fd()
                memory = _open(name)
        if status == lib.SHMQ_OUT_OF_SPACE:
            errors.raise_status(status, name, "not enough address space or memory to map it")
        if status != lib.SHMQ_OK:
            errors.raise_status(status, name)
        return _finish(out[0]), _identity(memory.fd)
    finally:
        memory.close_fd()


def reattach(name: str, inherited: Handle) -> Handle:
    """Another handle on the segment of one that this process has, or (a forked child) inherited."""
    out = ffi.new("shmq_queue **")
    status = lib.py_reattach(inherited, out)
    if status == lib.SHMQ_SYSTEM and ffi.errno == 0:  # the descriptor is closed, and the name not its own
        if not os.path.lexists(SHM / (PREFIX + name)):
            _not_found(name)
        raise errors.StaleHandle(f"queue {name!r}: the name belongs to another segment now; open it anew")
    if status != lib.SHMQ_OK:
        errors.raise_status(status, name)
    return _finish(out[0])


def observe(name: str) -> Handle:
    """Maps read-only, without an entry in the peer table."""
    memory = _open(name)
    out = ffi.new("shmq_queue **")
    try:
        status = lib.shmq_observe(memory.fd, out)
        if status != lib.SHMQ_OK:
            errors.raise_status(status, name)
        return _finish(out[0])
    finally:
        memory.close_fd()


def unlink(name: str) -> None:
    """Removes a name.  Processes that are attached keep the memory until they close.

    Raises ``SegmentNotFound``."""
    try:
        posix_ipc.unlink_shared_memory(check_name(name))
    except posix_ipc.ExistentialError:
        _not_found(name)
    except (posix_ipc.PermissionsError, PermissionError):
        errors.raise_status(lib.SHMQ_WRONG_OWNER, name)


def unlink_if(name: str, identity: Identity) -> bool:
    """Removes the name if it still belongs to this very segment."""
    try:
        st = os.lstat(SHM / (PREFIX + name))
        if (st.st_dev, st.st_ino) != identity:
            return False
        unlink(name)
    except FileNotFoundError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A file /dev/shm/shmq.*.  ``state``: "ready"; "initialising", by a creator at work or one that died;
    "other user"; or "foreign", which shmq did not make, or not this version of it."""

    name: str
    path: str
    bytes: int
    uid: int
    mode: int
    mtime: float
    state: State


def _state(path: Path, st: os.stat_result) -> State:
    if not stat.S_ISREG(st.st_mode):
        return "foreign"
    try:
        handle = observe(path.name.removeprefix(PREFIX))
    except errors.NotReady:
        return "initialising"
    except errors.WrongOwner:
        return "foreign" if st.st_uid == os.geteuid() else "other user"
    except (errors.ShmqError, OSError):
        return "foreign"
    ffi.release(handle)
    return "ready"


def list_segments() -> list[SegmentInfo]:
    """Everything in /dev/shm that bears our prefix, by name."""
    found = []
    for path in sorted(SHM.glob(PREFIX + "*")):
        try:
            st = path.lstat()
        except FileNotFoundError:
            continue
        name = path.name.removeprefix(PREFIX)
        found.append(
            SegmentInfo(
                name,
                str(path),
                st.st_size,
                st.st_uid,
                stat.S_IMODE(st.st_mode),
                st.st_mtime,
                _state(path, st),
            )
        )
    return found
