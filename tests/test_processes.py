"""Two processes and more: fork, forkserver, spawn, pickled and inherited handles, deaths, take-overs."""

import contextlib
import fcntl
import gc
import multiprocessing
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shmq._core import lib

import shmq

Make = Callable[..., shmq.Queue]
ONE_OF_EACH = pytest.mark.parametrize("ring_kind", ["spsc"])
"""Of queues with one producer and one consumer at a time."""
PATIENCE = 60
F_OFD_SETLK = 37  # linux/fcntl.h
METHODS = ["fork", "forkserver", "spawn"]
Fork = Callable[[Callable[[], Any]], "Child"]
Start = Callable[..., Any]
SMALL = {"ring_bytes": 1 << 16, "arena_bytes": 1 << 20}


def living(q: shmq.Queue) -> int:
    """Attached handles whose process lives; who died stays listed until somebody repairs."""
    return sum(p.alive is True for p in q.peers())


# ---- children ----


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """From Python 3.12 on a fork beside threads warns.  Here it is what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class Child:
    """A forked child that runs ``work`` and sends back what it returned or raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.pipe, theirs = os.pipe()
        gc.collect()
        with forking():
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                try:
                    answer: Any = (True, work())
                except BaseException as e:
                    answer = (False, e)
                os.write(theirs, pickle.dumps(answer))
                status = 0
            finally:
                os._exit(status)
        os.close(theirs)

    def result(self) -> Any:
        """What ``work`` returned; raises what it raised.  The child has ended then."""
        received = b""
        deadline = time.monotonic() + PATIENCE
        while True:
            ready, _, _ = select.select([self.pipe], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self.kill()
                pytest.fail("the child hangs")
            part = os.read(self.pipe, 1 << 16)
            if not part:
                break
            received += part
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pipe)
        self.pid = 0
        assert status == 0, f"the child ended with status {status}"
        good, answer = pickle.loads(received)
        if not good:
            raise answer
        return answer

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.pipe)
            self.pid = 0


