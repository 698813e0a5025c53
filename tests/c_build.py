"""Builds the C tests: the core in several variants, and the programs of ``tests/c`` that link with one.

A program in another folder of ``tests`` is named with it (``crash/step``); it may include headers of
``tests/c``.

A variant is the core's sources with edits, and compiler flags:

    plain        as it is, assertions on
    long_slices  a wait sleeps for an hour before it looks again: a lost wake-up is a hang
    points       the same, and every atomic access calls lab_point() first (see points.c)
    no_barrier   long_slices, and the kernel has no membarrier
    big_pages    the kernel has pages of 64 KiB (see big_pages.c)
    asan, tsan   under the sanitizers

A mutant is a variant with one more edit, which a test has to notice.  The suite tries a sample of them,
``make mutants`` all (see sampled).

The core is compiled as it is shipped (-O2); the programs, and what a mutant changes, as fast as it goes.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

TESTS = Path(__file__).resolve().parent
CSRC = TESTS.parent / "csrc"
PROGRAMS = TESTS / "c"
CC = shutil.which("cc")
ALL_MUTANTS = os.environ.get("SHMQ_MUTANTS") == "all"
ONE_IN = 4
QUICKLY = ("-Og",)
WARNINGS = ("-Wall", "-Wextra", "-Werror=implicit-function-declaration", "-Werror=int-conversion")


@dataclass(frozen=True)
class Edit:
    """Replaces what ``old`` (a regular expression) matches in ``file``: exactly once, or ``times``."""

    file: str
    old: str
    new: str
    times: int = 1

    def apply(self, directory: Path) -> None:
        path = directory / self.file
        path.write_text(self.applied(path.read_text()))

    def applied(self, text: str) -> str:
        changed, found = re.subn(self.old, self.new, text, flags=re.MULTILINE)
        assert found == self.times, f"{self.old!r} occurs {found} times in {self.file}, not {self.times}"
        assert changed != text, f"{self.old!r} and {self.new!r} are the same in {self.file}"
        return changed


@dataclass(frozen=True)
class Variant:
    name: str
    flags: tuple[str, ...] = ("-O2",)
    edits: tuple[Edit, ...] = ()
    link: tuple[str, ...] = ()


_HOUR = (
    Edit("core.h", r"(define SHMQ_SLICE_NS) .*", r"\1 INT64_C(3600000000000)"),
    Edit("core.h", r"(define SHMQ_SHORT_SLICE_NS) .*", r"\1 INT64_C(3600000000000)"),
)
_NO_BARRIER = (
    Edit("wait.c", r"return syscall\(SYS_membarrier, command, 0, 0\);", "(void)command; return -1;"),
)
_BIG_PAGES = "-Wl," + ",".join(f"--wrap={name}" for name in ("mmap", "munmap", "madvise", "sysconf"))
_ACCESSES = 23
_HOOKS = (
    Edit("atomics.h", r"^typedef _Atomic uint64_t shmq_a64;", r"void lab_point(void);\n\g<0>"),
    Edit(
        "atomics.h",
        r"^static inline \w+ (?:load|store|cas|exchange|add|sub|or|and)\w*\([^)]*\) \{",
        r"\g<0> lab_point();",
        _ACCESSES,
    ),
    Edit("wait.c", r"^static long futex\(", r"void lab_before_sleep(void);\n\g<0>"),
    Edit(
        "wait.c",
        r"^    return syscall\(SYS_futex",
        r"    if (op == FUTEX_WAIT_BITSET) lab_before_sleep();\n\g<0>",
    ),
)
# Whoever finds a lock gone is behind all that its holder did: the kernel sees to that, and the race detector
# cannot see it.  lab_die() is the other end.
_KERNEL_EDGE = (
    Edit("peers.c", r"^static bool same_object", r"void lab_saw_a_lock(void);\n\g<0>"),
    Edit("peers.c", r"^    int asked = lock_byte\(.*$", r"\g<0>\n    lab_saw_a_lock();"),
)
_SANITIZE = ("-O1", "-fno-omit-frame-pointer")
VARIANTS = {
    v.name: v
    for v in (
        Variant("plain"),
        Variant("long_slices", edits=_HOUR),
        Variant("points", edits=_HOUR + _HOOKS),
        Variant("no_barrier", edits=_HOUR + _NO_BARRIER),
        Variant("big_pages", link=(_BIG_PAGES,)),
        Variant("asan", (*_SANITIZE, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")),
        Variant("tsan", (*_SANITIZE, "-fsanitize=thread", "-Wno-tsan"), _KERNEL_EDGE),
    )
}


def source_of(program: str) -> Path:
    return (TESTS if "/" in program else PROGRAMS) / f"{program}.c"


def target_of(program: str) -> str:
    """Another one for crash/wakes than for wakes."""
    return program.replace("/", "-")


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"


Seeded = TypeVar("Seeded")


def sampled(bugs: Iterable[Seeded], sort: Callable[[Seeded], str]) -> list[Seeded]:
    """Of each sort the first, the fifth, the ninth and so on; where SHMQ_MUTANTS=all: all.

    So the sample has one of each sort, and a new bug moves only those behind it of its own."""
    seen: Counter[str] = Counter()
    chosen = []
    for bug in bugs:
        if ALL_MUTANTS or seen[sort(bug)] % ONE_IN == 0:
            chosen.append(bug)
        seen[sort(bug)] += 1
    return chosen


def outdated(edits: Iterable[Edit]) -> list[str]:
    """What is wrong with those that do not fit the core as it is now, in the sample or not."""
    complaints = []
    for edit in edits:
        try:
            edit.applied((CSRC / edit.file).read_text())
        except AssertionError as why:
            complaints.append(str(why))
    return complaints


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Against other processes and threads; if its holder dies, the kernel unlocks it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass
class Workshop:
    """Builds on demand, each thing once, in ``directory``; ``machine``: flags of a cross compiler ``cc``.

    Objects lie in ``store``, which several workshops of the same compiler may share, also in processes beside
    each other: each is named for the text and the flags that it was made from."""

    directory: Path
    csrc: Path = CSRC
    cc: str | None = CC
    machine: tuple[str, ...] = ()
    store: Path | None = None
    _cores: dict[str, dict[str, Path]] = field(default_factory=dict)
    _objects: dict[tuple[str, str], Path] = field(default_factory=dict)
    _programs: dict[tuple[str, str], Path] = field(default_factory=dict)

    def _compile(self, source: Path, include: Path, flags: Iterable[str]) -> Path:
        assert self.cc is not None
        common = ("-std=c11", "-g1", "-UNDEBUG", *WARNINGS, "-pthread", *self.machine)
        command = [self.cc, *common, *flags]
        headers = [path for home in (include, PROGRAMS, source.parent) for path in sorted(home.glob("*.h"))]
        made_from = [" ".join(command), source.name, *(path.read_text() for path in [source, *headers])]
        name = f"{source.stem}-{hashlib.sha256(chr(0).join(made_from).encode()).hexdigest()[:32]}"
        store = self.store or self.directory / "objects"
        store.mkdir(parents=True, exist_ok=True)
        target, part = store / f"{name}.o", store / f"{name}.part"
        with locked(store / f"{name}.lock"):
            if not target.exists():
                run(*command, f"-I{include}", f"-I{PROGRAMS}", "-c", source, "-o", part)
                part.rename(target)
        return target

    def _core(self, variant: Variant) -> dict[str, Path]:
        """Objects of the core by the name of their source."""
        if variant.name not in self._cores:
            sources = self.directory / variant.name / "csrc"
            shutil.copytree(self.csrc, sources)
            for edit in variant.edits:
                edit.apply(sources)
            names = sorted(path.name for path in sources.glob("*.c"))
            with ThreadPoolExecutor(2) as pool:
                objects = pool.map(
                    lambda name: self._compile(sources / name, sources, variant.flags),
                    names,
                )
                self._cores[variant.name] = dict(zip(names, objects, strict=True))
        return self._cores[variant.name]

    def _object(self, program: str, variant: Variant) -> Path:
        key = (program, variant.name)
        if key not in self._objects:
            self._core(variant)
            include = self.directory / variant.name / "csrc"
            self._objects[key] = self._compile(source_of(program), include, (*variant.flags, *QUICKLY))
        return self._objects[key]

    def _link(self, target: Path, variant: Variant, objects: Iterable[Path]) -> Path:
        assert self.cc is not None
        run(self.cc, *self.machine, *variant.flags, *variant.link, *objects, "-pthread", "-o", target)
        return target

    def program(self, program: str, variant_name: str) -> Path:
        """tests/c/``program``.c, linked with that core."""
        key = (program, variant_name)
        if key not in self._programs:
            variant = VARIANTS[variant_name]
            objects = [self._object(program, variant), *self._core(variant).values()]
            target = self.directory / variant_name / target_of(program)
            self._programs[key] = self._link(target, variant, objects)
        return self._programs[key]

    def mutant(self, program: str, variant_name: str, name: str, edit: Edit) -> Path:
        """The same with one source, or header, of the core changed."""
        variant = VARIANTS[variant_name]
        core = dict(self._core(variant))
        home = Path(tempfile.mkdtemp(prefix=f"mutant-{name}-", dir=self.directory))
        sources = home / "csrc"
        shutil.copytree(self.directory / variant_name / "csrc", sources)
        edit.apply(sources)
        for file in [edit.file] if edit.file.endswith(".c") else list(core):
            core[file] = self._compile(sources / file, sources, (*variant.flags, *QUICKLY))
        objects = [self._object(program, variant), *core.values()]
        return self._link(home / target_of(program), variant, objects)


def list_tests(program: str) -> list[str]:
    """Names of its tests, in the order of the file."""
    return re.findall(r"^TEST\((\w+)\)", source_of(program).read_text(), flags=re.MULTILINE)
