"""Three services in a row: what does a hop between them cost, and which load suits them best?

    +---------+      +-----------+      +-----------+      +-----------+      +-----------+
    | gateway |----->| service 1 |----->| service 2 |----->| service 3 |----->| collector |
    +---------+      +-----------+      +-----------+      +-----------+      +-----------+
     sends when          1 ms               1 ms               1 ms            its requests
     it is due                                                                 come back

Each box is a process, each arrow a queue: of kind "spsc" where one process stands on either side,
"mpmc" where ``--workers-per-stage`` puts several behind one arrow.  The gateway does not wait for
answers: it sends when a request is due, and the latency counts from then, also when the gateway
itself was late.  So what a full pipeline costs is not left out.

A request carries its stamps, of CLOCK_MONOTONIC, which is one clock for all processes: when it was
put, when the receiver asked for a message, when it had this one.  The *transport* lasts from when
both were there until the receiver had it; what a request waits for a busy service is no transport.

The 1 ms is by default a wait until a deadline: three services that compute for 1 ms, 1,000 times a
second, need three cores.  The wait stands for a service that asks a disk, a database or an
accelerator.  ``--work cpu`` computes (PBKDF2, as many rounds as take 1 ms of processor time); then
the cores are the limit.  The load is swept; queueing.py says what is computed from the stamps.
Run it: ``python examples/microservices.py --help``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from time import monotonic_ns, sleep, thread_time_ns
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import shmq

if TYPE_CHECKING or __package__:
    from . import queueing, watched
else:  # run as a script
    import queueing
    import watched

SERVICES = 3
STAGES = ["gateway", *(f"service {n}" for n in range(1, SERVICES + 1)), "collector"]
WORK_NS = 1_000_000
NETWORKED_HOP_US = 500.0  # what one hop through a queue on the network is said to take
LOADS_PER_S = [100.0, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
QUICK_LOADS_PER_S = [200.0, 600, 1000]
LEAST_REQUESTS = 20  # of a load: fewer have no percentiles
MOST_WORKERS = 16
BODY = b"GET /v1/answers?question=42 HTTP/1.1 ".ljust(256, b".")
HEAD_START_NS = 20_000_000  # the plan reaches the collector before the first request is due
WARM_UP = 20  # requests for each worker, not counted: a process's first message loads the codec
TELL_NS = 250_000_000  # between two reports of progress

Work = Callable[["Request"], None]
Reports = Generator[int | queueing.Trace]  # how many requests of this load came, at its end its trace


@dataclass
class Request:
    """What travels.  Over the queues it is msgpack; ``type=Request`` makes it a Request again."""

    number: int
    due_ns: int
    body: bytes = BODY
    stamps_ns: list[int] = field(default_factory=list)  # of each hop: put, asked, got


# --- The processes -------------------------------------------------------------------------------


class Job(NamedTuple):
    loads_per_s: list[float]
    seconds: float  # of each load
    workers_per_stage: int
    work: str
    arrivals: str
    seed: int


class Gates(NamedTuple):
    ready: Barrier  # for all: everyone has started
    turn: Barrier  # for gateway and collector: nothing of the last load is under way


def send(queue: shmq.Queue, request: Request) -> None:
    request.stamps_ns.append(monotonic_ns())
    queue.put(request)


def receive(queue: shmq.Queue) -> Request:
    asked_ns = monotonic_ns()
    request: Request = queue.get()
    request.stamps_ns += [asked_ns, monotonic_ns()]
    return request


def gateway(job: Job, gates: Gates, plans: shmq.Queue, outbox: shmq.Queue) -> None:
    wake_up_on_time()
    gates.ready.wait()
    for number in range(job.workers_per_stage * WARM_UP):
        send(outbox, Request(number, monotonic_ns()))
    for load_per_s in job.loads_per_s:
        offsets_ns = queueing.arrivals_ns(load_per_s, job.seconds, job.arrivals, job.seed)
        gates.turn.wait()
        plan_ns = offsets_ns + monotonic_ns() + HEAD_START_NS
        plans.put(plan_ns)  # an array: copied once, the collector reads it in shared memory
        for number, due_ns in enumerate(plan_ns.tolist()):
            sleep_until(due_ns)
            send(outbox, Request(number, due_ns))
    gates.turn.wait()
    outbox.shutdown()  # each service passes it on


def service(job: Job, gates: Gates, inbox: shmq.Queue, outbox: shmq.Queue) -> None:
    wake_up_on_time()
    work = wait_for_it if job.work == "wait" else calibrated_work()
    gates.ready.wait()
    with suppress(shmq.PeerDead):  # not our failure: the parent says whose it is
        try:
            while True:
                request = receive(inbox)
                work(request)
                send(outbox, request)
        except shmq.ShutDown:
            outbox.shutdown()


def collector(job: Job, gates: Gates, plans: shmq.Queue, inbox: shmq.Queue, report: Connection) -> None:
    gates.ready.wait()
    report.send("ready")
    with suppress(shmq.PeerDead):
        for _ in range(job.workers_per_stage * WARM_UP):
            receive(inbox)
        for _ in job.loads_per_s:
            gates.turn.wait()
            plan_ns = plans.get()
            came, told_ns = list[Request](), 0
            while len(came) < len(plan_ns):
                came.append(receive(inbox))
                if (now_ns := came[-1].stamps_ns[-1]) > told_ns + TELL_NS:
                    report.send(len(came))
                    told_ns = now_ns
            report.send(trace_of(plan_ns, came))
        gates.turn.wait()


def trace_of(plan_ns: queueing.Array, came: list[Request]) -> queueing.Trace:
    numbers = np.array([request.number for request in came])
    due_ns = np.array([request.due_ns for request in came])
    stamps_ns = np.array([request.stamps_ns for request in came])
    return queueing.Trace(plan_ns, numbers, due_ns, stamps_ns.reshape(len(came), -1, 3))


# --- One millisecond of work ---------------------------------------------------------------------


def wake_up_on_time() -> None:
    """By default the kernel may wake a sleeper 50 us late, to save power (timer slack)."""
    with suppress(OSError):  # then it stays so, and the table's service time says it
        Path("/proc/self/timerslack_ns").write_text("1")


def sleep_until(due_ns: int) -> None:
    while (left_ns := due_ns - monotonic_ns()) > 0:
        sleep(left_ns / 1e9)


def wait_for_it(request: Request) -> None:
    sleep_until(request.stamps_ns[-1] + WORK_NS)


def calibrated_work() -> Work:
    """Derives a key from the body, in as many rounds as take 1 ms of this core's time."""

    def work(request: Request) -> None:
        hashlib.pbkdf2_hmac("sha256", request.body, b"salt", rounds)

    def took_ns() -> int:
        started_ns = thread_time_ns()  # not the others' time, which share the core
        work(Request(0, 0))
        return thread_time_ns() - started_ns

    rounds = 2000
    rounds = round(rounds * WORK_NS / min(took_ns() for _ in range(20)))
    return work


