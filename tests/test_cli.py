"""The `shmq` command as people and scripts meet it: a process of its own, on real segments."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import COMMAND, attempt, run, run_on_terminal

import shmq

BOX_DRAWING = re.compile("[\u2500-\u257f]")
RING, ARENA = 1 << 16, 4 << 20


def run_as_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As a shell does, with the output in a pipe."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def refused(*arguments: str) -> str:
    """The one line on stderr with which the command refuses."""
    done = run(*arguments, expect=2)
    assert done.stdout == ""
    assert done.stderr.startswith("shmq: ")
    assert done.stderr.count("\n") == 1
    assert "[Errno" not in done.stderr
    return done.stderr


def row(text: str, first: str) -> list[str]:
    """Words of the line that starts with `first`."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [first])


def facts(text: str) -> dict[str, str]:
    """The lines `name  value` of `shmq stat`, into a pipe."""
    pairs = (re.split(r"  +", line, maxsplit=1) for line in text.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


@pytest.fixture
def name(name: str) -> Iterator[str]:
    """A name of our own; what stands under it is removed afterwards."""
    yield name
    Path(f"/dev/shm/shmq.{name}").unlink(missing_ok=True)


@pytest.fixture
def queue(name: str) -> Iterator[shmq.Queue]:
    with shmq.Queue.create(name, ring_bytes=RING, arena_bytes=ARENA) as opened:
        yield opened


@pytest.fixture
def dead_producer(name: str) -> int:
    """Pid of a process that made the queue, put two messages and was killed."""
    code = (
        "import sys, shmq\n"
        "q = shmq.Queue.create(sys.argv[1], arena_bytes=4 << 20)\n"
        "q.put(b'one'); q.put([2]); print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    return child.pid


# -- ls -------------------------------------------------------------------------------------------


def test_ls_in_a_pipe_gives_whole_names_and_numbers(queue: shmq.Queue) -> None:
    queue.put(b"x")
    text = run("ls").stdout
    assert not BOX_DRAWING.search(text)
    heads = row(text, "name")
    values = dict(zip(heads, row(text, queue.name), strict=False))
    info = os.stat(f"/dev/shm/shmq.{queue.name}")
    assert values["state"] == "ready"
    assert values["size"] == str(info.st_size)
    assert values["uid"] == str(os.getuid())
    assert values["mode"] == "0600"
    assert re.fullmatch(r"\d+s", values["age"])
    assert values["qsize"] == "1"
    # The widths depend on what else is listed.
    assert re.search(rf"\b{os.getpid()} alive +-", next(x for x in text.splitlines() if queue.name in x))


def test_ls_json_has_the_whole_snapshot(queue: shmq.Queue) -> None:
    queue.put(b"x")
    listed: list[dict[str, Any]] = json.loads(run("ls", "--json").stdout)
    mine = next(item for item in listed if item["info"]["name"] == queue.name)
    assert mine["info"]["state"] == "ready"
    assert mine["problem"] == ""
    assert mine["snapshot"]["stats"]["messages_put"] == 1
    assert mine["snapshot"]["peers"][0]["pid"] == os.getpid()


def test_ls_says_that_a_producer_is_dead(name: str, dead_producer: int) -> None:
    assert f"{dead_producer} dead" in run("ls").stdout


@pytest.mark.parametrize("content", [b"", b"hi\n", b"\0" * 65536, b"\0SHMQB01" * 4096])
def test_ls_names_foreign_files_as_such(name: str, content: bytes) -> None:
    Path(f"/dev/shm/shmq.{name}").write_bytes(content)
    state, size = row(run("ls").stdout, name)[1:3]
    assert state != "ready"
    assert size == str(len(content))
    mine = [i for i in json.loads(run("ls", "--json").stdout) if i["info"]["name"] == name]
    assert mine[0]["snapshot"] is None
    assert mine[0]["problem"]
    assert name in run_on_terminal(120, "ls")


def test_ls_prints_hostile_file_names_harmlessly(name: str) -> None:
    path = os.fsencode(f"/dev/shm/shmq.{name}") + b"\n\x1b[31m[bold]\xff"
    Path(os.fsdecode(path)).write_bytes(b"x")
    try:
        plain, drawn = run("ls").stdout, run_on_terminal(120, "ls")
        listed = json.loads(run("ls", "--json").stdout)
    finally:
        os.unlink(path)
    for text in (plain, "".join(drawn.split())):
        assert rf"{name}\n\x1b[31m[bold]\udcff" in text
    assert any(item["info"]["name"].startswith(name) for item in listed)


# -- stat -----------------------------------------------------------------------------------------


def test_stat_counts(queue: shmq.Queue) -> None:
    for message in (b"a", b"b" * 10_000, [1]):
        queue.put(message)
    queue.get()
    text = run("stat", queue.name).stdout
    said = facts(text)
    assert (said["put"], said["got"], said["queued"]) == ("3", "1", "2")
    assert (said["name"], said["kind"], said["state"]) == (queue.name, "mpmc", "open")
    stats = queue.stats()
    assert row(text, "ring")[1:3] == [str(stats.ring_used_bytes), str(stats.ring_bytes)]
    used = stats.arena_bytes - stats.arena_free_bytes
    assert used > 0
    assert row(text, "arena")[-3:-1] == [str(used), str(stats.arena_bytes)]
    for state in stats.pages:
        assert state in text
    assert f"{os.getpid()} alive" in text
    assert "consumer,producer" in text
    assert not BOX_DRAWING.search(text)


def test_stat_json_is_the_snapshot(queue: shmq.Queue) -> None:
    queue.put(b"x")
    snapshot = json.loads(run("stat", queue.name, "--json").stdout)
    assert snapshot["stats"]["qsize"] == 1
    assert snapshot["stats"]["ring_bytes"] == RING
    assert snapshot["creator_pid"] == os.getpid()
    assert snapshot["peers"][0]["roles"] == ["producer"]


def test_stat_takes_no_part_in_the_queue(queue: shmq.Queue) -> None:
    queue.put(b"x")
    peers = len(queue.peers())
    run("stat", queue.name)
    assert len(queue.peers()) == peers
    assert queue.get() == b"x"


@pytest.mark.parametrize("as_json", [False, True])
def test_stat_watch_follows_until_interrupted(queue: shmq.Queue, as_json: bool) -> None:
    options = ["--watch", "0.1"] + ["--json"] * as_json
    command = [*COMMAND, "stat", queue.name, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        awaited = '"messages_put": 0' if as_json else "put               0"
        next(line for line in child.stdout if awaited in line)
        queue.put(b"x")
        awaited = '"messages_put": 1' if as_json else "put               1 ("
        assert any(awaited in line for line in child.stdout)
        child.send_signal(signal.SIGINT)
        child.stdout.read()
        assert child.stderr.read() == ""
    assert child.returncode == 0


def test_stat_watch_ends_with_its_queue(queue: shmq.Queue) -> None:
    command = [*COMMAND, "stat", queue.name, "--watch", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        queue.unlink()
        child.stdout.read()
        said = child.stderr.read()
    assert child.returncode == 2
    assert said.startswith("shmq: ")
    assert said.count("\n") == 1


# -- peek -----------------------------------------------------------------------------------------


def test_peek_shows_messages_and_leaves_them(queue: shmq.Queue) -> None:
    sent = [b"raw", {"key": "[red]value"}, b"z" * 20_000]
    for message in sent:
        queue.put(message)
    text = run("peek", queue.name).stdout
    lines = text.splitlines()
    assert [line.split()[:1] for line in lines[:1]] == [["position"]]
    assert len(lines) == 4
    positions = [int(line.split()[0]) for line in lines[1:]]
    assert positions == sorted(set(positions))
    assert lines[1].split()[1] == "3"
    assert "inline" in lines[1]
    assert "[red]value" in lines[2]
    assert lines[3].split()[1] == "20000"
    assert "block" in lines[3]
    assert len(run("peek", queue.name, "-n", "1").stdout.splitlines()) == 2
    assert len(json.loads(run("peek", queue.name, "-n", "2", "--json").stdout)) == 2
    assert "[red]value" in run_on_terminal(80, "peek", queue.name)
    assert [queue.get() for _ in sent] == sent


def test_peek_shows_the_terminal_no_control_characters(queue: shmq.Queue) -> None:
    queue.put("\x1b[31mred\n\x07")
    assert "\x1b" not in run("peek", queue.name).stdout
    assert "\x07" not in run_on_terminal(80, "peek", queue.name)


def test_peek_writes_to_a_narrow_locale(queue: shmq.Queue) -> None:
    queue.put("grün")
    done = subprocess.run(
        [*COMMAND, "peek", queue.name],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0
    assert rb"gr\xfcn" in done.stdout


def test_peek_of_an_empty_queue(queue: shmq.Queue) -> None:
    assert run("peek", queue.name).stdout == f"{queue.name} is empty\n"
    assert json.loads(run("peek", queue.name, "--json").stdout) == []


# -- rm -------------------------------------------------------------------------------------------


def test_rm_refuses_a_queue_in_use_unless_forced(queue: shmq.Queue) -> None:
    said = refused("rm", queue.name)
    assert queue.name in said
    assert str(os.getpid()) in said
    assert "--force" in said
    queue.put(b"still here")
    assert run("rm", "--force", queue.name).stdout == f"removed {queue.name}\n"
    assert queue.get() == b"still here"
    assert "rm" not in refused("stat", queue.name)


def test_rm_removes_what_the_dead_left(name: str, dead_producer: int) -> None:
    assert run("rm", name).stdout == f"removed {name}\n"
    assert not Path(f"/dev/shm/shmq.{name}").exists()


def test_rm_goes_on_after_a_name_that_it_cannot_remove(name: str, dead_producer: int) -> None:
    done = run("rm", f"{name}-absent", name, expect=2)
    assert done.stdout == f"removed {name}\n"
    assert f"{name}-absent" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"hi\n", b"\0" * 65536])
def test_rm_refuses_foreign_files_unless_forced(name: str, content: bytes) -> None:
    path = Path(f"/dev/shm/shmq.{name}")
    path.write_bytes(content)
    assert "--force" in refused("rm", name)
    assert path.exists()
    run("rm", "--force", name)
    assert not path.exists()


DEAD_AND_ALIVE = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import shmq
from command import attempt
def run(*arguments):
    done = attempt(*arguments)
    return done.returncode, done.stdout + done.stderr
"""
DEAD_AND_ALIVE += """
def die_in(name, **how):
    pid = os.fork()
    if pid == 0:
        with shmq.Queue(name, arena_bytes=1 << 20, **how) as q:
            q.put(b"one"); held = q.loan(1000, "u1")
            os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    return pid
"""


def test_rm_stale_removes_what_nobody_uses(in_small_shm: Callable[[str, str], str]) -> None:
    in_small_shm(
        "64m",
        DEAD_AND_ALIVE
        + """
assert run("rm", "--stale") == (0, "no stale queues\\n")
for name in "abc": die_in(name)
with shmq.Queue("used", arena_bytes=1 << 20), shmq.Queue("b") as b:
    open("/dev/shm/shmq.foreign", "w").write("precious")
    assert run("rm", "--stale") == (0, "removed a\\nremoved c\\n"), run("ls")
    assert sorted(os.listdir("/dev/shm")) == ["shmq.b", "shmq.foreign", "shmq.used"]
for arguments in (["rm"], ["rm", "--stale", "b"]):
    status, text = run(*arguments)
    assert status == 2 and "--stale" in text, text
""",
    )


def test_rm_stale_removes_doorbells_that_nobody_hears(in_small_shm: Callable[[str, str], str]) -> None:
    in_small_shm(
        "64m",
        DEAD_AND_ALIVE
        + """
import asyncio
from shmq import aio
def bells(): return os.listdir(f"/dev/shm/shmq-doorbells-{os.geteuid()}")
async def wait_in(name, then):
    async with aio.Queue(name, arena_bytes=1 << 20) as q:
        waiting = asyncio.ensure_future(q.get())
        while not any(p.parks for p in q.peers()): await asyncio.sleep(0)
        then()
        waiting.cancel()
pid = os.fork()
if pid == 0: asyncio.run(wait_in("a", lambda: os.kill(os.getpid(), 9)))
os.waitpid(pid, 0)
assert len(bells()) == 1
assert "1 of processes that were killed" in run("doctor")[1]
def beside_another():
    assert len(bells()) == 1, bells()  # ours: whoever makes one removes those of the dead
    os.mkfifo(f"/dev/shm/shmq-doorbells-{os.geteuid()}/{7:016x}")
    status, text = run("rm", "--stale")
    assert (status, text) == (0, "removed a\\nremoved 1 doorbell of dead event loops\\n"), text
    assert len(bells()) == 1
asyncio.run(wait_in("b", beside_another))
assert run("rm", "--stale") == (0, "removed b\\n"), run("ls")
assert os.listdir("/dev/shm") == []
""",
    )


def test_doctor_repairs(in_small_shm: Callable[[str, str], str]) -> None:
    in_small_shm(
        "64m",
        DEAD_AND_ALIVE
        + """
pids = {name: die_in(name, kind=kind) for name, kind in (("a", "spsc"), ("b", "mpmc"))}
shmq.Queue("c", arena_bytes=1 << 20).close()
loaned = lambda name: shmq.inspect(name).stats.pages["loaned"]
assert (loaned("a"), loaned("b")) == (1, 1)
status, text = run("doctor", "--repair")
assert status == 0 and len(text.splitlines()) == 2, text
for line, (name, pid) in zip(text.splitlines(), pids.items()):
    assert line.startswith(name + ": repaired") and f"pid {pid} (" in line, line
    assert loaned(name) == 0 and shmq.inspect(name).peers == []
    with shmq.Queue(name) as q: assert q.get(timeout=5) == b"one" and q.empty()
assert run("doctor", "--repair") == (0, "")
""",
    )


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", ".hidden", "../etc", "a/b", "a" * 201, "two words", "\x1b[31m"])
def test_an_invalid_name_is_refused_in_one_line(bad: str) -> None:
    assert "\x1b" not in refused("stat", bad)


@pytest.mark.parametrize("command", ["stat", "peek", "rm"])
def test_a_wrong_name_is_refused_in_one_line_by_each_command(command: str, name: str) -> None:
    refused(command, "a/b")
    assert name in refused(command, name)


@pytest.mark.parametrize("content", [b"", b"hi\n", b"\0" * 65536, b"\0SHMQB01" * 4096])
def test_a_foreign_segment_is_refused_in_one_line(name: str, content: bytes) -> None:
    Path(f"/dev/shm/shmq.{name}").write_bytes(content)
    assert name in refused("stat", name)
    assert name in refused("peek", name)


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["ls", "--bogus"], ["peek"], ["peek", "x", "-n", "0"], ["stat", "x", "--watch", "0"]],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert "Usage:" in run(*arguments, expect=2).stderr


def test_a_reader_that_leaves_early_is_no_error(queue: shmq.Queue) -> None:
    with subprocess.Popen(
        [*COMMAND, "stat", queue.name, "--watch", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 1


# -- the rest -------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_everything_fits_and_nothing_is_cut(queue: shmq.Queue, columns: int) -> None:
    queue.put(b"x" * 20_000)
    for arguments in (["ls"], ["stat", queue.name], ["peek", queue.name], ["doctor"]):
        text = run_on_terminal(columns, *arguments)
        assert "\u2026" not in text  # no ellipsis
    shown = run_on_terminal(columns, "stat", queue.name)
    assert queue.name in shown
    assert str(os.getpid()) in shown
    assert BOX_DRAWING.search(shown)  # the bars
    assert len(shown.splitlines()) <= 24


def test_doctor() -> None:
    done = run_as_program("doctor", "--json")
    findings = json.loads(done.stdout)
    failed = any(finding["status"] == "fail" for finding in findings)
    assert done.returncode == failed
    text = run("doctor", expect=int(failed)).stdout
    assert not BOX_DRAWING.search(text)
    assert [line.split()[0] for line in text.splitlines()[1:]] == [f["status"] for f in findings]


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["stat", "a/b"], ["ls", "--bogus"]])
def test_as_a_program_it_says_the_same(arguments: list[str]) -> None:
    """The other tests fork."""
    program, fork = run_as_program(*arguments), attempt(*arguments)
    assert (program.returncode, program.stdout, program.stderr) == (fork.returncode, fork.stdout, fork.stderr)


def test_on_a_terminal_as_a_program_it_draws_the_same(queue: shmq.Queue) -> None:
    shown = [run_on_terminal(80, "stat", queue.name, as_program=how) for how in (True, False)]
    assert BOX_DRAWING.search(shown[0])
    ages = re.compile(r"\b\d+ s\b")
    assert ages.sub("", shown[0]) == ages.sub("", shown[1])


def test_version_and_include() -> None:
    assert run("--version").stdout == f"shmq {shmq.__version__}\n"
    folder = run("include").stdout.rstrip("\n")
    assert folder == shmq.get_include()
    assert (Path(folder) / "shmq.h").is_file()


def test_demo_is_the_example() -> None:
    said = run_as_program("demo", "--help").stdout
    assert said.startswith("usage: shmq demo ")
    assert "--batches" in said
    assert "--bogus" in run("demo", "--bogus", expect=2).stderr
