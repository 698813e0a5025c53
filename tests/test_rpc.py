"""Request and reply in one process: answers, streams, errors, deadlines, cancellation, who shares what."""

import gc
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from conftest import RUN, SHM, SMALL, fill, poll

import shmq
from shmq import faults
from shmq.calls import AT_ONCE, BUFFERED, Call
from shmq.protocol import CHUNK, DIED, END, RESULT
from shmq.rpc import block

PATIENT_S = 60.0
SIZES: dict[str, Any] = {"ring_bytes": 1 << 16, "arena_bytes": 1 << 20, "max_peers": 32}
REPLY_SIZES: dict[str, Any] = {"reply_ring_bytes": 1 << 15, "reply_arena_bytes": 1 << 20}
Serve = Callable[..., shmq.Server]


@pytest.fixture
def serve(name: str) -> Iterator[Serve]:
    """Starts a server of ``handler``, in threads; ends it, and its service, when the test ends."""
    started: list[tuple[shmq.Server, threading.Thread]] = []

    def serve(handler: Callable[[Any], Any], threads: int = 1, **arguments: Any) -> shmq.Server:
        server = shmq.Server(name, **{**SIZES, **arguments})
        thread = threading.Thread(target=server.serve, args=(handler, threads))
        thread.start()
        started.append((server, thread))
        return server

    yield serve
    for server, thread in started:
        server.stop()
        thread.join(PATIENT_S)
        assert not thread.is_alive()
        server.close()


@pytest.fixture
def client(name: str) -> Iterator[shmq.Client]:
    with shmq.Client(name, **SIZES, **REPLY_SIZES) as client:
        yield client
        client.unlink()


@pytest.fixture
def server(name: str, client: shmq.Client) -> Iterator[shmq.Server]:
    """One that does nothing by itself."""
    with shmq.Server(name) as server:
        yield server


