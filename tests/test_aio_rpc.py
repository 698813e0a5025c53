"""``aio.Server`` and ``aio.Client``: tasks that wait; cancellation passed on; beside threads that wait."""

import asyncio
import gc
import os
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest
from conftest import PRELUDE, SHM, Script, fill
from test_rpc import PATIENT_S, REPLY_SIZES, SIZES

import shmq
from shmq import aio
from shmq.calls import Call
from shmq.rpc import block

Main = Callable[[Coroutine[Any, Any, Any]], Any]
Start = Callable[..., Script]


@pytest.fixture(params=["asyncio", "uvloop"])
def main(request: pytest.FixtureRequest) -> Main:
    """Runs a coroutine in a loop of this kind."""
    factory = None
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed: pip install 'shmq[test]'")
        factory = uvloop.new_event_loop

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(asyncio.wait_for(coroutine, PATIENT_S))

    return run


@pytest.fixture(autouse=True)
def service(name: str) -> Iterator[None]:
    """Its names are removed, and nobody's reply queue is left."""
    yield
    left = list(SHM.glob(f"shmq.{name}.*-*"))
    for end in ("", ".cancelled"):
        with suppress(shmq.SegmentNotFound):
            shmq.unlink(name + end)
    assert not left


def a_client(name: str) -> aio.Client:
    return aio.Client(name, **SIZES, **REPLY_SIZES)


@asynccontextmanager
async def served(
    name: str, handler: Callable[[Any], Any], concurrency: int = 64, **arguments: Any
) -> AsyncIterator[tuple[aio.Server, aio.Client]]:
    async with aio.Server(name, **{**SIZES, **arguments}) as server, a_client(name) as client:
        serving = asyncio.create_task(server.serve(handler, concurrency))
        yield server, client
        server.stop()
        await serving


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


# ---- answers and streams ----


