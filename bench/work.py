"""The pieces of work that suites share: check a transport's payloads, time its one-way traffic."""

from __future__ import annotations

from .harness import Settings
from .model import Role
from .pair import Pair, PairFailed

CALLS = {
    "one": ("put", "get"),
    "many": ("put_many", "get_many"),
    "array": ("put_array", "get_array"),
    "loan": ("loan", "get_polling"),
}
"""Form of traffic -> the calls that side a and side b need for it."""


def has(pair: Pair, form: str) -> bool:
    sends, receives = CALLS[form]
    return sends in pair.calls[0] and receives in pair.calls[1]


def role(pair: Pair) -> Role:
    if pair.name == "shmq":
        return "shmq"
    return "reference" if pair.name.startswith("shmq ") else "rival"


def verify(pair: Pair, form: str, size: int, count: int, timeout: float) -> None:
    """Sends `count` payloads that all differ; each side b compares each; not timed."""
    job = {"form": form, "count": count, "size": size}
    found = pair.run_all(("check_send", job), [("check_receive", job)] * pair.readers, timeout)[1]
    if (good := min(found)) != count:
        raise PairFailed(f"{pair.name}: {count - good} of {count} payloads arrived altered")


def one_way_seconds(pair: Pair, form: str, size: int, count: int, timeout: float) -> float:
    """From before the first put on one side to after the last get on the other (of the last side b)."""
    start, ends = pair.run_all(
        (f"send_{form}", {"count": count, "size": size}),
        [(f"receive_{form}", {"count": count})] * pair.readers,
        timeout,
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