class Background(threading.Thread):
    """A call in a thread of its own: ``result()`` is its answer, or raises its exception."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as e:
            self._error = e

    def result(self) -> Any:
        self.join(PATIENT_S)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error
        return self._value


def is_leading(client: shmq.Client) -> bool:
    return client._calls._leading


# ---- answers ----

SAMPLES: list[Any] = [
    None,
    b"bytes",
    {"a": [1, 2.5, "x"]},
    "y" * 9000,
    np.arange(9, dtype="i2"),
    np.arange(9000.0).reshape(90, 100, order="F"),
    {"part": np.ones(5), "other": [np.zeros(4000)]},
]


@pytest.mark.parametrize("sent", SAMPLES, ids=lambda sent: type(sent).__name__)
def test_an_answer(serve: Serve, client: shmq.Client, sent: Any) -> None:
    server = serve(lambda value: [value, value])
    np.testing.assert_equal(client.call(sent, timeout=PATIENT_S), [sent, sent])
    poll(lambda: server.stats().served == 1)
    assert client.stats() == shmq.ClientStats(calls=1, answered=1)


def test_arrays_are_views_on_both_sides(client: shmq.Client, server: shmq.Server) -> None:
    """One copy in, none out: the server looks into the request's memory, the client into the reply's."""
    call = Background(lambda: client.call({"x": np.arange(5000)}, timeout=PATIENT_S))
    request = server.next(PATIENT_S)
    seen = request.value["x"]
    assert not seen.flags.owndata
    assert not seen.flags.writeable
    assert server._jobs.requests.stats().pages["leased"] == 1
    request.reply({"y": seen})
    answer = call.result()["y"]
    assert not answer.flags.owndata
    assert answer.flags.writeable
    replies = client._calls._replies
    assert replies is not None
    assert replies.stats().pages["leased"] == 1
    assert seen[4999] == answer[4999] == 4999
    del seen, request, answer, call
    gc.collect()
    assert server._jobs.requests.stats().pages["leased"] == 0
    assert replies.stats().pages["leased"] == 0


def test_threads_share_a_client(serve: Serve, client: shmq.Client) -> None:
    serve(lambda value: value * 2, threads=3)
    calls = [
        Background(lambda i=i: [client.call(100 * i + k, PATIENT_S) for k in range(50)]) for i in range(6)
    ]
    for i, call in enumerate(calls):
        assert call.result() == [2 * (100 * i + k) for k in range(50)]
    assert client.stats() == shmq.ClientStats(calls=300, answered=300)


def test_whoever_leads_may_leave(client: shmq.Client, server: shmq.Server) -> None:
    """One thread reads for all: when its time is over, another one reads."""
    first = Background(lambda: client.call("first", timeout=0.2))
    requests = [server.next(PATIENT_S)]
    second = Background(lambda: client.call("second", timeout=PATIENT_S))
    requests.append(server.next(PATIENT_S))
    with pytest.raises(shmq.DeadlineExceeded):
        first.result()
    poll(lambda: is_leading(client))
    requests[1].reply("late enough")
    assert second.result() == "late enough"


def test_answers_in_any_order(client: shmq.Client, server: shmq.Server) -> None:
    calls = [Background(lambda i=i: client.call(i, timeout=PATIENT_S)) for i in range(5)]
    requests = sorted((server.next(PATIENT_S) for _ in calls), key=lambda request: -request.value)
    for request in requests:
        request.reply(request.value + 1)
    assert [call.result() for call in calls] == [1, 2, 3, 4, 5]


# ---- streams ----


def test_a_stream(serve: Serve, client: shmq.Client) -> None:
    server = serve(lambda n: (np.full(700, i) for i in range(n)))
    for n in (0, 1, 200):
        got = [int(array[-1]) for array in client.stream(n, timeout=PATIENT_S)]
        assert got == list(range(n))
    poll(lambda: (server.stats().served, server.stats().chunks) == (3, 201))


def test_streams_beside_each_other(serve: Serve, client: shmq.Client) -> None:
    serve(lambda n: iter_to(n), threads=3)
    a, b = client.stream(40, PATIENT_S), client.stream(30, PATIENT_S)
    mixed = [(next(a), next(b)) for _ in range(30)]
    assert mixed == [(i, i) for i in range(30)]
    assert (list(a), list(b)) == (list(range(30, 40)), [])
    assert list(a) == []


def iter_to(n: int) -> Iterator[int]:
    yield from range(n)


def test_an_error_in_the_middle(serve: Serve, client: shmq.Client) -> None:
    def handler(n: int) -> Iterator[int]:
        yield from range(n)
        raise LookupError("no more")

    serve(handler)
    stream = client.stream(3, PATIENT_S)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match="no more"):
        next(stream)
    assert list(stream) == []


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_a_stream_that_is_left(serve: Serve, client: shmq.Client, how: str) -> None:
    ended = threading.Event()

    def forever(_: Any) -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.set()

    server = serve(forever)
    stream = client.stream(None)
    if how == "with":
        with stream:
            next(stream)
    elif how == "close":
        next(stream)
        stream.close()
    else:
        for _ in stream:
            break
    del stream
    gc.collect()
    assert ended.wait(PATIENT_S)
    poll(lambda: server.stats().cancelled == 1)
    assert client.stats().cancelled == 1


def test_one_value_for_a_stream(serve: Serve, client: shmq.Client) -> None:
    serve(lambda value: value)
    assert list(client.stream("x", PATIENT_S)) == ["x"]


def test_a_stream_for_one_value(serve: Serve, client: shmq.Client) -> None:
    serve(iter_to)
    with pytest.raises(TypeError, match="the caller must use stream"):
        client.call(3, PATIENT_S)


def test_chunks_that_were_had_are_skipped(client: shmq.Client) -> None:
    """A server that begins again sends them again; what is missing, or too much, is an error."""
    calls = client._calls
    call = Call(7, True, 0)
    calls._pending[7] = call
    for n in (0, 1, 0, 1, 2):
        calls._file([7, CHUNK, n, f"chunk {n}"])
    calls._file([7, END, 3, None])
    calls._file([7, RESULT, 0, "late"])
    assert list(call.events) == [(CHUNK, "chunk 0"), (CHUNK, "chunk 1"), (CHUNK, "chunk 2"), (END, None)]
    assert calls.stats.late == 1
    for wrong in ([8, CHUNK, 1, ""], [8, END, 1, None]):
        calls._pending[8] = call = Call(8, True, 0)
        calls._file(wrong)
        with pytest.raises(shmq.DecodeError, match="chunk"):
            raise calls.failure(*call.events[-1])
    calls._pending[9] = call = Call(9, True, 0)
    for nonsense in (None, [1], [9, "x", 0, 0], ["a", 0, 0, 0], [[], 0, 0, 0], [9, CHUNK, "x", 0]):
        calls._file(nonsense)
    assert not call.events
    assert calls.stats.late == 7
    calls._pending.clear()  # none of them was sent


def test_a_stream_that_nobody_takes(serve: Serve, client: shmq.Client) -> None:
    """Another thread reads for it, so its chunks do not stay in the ring: there is a limit to that."""
    asked = threading.Event()

    def handler(value: Any) -> Any:
        if value == "stream":
            return iter_to(BUFFERED + 2)
        asked.set()
        poll(lambda: len(client._calls._pending) == 1)
        return "done"

    serve(handler, threads=2)
    stream = client.stream("stream", PATIENT_S)
    assert next(stream) == 0
    assert client.call("wait", PATIENT_S) == "done"
    with pytest.raises(shmq.Full, match="take them faster"):
        list(stream)


def test_few_chunks_are_read_at_once(client: shmq.Client, server: shmq.Server) -> None:
    """What stays in the queue is what holds up a server whose client takes its time."""
    stream = client.stream("x", PATIENT_S)
    block(client._calls.send(stream._streamed.call, "x"))
    request = server.next(PATIENT_S)
    for i in range(2 * AT_ONCE):
        request.send(i)
    assert next(stream) == 0
    assert client._calls._reply_queue().qsize() == AT_ONCE
    request.end()
    assert list(stream) == list(range(1, 2 * AT_ONCE))


# ---- errors ----


class Unknown(Exception):
    pass


class Special(KeyError):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (ValueError("bad"), ValueError, "bad"),
        (KeyError("k"), KeyError, "'k'"),
        (FileNotFoundError(2, "No such file", "/x"), FileNotFoundError, "/x"),
        (TimeoutError("slow"), TimeoutError, "slow"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), UnicodeError, "why"),
        (Special("s"), KeyError, "s"),
        (Unknown("who", object()), shmq.RemoteError, "Unknown: .*who"),
        (Mute(), shmq.RemoteError, "no text"),
        (ValueError("\ud800"), ValueError, "ud800"),
        (ValueError(1 << 70), ValueError, str(1 << 70)),
        (RuntimeError("x" * 100_000), RuntimeError, "xxx"),
        (shmq.ArenaFull("mine"), shmq.Full, "mine"),
        (shmq.DecodeError("odd", b"payload", 3), shmq.DecodeError, "odd"),
        (StopIteration(3), shmq.RemoteError, "StopIteration"),
        (shmq.Cancelled("I say so"), shmq.RemoteError, "I say so"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_arrive(
    serve: Serve, client: shmq.Client, error: Exception, expected: type[Exception], text: str
) -> None:
    def handler(value: Any) -> Any:
        if value == "fine":
            return value
        raise error

    server = serve(handler)
    with pytest.raises(expected, match=text) as caught:
        client.call("x", PATIENT_S)
    assert isinstance(caught.value, shmq.RemoteError)
    assert type(error).__name__ in caught.value.kind
    assert "in handler" in "".join(caught.value.__notes__)
    assert len("".join(caught.value.__notes__)) < 10_000
    assert client.call("fine", PATIENT_S) == "fine"
    assert server.stats().failed == client.stats().failed == 1


def test_an_os_error_keeps_its_number(serve: Serve, client: shmq.Client) -> None:
    serve(open)
    with pytest.raises(FileNotFoundError) as caught:
        client.call("/does/not/exist", PATIENT_S)
    assert (caught.value.errno, caught.value.filename) == (2, "/does/not/exist")


@pytest.mark.parametrize(
    ("result", "expected"),
    [(object(), shmq.Unencodable), (np.zeros(1 << 20), shmq.MessageTooLarge)],
    ids=["unencodable", "too large"],
)
def test_results_that_cannot_travel(
    serve: Serve, client: shmq.Client, result: Any, expected: type[Exception]
) -> None:
    serve(lambda value: result if value == "it" else value)
    with pytest.raises(expected):
        client.call("it", PATIENT_S)
    assert client.call("next", PATIENT_S) == "next"
    with pytest.raises(shmq.Unencodable):
        client.call(object())
    assert client.stats().cancelled == 2 - 1


def test_what_arrives_chooses_no_class() -> None:
    for fault in (3, [], ["x", "os.system", ["true"], "t", ""], ["x", ["y"], None, "t", ""], [1, 2, 3, 4, 5]):
        error = faults.revive(fault)
        assert type(error) is shmq.RemoteError
    assert type(faults.revive(["X", "KeyError", [1, 2, 3], "t", ""])).__mro__[1:3] == (
        shmq.RemoteError,
        shmq.ShmqError,
    )


def test_what_is_no_exception_ends_the_server(name: str, client: shmq.Client) -> None:
    def handler(value: Any) -> Any:
        raise SystemExit(3)

    with shmq.Server(name) as server:
        call = Background(lambda: client.call(1, PATIENT_S))
        with pytest.raises(SystemExit):
            server.serve(handler, threads=2)
        with pytest.raises(shmq.RemoteError, match="SystemExit"):
            call.result()


# ---- deadlines and cancellation ----


def test_no_server(client: shmq.Client) -> None:
    with pytest.raises(shmq.DeadlineExceeded, match="no server has ever been attached"):
        client.call("x", timeout=0.15)
    with pytest.raises(TimeoutError, match="no server is attached"):
        client.wait_for_server(timeout=0.02)


def test_what_has_expired_is_not_executed(serve: Serve, client: shmq.Client) -> None:
    with pytest.raises(TimeoutError):
        client.call("too late", timeout=0.01)
    seen: list[Any] = []
    server = serve(lambda value: seen.append(value))
    client.wait_for_server(PATIENT_S)
    client.call("in time", PATIENT_S)
    assert seen == ["in time"]
    assert server.stats().expired == client.stats().expired == 1


def test_the_deadline_travels(client: shmq.Client, server: shmq.Server) -> None:
    before = time.monotonic()
    call = Background(lambda: client.call("x", timeout=0.3))
    request = server.next(PATIENT_S)
    assert request.deadline is not None
    assert before + 0.3 <= request.deadline <= time.monotonic() + 0.3
    assert not request.cancelled
    with pytest.raises(shmq.DeadlineExceeded, match="no answer within"):
        call.result()
    assert request.cancelled
    request.reply("nobody wants it")
    assert request.answered
    assert server.stats().expired == 1
    call = Background(lambda: client.call("y"))
    request = server.next(PATIENT_S)
    assert request.deadline is None
    request.reply(1)
    assert call.result() == 1


def test_an_expired_stream_ends_in_the_server(serve: Serve, client: shmq.Client) -> None:
    ended = threading.Event()

    def slow(_: Any) -> Iterator[int]:
        try:
            while True:
                yield 1
                ended.wait(0.01)
        finally:
            ended.set()

    server = serve(slow)
    with pytest.raises(shmq.DeadlineExceeded):
        list(client.stream(None, timeout=0.2))
    assert ended.wait(PATIENT_S)
    poll(lambda: server.stats().expired == 1)


def test_what_was_cancelled_before_is_not_executed(serve: Serve, client: shmq.Client) -> None:
    """No server was there to learn of it: it looks at what was cancelled before it came."""
    stream = client.stream("x")
    call = Background(lambda: next(stream))
    poll(lambda: client._calls._requests.qsize() == 1)  # type: ignore[union-attr]
    client._calls.abandon(stream._streamed.call)  # type: ignore[union-attr]
    seen: list[Any] = []
    server = serve(lambda value: seen.append(value))
    poll(lambda: server.stats().cancelled == 1)
    assert seen == []
    client.close()
    with pytest.raises(shmq.Closed):
        call.result()
    server.unlink()


def test_cancelled_while_at_work(client: shmq.Client, server: shmq.Server) -> None:
    stream = client.stream("x")
    call = Background(lambda: next(stream))
    request = server.next(PATIENT_S)
    request.send("first")
    assert call.result() == "first"
    assert not request.cancelled
    stream.close()
    assert request.cancelled
    with pytest.raises(shmq.Cancelled):
        request.send("second")
    assert server.stats().cancelled == 1
    assert server._jobs.requests.stats().unacked == 0


def test_a_request_is_answered_once(client: shmq.Client, server: shmq.Server) -> None:
    call = Background(lambda: client.call("x", PATIENT_S))
    request = server.next(PATIENT_S)
    with pytest.raises(TypeError, match="must use stream"):
        request.send(1)
    with pytest.raises(shmq.Unencodable):
        request.reply(object())
    request.reply("it can be tried again")
    assert call.result() == "it can be tried again"
    for again in (request.reply, request.send, request.fail):
        with pytest.raises(shmq.ShmqError, match="answered before"):
            again(ValueError())


def test_a_request_that_is_dropped(client: shmq.Client, server: shmq.Server) -> None:
    call = Background(lambda: client.call("x", PATIENT_S))
    request = server.next(PATIENT_S)
    del request
    gc.collect()
    with pytest.raises(shmq.Empty):
        server.next(0.05)
    with pytest.raises(shmq.ServerDied, match="dropped it"):
        call.result()
    assert (server.stats().redelivered, server.stats().refused) == (1, 1)


# ---- who does not read ----


def test_a_client_that_does_not_read(name: str, serve: Serve, client: shmq.Client) -> None:
    """Its stream is given up after a while, and others are served; once it reads, it is told."""

    def handler(value: Any) -> Any:
        return iter_to(100_000) if value == "stream" else value

    server = serve(handler, patience=0.1)
    stream = client.stream("stream")
    assert next(stream) == 0
    with shmq.Client(name, **REPLY_SIZES) as other:
        assert other.call("y", PATIENT_S) == "y"
    assert server.stats().given_up == 1
    got = 1
    with pytest.raises(shmq.Full, match="did not read"):  # noqa: PT012
        for got, chunk in enumerate(stream, start=1):
            assert got == chunk
    assert got > 10
    assert client.call("again", PATIENT_S) == "again"
    assert server._jobs.requests.stats().unacked == 0


def test_a_full_request_queue_waits_with_the_deadline(name: str, client: shmq.Client) -> None:
    with shmq.Queue(name) as q:
        fill(q)
    with pytest.raises(shmq.DeadlineExceeded, match="no room"):
        client.call("x", timeout=0.2)
    assert client.stats() == shmq.ClientStats(calls=1, expired=1)


# ---- what others put, and what they leave ----


def test_what_is_no_request(name: str, serve: Serve, client: shmq.Client) -> None:
    server = serve(lambda value: value)
    with shmq.Queue(name, allow_pickle=True) as q:
        suffix = "12-" + "a" * 12
        for wrong in (
            b"raw", None, [], [1, suffix, 0, 0], [1, "other", 0, 0, 0], [1, "../x", 0, 0, 0],
            ["a", suffix, 0, 0, 0], [1, suffix, "b", 0, 0], [1, suffix, 0, None, 0], {1, 2}, range(3),
        ):  # fmt: skip
            q.put(wrong)
        q.put([1, suffix, 0, 0, "from nobody"])
    assert client.call("x", PATIENT_S) == "x"
    found = server.stats()
    assert (found.malformed, found.cancelled, found.served) == (11, 1, 1)


def test_a_queue_of_another_kind(name: str) -> None:
    with shmq.Queue(name, kind="mpmc", **SMALL) as q:
        for kind in (shmq.Client, shmq.Server):
            with pytest.raises(shmq.WrongKind):
                kind(name)
        q.unlink()
    for kind in (shmq.Client, shmq.Server):
        for wrong in ("a/b", "x" * 171):
            with pytest.raises(shmq.InvalidName):
                kind(wrong)


def test_orphans_are_removed(name: str, client: shmq.Client) -> None:
    """Of a client that died before any server knew it."""
    orphan = shmq.Queue.create(f"{name}.1-{'0' * 12}", **SMALL)
    orphan.close()
    kept = shmq.Queue.create(f"{name}.1-{'1' * 12}", **SMALL)
    other = shmq.Queue.create(f"{name}.other", **SMALL)
    other.close()
    shmq.Server(name).close()
    left = {path.name for path in SHM.glob(f"shmq.{name}.*")}
    assert left == {f"shmq.{name}.{end}" for end in ("other", "cancelled", f"1-{'1' * 12}")}
    for q in (kept, other):
        q.unlink()
    kept.close()


def test_a_client_that_closes_is_forgotten(name: str, serve: Serve, client: shmq.Client) -> None:
    server = serve(lambda value: value)
    with shmq.Client(name, **REPLY_SIZES) as other:
        other.call(1, PATIENT_S)
    poll(lambda: server.stats().clients == 0)
    client.call(1, PATIENT_S)
    assert server.stats().clients == 1


# ---- life ----


def test_shutdown_drains(name: str, client: shmq.Client) -> None:
    calls = [Background(lambda i=i: client.call(i, PATIENT_S)) for i in range(5)]
    with shmq.Server(name) as server:
        poll(lambda: server._jobs.requests.qsize() == 5)
        server.shutdown()
        with pytest.raises(shmq.ShutDown):
            client.call("refused", PATIENT_S)
        server.serve(lambda value: value + 1)
        assert server.stats().served == 5
    assert [call.result() for call in calls] == [1, 2, 3, 4, 5]


def test_stop_ends_one_server(name: str, client: shmq.Client) -> None:
    with shmq.Server(name) as server:
        thread = threading.Thread(target=server.serve, args=(lambda value: value, 2))
        thread.start()
        assert client.call(1, PATIENT_S) == 1
        server.stop()
        thread.join(PATIENT_S)
        with pytest.raises(shmq.ShutDown, match="stopped"):
            server.next()
        assert list(server) == []
    with pytest.raises(shmq.ServerDied, match="no server is alive"):
        client.call(2, PATIENT_S)
    with shmq.Server(name) as server:
        with pytest.raises(shmq.Empty):
            server.next(timeout=0.05)
        assert server.stats().cancelled == 1, "it was told that nobody waits for the second one"


def test_one_look_is_for_all(name: str, client: shmq.Client) -> None:
    """Whoever reads finds that no server is left, and tells everyone who waits."""
    calls = client._calls
    pending = [Call(0, False, 1 << 62) for _ in range(3)]
    with shmq.Server(name) as server:
        for call in pending:
            block(calls.send(call, "x"))
        calls._look_if_due(1)
        assert not any(call.events for call in pending)
        requests = [server.next(PATIENT_S) for _ in pending]
        assert len(requests) == 3
    calls._look_if_due(1 << 60)
    assert [call.events[0][0] for call in pending] == [DIED] * 3


def test_what_the_last_server_said_counts(name: str, client: shmq.Client) -> None:
    """Its answers lie there, unread, when a look finds it gone."""
    calls = client._calls
    call = Call(0, True, 1 << 62)
    with shmq.Server(name) as server:
        block(calls.send(call, "x"))
        request = server.next(PATIENT_S)
        for i in range(40):
            request.send(i)
        request.end()
        calls._look_if_due(1 << 58)
    calls._look_if_due(1 << 60)
    assert list(call.events) == [(CHUNK, i) for i in range(40)] + [(END, None)]


def test_no_server_is_left_to_make_room(name: str, client: shmq.Client) -> None:
    """Whoever waits for room in the request queue finds out, too, though nobody reads replies."""
    shmq.Server(name).close()
    with shmq.Queue(name) as q:
        fill(q)
        q.get()
        q.put("one was taken")
        fill(q)
    with pytest.raises(shmq.ServerDied, match="no server is alive"):
        client.call("x")


def test_one_thread_of_a_server_waits_in_the_queue(
    name: str, client: shmq.Client, server: shmq.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever puts wakes all that wait there; the others have their turn, or their time is over."""
    wait, waiting, most = server._jobs.next, [], 0

    def watched(deadline: int) -> Any:
        nonlocal most
        waiting.append(deadline)
        most = max(most, sum(1 for each in waiting if each > time.monotonic_ns()))
        try:
            return (yield from wait(deadline))
        finally:
            waiting.remove(deadline)

    monkeypatch.setattr(server._jobs, "next", watched)
    threads = [Background(lambda: server.next(PATIENT_S)) for _ in range(4)]
    poll(lambda: waiting)
    with pytest.raises(shmq.Empty):
        server.next(timeout=0.02)
    calls = [Background(lambda: client.call("x", PATIENT_S)) for _ in range(4)]
    for thread in threads:
        thread.result().reply("y")
    assert [call.result() for call in calls] == ["y"] * 4
    assert most == 1


