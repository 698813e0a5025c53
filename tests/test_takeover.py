"""SIGKILL at random moments, again and again; every message is accounted for by (life, number, CRC).

A run kills producers, consumers or both while they work through every kind of call.  Whoever is killed
leaves a count in memory that outlives it, so afterwards it is known to the message what may be missing:

    producer   all it had put is there, in order, once, whole; at most one call's messages beyond the count
    consumer   at most one call's messages are missing for each death (at-most-once), none comes twice
    arena      every page is free again

In profile soak there are many more deaths."""

import contextlib
import gc
import mmap
import os
import random
import select
import signal
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest

import shmq

SOAK = hypothesis.settings().max_examples >= 1000
DEATHS = 400 if SOAK else 6
PATIENCE = 60
Make = Callable[..., shmq.Queue]

BATCH = 5  # messages of one call, at most


class Ledger:
    """Memory shared with forked children: how many each life of a producer has put, and what was got.

    Each number is stored by one instruction, so it is whole whenever its writer dies."""

    def __init__(self, lives: int, capacity: int) -> None:
        self.counts = np.frombuffer(mmap.mmap(-1, 8 * (lives + 1)), "u8")
        self.log = np.frombuffer(mmap.mmap(-1, 8 * (1 + capacity)), "u8")

    def put(self, life: int, count: int) -> None:
        self.counts[life] = count

    def was_put(self, life: int) -> int:
        return int(self.counts[life])

    def got(self, entries: list[tuple[int, int]]) -> None:
        """The entries first, then their number: a death in between leaves them unread."""
        n = self.length()
        for i, (life, number) in enumerate(entries):
            self.log[1 + n + i] = life << 32 | number
        self.log[0] = n + len(entries)

    def length(self) -> int:
        return int(self.log[0])

    def entries(self) -> list[tuple[int, int]]:
        return [(int(e) >> 32, int(e) & 0xFFFFFFFF) for e in self.log[1 : 1 + self.length()]]


def payload(life: int, number: int) -> np.ndarray:
    size = (number * 2654435761 + life) % 97
    return np.arange(life + number, life + number + size * (40 if size < 30 else 3), dtype="u4")


def message(life: int, number: int, kind: int) -> Any:
    data = payload(life, number)
    crc = zlib.crc32(data.tobytes())
    if kind == 0:
        return struct.pack("=III", life, number, crc) + data.tobytes()
    if kind == 1:
        return {"life": life, "number": number, "crc": crc, "data": data}
    return [life, number, crc, data.repeat(2)[::2]]


def check(got: Any) -> tuple[int, int]:
    """(life, number) of a message; fails where it is not whole."""
    if isinstance(got, bytes):
        life, number, crc = struct.unpack_from("=III", got)
        data = got[12:]
    elif isinstance(got, dict):
        life, number, crc, data = got["life"], got["number"], got["crc"], got["data"].tobytes()
    elif isinstance(got, np.ndarray):
        life, number, crc = (int(x) for x in got[:3])
        data = got[3:].tobytes()
    else:
        life, number, crc, data = got[0], got[1], got[2], got[3].tobytes()
    assert zlib.crc32(data) == crc
    assert data == payload(life, number).tobytes()
    return life, number


def produce(q: shmq.Queue, ledger: Ledger, life: int) -> None:
    """Puts for ever, by every call there is."""
    number = 0
    while True:
        how = (life + number) % 4
        count = 1
        if how == 0:
            count = BATCH
            q.put_many([message(life, number + i, i % 3 if life % 2 else 0) for i in range(BATCH)])
        elif how == 1:
            data = payload(life, number)
            with q.loan(3 + len(data), "u4") as loan:
                loan.array[:3] = life, number, zlib.crc32(data.tobytes())
                loan.array[3:] = data
        else:
            q.put(message(life, number, number % 3))
        number += count
        ledger.put(life, number)


def consume(q: shmq.Queue, ledger: Ledger, life: int) -> None:
    """Gets for ever, by every call there is, and holds some views."""
    held: list[Any] = []
    turn = 0
    while True:
        turn += 1
        try:
            messages = q.get_many(BATCH) if (life + turn) % 3 == 0 else [q.get(copy=turn % 2 == 0)]
        except shmq.PeerDead:  # another one comes
            continue
        ledger.got([check(m) for m in messages])
        held = held[-4:] + messages
        del messages


