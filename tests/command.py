"""The `shmq` command for tests of what it says: in a process of its own that is a fork of the test's.

It has imported already what a new interpreter would first have to import, for most of a second.  That the
command starts as a program, too, is for the tests that use COMMAND.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

from shmq import cli

COMMAND = [sys.executable, "-m", "shmq"]
with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
    cli.main(["stat", "/"])  # is refused; what typer imports late is there then
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _become(arguments: tuple[str, ...], descriptors: tuple[int, int, int]) -> NoReturn:
    """The command, on these descriptors; ends the process."""
    status = 99
    try:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        cli.ON_TERMINAL = sys.stdout.isatty()  # as it finds when it is imported
        try:
            cli.main(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


@contextlib.contextmanager
def _forked(work: Callable[[], NoReturn]) -> Iterator[Callable[[], int]]:
    """Gives what waits for the status of a forked child, which never outlives the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        pid = os.fork()
    if pid == 0:
        work()
    waited = False

    def wait() -> int:
        nonlocal waited
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        waited = True
        return status

    try:
        yield wait
    finally:
        if not waited:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def attempt(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command with its output in files, whatever its status."""
    with open(os.devnull) as stdin, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        descriptors = stdin.fileno(), out.fileno(), err.fileno()
        with _forked(lambda: _become(arguments, descriptors)) as wait:
            status = wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, status, out.read(), err.read())


def run(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = attempt(*arguments)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == expect, done.stderr
    return done


def run_on_terminal(columns: int, *arguments: str, as_program: bool = False) -> str:
    """What the command writes to a terminal that wide, without colour and cursor sequences."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def on_terminal() -> NoReturn:
        os.environ.update(TERM="xterm-256color", LC_ALL="C.UTF-8")
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)
        os.close(ours)
        if as_program:
            for number in range(3):
                os.dup2(theirs, number)
            os.execv(sys.executable, [*COMMAND, *arguments])
        _become(arguments, (theirs, theirs, theirs))

    with _forked(on_terminal) as wait:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while chunk := os.read(ours, 65536):
                shown += chunk
        wait()
    os.close(ours)
    text = CONTROL.sub("", shown.decode()).replace("\r", "")
    assert "Traceback" not in text
    assert max(map(len, text.splitlines())) <= columns
    return text
