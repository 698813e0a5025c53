"""Request and reply between processes, which are killed: every answer comes right, or says why not."""

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import PRELUDE, SHM, Script, poll
from test_rpc import PATIENT_S, REPLY_SIZES, SIZES, Background

import shmq

Start = Callable[..., Script]

WORKER = (
    PRELUDE
    + """
import random
name, idempotent, risk = sys.argv[1], sys.argv[2] == "idempotent", float(sys.argv[3])
random.seed(os.getpid())

def die_perhaps():
    if random.random() < risk:
        os.kill(os.getpid(), signal.SIGKILL)

def handler(value):
    if value == "pid":
        return os.getpid()
    if value == "hang":
        print("hangs", flush=True)
        time.sleep(60)
    if isinstance(value, dict):
        return stream(**value)
    die_perhaps()
    return {"of": value, "squares": value * value}

def stream(n, die_at=-1):
    for i in range(n):
        die_perhaps()
        if i == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        yield [i, np.full(600, i)]

server = shmq.Server(name, idempotent=idempotent)
signal.signal(signal.SIGTERM, lambda *_: server.stop())
print("ready", flush=True)
with server:
    server.serve(handler, threads=int(sys.argv[4]))
"""
)


class Workers:
    """Worker processes of one service; whoever dies is replaced."""

    def __init__(self, name: str, script: Start, idempotent: bool, risk: float, threads: int) -> None:
        how = "idempotent" if idempotent else "once"
        self._start = lambda: script(WORKER, name, how, str(risk), str(threads))
        self.alive: list[Script] = []
        self.deaths = 0

    def add(self) -> Script:
        worker = self._start()
        assert worker.line() == "ready"
        self.alive.append(worker)
        return worker

    def kill(self, worker: Script) -> None:
        worker.process.kill()
        worker.process.wait()
        self.alive.remove(worker)
        self.deaths += 1

    def replace_the_dead(self) -> None:
        for worker in list(self.alive):
            if worker.process.poll() is not None:
                assert worker.process.returncode == -signal.SIGKILL
                self.alive.remove(worker)
                self.deaths += 1
                self.add()

    def end(self) -> None:
        for worker in self.alive:
            worker.process.terminate()
        for worker in self.alive:
            status, _, errors = worker.finish()
            assert (status, errors) in ((0, ""), (-signal.SIGKILL, ""))


@pytest.fixture
def client(name: str) -> Iterator[shmq.Client]:
    with shmq.Client(name, **SIZES, **REPLY_SIZES) as client:
        yield client
        client.unlink()


@pytest.fixture
def workers(
    name: str, script: Start, client: shmq.Client, request: pytest.FixtureRequest
) -> Iterator[Workers]:
    found = Workers(name, script, **{"idempotent": False, "risk": 0, "threads": 1, **request.param})
    yield found
    found.end()


