"""Random deaths, dead wakers, wraps and verdicts: samples of ``python tests/crash``, and negative controls.

Each control is a bug that is seeded into the core; the part has to notice it, for the reason that it claims.
"""

import re
import shutil
from dataclasses import dataclass, replace

import pytest
from c_build import CC, Edit, Workshop, outdated, sampled
from crash import parts
from crash.parts import Amounts

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler on PATH")

# How soon is a matter of `make crash`, on a machine that does nothing else.
SAMPLE = replace(
    Amounts(kills=60, pause_ms=10, deaths=8, operations=60_000, crossings=4, ask_ms=1100, idle_ms=1000),
    repair_limit_ms=4000,
    wake_limit_ms=4000,
    idle_limit=1000,
)


@pytest.mark.parametrize("part", parts.PARTS)
def test_a_sample(workshop: Workshop, part: str) -> None:
    rows, complaints = parts.run(part, workshop.program(f"crash/{part}", "plain"), SAMPLE)
    assert not any(row.failures for row in rows), f"{complaints}{parts.summary(rows)}"
    assert {row.part for row in rows} == {part}
    assert all(re.search(r"[1-9]", row.counts) for row in rows if "skipped" not in row.done)


@dataclass(frozen=True)
class Control:
    """With ``edit``, ``part`` fails, and what it says matches ``reason``."""

    name: str
    part: str
    edit: Edit
    reason: str
    amounts: Amounts = SAMPLE


def control(name: str, part: str, edit: tuple[str, str, str], reason: str, **amounts: int) -> Control:
    return Control(name, part, Edit(*edit), reason, replace(SAMPLE, **amounts))


SEEDS = (1, 2, 3)
"""Tried in turn until the bug is noticed: on a busy machine it takes luck to die at the right instruction."""

ANONYMOUS_PIN = "mmap(NULL, SHMQ_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)"

