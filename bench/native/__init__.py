"""The C side: compiles `floors.c`, `core.c` and a small cffi module at run time, and runs them.

Everything is built into the harness's private directory and goes with it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import shmq

HERE = Path(__file__).resolve().parent
CORE_SOURCES = Path(shmq.get_include())
_FLAGS = ("-std=c11", "-O2", "-flto", "-DNDEBUG", "-Wall", "-Wextra", "-pthread")
_BUILD_TIMEOUT_S = 300.0

CFFI_NAME = "_bench_cffi"
_CFFI_BUILD = f"""
import cffi
ffi = cffi.FFI()
ffi.cdef("int nothing(void); int pointer(void *p);")
ffi.set_source("{CFFI_NAME}", '''
static int nothing(void) {{ return 0; }}
static int pointer(void *p) {{ return p != 0; }}
''')
ffi.compile(tmpdir=".")
"""


class NativeFailed(Exception):
    """A build or a run in C did not succeed."""


def _call(command: list[str], timeout: float, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeFailed(str(error)) from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout)[-1000:].strip()
        raise NativeFailed(f"{Path(command[0]).name}: {said}")
    return done.stdout


class Program:
    """A compiled program whose runs print one JSON object each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def run(self, *arguments: object, timeout: float = 120.0) -> dict[str, float]:
        output = _call([str(self._path), *map(str, arguments)], timeout)
        result: dict[str, float] = json.loads(output)
        return result


def _compile(name: str, directory: Path, *more: str) -> Program:
    compiler = shutil.which("cc")
    if compiler is None:
        raise NativeFailed("no C compiler: `cc` is not installed")
    target = directory / name
    _call([compiler, *_FLAGS, "-o", str(target), str(HERE / f"{name}.c"), *more], _BUILD_TIMEOUT_S)
    return Program(target)


def floors(directory: Path) -> Program:
    """The machine's own limits; links nothing of shmq."""
    return _compile("floors", directory)


def core(directory: Path) -> Program:
    """shmq's C core, built from its sources as a C worker would build it."""
    sources = sorted(str(path) for path in CORE_SOURCES.glob("*.c"))
    if not sources:
        raise NativeFailed(f"no C sources in {CORE_SOURCES.name}/")
    return _compile("core", directory, *sources, f"-I{CORE_SOURCES}")


def cffi_module(directory: Path) -> None:
    """Builds `_bench_cffi` in API mode, as shmq's; import it with `directory` on the path."""
    _call([sys.executable, "-c", _CFFI_BUILD], _BUILD_TIMEOUT_S, cwd=directory)
