"""What goes wrong outside the code: each case has its own error, says what to do, and leaves nothing."""

import contextlib
import mmap
import multiprocessing.util
import os
import resource
import signal
import socket
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import posix_ipc
import pytest

import shmq

Make = Callable[..., shmq.Queue]
ONE_OF_EACH = pytest.mark.parametrize("ring_kind", ["spsc"])
"""Of queues with one producer and one consumer at a time."""
Run = Callable[..., str]
PATIENCE = 60
SHM = Path("/dev/shm")

PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
import shmq
SMALL = {"ring_bytes": 1 << 16, "arena_bytes": 1 << 20}
"""


def file_of(name: str) -> Path:
    return SHM / f"shmq.{name}"


# ---- too large, full ----


@pytest.mark.parametrize("arena_bytes", [0, 1 << 20, 8 << 20])
def test_a_message_larger_than_the_segment_can_ever_hold(make: Make, arena_bytes: int) -> None:
    q = make(arena_bytes=arena_bytes)
    limit = q.stats().largest_message_bytes
    assert limit == max(arena_bytes, q.stats().inline_bytes)
    attempts: list[Callable[[], Any]] = [
        lambda: q.put(b"x" * (limit + 1)),
        lambda: q.put(bytearray(limit + 1), timeout=0),
        lambda: q.put("x" * (limit + 1), block=False),
        lambda: q.put([b"x" * (limit + 1)], timeout=5),
        lambda: q.put(np.zeros(limit + 1, "u1")),
        lambda: q.put(np.zeros((limit + 1) * 2, "u1")[::2]),
        lambda: q.put({"a": np.zeros(limit + 1, "u1")}),
        lambda: q.put_many([b"x" * (limit + 1)]),
        lambda: q.loan(limit + 1, "u1"),
    ]
    for attempt in attempts:
        with pytest.raises(shmq.MessageTooLarge) as caught:
            attempt()
        text = str(caught.value)
        assert f"{limit:,}" in text  # the limit
        assert "arena_bytes" in text  # the parameter to raise
        assert q.name in text
    q.put(b"x" * limit)
    assert len(q.get()) == limit


def fill(q: shmq.Queue) -> None:
    with contextlib.suppress(shmq.Full):
        while True:
            q.put_nowait(b"x" * 100)


def fill_arena(q: shmq.Queue) -> list[Any]:
    held = []
    with contextlib.suppress(shmq.ArenaFull):
        while True:
            q.put_nowait(np.zeros(2048))
            held.append(q.get())
    return held


def test_full_without_waiting(make: Make) -> None:
    q = make(ring_bytes=4096, arena_bytes=1 << 20)
    held = fill_arena(q)
    with pytest.raises(shmq.ArenaFull, match=r"1,048,576.*views.*arena_bytes"):
        q.put_nowait(np.zeros(2048))
    fill(q)
    with pytest.raises(shmq.Full, match=r"4,096.*ring_bytes"):
        q.put_nowait(b"x" * 100)
    del held


@pytest.mark.parametrize("timeout", [0, 0.1, None])
def test_a_full_ring(make: Make, timeout: float | None) -> None:
    q = make(ring_bytes=4096)
    fill(q)
    if timeout is None:
        timer = threading.Timer(0.05, q.get)
        timer.start()
        q.put(b"x" * 100, timeout=None)
        timer.join()
        return
    start = time.monotonic()
    with pytest.raises(shmq.Full, match=r"4,096.*nobody.*ring_bytes") as caught:
        q.put(b"x" * 100, timeout=timeout)
    assert timeout <= time.monotonic() - start < 30
    assert not isinstance(caught.value, shmq.ArenaFull)
    consumer = make()
    consumer.get()
    fill(q)
    with pytest.raises(shmq.Full, match=rf"consumer is peer 1 \(pid {os.getpid()}"):
        q.put(b"x" * 100, timeout=timeout)


@pytest.mark.parametrize("timeout", [0, 0.1, None])
def test_a_full_arena(make: Make, timeout: float | None) -> None:
    q = make()
    held = fill_arena(q)
    if timeout is None:
        timer = threading.Timer(0.05, held.pop)
        timer.start()
        q.put(np.zeros(2048), timeout=None)
        timer.join()
        return
    start = time.monotonic()
    with pytest.raises(shmq.ArenaFull, match=rf"pid {os.getpid()}.*holds 1,048,576.*arena_bytes"):
        q.put(np.zeros(2048), timeout=timeout)
    assert timeout <= time.monotonic() - start < 30
    q.put(b"small ones still fit")
    assert q.get() == b"small ones still fit"
    assert len(held) == 64


# ---- /dev/shm too small ----


@pytest.mark.parametrize(
    "how", [{"arena_bytes": 1 << 38}, {"arena_bytes": 1 << 36, "ring_bytes": 1 << 30}], ids=str
)
def test_a_size_that_cannot_fit(name: str, how: dict[str, int]) -> None:
    for opener in (shmq.Queue, shmq.Queue.create):
        with pytest.raises(shmq.OutOfSpace, match=r"bytes.*arena_bytes.*ring_bytes.*/dev/shm") as caught:
            opener(name, **how)
        assert caught.value.errno == 28
        assert name in str(caught.value)
        assert not file_of(name).exists()
    with pytest.raises(shmq.OutOfSpace):
        shmq.Queue(**how)


def numbers_in(text: str) -> list[int]:
    return [int(word.replace(",", "")) for word in text.split() if word.replace(",", "").isdigit()]


def test_memory_that_is_gone_at_the_last_moment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look before may be too hopeful; then the reservation fails, and it does so as an error, too."""
    answers = [(1 << 60, "free")]
    real = shmq.limits.available_bytes
    monkeypatch.setattr("shmq.segment.available_bytes", lambda *_: answers.pop() if answers else real())
    # No gigabyte is really taken: a limit on the file's size stops the reservation.  Python ignores SIGXFSZ.
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
    try:
        with pytest.raises(shmq.OutOfSpace):
            shmq.Queue(name, arena_bytes=16 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not file_of(name).exists()


def test_a_small_shm(in_small_shm: Callable[[str, str], str]) -> None:
    output = in_small_shm(
        "16m",
        PRELUDE
        + """
free = lambda: os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize
before = free()
for how in ({}, {"arena_bytes": 64 << 20}, {"arena_bytes": 15 << 20}, {"ring_bytes": 1 << 30}):
    for make in (shmq.Queue, lambda **a: shmq.Queue("q", **a), lambda **a: shmq.Queue.create("q", **a)):
        try:
            make(**how)
            print("made", how)
        except shmq.OutOfSpace as e:
            print(e)
        assert os.listdir("/dev/shm") == [], os.listdir("/dev/shm")
        assert free() == before
with shmq.Queue("q", arena_bytes=8 << 20) as q:
    q.put(b"x" * (8 << 20)); assert len(q.get()) == 8 << 20   # all of it is there: no SIGBUS
    q.put(np.ones(1 << 20)); view = q.get()
    try:
        shmq.Queue("second", arena_bytes=8 << 20)
    except shmq.OutOfSpace as e:
        print(e)
    assert os.listdir("/dev/shm") == ["shmq.q"]
    assert view.all()
    q.unlink()
""",
    )
    lines = output.strip().split("\n")
    assert len(lines) == 13
    for line in lines:
        needed, free = [n for n in numbers_in(line) if n > 1000][:2]
        assert needed > free, line  # or it would not make sense
        assert free <= 16 << 20
        assert "--shm-size" in line
        assert "/dev/shm" in line


def test_a_reservation_that_fails_half_way_says_what_was_free(
    in_small_shm: Callable[[str, str], str],
) -> None:
    """What the attempt itself had reserved is free again when the text is made."""
    output = in_small_shm(
        "48m",
        PRELUDE
        + """
import shmq.segment
real = shmq.segment.available_bytes
answers = [(1 << 60, "free")]
shmq.segment.available_bytes = lambda *a: answers.pop() if answers else real(*a)
try:
    shmq.Queue("q", arena_bytes=64 << 20)
except shmq.OutOfSpace as e:
    print(e)
assert os.listdir("/dev/shm") == []
""",
    )
    assert max(numbers_in(output)) > 80 << 20
    assert any(40 << 20 < free <= 48 << 20 for free in numbers_in(output)), output


def test_a_shm_without_a_size(in_small_shm: Callable[[str, str], str]) -> None:
    assert (
        in_small_shm("0", PRELUDE + "with shmq.Queue(arena_bytes=1 << 20) as q: q.put(b'1'); print(q.get())")
        == "b'1'\n"
    )


# ---- names ----

INVALID: list[Any] = [
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "/a",
    "../a",
    "a b",
    "a\n",
    "a\0b",
    "é",
    "\udcff",
    "a" * 201,
    "*",
    "a:b",
    "a\\b",
    "~",
    "%s",
    b"bytes",
    5,
    Path("a"),
]


@pytest.mark.parametrize("bad", INVALID, ids=ascii)
def test_invalid_names(bad: Any) -> None:
    before = {s.name for s in shmq.list_segments()}
    for use in (
        lambda: shmq.Queue(bad, arena_bytes=0),
        lambda: shmq.Queue.create(bad, arena_bytes=0),
        lambda: shmq.Queue.attach(bad),
        lambda: shmq.unlink(bad),
        lambda: shmq.inspect(bad),
        lambda: shmq.peek(bad),
    ):
        with pytest.raises(shmq.InvalidName, match="1 to 200"):
            use()
    assert not {n for n in {s.name for s in shmq.list_segments()} - before if n and n in str(bad)}


def test_none_is_a_name_for_new_queues_only() -> None:
    for use in (shmq.Queue.create, shmq.Queue.attach, shmq.unlink, shmq.inspect):
        with pytest.raises((shmq.InvalidName, TypeError)):
            use(None)  # type: ignore[arg-type]


def test_the_longest_and_oddest_names(name: str) -> None:
    for valid in (
        name + "x" * (200 - len(name)),
        name + "..",
        name + "-_.",
        "-" + name,
        "_" + name,
        name + ".shmq",
    ):
        with shmq.Queue(valid, arena_bytes=0, ring_bytes=4096) as q:
            assert file_of(valid).exists()
            assert valid in {s.name for s in shmq.list_segments()}
            q.unlink()


def test_a_taken_name(make: Make, name: str) -> None:
    q = make()
    q.put(b"1")
    with pytest.raises(shmq.NameTaken, match=name) as caught:
        shmq.Queue.create(name)
    assert caught.value.errno == 17
    assert q.get() == b"1"  # it was not touched


# ---- files that are no segments ----


def good_segment(name: str) -> bytes:
    with shmq.Queue.create(name, ring_bytes=4096, arena_bytes=1 << 16, max_peers=2) as q:
        content = file_of(name).read_bytes()
        q.unlink()
    return content


def corrupted(content: bytes, at: int, what: bytes) -> bytes:
    return content[:at] + what + content[at + len(what) :]


FILES: dict[str, tuple[Callable[[bytes], bytes], type[Exception], str]] = {
    "empty": (lambda good: b"", shmq.NotReady, "initialising"),
    "one byte": (lambda good: b"x", shmq.NotASegment, "foreign"),
    "text": (lambda good: b"hello " * 5000, shmq.NotASegment, "foreign"),
    "zeros": (lambda good: bytes(len(good)), shmq.NotReady, "initialising"),
    "short zeros": (lambda good: bytes(100), shmq.NotASegment, "foreign"),
    "garbage": (lambda good: os.urandom(1 << 16), shmq.NotASegment, "foreign"),
    "header only": (lambda good: good[:4096], shmq.NotASegment, "foreign"),
    "cut in the peers": (lambda good: good[:6000], shmq.NotASegment, "foreign"),
    "cut by a page": (lambda good: good[:-4096], shmq.NotASegment, "foreign"),
    "cut by a byte": (lambda good: good[:-1], shmq.NotASegment, "foreign"),
    "no magic": (lambda good: bytes(8) + good[8:], shmq.NotReady, "initialising"),
    "wrong magic": (lambda good: b"\0SHMQB99" + good[8:], shmq.NotASegment, "foreign"),
    "other build": (lambda good: corrupted(good, 8, b"\xff" * 8), shmq.AbiMismatch, "foreign"),
    "other kind": (lambda good: corrupted(good, 16, b"\x07\0\0\0"), shmq.AbiMismatch, "foreign"),
    "geometry": (lambda good: corrupted(good, 56, b"\xff" * 104), shmq.NotASegment, "foreign"),
    "total bytes": (lambda good: corrupted(good, 56, bytes(8)), shmq.NotASegment, "foreign"),
    "ring at": (lambda good: corrupted(good, 72, b"\xff" * 8), shmq.NotASegment, "foreign"),
    "peers": (lambda good: corrupted(good, 128, b"\0\0\0\0"), shmq.NotASegment, "foreign"),
}


def check_refused(name: str, error: type[Exception], state: str) -> str:
    """Every way to open ``name`` fails with ``error``; its text is returned.  It stays as it is."""
    path = file_of(name)
    before = path.lstat()
    text = ""
    for use in (
        lambda: shmq.Queue.attach(name, timeout=0),
        lambda: shmq.inspect(name),
        lambda: shmq.peek(name),
    ):
        with pytest.raises(error) as caught:
            use()
        assert isinstance(caught.value, shmq.ShmqError)
        text = str(caught.value)
        assert name in text
        assert "rm" in text or "remove" in text
    with pytest.raises(shmq.NameTaken):
        shmq.Queue.create(name, arena_bytes=0)
    (found,) = [s for s in shmq.list_segments() if s.name == name]
    assert found.state == state
    after = path.lstat()
    assert (after.st_ino, after.st_size, after.st_mode) == (before.st_ino, before.st_size, before.st_mode)
    return text


@pytest.mark.parametrize("which", FILES)
def test_files_that_are_no_segments(name: str, which: str) -> None:
    damage, error, state = FILES[which]
    path = file_of(name)
    path.touch(0o600)
    path.chmod(0o600)
    content = damage(good_segment(name + ".good"))
    path.write_bytes(content)
    try:
        check_refused(name, error, state)
        assert path.read_bytes() == content
        if error is not shmq.NotReady:  # which would wait for a creator
            with pytest.raises(error):
                shmq.Queue(name)
    finally:
        shmq.unlink(name)


def test_any_byte_of_the_header_may_be_wrong(name: str) -> None:
    good = good_segment(name)
    path = file_of(name)
    path.touch(0o600)
    outcomes = set()
    for at in range(160):
        for flip in (1, 0x80, 0xFF):
            path.write_bytes(corrupted(good, at, bytes([good[at] ^ flip])))
            try:
                with shmq.Queue.attach(name, timeout=0) as q:
                    q.put(b"1")
                    assert q.get() == b"1"
                    outcomes.add("fine")
            except shmq.ShmqError as e:
                outcomes.add(type(e).__name__)
    shmq.unlink(name)
    assert outcomes <= {"fine", "NotASegment", "AbiMismatch", "NotReady", "WrongKind"}, outcomes


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o666, 0o777, 0o601])
def test_a_segment_that_others_may_open(make: Make, name: str, mode: int) -> None:
    make().close()
    file_of(name).chmod(mode)
    text = check_refused(name, shmq.WrongOwner, "foreign")
    assert "0600" in text
    with pytest.raises(shmq.WrongOwner):
        shmq.Queue(name)


