"""The segment's bytes, read from its file with ``struct`` alone: what csrc/layout.h draws, said again.

A change here is a change of the ABI: it needs a new fingerprint, and a line in the change log.
"""

import hashlib
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import shmq


@pytest.fixture
def ring_kind() -> str:
    return "spsc"  # slots: see the end of this file


CONTROL_AT = 4096
LINE = 128
PEER_BYTES = 1024
SMALL_PAGE = 16 << 10
LARGE_PAGE = 2 << 20
GEOMETRY_AT = 56
GEOMETRY = struct.Struct("<14Q12I")
GEOMETRY_FIELDS = (
    *(
        "total_bytes",
        "peers_at",
        "ring_at",
        "pending_at",
        "copies_at",
        "keys_at",
        "words_at",
        "blocks_at",
        "small_at",
        "large_at",
        "urgent_at",
    ),
    *("ring_bytes", "visibility_ns", "first_cursor", "peers", "slots", "slot_bytes", "inline_bytes"),
    *("small_pages", "large_pages", "max_deliveries", "history", "pending", "keys", "urgent_slots", "unused"),
)
FREE, LOANED, INFLIGHT, LEASED, RETURNED, CONT = range(6)
PAD, BLOCK = 1, 2
RAW, MSGPACK, TENSOR = 0, 1, 2
FLOAT32 = 11

Make = Callable[..., shmq.Queue]


class Segment:
    """The file of a queue, field by field."""

    def __init__(self, queue: shmq.Queue) -> None:
        self.path = Path("/dev/shm") / f"shmq.{queue.name}"
        values = GEOMETRY.unpack(self.bytes(GEOMETRY_AT, GEOMETRY.size))
        self.geometry = dict(zip(GEOMETRY_FIELDS, values, strict=True))

    def bytes(self, at: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), size, at)

    def unpack(self, at: int, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.bytes(at, struct.calcsize(form)))

    def cursor(self, line: int) -> tuple[int, int]:
        """A cursor and the count of the tally entry that is valid at it."""
        cursor, *tally = self.unpack(CONTROL_AT + line * LINE, "<5Q")
        counts = [messages for messages, at in zip(tally[::2], tally[1::2], strict=True) if at == cursor]
        assert len(counts) == 1, f"cursor {cursor}, tally {tally}: exactly one entry is in use"
        return cursor, counts[0]

    def tail(self) -> tuple[int, int]:
        return self.cursor(0)

    def head(self) -> tuple[int, int]:
        return self.cursor(1)

    def roles(self) -> tuple[int, ...]:
        return self.unpack(CONTROL_AT + 4 * LINE, "<QQI")

    def peer(self, index: int) -> int:
        return self.geometry["peers_at"] + index * PEER_BYTES

    def ring(self, cursor: int, size: int) -> bytes:
        return self.bytes(self.geometry["ring_at"] + cursor % self.geometry["ring_bytes"], size)

    def word(self, page: int) -> dict[str, int]:
        (word,) = self.unpack(self.geometry["words_at"] + 8 * page, "<Q")
        return {
            "state": word & 7,
            "committed": word >> 3 & 1,
            "owner": word >> 4 & 0xFFF,
            "generation": word >> 16 & 0xFFF,
            "argument": word >> 28,
        }

    def page(self, page: int) -> int:
        g = self.geometry
        if page < g["small_pages"]:
            return g["small_at"] + page * SMALL_PAGE
        return g["large_at"] + (page - g["small_pages"]) * LARGE_PAGE


@pytest.fixture
def segment(q: shmq.Queue) -> Segment:
    return Segment(q)


