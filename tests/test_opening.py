"""What is in the way of a segment: names, too little memory, files that are none or are not finished."""

import contextlib
import mmap
import os
import resource
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PRELUDE, file_of

import shmq

Make = Callable[..., shmq.Queue]
PATIENCE = 60


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
