"""SIGKILL at every instruction of every operation, and of every repair of what that left.

    python tests/crash [--quick | --every] [OPERATION ...]

Builds ``step.c``, runs it over every operation, both kinds of ring, from two cursors, and prints one table.
Exit status 0: no failure; 77: ptrace is forbidden here, so nothing was tried.

``--quick``: a sample, in seconds.  ``--every``: at every instruction of each repair, too, which takes an
hour.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from c_build import CC, Workshop
from crash import harness


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/crash", description=__doc__.splitlines()[0])
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="a sample, in seconds")
    how.add_argument("--every", action="store_true", help="every instruction of each repair, too: an hour")
    parser.add_argument("operation", nargs="*", help="only these (default: all)")
    options = parser.parse_args()
    if CC is None:
        print("no C compiler on PATH")
        return 2
    directory = Path(tempfile.mkdtemp(prefix="shmq-crash-"))
    started = time.monotonic()
    try:
        program = Workshop(directory).program(harness.PROGRAM, "plain")
        names = harness.operations(program)
        if unknown := set(options.operation) - set(names):
            parser.error(f"no such operation: {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
        jobs = harness.quick(names) if options.quick else harness.thorough(names, options.every)
        if options.operation:
            jobs = [job for job in jobs if job.operation in options.operation]
        finished = []
        for done in harness.run_all(program, jobs):
            finished.append(done)
            if done.complaints:
                print(done.complaints, end="", file=sys.stderr, flush=True)
    except harness.PtraceForbidden as forbidden:
        print(forbidden)
        return harness.NO_PTRACE
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(harness.table(finished))
    print(
        "images: different memories that a death left; stops: the victim was stopped there, others went on,"
        " then it;\nstrays: the victim took another way than the recorded one, and was killed all the same.\n"
        f"{harness.coverage(options.quick, options.every)}  {time.monotonic() - started:.0f} s."
    )
    return int(any(done.failed for done in finished))


if __name__ == "__main__":
    sys.exit(main())