# --- The parent: starts, watches, prints ---------------------------------------------------------


def run_job(job: Job, say: Callable[[str], None]) -> Reports:
    """The collector's reports. JobError as soon as a process dies; all have ended afterwards."""
    processes = 2 + SERVICES * job.workers_per_stage
    context = multiprocessing.get_context("spawn")
    gates = Gates(context.Barrier(processes), context.Barrier(2))
    kind: Literal["spsc", "mpmc"] = "spsc" if job.workers_per_stage == 1 else "mpmc"
    # Without a name: a queue goes with its creator, this process.
    hops = [shmq.Queue(kind=kind, type=Request, arena_bytes=1 << 20) for _ in range(SERVICES + 1)]
    plans = shmq.Queue(kind="spsc")
    roles: watched.Roles = {"gateway": (gateway, job, gates, plans, hops[0])}
    for stage in range(1, SERVICES + 1):
        for worker in range(1, job.workers_per_stage + 1):
            name = STAGES[stage] if job.workers_per_stage == 1 else f"{STAGES[stage]}.{worker}"
            roles[name] = (service, job, gates, hops[stage - 1], hops[stage])
    roles["collector"] = (collector, job, gates, plans, hops[-1])
    try:
        with closing(watched.run(roles, "collector", say)) as reports:
            for report in reports:
                if report == "ready":  # all are attached: now nothing can stay behind in /dev/shm
                    for queue in (*hops, plans):
                        queue.unlink()
                else:
                    yield report
    finally:
        for queue in (*hops, plans):
            queue.close()


