"""The tests of the C core, which are written in C: each becomes a test here.

The negative controls at the end seed one bug each, and say which program has to notice it: a sample, or
all of them (make mutants).
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from c_build import CC, Edit, Workshop, list_tests, outdated, sampled
from shmq._core import ffi, lib

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler on PATH")

UNIT = [
    *("test_spsc", "test_mpmc", "test_topic", "test_arena", "test_segment", "test_peers", "test_recover"),
    *("test_wait", "test_queue", "test_recorder", "test_doorbell", "test_pending", "test_keep", "test_lease"),
    "test_urgent",
    "test_keys",
]
KINDS = pytest.mark.parametrize("kind", ["spsc", "mpmc"])
SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
KILLS = 5000 if SOAK else 40
MUTATIONS = 200_000 if SOAK else 10_000
WATCHDOG_S = 60
MUTANT_WATCHDOG_S = 2


@pytest.fixture(scope="module", autouse=True)
def no_doorbells_of_the_killed() -> Iterator[None]:
    """Programs with a seeded bug are killed, and leave theirs: whoever opens one next removes them."""
    yield
    for path in Path("/dev/shm").glob(f"shmq-doorbells-{os.geteuid()}/*"):
        if path.is_file():  # "any_file_is_a_bell"
            path.unlink()
    number, fd = ffi.new("uint64_t *"), ffi.new("int *")
    assert lib.shmq_doorbell_open(number, fd) == 0
    lib.shmq_doorbell_close(number[0], fd[0])


Done = subprocess.CompletedProcess[str]


def start(program: Path, *arguments: str | int, watchdog_s: int = WATCHDOG_S, kind: str = "spsc") -> Done:
    command = [str(program), *map(str, arguments)]
    # Its own watchdog ends it and its children; the timeout here is only for a watchdog that is broken.
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=watchdog_s * 20 + 60,
        env={**os.environ, "WATCHDOG_S": str(watchdog_s), "LAB_KIND": kind},
    )


def passes(program: Path, *arguments: str | int, kind: str = "spsc") -> str:
    done = start(program, *arguments, watchdog_s=WATCHDOG_S * (20 if SOAK else 1), kind=kind)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def cases(*programs: str) -> pytest.MarkDecorator:
    found = [(program, test) for program in programs for test in list_tests(program)]
    return pytest.mark.parametrize(("program", "test"), found, ids=[f"{p}-{t}" for p, t in found])


@cases(*UNIT)
def test_unit(workshop: Workshop, program: str, test: str) -> None:
    passes(workshop.program(program, "plain"), test)


@cases("points", "points_topic", "points_doorbell", "points_lease", "points_urgent", "points_keys")
def test_points(workshop: Workshop, program: str, test: str) -> None:
    """Death, and company, before every single access to shared state."""
    passes(workshop.program(program, "points"), test)


@cases("wakes")
@pytest.mark.parametrize("variant", ["long_slices", "no_barrier"])
def test_wakes(workshop: Workshop, program: str, test: str, variant: str) -> None:
    """No wake-up is lost, where a lost one would be a hang; also where wakers have to fence themselves."""
    passes(workshop.program(program, variant), test)


@cases("big_pages")
def test_big_pages(workshop: Workshop, program: str, test: str) -> None:
    passes(workshop.program(program, "big_pages"), test)


@cases("threads", "crowd", "audience", "lessees", "rivals")
def test_threads(workshop: Workshop, program: str, test: str) -> None:
    """What ``make tsan`` runs under the race detector, at full speed."""
    passes(workshop.program(program, "plain"), test)


@KINDS
@pytest.mark.parametrize("whom", ["producer", "consumer", "both"])
def test_sigkill_in_mid_stream(workshop: Workshop, whom: str, kind: str) -> None:
    passes(workshop.program("kills", "plain"), whom, KILLS, 1, kind=kind)


@pytest.mark.parametrize("kind", ["spsc", "mpmc", "topic", "lease", "lanes", "keys"])
def test_garbage_in_a_live_segment(workshop: Workshop, kind: str) -> None:
    """Under AddressSanitizer and UBSan, with the leak detector on."""
    passes(workshop.program("damage", "asan"), MUTATIONS, 1, kind=kind)


# ---- negative controls ----


BLOCKED_GET = "a_put_at_every_point_of_a_blocked_get"
ANONYMOUS_PIN = "mmap(NULL, SHMQ_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)"


@dataclass(frozen=True)
class Bug:
    """``program`` has to notice ``edit``; where ``test`` is empty, some test of it."""

    name: str
    edit: Edit
    program: str
    test: str = ""

    def variant(self) -> str:
        own = {
            "points": "points",
            "points_topic": "points",
            "points_doorbell": "points",
            "points_lease": "points",
            "points_urgent": "points",
            "points_keys": "points",
            "wakes": "long_slices",
            "damage": "asan",
            "big_pages": "big_pages",
        }
        return own.get(self.program, "plain")

    def arguments(self) -> list[str | int]:
        if self.program == "damage":
            return [MUTATIONS, 1]
        return [self.test] if self.test else []


def bug(name: str, file: str, old: str, new: str, program: str, test: str = "") -> Bug:
    return Bug(name, Edit(file, old, new), program, test)


BUGS = [
    # the ring
    bug(
        "visible_before_its_payload",
        "message.c",
        r"^(    if \(meta_bytes > 0\) memcpy\(record\.payload.*\n.*\n)(    shmq_put_commit\(.*\n)",
        r"\2\1",
        "points",
        "company_during_a_put_in_line",
    ),
    bug(
        "cursor_before_its_count",
        "spsc.c",
        r"^    side->flip \^= 1;",
        r"\g<0> store_release(&line->cursor, side->ahead);",
        "points",
        "death_of_a_producer_in_line",
    ),
    bug("record_beyond_the_end", "spsc.c", r"size > end \|\| size > unread", "size > unread", "test_spsc"),
    bug("record_beyond_the_tail", "spsc.c", r"size > end \|\| size > unread", "size > end", "test_spsc"),
    bug("record_longer_than_inline", "spsc.c", r"record->bytes > ring->inline_bytes", "0", "test_spsc"),
    bug("no_pad", "spsc.c", r"if \(SHMQ_UNLIKELY\(size > end\)\) \{", "if (0) {", "test_spsc"),
    bug(
        "full_one_too_late",
        "spsc.c",
        r"> ring->capacity\) return SHMQ_FULL",
        "> ring->capacity + 8) return SHMQ_FULL",
        "test_spsc",
    ),
    bug(
        "far_cursor_believed",
        "spsc.c",
        r"return tail - head <= ring->capacity && .*;",
        "return tail != head + 1;",
        "test_spsc",
    ),
    # the arena
    bug(
        "freed_upwards",
        "arena.c",
        r"for \(uint32_t n = run_behind\((.*)\); n > 0; n--\)",
        r"for (uint32_t n = 1, last = run_behind(\1); n <= last; n++)",
        "points",
        "death_of_a_consumer_with_a_block",
    ),
    bug(
        "generation_stands_still",
        "arena.c",
        r"\(shmq_word_generation\(seen\) \+ 1\) & 0xfffu",
        "shmq_word_generation(seen)",
        "test_arena",
    ),
    bug(
        "lease_of_any_position",
        "arena.c",
        r" \|\|\s+shmq_word_argument\(seen\) != shmq_cursor_argument\(position\)\)",
        ")",
        "test_arena",
    ),
    bug(
        "claim_without_cas",
        "arena.c",
        r"if \(is_free\(seen\) && cas_acq_rel\((&a->words\[page \+ i\]), &seen, cont\)\) continue;",
        r"if (is_free(seen)) { store_release(\1, cont); continue; }",
        "points",
        "company_during_a_put_of_a_block",
    ),
    bug(
        "payload_length_believed",
        "message.c",
        r"if \(!shmq_arena_holds\(&q->arena, b->page, b->word, b->bytes\)\)",
        "if (0)",
        "test_queue",
    ),
    bug(
        "payload_length_believed_when_read",
        "message.c",
        r"if \(!shmq_arena_holds\(&q->arena, b->page, b->word, b->bytes\)\)",
        "if (0)",
        "damage",
    ),
    bug("committed_bit_forgotten", "arena.c", r" \|\n\s+SHMQ_WORD_COMMITTED;", ";", "test_recover"),
    # slots
    bug(
        "anonymous_ticket",
        "mpmc.c",
        r"word_for\(ring, SHMQ_SLOT_WRITING, ring->owner, at\)",
        "word_for(ring, SHMQ_SLOT_WRITING, 0, at)",
        "test_mpmc",
    ),
    bug(
        "late_tail_is_full",
        "mpmc.c",
        r"if \(ahead < 0\) return ahead",
        "if (ahead != 0) return ahead",
        "test_mpmc",
    ),
    bug(
        "dead_writer_publishes",
        "mpmc.c",
        r"shmq_slot_word\(SHMQ_SLOT_TOMB, 0,",
        "shmq_slot_word(SHMQ_SLOT_READY, 0,",
        "test_mpmc",
    ),
    bug(
        "dead_reader_keeps_its_slot",
        "mpmc.c",
        r"\} else if \(state == SHMQ_SLOT_READING\) \{",
        "} else if (false) {",
        "crowd",
        "lives_that_end",
    ),
    bug(
        "dead_reader_consumes",
        "mpmc.c",
        r"shmq_slot_word\(SHMQ_SLOT_READY, 0, shmq_slot_lap\(word\)\)",
        "shmq_slot_word(SHMQ_SLOT_FREE, 0, shmq_slot_lap(word) + 1)",
        "crowd",
        "lives_that_end",
    ),
    bug("nothing_behind_the_head", "mpmc.c", r"^    if \(least != head\) move_back.*$", "", "test_mpmc"),
    bug(
        "put_back_behind_the_head",
        "mpmc.c",
        r"^    move_back\(ring->head, consumer->position\);$",
        "",
        "test_mpmc",
    ),
    bug(
        "tombs_are_for_ever",
        "mpmc.c",
        r"shmq_word_for\(ring, SHMQ_SLOT_FREE, 0, position \+ ring->mask \+ 1\)",
        "word",
        "test_mpmc",
        "a_put_that_is_given_up_leaves_a_tomb",
    ),
    bug(
        "freed_for_the_same_lap",
        "mpmc.c",
        r"word_for\(ring, SHMQ_SLOT_FREE, 0, consumer->position \+ ring->mask \+ 1\)",
        "word_for(ring, SHMQ_SLOT_FREE, 0, consumer->position)",
        "test_mpmc",
    ),
    bug(
        "any_lap_will_do",
        "mpmc.c",
        r"shmq_cursor_argument\(low << 3 \| ring->lane\) == argument &&\n",
        "",
        "test_mpmc",
    ),
    bug(
        "a_handle_is_not_compared",
        "mpmc.c",
        r" &&\n\s+load_acquire\(&slot->handle\) == handle",
        "",
        "test_mpmc",
    ),
    bug(
        "laps_do_not_wrap",
        "slots.h",
        r"int64_t\)apart / \(\(int64_t\)1 << \(64 - SHMQ_LAP_BITS\)\)",
        "int64_t)(apart >> (64 - SHMQ_LAP_BITS))",
        "test_mpmc",
    ),
    bug(
        "ring_before_blocks",
        "recover.c",
        r"^    struct shmq_record record;\n(    for \(uint64_t i = 0; \(i = shmq_mpmc_next)",
        r"    struct shmq_record record; shmq_mpmc_recover(ring, dead);\n\1",
        "crowd",
        "lives_that_end_with_blocks",
    ),
    bug(
        "word_looked_at_once",
        "arena.c",
        r" &&\n\s+load_acquire\(&a->words\[page\]\) == w;",
        ";",
        "test_arena",
    ),
    bug("late_head_is_corrupt", "mpmc.c", r"late\+\+ > 4 \* ring->mask", "late++ >= 0", "test_mpmc"),
    bug(
        "late_head_jumps_too_far",
        "mpmc.c",
        r"\(ahead - 2\) \* \(ring->mask \+ 1\)",
        "ahead * (ring->mask + 1)",
        "test_mpmc",
    ),
    # publishing and taking
    bug(
        "published_before_in_flight",
        "message.c",
        r"^    status = shmq_arena_send\(",
        r"    shmq_put_commit(q, 0, 0);\n\g<0>",
        "points",
        "company_during_a_put_of_a_block",
    ),
    bug(
        "released_before_leased",
        "shmq.c",
        r"^(        if \(status == SHMQ_OK\) \{\n)(            status = receive\()",
        r"\1            shmq_taken(q, 0, 0);\n\2",
        "points",
        "death_of_a_consumer_with_a_block",
    ),
    # repair
    bug(
        "resend_skipped",
        "recover.c",
        r"^        shmq_arena_resend\(",
        "        if (0) shmq_arena_resend(",
        "test_recover",
    ),
    bug(
        "pages_before_ring",
        "recover.c",
        r"^    uint64_t consumer = load_acquire\(&roles->consumer\);",
        r"\g<0> shmq_arena_recover(arena, dead, in_range, &(struct range){0, UINT64_MAX});",
        "test_recover",
    ),
    bug(
        "role_given_up_first",
        "recover.c",
        r"^    uint64_t consumer = load_acquire\(&roles->consumer\);",
        r"    give_up(&roles->consumer, dead);\n\g<0>",
        "points",
        "death_of_a_reaper",
    ),
    bug(
        "slot_given_up_first",
        "recover.c",
        r"^        if \(lock < 0\) continue;",
        r"\g<0>\n        store_release(&s->peers[i].word, 0);",
        "points",
        "death_of_a_reaper",
    ),
    bug(
        "published_blocks_freed",
        "arena.c",
        r"^            orphan = !published\(.*\n.*;",
        "            orphan = true;",
        "test_recover",
    ),
    bug(
        "unpublished_blocks_kept",
        "arena.c",
        r"^            orphan = !published\(.*\n.*;",
        "            orphan = false;",
        "test_recover",
    ),
    # waiting
    bug("busy_waits_never_look", "shmq.c", r"status == SHMQ_OK && look_is_due\(q\)", "false", "test_recover"),
    bug("busy_waits_always_look", "shmq.c", r" && look_is_due\(q\)", "", "test_recover"),
    bug(
        "no_second_look",
        "wait.c",
        r"^        if \(ready\(context\)\) return SHMQ_OK; /\* S2.*\n",
        "",
        "points",
        BLOCKED_GET,
    ),
    bug("epoch_stands_still", "wait.c", r"^    add32_seq_cst\(&e->epoch, 1\);", "", "points", BLOCKED_GET),
    bug(
        "no_barrier",
        "wait.c",
        r"\(void\)or32_seq_cst\(&e->armed, SHMQ_ARMED_FUTEX\);.*\n +bool barrier = shmq_barrier\(\);",
        "store32_relaxed(&e->armed, SHMQ_ARMED_FUTEX); bool barrier = true;",
        "wakes",
        "between_threads",
    ),
    bug(
        "wake_before_publish",
        "message.c",
        r"^(    shmq_commit\(q\);\n)(    put_done.*\n)",
        r"\2\1",
        "wakes",
    ),
    bug(
        "one_long_wait_ends_the_spinning",
        "wait.c",
        r"adapt\(w, spin_would_do\(.*\)\);",
        "adapt(w, false);",
        "test_wait",
    ),
    bug(
        "signals_swallowed",
        "wait.c",
        r"^        if \(interrupted\) return SHMQ_INTERRUPTED;\n",
        "",
        "test_wait",
    ),
    # doorbells
    bug(
        "the_last_who_arms_is_alone",
        "doorbell.c",
        r"or32_seq_cst\(&e->armed, SHMQ_ARMED_BELLS\)",
        "exchange32_seq_cst(&e->armed, SHMQ_ARMED_BELLS)",
        "test_doorbell",
        "sleepers_and_loops_wait_side_by_side",
    ),
    bug(
        "no_look_behind_the_bell",
        "shmq.c",
        r"^    if \(\(news .*\n( +shmq_bell_disarm)",
        r"    if (false) {\n\1",
        "points_doorbell",
    ),
    bug(
        "bells_ring_for_ever",
        "doorbell.c",
        r"and32_seq_cst\(&p->bells, ~bell\) & bell",
        "load32_relaxed(&p->bells) & bell",
        "test_doorbell",
    ),
    bug(
        "any_move_rings",
        "doorbell.c",
        r"e == &s->control->not_empty \? SHMQ_BELL_NOT_EMPTY : SHMQ_BELL_NOT_FULL",
        "(void)s, (void)e, SHMQ_BELL_NOT_EMPTY",
        "test_doorbell",
        "each_side_has_its_bell",
    ),
    bug(
        "the_last_bell_is_out_of_reach",
        "doorbell.c",
        r"&end, myself \+ 1\)",
        "&end, myself)",
        "test_doorbell",
    ),
    bug(
        "newcomers_take_the_bit",
        "doorbell.c",
        r"ring_one\(&bell, load_relaxed\(&s->peers\[i\]\.doorbell\)\);",
        r"(void)and32_seq_cst(&s->peers[i].bells, 0); \g<0>",
        "test_doorbell",
    ),
    bug("newcomers_are_silent", "handle.c", r"else shmq_bell_news\(.*\);", "", "test_doorbell"),
    bug(
        "newcomers_ring_before_they_are_there",
        "doorbell.c",
        r"^    \(void\)add32_seq_cst\(&s->control->roles\.joined, 1\);\n(    full_fence\(\);\n(?:.*\n)*?)^\}",
        r"\1    (void)add32_seq_cst(&s->control->roles.joined, 1);\n}",
        "points_doorbell",
        "a_get_that_waits_in_a_loop_at_every_point_of_a_newcomer",
    ),
    bug(
        "a_bell_is_inherited",
        "peers.c",
        r"^    store32_relaxed\(&peer->bells, 0\);\n",
        "",
        "test_doorbell",
        "a_newcomer_inherits_no_bell",
    ),
    bug(
        "a_stranger_s_file_is_rung",
        "doorbell.c",
        r"return b->number != 0 && .*;",
        "(void)st; return b->number != 0;",
        "test_doorbell",
    ),
    bug("any_file_is_a_bell", "doorbell.c", r" \|\| !S_ISFIFO\(st\.st_mode\)", "", "test_doorbell"),
    bug(
        "bells_stay_open",
        "handle.c",
        r"^    shmq_bells_close\(&q->bells\);\n",
        "",
        "test_doorbell",
        "a_bell_is_kept_open_and_closed_with_the_handle",
    ),
    bug(
        "the_living_are_swept",
        "doorbell.c",
        r"return fd < 0 && errno == ENXIO;",
        "return true;",
        "test_doorbell",
        "what_a_killed_process_left_is_swept_by_the_next",
    ),
    bug(
        "bells_of_the_dead_hang_on",
        "recover.c",
        r"^        shmq_doorbell_remove\(.*\n",
        "",
        "test_doorbell",
        "the_dead_block_nobody_and_their_fifo_is_removed",
    ),
    bug(
        "who_repairs_does_not_ring",
        "recover.c",
        r"shmq_wake_slow\(s, NULL, &s->control->not_empty\);",
        "(void)shmq_eventcount_wake_slow(&s->control->not_empty);",
        "test_doorbell",
        "a_repair_rings",
    ),
    # peers
    bug(
        "unknown_is_dead",
        "peers.c",
        r"if \(fd < 0\) return -1;(\s+int asked)",
        r"if (fd < 0) return 0;\1",
        "test_peers",
    ),
    bug(
        "lock_survives_in_children",
        "peers.c",
        r"madvise\(pin, SHMQ_PAGE, MADV_DONTFORK\) != 0",
        "0",
        "test_peers",
    ),
    bug(
        "lock_ends_with_the_descriptor",
        "peers.c",
        r"mmap\(NULL, SHMQ_PAGE, PROT_NONE, MAP_SHARED, fd, 0\)",
        ANONYMOUS_PIN,
        "test_peers",
    ),
    bug(
        "lock_of_the_process",
        "peers.c",
        r"F_OFD_SETLK, byte, &type\) == 0",
        "F_SETLK, byte, &type) == 0",
        "test_peers",
        "another_descriptor_that_is_closed_leaves_it_alive",
    ),
    # post-mortems
    bug(
        "half_an_event_is_one",
        "recorder.c",
        r" && \(when & 0xff\) == \(what >> 8 & 0xff\);",
        ";",
        "test_recorder",
    ),
    bug(
        "event_read_while_written",
        "recorder.c",
        r"^    if \(load_acquire\(&from->when\) != when\).*$",
        "",
        "points",
        "company_while_a_recorder_is_read",
    ),
    bug(
        "numbers_do_not_wrap",
        "recorder.c",
        r"\(int16_t\)\(uint16_t\)\((.*)\) < 0",
        r"(\1) < 0",
        "test_recorder",
    ),
    bug("early_is_exact", "recorder.c", r"\(what & SHMQ_EVENT_EARLY\) != 0", "0", "test_recorder"),
    bug("a_run_without_end", "recorder.c", r"time != \(next & ~NUMBER_MASK\) \? 0 : ", "", "test_recorder"),
    bug(
        "a_run_goes_on",
        "recorder.c",
        r"^    store_relaxed\(&peer->event_run, 0\);\n    shmq",
        "    shmq",
        "test_recorder",
    ),
    bug("exact_is_early", "recorder.c", r"^        if \(i \+ 1 < n && .*$", "", "test_recorder"),
    bug(
        "early_after_a_wait",
        "recorder.c",
        r"^    else store_relaxed\(&peer->event_run, 0\);$",
        "",
        "test_recorder",
    ),
    bug(
        "a_wait_a_slice",
        "recorder.c",
        r"^    if \(\(load_relaxed\(&peer->events\[last.*$",
        "    if (op != 0)",
        "test_recorder",
    ),
    bug(
        "testimony_after_repair",
        "recover.c",
        r"^        testify\(s, ring, arena, i, epoch\);\n((?:.*\n){4})",
        r"\1        testify(s, ring, arena, i, epoch);\n",
        "test_recorder",
    ),
    bug(
        "testimony_of_the_last_reaper",
        "peers.c",
        r"^    if \(load_acquire\(&v->life\) == .*$",
        "",
        "test_recorder",
    ),
    bug(
        "newcomers_bury_the_dead",
        "peers.c",
        r" \|\| shmq_peers_left_dead\(&s->peers\[i\], word\)",
        "",
        "test_recorder",
    ),
    bug(
        "the_first_dead_go_first",
        "peers.c",
        r"if \(!later \|\| reaped >= least\)",
        "if (!later || next != UINT32_MAX)",
        "test_recorder",
    ),
    bug(
        "post_mortem_of_the_living",
        "peers.c",
        r"^    store_relaxed\(&peer->verdict.life, 0\);.*$",
        "",
        "points",
        "death_of_a_newcomer",
    ),
    # segments
    bug(
        "ready_too_early",
        "handle.c",
        r"^        if \(creating\) shmq_ring_init",
        r"        if (creating) shmq_segment_ready(&q->segment);\n\g<0>",
        "points",
        "death_of_a_creator",
    ),
    bug(
        "geometry_believed",
        "segment.c",
        r" \|\| memcmp\(&s->geometry, &copy\.geometry, sizeof copy\.geometry\) != 0",
        "",
        "test_segment",
    ),
    bug(
        "small_pages_everywhere",
        "segment.c",
        r"\(uint64_t\)sysconf\(_SC_PAGESIZE\)",
        "SHMQ_PAGE",
        "big_pages",
    ),
    bug("anyone_may_write", "segment.c", r" \|\| \(st->st_mode & 077\) != 0", "", "test_segment"),
    bug(
        "a_drain_spins",
        "shmq.c",
        r"^    return !to_come;",
        "    (void)to_come; return true;",
        "test_queue",
        "a_drain_waits_for_who_is_at_work",
    ),
    # leases: the table
    bug(
        "the_serial_stands_still",
        "pending.c",
        r"word_of\(SHMQ_PENDING_MOVING, p->owner, serial_of\(word\) \+ 1\)",
        "word_of(SHMQ_PENDING_MOVING, p->owner, serial_of(word))",
        "test_pending",
        "what_is_overdue_is_taken_away",
    ),
    bug(
        "due_before_it_is_ours",
        "pending.c",
        r"^(int shmq_pending_nack\([^{]*\{\n)(    uint64_t seen = )",
        r"\1    store_relaxed(&p->entries[d->entry].due_ns, due_ns);\n\2",
        "test_pending",
        "what_is_overdue_is_taken_away",
    ),
    bug(
        "deliveries_stand_still",
        "pending.c",
        r"^    store32_relaxed\(&shmq_pending_copy\(p, d->entry\)->deliveries, d->deliveries\);",
        "",
        "test_pending",
        "deliveries_are_counted_when_they_are_made",
    ),
    bug(
        "the_hint_is_not_put_back", "pending.c", r"^        lower\(p, least\);", "", "test_pending", "a_delay"
    ),
    bug(
        "only_what_waits_is_settled",
        "pending.c",
        r"bool comes_back = state == SHMQ_PENDING_WAITING \|\| state == SHMQ_PENDING_UNACKED;",
        "bool comes_back = state == SHMQ_PENDING_WAITING;",
        "test_pending",
        "a_repair_pass_settles_the_hint",
    ),
    bug(
        "nobody_settles_the_hint",
        "recover.c",
        r"^    if \(pending->count > 0\) shmq_pending_settle\(pending\);",
        "",
        "test_lease",
        "a_hint_that_somebody_died_with_is_found_again",
    ),
    bug(
        "any_that_is_due_is_the_oldest",
        "pending.c",
        r"\(oldest == UINT32_MAX \|\| comes_before\(at, position\)\)",
        "oldest == UINT32_MAX",
        "test_pending",
        "the_oldest_that_is_due_comes_first",
    ),
    bug(
        "half_filled_entries_of_the_dead",
        "pending.c",
        r"state == SHMQ_PENDING_FILLING && is_dead",
        "false && is_dead",
        "test_lease",
        "death_at_each_step_of_a_lease",
    ),
    bug(
        "an_entry_names_its_block_too_early",
        "pending.c",
        r"return state >= SHMQ_PENDING_UNACKED && named == handle;",
        "return named == handle;",
        "test_keep",
        "views_dropped_then_acknowledged",
    ),
    # leases: the blocks
    bug(
        "no_look_behind_the_last_view",
        "keep.c",
        r"^    if \(shmq_arena_return\((.*)\)\) /\* K1 \*/\n.*;",
        r"    (void)shmq_arena_return(\1), (void)pending, (void)who;",
        "test_keep",
        "acknowledged_then_views_dropped",
    ),
    bug("deadline_forgotten", "shmq.c", r"shmq_now_ns\(\) >= deadline_ns;", "false;", "test_lease"),
    bug("over_by_hint_alone", "lease.c", r"status == SHMQ_EMPTY && shmq_is_over\(q\)", "0", "test_lease"),
    bug(
        "no_look_behind_the_ack",
        "lease.c",
        r"^    if \(handle != SHMQ_NO_HANDLE\) shmq_keep_acked\(.*$",
        "",
        "test_lease",
        "every_size_is_leased_in_order_and_acknowledged",
    ),
    bug(
        "no_look_behind_the_copy",
        "keep.c",
        r"^        if \(status == SHMQ_OK\) shmq_keep_acked\(arena, pending, handle\);.*$",
        "",
        "points_lease",
        "company_during_a_copy",
    ),
    bug(
        "a_look_before_the_last_view_is_dropped",
        "keep.c",
        r"^    if \(shmq_arena_return\((.*)\)\) /\* K1 \*/\n( +)free_if_spent\((.*)\);",
        r"    bool spent = !shmq_pending_names(pending, shmq_word_argument(word) - 1,\n"
        r"        shmq_handle(page, shmq_word_generation(word)));\n"
        r"    if (shmq_arena_return(\1) && spent) free_if_spent(\3);",
        "points_lease",
        "company_while_a_view_is_dropped",
    ),
    bug(
        "shared_without_a_copy",
        "keep.c",
        r"^        if \(shmq_word_state\(\*word\) != SHMQ_PAGE_LEASED\) return SHMQ_CORRUPT;",
        r"\g<0>\n        if (shmq_arena_take_back(arena, *page, word)) return SHMQ_OK;",
        "test_lease",
        "a_view_outlives_what_it_was_a_view_of",
    ),
    bug(
        "what_is_named_is_freed_with_the_dead",
        "keep.c",
        r"^            return_block\(arena, pending, page, word, dead\);.*$",
        "            (void)0;",
        "test_lease",
        "death_at_each_step_of_a_lease",
    ),
    bug(
        "what_the_dead_should_have_seen",
        "keep.c",
        r"^        if \(state == SHMQ_PAGE_RETURNED\)\n.*$",
        "",
        "test_keep",
        "whoever_should_have_seen_it_is_dead",
    ),
    bug(
        "a_copy_longer_than_its_block",
        "keep.c",
        r"^    if \(!shmq_arena_holds\(arena, old, old_word, bytes\)\) return SHMQ_CORRUPT;",
        "    (void)old_word;",
        "test_keep",
        "what_cannot_be_so_is_corrupt",
    ),
    # leases: the steps
    bug(
        "a_spent_slot_is_a_message_again",
        "recover.c",
        r"^        if \(shmq_pending_has\(pending, record\.position\)\) .*\n        else ",
        "        ",
        "test_lease",
        "death_at_each_step_of_a_lease",
    ),
    bug(
        "a_spent_slot_by_its_first_owner_only",
        "pending.c",
        r"shmq_slot_state\(w\) >= SHMQ_PENDING_UNACKED && load_relaxed\(&p->entries\[i\]\.position\)",
        "shmq_slot_state(w) == SHMQ_PENDING_UNACKED && load_relaxed(&p->entries[i].position)",
        "test_lease",
        "a_slot_whose_message_was_overdue_is_spent",
    ),
    bug(
        "a_closed_handle_keeps_its_messages",
        "handle.c",
        r"^        if \(q->pending\.count > 0\) shmq_pending_return_all\(.*$",
        "",
        "test_lease",
        "a_closed_handle_gives_everything_back",
    ),
    bug(
        "delivered_to_a_closed_handle",
        "lease.c",
        r"if \(SHMQ_LIKELY\(load32_seq_cst\(&q->open\) != 0\)\) return SHMQ_OK;",
        "return SHMQ_OK;",
        "test_lease",
        "a_lease_that_ends_behind_the_close_is_given_back",
    ),
    bug(
        "anyone_settles",
        "lease.c",
        r"shmq_slot_owner\(d->word\) == q->pending\.owner",
        "true",
        "test_lease",
        "a_delivery_is_settled_by_who_got_it",
    ),
    bug(
        "no_room_for_a_copy_stops_all",
        "lease.c",
        r"if \(status != SHMQ_ARENA_FULL\) return status;",
        "return status;",
        "test_lease",
        "who_finds_no_room_for_a_copy_lets_others_pass",
    ),
    bug(
        "a_drain_with_a_full_table_spins",
        "shmq.c",
        r"return \(shmq_ring_unread\(&q->ring, need->cursor\) && shmq_pending_vacant\(&q->pending\)\) \|\|",
        "return shmq_ring_unread(&q->ring, need->cursor) ||",
        "test_lease",
        "a_full_table_in_a_drain",
    ),
    bug(
        "drained_but_for_the_table",
        "lease.c",
        r"^    if \(status == SHMQ_SHUT_DOWN && !shmq_is_over\(q\)\) return SHMQ_EMPTY;.*$",
        "",
        "test_lease",
        "a_drain_is_over_when_nobody_else_holds_a_message",
    ),
    bug(
        "drained_but_for_the_slots",
        "message.c",
        r" && shmq_ring_untouched\(&q->ring\) &&",
        " &&",
        "test_lease",
        "a_drain_waits_for_what_others_are_about_to_hold",
    ),
    bug(
        "an_ack_wakes_nobody",
        "lease.c",
        r"^    if \(handle != SHMQ_NO_HANDLE\) shmq_keep_acked\((.*)\n    tell\(q\);",
        r"    if (handle != SHMQ_NO_HANDLE) shmq_keep_acked(\1",
        "wakes",
        "an_ack_wakes_who_waits_for_room_in_the_table",
    ),
    bug(
        "what_is_given_back_wakes_nobody",
        "lease.c",
        r"^    if \(status == SHMQ_OK\) tell\(q\);",
        "",
        "wakes",
        "what_is_given_back_wakes",
    ),
    bug(
        "a_wait_does_not_end_when_it_is_due",
        "shmq.c",
        r"until = \(int64_t\)need\.next_due;",
        "until = deadline_ns;",
        "wakes",
        "what_is_given_back_wakes",
    ),
    # topics
    bug(
        "old_block_of_another_slot",
        "share.c",
        r"position - \(t->slots\.mask \+ 1\)",
        "position",
        "test_topic",
    ),
    bug(
        "old_block_is_left",
        "topic.c",
        r"spent && state == SHMQ_SLOT_READY && has_block",
        "false && has_block",
        "test_topic",
    ),
    bug(
        "nobody_counts_the_newcomer",
        "topic.c",
        r"^    \(void\)add_seq_cst\(&t->roles->joins, 1\);.*$",
        "",
        "test_topic",
        "a_newcomer_gates_a_publisher_that_has_seen_nobody",
    ),
    bug(
        "the_word_is_not_looked_at_again",
        "topic.c",
        r"^        if \(load_relaxed\(&slot->word\) != word\) continue;",
        "",
        "points_topic",
        "a_ring_is_published_at_every_point_of_a_get",
    ),
    bug(
        "history_is_missed",
        "topic.c",
        r"\(int64_t\)\(s->cursor - s->joined\) > 0 \? s->cursor : s->joined",
        "s->cursor",
        "test_topic",
        "history_that_is_gone_is_not_missed",
    ),
    bug(
        "the_first_reader_ends_it",
        "share.c",
        r"^    bool spent = .*;",
        "    bool spent = true;",
        "test_topic",
    ),
    bug("no_reader_ends_it", "share.c", r"^    bool spent = .*;", "    bool spent = false;", "test_topic"),
    bug(
        "any_life_of_a_block",
        "arena.c",
        r"shmq_readers_generation\(seen\) != shmq_handle_generation\(handle\) \|\|",
        "",
        "test_topic",
        "a_late_hold_on_another_life_is_refused_or_let_go",
    ),
    bug(
        "a_hold_is_not_checked",
        "share.c",
        r"^        shmq_word_argument\(\*word\) == shmq_cursor_argument\(position\)\)",
        "        position > 0)",
        "test_topic",
        "a_late_lease_of_another_message_is_let_go",
    ),
    bug(
        "the_last_does_not_free",
        "arena.c",
        r"^    if \(shmq_word_state\(word\) != SHMQ_PAGE_INFLIGHT\) return;.*",
        "    return;",
        "test_topic",
    ),
    bug(
        "readers_live_for_ever",
        "share.c",
        r"^    shmq_arena_recover_readers\(a, dead\);",
        "",
        "test_topic",
        "a_dead_subscriber_holds_nothing",
    ),
    bug(
        "subscriptions_live_for_ever",
        "topic.c",
        r"^    shmq_topic_unsubscribe\(t, dead\);",
        "",
        "test_topic",
        "a_dead_subscriber_does_not_block_for_long",
    ),
    bug(
        "the_dead_keep_their_slots",
        "topic.c",
        r"^(        if \(shmq_slot_state\(word\) != SHMQ_SLOT_WRITING) \|\| .* continue;",
        r"\1 || dead < 999) continue;",
        "test_topic",
        "a_dead_publisher_leaves_no_hole",
    ),
    bug(
        "every_block_was_published",
        "share.c",
        r"^    return !shmq_arena_is_shared\(s->arena, handle\);",
        "    return true;",
        "test_topic",
        "a_block_that_its_publisher_did_not_publish",
    ),
    bug(
        "blocks_of_the_dead_are_free",
        "share.c",
        r"^    if \(!shmq_arena_is_shared\(s->arena, handle\)\) return true;",
        "    return false;",
        "test_topic",
        "a_block_outlives_its_publisher",
    ),
    bug(
        "one_dead_publisher_is_all",
        "recover.c",
        r"^            return true;",
        "            (void)0;",
        "test_topic",
        "the_last_publisher_is_missed",
    ),
    bug(
        "a_successor_is_not_seen",
        "handle.c",
        r"^        store_release\(&q->control->roles\.lost_producer, 0\);",
        "",
        "test_topic",
        "the_last_publisher_is_missed",
    ),
    bug(
        "history_is_kept_for_ever",
        "share.c",
        r"^    if \(\(int64_t\)\(shmq_topic_needed_from\(t, true\) - old\) > 0\) .*$",
        "",
        "test_topic",
        "history_is_replayed",
    ),
    bug(
        "told_for_ever",
        "recover.c",
        r"^    \(void\)cas_acq_rel\(&roles->lost_producer, &told, 0\);",
        "    (void)told;",
        "test_topic",
        "a_reaper_that_died_while_it_told_so_is_corrected",
    ),
    bug(
        "drained_by_the_tail",
        "topic.c",
        r"^    return ahead < 0 \|\| \(ahead == 0 && shmq_slot_state\(word\) == SHMQ_SLOT_FREE\);",
        "    return ahead <= 0 && cursor == load_acquire(&t->slots.tail->cursor);",
        "test_topic",
        "a_message_that_was_begun_before_the_shutdown_still_comes",
    ),
    bug(
        "only_blocks_in_flight_are_let_go",
        "arena.c",
        r"^            if \(\(readers & its\) == 0 \|\| .*$",
        "            if (its != 0) break;",
        "test_topic",
        "a_dead_hold_on_a_block_that_is_not_in_flight_yet",
    ),
    bug(
        "the_head_runs_ahead",
        "topic.c",
        r"^        if \(shmq_topic_names\(t, at, &handle\)\) return true;\n( +shmq_move_on\(hint, at\);)",
        r"\1\n        if (shmq_topic_names(t, at, &handle)) return true;",
        "test_topic",
        "a_death_on_the_way_to_give_up_a_block_leaves_it_in_sight",
    ),
    bug(
        "history_is_no_room",
        "share.c",
        r"return next_kept\(t, a, end_of_spent\(t\), &at\) \|\|",
        "return",
        "test_topic",
        "who_waits_for_memory_wakes_when_only_history_holds_it",
    ),
    bug(
        "anyone_holds_up_the_arena",
        "share.c",
        r" && next_kept\(t, a, \*tail, &at\);",
        " && (at = 1) != 0;",
        "test_topic",
        "only_who_holds_up_the_arena_is_evicted",
    ),
    bug(
        "who_only_tries_does_not_look",
        "shmq.c",
        r"return shmq_look_around\(q\) \? SHMQ_OK : tried;",
        "return tried;",
        "test_topic",
        "a_dead_subscriber_does_not_block_who_only_tries",
    ),
    bug(
        "the_way_is_not_cleared_by_who_leaves",
        "handle.c",
        r"^            shmq_topic_unsubscribe\(&q->ring\.topic, q->me\.index\);",
        "",
        "test_topic",
        "block_waits_for_the_slowest",
    ),
    # lanes
    bug(
        "positions_without_their_lane",
        "mpmc.c",
        r"record->position = at << 3 \| ring->lane;",
        "record->position = at << 3;",
        "test_urgent",
        "a_block_that_was_never_published_is_freed_whatever_lies_in_the_other_lane",
    ),
    bug(
        "peeked_without_their_lane",
        "mpmc.c",
        r"record->position = position << 3 \| ring->lane;",
        "record->position = position << 3;",
        "test_urgent",
        "an_entry_of_one_lane_is_not_taken_for_the_others",
    ),
    bug(
        "hands_without_their_lane",
        "mpmc.c",
        r"position_of\(ring, i, word, head\) << 3 \| ring->lane",
        "position_of(ring, i, word, head) << 3",
        "test_urgent",
        "who_is_at_work_is_seen_in_either_lane",
    ),
    bug(
        "entries_of_either_lane",
        "pending.c",
        r"load_relaxed\(&p->entries\[i\]\.position\) == position\)",
        "load_relaxed(&p->entries[i].position) >> 3 == position >> 3)",
        "test_urgent",
        "an_entry_of_one_lane_is_not_taken_for_the_others",
    ),
    bug(
        "again_by_age_alone",
        "pending.c",
        r"^    return \(\(a \^ b\) & SHMQ_POSITION_URGENT\) != 0.*$",
        "    return (int64_t)(a - b) < 0;",
        "test_urgent",
        "of_what_comes_again_urgent_ones_come_first",
    ),
    bug(
        "only_the_bulk_lane_is_repaired",
        "recover.c",
        r"i < ring->lanes; i\+\+\) recover_slots",
        "i < 1; i++) recover_slots",
        "test_urgent",
        "what_the_dead_were_at_in_both_lanes",
    ),
    bug(
        "only_the_bulk_lane_is_settled",
        "recover.c",
        r"i < ring->lanes && !ring->is_topic; i\+\+\) shmq_mpmc_settle",
        "i < 1 && ring->lanes > 0 && !ring->is_topic; i++) shmq_mpmc_settle",
        "test_urgent",
        "no_message_is_left_behind_the_head_of_either_lane",
    ),
    bug(
        "pages_judged_by_the_bulk_lane",
        "lanes.c",
        r"shmq_lanes_slots\(ring, argument & 1\)",
        "shmq_lanes_slots(ring, 0)",
        "test_urgent",
        "a_block_that_was_published_stays_in_either_lane",
    ),
    bug(
        "no_turns",
        "lanes.c",
        r"= consumer->in_a_row < SHMQ_URGENT_RUN;",
        "= 1;",
        "test_urgent",
        "sixteen_urgent_ones_in_a_row_then_one_of_the_others",
    ),
    bug(
        "a_run_of_17",
        "lanes.c",
        r"= consumer->in_a_row < SHMQ_URGENT_RUN;",
        "= consumer->in_a_row <= SHMQ_URGENT_RUN;",
        "test_urgent",
        "sixteen_urgent_ones_in_a_row_then_one_of_the_others",
    ),
    bug(
        "a_turn_that_has_no_end",
        "lanes.c",
        r"consumer->in_a_row \+ 1 : 0;",
        "consumer->in_a_row + 1 : consumer->in_a_row;",
        "test_urgent",
        "a_turn_that_finds_no_bulk_is_kept",
    ),
    bug(
        "a_turn_that_is_lost",
        "lanes.c",
        r"consumer->in_a_row \+ 1 : 0;",
        "(consumer->in_a_row + 1) % (SHMQ_URGENT_RUN + 1) : 0;",
        "test_urgent",
        "a_turn_that_finds_no_bulk_is_kept",
    ),
    bug(
        "what_is_put_back_counts",
        "lanes.c",
        r"if \(status == SHMQ_OK\) consumer->urgent = urgent;",
        "if (status == SHMQ_OK) consumer->in_a_row += consumer->urgent = urgent;",
        "test_urgent",
        "what_is_put_back_is_next_again_and_counts_for_nothing",
    ),
    bug(
        "released_in_the_wrong_lane",
        "lanes.c",
        r"shmq_mpmc_release\(shmq_lanes_slots\(ring, consumer->urgent\)",
        "shmq_mpmc_release(shmq_lanes_slots(ring, !consumer->urgent)",
        "test_urgent",
        "urgent_messages_come_first_and_each_lane_keeps_its_order",
    ),
    bug(
        "put_back_in_the_wrong_lane",
        "lanes.c",
        r"shmq_mpmc_unpeek\(shmq_lanes_slots\(ring, consumer->urgent\)",
        "shmq_mpmc_unpeek(shmq_lanes_slots(ring, !consumer->urgent)",
        "points_urgent",
        "company_during_a_put_back",
    ),
    bug(
        "the_lane_of_the_handle_not_the_loan",
        "message.c",
        r"^    side->urgent = b->urgent;\n",
        "",
        "test_urgent",
        "a_loan_goes_into_the_lane_that_it_was_lent_for",
    ),
    bug(
        "a_loan_takes_the_handle_with_it",
        "message.c",
        r"^    side->urgent = before;\n",
        "    (void)before;\n",
        "test_urgent",
        "a_loan_goes_into_the_lane_that_it_was_lent_for",
    ),
    bug(
        "waits_for_the_bulk_lane_only",
        "ring.c",
        r"return shmq_mpmc_unread\(&ring->mpmc\) \|\| .*;",
        "return shmq_mpmc_unread(&ring->mpmc);",
        "points_urgent",
        "a_put_at_every_point_of_a_blocked_get",
    ),
    bug(
        "room_in_the_bulk_lane_only",
        "ring.c",
        r"shmq_mpmc_room\(shmq_lanes_slots\(ring, wish != 0\)\)",
        "shmq_mpmc_room(&ring->mpmc)",
        "test_urgent",
        "a_wait_for_room_is_one_for_its_lane",
    ),
    bug(
        "drained_but_for_the_urgent",
        "ring.c",
        r"return shmq_mpmc_drained\(&ring->mpmc\) && .*;",
        "return shmq_mpmc_drained(&ring->mpmc);",
        "test_urgent",
        "both_lanes_are_drained_before_the_end",
    ),
    bug(
        "over_but_for_the_urgent",
        "ring.c",
        r"return shmq_mpmc_untouched\(&ring->mpmc\) && .*;",
        "return shmq_mpmc_untouched(&ring->mpmc);",
        "test_urgent",
        "a_join_waits_for_either_lane",
    ),
    bug(
        "hands_in_the_bulk_lane_only",
        "ring.c",
        r"i < ring->lanes; i\+\+\) shmq_mpmc_in_hands",
        "i < 1; i++) shmq_mpmc_in_hands",
        "test_urgent",
        "who_is_at_work_is_seen_in_either_lane",
    ),
    bug(
        "valid_but_for_the_urgent",
        "ring.c",
        r"return status == SHMQ_OK && ring->lanes == 2 \? shmq_mpmc_valid\(&ring->urgent\) : status;",
        "return status;",
        "test_urgent",
        "a_word_that_cannot_be_is_found_in_either_lane",
    ),
    bug(
        "any_urgent_lane_will_do",
        "segment.c",
        r" \|\| g->urgent_slots != urgent_slots\(g\)",
        "",
        "test_urgent",
        "a_geometry_with_another_lane_is_refused",
    ),
    bug(
        "a_lane_of_any_ring",
        "segment.c",
        r"if \(p->priority != 0\) return false;",
        "",
        "test_urgent",
        "only_an_mpmc_queue_has_an_urgent_lane",
    ),
    # keys
    bug(
        "remembered_before_it_is_published",
        "message.c",
        r"if \(q->put\.key != 0\) shmq_keys_publishing\(&q->keys\);",
        "if (q->put.key != 0) { shmq_keys_publishing(&q->keys); shmq_keys_published(&q->keys); }",
        "points_keys",
        "death_of_a_producer_with_a_key",
    ),
    bug(
        "a_turn_s_end_does_not_wake",
        "message.c",
        r"^        \(void\)shmq_wake\(q, &q->control->not_full\); /\* whoever waits for its turn \*/",
        "",
        "points_keys",
        "a_turn_ended_at_every_point_of_a_wait_for_it",
    ),
    bug(
        "a_turn_given_up_does_not_wake",
        "message.c",
        r"^(    shmq_keys_give_up\(&q->keys\);\n).*\n",
        r"\1",
        "points_keys",
        "a_turn_given_up_at_every_point_of_a_wait_for_it",
    ),
    bug(
        "a_failed_put_keeps_its_turn",
        "message.c",
        r"^    shmq_keys_give_up\(&q->keys\);\n",
        "",
        "test_keys",
        "a_put_that_finds_no_room_may_come_again",
    ),
    bug(
        "slots_are_repaired_before_keys",
        "recover.c",
        r"^    shmq_keys_bind\(&keys, s\);",
        r"\g<0> shmq_mpmc_recover(ring, dead);",
        "points_keys",
        "death_of_a_producer_with_a_key",
    ),
    bug(
        "keys_of_the_dead_are_left",
        "recover.c",
        r"^            recover_keys\(s, ring, i\);\n",
        "",
        "test_keys",
        "a_death_in_a_turn",
    ),
    bug(
        "a_turn_without_a_look",
        "keys.c",
        r"^    if \(shmq_keys_known\(k, hash\)\) \{",
        "    if (false) {",
        "points_keys",
        "company_with_the_same_key_and_a_block",
    ),
    bug(
        "the_dead_keep_their_turn",
        "keys.c",
        r"^    \(void\)cas_acq_rel\(&k->line->word, &word, turn_of\(SHMQ_KEYS_FREE, 0\)\);",
        "    (void)word;",
        "test_keys",
        "a_death_in_a_turn",
    ),
    bug(
        "what_the_dead_published_is_forgotten",
        "keys.c",
        r"if \(begun && .*\) remember\(k\);",
        "(void)begun;",
        "points_keys",
        "death_of_a_producer_with_a_key",
    ),
    bug(
        "whatever_the_dead_held_was_published",
        "keys.c",
        r"^    bool begun = .*;",
        "    bool begun = published;",
        "points_keys",
        "death_of_a_producer_with_a_key",
    ),
    bug(
        "the_dead_s_slot_is_not_looked_at",
        "keys.c",
        r" == SHMQ_KEYS_PUBLISHING && published;",
        " == SHMQ_KEYS_PUBLISHING; (void)published;",
        "points_keys",
        "death_of_a_producer_with_a_key",
    ),
    bug(
        "remembered_twice",
        "keys.c",
        r"begun && load_relaxed\(&k->line->count\) != load_relaxed\(&k->line->number\)",
        "begun && (store_relaxed(&k->line->number, load_relaxed(&k->line->count) + 1), true)",
        "test_keys",
        "a_death_behind_publishing_is_made_good_for",
    ),
    bug(
        "a_chain_that_bites_its_tail",
        "keys.c",
        r"if \(load_relaxed\(chain\) != number\)$",
        "if (true)",
        "test_keys",
        "a_death_behind_publishing_is_made_good_for",
    ),
    bug(
        "counted_before_it_is_there",
        "keys.c",
        r"^    release_fence\(\);",
        r"    store_release(&k->line->count, number);\n\g<0>",
        "points_keys",
        "death_of_a_producer_with_a_key",
    ),
    bug(
        "one_key_too_few", "keys.c", r"last - number < k->count", "last - number + 1 < k->count", "test_keys"
    ),
    bug(
        "a_place_in_the_window_is_spent_by_a_death",
        "keys.c",
        r"^    bool begun = .*;",
        r"\g<0>\n    if (!begun) (void)add_relaxed(&k->line->count, 1);",
        "rivals",
        "rivals_whose_lives_end",
    ),
    bug("a_chain_without_an_end", "keys.c", r"n < k->count && ", "", "test_keys", "garbage_ends"),
    bug(
        "copied_before_a_look",
        "shmq.c",
        r"^    if \(shmq_key_known\(q, key\)\) return SHMQ_REPEAT;",
        "",
        "test_keys",
        "a_put_that_finds_no_room_may_come_again",
    ),
    bug(
        "a_turn_is_waited_for_in_vain",
        "shmq.c",
        r"return shmq_keys_vacant\(&q->keys\);",
        "return false;",
        "points_keys",
        "a_turn_ended_at_every_point_of_a_wait_for_it",
    ),
    bug(
        "keys_of_any_kind",
        "segment.c",
        r"\(g->keys != 0 && kind != SHMQ_KIND_MPMC\)",
        "false",
        "test_keys",
        "where_there_is_no_window",
    ),
]


def test_every_bug_fits_the_core_as_it_is() -> None:
    assert not outdated(seeded.edit for seeded in BUGS)


CHOSEN = sampled(BUGS, lambda seeded: seeded.edit.file)


def test_the_sample_has_a_bug_of_each_file() -> None:
    assert {seeded.edit.file for seeded in CHOSEN} == {seeded.edit.file for seeded in BUGS}


@pytest.mark.parametrize("seeded", CHOSEN, ids=lambda seeded: seeded.name)
def test_a_seeded_bug_is_noticed(workshop: Workshop, seeded: Bug) -> None:
    program = workshop.mutant(seeded.program, seeded.variant(), seeded.name, seeded.edit)
    done = start(program, *seeded.arguments(), watchdog_s=MUTANT_WATCHDOG_S)
    assert done.returncode != 0, f"{seeded.program} passes with it\n{done.stdout}"
    shutil.rmtree(program.parent)
