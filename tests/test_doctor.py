"""The doctor's checks: against made-up /proc and cgroup trees, and against this kernel."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmq
from shmq import doctor

GIB = 1 << 30
NO_SUCH_SYSCALL = 9999
V1_UNLIMITED = 9223372036854771712


@pytest.fixture
def name(name: str) -> Iterator[str]:
    """A name of our own; what stands under it is removed afterwards."""
    yield name
    Path(f"/dev/shm/shmq.{name}").unlink(missing_ok=True)


def write_tree(root: Path, files: dict[str, object]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n")
    return root


def proc_with(tmp_path: Path, cgroup: str, mounts: list[str]) -> Path:
    """A /proc/self whose mount points, written as {root}, lie below tmp_path."""
    lines = [f"{30 + i} 23 0:{i} {m}" for i, m in enumerate(mounts)]
    text = "\n".join(lines).replace("{root}", str(tmp_path))
    return write_tree(tmp_path / "proc", {"cgroup": cgroup, "mountinfo": text})


V2 = "/ {root}/cg rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"


# -- memory ---------------------------------------------------------------------------------------


def test_memory_limit_is_the_tightest_on_the_way_up(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, "0::/outer/inner", [V2])
    write_tree(
        tmp_path / "cg",
        {
            "outer/memory.max": 2 * GIB,
            "outer/memory.current": GIB + (512 << 20),
            "outer/memory.stat": f"anon 5\ninactive_file {256 << 20}\nactive_file 1",
            "outer/inner/memory.max": "max",
            "outer/inner/memory.current": 1000,
        },
    )
    status, value, advice = doctor.memory_limit(proc)
    # 2 GiB - (1.5 GiB - 256 MiB of page cache that can be dropped)
    assert (status, advice) == ("ok", "")
    assert value == f"768 MiB left of 2 GiB ({tmp_path}/cg/outer)"


def test_memory_limit_counts_headroom_not_the_limit(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, "0::/a/b", [V2])
    write_tree(
        tmp_path / "cg",
        {
            "a/memory.max": 8 * GIB,
            "a/memory.current": 8 * GIB - 1,
            "a/b/memory.max": GIB,
            "a/b/memory.current": 0,
        },
    )
    status, value, advice = doctor.memory_limit(proc)
    assert status == "fail"
    assert value.startswith("1 B left of 8 GiB")
    assert "arena_bytes" in advice


def test_memory_high_limits_too(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, "0::/a", [V2])
    files = {"a/memory.max": "max", "a/memory.high": 100 << 20, "a/memory.current": 0}
    write_tree(tmp_path / "cg", files)
    status, value, advice = doctor.memory_limit(proc)
    assert (status, value[:23]) == ("warn", "100 MiB left of 100 MiB")
    assert "(44 MiB) that fit: 2;" in advice


def test_memory_limit_of_a_hybrid_machine_is_in_v1(tmp_path: Path) -> None:
    mounts = [
        "/ {root}/cpu rw - cgroup cgroup rw,cpu,cpuacct",
        "/ {root}/memory rw - cgroup cgroup rw,memory",
        "/ {root}/unified rw - cgroup2 cgroup2 rw",
    ]
    proc = proc_with(tmp_path, "4:memory:/svc/job\n1:cpu,cpuacct:/\n0::/", mounts)
    files = {
        "memory.limit_in_bytes": V1_UNLIMITED,
        "memory.usage_in_bytes": 7,
        "svc/memory.limit_in_bytes": 3 * GIB,
        "svc/memory.usage_in_bytes": GIB,
        "svc/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB // 2}",
        "svc/job/memory.limit_in_bytes": V1_UNLIMITED,
    }
    write_tree(tmp_path / "memory", files)
    status, value, _ = doctor.memory_limit(proc)
    assert (status, value) == ("ok", f"2.5 GiB left of 3 GiB ({tmp_path}/memory/svc)")


@pytest.mark.parametrize(
    ("cgroup", "mount"),
    [
        ("0::/docker/abc", "/docker/abc {root}/cg rw - cgroup2 cgroup2 rw"),
        ("0::/../../outside", "/ {root}/cg rw - cgroup2 cgroup2 rw"),
        ("0::/", "/ {root}/cg rw - cgroup2 cgroup2 rw"),
        ("0::/elsewhere", "/docker/abc {root}/cg rw - cgroup2 cgroup2 rw"),
    ],
)
def test_memory_limit_in_a_container_is_at_the_mount(tmp_path: Path, cgroup: str, mount: str) -> None:
    proc = proc_with(tmp_path, cgroup, [mount])
    write_tree(tmp_path / "cg", {"memory.max": GIB, "memory.current": 0})
    assert doctor.memory_limit(proc)[1] == f"1 GiB left of 1 GiB ({tmp_path}/cg)"


@pytest.mark.parametrize("garbage", ["", "x", "0::", "a - b\n1 2 3 - ", "\0\0 - cgroup2"])
def test_memory_limit_without_readable_cgroups_is_none(tmp_path: Path, garbage: str) -> None:
    write_tree(tmp_path, {"cgroup": garbage, "mountinfo": garbage})
    assert doctor.memory_limit(tmp_path) == ("ok", "no cgroup limit", "")


# -- cores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usable", "files", "status", "value"),
    [
        (8, {}, "ok", "8 usable, no quota"),
        (1, {}, "warn", "1 usable, no quota"),
        (8, {"a/b/cpu.max": "max 100000"}, "ok", "8 usable, no quota"),
        (8, {"a/b/cpu.max": "250000 100000"}, "ok", "8 usable, quota of 2.5 cores"),
        (
            8,
            {"a/cpu.max": "150000 100000", "a/b/cpu.max": "400000 100000"},
            "warn",
            "8 usable, quota of 1.5 cores",
        ),
        (8, {"a/b/cpu.max": "nonsense"}, "ok", "8 usable, no quota"),
    ],
)
def test_cores_and_quota(
    tmp_path: Path, usable: int, files: dict[str, object], status: str, value: str
) -> None:
    proc = proc_with(tmp_path, "0::/a/b", [V2])
    write_tree(tmp_path / "cg", files)
    verdict = doctor.cores(proc, usable)
    assert verdict[:2] == (status, value)
    assert bool(verdict[2]) == (status != "ok")


def test_cores_quota_of_v1(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, "1:cpu,cpuacct:/job", ["/ {root}/cg rw - cgroup cgroup rw,cpu,cpuacct"])
    write_tree(tmp_path / "cg", {"job/cpu.cfs_quota_us": 50000, "job/cpu.cfs_period_us": 100000})
    assert doctor.cores(proc, 4)[:2] == ("warn", "4 usable, quota of 0.5 cores")
    write_tree(tmp_path / "cg", {"job/cpu.cfs_quota_us": -1})
    assert doctor.cores(proc, 4)[:2] == ("ok", "4 usable, no quota")


# -- /dev/shm -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mounts", "status", "value"),
    [
        (["/ {root}/shm rw,nosuid - tmpfs shm rw,size=65536k"], "ok", "tmpfs at"),
        (["/ {root}/shm ro,nosuid - tmpfs shm rw"], "fail", "read-only"),
        (["/ {root}/shm rw - ext4 /dev/sda1 rw"], "fail", "ext4 at"),
        (["/ {root}/other rw - tmpfs shm rw"], "fail", "no file system of its own"),
        (["/ {root}/shm rw - ext4 /dev/sda1 rw", "/ {root}/shm rw - tmpfs shm rw"], "ok", "tmpfs"),
    ],
)
def test_shm_mount(tmp_path: Path, mounts: list[str], status: str, value: str) -> None:
    verdict = doctor.shm_mount(proc_with(tmp_path, "", mounts), tmp_path / "shm")
    assert verdict[0] == status
    assert value in verdict[1]
    assert bool(verdict[2]) == (status != "ok")


@pytest.mark.parametrize(
    ("size", "free", "status"),
    [
        (64 * GIB, 32 * GIB, "ok"),
        (0, 0, "ok"),  # a tmpfs without a limit
        (64 << 20, 64 << 20, "warn"),  # what a container gets unless told otherwise
        (64 << 20, 16 << 20, "fail"),
        (GIB, 0, "fail"),
    ],
)
def test_shm_space(size: int, free: int, status: str) -> None:
    verdict = doctor.shm_space(size, free)
    assert verdict[0] == status
    assert ("--shm-size" in verdict[2]) == (status != "ok")


@pytest.mark.parametrize(
    ("option", "enabled", "status"),
    [
        ("", "always within_size advise [never] deny force", "warn"),
        (",huge=advise", "always within_size [advise] never deny force", "warn"),
        (",huge=within_size", "always within_size advise [never] deny force", "ok"),
        (",huge=always", "always within_size advise [never] deny force", "ok"),
        (",huge=always", "always within_size advise never [deny] force", "warn"),
        ("", "always within_size advise never deny [force]", "ok"),
        ("", "", "warn"),
    ],
)
def test_huge_pages(tmp_path: Path, option: str, enabled: str, status: str) -> None:
    proc = proc_with(tmp_path, "", ["/ {root}/shm rw - tmpfs tmpfs rw,size=1g" + option])
    write_tree(tmp_path, {"shmem_enabled": enabled})
    verdict = doctor.huge_pages(proc, tmp_path / "shm", tmp_path / "shmem_enabled")
    assert verdict[0] == status
    assert bool(verdict[2]) == (status != "ok")


def test_a_default_queue_fits_the_size_that_the_checks_assume(name: str) -> None:
    with shmq.Queue.create(name) as queue:
        size = Path(f"/dev/shm/shmq.{name}").stat().st_size
        queue.unlink()
    assert size <= doctor.DEFAULT_QUEUE_BYTES < size * 1.1


# -- limits and system ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "status"), [(None, "ok"), (-1, "ok"), (1024, "ok"), (1023, "warn"), (0, "warn")]
)
def test_at_least(value: int | None, status: str) -> None:
    verdict = doctor.at_least(1024, value, "ulimit -n 1024")
    assert verdict[0] == status
    assert ("ulimit" in verdict[2]) == (status == "warn")


def test_system_is_linux_and_little_endian() -> None:
    assert doctor.system()[0] == "ok"
    assert doctor.system("darwin")[0] == "fail"
    assert doctor.system("linux", "big")[0] == "fail"


# -- this kernel, and controls that each probe must fail ------------------------------------------


def test_ofd_locks_work_here_and_classic_locks_are_told_apart() -> None:
    before = os.listdir("/proc/self/fd")
    assert doctor.ofd_locks()[0] == "ok"
    # Classic locks belong to the process, so a second descriptor of it gets them too.
    assert doctor.ofd_locks(fcntl.F_SETLK)[:2] == ("fail", "a second descriptor gets the same lock")
    assert doctor.ofd_locks(NO_SUCH_SYSCALL)[0] == "fail"
    assert os.listdir("/proc/self/fd") == before


def test_futex_works_here_and_its_absence_is_seen() -> None:
    assert doctor.futex()[0] == "ok"
    assert doctor.futex(NO_SUCH_SYSCALL)[:2] == ("fail", "FUTEX_WAIT_BITSET: Function not implemented")
    assert doctor.futex(None)[0] == "warn"


def test_absent_optional_features_are_warnings() -> None:
    assert doctor.membarrier()[0] in ("ok", "warn")
    assert doctor.membarrier(NO_SUCH_SYSCALL)[0] == "warn"
    assert doctor.membarrier(None)[0] == "warn"
    assert doctor.populate_write()[0] in ("ok", "warn")
    assert doctor.populate_write(NO_SUCH_SYSCALL)[:2] == ("warn", "MADV_POPULATE_WRITE: Invalid argument")


# -- software -------------------------------------------------------------------------------------


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_compiler_prefers_cc_of_the_environment(tmp_path: Path) -> None:
    assert doctor.compiler("", str(tmp_path))[:2] == ("warn", "none found")
    script(tmp_path / "gcc", "#!/bin/sh\necho gcc 12\necho more")
    assert doctor.compiler("", str(tmp_path)) == ("ok", "gcc 12", "")
    script(tmp_path / "mine", "#!/bin/sh\necho mine 1")
    assert doctor.compiler("mine -O2", str(tmp_path)) == ("ok", "mine 1", "")


def test_package_versions() -> None:
    assert doctor.package("pytest", "x") == ("ok", pytest.__version__, "")
    assert doctor.package("no-such-package", "say so") == ("ok", "not installed", "say so")


def test_one_check_that_breaks_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "broken", "\x7fELF")
    monkeypatch.setenv("CC", str(tmp_path / "broken"))
    findings = {finding.check: finding for finding in doctor.diagnose()}
    assert findings["C compiler"].status == "warn"
    assert "cannot be checked" in findings["C compiler"].value
    assert findings["futex"].status == "ok"


def test_diagnosis_says_what_to_do_about_each_finding_that_is_not_ok() -> None:
    findings = list(doctor.diagnose())
    assert len({finding.check for finding in findings}) == len(findings) >= 15
    assert all(finding.advice for finding in findings if finding.status != "ok")
    assert all("\n" not in finding.value + finding.advice for finding in findings)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (123456, "121 KiB"),
        (1 << 50, "1024 TiB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert doctor.human_bytes(count) == text


# -- stale segments -------------------------------------------------------------------------------


def seen_of(*names: str) -> list[doctor.Surveyed]:
    return [item for item in doctor.survey() if item.info.name in names]


def test_a_queue_is_stale_once_its_last_user_is_dead(name: str) -> None:
    code = (
        "import sys, shmq\n"
        "q = shmq.Queue.create(sys.argv[1], arena_bytes=4 << 20)\n"
        "print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert doctor.stale_segments(seen_of(name), time.time(), os.getuid()) == ("ok", "none of 1", "")
        child.kill()
        child.wait()
    status, value, advice = doctor.stale_segments(seen_of(name), time.time(), os.getuid())
    assert status == "warn"
    assert value.startswith("1 of 1, ")
    assert advice.endswith(f"shmq rm {name}")


def test_a_foreign_file_is_stale_and_its_name_is_safe_to_paste(name: str) -> None:
    evil = f"{name}\n$(touch x)"
    path = Path(f"/dev/shm/shmq.{evil}")
    path.write_text("garbage")
    try:
        found = seen_of(evil)
        status, _, advice = doctor.stale_segments(found, time.time(), os.getuid())
    finally:
        path.unlink()
    assert [item.info.state for item in found] == ["foreign"]
    assert status == "warn"
    assert doctor.stale_segments(found, time.time(), os.getuid() + 1)[0] == "ok"
    assert advice.endswith(rf"rm '/dev/shm/shmq.{name}\n$(touch x)'")


# -- doorbells ------------------------------------------------------------------------------------


def test_doorbells(tmp_path: Path) -> None:
    directory, uid = tmp_path / "bells", os.geteuid()
    assert doctor.doorbells(directory, uid) == ("ok", "none", "")
    directory.mkdir(mode=0o700)
    for i in range(3):
        os.mkfifo(directory / f"{i:016x}")
    heard = os.open(directory / f"{1:016x}", os.O_RDWR)
    try:
        status, value, advice = doctor.doorbells(directory, uid)
    finally:
        os.close(heard)
    assert (status, value) == ("ok", "1 in use, 2 of processes that were killed")
    assert "--stale" in advice
    assert doctor.doorbells(directory, uid + 1)[0] == "fail"
    directory.chmod(0o750)
    assert doctor.doorbells(directory, uid)[0] == "fail"
    (tmp_path / "link").symlink_to(directory)
    (tmp_path / "file").touch(mode=0o700)
    for other in ("link", "file"):
        status, _, advice = doctor.doorbells(tmp_path / other, uid)
        assert (status, "rm -rf" in advice) == ("fail", True)
