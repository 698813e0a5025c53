"""What the measurements ran on: machine, versions, the two cores to pin to, and its noise."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path
from statistics import median
from typing import Any

from .worker import pinned

PACKAGES = (
    "shmq",
    "numpy",
    "torch",
    "cffi",
    "msgspec",
    "posix-ipc",
    "pyzmq",
    "pynng",
    "faster-fifo",
    "iceoryx2",
    "eclipse-zenoh",
    "mpi4py",
)
_CLOCKS = "/sys/devices/system/clocksource"
_LOOP = 200_000
_LOOPS = 40
_NOISY_PERCENT = 5.0
"""A quiet machine's p90 of the loop lies within 1 or 2 % of its median."""
_LOAD = 0.5
"""Load average that this program itself does not reach before it starts."""


def _first_line(path: str, default: str = "") -> str:
    try:
        return Path(path).read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return default


def _cpuinfo(field: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.split(":")[0].strip() == field:
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def _virtual() -> str:
    """What the kernel runs in: a hypervisor's name, "none", or "unknown"."""
    tool = shutil.which("systemd-detect-virt")
    if tool:
        said = subprocess.run([tool, "--vm"], capture_output=True, text=True, check=False)
        if said.stdout.strip():
            return said.stdout.strip()
    flags = _cpuinfo("flags").split()
    return "unknown" if not flags else "a hypervisor" if "hypervisor" in flags else "none"


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _compiler() -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        return "none"
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return said.stdout.splitlines()[0] if said.stdout else compiler


def _governor(virtual: str) -> str:
    """Who sets the clock rate of the cores that the run may use: the kernel's policy, or nobody here."""
    paths = (
        f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor" for core in os.sched_getaffinity(0)
    )
    found = sorted({name for path in paths if (name := _first_line(path))})
    hidden = "none shown" if virtual == "none" else "none shown: the hypervisor decides"
    return " and ".join(found) or hidden


def _smt() -> str:
    """Whether two hardware threads share a core, as far as the kernel sees."""
    return {"0": "off", "1": "on"}.get(_first_line("/sys/devices/system/cpu/smt/active"), "unknown")


def _sockets() -> int:
    return len({_core_place(core)[0] for core in os.sched_getaffinity(0)})


def _numa_nodes() -> int:
    return max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))))


def describe() -> dict[str, Any]:
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    virtual = _virtual()
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "sockets": _sockets(),
        "numa_nodes": _numa_nodes(),
        "smt": _smt(),
        "governor": _governor(virtual),
        "virtual": virtual,
        "kernel": platform.release(),
        "memory_bytes": memory,
        "dev_shm_free_bytes": shutil.disk_usage("/dev/shm").free,
        "huge_pages_shmem": _first_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "clocksource": _first_line(f"{_CLOCKS}/clocksource0/current_clocksource"),
        "python": platform.python_version(),
        "python_optimized_build": "--enable-optimizations" in arguments,
        "compiler": _compiler(),
        "versions": _versions(),
        "load_average": os.getloadavg(),
    }


def _core_place(core: int) -> tuple[str, str]:
    """(package, physical core): two hardware threads of one core share both."""
    base = f"/sys/devices/system/cpu/cpu{core}/topology"
    package = _first_line(f"{base}/physical_package_id", "0")
    return package, _first_line(f"{base}/core_id", str(core))


def two_cores() -> tuple[tuple[int, int], str | None]:
    """Two different physical cores of one package where there are such; (-1, -1) means not pinned.

    The second value says what is less than ideal.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        return (-1, -1), "only one core: both sides take turns on it, nothing is pinned"
    try:
        os.sched_setaffinity(0, allowed)
    except OSError as error:
        return (-1, -1), f"not pinned: {error}"
    first = allowed[0]
    place = _core_place(first)
    for other in allowed[1:]:
        package, core = _core_place(other)
        if package == place[0] and core != place[1]:
            return (first, other), None
    return (first, allowed[1]), "the two cores are hardware threads of one core, or far apart"


def cores_for(cores: tuple[int, int], readers: int) -> tuple[int, ...]:
    """Side a's core, then one for each side b: in turn those that are not side a's, cores[1] first."""
    if cores[0] < 0:
        return (-1,) * (1 + readers)
    apart = {core for core in os.sched_getaffinity(0) if _core_place(core) != _core_place(cores[0])}
    others = [cores[1], *sorted(apart - set(cores))]
    return (cores[0], *(others[i % len(others)] for i in range(readers)))


def noise(core: int) -> dict[str, float]:
    """How far a fixed loop strays on one core: medians and extremes over `_LOOPS` runs of it."""
    times = []
    with pinned(core):
        for _ in range(_LOOPS):
            start = time.perf_counter_ns()
            for _ in range(_LOOP):
                pass
            times.append(time.perf_counter_ns() - start)
    middle = median(times)
    return {
        "loop_median_ms": middle / 1e6,
        "spread_percent": 100 * (max(times) - min(times)) / middle,
        "p90_percent": 100 * (sorted(times)[int(_LOOPS * 0.9)] - middle) / middle,
    }


def noise_warnings(load_average: float, measured: dict[str, dict[str, float]]) -> list[str]:
    """What a noisy machine means for the figures, one line for each sign of it."""
    found = []
    if load_average > _LOAD:
        found.append(
            f"load average {load_average:.2f} at the start: other programs run here, or ran a minute ago; "
            "they share the cores and caches with what is measured, so stop them and measure again"
        )
    for when, loop in measured.items():
        if loop["p90_percent"] > _NOISY_PERCENT:
            found.append(
                f"noisy {when}: 1 in 10 runs of a fixed loop took over {loop['p90_percent']:.0f} % longer "
                "than the median; only ratios within this run mean anything, p99 and above are the machine's"
            )
    return found