@pytest.fixture
def child() -> Iterator[Fork]:
    children: list[Child] = []

    def start(work: Callable[[], Any]) -> Child:
        children.append(Child(work))
        return children[-1]

    yield start
    for each in children:
        each.kill()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process by a multiprocessing method; it must end by itself with status 0."""
    processes: list[Any] = []

    def start(method: str, work: Callable[..., None], *arguments: Any) -> Any:
        context = multiprocessing.get_context(method)
        process = context.Process(target=work, args=arguments)
        with forking():
            process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.join(PATIENCE)
        hung = process.exitcode is None
        if hung:
            process.kill()
            process.join()
        code = process.exitcode
        process.close()
        assert not hung, "a child hangs"
        assert code == 0, f"a child ended with {code}"


# ---- by multiprocessing ----


def echo(inbox: shmq.Queue, outbox: shmq.Queue) -> None:
    while (message := inbox.get(timeout=PATIENCE)) is not None:
        outbox.put(message, timeout=PATIENCE)
        del message
    outbox.put({"pid": os.getpid(), "peers": len(inbox.peers())})


@pytest.mark.parametrize("anonymous", [False, True], ids=["named", "anonymous"])
@pytest.mark.parametrize("method", METHODS)
def test_handles_go_through_multiprocessing(name: str, start: Start, method: str, anonymous: bool) -> None:
    names = (None, None) if anonymous else (name + ".there", name + ".back")
    with shmq.Queue(names[0], **SMALL) as there, shmq.Queue(names[1], **SMALL) as back:
        process = start(method, echo, there, back)
        array = np.arange(5000)
        for message in (b"", b"x" * 20_000, "text", [1, {"a": 2.5}], array, {"deep": [array, array[::2]]}):
            there.put(message, timeout=PATIENCE)
            np.testing.assert_equal(back.get(timeout=PATIENCE), message)
        there.put(None)
        told = back.get(timeout=PATIENCE)
        assert told == {"pid": process.pid, "peers": 2}
        process.join(PATIENCE)
        for q in (there, back):
            if not anonymous:
                q.unlink()
    for q in (there, back):
        assert not Path(f"/dev/shm/shmq.{q.name}").exists()


def use_then_end(handle: shmq.Queue, how: str) -> None:
    handle.put([os.getpid()], timeout=PATIENCE)
    if how == "exit":
        sys.exit(0)


@pytest.mark.parametrize("how", ["return", "exit"])
@pytest.mark.parametrize("method", METHODS)
def test_the_end_of_a_child_leaves_its_parents_queue(start: Start, method: str, how: str) -> None:
    """No resource tracker and no exit handler of the child removes what the parent made."""
    with shmq.Queue(**SMALL) as q:
        for _ in range(2):
            process = start(method, use_then_end, q, how)
            process.join(PATIENCE)
            assert Path(f"/dev/shm/shmq.{q.name}").exists()
            assert q.get(timeout=PATIENCE) == [process.pid]
        q.put(b"goes on")  # the child's role ended with it
        assert q.get() == b"goes on"
        assert living(q) == 1


def make_anonymous(pipe: Any, keep: bool) -> None:
    q = shmq.Queue(**SMALL)
    if keep:
        globals()["kept"] = q
    q.put(np.arange(1000))
    view = q.get()
    pipe.send((q.name, int(view.sum())))


@pytest.mark.parametrize("keep", [False, True], ids=["dropped", "kept"])
@pytest.mark.parametrize("method", METHODS)
def test_an_anonymous_queue_of_a_child_goes_with_it(start: Start, method: str, keep: bool) -> None:
    """'Unlinked when the creating handle closes or its process exits.'"""
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        process = start(method, make_anonymous, theirs, keep)
        assert ours.poll(PATIENCE)
        queue_name, total = ours.recv()
        process.join(PATIENCE)
    assert total == 499500
    path = Path(f"/dev/shm/shmq.{queue_name}")
    left = path.exists()
    path.unlink(missing_ok=True)
    assert not left


def refuse_the_stale(frozen: bytes, pipe: Any) -> None:
    try:
        pickle.loads(frozen)
    except shmq.ShmqError as e:
        pipe.send(type(e).__name__)


@pytest.mark.parametrize("method", METHODS)
def test_stale_handles_are_refused(make: Make, start: Start, method: str) -> None:
    q = make()
    frozen = pickle.dumps(q)
    q.unlink()
    successor = make()
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        start(method, refuse_the_stale, frozen, theirs)
        assert ours.poll(PATIENCE)
        assert ours.recv() == "StaleHandle"
    assert living(successor) == 1


def produce(q: shmq.Queue, count: int) -> None:
    for i in range(count):
        q.put(np.full(700, i) if i % 3 == 0 else b"%d" % i if i % 3 == 1 else {"i": i}, timeout=PATIENCE)
    q.shutdown()


def number_of(message: Any) -> int:
    if isinstance(message, np.ndarray):
        assert (message == message[0]).all()
        return int(message[0])
    return int(message) if isinstance(message, bytes) else message["i"]


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_between_processes(start: Start, method: str) -> None:
    """Through a ring that is far too small for it, until the producer shuts it down."""
    with shmq.Queue(ring_bytes=4096, arena_bytes=1 << 20) as q:
        start(method, produce, q, 5000)
        got: list[int] = []
        with contextlib.suppress(shmq.ShutDown):
            while True:
                if len(got) % 2:
                    got.append(number_of(q.get(timeout=PATIENCE)))
                else:
                    got += map(number_of, q.get_many(10, timeout=PATIENCE))
        assert got == list(range(5000))
        s = q.stats()
        assert s.pages["free"] == sum(s.pages.values())


# ---- the last message before a shutdown ----


def test_shutdown_behind_the_last_message_never_hides_it(child: Fork) -> None:
    """'Gets go on until the queue is empty', also for a consumer that is interrupted while it looks.

    Both share one CPU, and the producer wakes up by a timer: so it puts and shuts down between any two
    instructions of the consumer.  A get that looks for a message first and for the shutdown then, and does
    not look for a message again, loses about one of fifty."""
    rounds = 400
    cpus = os.sched_getaffinity(0)
    queues = [shmq.Queue(ring_bytes=4096, arena_bytes=0, max_peers=4) for _ in range(rounds)]
    go, ours = socket.socketpair()

    def produce() -> None:
        for i, q in enumerate(queues):
            q.put(b"1", timeout=PATIENCE)
            go.recv(1)
            time.sleep(0.0003 * (i % 7 + 1) / 7)
            q.put(b"last")
            q.shutdown()

    try:
        os.sched_setaffinity(0, {min(cpus)})
        with go, ours:
            producer = child(produce)
            short = 0
            for q in queues:
                assert q.get(timeout=PATIENCE) == b"1"
                look = q._try_take  # get_nowait() without an exception each time, so that more looks fit
                ours.send(b".")
                got = 0
                while (found := look()) != lib.SHMQ_SHUT_DOWN:
                    got += found == b"last"
                short += got != 1
            producer.result()
        assert short == 0, f"{short} of {rounds} lost their last message"
    finally:
        os.sched_setaffinity(0, cpus)
        for q in queues:
            q.close()


# ---- at the end of the parent ----

MAIN = """
import sys
sys.path.insert(0, sys.argv[1])
import {module}
{module}.main(sys.argv[2], sys.argv[3])
"""
MODULE = """
import multiprocessing
import shmq

