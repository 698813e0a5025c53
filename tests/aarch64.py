"""Runs the C tests as aarch64 programs: cross-compiled, and emulated by qemu.

    python tests/aarch64.py            # everything in two builds, about 4 minutes
    python tests/aarch64.py --quick    # the orders, and a few unit tests of one build: about 10 s

The emulator keeps most of the order of the machine that it runs on, so a missing order would seldom show.
Therefore the generated code is read, too: what a publishing store, a claim, a second look became.
Exit status 0: all passed; 2: a tool is missing.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from c_build import CSRC, Edit, Workshop, list_tests
from sanitize import UNIT

COMPILER = shutil.which("aarch64-linux-gnu-gcc")
OBJDUMP = shutil.which("aarch64-linux-gnu-objdump")
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
MISSING = (
    "no aarch64 cross compiler or no qemu; on Debian or Ubuntu: "
    "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
)
QUICK = ["test_spsc", "test_arena", "test_recover", "test_wait", "test_keep"]
KILLS = 30
MUTATIONS = 3000
WATCHDOG_S = "180"

LL_SC = ("-march=armv8-a", "-mno-outline-atomics")
LSE = ("-march=armv8.1-a+lse",)
"""Loops of load and store exclusive, as on the first processors; or one instruction for an atomic change."""

NOT_EMULATED = {
    "a_forked_child_does_not_keep_its_parent_alive": "qemu ignores MADV_DONTFORK",
    "a_fork_beside_an_attach_or_a_reap_keeps_nothing_locked": "qemu ignores MADV_DONTFORK",
}

ORDERS = {
    ("mpmc.c", "shmq_mpmc_commit"): "stlr",
    ("mpmc.c", "shmq_mpmc_release"): "stlr",
    ("mpmc.c", "shmq_mpmc_unpeek"): "stlr ldar",
    ("mpmc.c", "shmq_mpmc_published"): "ldar ldar",
    ("mpmc.c", "shmq_mpmc_try_reserve"): "ldar ldar ldaxr stlxr",
    ("mpmc.c", "shmq_mpmc_try_peek"): "ldar ldar ldaxr stlxr",
    ("topic.c", "shmq_topic_commit"): "dmb stlr",
    ("topic.c", "shmq_topic_release"): "stlr",
    ("topic.c", "shmq_topic_subscribe"): "stlr ldaxr stlxr ldar stlr",
    ("topic.c", "shmq_topic_try_reserve"): "ldar ldar ldar ldaxr stlxr",
    ("topic.c", "shmq_topic_try_peek"): "ldar ldar dmb",
    ("topic.c", "shmq_topic_names"): "ldar dmb",
    ("share.c", "shmq_share_release"): "dmb",
    ("spsc.c", "shmq_spsc_commit"): "stlr stlr stlr",
    ("spsc.c", "shmq_spsc_release"): "stlr stlr stlr",
    ("spsc.c", "shmq_spsc_look"): "ldar ldar dmb ldar",
    ("arena.c", "shmq_arena_send"): "ldaxr stlxr",
    ("arena.c", "shmq_arena_lease"): "ldar ldaxr stlxr",
    ("arena.c", "shmq_arena_free"): "ldaxr stlxr",
    ("arena.c", "shmq_arena_return"): "ldaxr stlxr",
    ("arena.c", "shmq_arena_look"): "ldar",
    ("pending.c", "shmq_pending_fill"): "stlr ldar",
    ("pending.c", "shmq_pending_deliver"): "stlr ldar",
    ("pending.c", "shmq_pending_try_take"): "ldaxr stlxr ldar ldaxr stlxr ldar",
    ("pending.c", "shmq_pending_rename"): "stlr",
    ("pending.c", "shmq_pending_names"): "ldar ldar ldar",
    ("pending.c", "shmq_pending_settle"): "ldar ldar",
    ("keys.c", "shmq_keys_try_begin"): "ldaxr stlxr",
    ("keys.c", "shmq_keys_publishing"): "stlr",
    ("keys.c", "remember"): "dmb stlr stlr",
    ("keys.c", "shmq_keys_published"): "stlr",
    ("keys.c", "shmq_keys_give_up"): "stlr",
    ("keys.c", "shmq_keys_recover"): "ldar ldaxr stlxr",
    ("wait.c", "shmq_eventcount_wait"): "ldar dmb",
    ("wait.c", "shmq_eventcount_wake_slow"): "ldaxr stlxr",
}
"""Source and function -> what its code must have in this order, among other instructions.  All of it acquires
or releases (ld-a-r, st-l-r, x: exclusive), or is a fence (dmb)."""
CHANGES = ("mpmc.c", "topic.c", "arena.c", "pending.c", "keys.c")
"""Here every atomic change acquires and releases."""
HALF_ORDERED = ("ldxr", "stxr")

BUGS = [
    Edit(
        "mpmc.c",
        r"store_release(\(&shmq_slot_at\(ring, producer->position\)->word, /\* P1)",
        r"store_relaxed\1",
    ),
    Edit("mpmc.c", r"load_acquire(\(&slot->handle\))", r"load_relaxed\1"),
    Edit("mpmc.c", r"store_seq_cst(\(&shmq_slot_at)", r"store_relaxed\1"),
    Edit("pending.c", r"load_seq_cst(\(p->next_due\))", r"load_relaxed\1"),
    Edit("pending.c", r"load_seq_cst(\(&e->handle\))", r"load_relaxed\1"),
    Edit("keys.c", r"^    release_fence\(\);.*", ""),
    Edit("keys.c", r"store_release(\(&k->line->word, turn_of\(SHMQ_KEYS_PUBLISHING)", r"store_relaxed\1"),
    Edit("topic.c", r"^    release_fence\(\);.*", ""),
    Edit("topic.c", r"^        acquire_fence\(\); /\*.*", ""),
    Edit("share.c", r"^    full_fence\(\);", ""),
    Edit("spsc.c", r"store_release(\(&line->cursor, side->cursor\))", r"store_relaxed\1"),
    Edit("spsc.c", r"^    if \(status == SHMQ_CORRUPT\) full_fence\(\);", ""),
    Edit(
        "arena.c",
        r"return cas_acq_rel\(&a->words\[page\], &word, freed\)",
        "return atomic_compare_exchange_strong_explicit(&a->words[page], &word, freed, 0, 0)",
    ),
]
"""Each takes an order away, and ``complaints`` has to see it."""


def functions(code: str) -> dict[str, list[str]]:
    """Name -> its instructions, from objdump's listing."""
    found: dict[str, list[str]] = {}
    for line in code.splitlines():
        if head := re.fullmatch(r"[0-9a-f]+ <(\w+)(?:\.[\w.]+)?>:", line):
            current = found.setdefault(head[1], [])
        elif instruction := re.match(r"\s+[0-9a-f]+:\s+([a-z]+)", line):
            current.append(instruction[1])
    return found


