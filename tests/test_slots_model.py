"""A part of ``make model``: the ring's algorithm, searched exhaustively, and bugs that must be found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parent / "crash" / "model.py"


@pytest.mark.skipif(shutil.which("spin") is None, reason="no spin on PATH (Debian: apt-get install spin)")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", ["mpmc", "topic", "pending"])
def test_the_model_in_brief(model: str) -> None:
    command = [sys.executable, RUNNER, "--quick", "--model", model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
