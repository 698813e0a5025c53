"""mpi4py over MPICH in shared memory: Send and Recv of buffers, the receiver polls.

Everything is received into one buffer that the next message overwrites, of a length known
beforehand. mpirun starts the two workers. Debian's MPICH calls its library libmpich.so.12; mpi4py's
wheel asks for libmpi.so.12, so a link of that name is made in the harness's own directory.
"""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.util
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..endpoint import Endpoint, Side, Spec

NAME = "mpi4py"
LAUNCH = "mpirun"
POLLS = True


def _launcher() -> str | None:
    """MPICH's mpirun: the one of an mpich wheel in this environment, else the system's."""
    beside = Path(sys.prefix, "bin", "mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpirun.mpich")


def missing() -> str | None:
    if importlib.util.find_spec("mpi4py") is None:
        return "not installed (pip install mpi4py)"
    if _launcher() is None:
        return "MPICH's mpirun is not installed (apt-get install mpich, or pip install mpich)"
    return None


def command(spec: Spec) -> list[str]:
    return [str(_launcher()), "-n", "2"]


def environment(spec: Spec) -> dict[str, str]:
    """Makes mpi4py find the library that belongs to the launcher."""
    if str(_launcher()).startswith(sys.prefix):
        return {}
    library = ctypes.util.find_library("mpich")
    found = next((p for p in Path("/usr/lib").glob(f"*/{library}")), None) if library else None
    if found is None:
        return {}
    link = Path(spec.directory, "libmpi.so.12")
    if not link.exists():
        link.symlink_to(found)
    return {"LD_LIBRARY_PATH": spec.directory}


def wire(spec: Spec) -> Any:
    return None


def unwire(wiring: Any) -> None:
    pass


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    mpi = importlib.import_module("mpi4py.MPI")
    world, other = mpi.COMM_WORLD, 1 if side == "a" else 0
    buffer = np.empty(spec.max_bytes, np.uint8)
    status = mpi.Status()
    receive = partial(world.Recv, [buffer, mpi.BYTE], other, 0, status)

    def received() -> Any:
        return buffer[: status.Get_count(mpi.BYTE)]

    return Endpoint(
        put=partial(world.Send, dest=other),
        get=receive,
        payload=lambda _: received().tobytes(),
        put_array=partial(world.Send, dest=other),
        get_array=receive,
        as_array=lambda _: received().view(np.float32).copy(),
    )