class Victim:
    """A forked child that works until it is killed; one that ends by itself fails the test."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self.errors, theirs = os.pipe()
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
            self.pid = os.fork()
        if self.pid == 0:
            try:
                work(*arguments)
            except BaseException as e:
                os.write(theirs, repr(e).encode())
            finally:
                os._exit(1)
        os.close(theirs)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        said = os.read(self.errors, 4096).decode() if select.select([self.errors], [], [], 0)[0] else ""
        os.close(self.errors)
        assert os.WTERMSIG(status) == signal.SIGKILL, said
        assert said == ""


@pytest.mark.parametrize("cursor", [0, 2**64 - 2], ids=["zero", "wrap"])
@pytest.mark.parametrize("whom", ["producers", "consumers", "both"])
@pytest.mark.timeout(60 + DEATHS * 2)
def test_take_over(make: Make, monkeypatch: pytest.MonkeyPatch, whom: str, cursor: int) -> None:
    monkeypatch.setattr("shmq.handle.CURSOR_START", cursor)
    rng = random.Random(f"{whom}{cursor}" + (str(time.time()) if SOAK else ""))
    q = make(ring_bytes=4096, arena_bytes=40 * (16 << 10), inline_bytes=512, max_peers=8)
    ledger = Ledger(lives=DEATHS + 2, capacity=4_000_000 if SOAK else 400_000)
    lives = {"producer": 0, "consumer": 0}
    deaths_of_consumers = 0

    def born(role: str) -> Victim:
        lives[role] += 1
        return Victim(produce if role == "producer" else consume, q, ledger, lives[role])

    victims = {role: born(role) for role in lives}
    try:
        for _ in range(DEATHS):
            seen = ledger.length()
            deadline = time.monotonic() + PATIENCE
            while ledger.length() < seen + 3:  # everything goes on after each death
                assert time.monotonic() < deadline, "nothing moves any more"
                time.sleep(0.0005)
            time.sleep(rng.random() * 0.003)  # the random moment
            roles = {"producers": ["producer"], "consumers": ["consumer"], "both": list(victims)}[whom]
            if whom == "both" and rng.random() < 0.7:
                roles = [rng.choice(roles)]
            for role in roles:
                victims.pop(role).kill()
                deaths_of_consumers += role == "consumer"
            for role in roles:
                victims[role] = born(role)
        victims.pop("producer").kill()
        victims.pop("consumer").kill()
        deaths_of_consumers += 1
    finally:
        for victim in victims.values():
            victim.kill()

    rest = []
    with contextlib.suppress(shmq.Empty):
        while True:
            with contextlib.suppress(shmq.PeerDead):
                rest.append(check(q.get(timeout=0.25)))  # a wait, so that it repairs what the dead left
    got = ledger.entries() + rest
    assert len(set(got)) == len(got), "a message came twice"
    assert [life for life, _ in got] == sorted(life for life, _ in got)
    missing = 0
    for life in range(1, lives["producer"] + 1):
        numbers = [number for its, number in got if its == life]
        assert numbers == sorted(numbers)
        put = ledger.was_put(life)
        assert not numbers or numbers[-1] < put + BATCH
        missing += len(set(range(put)) - set(numbers))
        missing += len(set(range(put, numbers[-1] + 1 if numbers else 0)) - set(numbers))
    assert missing <= BATCH * deaths_of_consumers, f"{missing} messages are lost"
    if whom == "producers":  # only the last consumer died, while the last messages were there
        assert missing <= BATCH
    s = q.stats()
    assert s.pages["free"] == sum(s.pages.values()), s.pages
    assert s.messages_put == s.messages_got
    assert len(q.peers()) == 1
    assert shmq._core.lib.shmq_validate(q._c) == 0
    q.put(b"and on it goes")
    assert q.get() == b"and on it goes"


def hold(name: str, pipe: int, close: bool) -> None:
    mine = shmq.Queue.attach(name)
    view = mine.get(timeout=PATIENCE)
    if close:
        mine.close()
    os.write(pipe, b".")
    time.sleep(PATIENCE)
    del view


@pytest.mark.timeout(60 + DEATHS * 2)
def test_take_over_of_holders(make: Make) -> None:
    """Peers without a role die too: who only looked, and who held views of a queue that they had closed."""
    q = make(max_peers=8)
    for i in range(DEATHS // 5):
        q.put_many([np.full(3000, i), b"next"])
        ours, theirs = os.pipe()
        holder = Victim(hold, q.name, theirs, i % 2 == 0)
        assert os.read(ours, 1) == b"."
        os.close(ours)
        os.close(theirs)
        assert q.stats().pages["leased"] == 1
        holder.kill()
        assert q.get(timeout=PATIENCE) == b"next"  # the role is free, or taken over
        make().close()  # whoever attaches repairs
        assert q.stats().pages["leased"] == 0
        assert len(q.peers()) == 1
        q.close()
        q = make()
