"""One pinned worker process for work that needs no second one."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Callable
from itertools import repeat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from . import native
from .jobs import clock
from .pair import PairFailed
from .worker import pinned

_START_TIMEOUT_S = 60.0


def _time(operation: Callable[[], object], count: int) -> float:
    """Nanoseconds per call; the loop itself (see floors/cffi) is included."""
    start = clock()
    for _ in repeat(None, count):
        operation()
    return (clock() - start) / count


def _serve(harness: Connection[Any, Any], directory: str) -> None:
    sys.path.insert(0, directory)
    from . import operations

    made: dict[str, operations.Operation] = {}
    try:
        while (request := harness.recv()) is not None:
            verb, name, count = request
            try:
                if name not in made:
                    made[name] = operations.ALL[name]()
                operation = made[name]
                if verb == "check":
                    operation.check()
                    harness.send(("ok", None))
                else:
                    harness.send(("ok", _time(operation.call, count)))
            except Exception as error:
                harness.send(("error", f"{type(error).__name__}: {error}"))
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        for operation in made.values():
            operation.close()


class Solo:
    """A context manager around that process; leaves none behind."""

    def __init__(self, directory: Path, core: int) -> None:
        if not list(directory.glob(f"{native.CFFI_NAME}*.so")):
            native.cffi_module(directory)
        context = multiprocessing.get_context("spawn")
        self._link, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, str(directory)), daemon=True)
        with pinned(core):
            self._process.start()
        theirs.close()

    def __enter__(self) -> Solo:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._link.send(None)
        self._process.join(10.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._link.close()

    def _ask(self, verb: str, name: str, count: int, timeout: float) -> Any:
        try:
            self._link.send((verb, name, count))
            if not self._link.poll(max(timeout, _START_TIMEOUT_S)):
                raise PairFailed(f"{name}: no answer within {timeout:.0f} s")
            kind, value = self._link.recv()
        except (EOFError, OSError):
            raise PairFailed(f"{name}: the worker died") from None
        if kind == "error":
            raise PairFailed(f"{name}: {value}")
        return value

    def time(self, name: str, count: int, timeout: float) -> float:
        """Nanoseconds per call of the operation `name` of `bench.operations`."""
        return float(self._ask("time", name, count, timeout))

    def check(self, name: str, timeout: float) -> None:
        """Raises where the operation does not yield what it should."""
        self._ask("check", name, 0, timeout)