def having(**parameters: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("workers", [parameters], indirect=True, ids=[""])


@having()
def test_a_worker_dies(workers: Workers, client: shmq.Client) -> None:
    """Its request was perhaps executed: the caller is told, though another worker is there."""
    first, second = workers.add(), workers.add()
    calls = [Background(lambda: client.call("hang", timeout=PATIENT_S))]
    victim, other = _who_hangs(first, second)
    workers.kill(victim)
    with pytest.raises(shmq.ServerDied, match="died"):
        calls[0].result()
    assert client.call("pid", PATIENT_S) == other.process.pid
    assert client.stats().server_deaths == 1


def _who_hangs(*candidates: Script) -> tuple[Script, Script]:
    """The worker that has the request, and another."""
    import select

    pipes = [worker.process.stdout for worker in candidates]
    (found, *_), _, _ = select.select(pipes, [], [], PATIENT_S)
    victim = candidates[pipes.index(found)]
    assert victim.line() == "hangs"
    return victim, next(worker for worker in candidates if worker is not victim)


@having()
def test_a_caller_may_try_again(workers: Workers, client: shmq.Client) -> None:
    workers.add()
    assert [i for i, _ in client.stream({"n": 5}, PATIENT_S)] == list(range(5))
    deadly = client.stream({"n": 200, "die_at": 100}, timeout=PATIENT_S, retries=2)
    got = [next(deadly)[0] for _ in range(50)]
    workers.add()
    with pytest.raises(shmq.ServerDied):  # noqa: PT012
        for i, _ in deadly:
            got.append(i)
    assert got == list(range(100)), "what came before the second death was skipped"
    assert client.stats().server_deaths >= 2


@having(idempotent=True)
def test_another_worker_tries_again(workers: Workers, client: shmq.Client) -> None:
    first, second = workers.add(), workers.add()
    call = Background(lambda: client.call("hang", timeout=PATIENT_S))
    victim, other = _who_hangs(first, second)
    workers.kill(victim)
    assert other.line() == "hangs", "it has the request now"
    workers.kill(other)
    with pytest.raises(shmq.ServerDied, match="no server is alive"):
        call.result()


@having(idempotent=True)
def test_what_kills_every_worker_is_refused_in_the_end(workers: Workers, client: shmq.Client) -> None:
    stream = client.stream({"n": 3, "die_at": 2}, timeout=PATIENT_S)
    workers.add()
    workers.add()
    call = Background(lambda: list(stream))
    while call.is_alive():
        workers.replace_the_dead()
        call.join(0.01)
    with pytest.raises(shmq.ServerDied, match=r"5 servers died|no server is alive"):
        call.result()
    workers.replace_the_dead()
    assert workers.deaths >= 2


@having()
def test_no_worker_is_left(workers: Workers, client: shmq.Client) -> None:
    worker = workers.add()
    calls = [Background(lambda: client.call("hang")) for _ in range(4)]
    assert worker.line() == "hangs"
    poll(lambda: client._calls._requests.qsize() == 3)
    workers.kill(worker)
    for call in calls:
        with pytest.raises(shmq.ServerDied, match="no server is alive"):
            call.result()
    with pytest.raises(shmq.ServerDied):
        client.call("hang", retries=1)
    poll(lambda: workers.add() and client.call("pid", PATIENT_S) == workers.alive[0].process.pid)


@having(idempotent=True)
def test_a_stream_goes_on_elsewhere(workers: Workers, client: shmq.Client) -> None:
    for _ in range(2):
        workers.add()
    stream = client.stream({"n": 400}, timeout=PATIENT_S)
    got: list[int] = []
    for i, array in stream:
        assert array[0] == array[-1] == i
        got.append(i)
        if i == 3:
            busy = _who_works(workers, client)
            workers.kill(busy)
    assert got == list(range(400))
    assert workers.deaths == 1


def _who_works(workers: Workers, client: shmq.Client) -> Script:
    """The other one answers."""
    idle = client.call("pid", PATIENT_S)
    return next(worker for worker in workers.alive if worker.process.pid != idle)


@pytest.mark.parametrize(
    "workers",
    [{"idempotent": idempotent, "risk": 0.03, "threads": 2} for idempotent in (False, True)],
    indirect=True,
    ids=["told", "tried again"],
)
def test_workers_that_die_all_the_time(workers: Workers, client: shmq.Client) -> None:
    """By their own hand while they have a request, and by another's at any moment; the answers are exact."""
    for _ in range(3):
        workers.add()
    rng = random.Random(1)
    wrong: list[Any] = []

    def ask(first: int) -> int:
        done = 0
        for i in range(first, first + 20):
            try:
                if i % 4:
                    answer = client.call(i, timeout=PATIENT_S, retries=1000)
                    right = answer == {"of": i, "squares": i * i}
                else:
                    answer = [
                        (n, int(x[-1])) for n, x in client.stream({"n": 7}, timeout=PATIENT_S, retries=1000)
                    ]
                    right = answer == [(n, n) for n in range(7)]
            except Exception as e:
                right, answer = False, e
            if not right:
                wrong.append((i, answer))
            done += 1
        return done

    calls = [Background(lambda k=k: ask(1000 * k)) for k in range(4)]
    while any(call.is_alive() for call in calls):
        workers.replace_the_dead()
        if rng.random() < 0.2:
            victim = rng.choice(workers.alive)
            victim.process.kill()
        time.sleep(rng.random() * 0.02)
    assert [call.result() for call in calls] == [20] * 4
    assert wrong == []
    assert workers.deaths > 2
    poll(lambda: client._calls._requests.stats().unacked == 0)


ASKER = (
    PRELUDE
    + """
client = shmq.Client(sys.argv[1], reply_ring_bytes=1 << 15, reply_arena_bytes=1 << 20)
first, count = int(sys.argv[2]), int(sys.argv[3])
def ask(k):
    for i in range(first + k, first + count, 3):
        assert client.call(i, timeout=60) == {"of": i, "squares": i * i}
        os.write(1, b"%d\\n" % i)
threads = [threading.Thread(target=ask, args=(k,)) for k in range(3)]
for t in threads: t.start()
for t in threads: t.join()
client.close()
"""
)


@having(threads=2)
def test_many_clients_and_workers(workers: Workers, name: str, script: Start) -> None:
    for _ in range(3):
        workers.add()
    askers = [script(ASKER, name, str(1000 * k), "150") for k in range(4)]
    ledger: list[int] = []
    for asker in askers:
        status, output, errors = asker.finish()
        assert (status, errors) == (0, "")
        ledger += map(int, output.split())
    assert sorted(ledger) == [1000 * k + i for k in range(4) for i in range(150)]
    poll(lambda: not list(SHM.glob(f"shmq.{name}.*-*")))


READER = (
    PRELUDE
    + """
client = shmq.Client(sys.argv[1], reply_ring_bytes=1 << 14, reply_arena_bytes=1 << 19)
stream = client.stream("arrays")
held = [next(stream) for _ in range(2)]
print("reads", flush=True)
time.sleep(60)
"""
)


def test_a_client_dies_before_it_reads(name: str, script: Start, client: shmq.Client) -> None:
    """Its memory goes: the name at once, the memory when its servers have let go of it."""
    ended = threading.Event()

    def arrays(_: Any) -> Iterator[Any]:
        try:
            while True:
                yield np.zeros(5000)
        finally:
            ended.set()

    def handler(value: Any) -> Any:
        return arrays(value) if value == "arrays" else value

    with shmq.Server(name, patience=PATIENT_S) as server:
        serving = threading.Thread(target=server.serve, args=(handler,))
        serving.start()
        for _ in range(3):
            ended.clear()
            reader = script(READER, name)
            assert reader.line() == "reads"
            (path,) = SHM.glob(f"shmq.{name}.{reader.process.pid}-*")
            replies = shmq.Queue.attach(path.name.removeprefix("shmq."))
            poll(lambda replies=replies: replies.stats().arena_free_bytes < 40_000)
            assert not ended.is_set(), "it waits for room"
            replies.close()
            reader.process.kill()
            reader.process.wait()
            assert ended.wait(PATIENT_S)
            poll(lambda path=path: not path.exists())
            poll(lambda: server.stats().clients == 0)
            assert path.name not in _mapped()
        assert server.stats().cancelled == 3
        assert client.call("x", PATIENT_S) == "x"
        server.stop()
        serving.join(PATIENT_S)


def _mapped() -> str:
    with open("/proc/self/maps") as maps:
        return maps.read()


@having()
def test_clients_that_die_all_the_time(
    workers: Workers, name: str, script: Start, client: shmq.Client
) -> None:
    """At any moment of a call; nothing of them stays."""
    for _ in range(2):
        workers.add()
    rng = random.Random(2)
    for _ in range(8):
        asker = script(ASKER, name, "0", "100000")
        asker.line()
        deadline = time.monotonic() + rng.random() * 0.1
        while time.monotonic() < deadline:
            asker.line()
        asker.process.kill()
        asker.process.wait()
        assert client.call(3, PATIENT_S) == {"of": 3, "squares": 9}
    poll(lambda: len(list(SHM.glob(f"shmq.{name}.*-*"))) == 1)
    requests = client._calls._requests
    poll(lambda: requests.reap() == 0 and requests.stats().unacked + requests.qsize() == 0)
    pages = requests.stats().pages
    assert {state: n for state, n in pages.items() if n and state != "free"} == {}
