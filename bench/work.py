"""The pieces of work that suites share: check a transport's payloads, time its one-way traffic."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from . import tcp_raw
from .harness import Settings
from .jobs import PROGRESS_BYTES
from .model import Role
from .pair import Pair, PairFailed
from .shared import number_of
from .worker import CPU_OF_LAST

CALLS = {
    "one": ("put", "get"),
    "many": ("put_many", "get_many"),
    "array": ("put_array", "get_array"),
    "loan": ("loan", "get_polling"),
    "object": ("put", "get"),
}
"""Form of traffic -> the calls that side a and side b need for it."""
SHARED_JOBS = {
    "time": ("send_shared", "receive_shared"),
    "check": ("check_send_shared", "check_receive_shared"),
}


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
    job: tuple[str, dict[str, Any]] = (CPU_OF_LAST, {})
    a, b = pair.run_sides([job] * pair.writers, [job] * pair.readers, timeout)
    return sum(map(int, [*a, *b]))


def verify_shared(pair: Pair, size: int, count: int, progress: Path, timeout: float) -> None:
    """Each side a sends `count` payloads that nobody else sends: each must come to one side b, once."""
    _, found = run_shared(pair, "check", count, size, progress, timeout)
    seen = Counter(number for side in found for number in side)
    sent = {number_of(writer, i) for writer in range(pair.writers) for i in range(count)}
    lost, twice = len(sent - seen.keys()), sum(seen[number] > 1 for number in sent)
    foreign = sum(times for number, times in seen.items() if number not in sent)
    if lost or twice or foreign:
        raise PairFailed(
            f"{pair.name}: of {len(sent)} payloads {lost} did not come as sent, {twice} came more than once, "
            f"{foreign} came that nobody sent"
        )


def run_shared(
    pair: Pair, job: str, count: int, size: int, progress: Path, timeout: float
) -> tuple[list[Any], list[Any]]:
    """`job`: "time" or "check". Each side a sends `count` messages. Returns the results of both sides."""
    progress.write_bytes(bytes(PROGRESS_BYTES * pair.readers))
    send, receive = SHARED_JOBS[job]
    common = {"size": size, "progress": str(progress)}
    ends = {"total": count * pair.writers, "readers": pair.readers}
    return pair.run_sides(
        [(send, {**common, **ends, "count": count, "writer": i}) for i in range(pair.writers)],
        [(receive, {**common, "reader": i}) for i in range(pair.readers)],
        timeout,
    )
