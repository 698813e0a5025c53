"""Deadlines: absolute monotonic nanoseconds, so that retries never stretch a timeout."""

import sys
import time

SLICE_NS = 100_000_000
"""Longest C wait: a signal that came just before it is served when it ends."""


def deadline_ns(timeout: float | None) -> int:
    """Absolute monotonic deadline of ``timeout`` seconds from now; None waits for ever."""
    if timeout is None:
        return sys.maxsize
    if timeout < 0:
        raise ValueError(f"'timeout' must be a non-negative number of seconds, not {timeout}")
    return min(time.monotonic_ns() + int(min(timeout, 1e9) * 1e9), sys.maxsize)


def slice_end_ns(deadline: int) -> int:
    """Where one C wait ends: signals that came just before it are served then."""
    return min(deadline, time.monotonic_ns() + SLICE_NS)