def test_a_segment_of_another_user(make: Make, name: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    make().close()
    os.chown(file_of(name), 12345, 12345)
    text = check_refused(name, shmq.WrongOwner, "other user")
    assert "yours" in text
    with pytest.raises(shmq.WrongOwner):
        shmq.Queue(name)


def test_another_users_view_of_our_segment(make: Make, name: str) -> None:
    """As a user without rights: refused by the kernel, with the same errors."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become someone else")
    make()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        pid = os.fork()
    if pid == 0:
        outcomes = []
        try:
            os.setgroups([])
            os.setgid(12345)
            os.setuid(12345)
            for use in (
                lambda: shmq.Queue(name),
                lambda: shmq.Queue.attach(name),
                lambda: shmq.Queue.create(name, arena_bytes=0),
                lambda: shmq.inspect(name),
                lambda: shmq.unlink(name),
                lambda: next(s.state for s in shmq.list_segments() if s.name == name),
            ):
                try:
                    outcomes.append(str(use()))
                except Exception as e:
                    outcomes.append(type(e).__name__)
        finally:
            os.write(writer, ",".join(outcomes).encode())
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    outcomes = os.read(reader, 4096).decode().split(",")
    os.close(reader)
    assert outcomes == ["WrongOwner", "WrongOwner", "NameTaken", "WrongOwner", "WrongOwner", "other user"]
    assert file_of(name).exists()


def test_a_symbolic_link(make: Make, name: str, tmp_path: Path) -> None:
    target = name + ".target"
    with shmq.Queue(target, arena_bytes=0) as q:
        for destination in (file_of(target), tmp_path / "nothing"):
            link = file_of(name)
            link.symlink_to(destination)
            try:
                for use in (
                    lambda: shmq.Queue(name),
                    lambda: shmq.Queue.attach(name),
                    lambda: shmq.inspect(name),
                ):
                    with pytest.raises(shmq.NotASegment, match="symbolic link"):
                        use()
                with pytest.raises(shmq.NameTaken):
                    shmq.Queue.create(name, arena_bytes=0)
                assert [s.state for s in shmq.list_segments() if s.name == name] == ["foreign"]
                assert not (tmp_path / "nothing").exists()
                shmq.unlink(name)  # the link, not what it points to
                assert not link.is_symlink()
            finally:
                link.unlink(missing_ok=True)
        assert file_of(target).exists()
        q.unlink()


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket"])
def test_things_that_are_no_files(name: str, kind: str) -> None:
    path = file_of(name)
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    try:
        for use in (lambda: shmq.Queue(name), lambda: shmq.Queue.attach(name), lambda: shmq.inspect(name)):
            with pytest.raises(shmq.NotASegment, match="remove"):
                use()
        with pytest.raises(shmq.NameTaken):
            shmq.Queue.create(name, arena_bytes=0)
        assert [s.state for s in shmq.list_segments() if s.name == name] == ["foreign"]
    finally:
        path.rmdir() if kind == "directory" else path.unlink()


# ---- half-made segments ----


@contextlib.contextmanager
def unfinished(name: str) -> Iterator[Callable[[], None]]:
    """A segment whose creator has not stored the magic; the context's value finishes it."""
    with (
        shmq.Queue.create(name, ring_bytes=4096, arena_bytes=1 << 16) as q,
        file_of(name).open("r+b") as file,
    ):
        with mmap.mmap(file.fileno(), 4096) as header:
            magic = header[:8]
            header[:8] = bytes(8)

            def finish() -> None:
                header[:8] = magic

            yield finish
        q.unlink()


@pytest.mark.parametrize("opener", ["attach", "open"])
def test_attaching_while_the_creator_is_at_it(name: str, opener: str) -> None:
    with unfinished(name) as finish:
        with pytest.raises(shmq.NotReady):
            shmq.Queue.attach(name, timeout=0)
        with pytest.raises(shmq.NotReady):
            shmq.inspect(name)
        assert [s.state for s in shmq.list_segments() if s.name == name] == ["initialising"]
        timer = threading.Timer(0.1, finish)
        timer.start()
        opened = shmq.Queue.attach(name, timeout=PATIENCE) if opener == "attach" else shmq.Queue(name)
        with opened as q:
            q.put(b"1")
            assert q.get() == b"1"
        timer.join()


@pytest.mark.parametrize("opener", ["attach", "open"])
def test_a_creator_that_gives_up(name: str, opener: str) -> None:
    """It takes the name away again: who waited for it learns so, or makes the queue itself."""
    with unfinished(name):
        timer = threading.Timer(0.1, shmq.unlink, (name,))
        timer.start()
        if opener == "attach":
            with pytest.raises(shmq.SegmentNotFound):
                shmq.Queue.attach(name, timeout=PATIENCE)
        else:
            with shmq.Queue(name, ring_bytes=4096, arena_bytes=0) as q:
                assert q.stats().ring_bytes == 4096
                q.unlink()
        timer.join()


def test_a_creator_that_died_half_way(name: str) -> None:
    with unfinished(name):
        start = time.monotonic()
        with pytest.raises(shmq.NotReady, match=r"creator.*remove") as caught:
            shmq.Queue.attach(name, timeout=0.2)
        assert 0.2 <= time.monotonic() - start < 30
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(shmq.NameTaken):
            shmq.Queue.create(name)


def test_a_creator_that_was_stopped_and_goes_on(
    name: str, script: Callable[..., Any], poll: Callable[..., Any]
) -> None:
    """SIGSTOP in the midst of creation; the attacher waits, and gets the queue when the creator goes on."""
    creator = script(
        PRELUDE
        + """
import shmq.segment
real = shmq.segment.available_bytes
def stop(*a):
    os.kill(os.getpid(), signal.SIGSTOP)   # the name exists, nothing else does
    return real(*a)
shmq.segment.available_bytes = stop
q = shmq.Queue.create(sys.argv[1], **SMALL)
print("made", flush=True)
sys.stdin.readline()
q.put(b"from the creator")
q.close()
""",
        name,
    )
    pid = creator.process.pid
    poll(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert file_of(name).exists()
    with pytest.raises(shmq.NotReady):
        shmq.Queue.attach(name, timeout=0.05)
    timer = threading.Timer(0.1, os.kill, (pid, signal.SIGCONT))
    timer.start()
    with shmq.Queue.attach(name, timeout=PATIENCE) as q:
        assert creator.line() == "made"
        creator.say()
        assert q.get(timeout=PATIENCE) == b"from the creator"
        q.unlink()
    timer.join()
    assert creator.finish()[0] == 0


def test_a_creator_that_is_killed_leaves_what_can_be_removed(
    name: str, script: Callable[..., Any], poll: Callable[..., Any]
) -> None:
    creator = script(
        PRELUDE
        + """
import shmq.segment
shmq.segment.available_bytes = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
shmq.Queue.create(sys.argv[1], **SMALL)
""",
        name,
    )
    assert creator.finish()[0] == -signal.SIGKILL
    check_refused(name, shmq.NotReady, "initialising")
    shmq.unlink(name)
    with shmq.Queue(name, ring_bytes=4096, arena_bytes=0) as q:
        q.unlink()


def test_a_creator_that_is_interrupted_leaves_no_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (KeyboardInterrupt, RuntimeError):

        def interrupted(*_: Any, error: type[BaseException] = error) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("shmq.segment.available_bytes", interrupted)
            with pytest.raises(error):
                shmq.Queue(name)
        assert not file_of(name).exists()


def test_a_name_that_was_removed_during_creation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the one that creation failed with, and a successor's name is not removed."""

    def interfere(*_: Any) -> Any:
        file_of(name).unlink()
        if successor:
            file_of(name).write_bytes(b"another's")
        raise RuntimeError("the first error")

    for successor in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr("shmq.segment.available_bytes", interfere)
            with pytest.raises(RuntimeError, match="the first error"):
                shmq.Queue.create(name)
        assert file_of(name).exists() is successor
    file_of(name).unlink()


# ---- roles, closing ----


@ONE_OF_EACH
def test_a_second_producer_or_consumer(make: Make) -> None:
    a, b = make(), make()
    a.put(b"1")
    assert a.get() == b"1"
    for use in (
        lambda: b.put(b"2"),
        lambda: b.put([2], timeout=5),
        lambda: b.put_nowait(np.zeros(3)),
        lambda: b.put_many([b"2"]),
        lambda: b.loan(3, "u1"),
        lambda: b.get(),
        lambda: b.get(timeout=5),
        lambda: b.get_nowait(),
        lambda: b.get_many(3),
    ):
        with pytest.raises(shmq.RoleTaken, match=rf"peer 0 \(pid {os.getpid()}.*close"):
            use()
    assert a.empty()


def mapped(name: str) -> int:
    """Mappings of the segment in this process, its lock's pin not counted."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(f"shmq.{name}" in line and "---s" not in line for line in lines)


def pinned(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(f"shmq.{name}") - mapped(name)


def test_closing_with_live_views(make: Make, name: str) -> None:
    q = make()
    assert mapped(name) >= 1
    assert pinned(name) == 1
    q.put(np.arange(5000))
    q.put({"a": np.arange(3000)})
    view, inside = q.get(), q.get()["a"]
    loan = q.loan(100, "u1")
    q.close()
    q.close()
    part = view[10:20]
    del view
    assert part.sum() == 145  # valid
    assert inside[-1] == 2999
    inside[0] = 7  # and writable
    assert mapped(name) >= 1
    assert pinned(name) == 1  # alive: nobody reaps what is in use
    del part
    assert mapped(name) >= 1
    del inside
    assert mapped(name) >= 1
    del loan
    assert mapped(name) == 0
    assert pinned(name) == 0
    assert not any(f"shmq.{name}" in os.readlink(f"/proc/self/fd/{fd}") for fd in open_descriptors())


def open_descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.readlink(f"/proc/self/fd/{fd}")
            found.append(fd)
    return found


def test_closing_leaves_nothing_behind(name: str) -> None:
    def footprint() -> tuple[int, int, int]:
        maps = len(Path("/proc/self/maps").read_text().splitlines())
        return len(open_descriptors()), maps, len(multiprocessing.util._finalizer_registry)

    def cycle() -> None:
        with shmq.Queue(name, ring_bytes=4096, arena_bytes=1 << 16) as q, shmq.Queue(name) as other:
            q.put(np.zeros(1000))
            other.get()
            q.unlink()
        shmq.Queue(ring_bytes=4096, arena_bytes=0).close()  # anonymous

    cycle()
    before = footprint()
    for _ in range(50):
        cycle()
    descriptors, maps, finalizers = footprint()
    assert finalizers == before[2]
    assert descriptors == before[0]
    assert maps <= before[1] + 5  # malloc may have grown


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