CONTROLS = [
    control(
        "what_a_dead_consumer_read_is_gone",
        "soak",
        (
            "mpmc.c",
            r"shmq_slot_word\(SHMQ_SLOT_READY, 0, shmq_slot_lap\(word\)\)",
            "shmq_slot_word(SHMQ_SLOT_TOMB, 0, shmq_slot_lap(word))",
        ),
        r"message \d+ of life \d+ is lost",
        kills=150,
    ),
    control(
        "visible_before_its_payload",
        "soak",
        (
            "message.c",
            r"^(    if \(meta_bytes > 0\) memcpy\(record\.payload.*\n.*\n)(    shmq_put_commit\(.*\n)",
            r"\2\1",
        ),
        r"a torn message|message_number.*expected",
        kills=150,
    ),
    control(
        "some_slots_are_read_twice",
        "soak",
        (
            "mpmc.c",
            r"^void shmq_mpmc_release\(.*\n",
            r"\g<0>    uint64_t record = load_relaxed(&shmq_slot_at(ring, consumer->position)->record);\n"
            r"    if (consumer->position % 97 == 0 && (record >> 48 & SHMQ_RECORD_BLOCK) == 0) {\n"
            r"        shmq_mpmc_unpeek(ring, consumer);\n        return;\n    }\n",
        ),
        r"came twice",
    ),
    control(
        "the_dead_keep_their_pages",
        "soak",
        ("arena.c", r"if \(orphan\) \(void\)shmq_arena_free\(a, page, w\);", "(void)orphan;"),
        r"the dead still hold|bytes of the arena are not free",
    ),
    control(
        "entries_of_the_dead_stay",
        "lessees",
        (
            "pending.c",
            r"state == SHMQ_PENDING_UNACKED && cas_acq_rel\(&p->entries\[i\]\.word, &w, moving\)",
            "!is_dead",
        ),
        r"the dead still have \d+ messages|are still unacknowledged|a worker has ended",
        kills=100,
    ),
    control(
        "acknowledged_messages_come_again",
        "lessees",
        (
            "lease.c",
            r"^(int shmq_ack\(.*\n    uint64_t handle;\n)",
            r"\1    if (d->entry % 7 == 3) return shmq_nack(q, d, 0);\n",
        ),
        r"came after it had been acknowledged",
        kills=100,
    ),
    control(
        "publishers_do_not_wait",
        "audience",
        ("topic.c", r"if \(t->policy == SHMQ_DROP_OLDEST\) return true;", "return true;"),
        r"is 10 \(0xa\), expected 0",
    ),
    control(
        "half_a_message_is_one",
        "audience",
        ("topic.c", r"&word, shmq_slot_word\(SHMQ_SLOT_TOMB,", "&word, shmq_slot_word(SHMQ_SLOT_READY,"),
        r"message \d+ of life \d+ follows|a torn message|\(status\) is 10",
        kills=600,
    ),
    control(
        "one_less_is_missed",
        "audience",
        ("topic.c", r"s->missed \+= to - from;", "s->missed += to - from - 1;"),
        r"got and missed are \d+",
    ),
    control(
        "subscriptions_of_the_dead",
        "audience",
        ("topic.c", r"^    shmq_topic_unsubscribe\(t, dead\);\n", ""),
        r"are still subscribed|the publisher does not go on|lab_put.* is 1 ",
    ),
    control(
        "views_of_the_dead",
        "audience",
        ("share.c", r"^    shmq_arena_recover_readers\(a, dead\);\n", ""),
        r"bytes of the arena are not free",
    ),
    control(
        "slices_of_an_hour",
        "wakes",
        ("wait.c", r"barrier \? SHMQ_SLICE_NS :", "barrier ? 36000 * SHMQ_SLICE_NS :"),
        r"a wake-up was lost",
        wake_limit_ms=500,
    ),
    control(
        "slices_that_are_longer",
        "wakes",
        ("wait.c", r"barrier \? SHMQ_SLICE_NS :", "barrier ? 3 * SHMQ_SLICE_NS :"),
        r"a waiter goes on after \d+ ms",
        wake_limit_ms=150,
    ),
    control(
        "looks_after_every_other_slice",
        "wakes",
        (
            "shmq.c",
            r"^static bool get_ready\(void \*context\) \{\n",  # asked four times a slice
            r"\g<0>    static unsigned asked;\n    if (asked++ % 8 > 0) return false;\n",
        ),
        r"waiters slept again",
    ),
    control(
        "laps_do_not_wrap",
        "laps",
        (
            "slots.h",
            r"int64_t\)apart / \(\(int64_t\)1 << \(64 - SHMQ_LAP_BITS\)\)",
            "int64_t)(apart >> (64 - SHMQ_LAP_BITS))",
        ),
        r"not true|expected",
    ),
    control(
        "cursors_do_not_wrap",
        "laps",
        (
            "spsc.c",
            r"return tail - head <= ring->capacity && ",
            "return tail >= head && tail - head <= ring->capacity && ",
        ),
        r"expected 0",
    ),
    control(
        "lock_ends_with_the_descriptor",
        "alive",
        ("peers.c", r"mmap\(NULL, SHMQ_PAGE, PROT_NONE, MAP_SHARED, fd, 0\)", ANONYMOUS_PIN),
        r"it is alive, and is not said to be",
    ),
    control(
        "lock_survives_in_children",
        "alive",
        ("peers.c", r"madvise\(pin, SHMQ_PAGE, MADV_DONTFORK\) != 0", "0"),
        r"its child survives it: it is dead, and is not said to be",
    ),
    control(
        "nobody_sleeps",
        "idle",
        ("wait.c", r"long slept = futex\([^;]*;", "long slept = 0;\n    (void)key, (void)ts;"),
        r"a waiting consumer takes [1-9]",
    ),
    control(
        "locks_of_the_process",
        "alive",
        ("peers.c", r"F_OFD_SETLK, byte, &type\) == 0", "F_SETLK, byte, &type) == 0"),
        r"it is alive, and is not said to be",
    ),
]


def test_every_bug_fits_the_core_as_it_is() -> None:
    assert not outdated(seeded.edit for seeded in CONTROLS)


CHOSEN = sampled(CONTROLS, lambda seeded: seeded.part)


@pytest.mark.parametrize("seeded", CHOSEN, ids=lambda seeded: seeded.name)
def test_a_seeded_bug_is_noticed(workshop: Workshop, seeded: Control) -> None:
    program = workshop.mutant(f"crash/{seeded.part}", "plain", seeded.name, seeded.edit)
    for seed in SEEDS:
        rows, complaints = parts.run(seeded.part, program, replace(seeded.amounts, seed=seed))
        if any(row.failures for row in rows):
            break
    assert any(row.failures for row in rows), f"{seeded.part} passes with it\n{parts.summary(rows)}"
    assert re.search(seeded.reason, complaints), complaints
    shutil.rmtree(program.parent)
