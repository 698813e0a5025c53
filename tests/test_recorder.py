"""Flight recorders: what each peer holds and does, and what is left of it to read after its death."""

import json
import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import command
import numpy as np
import pytest

import shmq

Make = Callable[..., shmq.Queue]
TICK_S = 0.02
"""More than the coarse clock's resolution anywhere."""

WORKER = """
import sys, time
import numpy as np
import shmq
q = shmq.Queue(sys.argv[1])
{work}
print("ready", flush=True)
{then}
time.sleep(600)
"""


@pytest.fixture
def die(script, make: Make) -> Callable[..., tuple[shmq.Queue, int]]:
    """A worker that does its work, says so, and is killed; the queue, and its pid."""

    def die(work: str, then: str = "", wait_for: str = "") -> tuple[shmq.Queue, int]:
        q = make()
        child = script(WORKER.format(work=work, then=then), q.name)
        assert child.line() == "ready"
        pid = child.process.pid
        deadline = time.monotonic() + 60
        while wait_for and not any(p.pid == pid and p.last and p.last.op == wait_for for p in q.peers()):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        child.process.send_signal(signal.SIGKILL)
        child.process.wait()
        return q, pid

    return die


def the_dead(q: shmq.Queue) -> shmq.DeadPeer:
    (dead,) = shmq.inspect(q.name).dead
    return dead


def did(peer: shmq.DeadPeer) -> list[tuple[str, str]]:
    return [(e.op, e.what) for e in peer.events]


# ---- deaths ----


def test_killed_while_it_held_a_loan(die: Callable[..., tuple[shmq.Queue, int]]) -> None:
    began = time.time()
    q, pid = die("q.put(b'x' * 10)\nloan = q.loan((20_000,), 'uint8')")
    before_repair = the_dead(q)
    assert (before_repair.found_at, before_repair.found_by) == (None, None)
    assert q.reap() == 1
    dead = the_dead(q)
    assert (dead.pid, dead.roles, dead.epoch) == (pid, {"producer"}, 0)
    assert (dead.blocks_loaned, dead.blocks_leased, dead.held_bytes) == (1, 0, 2 * 16384)
    assert (dead.messages_put, dead.messages_got) == (1, 0)
    assert did(dead)[:3] == [("attach", ""), ("role", "producer"), ("put", "position 0")]
    assert [e.op for e in dead.events[3:]] == ["loan"]
    assert dead.found_by == os.getpid()
    assert dead.found_at is not None
    assert dead.holding_since is not None
    assert (
        began - TICK_S
        <= dead.attached_at - TICK_S
        <= dead.holding_since
        <= dead.found_at
        <= time.time() + TICK_S
    )
    assert dead.events[-1].at == pytest.approx(dead.holding_since, abs=0.001)
    assert before_repair.held_bytes == dead.held_bytes
    assert [e.op for e in before_repair.events] == [e.op for e in dead.events]


def test_killed_while_it_held_a_view(make: Make, die: Callable[..., tuple[shmq.Queue, int]]) -> None:
    producer = make()
    producer.put(np.zeros(10_000))
    producer.put(b"next")
    q, pid = die("view = q.get()")
    assert q.reap() == 1
    dead = the_dead(q)
    assert (dead.pid, dead.roles) == (pid, {"consumer"})
    assert (dead.blocks_loaned, dead.blocks_leased, dead.held_bytes) == (0, 1, 5 * 16384)
    assert did(dead) == [
        ("attach", ""),
        ("role", "consumer"),
        ("lease", "block 0"),
        ("get", "position 0"),
    ]
    assert q.get() == b"next"
    assert the_dead(q).held_bytes == dead.held_bytes  # what it had then, not what is left


def test_killed_while_it_was_parked(die: Callable[..., tuple[shmq.Queue, int]]) -> None:
    q, _pid = die("q.put(b'x')\nq.get()", "q.get()", wait_for="wait_get")
    assert q.reap() == 1
    dead = the_dead(q)
    assert did(dead)[-1] == ("wait_get", "a message")
    assert (dead.held_bytes, dead.blocks_leased, dead.holding_since) == (0, 0, None)


def test_a_long_wait_is_one_event(
    make: Make, script: Callable[..., object], poll: Callable[..., object]
) -> None:
    q = make()
    child = script(WORKER.format(work="", then="q.get()"), q.name)
    assert child.line() == "ready"

    def waiting() -> list[shmq.Peer]:
        return [p for p in q.peers() if p.parks >= 3]  # slices of 100 ms

    (peer,) = poll(waiting)
    assert peer.last.op == "wait_get"
    assert time.time() - peer.last.at > 0.2  # since it began
    child.stop()
    q.reap()
    assert [e.op for e in the_dead(q).events].count("wait_get") == 1


def test_post_mortems_outlive_the_replacements(
    make: Make, die: Callable[..., tuple[shmq.Queue, int]]
) -> None:
    _first, one = die("q.put(1)")
    q, two = die("q.get()")
    replacements = [make() for _ in range(3)]  # the first of these repairs what the second left
    for handle in replacements:
        handle.close()
    dead = {d.pid: d for d in shmq.inspect(q.name).dead}
    assert set(dead) == {one, two}
    assert dead[one].found_by == dead[two].found_by == os.getpid()
    assert dead[one].found_at is not None
    assert dead[one].found_at <= dead[two].found_at
    assert ("get", "position 0") in did(dead[two])


