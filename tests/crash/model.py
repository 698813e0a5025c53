"""Searches the models of the MPMC ring (``mpmc.pml``), of the topic (``topic.pml``) and of delivery at least
once (``pending.pml``), with their blocks and their repair, exhaustively with Spin.

    python tests/crash/model.py            # about 14 minutes on one core, at most 2 GiB
    python tests/crash/model.py --quick    # a subset, less than a minute

First the true model, in several configurations; then the model with each of the seeded bugs, which must be
found.  Exit status 0: every search of the true model came to its end without an error, and every bug was
found.  The seconds are those of the search; generating and compiling it takes a few more.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).resolve().parent
SEARCH = ["-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=8192"]
DEPTH = 100_000
PATIENCE_S = 1200
SMALL = 22  # a search with so small a hash table ends before the compiler has optimised it
# What pan prints when it has left out a part.
INCOMPLETE = re.compile(
    r"max search depth too small|out of memory|memory bound|hash table full|VECTORSZ|not completed", re.I
)


@dataclass(frozen=True)
class Case:
    """One search.  ``setting``: numbers, named by the letters of FIELDS."""

    what: str
    setting: str
    quick: bool = False
    macro: str = ""  # that changes the model
    table_bits: int = SMALL
    model: str = "mpmc.pml"

    def defines(self) -> list[str]:
        fields = (re.fullmatch(r"([A-Z])(\d+)", word) for word in self.setting.split())
        given = [f"-D{FIELDS[m[1]]}={m[2]}" for m in fields if m is not None]
        assert len(given) == len(self.setting.split()), self.setting
        return given + ([f"-D{self.macro}"] if self.macro else [])


FIELDS = {
    "P": "PRODUCERS",
    "C": "CONSUMERS",
    "U": "PUBLISHERS",
    "T": "SUBSCRIBERS",
    "R": "REAPERS",
    "M": "MESSAGES",
    "D": "DEATHS",
    "S": "STOPS",
    "B": "BLOCKS",
    "G": "GIVE_UPS",
    "I": "IDLE_PASSES",
    "H": "HISTORY",
    "N": "GENERATIONS",
    "O": "DROP_OLDEST",
    "E": "ENTRIES",
    "X": "TIMEOUTS",
    "L": "LEAVES",
}
"""M counts for each producer or publisher.  What is not given is R1 S0 B0, mpmc G1 I0, topic G0 H0 N4 O0,
pending B2 E1 X0 L0."""

RING = "P1 C2 M2 D2"
REAPERS = "P1 C2 R2 M2 D1"
BLOCKS = "P1 C1 M2 D2 B2"

TRUE_MODEL = [
    Case("slots: two consumers", RING, quick=True),
    Case("slots: two consumers, more messages", "P1 C2 M3 D2", table_bits=24),
    Case("slots: two producers", "P2 C1 M2 D2", table_bits=26),
    Case("slots: two of each, one death", "P2 C2 M2 D1 G0", table_bits=26),
    Case("slots: two of each, two deaths", "P2 C2 M1 D2", table_bits=26),
    Case("slots: three consumers", "P1 C3 M3 D1", table_bits=26),
    Case("slots: three laps", "P1 C2 M6 D1", table_bits=26),
    Case("slots: two reapers", "P1 C2 R2 M2 D2", table_bits=26),
    Case("slots: one stops", "P1 C2 M1 D1 S1 I1", quick=True),
    Case("slots: one stops, two deaths", "P1 C2 M2 D2 S1 I1", table_bits=26),
    Case("blocks: one of each", BLOCKS, quick=True),
    Case("blocks: three deaths", "P1 C1 M3 D3 B3", table_bits=26),
    Case("blocks: two consumers", "P1 C2 M2 D2 B2", table_bits=26),
    Case("blocks: two producers", "P2 C1 M1 D2 B2", table_bits=24),
    Case("blocks: two of each", "P2 C2 M1 D1 B2", table_bits=26),
    Case("blocks: two reapers", "P1 C1 R2 M2 D2 B2", table_bits=24),
    Case("blocks: one stops", "P1 C2 M2 D1 S1 I1 B2", table_bits=26),
    # The head comes back to it with the next repair pass: taking it at once only saves the wait.
    Case("slots: READY of an earlier lap is left alone", "P1 C2 M4 D1", macro="WITHOUT_EARLIER_LAP"),
    # The look at the slot decides alone, the bit only saves it: between the first two steps of a repair the
    # slot is still READING, which counts as published, and a block leaves INFLIGHT before its slot is freed.
    Case("blocks: no committed bit", "P1 C2 M2 D2 B2", macro="WITHOUT_COMMITTED", table_bits=26),
]

SEEDED_BUGS = [
    Case("a repair pass does not settle the head", RING, True, "BUG_NO_SETTLE"),
    Case("a pass settles only what it put back itself", RING, False, "BUG_SETTLE_OWN"),
    Case("no pass where nobody is dead, and one stops", "P1 C2 M2 D1 S1", False, ""),
    Case("no second look after moving the head over READING", RING, False, "BUG_NO_SECOND_LOOK"),
    Case("tail moved before the slot is claimed", RING, False, "BUG_TICKET"),
    Case("pages repaired before slots", BLOCKS, True, "BUG_PAGES_FIRST"),
    Case("INFLIGHT of the dead freed without a look at the slot", BLOCKS, False, "BUG_NO_SLOT_LOOK"),
    Case("no reaper lock, CAS", REAPERS, False, "BUG_NO_LOCK"),
    Case("no reaper lock, plain stores", REAPERS, False, "BUG_NO_LOCK_PLAIN"),
    Case("no second look at the peer under the reaper lock", REAPERS, False, "BUG_NO_LOOK_AFTER_LOCK"),
    Case("the peer is vacant before its repair", RING, False, "BUG_VACANT_FIRST"),
    Case("WRITING of the dead made READY", RING, False, "BUG_WRITING_TO_READY"),
    Case("the slot is freed before its block is leased", BLOCKS, False, "BUG_FREE_BEFORE_LEASE"),
    Case("a head behind by two laps is called corrupt", "P1 C2 M3 D0", False, "BUG_FAR_HEAD"),
    Case("a head behind by two laps jumps too far", "P1 C3 M3 D1", False, "BUG_LONG_JUMP", 26),
]


def topic(what: str, setting: str, quick: bool = False, macro: str = "", table_bits: int = SMALL) -> Case:
    return Case(what, setting, quick, macro, table_bits, "topic.pml")


TRUE_MODEL += [
    topic("topic: in-line, two subscribers", "U1 T2 M3 D0"),
    topic("topic: in-line, one death", "U1 T2 M3 D1", table_bits=26),
    topic("topic: in-line, a late subscriber and history", "U1 T1 M4 D1 H1", quick=True),
    topic("topic: in-line, one stops", "U1 T2 M2 D1 S1", table_bits=26),
    topic("topic: blocks, one subscriber, two deaths", "U1 T1 M2 D2 B2", table_bits=24),
    topic("topic: blocks, two subscribers", "U1 T2 M2 D0 B1", table_bits=24),
    topic("topic: blocks, two subscribers, one death", "U1 T2 M2 D1 B1", table_bits=26),
    topic("topic: blocks, history", "U1 T1 M3 D1 B2 H1"),
    topic("topic: blocks, generations come round", "U1 T1 M3 D1 B2 N2 G1", table_bits=24),
    topic("topic: blocks, drop_oldest", "U1 T1 M3 D1 B1 N2 G1 O1", quick=True),
    topic("topic: blocks, drop_oldest, two subscribers", "U1 T2 M2 D1 B1 N2 O1", table_bits=26),
    topic("topic: blocks, one stops", "U1 T1 M2 D1 S1 B2", table_bits=24),
    topic("topic: blocks, two publishers", "U2 T1 M1 D1 B2", table_bits=24),
]

SEEDED_BUGS += [
    topic("the ring's hold ends after the claim", "U2 T1 M2 D1 B3", True, "BUG_RING_AFTER_CLAIM"),
    topic("a hold without the look behind it", "U1 T2 M3 D0 B1 N1 O1", False, "BUG_NO_LOOK_BEHIND"),
    topic("a hold, and a look at the slot only", "U1 T2 M3 D0 B2 N2 G1", False, "BUG_LOOK_AT_SLOT"),
    topic("a join is counted before it is announced", "U1 T1 M4 D0 H1", False, "BUG_JOIN_FIRST"),
    topic("the tail is read before the join", "U1 T1 M4 D0", False, "BUG_TAIL_FIRST"),
    topic("the last holder frees without LEASED", "U1 T1 M2 D1 B1", False, "BUG_NO_LEASED"),
    topic("the reaper forgets the dead's holds", "U1 T2 M2 D1 B1", False, "BUG_FORGET_HOLDS"),
    topic("the head moves before the block is given up", "U1 T1 M2 D1 B1", True, "BUG_HEAD_FIRST"),
    topic("the reaper looks at blocks in flight only", "U1 T1 M3 D1 B1 N2 G1 O1", False, "BUG_ONLY_INFLIGHT"),
    topic("a repair looks once whether the ring holds it", "U2 T1 M2 D1 B3", False, "BUG_ONE_LOOK"),
    topic("WRITING of a dead publisher made READY", "U1 T2 M2 D1", False, "BUG_WRITING_TO_READY"),
]


def pending(what: str, setting: str, quick: bool = False, macro: str = "", table_bits: int = SMALL) -> Case:
    return Case(what, setting, quick, macro, table_bits, "pending.pml")


TRUE_MODEL += [
    pending("leases: given back", "M1 D0 G2", quick=True),
    pending("leases: two deaths", "M1 D2 G0", quick=True),
    pending("leases: one death, given back", "M1 D1 G1", table_bits=24),
    pending("leases: overdue, given back", "M1 D0 G1 X1"),
    pending("leases: overdue, one death", "M1 D1 G0 X1", table_bits=26),
    pending("leases: overdue, one that is left", "M1 D0 G0 X1 L1"),
]

SEEDED_BUGS += [
    pending("looked at by two, without a copy", "M1 D0 G1", True, "BUG_NO_COPY"),
    pending("a copy is named before it is kept", "M1 D1 G1", False, "BUG_NAME_FIRST"),
    pending("no look at the block behind the copy", "M1 D0 G1", False, "BUG_NO_LOOK_AT_OLD"),
    pending("no look behind the ack", "M1 D0 G0", False, "BUG_NO_LOOK_AFTER_ACK"),
    pending("no look behind the last view", "M1 D0 G0", False, "BUG_NO_LOOK_AFTER_DROP"),
    pending("the look before the view is dropped", "M1 D0 G0", True, "BUG_LOOK_FIRST"),
    pending("the slot is free before the entry is filled", "M1 D1 G0", False, "BUG_SLOT_FIRST"),
    pending("a spent slot is READY again", "M1 D1 G0", True, "BUG_NO_RETIRE"),
    pending("a spent slot only where its owner still has it", "M1 D1 G0 X1", False, "BUG_FIRST_OWNER", 24),
    pending("entries repaired before slots", "M1 D1 G0", True, "BUG_ENTRIES_FIRST"),
    pending("nobody sees what the dead should have seen", "M1 D1 G0", False, "BUG_UNSEEN"),
    pending("blocks of the dead freed though they are named", "M1 D1 G0", False, "BUG_NAMED_FREED"),
    pending("a repair pass does not settle the hint", "M1 D1 G1", True, "BUG_NO_SETTLE"),
    pending("the hint is not put back", "M2 E2 B3 D0 G2", False, "BUG_HINT_LOST", 24),
]


@dataclass(frozen=True)
class Outcome:
    """``complaint`` says why the search came to no end, or how it failed; "" if it did not."""

    states: int
    seconds: float
    errors: int
    complaint: str = ""


def search(case: Case, room: Path) -> Outcome:
    """Generates, compiles and runs the search in the empty directory ``room``."""
    for command in (
        ["spin", *case.defines(), "-a", str(MODELS / case.model)],
        ["cc", "-O0" if case.table_bits == SMALL else "-O2", "-w", *SEARCH, "-o", "pan", "pan.c"],
    ):
        made = subprocess.run(command, cwd=room, capture_output=True, text=True, timeout=PATIENCE_S)
        if made.returncode != 0:
            text = (made.stdout + made.stderr).strip().splitlines()
            return Outcome(0, 0.0, 0, f"{command[0]} failed: {text[0] if text else made.returncode}")
    try:
        ran = subprocess.run(
            ["./pan", "-n", f"-m{DEPTH}", f"-w{case.table_bits}"],
            cwd=room,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return Outcome(0, PATIENCE_S, 0, f"no end after {PATIENCE_S} s")
    return read(ran.stdout + ran.stderr, ran.returncode)


def read(text: str, status: int) -> Outcome:
    """What pan's report says."""
    errors = re.search(r"errors: (\d+)", text)
    states = re.search(r"([\d.e+]+) states, stored", text)
    elapsed = re.search(r"elapsed time ([\d.e+]+) seconds", text)
    if errors is None or states is None or elapsed is None:
        return Outcome(0, 0.0, 0, f"pan gave no report, status {status}")
    count = int(errors[1])
    complaint = ""
    # After an error the search is never complete, and need not be.
    if count == 0 and (left_out := INCOMPLETE.search(text)) is not None:
        complaint = left_out[0]
    elif count == 0 and status != 0:
        complaint = f"pan's status is {status}"
    elif count > 0:
        found = re.search(r"pan:\d+: (assertion violated|invalid end state)", text)
        complaint = found[1] if found is not None else "an error that is neither assertion nor end state"
    return Outcome(int(float(states[1])), float(elapsed[1]), count, complaint)


