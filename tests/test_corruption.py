"""Something writes garbage into a live segment: an error of ours or wrong data, never a crash, never a hang.

The work is done by a child (this file, run as a program), which notes each mutation in a file before it
looks at what became of it.  ``HYPOTHESIS_PROFILE=soak`` runs 10,000 mutations, not 2,000.
"""

import faulthandler
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shmq._core import ffi, lib

import shmq

SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
MUTATIONS = 10_000 if SOAK else 2_000
PER_SEGMENT = 16
WATCHDOG_S = 60
INLINE_BYTES = 1024
ARENAS = [0, 64 << 10, 256 << 10]
CONTROL_AT, HEADER_BYTES, PEER_BYTES, BLOCK_BYTES = 4096, 216, 1024, 128
GEOMETRY_AT = 56
GEOMETRY = struct.Struct("<14Q12I")
FAVOURITES = [0, 1, 7, 8, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1, (1 << 64) - 8, 16384, 16385]


class Garbage:
    """Writes one damaged word at a time into a segment's file."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.rng = rng
        with open(f"/dev/shm/shmq.{name}", "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)
        geometry = GEOMETRY.unpack_from(self.memory, GEOMETRY_AT)
        _, self.peers_at, self.ring_at, self.pending_at, _, self.keys_at, self.words_at = geometry[:7]
        self.blocks_at = geometry[7]
        self.urgent_at, self.ring_bytes = geometry[10:12]
        self.slots, self.slot_bytes = geometry[15:17]  # of an mpmc ring; 0 of a byte ring
        small, large = geometry[18:20]
        self.pending, self.keys, self.urgent_slots = geometry[22:25]
        self.pages = small + large

    def places(self) -> dict[str, tuple[int, int]]:
        """Where damage is done: offset and bytes."""
        head = struct.unpack_from("<Q", self.memory, CONTROL_AT + 128)[0]
        head = head % self.slots * self.slot_bytes if self.slots else head % self.ring_bytes & ~7
        everywhere = {
            "header": (0, HEADER_BYTES),
            "control": (CONTROL_AT, (8 if self.urgent_slots else 6) * 128),
            "peers": (self.peers_at + self.rng.randrange(3) * PEER_BYTES, 64),
            "next record": (self.ring_at + head, 24 if self.slots else 8),
            "records": (self.ring_at, self.ring_bytes),
            "urgent lane": (self.urgent_at, self.urgent_slots * self.slot_bytes),
            "pending table": (self.pending_at, self.pending * (32 + self.slot_bytes)),
            "keys": (self.keys_at, (8 + 16) * self.keys),
            "turn": (CONTROL_AT + 8 * 128, 40 * min(self.keys, 1)),
            "page words": (self.words_at, 8 * self.pages),
            "block headers": (self.blocks_at, BLOCK_BYTES * min(self.pages, 6)),
        }
        return {place: span for place, span in everywhere.items() if span[1]}

    def mutate(self, only: str = "") -> str:
        places = self.places()
        place = only or self.rng.choice(list(places))
        start, size = places[place]
        at = start + 8 * self.rng.randrange(size // 8)
        (before,) = struct.unpack_from("<Q", self.memory, at)
        after = self.rng.choice(
            [
                before ^ 1 << self.rng.randrange(64),
                before ^ 1 << self.rng.randrange(64),
                self.rng.choice(FAVOURITES),
                before + 8 * self.rng.randrange(-600, 600) & (1 << 64) - 1,
                self.rng.getrandbits(64),
            ]
        )
        struct.pack_into("<Q", self.memory, at, after)
        return f"{place}: the word at {at:#x} was {before:#x} and became {after:#x}"


def size_of(value: Any) -> int:
    """Reads all of a received value; its bytes."""
    if isinstance(value, np.ndarray):
        value.tobytes()
        return value.nbytes
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    if isinstance(value, list):
        return sum(map(size_of, value))
    return 0


class Worker:
    """Two handles, garbage between them, and everything that a user may call."""

    def __init__(self, prefix: str, seed: int, note: Callable[[str], None]) -> None:
        self.prefix = prefix
        self.rng = random.Random(seed)
        self.note = note
        self.outcomes: Counter[str] = Counter()
        self.views: list[Any] = []
        self.largest = 0

    def attempt(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Only our own errors may come; the rest ends the worker."""
        try:
            found = call(*args, **kwargs)
        except shmq.ShmqError as e:
            error = e
        else:
            self.outcomes["ok"] += 1
            return found
        assert len(str(error)) > 20, f"{type(error).__name__} says nothing"
        self.outcomes[type(error).__name__] += 1
        return None

    def message(self) -> Any:
        size = self.rng.randrange(1, 12_000)
        return self.rng.choice(
            [
                b"x" * self.rng.randrange(200),
                b"y" * size,
                {"a": [1, 2.5, "three"], "b": None},
                np.arange(self.rng.randrange(100), dtype=np.int32),
                np.arange(size, dtype=np.float64),
                {"one": np.ones((7, size)), "two": [np.zeros(3, np.uint8)]},
                np.zeros(20, [("a", "i4"), ("b", "f8", (2,))]),
                np.float32(3),
            ]
        )

    def receive(self, value: Any) -> None:
        if value is not None:
            assert size_of(value) <= max(self.largest, INLINE_BYTES), (
                "a message that is longer than the arena"
            )
            self.views.append(value)
            del self.views[: -self.rng.randrange(1, 4)]

    def timeout(self) -> float:
        return 0.0005 if self.rng.random() < 0.02 else 0

    def urgent(self, q: shmq.Queue) -> bool:
        return q._has_priority and self.rng.random() < 0.5

    def look(self, q: shmq.Queue) -> None:
        self.attempt(q.stats)
        self.attempt(q.peers)
        self.attempt(q.full)
        self.attempt(shmq.inspect, q.name)
        for peeked in self.attempt(shmq.peek, q.name, 3) or []:
            assert len(peeked.preview) <= 300
        self.outcomes[f"validate: {ffi.string(lib.shmq_status_text(lib.shmq_validate(q._c))).decode()}"] += 1

    def use(self, producer: shmq.Queue, consumer: shmq.Queue) -> None:
        self.attempt(producer.put, self.message(), timeout=self.timeout(), priority=self.urgent(producer))
        self.attempt(producer.put_many, [b"a", b"b" * 100, self.message()], timeout=0)
        self.attempt(self.write_in_place, producer)
        if producer._dedupe:
            for _ in range(3):
                key = str(self.rng.randrange(6))
                self.attempt(producer.put, self.message(), timeout=self.timeout(), key=key)
        self.look(consumer)
        for _ in range(3):
            self.receive(self.attempt(consumer.get, timeout=self.timeout(), copy=self.rng.random() < 0.3))
        self.receive(self.attempt(consumer.get_many, 4, timeout=0))
        if consumer._max_unacked:
            self.lease(producer)
            self.lease(consumer)
        if self.rng.random() < 0.25:
            lib.shmq_reap(consumer._c, ffi.new("uint32_t *"))
        if self.rng.random() < 0.1:
            self.newcomer(consumer.name)

    def lease(self, q: shmq.Queue) -> None:
        message = self.attempt(q.lease, timeout=0)
        if message is not None:
            self.receive(message.value)
            self.attempt(self.rng.choice([message.ack, message.nack, message.deliveries.__int__]))

    def write_in_place(self, q: shmq.Queue) -> None:
        loan = q.loan((5, 1000), "float32", timeout=0, priority=self.urgent(q))
        try:
            loan.array[:] = 1
            if self.rng.random() < 0.7:
                loan.publish(timeout=0)
        finally:
            loan.discard()

    def newcomer(self, name: str) -> None:
        q = self.attempt(shmq.Queue.attach, name, timeout=0)
        if q is not None:
            with q:
                self.look(q)
                self.attempt(q.put, b"hello", timeout=0)
                self.attempt(q.get, timeout=0)

    def one_segment(self, number: int, mutations: int) -> None:
        arena = self.rng.choice(ARENAS)
        name = f"{self.prefix}-{number}"
        how: dict[str, Any] = {
            "ring_bytes": 4096,
            "inline_bytes": INLINE_BYTES,
            "arena_bytes": arena,
            "max_peers": 6,
            "kind": ("spsc", "mpmc", "mpmc")[number // PER_SEGMENT % 3],
        }
        if how["kind"] == "mpmc":
            how["dedupe"] = self.rng.randrange(1, 6)
        if number // PER_SEGMENT % 3 == 2:
            how |= {"delivery": "at_least_once", "max_unacked": 4, "visibility": 0.001, "max_deliveries": 0}
        how["priority"] = how["kind"] == "mpmc" and self.rng.random() < 0.5
        with shmq.Queue.create(name, **how) as producer, shmq.Queue.attach(name) as consumer:
            self.largest = producer.stats().largest_message_bytes
            try:
                garbage = Garbage(name, self.rng)
                for _ in range(mutations):
                    self.attempt(producer.put, self.message(), timeout=0, priority=self.urgent(producer))
                    self.note(garbage.mutate())
                    self.use(producer, consumer)
                self.views.clear()
            finally:
                producer.unlink()

    def damaged_headers(self, attaches: int) -> None:
        """A newcomer meets a header that is damaged already: it is refused, or it works."""
        name = f"{self.prefix}-headers"
        with shmq.Queue.create(name, ring_bytes=4096, inline_bytes=INLINE_BYTES, arena_bytes=64 << 10) as q:
            try:
                garbage = Garbage(name, self.rng)
                good = garbage.memory[:HEADER_BYTES]
                for _ in range(attaches):
                    for _ in range(self.rng.randrange(1, 4)):
                        self.note(garbage.mutate("header"))
                    self.newcomer(name)
                    for segment in shmq.list_segments():
                        assert segment.state in ("ready", "initialising", "foreign")
                    garbage.memory[:HEADER_BYTES] = good
                q.put(b"still there")
                assert q.get() == b"still there"
            finally:
                q.unlink()


def main(prefix: str, seed: int, mutations: int, notes: str, sabotage: str) -> None:
    """Prints what the calls came to, as JSON."""
    with open(notes, "w+b", buffering=0) as file:
        file.write(bytes(256))
        last = mmap.mmap(file.fileno(), 256)

    def note(text: str) -> None:
        last[:] = text.encode().ljust(256)[:256]

    worker = Worker(prefix, seed, note)
    if sabotage:
        {
            "crash": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "hang": lambda: signal.pause(),
            "error": lambda: worker.attempt(int, "no number"),
            "length": lambda: worker.receive(bytes(INLINE_BYTES + 1)),
        }[sabotage]()
    for number in range(0, mutations, PER_SEGMENT):
        faulthandler.dump_traceback_later(WATCHDOG_S, exit=True)
        worker.one_segment(number, min(PER_SEGMENT, mutations - number))
    faulthandler.dump_traceback_later(WATCHDOG_S, exit=True)
    worker.damaged_headers(mutations // 10)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(worker.outcomes))


def run_worker(
    name: str,
    tmp_path: Path,
    seed: int,
    mutations: int,
    sabotage: str = "",
    watchdog_s: float = WATCHDOG_S * 60,
) -> dict[str, int]:
    notes = tmp_path / "last"
    command = [sys.executable, __file__, name, str(seed), str(mutations), str(notes), sabotage]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=watchdog_s)
        failed = done.returncode != 0 and f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    except subprocess.TimeoutExpired:
        failed = "it hangs"
    finally:
        for path in Path("/dev/shm").glob(f"shmq.{name}-*"):
            path.unlink()
    if failed:
        last = notes.read_bytes().rstrip(b" \0").decode() if notes.exists() else ""
        pytest.fail(f"seed {seed}, after {last or 'nothing'}\n{failed}")
    outcomes: dict[str, int] = json.loads(done.stdout)
    return outcomes


@pytest.mark.timeout(WATCHDOG_S * 60)
@pytest.mark.parametrize("seed", [1, 2])
def test_garbage_in_a_live_segment(name: str, tmp_path: Path, seed: int) -> None:
    outcomes = run_worker(name, tmp_path, seed, MUTATIONS // 2)
    # It hurt, in more than one way, and it was not all that happened.
    assert outcomes["ok"] > MUTATIONS
    for error in ("Corrupt", "DecodeError", "NotASegment", "AbiMismatch"):
        assert outcomes.get(error, 0) > 0, outcomes


@pytest.mark.parametrize(
    ("sabotage", "says"),
    [("crash", "exit status -9"), ("hang", "it hangs"), ("error", "ValueError"), ("length", "longer than")],
)
def test_the_harness_notices(name: str, tmp_path: Path, sabotage: str, says: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=says):
        run_worker(name, tmp_path, 0, 1, sabotage, watchdog_s=2 if sabotage == "hang" else WATCHDOG_S)


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
