"""A sample of ``make aarch64``: the orders in the generated code, and a few unit tests under emulation."""

from pathlib import Path

import aarch64
import pytest

pytestmark = pytest.mark.skipif(not aarch64.tools(), reason=aarch64.MISSING)


@pytest.mark.timeout(300)
def test_the_sample_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failures = aarch64.run_quick(tmp_path)
    assert failures == 0, capsys.readouterr().out


def test_an_order_is_looked_for_as_a_sequence() -> None:
    assert aarch64.in_order("ldar dmb ldar", ["ldar", "add", "dmb", "ldar"])
    assert not aarch64.in_order("ldar dmb ldar", ["ldar", "ldar", "dmb"])
    assert not aarch64.in_order("ldar", [])
