"""Signals, the end of the interpreter, daemons, descriptors: a process leaves what it should, and no more."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import posix_ipc
import pytest
from conftest import PRELUDE, file_of

import shmq

Make = Callable[..., shmq.Queue]
ONE_OF_EACH = pytest.mark.parametrize("ring_kind", ["spsc"])
"""Of queues with one producer and one consumer at a time."""
Run = Callable[..., str]
PATIENCE = 60


# ---- signals and time ----

STORM = """
def storm(seconds):
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
storm(0.001)
"""


@pytest.mark.parametrize("what", ["get", "get_many", "put", "put_many", "put object", "put array", "loan"])
def test_timeouts_do_not_drift_under_a_storm_of_signals(run: Run, what: str) -> None:
    output = run(
        PRELUDE
        + """
what = sys.argv[1]
q = shmq.Queue(ring_bytes=4096, arena_bytes=1 << 16)
held = []
try:
    while what in ("put array", "loan"):
        q.put_nowait(np.zeros(2048)); held.append(q.get())
    while what.startswith("put"):
        q.put_nowait(b"x" * 100)
except shmq.Full:
    pass
use = {
    "get": lambda: q.get(timeout=0.5),
    "get_many": lambda: q.get_many(3, timeout=0.5),
    "put": lambda: q.put(b"x" * 100, timeout=0.5),
    "put_many": lambda: q.put_many([b"x" * 100], timeout=0.5),
    "put object": lambda: q.put(["x" * 100], timeout=0.5),
    "put array": lambda: q.put(np.zeros(2048), timeout=0.5),
    "loan": lambda: q.loan(2048, "f8", timeout=0.5),
}[what]
"""
        + STORM
        + """
start = time.monotonic()
try:
    use()
except (shmq.Full, shmq.Empty) as e:
    print(time.monotonic() - start)
storm(0)
q.close()
""",
        what,
    )
    assert 0.5 <= float(output) < 5


def test_opening_under_a_storm_of_signals(run: Run) -> None:
    """Reserving and populating memory is interrupted, and goes on."""
    assert (
        run(
            PRELUDE
            + STORM
            + """