def test_header(q: shmq.Queue, segment: Segment) -> None:
    assert segment.bytes(0, 8) == b"\0SHMQB01"
    fingerprint, kind, flags = segment.unpack(8, "<QII")
    abi, header, control, peer, block_header, slot = 2, 216, 1152, 1024, 128, 32
    expected = abi << 48 ^ header << 40 ^ control << 28 ^ peer << 16 ^ block_header << 8 ^ slot
    assert (fingerprint, kind, flags) == (expected, 1, 0)
    assert segment.bytes(24, 16).hex() == q.stats().uuid
    created, pid, uid = segment.unpack(40, "<QII")
    assert abs(created / 1e9 - time.time()) < 60
    assert (pid, uid) == (os.getpid(), os.geteuid())
    assert segment.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("ring", "arena", "small", "large"),
    [
        (1 << 16, 1 << 20, 64, 0),
        (1 << 12, 0, 0, 0),
        (1 << 20, (4 << 20) - 1, 256, 0),
        (1 << 20, 4 << 20, 64, 2),
        (1 << 16, 9 << 20, 144, 5),
    ],
)
def test_geometry(make: Make, ring: int, arena: int, small: int, large: int) -> None:
    g = Segment(make(ring_bytes=ring, arena_bytes=arena, inline_bytes=512, max_peers=5)).geometry
    pages = small + large
    assert (g["small_pages"], g["large_pages"]) == (small, large)
    assert (g["ring_bytes"], g["inline_bytes"], g["peers"]) == (ring, 512, 5)
    assert g["first_cursor"] == g["slots"] == g["slot_bytes"] == g["max_deliveries"] == g["history"] == 0
    # Each part begins where the one before ends, rounded up to its own alignment.
    at = CONTROL_AT + 9 * LINE
    assert g["peers_at"] == at
    for field, size, alignment in [
        ("ring_at", 5 * PEER_BYTES, 4096),
        ("words_at", ring, 4096),
        ("blocks_at", 8 * pages, LINE),
        ("small_at", LINE * pages, 4096),
        ("large_at", small * SMALL_PAGE, LARGE_PAGE if large else 4096),
        ("total_bytes", large * LARGE_PAGE, 1),
    ]:
        at = -(-(at + size) // alignment) * alignment
        assert g[field] == at, field


def test_the_file_is_as_long_as_the_geometry_says(segment: Segment) -> None:
    st = segment.path.stat()
    assert st.st_size == segment.geometry["total_bytes"]
    assert st.st_blocks * 512 >= st.st_size  # reserved, not only promised


def test_peer_slot(q: shmq.Queue, segment: Segment) -> None:
    at = segment.peer(0)
    word, attached, pid, roles, ticks, doorbell, comm = struct.unpack("<QQIIQQ16s", segment.bytes(at, 56))
    assert word == 1  # LIVE, epoch 0
    assert abs(attached / 1e9 - time.time()) < 60
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert (pid, roles, ticks, doorbell) == (os.getpid(), 0, int(stat[19]), 0)
    assert comm.rstrip(b"\0").decode() == Path("/proc/self/comm").read_text().rstrip("\n")
    assert segment.unpack(segment.peer(1), "<Q") == (0,)

    q.put(b"x" * 100)
    q.get()
    q.put(b"y" * 10)
    assert segment.unpack(at + LINE, "<4Q") == (2, 110, 1, 100)  # put, bytes; got, bytes


def test_peer_slots_are_taken_and_left(make: Make) -> None:
    first, second = make(), make()
    segment = Segment(first)
    assert segment.unpack(segment.peer(1), "<Q") == (1,)
    second.close()
    assert segment.unpack(segment.peer(1), "<Q") == (0 | 1 << 8,)  # FREE, epoch 1
    make()
    assert segment.unpack(segment.peer(1), "<Q") == (1 | 1 << 8,)


def test_roles_and_life_cycle(make: Make) -> None:
    producer, consumer = make(), make()
    segment = Segment(producer)
    assert segment.roles() == (0, 0, 0)
    producer.put(b"")
    assert segment.roles() == (1, 0, 0)  # the peer's index + 1, of its epoch 0
    consumer.get()
    assert segment.roles() == (1, 2, 0)
    producer.close()
    assert segment.roles() == (0, 2, 0)
    again = make()
    again.put(b"")
    assert segment.roles() == (1 | 1 << 16, 2, 0)  # slot 0 in its epoch 1
    again.shutdown()
    assert segment.roles()[2] == 1
    again.shutdown(immediate=True)
    assert segment.roles()[2] == 2


def test_records(q: shmq.Queue, segment: Segment) -> None:
    assert segment.tail() == (0, 0)
    q.put(b"hello")
    assert segment.tail() == (16, 1)
    assert segment.head() == (0, 0)
    assert segment.ring(0, 13) == struct.pack("<IHH", 5, RAW, 0) + b"hello"
    q.put({"a": 1})
    assert segment.tail() == (32, 2)
    assert segment.ring(16, 12) == struct.pack("<IHH", 4, MSGPACK, 0) + b"\x81\xa1a\x01"
    q.put(b"")
    assert segment.tail() == (40, 3)
    assert segment.ring(32, 8) == bytes(8)
    q.get()
    assert segment.head() == (16, 1)
    assert segment.tail() == (40, 3)


def test_a_pad_record_fills_the_ring_s_end(make: Make) -> None:
    q = make(ring_bytes=4096, inline_bytes=1024)
    segment = Segment(q)
    for _ in range(4):
        q.put(b"x" * 1000)  # 1008 bytes each: 64 are left
    q.get()
    q.put(b"y" * 100)
    assert segment.ring(4032, 8) == struct.pack("<IHH", 56, 0, PAD)
    assert segment.ring(4096, 108) == struct.pack("<IHH", 100, RAW, 0) + b"y" * 100
    assert segment.tail() == (4096 + 112, 5)
    assert [len(q.get()) for _ in range(4)] == [1000, 1000, 1000, 100]


def test_eventcounts_are_still_while_nobody_sleeps(q: shmq.Queue, segment: Segment) -> None:
    for i in range(100):
        q.put(i)
        q.get()
    assert segment.unpack(CONTROL_AT + 2 * LINE, "<II") == (0, 0)  # not_empty: epoch, armed
    assert segment.unpack(CONTROL_AT + 3 * LINE, "<II") == (0, 0)  # not_full
    with pytest.raises(shmq.Empty):
        q.get(timeout=0.001)
    assert segment.unpack(CONTROL_AT + 2 * LINE, "<II") == (0, 1)
    q.put(b"")
    assert segment.unpack(CONTROL_AT + 2 * LINE, "<II") == (1, 0)


def test_a_block_through_its_states(q: shmq.Queue, segment: Segment) -> None:
    shape = (3, 4096)  # 48 KiB: three small pages
    assert segment.word(0) == {"state": FREE, "committed": 0, "owner": 0, "generation": 0, "argument": 0}
    q.put(b"first")
    loan = q.loan(shape, "float32")
    first = {"state": LOANED, "committed": 0, "owner": 0, "generation": 1, "argument": 0}
    rest = {"state": CONT, "committed": 0, "owner": 0, "generation": 1, "argument": 0}
    assert [segment.word(page) for page in range(4)] == [
        first,
        rest,
        rest,
        {**rest, "state": FREE, "generation": 0},
    ]

    loan.array[:] = np.arange(3 * 4096).reshape(shape)
    loan.publish()
    del loan
    assert segment.word(0) == {**first, "state": INFLIGHT, "argument": 16 >> 2}  # its record's cursor
    record = struct.pack("<IHH", 8, TENSOR, BLOCK) + struct.pack("<Q", 0 | 1 << 24)  # page, generation
    assert segment.ring(16, 16) == record
    payload, codec, flags, meta_bytes, deliveries, producer = segment.unpack(
        segment.geometry["blocks_at"], "<QHHIII"
    )
    assert (payload, codec, flags, meta_bytes, deliveries, producer) == (48 << 10, TENSOR, 0, 96, 0, 0)
    meta = segment.unpack(segment.geometry["blocks_at"] + 32, "<4BI11Q")
    assert meta == (FLOAT32, ord("C"), 2, 0, 0, 3, 4096, *[0] * 9)
    data = np.frombuffer(segment.bytes(segment.page(0), 48 << 10), "<f4")
    assert (data == np.arange(3 * 4096)).all()

    q.get()
    array = q.get()
    assert segment.word(0) == {**first, "state": LEASED}
    assert segment.word(1) == rest
    del array
    free = {**first, "state": FREE}
    assert [segment.word(page) for page in range(3)] == [free] * 3


def test_large_pages_follow_the_small_ones(make: Make) -> None:
    q = make(arena_bytes=8 << 20)
    segment = Segment(q)
    small = segment.geometry["small_pages"]
    assert small == 128
    loan = q.loan(3 << 20, "uint8")  # two large pages
    loan.array[-1] = 77
    assert segment.word(small)["state"] == LOANED
    assert segment.word(small + 1) == {**segment.word(small), "state": CONT, "argument": small}
    assert segment.bytes(segment.page(small) + (3 << 20) - 1, 1) == b"\x4d"
    assert segment.page(small) % LARGE_PAGE == 0
    loan.discard()
    assert segment.word(small)["state"] == segment.word(small + 1)["state"] == FREE


def test_a_small_array_lies_in_its_record(q: shmq.Queue, segment: Segment) -> None:
    q.put(np.array([1, 2, 3], np.float32))
    header = struct.pack("<IHH", 96 + 12, TENSOR, 0)
    meta = struct.pack("<4BI11Q", FLOAT32, ord("C"), 1, 0, 0, 3, *[0] * 10)
    assert segment.ring(0, 8 + 96 + 12) == header + meta + struct.pack("<3f", 1, 2, 3)
    assert segment.word(0)["state"] == FREE


# ---- slots ----

READY = 2  # FREE, WRITING, READY, READING, TOMB


def slot(segment: Segment, position: int, lane: str = "") -> dict[str, int]:
    g = segment.geometry
    at, slots = (g["urgent_at"], g["urgent_slots"]) if lane == "urgent" else (g["ring_at"], g["slots"])
    at += position % slots * g["slot_bytes"]
    word, record, handle, deliveries, producer = segment.unpack(at, "<QQQII")
    return {
        "state": word & 7,
        "owner": word >> 3 & 0xFFF,
        "lap": word >> 15,
        "record": record,
        "handle": handle,
        "deliveries": deliveries,
        "producer": producer,
    }


def test_slots(make: Make) -> None:
    consumer, producer = make(kind="mpmc", ring_bytes=4096, inline_bytes=96), make(kind=None)
    segment = Segment(consumer)
    g = segment.geometry
    assert segment.unpack(16, "<II") == (2, 0)
    assert (g["slots"], g["slot_bytes"], g["inline_bytes"], g["ring_bytes"]) == (32, 128, 96, 4096)
    empty = dict.fromkeys(("state", "owner", "lap", "record", "handle", "deliveries", "producer"), 0)
    assert [slot(segment, i) for i in range(32)] == [empty] * 32
    producer.put(b"hello")
    (record,) = struct.unpack("<Q", struct.pack("<IHH", 5, RAW, 0))
    assert slot(segment, 0) == {**empty, "state": READY, "record": record, "producer": 1}
    assert segment.bytes(g["ring_at"] + 32, 5) == b"hello"
    assert (segment.unpack(CONTROL_AT, "<Q"), segment.unpack(CONTROL_AT + LINE, "<Q")) == ((1,), (0,))
    consumer.get()
    assert slot(segment, 0) == {**empty, "lap": 1, "record": record, "producer": 1}
    assert segment.unpack(CONTROL_AT + LINE, "<Q") == (1,)
    assert segment.roles() == (0, 0, 0)
    roles = [segment.unpack(segment.peer(i) + 20, "<I") for i in range(2)]
    assert roles == [(2,), (1,)]  # consumer, producer


def test_a_block_in_a_slot(make: Make) -> None:
    q = make(kind="mpmc", ring_bytes=4096, inline_bytes=96)
    segment = Segment(q)
    for _ in range(40):  # into the second lap
        q.put(b"")
        q.get()
    q.put(np.arange(1000, dtype=np.float32))
    found = slot(segment, 40)
    (record,) = struct.unpack("<Q", struct.pack("<IHH", 8, TENSOR, BLOCK))
    assert (found["state"], found["lap"], found["record"]) == (READY, 1, record)
    page, generation = found["handle"] & 0xFFFFFF, found["handle"] >> 24
    word = segment.word(page)
    assert (word["state"], word["generation"], word["argument"]) == (INFLIGHT, generation, 40 << 1)
    view = q.get()
    assert segment.word(page)["state"] == LEASED
    assert slot(segment, 40)["lap"] == 2
    del view
    assert segment.word(page)["state"] == FREE


def test_two_lanes(make: Make) -> None:
    q = make(kind="mpmc", ring_bytes=1 << 15, inline_bytes=96, priority=True)
    segment = Segment(q)
    g = segment.geometry
    assert (g["slots"], g["urgent_slots"], g["urgent_at"]) == (256, 32, g["ring_at"] + g["ring_bytes"])
    assert g["pending_at"] == g["words_at"] == g["urgent_at"] + 32 * 128
    for _ in range(40):  # into the second lap
        q.put(b"", priority=True)
        q.get()
    q.put(np.arange(1000, dtype=np.float32), priority=True)
    found = slot(segment, 40, "urgent")
    assert (found["state"], found["lap"]) == (READY, 1)
    page, generation = found["handle"] & 0xFFFFFF, found["handle"] >> 24
    word = segment.word(page)
    assert (word["state"], word["generation"], word["argument"]) == (INFLIGHT, generation, 40 << 1 | 1)
    cursors = [segment.unpack(CONTROL_AT + line * LINE, "<Q")[0] for line in (0, 1, 6, 7)]
    assert cursors == [0, 0, 41, 40]
    assert slot(segment, 0)["state"] == slot(segment, 40)["state"] == FREE


def test_an_entry_of_the_pending_table(make: Make) -> None:
    q = make(kind="mpmc", delivery="at_least_once", max_unacked=3, visibility=1000, max_deliveries=2)
    segment = Segment(q)
    g = segment.geometry
    assert (g["pending"], g["visibility_ns"], g["max_deliveries"]) == (3, 1000 * 10**9, 2)
    assert g["pending_at"] == g["ring_at"] + g["ring_bytes"]
    assert g["copies_at"] == g["pending_at"] + LINE  # 3 * 32 bytes, rounded up
    assert g["keys_at"] == g["copies_at"] + 3 * g["slot_bytes"]
    assert g["words_at"] == -(-g["keys_at"] // 4096) * 4096
    q.put(b"hello")
    q.put(np.ones(2000))
    first, second = q.lease(), q.lease()
    word, due, position, handle = segment.unpack(g["pending_at"], "<4Q")
    assert (word, position, handle) == (2, 0, 2**64 - 1)  # unacked, peer 0, serial 0
    assert 0 < due - time.monotonic_ns() <= 1000 * 10**9
    assert segment.unpack(CONTROL_AT + 5 * LINE, "<Q") == (due,)
    assert segment.bytes(g["copies_at"] + 32, 5) == b"hello"
    (*_, handle) = segment.unpack(g["pending_at"] + 32, "<4Q")
    assert handle == 0 | 1 << 24  # page, generation
    assert segment.word(0) == {"state": LEASED, "committed": 0, "owner": 0, "generation": 1, "argument": 2}
    first.ack()
    assert segment.unpack(g["pending_at"], "<Q") == (1 << 15,)  # vacant, serial 1
    second.nack(delay=1000)
    assert segment.unpack(g["pending_at"] + 32, "<Q") == (3,)  # waiting


def test_the_window_of_keys(make: Make) -> None:
    q = make(kind="mpmc", dedupe=3)
    segment = Segment(q)
    g = segment.geometry
    at, line = g["keys_at"], CONTROL_AT + 8 * LINE
    assert g["keys"] == 3
    assert at == g["ring_at"] + g["ring_bytes"]
    assert g["words_at"] == -(-(at + 4 * 8 + 3 * 16) // 4096) * 4096  # 4 chains, 3 entries

    def hashed(key: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")

    keys = [b"a", b"b", b"c", b"d"]
    before, newest = [0] * 5, [0] * 4
    for number, key in enumerate(keys, 1):
        assert q.put(b"", key=key)
        chain = hashed(key) * 0x9E3779B97F4A7C15 % 2**64 >> 62
        before[number], newest[chain] = newest[chain], number
    assert not q.put(b"", key=b"d")
    # Whose turn it is: nobody's; what the last one put, and its number; keys so far; repeats.
    assert segment.unpack(line, "<5Q") == (0, hashed(b"d"), 4, 4, 1)
    assert segment.unpack(at, "<4Q") == tuple(newest)
    # Key n lies in entry n mod 3.
    entries = [segment.unpack(at + 4 * 8 + 16 * i, "<2Q") for i in range(3)]
    assert entries == [(hashed(keys[n - 1]), before[n]) for n in (3, 4, 2)]
