"""Token streams from a batch-serving model whose workers may be killed: shmq.aio from end to end.

The model (ngram.py) has read the source of this Python's own standard library, and each prompt is a piece
of it::

    +-----------+  prompt   +-----------+  a batch of prompts   +----------+
    | front end |---------->| scheduler |---------------------->| worker 0 |
    | 64 tasks  |<----------|           |<----------------------+----------+
    +-----------+  tokens   +-----------+  tokens of the batch  | worker 1 |
                                                                +----------+

Front end and scheduler are event loops, each worker is a process with threads.  When a third of the tokens
has arrived, the example kills a worker (SIGKILL) in the middle of its batches; the other one does them again,
from their start, and the scheduler skips what it had.  Every answer is then compared with what the model
says by itself.
Run it: ``python examples/serving.py --help``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

import shmq
from shmq import aio

if TYPE_CHECKING or __package__:
    from . import ngram, watched
else:  # run as a script
    import ngram
    import watched

WORKERS = 2
BATCH = 8
STEP_S = 0.002
"""Of a batch, beside the model's own: about what a language model takes on a GPU.  Without it a worker would
have finished its streams before anybody could kill it in the middle."""
PATIENT_S = 60.0
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
Answer = dict[str, Any]


# --- The processes -------------------------------------------------------------------------------


def work(pool: str) -> None:
    """A worker: batches of prompts in, a step of all of them at a time out."""
    model = ngram.Model()

    def generate(job: dict[str, Any]) -> Iterator[list[Any]]:
        started = begun = time.monotonic_ns()
        for tokens in model.generate(job["prompts"], job["lengths"]):
            time.sleep(STEP_S)
            yield [[os.getpid(), started, time.monotonic_ns() - begun], tokens]
            begun = time.monotonic_ns()

    # A batch whose worker died is done again, from its start.
    with shmq.Server(pool, idempotent=True) as server:
        server.serve(generate, threads=16)


def schedule(front: str, pool: str) -> None:
    """The scheduler."""
    asyncio.run(_schedule(front, pool))


async def _schedule(front: str, pool: str) -> None:
    async with aio.Client(pool) as workers, aio.Server(front) as server:
        running: set[asyncio.Task[None]] = set()
        async for request in server:
            batch = [request]
            with suppress(shmq.Empty, shmq.ShutDown):
                while len(batch) < BATCH:
                    batch.append(await server.next(timeout=0))  # what waits already
            task = asyncio.create_task(_run_batch(workers, batch))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)


async def _run_batch(workers: aio.Client, batch: list[aio.Request]) -> None:
    lengths = [request.value["length"] for request in batch]
    job = {"prompts": [request.value["prompt"] for request in batch], "lengths": lengths}
    try:
        step = 0
        async for origin, tokens in workers.stream(job):
            for request, length, token in zip(batch, lengths, tokens.tolist(), strict=True):
                if step < length:
                    await request.send([*origin, token])
            step += 1
        for request in batch:
            await request.end()
    except Exception as error:
        for request in batch:
            if not request.answered:
                await request.fail(error)


# --- The front end -------------------------------------------------------------------------------


class Scene:
    """What the front end sees, and does: it kills a worker once a third of the tokens is there."""

    def __init__(self, total: int) -> None:
        self.kill_at = total // 3
        self.tokens = 0
        self.victim = 0
        self.killed_ns = 0

    def note(self, pid: int) -> None:
        self.tokens += 1
        if self.tokens == self.kill_at:
            self.victim = pid
            os.kill(pid, signal.SIGKILL)
            self.killed_ns = time.monotonic_ns()

    async def ask(self, client: aio.Client, prompt: bytes, length: int) -> Answer:
        """One prompt's tokens; and where another worker had to take it over, how long after the kill that
        began, and its first new token came."""
        text, first = bytearray(), 0
        moved: tuple[float, ...] = ()
        async for pid, started_ns, _, token in client.stream({"prompt": prompt, "length": length}, PATIENT_S):
            text.append(token)
            first = first or pid
            if pid != first and not moved:
                moved = (started_ns - self.killed_ns) / 1e6, (time.monotonic_ns() - self.killed_ns) / 1e6
            self.note(pid)
        return {"text": bytes(text), "moved": moved}


async def overhead_us(client: aio.Client, count: int) -> list[float]:
    """Of requests for one token, one after the other: the time that is not the model's."""
    found = []
    for prompt in ngram.prompts(count):
        begun = time.monotonic_ns()
        async for _, _, spent_ns, _ in client.stream({"prompt": prompt, "length": 1}, PATIENT_S):
            spent = spent_ns
        found.append((time.monotonic_ns() - begun - spent) / 1e3)
    return found