for size in (1 << 20, 64 << 20):
    with shmq.Queue(arena_bytes=size) as q, shmq.Queue.attach(q.name) as other:
        q.put(np.ones(size // 16))
        assert other.get().all()
        shmq.inspect(q.name); q.peers()
storm(0)
print("fine")
"""
        )
        == "fine\n"
    )


def test_work_under_a_storm_of_signals(run: Run) -> None:
    assert (
        run(
            PRELUDE
            + STORM
            + """
q = shmq.Queue(ring_bytes=4096, arena_bytes=1 << 18)
def feed():
    for i in range(20000):
        q.put([i] if i % 2 else np.full(300, i))
thread = threading.Thread(target=feed)
thread.start()
for i in range(20000):
    assert int(q.get(timeout=60)[0]) == i
thread.join()
q.close()
storm(0)
print("fine")
"""
        )
        == "fine\n"
    )


# ---- the end of the interpreter ----

ENDS = {
    "a queue in a module's globals": "q.put(b'1')",
    "a view in a module's globals": "q.put(np.arange(3000)); view = q.get()",
    "a view in another module": "q.put(np.arange(3000)); import string; string.view = q.get()",
    "a view in a builtin": "q.put(np.arange(3000)); import builtins; builtins.view = q.get()",
    "a view in a cycle": "q.put(np.arange(3000)); a = [q.get()]; a.append(a); del a",
    "a view and a closed queue": "q.put(np.arange(3000)); view = q.get(); q.close()",
    "a view and a dropped queue": "q.put(np.arange(3000)); view = q.get(); q.unlink(); del q",
    "an envelope": "q.put({'a': [np.arange(3000)]}); view = q.get()",
    "a slice": "q.put(np.arange(3000)); view = q.get()[5:]",
    "a memoryview": "q.put(np.arange(3000)); view = memoryview(q.get())",
    "an open loan": "loan = q.loan(3000, 'f8')",
    "a loan that was entered": "loan = q.loan(3000, 'f8'); loan.__enter__()",
    "a published loan": "loan = q.loan(3000, 'f8'); loan.publish()",
    "a message that waits": "q.put_many([np.arange(3000), b'1', [2]])",
    "two handles": "other = shmq.Queue.attach(q.name); q.put(np.arange(3000)); view = other.get()",
    "an exception with a view": """
try:
    q.put(np.arange(3000)); raise ValueError(q.get())
except ValueError as e:
    kept = e
""",
    "atexit": """
import atexit
q.put(np.arange(3000)); view = q.get()
@atexit.register
def last():
    q.put(b"last"); assert q.get() == b"last"; assert view.sum() == 4498500
""",
    "atexit, registered before": "early.append(lambda: (q.closed, repr(q), q.close()))",
    "a weakref callback": """
import weakref
q.put(np.arange(3000)); view = q.get()
reference = weakref.finalize(view, lambda: None)
""",
    "an object with a destructor": """
class Owner:
    def __init__(self):
        q.put(np.arange(3000)); self.view = q.get(); self.q = q
    def __del__(self):
        self.view[0] = 1; self.q.close(); self.view = None
owner = Owner()
""",
    "thread local": "local = threading.local(); q.put(np.arange(3000)); local.view = q.get()",
    "a thread blocked in get": "block(lambda: q.get())",
    "a thread blocked in get with timeout": "block(lambda: q.get(timeout=100))",
    "a thread blocked in get_many": "block(lambda: q.get_many(5))",
    "a thread blocked in put": "fill(); block(lambda: q.put(b'x' * 100), 'put')",
    "a thread blocked in put of an array": "held = hoard(); block(lambda: q.put(np.zeros(2048)), 'put')",
    "a thread blocked in loan": "held = hoard(); block(lambda: q.loan(2048, 'f8'), 'put')",
    "many blocked threads": "[block(lambda: q.get()) for _ in range(10)]",
    "a thread that works": """
def work():
    while True:
        q.put(np.arange(3000)); q.get().sum()
threading.Thread(target=work, daemon=True).start()
""",
    "a thread that puts": """
def work():
    while True:
        q.put(b"x" * 100_000, timeout=1); q.get()
threading.Thread(target=work, daemon=True).start()
""",
    "sys.exit in a with": """
with q:
    q.put(np.arange(3000)); view = q.get(); sys.exit(0)
""",
    "os._exit": "q.put(np.arange(3000)); view = q.get(); q.unlink(); os._exit(0)",
    "a shared pickle": "import pickle; other = pickle.loads(pickle.dumps(q)); q.close()",
    "concurrent futures": """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor()
pool.submit(q.put, np.arange(3000)).result(); future = pool.submit(q.get); future.result()
""",
    "multiprocessing": """
import multiprocessing
lock = multiprocessing.get_context("fork").Lock()
q.put(np.arange(3000)); view = q.get()
""",
}

END_PRELUDE = """
early = []
import atexit
atexit.register(lambda: [f() for f in early])
import os, sys, threading, time
import numpy as np
import shmq
q = shmq.Queue(ring_bytes=1 << 16, arena_bytes=1 << 20)
def fill():
    try:
        while True:
            q.put_nowait(b"x" * 100)
    except shmq.Full:
        pass
def hoard():
    held = []
    try:
        while True:
            q.put_nowait(np.zeros(2048)); held.append(q.get())
    except shmq.ArenaFull:
        return held
def block(use, side="get"):
    at = 4096 + {"get": 2, "put": 3}[side] * 128 + 4
    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    while True:
        with open("/dev/shm/shmq." + q.name, "rb") as f:
            f.seek(at)
            if f.read(4) != bytes(4):
                return
        time.sleep(0.001)
print(q.name, flush=True)
"""


DEVELOPING = ("-X", "dev", "-W", "error")
END_RUNS = [(how, DEVELOPING) for how in ENDS] + [(how, ()) for how in ENDS if "thread" in how]


@pytest.mark.parametrize(("how", "options"), END_RUNS)
def test_the_end_of_the_interpreter(run: Run, how: str, options: tuple[str, ...]) -> None:
    """Exit status 0, nothing on stderr (that is what ``run`` asserts), and the anonymous name is gone."""
    queue_name = run(END_PRELUDE + ENDS[how], options=options).split()[0]
    left = file_of(queue_name).exists()
    file_of(queue_name).unlink(missing_ok=True)
    assert not left


def test_an_exception_that_ends_the_program(script: Callable[..., Any]) -> None:
    """The traceback of the user's error, and nothing else."""
    child = script(END_PRELUDE + "q.put(np.arange(3000)); view = q.get(); loan = q.loan(3, 'u1'); 1 / 0")
    status, output, errors = child.finish()
    assert status == 1
    assert errors.strip().split("\n")[-1] == "ZeroDivisionError: division by zero"
    assert "shmq" not in errors
    assert not file_of(output.split()[0]).exists()


def test_torch_views_at_the_end(run: Run) -> None:
    pytest.importorskip("torch")
    run(
        END_PRELUDE
        + "import torch; q.put(torch.ones(3000)); view = q.get(); loan = q.loan(9, torch.bfloat16)"
    )


# ---- limits of the process ----


def test_every_entry_of_the_peer_table_in_use(make: Make, name: str) -> None:
    q = make(max_peers=3)
    others = [make(), make()]
    for use in (lambda: shmq.Queue(name), lambda: shmq.Queue.attach(name)):
        with pytest.raises(shmq.PeersFull, match=r"max_peers"):
            use()
    assert shmq.inspect(name).stats.max_peers == 3  # looking needs none
    q.put(b"1")
    assert others[0].get() == b"1"
    others[1].close()
    make().close()
    assert len(q.peers()) == 2


def test_no_descriptors_left(run: Run, name: str) -> None:
    output = run(
        PRELUDE
        + """
import resource
name = sys.argv[1]
mine = lambda: sorted(n for n in os.listdir("/dev/shm") if name in n or f"-{os.getpid()}-" in n)
q = shmq.Queue(name + ".a", **SMALL)
shmq.list_segments(); shmq.Queue.attach(q.name).close()   # everything is imported
before = mine()
resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
for use in (
    lambda: shmq.Queue(name + ".b", **SMALL),
    lambda: shmq.Queue.create(name + ".b", **SMALL),
    lambda: shmq.Queue(**SMALL),
    lambda: shmq.Queue.attach(q.name),
    lambda: shmq.inspect(q.name),
):
    for spare in range(6):
        taken = []
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        for _ in range(spare):
            os.close(taken.pop())
        opened = None
        try:
            opened = use()
        except OSError as e:
            failed = e
            assert e.errno == 24, repr(e)
            assert "files" in str(e) or "descriptor" in str(e), e
            # What is open goes on, with waits and all.
            q.put(np.arange(3000)); assert q.get()[-1] == 2999
            try:
                q.get(timeout=0.01)
            except shmq.Empty:
                pass
            q.stats(); assert q.peers()[0].alive
        for fd in taken:
            os.close(fd)
        if isinstance(opened, shmq.Queue):
            opened.unlink() if opened.name != q.name else None
            opened.close()
        assert mine() == before, (spare, mine())
        assert len(q.peers()) == 1
    assert opened is not None
q.unlink()
q.close()
print("fine")
""",
        name,
    )
    assert output == "fine\n"


@ONE_OF_EACH
def test_a_daemon_that_closes_all_descriptors(
    make: Make, run: Run, name: str, script: Callable[..., Any]
) -> None:
    """closerange(3, 1000): the peer stays alive, the queue works, close() spares numbers that were reused."""
    q = make()
    daemon = script(
        PRELUDE
        + """
q = shmq.Queue.attach(sys.argv[1])
q.put(np.arange(3000))
os.closerange(3, 1000)
mine = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
q.put(b"after")
print("closed", flush=True)
sys.stdin.readline()
q.put(np.arange(2000))
try:
    q.get(timeout=0.15)
except shmq.RoleTaken:
    print("role taken", flush=True)
assert [p.alive for p in q.peers()] == [True, True]
again = shmq.Queue.attach(q.name); again.close()
q.close()
for fd in mine:
    os.fstat(fd)          # none of them was closed
    os.close(fd)
print("fine", flush=True)
""",
        name,
    )
    assert daemon.line() == "closed"
    assert [p.alive for p in q.peers()] == [True, True]
    for _ in range(2):
        make().close()  # whoever attaches looks for dead peers
    assert q.get(timeout=PATIENCE).sum() == 4498500
    assert q.get(timeout=PATIENCE) == b"after"
    with pytest.raises(shmq.RoleTaken):
        q.put(b"x")
    daemon.say()
    assert daemon.line() == "role taken"
    assert q.get(timeout=PATIENCE)[-1] == 1999
    assert daemon.line() == "fine"
    assert daemon.finish() == (0, "", "")
    q.put(b"role is free")
    assert q.get() == b"role is free"


def test_a_taker_over_whose_descriptors_are_closed(make: Make, script: Callable[..., Any], name: str) -> None:
    """It finds the segment by its name, and so learns that the producer is dead."""
    make()
    child = script(
        PRELUDE
        + """
q = shmq.Queue.attach(sys.argv[1])
pid = os.fork()
if pid == 0:
    q.put(b"1")
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(pid, 0)
os.closerange(3, 1000)
assert q.get(timeout=10) == b"1"
q.put(b"2")
assert q.get(timeout=10) == b"2"
q.close()
print("fine")
""",
        name,
    )
    assert child.finish() == (0, "fine\n", "")


def test_a_daemon_by_double_fork(run: Run, name: str) -> None:
    output = run(
        PRELUDE
        + """
name = sys.argv[1]
back, back_w = os.pipe()
q = shmq.Queue(name, **SMALL)
q.put(b"for the daemon")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/"); os.umask(0)
        keep = os.dup2(back_w, 2)         # stderr is the pipe now
        os.closerange(3, 1000)
        assert q.get(timeout=10) == b"for the daemon"
        os.write(2, b"got it")
    os._exit(0)
os.wait()
os.close(back_w)
print(os.read(back, 100))
q.unlink(); q.close()
""",
        name,
    )
    assert output == "b'got it'\n"


@pytest.mark.parametrize("umask", [0o777, 0o000, 0o022])
def test_umask_and_working_directory(name: str, tmp_path: Path, umask: int) -> None:
    here = os.getcwd()
    old = os.umask(umask)
    try:
        os.chdir(tmp_path)
        with shmq.Queue(name, ring_bytes=4096, arena_bytes=1 << 16) as q:
            os.chdir("/")
            assert stat.S_IMODE(file_of(name).stat().st_mode) == 0o600
            with shmq.Queue.attach(name) as other:
                q.put(b"1")
                assert other.get() == b"1"
            q.unlink()
        assert list(tmp_path.iterdir()) == []
    finally:
        os.umask(old)
        os.chdir(here)


@pytest.mark.parametrize(
    "options",
    [("-X", "dev"), ("-X", "dev", "-W", "error"), ("-bb", "-O")],
    ids=str,
)
def test_no_warning_ever(run: Run, options: tuple[str, ...]) -> None:
    """A tour of everything, under Python's development mode and with warnings as errors: silence."""
    output = run(
        PRELUDE
        + """
import gc, multiprocessing, pickle
def tour():
    with shmq.Queue(**SMALL) as q:
        q.put_many([b"1", [2], np.arange(3), np.arange(3000), {"a": np.zeros((40, 50))[::2]}])
        got = q.get_many(5)
        with q.loan((3, 4), "f4") as loan:
            loan.array[:] = 1
        del loan
        q.get(copy=True)
        large = b"x" * (2 << 20)
        wrong = (q.get_nowait, lambda: q.get(timeout=0), lambda: q.put(large), lambda: q.put(object()))
        for attempt in wrong:
            try:
                attempt()
            except shmq.ShmqError:
                pass
        q.stats(), q.peers(), repr(q), shmq.inspect(q.name), shmq.peek(q.name), shmq.list_segments()
        pickle.loads(pickle.dumps(q)).close()
        pid = os.fork()
        if pid == 0:
            del got
            q.qsize(); q.close(); os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        q.shutdown()
    q = shmq.Queue(**SMALL)      # not closed: no ResourceWarning either, the name goes at the end
    q.put(np.arange(3000))
    return q.get(), q
kept = tour()
gc.collect()
print("silence")
""",
        options=options,
    )
    assert output == "silence\n"


def test_the_resource_tracker_knows_nothing(run: Run, name: str) -> None:
    """multiprocessing's tracker deletes shared memory that it knows behind the back of its users."""
    output = run(
        PRELUDE
        + """
from multiprocessing import get_context, resource_tracker, shared_memory
def main():
    q = shmq.Queue(sys.argv[1], **SMALL)
    theirs = shared_memory.SharedMemory(create=True, size=10)   # starts the tracker
    child = os.fork()
    if child == 0:
        q.put(np.arange(3000)); q.close(); os._exit(0)
    os.waitpid(child, 0)
    theirs.close(); theirs.unlink()
    assert q.get(timeout=10).sum() == 4498500
main()
print("fine")
""",
        name,
    )
    assert output == "fine\n"
    assert file_of(name).exists()  # a named queue outlives its processes
    with shmq.Queue.attach(name) as q:
        q.unlink()


def test_a_named_queue_outlives_its_processes(run: Run, name: str) -> None:
    run(PRELUDE + "q = shmq.Queue(sys.argv[1], **SMALL); q.put_many([b'1', np.arange(3000)])", name)
    assert (
        run(PRELUDE + "q = shmq.Queue(sys.argv[1]); print(q.get(), q.get().sum()); q.unlink()", name)
        == "b'1' 4498500\n"
    )


def test_without_shm_open(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody thought of comes through as it is."""

    def broken(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(posix_ipc, "SharedMemory", broken)
    with pytest.raises(OSError, match="Input/output") as caught:
        shmq.Queue(name)
    assert caught.value.errno == 5