def test_a_full_table_takes_the_oldest_post_mortem(make: Make, script: Callable[..., object]) -> None:
    q = make(max_peers=3)
    pids = []
    for _ in range(4):
        child = script(WORKER.format(work="", then=""), q.name)
        assert child.line() == "ready"
        child.process.kill()
        child.process.wait()
        pids.append(child.process.pid)
        assert q.reap() == 1
        known = {d.pid for d in shmq.inspect(q.name).dead}
        assert known == set(pids[-2:])


def test_who_leaves_is_not_dead(make: Make) -> None:
    make()
    other = make()
    other.put(b"x")
    other.close()
    assert shmq.inspect(other.name).dead == []


# ---- the living ----


def test_peers_say_what_they_hold_and_since_when(make: Make) -> None:
    producer, consumer = make(), make()
    producer.put(np.zeros(10_000))
    assert consumer.peers()[1].holding_since is None
    began = time.time()
    view = consumer.get()
    mine = producer.peers()[1]
    assert (mine.blocks_loaned, mine.blocks_leased, mine.held_bytes) == (0, 1, 5 * 16384)
    assert mine.holding_since is not None
    assert began - TICK_S < mine.holding_since < time.time() + TICK_S
    assert mine.last is not None
    assert (mine.last.op, mine.last.cursor) == ("get", 0)
    with producer.loan((100,), "uint8"):
        assert producer.peers()[0].blocks_loaned == 1
    assert producer.peers()[0].last.op == "publish"
    del view
    mine = producer.peers()[1]
    assert (mine.blocks_leased, mine.held_bytes, mine.holding_since) == (0, 0, None)
    assert mine.last.op == "release"


def test_a_slow_worker_s_events_are_exact(make: Make, poll: Callable[..., object]) -> None:
    q = make()
    for _ in range(20):
        q.put(b"x")
    # At most seven events of its last run go without a look at the clock; then each get has one.
    for _ in range(9):
        until = time.monotonic() + TICK_S
        poll(lambda until=until: time.monotonic() > until)
        before = time.time()
        q.get()
    last = q.peers()[0].last
    assert last is not None
    assert last.exact
    assert before - TICK_S <= last.at <= time.time() + TICK_S


# ---- the bytes ----


def test_an_event_s_bytes(make: Make) -> None:
    q = make()
    q.put(b"x" * 100)
    q.put(b"y")
    path = Path("/dev/shm") / f"shmq.{q.name}"
    with path.open("rb") as file:
        entry = os.pread(file.fileno(), 1024, 4096 + 9 * 128)
    next_when, run = struct.unpack_from("<QQ", entry, 384)
    assert (next_when & 0xFFFF, run in (0, 1, 3, 7)) == (4, True)  # attach, role, put, put
    events = [struct.unpack_from("<QQ", entry, 400 + 16 * i) for i in range(4)]
    assert [when & 0xFFFF for when, _ in events] == [0, 1, 2, 3]
    assert [what >> 8 & 0xFF for _, what in events] == [0, 1, 2, 3]
    assert [what & 0x7F for _, what in events] == [1, 3, 4, 4]
    position = 8 if q.stats().kind == "mpmc" else 112
    assert [what >> 16 for _, what in events] == [0, 1, 0, position]
    seconds = [(when >> 36) + (when >> 16 & 0xFFFFF) * 1024e-9 for when, _ in events]
    assert seconds == sorted(seconds)
    assert abs(seconds[-1] - time.clock_gettime(time.CLOCK_MONOTONIC)) < 60
    assert entry[912:] == bytes(112)  # no verdict


def test_garbage_in_a_recorder_is_left_out(make: Make) -> None:
    q = make()
    q.put(b"x")
    path = Path("/dev/shm") / f"shmq.{q.name}"
    with path.open("r+b") as file:
        file.seek(4096 + 1024 + 384)
        file.write(os.urandom(1024 - 384))
    peer = q.peers()[0]
    assert peer.last is None or peer.last.what
    q.put(b"y")
    assert [q.get(), q.get()] == [b"x", b"y"]


# ---- the command ----


def run(*arguments: str) -> str:
    return command.run(*arguments).stdout


def test_the_command_tells_of_the_dead(die: Callable[..., tuple[shmq.Queue, int]]) -> None:
    q, pid = die("for i in range(3): q.put(b'x')\nloan = q.loan((20_000,), 'uint8')")
    assert "not repaired yet" in run("stat", q.name, "--dead")
    q.reap()
    text = run("stat", q.name, "--dead")
    assert f"pid {pid} (python" in text
    assert f"by pid {os.getpid()}" in text
    assert "had in hand  1 block on loan, 32,768 bytes, since " in text
    assert "3 put, 0 got" in text
    lines = text.splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("before last"))) + 1 :]
    assert [line.split()[1] for line in table] == ["attach", "role", "put", "put", "put", "loan"]
    assert table[-1].split() == ["0.000", "loan", "block", "0"]
    (dead,) = json.loads(run("stat", q.name, "--dead", "--json"))
    assert (dead["pid"], dead["blocks_loaned"], dead["events"][-1]["op"]) == (pid, 1, "loan")
    assert "1, see --dead" in run("stat", q.name)
    assert json.loads(run("stat", q.name, "--json"))["dead"][0]["pid"] == pid


def test_the_command_where_nobody_died(make: Make) -> None:
    q = make()
    assert run("stat", q.name, "--dead").startswith(f"{q.name}: no peer has died")
    assert json.loads(run("stat", q.name, "--dead", "--json")) == []
    assert "see --dead" not in run("stat", q.name)
    command.run("stat", q.name, "--dead", "--watch", "1", expect=2)