def child(anonymous, named):
    named.put(anonymous.get(timeout=60))

def main(method, name):
    named = shmq.Queue.attach(name)
    anonymous = shmq.Queue(ring_bytes=1 << 16, arena_bytes=1 << 20)
    anonymous.put(anonymous.name)
    multiprocessing.get_context(method).Process(target=child, args=(anonymous, named)).start()
    globals()["kept"] = anonymous, named
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_parent_that_does_not_join(
    make: Make, run: Callable[..., str], tmp_path: Path, method: str
) -> None:
    """multiprocessing joins children at exit; until then they may still have to attach."""
    module = f"main_{os.getpid()}"
    (tmp_path / f"{module}.py").write_text(MODULE)
    q = make()
    run(MAIN.format(module=module), str(tmp_path), method, q.name)
    queue_name = q.get(timeout=1)
    path = Path(f"/dev/shm/shmq.{queue_name}")
    left = path.exists()
    path.unlink(missing_ok=True)
    assert not left


# ---- inherited handles ----


def test_an_inherited_handle_attaches_anew(make: Make, child: Fork) -> None:
    q = make()
    q.put(b"from the parent")

    def work() -> Any:
        got = q.get(timeout=PATIENCE)
        q.stats()
        return got, os.getpid(), [(p.pid, p.alive, sorted(p.roles)) for p in q.peers()]

    got, pid, peers = child(work).result()
    assert got == b"from the parent"
    assert (os.getpid(), True, ["producer"]) in peers
    assert (pid, True, ["consumer"]) in peers
    q.put(b"more")
    assert q.get(timeout=PATIENCE) == b"more"  # the child's role ended with it


FIRST_USES: dict[str, Callable[[shmq.Queue], Any]] = {
    "get": lambda q: q.get(timeout=PATIENCE),
    "get_nowait": lambda q: q.get_nowait(),
    "get_many": lambda q: q.get_many(3, timeout=PATIENCE)[0],
    "qsize": lambda q: b"%d" % q.qsize() and b"message",
    "empty": lambda q: q.empty() or b"message",
    "full": lambda q: q.full() or b"message",
    "stats": lambda q: q.stats().name == q.name and b"message",
    "peers": lambda q: len(q.peers()) == 2 and b"message",
    "pickle": lambda q: pickle.loads(pickle.dumps(q)).get(),
    "reattach": lambda q: q.reattach() or q.get(),
    "closed": lambda q: q.closed or b"message",
    "repr": lambda q: "closed" not in repr(q) and b"message",
    "close": lambda q: q.close() or b"message",
    "unlink": lambda q: q.unlink() or b"message",
}


@pytest.mark.parametrize("use", FIRST_USES)
def test_any_first_use_in_a_forked_child(make: Make, child: Fork, use: str) -> None:
    q = make()
    q.put(b"message")
    assert child(lambda: FIRST_USES[use](q)).result() == b"message"
    assert not q.closed
    if q.qsize():
        assert q.get() == b"message"
    q.put(b"again")
    assert q.get() == b"again"
    assert living(q) == 1


@pytest.mark.parametrize(
    "use", ["put", "put object", "put array", "put block", "put_many", "loan", "shutdown"]
)
def test_any_first_use_by_a_forked_producer(make: Make, child: Fork, use: str) -> None:
    q = make()
    uses: dict[str, Callable[[], Any]] = {
        "put": lambda: q.put(b"message"),
        "put object": lambda: q.put("message"),
        "put array": lambda: q.put(np.arange(3)),
        "put block": lambda: q.put(np.arange(3000)),
        "put_many": lambda: q.put_many([b"message", "message"]),
        "loan": lambda: q.loan(3, "i8").publish(),
        "shutdown": lambda: q.shutdown(),
    }
    child(uses[use]).result()
    if use == "shutdown":
        with pytest.raises(shmq.ShutDown):
            q.get(timeout=PATIENCE)
    else:
        assert q.get(timeout=PATIENCE) is not None
    assert living(q) == 1


