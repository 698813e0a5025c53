"""A transformer split over worker processes, on real text: shmq beside multiprocessing.Queue.

The text is the source of this Python's own standard library, one token per byte. Each worker has
its shard of the weights (transformer.py: Megatron's split) and computes its part of each layer; the
collector sums the parts, and the sum is what every worker needs for the next layer::

                 tokens (8, 128) int32               partial (1024, 256) float32
                 q.put: 1 copy                       q.loan: no copy
    +-----------+                      +----------+                      +-----------+
    | scheduler |--------------------->| worker 0 |--------------------->| collector |
    | reads the |                      +----------+                      | sums the  |
    | text      |                      +----------+                      | partials  |
    |           |--------------------->| worker 1 |--------------------->|           |
    +-----------+                      +----------+                      +-----------+
                                         ^                                     |
                                         +-------------------------------------+
                 hidden (1024, 256) float32, to each worker for the next layer; q.put: 1 copy

Each arrow is one queue with one producer and one consumer. The parent creates the queues, starts
the processes and from then on only watches (watched.py): when one dies it says which, stops the
rest, and fails.
The same processes do the same job over both transports in turn (A B A B ...), and each result is
compared with what one process computes alone. Run it: ``python examples/tensor_parallel.py --help``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from time import perf_counter_ns  # CLOCK_MONOTONIC on Linux: comparable between processes
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

import shmq

if TYPE_CHECKING or __package__:
    from . import transformer as net
    from . import watched
else:  # run as a script
    import transformer as net
    import watched

TOLERANCE = 1e-4  # the same float32 terms are summed in another order; they are of size 1
ARENA_BYTES = 4 << 20  # per queue: room for two tensors of 1 MiB, each in a page of 2 MiB
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
PIPE_COPIES = ["pickle", "write to pipe", "read from pipe", "into one buffer", "unpickle"]
PIPE_COPIES[:0] = ["array.tobytes()"] if pickle.DEFAULT_PROTOCOL < 5 else []  # Python 3.14: 5
COPIES: dict[str, dict[str, list[str]]] = {
    "shmq": {"partial": [], "hidden": ["put(), into the block which the worker reads"]},
    "multiprocessing": {"partial": PIPE_COPIES, "hidden": PIPE_COPIES},
}
Event = tuple[int, int, int]  # of one message: sent, asked for, got; in ns


# --- The two transports: the same verbs ----------------------------------------------------------


class PipeLink:
    """One way from one process to another. Each message says when it was sent."""

    def __init__(self) -> None:
        self.queue: Any = multiprocessing.get_context("spawn").Queue()

    def put(self, value: Any) -> None:
        self.queue.put((perf_counter_ns(), value))

    def get(self) -> tuple[int, Any]:
        """(when it was sent, what was sent)"""
        sent_ns, value = self.queue.get()
        return sent_ns, value

    @contextmanager
    def tensor(self, rows: int, columns: int) -> Iterator[net.Array]:
        """An array to write into; it is sent when the with block ends."""
        array = np.empty((rows, columns), np.float32)
        yield array
        self.put(array)


class ShmqLink(PipeLink):
    """The same over shmq: put as above, and tensors are written where the receiver reads them."""

    def __init__(self) -> None:
        self.queue = shmq.Queue(kind="spsc", arena_bytes=ARENA_BYTES)  # without a name: goes with its creator

    @contextmanager
    def tensor(self, rows: int, columns: int) -> Iterator[net.Array]:
        asked_ns = perf_counter_ns()
        with self.queue.loan((rows + 1, columns), np.float32) as loan:  # a last row for the time
            loan_ns = perf_counter_ns() - asked_ns
            yield loan.array[:rows]  # this is shared memory
            loan.array[rows, :2].view(np.int64)[0] = perf_counter_ns() - loan_ns  # loan() counts
        # The end of the with block has published it. An exception would have discarded it.

    def get(self) -> tuple[int, Any]:
        message = self.queue.get()  # arrays are views; a block is free again when its view dies
        if isinstance(message, np.ndarray):  # it was a loan
            return int(message[-1, :2].view(np.int64)[0]), message[:-1]
        return message[0], message[1]


# --- The processes -------------------------------------------------------------------------------


class Lane(NamedTuple):  # of one worker
    tokens: PipeLink
    partials: PipeLink
    hidden: PipeLink


class Job(NamedTuple):
    workers: int
    batches: int
    runs: list[str]  # the transport of each run
    lanes: dict[str, list[Lane]]  # by transport, then by worker
    start: Barrier  # of each run, for all processes


def scheduler(job: Job) -> None:
    for transport in job.runs:
        job.start.wait()
        for tokens in net.token_batches(job.batches):
            for lane in job.lanes[transport]:
                lane.tokens.put(tokens)


def worker(job: Job, rank: int) -> None:
    model = net.Model(rank, job.workers)
    for transport in job.runs:
        lane, events = job.lanes[transport][rank], list[Event]()
        job.start.wait()
        for _ in range(job.batches):
            x = model.embed(lane.tokens.get()[1])
            for layer in range(net.LAYERS):
                with lane.partials.tensor(net.ROWS, net.HIDDEN) as out:
                    model.partial(layer, x, out)
                if layer < net.LAYERS - 1:
                    x = timed_get(lane.hidden, events)
        lane.partials.put(events)


def collector(job: Job, report: Connection) -> None:
    model, expected = net.Model(0, 1), list[net.Array]()
    for tokens in net.token_batches(job.batches):
        expected.append(net.compute_alone(model, tokens))
        report.send("alone")
    for transport in job.runs:
        lanes, outputs, events = job.lanes[transport], list[net.Array](), list[Event]()
        job.start.wait()
        for link in (link for lane in job.lanes["shmq"] for link in lane):
            link.queue.unlink()  # all are attached: now nothing can stay behind in /dev/shm
        started_ns = perf_counter_ns()
        for _ in range(job.batches):
            for layer in range(net.LAYERS):
                total = sum_partials(lanes, events)
                if layer < net.LAYERS - 1:
                    for lane in lanes:
                        lane.hidden.put(total)
            outputs.append(total)
            report.send(transport)
        run = {"transport": transport, "wall_s": (perf_counter_ns() - started_ns) / 1e9}
        gather = np.array(events).reshape(-1, job.workers, 3)
        scatter = np.array([lane.partials.get()[1] for lane in lanes]).swapaxes(0, 1)
        report.send(run | transport_times(gather, scatter) | compare(outputs, expected))


def timed_get(link: PipeLink, events: list[Event]) -> Any:
    asked_ns = perf_counter_ns()
    sent_ns, value = link.get()
    events.append((sent_ns, asked_ns, perf_counter_ns()))
    return value


def sum_partials(lanes: list[Lane], events: list[Event]) -> net.Array:
    views = [timed_get(lane.partials, events) for lane in lanes]
    total = np.zeros((net.ROWS, net.HIDDEN), np.float32)
    for view in views:
        total += view
    return total  # the views die here, and their blocks are free again


def transport_times(gather: net.Array, scatter: net.Array) -> dict[str, Any]:
    """From the events (step, worker, sent / asked / got) of the partials and of the hidden states.

    The job waits from when the last worker sends its partial until the collector has all of them,
    and from when the collector sends the first sum until the last worker has its own.
    A hop lasts from when both sides are there (sent and asked) until get has returned.
    """
    waited_ns = (gather[..., 2].max(1) - gather[..., 0].max(1)).sum()
    waited_ns += (scatter[..., 2].max(1) - scatter[..., 0].min(1)).sum()
    hops_us = [(e[..., 2] - e[..., :2].max(2)).ravel() / 1e3 for e in (gather, scatter)]
    return {"transport_s": waited_ns / 1e9, "partial_us": hops_us[0], "hidden_us": hops_us[1]}


def compare(outputs: list[net.Array], expected: list[net.Array]) -> dict[str, Any]:
    pairs = list(zip(outputs, expected, strict=True))
    equal = all(np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) for a, b in pairs)
    return {"equal": equal, "max_abs_diff": max(float(np.abs(a - b).max()) for a, b in pairs)}


# --- The parent: starts, watches, prints ---------------------------------------------------------


def run_job(job: Job, say: Callable[[str], None]) -> Iterator[Any]:
    """The collector's reports. JobError as soon as a process dies; all have ended afterwards."""
    roles: watched.Roles = {"scheduler": (scheduler, job)}
    roles |= {f"worker {rank}": (worker, job, rank) for rank in range(job.workers)}
    roles["collector"] = (collector, job)
    os.environ |= ONE_THREAD  # for the children's numpy; this process computes nothing
    try:
        yield from watched.run(roles, "collector", say)
    finally:
        for link in (link for lane in job.lanes["shmq"] for link in lane):
            link.queue.close()