async def echo(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


@pytest.mark.parametrize("handler", [echo, lambda value: value], ids=["coroutine", "function"])
def test_calls(main: Main, name: str, handler: Callable[[Any], Any]) -> None:
    async def run() -> None:
        async with served(name, handler) as (server, client):
            for sent in (1, b"x", {"x": np.arange(5000)}):
                np.testing.assert_equal(await client.call(sent, PATIENT_S), sent)
            answers = await asyncio.gather(*(client.call(i, PATIENT_S) for i in range(300)))
            assert answers == list(range(300))
            assert server.stats().served == 303
            assert client.stats() == shmq.ClientStats(calls=303, answered=303)

    main(run())


async def count(n: int) -> AsyncIterator[int]:
    for i in range(n):
        if i % 7 == 0:
            await asyncio.sleep(0)
        yield i


@pytest.mark.parametrize("handler", [count, lambda n: iter_to(n)], ids=["asynchronous", "ordinary"])
def test_streams(main: Main, name: str, handler: Callable[[Any], Any]) -> None:
    async def take(client: aio.Client, n: int) -> list[int]:
        return [i async for i in client.stream(n, PATIENT_S)]

    async def run() -> None:
        async with served(name, handler) as (server, client):
            sizes = [0, 1, 50, 300, *range(20)]
            got = await asyncio.gather(*(take(client, n) for n in sizes))
            assert got == [list(range(n)) for n in sizes]
            assert server.stats().chunks == sum(sizes)
            with pytest.raises(TypeError, match="stream"):
                await client.call(3, PATIENT_S)

    main(run())


def iter_to(n: int) -> Iterator[int]:
    yield from range(n)


def test_errors(main: Main, name: str) -> None:
    async def handler(value: Any) -> Any:
        if value == "bad":
            return object()
        raise KeyError(value)

    async def run() -> None:
        async with served(name, handler) as (server, client):
            with pytest.raises(KeyError) as caught:
                await client.call("k", PATIENT_S)
            assert "in handler" in caught.value.__notes__[0]
            with pytest.raises(shmq.Unencodable):
                await client.call("bad", PATIENT_S)
            with pytest.raises(shmq.Unencodable):
                await client.call(object(), PATIENT_S)
            assert server.stats().failed == 2

    main(run())


def test_requests_by_hand(main: Main, name: str) -> None:
    async def run() -> None:
        async with aio.Server(name) as server, a_client(name) as client:
            with pytest.raises(shmq.Empty):
                await server.next(timeout=0.01)

            async def work() -> None:
                async for request in server:
                    if request.streams:
                        await request.send(1)
                        await request.send(2)
                        await request.end()
                    elif request.value == "fail":
                        await request.fail(LookupError("by hand"))
                    else:
                        await request.reply(request.value)

            working = asyncio.create_task(work())
            assert await client.call("x", PATIENT_S) == "x"
            assert [i async for i in client.stream("x", PATIENT_S)] == [1, 2]
            with pytest.raises(LookupError, match="by hand"):
                await client.call("fail", PATIENT_S)
            server.shutdown()
            await working
            with pytest.raises(shmq.ShutDown):
                await client.call("x")

    main(run())


def test_both_kinds_understand_each_other(main: Main, name: str) -> None:
    async def run() -> None:
        async with served(name, count) as (_, __):
            with shmq.Client(name, **REPLY_SIZES) as client:
                assert await asyncio.to_thread(lambda: list(client.stream(20, PATIENT_S))) == list(range(20))
        with shmq.Server(name) as server:
            thread = threading.Thread(target=server.serve, args=(iter_to,))
            thread.start()
            async with a_client(name) as other:
                assert [i async for i in other.stream(20, PATIENT_S)] == list(range(20))
            server.stop()
            thread.join()

    main(run())


# ---- cancellation ----


class Slow:
    """A handler that never ends by itself, and counts how it is treated."""

    def __init__(self) -> None:
        self.begun = self.cancelled = 0

    async def __call__(self, value: Any) -> Any:
        if value == "quick":
            return value
        self.begun += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def test_a_cancelled_task_cancels_its_request(main: Main, name: str) -> None:
    slow = Slow()

    async def run() -> None:
        async with served(name, slow) as (server, client):
            tasks = [asyncio.create_task(client.call("slow")) for _ in range(5)]
            await until(lambda: slow.begun == 5)
            for task in tasks[:3]:
                task.cancel()
            await until(lambda: slow.cancelled == 3)
            assert all(task.cancelled() for task in tasks[:3])
            assert not any(task.done() for task in tasks[3:])
            assert await client.call("quick", PATIENT_S) == "quick"
            client.close()
            for task in tasks[3:]:
                with pytest.raises(shmq.Closed):
                    await task
            await until(lambda: slow.cancelled == 5)
            assert server.stats().cancelled == 5

    main(run())


def test_a_deadline_ends_the_handler(main: Main, name: str) -> None:
    slow = Slow()

    async def run() -> None:
        async with served(name, slow) as (server, client):
            with pytest.raises(shmq.DeadlineExceeded):
                await client.call("slow", timeout=0.1)
            await until(lambda: slow.cancelled == 1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.call("slow")
            await until(lambda: slow.cancelled == 2)
            # Which of the two comes first at the server: its own clock, or what the client says.
            await until(lambda: server.stats().expired + server.stats().cancelled == 2)
            assert (client.stats().expired, client.stats().cancelled) == (1, 1)

    main(run())


@pytest.mark.parametrize("how", ["break", "close", "with", "cancel"])
def test_a_stream_that_is_left(main: Main, name: str, how: str) -> None:
    ended: list[str] = []

    async def forever(_: Any) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.001)
        finally:
            ended.append("ended")

    async def read(stream: aio.Stream) -> None:
        async for _ in stream:
            if how == "break":
                break

    async def run() -> None:
        async with served(name, forever) as (server, client):
            stream = client.stream(None)
            if how == "with":
                async with stream:
                    await anext(stream)
            elif how == "cancel":
                task = asyncio.create_task(read(stream))
                await until(lambda: server.stats().chunks > 3)
                task.cancel()
            else:
                await read(stream) if how == "break" else await anext(stream)
                stream.close() if how == "close" else None
            del stream
            gc.collect()
            await until(lambda: ended)
            await until(lambda: server.stats().cancelled == 1)

    main(run())


def test_cancelled_at_any_moment(main: Main, name: str) -> None:
    """Of 400 calls a third is cancelled, each a little later than the one before; the rest is right."""

    async def run() -> None:
        async with served(name, echo, concurrency=8) as (server, client):

            async def ask(i: int) -> None:
                answer = await client.call(i, PATIENT_S)
                assert answer == i

            async def cancel(task: "asyncio.Task[None]", turns: int) -> None:
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()

            cancelled = 0
            for turns in range(20):
                tasks = [asyncio.create_task(ask(i)) for i in range(20)]
                await asyncio.gather(*(cancel(task, turns + k) for k, task in enumerate(tasks[::3])))
                results = await asyncio.gather(*tasks, return_exceptions=True)
                cancelled += sum(isinstance(found, asyncio.CancelledError) for found in results)
                assert {type(found) for found in results} <= {type(None), asyncio.CancelledError}
            assert cancelled > 0
            assert client._calls._pending == client._calls._followers == {}
            assert await client.call("after all that", PATIENT_S) == "after all that"
            await until(lambda: server._jobs.requests.stats().unacked == 0)
            assert await until(lambda: not server._tasks) is None

    main(run())


def test_a_full_request_queue(main: Main, name: str) -> None:
    async def run() -> None:
        async with a_client(name) as client:
            with shmq.Queue(name) as q:
                fill(q)
            with pytest.raises(shmq.DeadlineExceeded, match="no room"):
                await client.call("x", timeout=0.1)
            task = asyncio.create_task(client.call("x"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert client._calls._pending == {}

    main(run())


def test_a_client_that_does_not_read(main: Main, name: str) -> None:
    async def run() -> None:
        async with (
            served(name, lambda n: iter_to(n), concurrency=2, patience=0.1) as (server, client),
            a_client(name) as other,
        ):
            stream = client.stream(100_000)
            assert await anext(stream) == 0
            assert [i async for i in other.stream(3, PATIENT_S)] == [0, 1, 2], "it is held up by nobody"
            await until(lambda: server.stats().given_up == 1)
            with pytest.raises(shmq.Full, match="did not read"):
                [i async for i in stream]

    main(run())


# ---- life ----


def test_stopping_waits_for_what_is_at_work(main: Main, name: str) -> None:
    go: list[asyncio.Event] = []

    async def handler(value: Any) -> Any:
        go.append(asyncio.Event())
        await go[-1].wait()
        return value

    async def run() -> None:
        async with a_client(name) as client:
            async with aio.Server(name) as server:
                serving = asyncio.create_task(server.serve(handler))
                task = asyncio.create_task(client.call("x", PATIENT_S))
                await until(lambda: go)
                server.stop()
                asyncio.get_running_loop().call_later(0.05, go[0].set)
            await serving
            assert await task == "x"
            with pytest.raises(shmq.ServerDied, match="no server is alive"):
                await client.call("y", PATIENT_S)

    main(run())


def test_a_server_that_is_cancelled(main: Main, name: str) -> None:
    """Its handlers end, and what they had is another's, or refused."""
    slow = Slow()

    async def run() -> None:
        async with a_client(name) as client, aio.Server(name) as server, aio.Server(name) as other:
            serving = asyncio.create_task(server.serve(slow))
            task = asyncio.create_task(client.call("slow", PATIENT_S))
            await until(lambda: slow.begun == 1)
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            assert slow.cancelled == 1
            with pytest.raises(shmq.Empty):
                await other.next(0.05)
            with pytest.raises(shmq.ServerDied):
                await task

    main(run())


def test_what_is_no_exception_ends_the_server(main: Main, name: str) -> None:
    class Fatal(BaseException):
        pass

    async def handler(value: Any) -> Any:
        raise Fatal

    async def run() -> None:
        async with aio.Server(name) as server, a_client(name) as client:
            serving = asyncio.create_task(server.serve(handler))
            with pytest.raises(shmq.RemoteError, match="Fatal"):
                await client.call(1, PATIENT_S)
            with pytest.raises(Fatal):
                await serving

    main(run())


WORKER = (
    PRELUDE
    + """
import asyncio
from contextlib import suppress
from shmq import aio

async def handler(value):
    for i in range(value["n"]):
        if i == value["n"] // 2:
            with suppress(FileExistsError):  # another worker is the one that dies
                os.close(os.open(value["flag"], os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                os.kill(os.getpid(), signal.SIGKILL)
        yield [i, np.full(500, i)]

async def main():
    async with aio.Server(sys.argv[1], idempotent=True) as server:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
        print("ready", flush=True)
        await server.serve(handler)

asyncio.run(main())
"""
)


def test_a_worker_dies(main: Main, name: str, script: Start, tmp_path: Any) -> None:
    """Each of many streams is whole, whichever worker began it."""
    workers = [script(WORKER, name) for _ in range(2)]
    for worker in workers:
        assert worker.line() == "ready"
    what = {"n": 60, "flag": str(tmp_path / "dead")}

    async def take(client: aio.Client) -> list[int]:
        found = [(i, int(x[0])) async for i, x in client.stream(what, PATIENT_S)]
        assert all(i == x for i, x in found)
        return [i for i, _ in found]

    async def run() -> None:
        async with a_client(name) as client:
            got = await asyncio.gather(*(take(client) for _ in range(20)))
            assert got == [list(range(60))] * 20

    main(run())
    dead = [worker for worker in workers if worker.process.poll() is not None]
    assert len(dead) == 1
    for worker in workers:
        if worker not in dead:
            worker.process.terminate()
            assert worker.finish()[::2] == (0, "")


def test_forks_and_pickles(main: Main, name: str) -> None:
    async def in_the_child(client: aio.Client) -> int:
        async with client:
            answer: int = await client.call(7, PATIENT_S)
            return answer

    with shmq.Server(name, **SIZES) as server, shmq.Client(name) as threads_own:
        thread = threading.Thread(target=server.serve, args=(lambda value: value,))
        thread.start()
        client = a_client(name)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = asyncio.run(in_the_child(client))
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert threads_own.call(1, PATIENT_S) == 1

        async def run() -> None:
            async with pickle.loads(pickle.dumps(client)) as other, client:
                assert await asyncio.gather(client.call(1, PATIENT_S), other.call(2, PATIENT_S)) == [1, 2]
            for use in (lambda: pickle.dumps(client), lambda: pickle.dumps(server)):
                with pytest.raises((TypeError, shmq.Closed)):
                    use()

        main(run())
        server.stop()
        thread.join()


def test_arguments(main: Main, name: str) -> None:
    async def run() -> None:
        async with aio.Server(name) as server, a_client(name) as client:
            with pytest.raises(ValueError, match="at least 1"):
                await server.serve(echo, concurrency=0)
            await client.wait_for_server(PATIENT_S)
            assert name in repr(server)
            assert name in repr(client)
            server.close()
            with pytest.raises(TimeoutError, match="no server"):
                await client.wait_for_server(0.02)
            assert "closed" in repr(server)
            with pytest.raises(TypeError, match="cannot be pickled"):
                pickle.dumps(server)
            with pytest.raises(AttributeError):
                _ = aio.Nonsense  # type: ignore[attr-defined]

    main(run())


def test_a_request_that_is_cancelled_before_its_task_has_begun(main: Main, name: str) -> None:
    """It is in nobody's hands afterwards."""

    async def run() -> None:
        async with aio.Server(name, **SIZES) as server:
            with shmq.Client(name) as client:
                calls = [Call(0, False, 1 << 62) for _ in range(10)]
                for call in calls:
                    block(client._calls.send(call, "x"))
                admit = server._jobs._admit
                mine = iter(calls)

                def cancelled(message: Any) -> Any:
                    found = admit(message)
                    client._calls.abandon(next(mine))
                    return found

                server._jobs._admit = cancelled  # type: ignore[method-assign]
                serving = asyncio.create_task(server.serve(lambda value: value, concurrency=64))
                while server._jobs.requests.stats().unacked or server._jobs.requests.qsize():
                    await asyncio.sleep(0.001)
                assert not server._tasks
                server.stop()
                await serving

    main(run())