def test_closing_a_server_beside_a_thread_at_its_clients(server: shmq.Server) -> None:
    """That one may be about to finish a request: they must not wait for each other."""
    jobs = server._jobs
    with jobs._callers._lock:
        closing = Background(server.close)
        poll(lambda: jobs.cancellations.closed)
        assert jobs._lock.acquire(timeout=10.0)
        jobs._lock.release()
    closing.result()


def test_closing_a_client_wakes_its_threads(name: str, client: shmq.Client, server: shmq.Server) -> None:
    with shmq.Client(name, **REPLY_SIZES) as other:
        calls = [Background(lambda: other.call("x")) for _ in range(3)]
        requests = [server.next(PATIENT_S) for _ in calls]
    for call in calls:
        with pytest.raises(shmq.Closed):
            call.result()
    assert all(request.cancelled for request in requests)
    for use in (lambda: other.call(1), lambda: pickle.dumps(other), other.wait_for_server):
        with pytest.raises(shmq.Closed):
            use()
    other.close()


def test_a_pickled_client_is_another(serve: Serve, client: shmq.Client) -> None:
    server = serve(lambda value: value)
    assert client.call(1, PATIENT_S) == 1
    with pickle.loads(pickle.dumps(client)) as other:
        assert other.call(2, PATIENT_S) == 2
        assert other.stats().calls == 1
        assert server.stats().clients == 2
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(server)


