"""What a death may do to a queue: every part of the harness, and one summary.

    python tests/crash [--quick | --every] [--kills N] [--seed N] [PART | OPERATION ...]

    step     each operation is killed, or stopped, at every instruction, and so is the repair of it
    soak     workers of a queue are killed at random; its ledger is exact, and what they held is soon back
    lessees  the same where messages are acknowledged: none is lost, none comes after its ack
    wakes    wakers die between the store and the wake-up; whoever sleeps goes on
    audience publishers and subscribers of a topic are killed at random; and one that holds up the others
    laps     laps and cursors go across their wrap
    alive    nobody who lives is declared dead, and who is dead is
    idle     who waits takes no processor time
    model    the ring, the topic and their repair searched exhaustively, where Spin is installed

Builds the programs of this folder, runs them over both kinds of queue (the soak: mpmc), the steps also over
topics, with leases and with keys, and prints one table in Markdown.  An OPERATION of the steps stands for
them, with this one only.

Exit status 0: no failure; 77: no failure, but ptrace is forbidden here, so no step was tried.

``--quick``: a sample, in about two minutes.  ``--every``: the steps at every instruction of each repair,
too, which takes an hour.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from c_build import CC, Workshop
from crash import harness, model, parts
from crash.parts import Row

OTHERS = (*parts.PARTS, "model")
"""The parts beside the steps."""


def arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python tests/crash", description=__doc__.splitlines()[0])
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="a sample, in about two minutes")
    how.add_argument("--every", action="store_true", help="every instruction of each repair, too: an hour")
    parser.add_argument("--kills", type=int, metavar="N", help="of the soak")
    parser.add_argument("--seed", type=int, metavar="N", help="of all that is random")
    names = f"{', '.join(['step', *OTHERS])}, or an operation of the steps (default: all parts)"
    parser.add_argument("name", nargs="*", help=names)
    return parser, parser.parse_args()


def steps(workshop: Workshop, options: argparse.Namespace, names: harness.Operations) -> Row:
    """Prints its own table; returns its line of the summary."""
    program = workshop.program(harness.PROGRAM, "plain")
    jobs = harness.quick(names) if options.quick else harness.thorough(names, options.every)
    if wanted := set(options.name) - {"step", *OTHERS}:
        jobs = [job for job in jobs if job.operation in wanted]
    finished = []
    for done in harness.run_all(program, jobs):
        finished.append(done)
        if done.complaints:
            print(done.complaints, end="", file=sys.stderr, flush=True)
    print(harness.table(finished))
    print(
        "images: different memories that a death left; stops: the victim was stopped there, others went on,"
        " then it;\nstrays: the victim took another way than the recorded one, and was killed all the same.\n"
    )
    return Row("step", *harness.summary(finished, harness.coverage(options.quick, options.every)))


def searches(options: argparse.Namespace) -> Row:
    """Prints its own table; returns its line of the summary."""
    what = "every interleaving of steps, deaths, stops and repair, of the models of ring and topic"
    if (why := model.missing()) is not None:
        return Row("model", what, f"not tried: {why}", 0)
    made = list(model.searches(options.quick))
    print()
    true = [one for one in made if not one.seeded]
    states = sum(one.outcome.states for one in true)
    counts = f"{len(true)} configurations, {states:,} states; {len(made) - len(true)} seeded bugs, all found"
    bad = sum(not one.good for one in made)
    return Row("model", what, counts if not bad else f"{len(made)} searches", bad)


def amounts(options: argparse.Namespace) -> parts.Amounts:
    given = {name: value for name in ("kills", "seed") if (value := getattr(options, name)) is not None}
    return parts.amounts(quick=options.quick, **given)


def run_parts(
    workshop: Workshop, options: argparse.Namespace, operations: harness.Operations
) -> tuple[list[Row], bool]:
    """All rows, and whether the steps were forbidden."""
    rows, forbidden = [], False
    wanted = {name if name in OTHERS else "step" for name in options.name} or {"step", *OTHERS}
    if "step" in wanted:
        try:
            rows.append(steps(workshop, options, operations))
        except harness.PtraceForbidden as why:
            rows.append(Row("step", "not tried", str(why), 0))
            forbidden = True
    for part in parts.PARTS:
        if part in wanted:
            found, complaints = parts.run(part, workshop.program(f"crash/{part}", "plain"), amounts(options))
            rows += found
            print(complaints, end="", file=sys.stderr, flush=True)
    if "model" in wanted:
        rows.append(searches(options))
    return rows, forbidden


def main() -> int:
    parser, options = arguments()
    if CC is None:
        print("no C compiler on PATH")
        return 2
    started = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="shmq-crash-"))
    try:
        workshop = Workshop(directory)
        operations = harness.operations(workshop.program(harness.PROGRAM, "plain"))
        known = dict.fromkeys(name for names in operations.values() for name in names)
        if unknown := set(options.name) - {"step", *OTHERS, *known}:
            parser.error(f"no part or operation {sorted(unknown)}; operations are: {', '.join(known)}")
        rows, forbidden = run_parts(workshop, options, operations)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(parts.summary(rows))
    cpus = len(os.sched_getaffinity(0))
    print(
        f"\n{time.strftime('%Y-%m-%d')}, Linux {platform.release()}, {platform.machine()}, {cpus} cores,"
        f" {time.monotonic() - started:.0f} s"
    )
    if any(row.failures for row in rows):
        return 1
    return harness.NO_PTRACE if forbidden else 0


if __name__ == "__main__":
    sys.exit(main())