@ONE_OF_EACH
def test_roles_of_parent_and_child_are_two(make: Make, child: Fork) -> None:
    q = make()
    q.put(b"1")
    with pytest.raises(shmq.RoleTaken, match=str(os.getpid())):
        child(lambda: q.put(b"2")).result()
    assert q.get() == b"1"
    with pytest.raises(shmq.RoleTaken, match=str(os.getpid())):
        child(lambda: q.get(timeout=1)).result()


@pytest.mark.parametrize("held", ["view", "view in a message", "loan", "slice"])
def test_a_handle_with_live_views_is_not_inherited(make: Make, child: Fork, held: str) -> None:
    q = make()
    q.put({"a": np.arange(3000)} if "message" in held else np.arange(3000))
    q.put(b"next")
    kept: Any = q.loan(10, "i8") if held == "loan" else q.get()
    if held == "slice":
        kept = kept[5:9]

    def work() -> list[str]:
        outcomes = []
        for use in (q.get_nowait, lambda: q.get_many(2), q.stats, q.peers, q.qsize, lambda: q.put(b"x")):
            try:
                use()
                outcomes.append("worked")
            except shmq.ForkedHandle as e:
                outcomes.append("reattach" if "reattach" in str(e) else str(e))
        return outcomes

    assert child(work).result() == ["reattach"] * 6

    def dropped() -> Any:
        nonlocal kept
        kept = None
        return q.peers()[-1].pid == os.getpid()

    assert child(dropped).result() is True  # nothing is lost by it, so it attached anew

    def explicit() -> Any:
        array = kept.array if held == "loan" else kept["a"] if "message" in held else kept
        before = array.sum()
        q.reattach()
        return array.sum() == before, q.peers()[-1].pid == os.getpid(), living(q)

    assert child(explicit).result() == (True, True, 2)
    # What the child did with its copies is nothing to the parent.
    pages = q.stats().pages
    assert pages["loaned" if held == "loan" else "leased"] == 1
    kept = None
    q.get_many(5)
    assert q.stats().pages["free"] == sum(q.stats().pages.values())


def test_a_loan_that_was_published_is_held_no_more(make: Make, child: Fork) -> None:
    """A variable that still names it loses nothing when the child's handle attaches by itself."""
    q = make()
    with q.loan(1000, "i8") as published:
        published.array[:] = 5
    discarded = q.loan(1000, "i8")
    discarded.discard()
    assert child(lambda: int(q.get(timeout=PATIENCE).sum())).result() == 5000
    assert published.array.shape == discarded.array.shape


def test_a_childs_copy_of_a_loan_is_worthless(make: Make, child: Fork) -> None:
    q = make()
    loan = q.loan(1000, "i8")
    loan.array[:] = 5
    for attempt in (loan.publish, lambda: loan.publish(timeout=0)):
        with pytest.raises(shmq.ForkedHandle):
            child(attempt).result()
    child(loan.discard).result()
    assert q.stats().pages["loaned"] == 1
    loan.publish()
    assert (q.get() == 5).all()


def test_views_that_a_child_drops_stay_the_parents(make: Make, child: Fork) -> None:
    q = make()
    q.put(np.full(3000, 7))
    view = q.get()

    def work() -> None:
        nonlocal view
        view = None
        gc.collect()
        q.close()

    child(work).result()
    assert q.stats().pages["leased"] == 1
    for _ in range(5):
        q.put(np.zeros(3000))
        q.get()
    assert (view == 7).all()


def test_a_fork_beside_a_blocked_thread(make: Make, child: Fork, poll: Callable[..., Any]) -> None:
    """The waiting thread holds no view and no loan, so the child's handle attaches by itself."""
    q = make()
    got: list[bytes] = []

    def wait() -> None:
        with contextlib.suppress(shmq.ShutDown):
            got.append(q.get(timeout=PATIENCE))

    waiter = threading.Thread(target=wait)
    waiter.start()
    armed = np.memmap(f"/dev/shm/shmq.{q.name}", "u4", "r", 4096 + 2 * 128 + 4, (1,))
    poll(lambda: armed[0])
    try:
        child(lambda: q.put(b"from the child", timeout=PATIENCE)).result()
    finally:
        q.shutdown()  # the waiter ends in any case
        waiter.join(PATIENCE)
    assert got == [b"from the child"]


