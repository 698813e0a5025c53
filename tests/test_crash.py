"""SIGKILL at every instruction: a sample of what ``python tests/crash`` does in full, and negative controls.

Each control is a bug that is seeded into the core; the harness has to notice it, for the reason that it
claims.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from c_build import CC, Edit, Workshop, outdated, sampled
from crash import harness
from crash.harness import Job

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler on PATH")


@pytest.fixture(autouse=True)
def skipped_without_ptrace() -> Iterator[None]:
    try:
        yield
    except harness.PtraceForbidden as forbidden:
        pytest.skip(str(forbidden))


def run_jobs(program: Path, jobs: list[Job]) -> list[harness.Done]:
    try:
        return list(harness.run_all(program, jobs))
    except harness.PtraceForbidden as forbidden:
        pytest.skip(str(forbidden))


def test_a_sample(workshop: Workshop) -> None:
    program = workshop.program(harness.PROGRAM, "plain")
    finished = run_jobs(program, harness.quick(harness.operations(program)))
    complaints = "".join(done.complaints for done in finished if done.failed)
    assert not any(done.failed for done in finished), f"{complaints}{harness.table(finished)}"
    assert all(done.figures and sum(done.figures.kills) + done.figures.stops > 0 for done in finished)


@dataclass(frozen=True)
class Control:
    """With ``edit``, ``job`` fails, and what it says matches ``reason``."""

    name: str
    edit: Edit
    job: Job
    reason: str


def control(name: str, edit: tuple[str, str, str], job: tuple[str, ...], reason: str) -> Control:
    operation, kind, *arguments = job
    return Control(name, Edit(*edit), Job(operation, kind, tuple(arguments)), reason)


REPAIRS = ("--every", "0", "--depth", "2", "--every-repair", "0")
TAKEN_EARLY = (
    "shmq.c",
    r"^            status = receive\(q, &record, m\);\n.*LOOK_AGAIN.*\n"
    r" +if \(status == SHMQ_OK\) shmq_taken\(.*\);",
    "            shmq_taken(q, 1, 0);\n            status = receive(q, &record, m);\n"
    "            if (status == SHMQ_OK) return status;",
)
COMMIT_EARLY = r"^(    if \(meta_bytes > 0\) memcpy\(record\.payload.*\n.*\n)(    shmq_put_commit\(.*\n)"
ROLES = r"^    uint64_t consumer = load_acquire\(&roles->consumer\);"

CONTROLS = [
    # publishing
    control(
        "record_before_its_payload",
        ("message.c", COMMIT_EARLY, r"\2\1"),
        ("put in-line", "spsc"),
        r"at death .*2 is followed by",
    ),
    control(
        "slot_before_its_payload",
        ("message.c", COMMIT_EARLY, r"\2\1"),
        ("put in-line", "mpmc"),
        r"at death .*2 is followed by",
    ),
    control(
        "tail_before_the_block_is_in_flight",
        ("message.c", r"^    status = shmq_arena_send\(", r"    shmq_put_commit(q, 0, 0);\n\g<0>"),
        ("put block", "spsc"),
        r'a get says "segment corrupt"',
    ),
    control(
        "half_a_payload",
        (
            "message.c",
            r"^    shmq_put_commit\(q, 1, meta_bytes \+ bytes\);",
            r"\g<0> record.payload[meta_bytes + bytes - 1] ^= 1;\n"
            r'    __asm__ volatile("" ::: "memory");\n    record.payload[meta_bytes + bytes - 1] ^= 1;',
        ),
        ("put in-line", "spsc"),
        r"message 3 is torn",
    ),
    # taking
    control(
        "record_released_before_its_lease",
        TAKEN_EARLY,
        ("get block", "spsc"),
        r"pages are still in flight",
    ),
    control(
        "block_freed_upwards",
        (
            "arena.c",
            r"for \(uint32_t n = run_behind\((.*)\); n > 0; n--\)",
            r"for (uint32_t n = 1, last = run_behind(\1); n <= last; n++)",
        ),
        ("release", "spsc"),
        r"pages are still continued|segment corrupt",
    ),
    control(
        "first_page_freed_first",
        (
            "arena.c",
            r"^(    uint64_t freed = .*\n)(    for \(uint32_t n = )(run_behind\(.*\));",
            r"    uint32_t behind = \3;\n\1"
            r"    if (cas_acq_rel(&a->words[page], &(uint64_t){word}, freed)) word = freed;\n\2behind;",
        ),
        ("release", "mpmc"),
        r'pages are still continued|validate says "segment corrupt"',
    ),
    # repair
    control(
        "block_at_the_head_freed",
        (
            "recover.c",
            r"^        resend\(arena, dead, &record\);\n    struct range",
            "        (void)resend;\n    struct range",
        ),
        ("get block", "spsc"),
        r'a get says "segment corrupt"',
    ),
    control(
        "pages_freed_before_the_lease_is_back",
        (
            "recover.c",
            ROLES,
            r"\g<0> shmq_arena_recover(arena, dead, in_range, &(struct range){0, UINT64_MAX});",
        ),
        ("get block", "spsc"),
        r'a get says "segment corrupt"',
    ),
    control(
        "role_given_up_before_the_repair",
        ("recover.c", ROLES, r"    give_up(&roles->consumer, dead);\n\g<0>"),
        ("get block", "spsc"),
        r'a get says "segment corrupt"',
    ),
    control(
        "role_given_up_before_the_pages",
        ("recover.c", r"^    if \(consumer != 0 && ", r"    give_up(&roles->consumer, dead);\n\g<0>"),
        ("get block", "spsc", *REPAIRS),
        r'its repairer killed .* a get says "segment corrupt"',
    ),
    control(
        "entry_freed_before_the_repair",
        (
            "recover.c",
            r"^        if \(lock < 0\) continue;",
            r"\g<0>\n        store_release(&s->peers[i].word, 0);",
        ),
        ("put block", "mpmc", *REPAIRS),
        r"its repairer killed .* pages are still (?:loaned|in flight)",
    ),
    control(
        "slot_put_back_before_its_block",
        (
            "recover.c",
            r"^    for \(uint64_t i = 0; \(i = shmq_mpmc_next_read_by",
            r"    shmq_mpmc_recover(ring, dead);\n\g<0>",
        ),
        ("get block", "mpmc"),
        r'a get says "segment corrupt"',
    ),
    control(
        "tombs_forgotten",
        ("mpmc.c", r"^        if \(state == SHMQ_SLOT_WRITING\) \{", "        if (0) {"),
        ("put in-line", "mpmc"),
        r"bytes of the ring are in use",
    ),
    control(
        "head_not_moved_back",
        ("mpmc.c", r"^    if \(least != head\) move_back\(ring->head, least\);", "    (void)least;"),
        ("get in-line", "mpmc"),
        r"message [23] (?:is lost|where)",
    ),
    control(
        "no_testimony",
        ("recover.c", r"^        testify\(s, ring, arena, i, epoch\);", "        (void)testify;"),
        ("put in-line", "mpmc"),
        r"no post-mortem of peer 2",
    ),
    control(
        "every_event_is_the_first",
        ("recorder.c", r"time \| number, cursor", "time + 0 * number, cursor"),
        ("put in-line", "spsc"),
        r"event 0 is \d+",
    ),
    # company
    control(
        "block_freed_that_was_taken_meanwhile",
        ("arena.c", r" &&\n\s+load_acquire\(&a->words\[page\]\) == w;", ";"),
        ("reap", "mpmc", "--parked", "--every", "4"),
        r"a message that is held was overwritten",
    ),
    control(
        "head_laps_behind_is_corrupt",
        (
            "mpmc.c",
            r"^            catch_up\(ring, at, \(uint64_t\)ahead\);",
            r"            if (ahead > 1) return SHMQ_CORRUPT;\n\g<0>",
        ),
        ("get in-line", "mpmc", "--every", "0", "--parked", "--depth", "2", "--every-repair", "0"),
        r'its repairer stopped .* a get says "segment corrupt"',
    ),
    control(
        "stopped_is_dead",
        (
            "peers.c",
            r"mmap\(NULL, SHMQ_PAGE, PROT_NONE, MAP_SHARED, fd, 0\)",
            "mmap(NULL, SHMQ_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)",
        ),
        ("put in-line", "mpmc", "--parked"),
        r"stopped after \d+ instructions .*: alive: 0",
    ),
    # leases
    control(
        "slot_given_back_before_its_entry_is_filled",
        ("lease.c", r"^( +shmq_pending_fill\(.*\n)( +shmq_taken\(q, 1, bytes\);.*\n)", r"\2\1"),
        ("lease in-line", "lease"),
        r"at death the queue begins with 2|message 1 is lost",
    ),
    control(
        "spent_slot_is_a_message_again",
        (
            "recover.c",
            r"^        if \(shmq_pending_has\(pending, record\.position\)\) .*\n        else ",
            "        ",
        ),
        ("lease in-line", "lease"),
        r"message 1 where 2 was due|message 1 is there, which was not committed",
    ),
    control(
        "copy_named_before_it_is_kept",
        (
            "keep.c",
            r"^(    if \(\(status = shmq_arena_keep\(.*\n)(    shmq_pending_rename\(.*\n)",
            r"\2\1",
        ),
        ("lease again copy", "lease"),
        r'a get says "segment corrupt"',
    ),
    control(
        "spent_blocks_freed_in_nobodys_name",
        (
            "keep.c",
            r"free_if_spent\(arena, pending, page, word, dead\);",
            "free_if_spent(arena, pending, page, word, arena->owner);",
        ),
        ("attach, repair lessee", "lease"),
        r"pages are still loaned",
    ),
    control(
        "nobody_sees_that_a_block_is_spent",
        ("keep.c", r"^        if \(state == SHMQ_PAGE_RETURNED\)\n.*$", ""),
        ("ack, dropped", "lease"),
        r"pages are still returned",
    ),
    control(
        "what_moves_when_its_owner_dies_stays",
        ("pending.c", r"\(state == SHMQ_PENDING_MOVING && is_dead\) \|\|", "(is_dead && false) ||"),
        ("nack in-line", "lease"),
        r"message 1 is lost|message 2 where 1 was due",
    ),
    control(
        "entries_before_slots",
        (
            "recover.c",
            r"^(static void recover_mpmc\([^{]*\{\n)",
            r"\1    shmq_pending_recover(pending, dead);\n",
        ),
        ("reap lessee", "lease", "--parked", "--every", "0"),
        r"was put 1 times and got 2 times",
    ),
    control(
        "views_dropped_without_a_second_look",
        (
            "keep.c",
            r"^    if \(shmq_arena_return\((.*)\)\) /\* K1 \*/\n( +)free_if_spent\((.*)\);",
            r"    bool spent = !shmq_pending_names(pending, shmq_word_argument(word) - 1,\n"
            r"        shmq_handle(page, shmq_word_generation(word)));\n"
            r"    if (shmq_arena_return(\1) && spent) free_if_spent(\3);",
        ),
        ("drop, overdue", "lease", "--parked"),
        r"pages are still returned",
    ),
    # keys
    control(
        "key_remembered_before_its_message",
        (
            "message.c",
            r"if \(q->put\.key != 0\) shmq_keys_publishing\(&q->keys\);",
            "if (q->put.key != 0) { shmq_keys_publishing(&q->keys); shmq_keys_published(&q->keys); }",
        ),
        ("put with a key", "keys"),
        r"key 3 is known, and was not put",
    ),
    control(
        "slots_before_keys",
        ("recover.c", r"^    shmq_keys_bind\(&keys, s\);", r"\g<0> shmq_mpmc_recover(ring, dead);"),
        ("put block with a key", "keys"),
        r"key 3 is known, and was not put",
    ),
    control(
        "key_of_the_dead_forgotten",
        ("keys.c", r"if \(begun && .*\) remember\(k\);", "(void)begun;"),
        ("reap a turn", "keys", "--every", "0"),
        r"key 3 was put, and is not known",
    ),
    control(
        "half_remembered_is_known",
        (
            "keys.c",
            r"begun && load_relaxed\(&k->line->count\) != load_relaxed\(&k->line->number\)",
            "begun && !shmq_keys_known(k, load_relaxed(&k->line->hash))",
        ),
        ("reap a turn in its midst", "keys", "--every", "0"),
        r'with key 2 says "a repeat of a key, dropped", not "ok"',
    ),
    control(
        "a_look_before_the_turn",
        (
            "keys.c",
            r"^    int status = try_hold\(k\);\n(.*\n)    if \(shmq_keys_known\(k, hash\)\) \{",
            r"    bool known = shmq_keys_known(k, hash);\n    int status = try_hold(k);\n\1    if (known) {",
        ),
        ("put block with a key", "keys", "--parked"),
        r"key 3 was put twice",
    ),
    # topics
    control(
        "message_before_its_content",
        (
            "topic.c",
            r"^(    store32_relaxed\(&slot->producer.*\n(?:.*\n){2})"
            r"(    store_release\(&slot->word, .*READY.*\n)",
            r"\2\1",
        ),
        ("publish in-line", "topic"),
        r"at death (?:2 is followed by|it ends with)",
    ),
    control(
        "half_a_message_is_one",
        ("topic.c", r"&word, shmq_slot_word\(SHMQ_SLOT_TOMB,", "&word, shmq_slot_word(SHMQ_SLOT_READY,"),
        ("publish in-line", "topic"),
        r"is there, which was not committed|a message of 0 bytes",
    ),
    control(
        "block_of_the_last_lap_forgotten",
        ("topic.c", r"if \(spent && state == SHMQ_SLOT_READY && has_block", "if (0 && has_block"),
        ("publish over a block", "topic"),
        r"pages are still in flight",
    ),
    control(
        "the_last_holder_lets_go_before_it_has_the_page",
        ("arena.c", r"^            left = seen & ~SHMQ_HELD_BY_RING;\n", ""),
        ("get, last reader", "topic"),
        r"killed after \d+ instructions .* 1 pages are still in flight",
    ),
    control(
        "views_of_the_dead",
        ("share.c", r"^    shmq_arena_recover_readers\(a, dead\);\n", ""),
        ("release", "topic"),
        r"pages are still in flight",
    ),
    control(
        "subscription_of_the_dead",
        ("topic.c", r"^    shmq_topic_unsubscribe\(t, dead\);\n", ""),
        ("subscribe", "topic"),
        r"peer 2 is still subscribed",
    ),
    control(
        "blocks_that_nobody_needs_are_kept",
        ("share.c", r"^    \(void\)shmq_share_trim\(t, &hands\);\n", "    (void)hands;\n"),
        ("get, last reader", "topic"),
        r"pages are still in flight",
    ),
    control(
        "message_counted_before_its_block_is_held",
        TAKEN_EARLY,
        ("first get", "topic", "--parked"),
        r"stopped after \d+ instructions .* the victim's call says .unknown",
    ),
    control(
        "publishers_do_not_wait",
        ("topic.c", r"if \(t->policy == SHMQ_DROP_OLDEST\) return true;", "return true;"),
        ("get in-line", "topic", "--parked"),
        r"stopped after \d+ instructions .* a subscriber is overtaken",
    ),
    # lanes
    control(
        "only_the_bulk_lane_is_repaired",
        ("recover.c", r"i < ring->lanes; i\+\+\) recover_slots", "i < 1; i++) recover_slots"),
        ("get urgent block", "lanes"),
        r"message 1 is lost|message 2 where 1 was due|message 3 where 1 was due",
    ),
    control(
        "entries_of_either_lane",
        (
            "pending.c",
            r"load_relaxed\(&p->entries\[i\]\.position\) == position\)",
            "load_relaxed(&p->entries[i].position) >> 3 == position >> 3)",
        ),
        ("reap lessee of both", "lanes", "--every", "0"),
        r"message 3 is lost|message 4 where 3 was due",
    ),
    control(
        "pages_judged_by_the_bulk_lane",
        ("lanes.c", r"shmq_lanes_slots\(ring, argument & 1\)", "shmq_lanes_slots(ring, 0)"),
        ("put urgent block", "lanes"),
        r"a get says .segment corrupt.",
    ),
    control(
        "bulk_before_urgent",
        ("lanes.c", r"= consumer->in_a_row < SHMQ_URGENT_RUN;", "= consumer->in_a_row >= SHMQ_URGENT_RUN;"),
        ("put urgent in-line", "lanes"),
        r"urgent message \d+ comes behind a bulk one",
    ),
]


def test_every_bug_fits_the_core_as_it_is() -> None:
    assert not outdated(seeded.edit for seeded in CONTROLS)


CHOSEN = sampled(CONTROLS, lambda seeded: seeded.edit.file)


@pytest.mark.parametrize("seeded", CHOSEN, ids=lambda seeded: seeded.name)
def test_a_seeded_bug_is_noticed(workshop: Workshop, seeded: Control) -> None:
    program = workshop.mutant(harness.PROGRAM, "plain", seeded.name, seeded.edit)
    job = replace(seeded.job, arguments=(*seeded.job.arguments, "--enough"))
    (done,) = run_jobs(program, [job])
    assert done.failed, f"{seeded.job} passes with it"
    assert re.search(seeded.reason, done.complaints), done.complaints
    shutil.rmtree(program.parent)