def test_a_forked_client_is_another(serve: Serve, client: shmq.Client) -> None:
    serve(lambda value: value)
    assert client.call(1, PATIENT_S) == 1
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = client.call(7, PATIENT_S)
            code += f".{os.getpid()}-" not in client._calls._reply_queue().name
            client.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert client.call(2, PATIENT_S) == 2
    assert len(list(SHM.glob(f"shmq.{RUN}*.{pid}-*"))) == 0


def test_arguments(name: str) -> None:
    with pytest.raises(ValueError, match="patience"):
        shmq.Server(name, patience=-1)
    with shmq.Client(name, **SIZES) as client:
        with pytest.raises(ValueError, match="non-negative"):
            client.call(1, timeout=-1)
        with shmq.Server(name) as server:
            with pytest.raises(ValueError, match="at least 1"):
                server.serve(print, threads=0)
            assert name in repr(server)
        assert "closed" in repr(server)
        assert name in repr(client)
        client.unlink()


def test_close_waits_for_serve_and_not_for_its_thread(name: str) -> None:
    """A pool's thread lives on."""
    server = shmq.Server(name, **SIZES)
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(server.serve, lambda value: value)
        with shmq.Client(name) as client:
            assert client.call(7, PATIENT_S) == 7
        server.close()
        served.result(PATIENT_S)
    server.unlink()


def test_a_handler_may_close_its_server(name: str) -> None:
    server = shmq.Server(name, **SIZES)

    def handler(value: int) -> int:
        server.close()
        return value

    serving = threading.Thread(target=server.serve, args=(handler,), kwargs={"threads": 2}, daemon=True)
    serving.start()
    with shmq.Client(name) as client, suppress(shmq.ShmqError):
        client.call(7, 5.0)
    serving.join(PATIENT_S)
    assert not serving.is_alive()
    server.unlink()