def summarise(job: Job, results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each transport: medians over its runs, percentiles over the hops of all its runs."""
    fan_out = job.batches * job.workers
    messages = fan_out * (1 + net.LAYERS + net.LAYERS - 1)  # tokens, partials, hidden
    moved_bytes = 4 * net.ROWS * fan_out * (1 + net.HIDDEN * (net.LAYERS + net.LAYERS - 1))
    rows: dict[str, dict[str, float]] = {}
    for transport, copies in COPIES.items():
        runs = [run for run in results if run["transport"] == transport]
        row = {k: float(np.median([run[k] for run in runs])) for k in ("wall_s", "transport_s")}
        row["messages_per_s"] = messages / row["wall_s"]
        row["gigabytes_per_s"] = moved_bytes / row["wall_s"] / 1e9
        for hop in ("partial", "hidden"):
            for percent in (50, 99):
                hops_us = [run[f"{hop}_us"] for run in runs]
                row[f"{hop}_us_p{percent}"] = float(np.percentile(hops_us, percent))
        rows[transport] = row | {f"{tensor}_copies": len(at) for tensor, at in copies.items()}
    return rows


def print_table(rows: dict[str, dict[str, float]]) -> None:
    ours, theirs = rows["shmq"], rows["multiprocessing"]
    print(f"{'':18}{'shmq':>12}{'multiprocessing':>18}{'better by':>12}")
    for key, value in ours.items():
        more, less = (value, theirs[key]) if key.endswith("_per_s") else (theirs[key], value)
        gain = f"{more / less:.2f} x" if less else "-"
        print(f"{key:18}{value:12.4g}{theirs[key]:18.4g}{gain:>12}")
    for transport, copies in COPIES.items():
        for tensor, at in copies.items():
            print(f"copies of {tensor}, {transport}: {', '.join(at) or 'none'}")


def main(argv: list[str] | None = None) -> int:
    """0: done, all results equal. 1: a process died, or a result differs. 2: bad arguments."""
    parser = argparse.ArgumentParser(description="A transformer split over worker processes.")
    parser.add_argument("--workers", type=int, default=2, help=f"divides {net.HEADS}; default 2")
    parser.add_argument("--batches", type=int, help="of 1024 bytes of text; default 24")
    parser.add_argument("--quick", action="store_true", help="4 batches, one run per transport")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(argv)
    batches = (4 if options.quick else 24) if options.batches is None else options.batches
    if batches < 1 or options.workers < 1 or net.HEADS % options.workers:
        parser.error(f"--batches must be at least 1, --workers must divide {net.HEADS}")
    new: dict[str, Callable[[], PipeLink]] = {"shmq": ShmqLink, "multiprocessing": PipeLink}
    lanes = {t: [Lane(new[t](), new[t](), new[t]()) for _ in range(options.workers)] for t in new}
    start = multiprocessing.get_context("spawn").Barrier(options.workers + 2)
    job = Job(options.workers, batches, list(new) * (1 if options.quick else 3), lanes, start)
    results: list[dict[str, Any]] = []
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        with Progress(console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("", total=batches * (1 + len(job.runs)))
            for report in run_job(job, console.print):
                if isinstance(report, str):
                    progress.update(bar, advance=1, description=report)
                else:
                    results.append(report)
                    console.print(f"{report['transport']}: {report['wall_s']:.2f} s")
    except (watched.JobError, KeyboardInterrupt) as error:
        console.print(f"tensor_parallel: {str(error) or 'interrupted'}", style="red")
        return 1
    rows = summarise(job, results)
    equal, difference = all(r["equal"] for r in results), max(r["max_abs_diff"] for r in results)
    if options.json:
        shape = {"workers": job.workers, "batches": batches, "runs": job.runs}
        print(json.dumps(shape | {"equal": equal, "max_abs_diff": difference, "transports": rows}))
    else:
        print_table(rows)
        verdict = "equal to" if equal else "DIFFERS from"
        print(f"{verdict} the result of one process; largest difference {difference:.2g}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