def test_a_grandchild(make: Make, child: Fork) -> None:
    q = make()
    q.put_many([b"child", b"grandchild"])

    def work() -> Any:
        mine = q.get(timeout=PATIENCE)
        grandchild = Child(lambda: pickle.dumps((q.peers()[-1].pid == os.getpid(), q.name)))
        theirs = pickle.loads(grandchild.result())
        q.close()
        return mine, theirs

    mine, (attached, queue_name) = child(work).result()
    assert (mine, attached, queue_name) == (b"child", True, q.name)
    assert q.get(timeout=PATIENCE) == b"grandchild"


def test_a_child_of_a_closed_handle(make: Make, child: Fork) -> None:
    q = make()
    q.close()
    for use in (q.get_nowait, lambda: q.put(b"x"), q.stats):
        with pytest.raises(shmq.Closed):
            child(use).result()


def close_descriptors_of(name: str) -> None:
    """As a daemon's closerange() does, but spares ours."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(link).startswith(f"/dev/shm/shmq.{name}"):
                os.close(int(link.name))


def test_a_child_whose_name_went_to_another(make: Make, child: Fork) -> None:
    """The inherited handle is its parent's queue, whatever the name says meanwhile."""
    q = make()
    q.unlink()
    child(lambda: q.put(b"1")).result()
    successor = make()
    child(lambda: q.put(b"2")).result()
    assert q.get_many(5) == [b"1", b"2"]
    assert successor.empty()
    assert living(successor) == 1


def test_a_child_that_can_reach_its_queue_no_more(make: Make, child: Fork) -> None:
    """Its descriptors are closed and the name is gone, or another's: an error, and no wrong queue."""
    q = make()
    q.put(b"1")
    q.unlink()

    def attempt(use: Callable[[], Any]) -> Callable[[], Any]:
        def work() -> Any:
            close_descriptors_of(q.name)
            return use()

        return work

    for use in (lambda: q.put(b"x"), q.get_nowait, q.stats, q.reattach):
        with pytest.raises((shmq.SegmentNotFound, shmq.StaleHandle), match=q.name):
            child(attempt(use)).result()
    successor = make()
    for use in (lambda: q.put(b"x"), q.get_nowait, q.stats, q.reattach):
        with pytest.raises(shmq.StaleHandle, match=q.name):
            child(attempt(use)).result()
    assert successor.empty()
    assert living(successor) == 1
    assert q.get() == b"1"


def test_children_end_without_harm(make: Make, script: Callable[..., Any], run: Callable[..., str]) -> None:
    """os.fork, then every way to end: the parent's anonymous queue, its roles and its views live on."""
    output = run(
        """
import os, sys
import numpy as np
import shmq
q = shmq.Queue(ring_bytes=1 << 16, arena_bytes=1 << 20)
q.put(np.arange(3000)); q.put(b"next")
view = q.get()
for end in (lambda: os._exit(0), lambda: sys.exit(0), lambda: None):
    pid = os.fork()
    if pid == 0:
        end()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.path.exists("/dev/shm/shmq." + q.name)
    assert q.stats().pages["leased"] == 1 and view.sum() == 4498500
    assert q.get() == b"next"
    q.put(b"next")
q.close()
assert not os.path.exists("/dev/shm/shmq." + q.name)
print("fine")
"""
    )
    assert output == "fine\n"


def test_exec_releases_everything(make: Make, poll: Callable[..., Any]) -> None:
    """A process image that is replaced is dead to the queue, though its pid lives on."""
    q = make()
    ours, theirs = os.pipe()
    with forking():
        pid = os.fork()
    if pid == 0:
        try:
            q.put(b"last words")
            os.set_inheritable(ours, True)
            os.execv(sys.executable, [sys.executable, "-S", "-c", f"import os; os.read({ours}, 1)"])
        finally:
            os._exit(1)
    try:
        assert q.get(timeout=PATIENCE) == b"last words"
        poll(lambda: not all(p.alive for p in q.peers()) or living(q) == 1)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # it lives
        q.put(b"taken over")
        assert q.get() == b"taken over"
    finally:
        os.write(theirs, b".")
        os.waitpid(pid, 0)
        os.close(ours)
        os.close(theirs)


# ---- deaths ----