def summarise(job: Job, traces: list[queueing.Trace]) -> dict[str, Any]:
    rows = [
        {"offered_per_s": load_per_s} | queueing.figures(trace, job.workers_per_stage)
        for load_per_s, trace in zip(job.loads_per_s, traces, strict=True)
    ]
    highest = max(row["power_per_s2"] for row in rows)
    for row in rows:
        row["power_of_highest"] = row["power_per_s2"] / highest
    service_ms = float(np.mean([row["service_ms"] for row in rows]))
    hops = [f"{sender} -> {receiver}" for sender, receiver in pairwise(STAGES)]
    return {
        **job._asdict(),
        "work_ms": WORK_NS / 1e6,
        "service_ms": service_ms,
        "capacity_per_s": 1e3 * job.workers_per_stage / service_ms,
        "cores": len(os.sched_getaffinity(0)),
        "networked_hop_us": NETWORKED_HOP_US,
        "loads": rows,
        "transport_us": {name: queueing.transport_us(traces, hop) for hop, name in enumerate(hops)},
        "faults": [fault for trace in traces for fault in queueing.faults(trace)],
        "little_holds": all(queueing.holds(row["little"]) for row in rows),
        "best_load_per_s": next(r["offered_per_s"] for r in rows if r["power_of_highest"] == 1),
    }


def table(console: Console, title: str, columns: list[str], rows: list[list[str]]) -> None:
    """With a line under its head on a terminal; in a pipe in aligned columns."""
    shown = Table(box=SIMPLE if console.is_terminal else None)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number < len(columns) - 1 else "left")
    for row in rows:
        shown.add_row(*row)
    console.print(f"\n{title}", style="bold")
    console.print(shown)


def show(console: Console, result: dict[str, Any]) -> None:
    work = "a wait until a deadline" if result["work"] == "wait" else "computed"
    console.print(
        f"{SERVICES} services in a row, workers for each: {result['workers_per_stage']}; 1 ms of work: "
        f"{work}; cores: {result['cores']}; {result['arrivals']} arrivals, {result['seconds']:g} s a load"
    )
    show_power(console, result["loads"])
    show_little(console, result["loads"])
    show_transport(console, result["transport_us"])
    best = next(row for row in result["loads"] if row["power_of_highest"] == 1)
    console.print(
        f"\nThe work of 1 ms took {result['service_ms']:.2f} ms: at most {result['capacity_per_s']:,.0f} "
        f"requests/s.\nHighest power at {best['offered_per_s']:g}/s: {best['busy']:.0%} busy, "
        f"{best['little']['inside']:.1f} requests inside. " + expected(result)
    )


def expected(result: dict[str, Any]) -> str:
    if result["workers_per_stage"] > 1:
        return f"Rule of thumb: one for each worker, {SERVICES * result['workers_per_stage']}."
    busy = queueing.best_busy(SERVICES, result["arrivals"])
    return f"Theory: near {busy * result['capacity_per_s']:.0f}/s, {busy:.0%} busy, {SERVICES} inside."


def show_power(console: Console, rows: list[dict[str, Any]]) -> None:
    columns = ["offered/s", "done/s", "busy", "mean ms", "p50 ms", "p99 ms", "power 1/s²", "of the highest"]
    lines = []
    for row in rows:
        latency, relative = row["latency_ms"], row["power_of_highest"]
        cells = [f"{row['offered_per_s']:g}", f"{row['done_per_s']:.0f}", f"{row['busy']:.0%}"]
        cells += [f"{latency[key]:.2f}" for key in ("mean", "p50", "p99")]
        bar = f"{relative:4.0%} {'#' * round(10 * relative)}"
        lines.append([*cells, f"{row['power_per_s2']:,.0f}", bar])
    table(console, "Power = throughput / latency, which counts from the due time", columns, lines)


