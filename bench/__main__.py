"""`shmq bench`: measures shmq, its rivals and the machine's floors in one run."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from . import compare, html, machine, options, report, rivals, suites
from .harness import Harness, Settings, left_in_dev_shm
from .model import Report, Row
from .options import whole, wholes
from .progress import bar
from .suites import aio, fanout, rpc

_BESIDE = {"compare": compare.main, "html": html.main}
"""Subcommands that read the JSON of earlier runs."""
_EPILOG = (
    "Also: shmq bench compare OLD.json NEW.json (what changed beyond the noise), "
    "shmq bench html RESULT.json REPORT.html."
)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="shmq bench", description=__doc__, epilog=_EPILOG)
    parser.add_argument("--quick", action="store_true", help="3 repetitions of about 0.05 s")
    parser.add_argument(
        "--suite",
        "--only",
        dest="only",
        action="append",
        choices=suites.ALL,
        default=[],
        metavar="SUITE",
        help=f"only this suite, may be repeated: {', '.join(suites.ALL)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a report with plots there")
    parser.add_argument("--list", action="store_true", help="print the ids of the rows and stop")
    parser.add_argument("--repetitions", type=whole(1, 1000), metavar="N", help="timed runs of each (5)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=options.seconds, help="aim for this length of one timed run (0.25)")
    length.add_argument(
        "--count",
        type=whole(1, 1 << 31),
        metavar="N",
        help="operations of one timed run instead (rows with gaps or a schedule keep to --seconds)",
    )
    parser.add_argument(
        "--max-mib",
        type=whole(1, 1 << 20),
        default=1024,
        metavar="N",
        help="skip rows with larger payloads",
    )
    parser.add_argument(
        "--rivals",
        type=options.names(
            frozenset(one.NAME for one in (*rivals.ALL, *fanout.AMONG, *aio.AMONG, *rpc.AMONG)) - {"shmq"}
        ),
        metavar="NAMES",
        help='only these, separated by commas; "" for none',
    )
    parser.add_argument("--no-pin", action="store_true", help="leave the cores to the kernel")
    parser.add_argument(
        "--sizes",
        type=options.sizes,
        metavar="SIZES",
        help="payloads, for example 64,4KiB,1MiB, instead of the suites' own",
    )
    parser.add_argument(
        "--loads",
        type=wholes(1, 10_000_000),
        default=Settings.loads,
        metavar="RATES",
        help="messages/s offered in the suite latency (1000,10000,100000)",
    )
    for name, suite in (("producers", "mpmc"), ("consumers", "mpmc"), ("readers", "fanout")):
        parser.add_argument(
            f"--{name}",
            type=wholes(1, 32),
            metavar="COUNTS",
            help=f"processes in the suite {suite}, for example 1,2,4",
        )
    parser.add_argument(
        "--codecs",
        type=options.some_of("bytes", "array", "object"),
        default=Settings.codecs,
        metavar="CODECS",
        help="what the suite throughput sends: bytes, array, object (all)",
    )
    parser.add_argument(
        "--receive",
        type=options.some_of("view", "copy"),
        default=Settings.receive,
        metavar="MODES",
        help="how the suite tensor receives: view, copy (both)",
    )
    parser.add_argument(
        "--wait",
        type=options.some_of("spin", "park"),
        default=Settings.wait,
        metavar="MODES",
        help="how shmq's consumers wait: spin, park, or both (spin,park)",
    )
    return parser.parse_args(argv)


def _settings(chosen: argparse.Namespace, cores: tuple[int, int]) -> Settings:
    return Settings(
        repetitions=chosen.repetitions or (3 if chosen.quick else 5),
        target_s=chosen.seconds or (0.05 if chosen.quick else 0.25),
        max_bytes=chosen.max_mib << 20,
        only=frozenset(chosen.only),
        cores=cores,
        rivals=chosen.rivals,
        count=chosen.count,
        sizes=chosen.sizes,
        loads=chosen.loads,
        producers=chosen.producers,
        consumers=chosen.consumers,
        readers=chosen.readers,
        codecs=chosen.codecs,
        receive=chosen.receive,
        wait=chosen.wait,
    )


def _planned(settings: Settings) -> dict[str, list[Row]]:
    return {
        name: suite.rows(settings)
        for name, suite in suites.ALL.items()
        if not settings.only or name in settings.only
    }


def run(settings: Settings, warnings: list[str]) -> Report:
    """The whole run. What it makes lies in one private directory, or is unlinked at the end.

    Interrupted, it returns the rows that are finished, and a warning that says how many are missing."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # the workers': nothing runs beside the two
    before = frozenset(os.listdir("/dev/shm"))
    made = Report(machine.describe(), {}, warnings=warnings)
    made.settings = {
        **asdict(settings),
        "only": sorted(settings.only),
        "rivals": None if settings.rivals is None else sorted(settings.rivals),
    }
    made.settings["started"] = datetime.now(UTC).isoformat(timespec="seconds")
    started, planned = time.monotonic(), _planned(settings)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, bar(made, planned) as progress:
        harness = Harness(settings, made, Path(directory), progress)
        made.noise["at the start"] = machine.noise(settings.cores[0])
        try:
            for name, rows in planned.items():
                suites.ALL[name].run(harness, rows)
        except KeyboardInterrupt:
            made.drop_unfinished(settings.repetitions)
            missing = sum(map(len, planned.values())) - len(made.rows)
            made.warnings.append(f"interrupted: {missing} rows are missing")
            made.settings["interrupted"] = True
        made.noise["at the end"] = machine.noise(settings.cores[0])
    made.settings["took_s"] = round(time.monotonic() - started, 1)
    made.warnings += machine.noise_warnings(made.machine["load_average"][0], made.noise)
    if left := left_in_dev_shm(before):
        made.warnings.append(f"left in /dev/shm (by this run or another program): {left}")
    return made


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in _BESIDE:
        return _BESIDE[argv[0]](argv[1:])
    chosen = _arguments(argv)
    if chosen.html and (lacking := html.missing()):
        print(f"shmq bench: {lacking}", file=sys.stderr)  # before the run, not after it
        return 2
    cores, remark = machine.two_cores()
    warnings = [remark] if remark else []
    if chosen.no_pin:
        cores, warnings = (-1, -1), ["not pinned: --no-pin"]
    settings = _settings(chosen, cores)
    if chosen.list:
        for rows in _planned(settings).values():
            print(*(row.id for row in rows), sep="\n")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as at Ctrl-C: nothing is left behind
    try:
        made = run(settings, warnings)
    except KeyboardInterrupt:
        print("interrupted: nothing is reported", file=sys.stderr)
        return 130
    report.show(made)
    interrupted = "interrupted" in made.settings
    if interrupted:
        print("interrupted", file=sys.stderr)
    if chosen.json:
        report.write_json(made, chosen.json)
    if chosen.html:
        html.write(made, chosen.html)
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