def stream(q: shmq.Queue, first: int) -> None:
    """Puts numbered messages of every kind with their checksum, for ever."""
    i = first
    while True:
        data = np.random.default_rng(i).integers(0, 256, (i * 37) % 5000, "u1")
        message: Any = {"i": i, "crc": zlib.crc32(data.tobytes()), "data": data}
        if i % 4 == 1:
            message["data"] = data.tobytes()
        if i % 4 == 2:
            message["data"] = data.repeat(2)[::2]
        q.put(message)
        i += 1


def verified(message: Any) -> int:
    assert zlib.crc32(bytes(message["data"])) == message["crc"]
    return int(message["i"])


def next_of(q: shmq.Queue, timeout: float = PATIENCE) -> Any:
    """The next message, whether or not a producer died behind the last one."""
    with contextlib.suppress(shmq.PeerDead):
        return q.get(timeout=timeout)
    return q.get(timeout=timeout)


def test_a_killed_producer_is_taken_over(make: Make, child: Fork) -> None:
    q = make(ring_bytes=4096)
    expected = 0
    for kill_at in (1, 30, 200):
        producer = child(lambda first=expected: stream(q, first))  # type: ignore[misc]
        for _ in range(kill_at):
            assert verified(next_of(q)) == expected
            expected += 1
        producer.kill()
        with contextlib.suppress(shmq.Empty, shmq.PeerDead):  # its death is noticed here or later
            while True:
                assert verified(q.get(timeout=0)) == expected
                expected += 1
    q.put(b"by another")  # the role is free
    assert q.get() == b"by another"
    s = q.stats()
    assert s.pages["free"] == sum(s.pages.values())
    assert s.messages_put == s.messages_got == expected + 1
    assert living(q) == 1


def test_a_killed_consumer_is_taken_over(make: Make, child: Fork) -> None:
    q = make()
    ledger, theirs = os.pipe()

    def consume() -> None:
        kept: list[Any] = []
        while True:
            message = q.get()
            kept = [*kept[-5:], message]  # holds some
            os.write(theirs, verified(message).to_bytes(8, "little"))

    def read(patience: float) -> list[int]:
        ready, _, _ = select.select([ledger], [], [], patience)
        return [int.from_bytes(os.read(ledger, 8), "little")] if ready else []

    seen: list[int] = []
    try:
        producer = child(lambda: stream(q, 0))
        for _ in range(3):
            consumer = child(consume)
            for _ in range(40):
                (number,) = read(PATIENCE)
                seen.append(number)
            consumer.kill()
            while told := read(0):
                seen += told
        producer.kill()
    finally:
        os.close(ledger)
        os.close(theirs)
    rest = []
    with contextlib.suppress(shmq.Empty):
        while True:
            rest.append(verified(next_of(q, 0.25)))  # a wait, so that it repairs what the dead left
    everything = seen + rest
    assert everything == sorted(set(everything))  # in order, none twice
    missing = set(range(everything[-1] + 1)) - set(everything)
    assert len(missing) <= 3, missing  # what a victim had taken and not yet told, one each
    s = q.stats()
    assert s.pages["free"] == sum(s.pages.values())
    assert len(q.peers()) == 1