def passed(outcome: Outcome, seeded: bool) -> bool:
    if seeded:
        return outcome.errors > 0 and outcome.complaint in ("assertion violated", "invalid end state")
    return outcome.errors == 0 and outcome.complaint == ""


def show(case: Case, outcome: Outcome, good: bool) -> None:
    print(
        f"{case.what:<56} {case.setting:<22} {outcome.states:>10} {outcome.seconds:>7.1f} {outcome.errors:>6}"
        f"  {'good' if good else 'BAD'}{': ' + outcome.complaint if outcome.complaint else ''}",
        flush=True,
    )


def missing() -> str | None:
    """What has to be installed first, and how."""
    if shutil.which("spin") is None:
        return "model.py needs the model checker Spin: apt-get install spin"
    if shutil.which("cc") is None:
        return "model.py needs a C compiler: apt-get install gcc"
    return None


@dataclass(frozen=True)
class Search:
    """A search that was made."""

    case: Case
    seeded: bool
    outcome: Outcome
    good: bool


def searches(quick: bool, model: str = "") -> Iterator[Search]:
    """Prints each when it has ended."""
    for title, cases, seeded in (("true model", TRUE_MODEL, False), ("seeded bug", SEEDED_BUGS, True)):
        print(f"{title:<56} {'configuration':<22} {'states':>10} {'seconds':>7} {'errors':>6}")
        for case in cases:
            if (quick and not case.quick) or not case.model.startswith(model):
                continue
            with tempfile.TemporaryDirectory(prefix="shmq-model-") as room:
                outcome = search(case, Path(room))
            good = passed(outcome, seeded)
            show(case, outcome, good)
            yield Search(case, seeded, outcome, good)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a subset, less than a minute")
    parser.add_argument("--model", choices=("mpmc", "topic", "pending"), help="only this one")
    options = parser.parse_args()
    if (why := missing()) is not None:
        sys.exit(why)
    bad = [made for made in searches(options.quick, options.model or "") if not made.good]
    print("NOT as it should be" if bad else "all as it should be")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
