"""Runs the tests under the sanitizers, in copies below ``build/``; the installed package is not touched.

    python tests/sanitize.py asan [pytest arguments]
    python tests/sanitize.py tsan

``asan``: AddressSanitizer and UBSan.  First the C tests, with leak detection; then the whole Python suite
with an extension that is built with both, without leak detection (CPython leaks by design).
``tsan``: ThreadSanitizer over the C core's threads, no suppressions.

Both first see that the sanitizer notices bugs which are seeded for it.  Exit status 0: not one other report.
"""

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from c_build import CC, TESTS, VARIANTS, Edit, Workshop, list_tests

ROOT = TESTS.parent
ASAN_FLAGS = VARIANTS["asan"].flags
UNIT = [
    "test_spsc",
    "test_mpmc",
    "test_topic",
    "test_arena",
    "test_segment",
    "test_peers",
    "test_recover",
    "test_wait",
    "test_queue",
    "test_recorder",
    *("test_pending", "test_keep", "test_lease", "test_urgent", "test_keys"),
    "threads",
    "crowd",
    "audience",
    "lessees",
    "rivals",
]
KILLS = 100
MUTATIONS = 10_000
PATIENCE = {"WATCHDOG_S": "300"}
UBSAN_OPTIONS = "print_stacktrace=1:halt_on_error=1"
# These time or build things of their own, or would only repeat what was run above.
LEFT_OUT = [
    *("test_c_core.py", "test_bench.py", "test_house.py", "test_crash.py", "test_crash_parts.py"),
    "test_slots_model.py",
]


LEAK = Edit("message.c", r"^    free\(b\);\n    shmq_unpin", "    shmq_unpin")
OVERFLOW = Edit("shmq.c", r"malloc\(q->ring\.inline_bytes\)", "malloc(q->ring.inline_bytes / 2)")
UNORDERED_PUBLISH = Edit("spsc.c", r"store_release(\(&line->cursor, side->cursor\))", r"store_relaxed\1")
UNORDERED_FREE = Edit(
    "arena.c",
    r"return cas_acq_rel\(&a->words\[page\], &word, freed\)",
    "return atomic_compare_exchange_strong_explicit(&a->words[page], &word, freed, 0, 0)",
)
UNORDERED_CLAIM = Edit(
    "pending.c",
    r"cas_acq_rel\((word, &seen, word_of\(SHMQ_PENDING_FILLING, p->owner, serial_of\(seen\)\))\)",
    r"atomic_compare_exchange_strong_explicit(\1, 0, 0)",
)
CONTROLS = {
    "asan": [
        ("test_queue", "a_loan_is_published_or_given_back", LEAK),
        ("test_queue", "every_size_arrives_as_it_was_sent", OVERFLOW),
    ],
    "tsan": [
        ("threads", "inline_messages", UNORDERED_PUBLISH),
        ("threads", "blocks", UNORDERED_FREE),
        ("lessees", "two_and_two", UNORDERED_CLAIM),
    ],
}
"""What each sanitizer must report: program, test, bug."""


def fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def run_all(title: str, commands: list[list[str | Path]], environment: dict[str, str]) -> int:
    """Runs each; says which failed.  Returns how many did."""
    failures = 0
    for command in commands:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )
        if done.returncode != 0:
            failures += 1
            print(f"{title}: {' '.join(map(str, command))}: exit status {done.returncode}")
            print(done.stdout + done.stderr)
    print(f"{title}: {len(commands) - failures} of {len(commands)} passed", flush=True)
    return failures


def c_tests(
    variant: str, programs: list[str], extra: list[tuple[str, ...]], environment: dict[str, str]
) -> int:
    workshop = Workshop(fresh(ROOT / "build" / variant / "c"))
    for i, (program, test, edit) in enumerate(CONTROLS[variant]):
        broken = workshop.mutant(program, variant, str(i), edit)
        done = subprocess.run(
            [broken, test], capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )
        assert "Sanitizer" in done.stderr, f"{variant} does not notice {edit}\n{done.stdout}{done.stderr}"
    commands: list[list[str | Path]] = []
    for program in programs:
        built = workshop.program(program, variant)
        commands += [[built, test] for test in list_tests(program)]
    for program, *arguments in extra:
        commands.append([workshop.program(program, variant), *arguments])
    return run_all(f"{variant}, C", commands, environment)


def library(name: str) -> str:
    """Where the compiler keeps a runtime library."""
    assert CC is not None
    found = subprocess.run([CC, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return str(Path(found.stdout.strip()).resolve())


def build_extension(copy: Path) -> None:
    """shmq/_core with sanitizers; without setuptools, which a venv need not have."""
    assert CC is not None
    builder = runpy.run_path(str(copy / "shmq" / "_build.py"))["ffibuilder"]
    builder.emit_c_code(str(copy / "_core.c"))
    include = sysconfig.get_path("include")
    subprocess.run(
        [
            *(CC, "-shared", "-fPIC", "-std=c11", "-g", "-UNDEBUG", "-DPy_LIMITED_API=0x030b0000"),
            *ASAN_FLAGS,
            *(f"-I{include}", f"-I{copy / 'csrc'}", "-pthread"),
            *(str(copy / "_core.c"), "-o", str(copy / "shmq" / "_core.abi3.so")),
        ],
        check=True,
        cwd=copy,
    )


def python_suite(arguments: list[str]) -> int:
    copy = fresh(ROOT / "build" / "asan" / "python")
    for name in ("shmq", "csrc", "tests", "examples", "bench"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for path in ROOT.glob("*.toml"):
        shutil.copy(path, copy)
    build_extension(copy)
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        # Both: the sanitizer must find __cxa_throw when it starts, or the first C++ exception is its end.
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": UBSAN_OPTIONS,
        "PYTHONMALLOC": "malloc",  # or the interpreter's own allocator hides what it owns
    }
    which = "import shmq._core as c; print(c.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", which], capture_output=True, text=True, check=True, cwd=copy, env=environment
    )
    assert Path(found.stdout.strip()).is_relative_to(copy), f"tests would run {found.stdout}"
    left_out = [f"--ignore=tests/{name}" for name in LEFT_OUT]
    command = [sys.executable, "-m", "pytest", "-q", "tests", "--timeout=900", *left_out, *arguments]
    return subprocess.run(command, check=False, cwd=copy, env=environment).returncode


def asan(arguments: list[str]) -> int:
    extra: list[tuple[str, ...]] = [("damage", str(MUTATIONS), str(seed)) for seed in (1, 2, 3)]
    extra += [("kills", whom, str(KILLS), "2") for whom in ("producer", "consumer", "both")]
    options = {"ASAN_OPTIONS": "detect_leaks=1:halt_on_error=1", "UBSAN_OPTIONS": UBSAN_OPTIONS, **PATIENCE}
    return c_tests("asan", UNIT, extra, options) or python_suite(arguments)


def tsan(arguments: list[str]) -> int:
    del arguments
    return c_tests(
        "tsan",
        ["threads", "crowd", "audience", "lessees", "rivals"],
        [],
        {"TSAN_OPTIONS": "halt_on_error=0:exitcode=66", **PATIENCE},
    )


if __name__ == "__main__":
    if CC is None:
        sys.exit("no C compiler on PATH")
    recipes = {"asan": asan, "tsan": tsan}
    if len(sys.argv) < 2 or sys.argv[1] not in recipes:
        sys.exit(__doc__)
    sys.exit(min(recipes[sys.argv[1]](sys.argv[2:]), 1))
