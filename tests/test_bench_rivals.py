"""Each rival that is installed carries what it is given, whole and in order, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench import harness, rivals, work
from bench.endpoint import Spec, Unsuited
from bench.model import Report
from bench.pair import Pair
from bench.rivals import (
    iceoryx,
    mp_pipe,
    mp_queue_rpc,
    mpi,
    posix_mq,
    pyzmq_aio,
    pyzmq_pub,
    pyzmq_rpc,
    zenoh_shm,
)

ROOT = Path(__file__).resolve().parent.parent
SHM = Path("/dev/shm")
NOT_PINNED = -1
IN_FLIGHT = 8
TIMEOUT_S = 60.0
MODULES = [
    importlib.import_module(f"{rivals.__name__}.{m.name}") for m in pkgutil.iter_modules(rivals.__path__)
]
ONE_TO_MANY = (iceoryx, zenoh_shm, pyzmq_pub)

pytestmark = pytest.mark.timeout(240)  # torch alone takes seconds to import, in each process


def by_name(transport: ModuleType) -> str:
    return str(transport.NAME)


def shared_names() -> set[str]:
    """What a rival that we started may have put into /dev/shm; beside us others may run."""
    ours = re.compile(rf"bench-{os.getpid()}-|torch_|mpich|pym-|psm_|.*\.zenoh$")
    return {path.name for path in SHM.iterdir() if ours.match(path.name)}


def parents() -> dict[int, int]:
    """Of each process that runs: its parent."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found


def family(heads: set[int]) -> set[int]:
    """These and all that descend from them."""
    parent, found = parents(), set(heads)
    while more := {child for child, of in parent.items() if of in found} - found:
        found |= more
    return found


Open = Callable[..., Any]


@pytest.fixture
def open_pair(poll: Callable[..., Any]) -> Open:
    """Opens a pair or a crowd of a transport that is installed; afterwards nothing of it may be left."""

    @contextmanager
    def open_pair(transport: ModuleType, max_bytes: int, both_ways: bool, readers: int = 1) -> Iterator[Pair]:
        if (reason := transport.missing()) is not None:
            pytest.skip(f"{transport.NAME}: {reason}")
        before = shared_names()
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            spec = Spec(max_bytes, IN_FLIGHT, both_ways, directory, readers)
            try:
                pair = Pair(transport, spec, (NOT_PINNED,) * (1 + readers))
            except Unsuited as unsuited:
                pytest.skip(f"{transport.NAME}: {unsuited}")
            with pair:
                workers = family({process.pid for process in pair._processes})
                assert len(workers) >= 1 + readers
                yield pair
        left = shared_names() - before
        poll(lambda: not left & shared_names())
        poll(lambda: not workers & parents().keys())

    return open_pair


def carry(pair: Pair, form: str, size: int, count: int) -> None:
    if work.has(pair, form):
        work.verify(pair, form, size, count, TIMEOUT_S)


def carry_back(pair: Pair, size: int, count: int) -> None:
    job = {"form": "one", "count": count, "size": size}
    good, _ = pair.run(("check_receive", job), ("check_send", job), TIMEOUT_S)
    assert good == count


@pytest.mark.parametrize("transport", rivals.ALL, ids=by_name)
def test_small_messages_arrive_both_ways(transport: ModuleType, open_pair: Open) -> None:
    with open_pair(transport, 4096, both_ways=True) as pair:
        for size in (64, 4096):
            for form in ("one", "many", "array"):
                carry(pair, form, size, 640)
            carry_back(pair, size, 100)
        carry(pair, "loan", 4096, 100)


@pytest.mark.parametrize("transport", rivals.ALL, ids=by_name)
def test_large_messages_arrive(transport: ModuleType, open_pair: Open) -> None:
    size = 1 << 20
    with open_pair(transport, size, both_ways=False) as pair:
        assert work.has(pair, "one")
        assert work.has(pair, "array")
        for form in ("one", "array", "loan"):
            carry(pair, form, size, 3 * IN_FLIGHT)
        carry(pair, "one", 64, 100)