async def front_end(front: str, pool: str, count: int, length: int, trips: int) -> Answer:
    """The whole scene; the figures of its report."""
    prompts = ngram.prompts(count)
    scene = Scene(count * length)
    async with aio.Client(pool) as workers, aio.Client(front) as client:
        await client.wait_for_server(PATIENT_S)
        while sum("consumer" in peer.roles for peer in workers._calls._requests.peers()) < WORKERS:
            await asyncio.sleep(0.01)
        begun = time.perf_counter()
        answers = await asyncio.gather(*(scene.ask(client, prompt, length) for prompt in prompts))
        seconds = time.perf_counter() - begun
        overheads = await overhead_us(client, trips)
    right = ngram.Model().continuations(prompts, length)
    wrong = [i for i, answer in enumerate(answers) if answer["text"] != right[i]]
    moved = [answer["moved"] for answer in answers if answer["moved"]]
    return {
        "prompts": count,
        "tokens": scene.tokens,
        "seconds": seconds,
        "killed": scene.victim,
        "killed_at_token": scene.kill_at,
        "streams_moved": len(moved),
        "taken_over_ms": max((begun for begun, _ in moved), default=0.0),
        "new_token_ms": max((token for _, token in moved), default=0.0),
        "overhead_us_p50": float(np.percentile(overheads, 50)),
        "overhead_us_p99": float(np.percentile(overheads, 99)),
        "wrong": wrong,
        "sample": answers[0]["text"][:60].decode("latin-1"),
    }


@contextmanager
def processes(front: str, pool: str) -> Iterator[list[BaseProcess]]:
    """Scheduler and workers; they end when the front end does, however that ends."""
    context = multiprocessing.get_context("spawn")
    roles: watched.Roles = {"scheduler": (schedule, front, pool)}
    roles |= {f"worker {i}": (work, pool) for i in range(WORKERS)}
    os.environ.update(ONE_THREAD)
    started: list[BaseProcess] = []
    try:
        for name, call in roles.items():
            process: BaseProcess = context.Process(target=watched.child, args=call, name=name, daemon=True)
            with watched.interrupts_blocked():
                process.start()
            started.append(process)
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()
        with suppress(shmq.ShmqError):
            for name in (front, pool):
                aio.Client(name).unlink()
        for found in shmq.list_segments():  # of the processes that were killed here
            if found.name.startswith((front, pool)):
                shmq.unlink(found.name)


def say(report: Answer) -> None:
    """For people."""
    r = report
    print(f"{r['prompts']} prompts, {r['tokens']:,} tokens in {r['seconds']:.2f} s")
    print(f"killed worker pid {r['killed']} (SIGKILL) after {r['killed_at_token']:,} tokens")
    print(
        f"its {r['streams_moved']} streams were taken over after {r['taken_over_ms']:.0f} ms, and all had "
        f"new tokens after {r['new_token_ms']:.0f} ms, when the old ones had been computed again"
    )
    print(
        f"one token through three processes, without the worker's step ({STEP_S * 1e3:g} ms and the model): "
        f"p50 {r['overhead_us_p50']:.0f} us, p99 {r['overhead_us_p99']:.0f} us"
    )
    verdict = f"{len(r['wrong'])} answers are WRONG" if r["wrong"] else "every answer is whole and right"
    print(f"{verdict}; the first starts {r['sample']!r}")


def main(argv: list[str] | None = None) -> int:
    """0: every answer is right, though a worker was killed. 1: not so. 2: bad arguments."""
    parser = argparse.ArgumentParser(description="Token streams from workers, of which one is killed.")
    parser.add_argument("--prompts", type=int, help="default 64")
    parser.add_argument("--length", type=int, help="tokens of each answer; default 200")
    parser.add_argument("--quick", action="store_true", help="16 prompts of 100 tokens")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(argv)
    count = options.prompts or (16 if options.quick else 64)
    length = options.length or (100 if options.quick else 200)
    if count < 1 or length < 3:
        parser.error("--prompts must be at least 1, --length at least 3")
    token = f"serving-{os.getpid()}-{secrets.token_hex(3)}"
    front, pool = f"{token}.front", f"{token}.pool"
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        with processes(front, pool) as started:
            for process in started:
                console.print(f"{process.name}: pid {process.pid}")
            report = asyncio.run(front_end(front, pool, count, length, 50 if options.quick else 300))
    except (shmq.ShmqError, TimeoutError, KeyboardInterrupt) as error:
        console.print(f"serving: {str(error) or 'interrupted'}", style="red")
        return 1
    if options.json:
        print(json.dumps(report))
    else:
        say(report)
    return 0 if not report["wrong"] and report["killed"] else 1


if __name__ == "__main__":
    sys.exit(main())
