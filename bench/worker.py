"""One side of a pair: a process that opens its endpoint, then does one job after the other.

Between jobs it sleeps in a read from the harness, so that the pairs that are not being measured use
no processor time (an MPI library that polls included: it is only inside its calls that it does).
`python -m bench.worker SOCKET` is the way in for processes that mpirun starts.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection
from typing import Any

from . import checks, jobs, loops, objects, schedule, services, shared, waiting
from .endpoint import Side, Spec

CPU_OF_LAST = "cpu_of_last"
"""Instead of a job: the processor time of this process since the last one began."""
_JOBS = {
    name: job
    for of in (jobs, checks, loops, objects, schedule, services, shared, waiting)
    for name, job in vars(of).items()
}


def pin(core: int) -> None:
    """Best effort; the harness has already said whether it works here."""
    if core >= 0:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {core})


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """This process is on `core` meanwhile, and so are the processes that it starts for their whole life."""
    before = os.sched_getaffinity(0)
    pin(core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def serve(harness: Connection[Any, Any], module: str, spec: Spec, wiring: Any, side: Side, core: int) -> None:
    """Answers ("ok", result) or ("error", text) to each (job name, arguments), until None comes."""
    pin(core)
    gc.freeze()  # what was imported: the collection before each job need not look at it
    try:
        end = importlib.import_module(module).open_side(spec, wiring, side)
        harness.send(("ok", jobs.supports(end)))
    except Exception:
        harness.send(("error", traceback.format_exc()))
        return
    try:
        began_ns = 0
        while (request := harness.recv()) is not None:
            rested_ns = time.process_time_ns()
            name, arguments = request
            gc.collect()
            harness.send(("ready", None))
            if name == CPU_OF_LAST:
                harness.send(("ok", rested_ns - began_ns))
                continue
            began_ns = time.process_time_ns()
            try:
                harness.send(("ok", _JOBS[name](end, **arguments)))
            except Exception:
                harness.send(("error", traceback.format_exc()))
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        end.close()
        del end
        gc.collect()


def main() -> None:
    """Under mpirun: the rank is the side; the rest comes through the socket."""
    rank = int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "-1")))
    with Client(sys.argv[1], family="AF_UNIX") as harness:
        harness.send(rank)
        module, spec, cores = harness.recv()
        serve(harness, module, spec, None, "a" if rank == 0 else "b", cores[rank])


if __name__ == "__main__":
    main()