@pytest.mark.parametrize("transport", ONE_TO_MANY, ids=by_name)
def test_each_of_many_gets_everything(transport: ModuleType, open_pair: Open) -> None:
    """More than is held on the way, so the publisher has to wait for the slowest."""
    with open_pair(transport, 4096, both_ways=False, readers=2) as pair:
        carry(pair, "one", 64, 2000)
        carry(pair, "array", 4096, 2000)


def test_a_segment_that_is_in_use_is_not_removed(open_pair: Open) -> None:
    """What zenoh_shm tidies away is dangling: here the segments belong to a pair that runs."""
    with open_pair(zenoh_shm, 4096, both_ways=False) as pair:
        carry(pair, "array", 4096, IN_FLIGHT)
        maps = [Path(f"/proc/{process.pid}/maps").read_text() for process in pair._processes]
        used = {Path(name) for text in maps for name in re.findall(rf"{SHM}/\d+\.zenoh", text)}
        assert used
        others = frozenset(SHM.glob("*.zenoh")) - used
        zenoh_shm.unwire(("", others))
        assert all(segment.exists() for segment in used)


def test_no_message_queue_is_left(monkeypatch: pytest.MonkeyPatch, open_pair: Open) -> None:
    posix_ipc = pytest.importorskip("posix_ipc")
    names: list[str] = []
    wire = posix_mq.wire
    monkeypatch.setattr(posix_mq, "wire", lambda spec: names.extend(made := wire(spec)) or made)
    with open_pair(posix_mq, 64, both_ways=True):
        for name in names:
            posix_ipc.MessageQueue(name).close()
    assert len(names) == 2
    for name in names:
        with pytest.raises(posix_ipc.ExistentialError):
            posix_ipc.MessageQueue(name)


# ---- who cannot take part ----


def packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["bench"], *extras["torch"]]
    return {re.split(r"[^\w.-]", one, maxsplit=1)[0] for one in wanted}


WITH_PYTHON = {"mp_queue", "mp_queue_rpc", "mp_simple", "mp_pipe", "unix_socket"}


@pytest.mark.parametrize("transport", MODULES, ids=by_name)
def test_a_rival_that_is_not_installed_says_what_to_install(
    transport: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = transport.missing()
    if reason is None:
        assert transport.__name__.split(".")[-1] in WITH_PYTHON
    else:
        package = re.fullmatch(r"not installed \(pip install ([\w-]+)\)", reason)
        assert package, reason
        assert package[1] in packages()


def test_mpi_asks_for_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(mpi, "_launcher", lambda: None)
    assert "apt-get install mpich" in mpi.missing()


def test_each_rival_has_a_name_of_its_own_and_the_whole_interface() -> None:
    elsewhere = {
        m.__name__ for m in (mp_queue_rpc, pyzmq_aio, pyzmq_pub, pyzmq_rpc)
    }  # in suites of their own
    assert {module.__name__ for module in rivals.ALL} == {m.__name__ for m in MODULES} - elsewhere
    assert len({module.NAME for module in MODULES}) == len(MODULES)
    for module in MODULES:
        assert module.LAUNCH in {"spawn", "forkserver", "mpirun"}
        assert module.POLLS in {True, False}
        for name in ("missing", "wire", "unwire", "open_side"):
            assert callable(getattr(module, name))


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As most systems have them, whatever this one's administrator says."""
    for name, value in {"msgsize_max": 8192, "msg_max": 10}.items():
        (tmp_path / name).write_text(f"{value}\n")
    monkeypatch.setattr(posix_mq, "_LIMITS", tmp_path)


@pytest.mark.usefixtures("small_limits")
def test_rows_that_a_rival_cannot_carry_are_without_it_and_say_why(tmp_path: Path) -> None:
    settings = harness.Settings(1, 0.002, 1 << 20, frozenset(), (NOT_PINNED, NOT_PINNED))
    report = Report({}, {})
    run = harness.Harness(settings, report, tmp_path, lambda text: None)
    with run.pairs(8193, in_flight=1, among=(posix_mq, mp_pipe)) as pairs:
        assert [pair.name for pair in pairs] == [mp_pipe.NAME]
    assert report.absent.keys() == {posix_mq.NAME}
    assert "not in every row: at most 8192 B" in report.absent[posix_mq.NAME]