def in_order(wanted: str, instructions: list[str]) -> bool:
    rest = iter(instructions)
    return all(word in rest for word in wanted.split())


def complaints(csrc: Path, sources: Iterable[str]) -> Iterator[str]:
    """What is missing in the code that is generated for these."""
    assert COMPILER is not None
    assert OBJDUMP is not None
    for source in sources:
        with tempfile.NamedTemporaryFile(suffix=".o") as target:
            compile_it = [COMPILER, "-std=c11", "-O2", *LL_SC, "-c", str(csrc / source), "-o", target.name]
            subprocess.run(compile_it, check=True)
            listing = subprocess.run(
                [OBJDUMP, "-d", "--no-show-raw-insn", target.name], capture_output=True, text=True, check=True
            )
        code = functions(listing.stdout)
        for (home, function), wanted in ORDERS.items():
            if home == source and not in_order(wanted, code.get(function, [])):
                yield f"{source}: {function} has no {wanted}"
        for function, instructions in code.items():
            if source in CHANGES and any(word in instructions for word in HALF_ORDERED):
                yield f"{source}: {function} has a change that does not both acquire and release"


def check_orders(room: Path) -> int:
    failures = list(complaints(CSRC, sorted({source for source, _ in ORDERS})))
    for i, bug in enumerate(BUGS):
        mutant = room / f"mutant-{i}"
        shutil.copytree(CSRC, mutant)
        bug.apply(mutant)
        if not list(complaints(mutant, [bug.file])):
            failures.append(f"the code of {bug} looks as ordered as before")
    print(*failures, sep="\n", end="\n" if failures else "")
    print(f"orders: {len(ORDERS)} functions, {len(BUGS)} seeded bugs: {len(failures)} complaints", flush=True)
    return len(failures)


def run(program: Path, *arguments: str, kind: str = "spsc") -> int:
    """1 where it fails."""
    assert QEMU is not None
    environment = {**os.environ, "WATCHDOG_S": WATCHDOG_S, "LAB_KIND": kind}
    command = [QEMU, str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        print(f"{' '.join(command)}, {kind}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return int(done.returncode != 0)


def run_tests(workshop: Workshop, programs: list[str], variant: str) -> int:
    failures = 0
    for program in programs:
        tests = list_tests(program)
        names = [name for name in tests if name not in NOT_EMULATED]
        failures += run(workshop.program(program, variant), *names)
        for name in set(tests) - set(names):
            print(f"{program}: left out {name}: {NOT_EMULATED[name]}")
    print(f"{', '.join(programs)} ({variant}): {failures} failed", flush=True)
    return failures


def run_streams(workshop: Workshop) -> int:
    failures = 0
    for kind in ("spsc", "mpmc"):
        for whom in ("producer", "consumer", "both"):
            failures += run(workshop.program("kills", "plain"), whom, str(KILLS), "1", kind=kind)
        failures += run(workshop.program("damage", "plain"), str(MUTATIONS), "1", kind=kind)
    print(f"kills, damage (plain): {failures} failed", flush=True)
    return failures


def run_all(room: Path) -> int:
    failures = check_orders(room)
    for name, machine in (("ll-sc", LL_SC), ("lse", LSE)):
        print(f"build {name}: {' '.join(machine)}", flush=True)
        (room / name).mkdir()
        workshop = Workshop(room / name, cc=COMPILER, machine=(*machine, "-static"))
        failures += run_tests(workshop, UNIT, "plain")
        failures += run_tests(workshop, ["points", "points_lease", "points_keys"], "points")
        failures += run_tests(workshop, ["wakes"], "long_slices")
        failures += run_tests(workshop, ["wakes"], "no_barrier")
        failures += run_tests(workshop, ["big_pages"], "big_pages")
        failures += run_streams(workshop)
    return failures


def run_quick(room: Path) -> int:
    workshop = Workshop(room, cc=COMPILER, machine=(*LL_SC, "-static"))
    return check_orders(room) + run_tests(workshop, QUICK, "plain")


def tools() -> bool:
    return None not in (COMPILER, OBJDUMP, QEMU)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a sample, about 10 s")
    quick: bool = parser.parse_args().quick
    if not tools():
        print(f"aarch64.py: {MISSING}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="shmq-aarch64-") as room:
        failures = (run_quick if quick else run_all)(Path(room))
    print("all passed" if failures == 0 else f"{failures} FAILED")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
