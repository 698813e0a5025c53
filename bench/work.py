"""The pieces of work that suites share: check a transport's payloads, time its one-way traffic."""

from __future__ import annotations

from . import tcp_raw
from .harness import Settings
from .model import Role
from .pair import Pair, PairFailed
from .worker import CPU_OF_LAST

CALLS = {
    "one": ("put", "get"),
    "many": ("put_many", "get_many"),
    "array": ("put_array", "get_array"),
    "loan": ("loan", "get_polling"),
    "object": ("put", "get"),
}
"""Form of traffic -> the calls that side a and side b need for it."""


def has(pair: Pair, form: str) -> bool:
    sends, receives = CALLS[form]
    return sends in pair.calls[0] and receives in pair.calls[1]


def role(pair: Pair) -> Role:
    if pair.name == "shmq":
        return "shmq"
    return "reference" if pair.name.startswith("shmq ") or pair.name == tcp_raw.NAME else "rival"


def verify(pair: Pair, form: str, size: int, count: int, timeout: float) -> None:
    """Sends `count` payloads that all differ; each side b compares each; not timed."""
    job = {"form": form, "count": count, "size": size}
    found = pair.run_all(("check_send", job), [("check_receive", job)] * pair.readers, timeout)[1]
    if (good := min(found)) != count:
        raise PairFailed(f"{pair.name}: {count - good} of {count} payloads arrived altered")


def one_way_seconds(
    pair: Pair, form: str, size: int, count: int, timeout: float, *, keeps: bool = False
) -> float:
    """From before the first put on one side to after the last get on the other (of the last side b).

    `keeps`: an array, which each side b then has in memory of its own."""
    receive: tuple[str, dict[str, int]] = (f"receive_{form}", {"count": count})
    if keeps:
        receive = ("receive_copy", {"count": count, "size": size})
    start, ends = pair.run_all(
        (f"send_{form}", {"count": count, "size": size}), [receive] * pair.readers, timeout
    )
    return (max(map(int, ends)) - int(start)) / 1e9


def consumers(settings: Settings, pair: Pair) -> list[tuple[str, Role, bool]]:
    """(name, role, whether it polls) for each way in which this one's consumer can be asked to wait.

    There are two for shmq only: the others either sleep or poll, whatever they are asked."""
    if pair.name != "shmq":
        return [(pair.name, role(pair), False)]
    parks = (pair.name, role(pair), False)
    if "spin" not in settings.wait:
        return [parks]
    if "park" not in settings.wait:
        return [(f"{pair.name} spin", role(pair), True)]
    return [parks, (f"{pair.name} spin", "reference", True)]


def cpu_ns(pair: Pair, timeout: float) -> int:
    """Processor time of both processes, threads of the library included, from the last job on until now."""
    a, b = pair.run_all((CPU_OF_LAST, {}), [(CPU_OF_LAST, {})] * pair.readers, timeout)
    return int(a) + sum(map(int, b))