def show_little(console: Console, rows: list[dict[str, Any]]) -> None:
    columns = ["offered/s", "L", "lambda W", "difference", "cut stays explain up to"]
    lines = []
    for row in rows:
        law = row["little"]
        cells = [f"{row['offered_per_s']:g}", f"{law['inside']:.2f}", f"{law['arrivals_times_stay']:.2f}"]
        broken = "" if queueing.holds(law) else "  BROKEN"
        cells += [f"{law['difference_percent']:+.2f} %", f"{law['cut_percent']:.2f} %{broken}"]
        lines.append(cells)
    table(console, "Little's law: requests inside, counted (L) and computed", columns, lines)


def show_transport(console: Console, hops: dict[str, Any]) -> None:
    columns = ["p50 µs", "p99 µs", "receiver waits: p50", "p99", "network is", "hop"]
    lines = []
    for name, hop in hops.items():
        waits = hop["receiver_waits"] or {"p50": float("nan"), "p99": float("nan")}
        figures = [hop["p50"], hop["p99"], waits["p50"], waits["p99"]]
        cells = [f"{value:.0f}" for value in figures]
        lines.append([*cells, f"{NETWORKED_HOP_US / max(hop['p50'], waits['p50']):.1f} x", name])
    title = f"Transport, from when both are there; a networked queue takes {NETWORKED_HOP_US:.0f} µs"
    table(console, title, columns, lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Three services in a row over shmq: transport, latency, power, Little's law."
    )
    add = parser.add_argument
    add(
        "--loads",
        type=lambda text: [float(load) for load in text.split(",")],
        metavar="N,N,...",
        help="requests per second; default 100,200,...,1000",
    )
    add("--seconds", type=float, help="of each load; default 2")
    add("--workers-per-stage", type=int, default=1, metavar="N", help=f"1 to {MOST_WORKERS}")
    add("--work", choices=["wait", "cpu"], default="wait", help="1 ms until a deadline, or computed")
    add("--arrivals", choices=["poisson", "even"], default="poisson", help="default: poisson")
    add("--seed", type=int, default=1, help="of the arrivals")
    add("--quick", action="store_true", help="3 loads, for half a second each")
    add("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(argv)
    options.loads = options.loads or (QUICK_LOADS_PER_S if options.quick else LOADS_PER_S)
    options.seconds = options.seconds or (0.5 if options.quick else 2.0)
    if not 1 <= options.workers_per_stage <= MOST_WORKERS:
        parser.error(f"--workers-per-stage must be from 1 to {MOST_WORKERS}")
    if not min(options.loads) * options.seconds >= LEAST_REQUESTS:
        parser.error(f"a load of fewer than {LEAST_REQUESTS} requests; raise --seconds or --loads")
    return options


def main(argv: list[str] | None = None) -> int:
    """0: done, all came once, Little's law holds. 1: not so, or a process died.

    2: bad arguments. 130: interrupted.
    """
    options = parse(argv)
    job = Job(
        options.loads,
        options.seconds,
        options.workers_per_stage,
        options.work,
        options.arrivals,
        options.seed,
    )
    traces = list[queueing.Trace]()
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        with (
            Progress(console=console, disable=not console.is_terminal) as progress,
            closing(run_job(job, console.print)) as reports,
        ):
            bar = progress.add_task("", total=sum(round(load * job.seconds) for load in job.loads_per_s))
            before = 0
            for report in reports:
                if isinstance(report, queueing.Trace):
                    traces.append(report)
                    before += len(report.plan_ns)
                here = report if isinstance(report, int) else 0
                progress.update(bar, completed=before + here)
        result = summarise(job, traces)
    except watched.JobError as error:
        console.print(f"microservices: {error}", style="red")
        return 1
    except KeyboardInterrupt:
        console.print("microservices: interrupted")
        return 130
    if options.json:
        print(json.dumps(result))
    else:
        output = Console(highlight=False)
        show(output if output.is_terminal else Console(highlight=False, width=110), result)
    for fault in result["faults"]:
        console.print(f"microservices: {fault}", style="red")
    return 0 if result["little_holds"] and not result["faults"] else 1


if __name__ == "__main__":
    sys.exit(main())