@ONE_OF_EACH
def test_a_stopped_process_is_alive(make: Make, child: Fork, poll: Callable[..., Any]) -> None:
    q = make()

    def consume() -> Any:
        return [q.get(timeout=PATIENCE) for _ in range(2)]

    consumer = child(consume)
    q.put(b"1")
    poll(lambda: q.stats().messages_got == 1)
    os.kill(consumer.pid, signal.SIGSTOP)
    try:
        poll(lambda: Path(f"/proc/{consumer.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        with pytest.raises(shmq.RoleTaken, match=str(consumer.pid)):
            q.get(timeout=0.3)
        assert [p.alive for p in q.peers()] == [True, True]
        q.put(b"2")
    finally:
        os.kill(consumer.pid, signal.SIGCONT)
    assert consumer.result() == [b"1", b"2"]


def test_a_blocked_get_outlives_its_producer(make: Make, child: Fork) -> None:
    """The producer dies while the consumer sleeps: the consumer goes on, and its next producer wakes it."""
    q = make()
    first = child(lambda: [q.put(b"1"), time.sleep(PATIENCE)])
    assert q.get(timeout=PATIENCE) == b"1"
    first.kill()
    with pytest.raises((shmq.Empty, shmq.PeerDead)):
        q.get(timeout=0.25)
    second = child(lambda: q.put(b"2"))
    assert next_of(q) == b"2"
    second.result()


@ONE_OF_EACH
def test_a_get_that_can_never_succeed_says_so(make: Make, child: Fork, poll: Callable[..., Any]) -> None:
    """Once for each death, when all that the dead had put is taken, and not where its end was orderly."""
    q = make()
    for _ in range(2):
        before = q.stats().messages_put
        producer = child(lambda: [q.put_many([b"1", b"2", b"3"]), time.sleep(PATIENCE)])
        pid = producer.pid
        assert q.get(timeout=PATIENCE) == b"1"
        poll(lambda put=before + 3: q.stats().messages_put == put)
        producer.kill()
        assert q.get_many(1) == [b"2"]
        assert q.get() == b"3"
        start = time.monotonic()
        with pytest.raises(shmq.PeerDead, match=rf"pid {pid}\).*message {before + 3},") as caught:
            q.get()
        assert time.monotonic() - start < 10
        assert (caught.value.pid, caught.value.messages) == (pid, before + 3)
        with pytest.raises(shmq.Empty):  # told once
            q.get(timeout=0.15)
        with pytest.raises(shmq.Empty):
            q.get_nowait()
    child(lambda: [q.put(b"4"), q.close()]).result()
    assert q.get(timeout=PATIENCE) == b"4"
    with pytest.raises(shmq.Empty):
        q.get_many(1, timeout=0.15)


def test_a_blocked_put_outlives_its_consumer(make: Make, child: Fork) -> None:
    """What a dead consumer held in the arena comes back to a producer that waits for it."""
    q = make()
    held = threading.Event()

    def hoard() -> None:
        kept = [q.get(timeout=PATIENCE) for _ in range(64)]
        os.write(theirs, b".")
        time.sleep(PATIENCE)
        del kept

    ours, theirs = os.pipe()
    try:
        consumer = child(hoard)
        for _ in range(64):
            q.put(np.zeros(2048), timeout=PATIENCE)
        assert os.read(ours, 1) == b"."
        with pytest.raises(shmq.ArenaFull, match=rf"pid {consumer.pid}.*1,048,576"):
            q.put(np.zeros(2048), timeout=0.05)
        timer = threading.Timer(0.1, lambda: (consumer.kill(), held.set()))
        timer.start()
        q.put(np.zeros(2048), timeout=PATIENCE)
        timer.join()
        assert held.is_set()
        assert q.get(timeout=PATIENCE).shape == (2048,)
    finally:
        os.close(ours)
        os.close(theirs)


REAPER_LOCKS_AT = 8192  # peers.c


@ONE_OF_EACH
def test_a_role_whose_repair_takes_long(make: Make, child: Fork) -> None:
    """A dead producer whom another process is just repairing: whoever wants the role waits for it, neither
    for ever nor with this process's other threads."""
    q = make()
    victim = child(lambda: [q.put(b"1"), time.sleep(PATIENCE)])
    assert q.get(timeout=PATIENCE) == b"1"
    victim.kill()
    (dead,) = (p for p in shmq.inspect(q.name).peers if p.alive is False)
    with open(f"/dev/shm/shmq.{q.name}", "rb+") as reaper:
        lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, REAPER_LOCKS_AT + dead.index, 1, 0)
        fcntl.fcntl(reaper, F_OFD_SETLK, lock)
        ticks = [0]
        stop = threading.Event()

        def tick() -> None:
            while not stop.wait(0.001):
                ticks[0] += 1

        other = threading.Thread(target=tick)
        other.start()
        try:
            with pytest.raises(shmq.RoleTaken, match=rf"pid {dead.pid}.*dead"):
                q.put(b"2")
        finally:
            stop.set()
            other.join()
        assert ticks[0] > 10
    q.put(b"3")
    assert q.get() == b"3"


def test_peers_tell_the_dead(make: Make, child: Fork) -> None:
    q = make()
    victim = child(lambda: [q.put(b"1"), time.sleep(PATIENCE)])
    q.get(timeout=PATIENCE)
    pid = victim.pid
    victim.kill()
    found = {p.pid: p for p in shmq.inspect(q.name).peers}  # inspecting repairs nothing
    assert found[pid].alive is False
    assert found[pid].roles == {"producer"}
    assert found[os.getpid()].alive is True
    make()  # attaching does
    assert pid not in {p.pid for p in q.peers()}
