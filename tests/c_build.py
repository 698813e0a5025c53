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

A mutant is a variant with one more edit, which a test has to notice.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parent
CSRC = TESTS.parent / "csrc"
PROGRAMS = TESTS / "c"
CC = shutil.which("cc")


@dataclass(frozen=True)
class Edit:
    """Replaces what ``old`` (a regular expression) matches in ``file``: exactly once, or ``times``."""

    file: str
    old: str
    new: str
    times: int = 1

    def apply(self, directory: Path) -> None:
        path = directory / self.file
        text, found = re.subn(self.old, self.new, path.read_text(), flags=re.MULTILINE)
        assert found == self.times, f"{self.old!r} occurs {found} times in {self.file}, not {self.times}"
        path.write_text(text)


@dataclass(frozen=True)
class Variant:
    name: str
    flags: tuple[str, ...] = ("-O2",)
    edits: tuple[Edit, ...] = ()


_HOUR = (
    Edit("core.h", r"(define SHMQ_SLICE_NS) .*", r"\1 INT64_C(3600000000000)"),
    Edit("core.h", r"(define SHMQ_SHORT_SLICE_NS) .*", r"\1 INT64_C(3600000000000)"),
)
_NO_BARRIER = (
    Edit("wait.c", r"return syscall\(SYS_membarrier, command, 0, 0\);", "(void)command; return -1;"),
)
_BIG_PAGES = "-Wl," + ",".join(f"--wrap={name}" for name in ("mmap", "munmap", "madvise", "sysconf"))
_ACCESSES = 20
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
        Variant("big_pages", ("-O2", _BIG_PAGES)),
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


@dataclass
class Workshop:
    """Builds on demand, each thing once, in ``directory``; ``machine``: flags of a cross compiler ``cc``."""

    directory: Path
    csrc: Path = CSRC
    cc: str | None = CC
    machine: tuple[str, ...] = ()
    _cores: dict[str, dict[str, Path]] = field(default_factory=dict)
    _objects: dict[tuple[str, str], Path] = field(default_factory=dict)
    _programs: dict[tuple[str, str], Path] = field(default_factory=dict)

    def _compile(self, source: Path, include: Path, target: Path, flags: Iterable[str]) -> Path:
        assert self.cc is not None
        common = ["-std=c11", "-g", "-UNDEBUG", "-Wall", "-Wextra", "-pthread", *self.machine]
        run(self.cc, *common, *flags, f"-I{include}", f"-I{PROGRAMS}", "-c", source, "-o", target)
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
                    lambda name: self._compile(
                        sources / name, sources, sources.parent / f"{name}.o", variant.flags
                    ),
                    names,
                )
                self._cores[variant.name] = dict(zip(names, objects, strict=True))
        return self._cores[variant.name]

    def _object(self, program: str, variant: Variant) -> Path:
        key = (program, variant.name)
        if key not in self._objects:
            self._core(variant)
            home = self.directory / variant.name
            target = home / f"{target_of(program)}.o"
            self._objects[key] = self._compile(source_of(program), home / "csrc", target, variant.flags)
        return self._objects[key]

    def _link(self, target: Path, variant: Variant, objects: Iterable[Path]) -> Path:
        assert self.cc is not None
        run(self.cc, *self.machine, *variant.flags, *objects, "-pthread", "-o", target)
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
        home = self.directory / f"mutant-{name}"
        sources = home / "csrc"
        shutil.copytree(self.directory / variant_name / "csrc", sources)
        edit.apply(sources)
        for file in [edit.file] if edit.file.endswith(".c") else list(core):
            core[file] = self._compile(sources / file, sources, home / f"{file}.o", variant.flags)
        objects = [self._object(program, variant), *core.values()]
        return self._link(home / target_of(program), variant, objects)


def list_tests(program: str) -> list[str]:
    """Names of its tests, in the order of the file."""
    return re.findall(r"^TEST\((\w+)\)", source_of(program).read_text(), flags=re.MULTILINE)
