"""put + get in one process: what the calls themselves cost, with no other core in it.

The step message is a dict of ten keys of which three hold 4 KiB arrays, about what a scheduler
sends to its workers for each step. References: pickle protocol 5 alone (no queue at all), and
msgpack with the arrays left out of it and copied once.
"""

from __future__ import annotations

from .. import ours
from ..harness import Harness, Runner, Sample, Settings
from ..model import Budget, Role, Row
from ..solo import Solo

_CONTESTANTS: dict[str, tuple[tuple[str, Role, str], ...]] = {
    "local/bytes64": (
        ("two cffi calls", "floor", "cffi_two_pointers"),
        ("shmq", "shmq", "queue_bytes"),
    ),
    "local/array4k": (
        ("np.ndarray over memory", "floor", "bare_array"),
        ("shmq", "shmq", "queue_array"),
        ("pickle 5 dumps + loads", "reference", "pickle_array"),
    ),
    "local/step": (
        ("msgpack, arrays beside", "reference", "msgpack_step"),
        ("shmq", "shmq", "queue_step"),
        ("pickle 5 dumps + loads", "reference", "pickle_step"),
    ),
}


def rows(settings: Settings) -> list[Row]:
    return [
        Row("local/bytes64", "local", "64 B bytes, put + get in one process", "us", "lower"),
        Row(
            "local/array4k",
            "local",
            "4 KiB array, put + get in one process",
            "us",
            "lower",
            Budget("<= 3 us", 3.0, "value"),
        ),
        Row(
            "local/step",
            "local",
            "scheduler step (10 keys, 3 arrays of 4 KiB), put + get",
            "us",
            "lower",
            Budget("<= 8 us", 8.0, "value"),
        ),
    ]


def run(harness: Harness, rows: list[Row]) -> None:
    reason = ours.missing()
    if reason is not None:
        harness.report.absent[ours.NAME] = reason
    with Solo(harness.directory, harness.settings.cores[0]) as solo:

        def runner(name: str, role: Role, job: str) -> Runner:
            def run(count: int) -> Sample:
                ns = solo.time(job, count, harness.settings.timeout_s)
                return Sample(ns / 1e3, ns * count / 1e9)

            def verify() -> None:
                solo.check(job, harness.settings.timeout_s)

            return Runner(name, role, run, verify, first=1000)

        for row in rows:
            harness.measure(
                row,
                [
                    runner(*contestant)
                    for contestant in _CONTESTANTS[row.id]
                    if reason is None or contestant[1] != "shmq"
                ],
            )
