"""Shared fixtures: unique names, and nothing may be left in /dev/shm."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("soak", deadline=None, max_examples=2000, stateful_step_count=100)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

RUN = f"t{os.getpid()}-{secrets.token_hex(3)}"
"""Marks the segments of this test process: several may run beside each other."""


def segments_of_this_run() -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"shmq.*{RUN}*")]


@pytest.fixture
def name() -> Iterator[str]:
    """A segment name that no other test uses; it must be gone when the test ends."""
    unique = f"{RUN}-{secrets.token_hex(4)}"
    yield unique
    left = segments_of_this_run()
    for leftover in left:
        (Path("/dev/shm") / leftover).unlink(missing_ok=True)
    assert not left, f"left in /dev/shm: {left}"
