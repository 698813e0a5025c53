"""The serving example: a worker is killed in the middle, and every answer is right."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SHM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # examples is a package of the checkout

from examples import ngram, serving

WATCHDOG_S = 120.0
Start = Callable[..., Any]


def left(example: Any) -> list[str]:
    return [path.name for path in SHM.glob(f"shmq.serving-{example.process.pid}-*")]


def test_every_answer_is_right_though_a_worker_was_killed(start_example: Start) -> None:
    example = start_example("serving", "--quick", "--json")
    status, output, errors = example.finish(WATCHDOG_S)
    assert status == 0, errors
    report = json.loads(output)
    assert report["wrong"] == []
    assert report["tokens"] == report["prompts"] * 100
    assert f"pid {report['killed']}\n" in errors
    assert report["streams_moved"] > 0
    assert 0 < report["taken_over_ms"] <= report["new_token_ms"]
    assert 0 < report["overhead_us_p50"] <= report["overhead_us_p99"]
    assert left(example) == []


def test_it_is_for_people(start_example: Start) -> None:
    example = start_example("serving", "--prompts", "8", "--length", "30", as_module=True)
    status, output, errors = example.finish(WATCHDOG_S)
    assert status == 0, errors
    for text in ("8 prompts, 240 tokens", "(SIGKILL)", "taken over after", "every answer is whole and right"):
        assert text in output
    assert left(example) == []


def test_a_killed_parent_leaves_no_processes(start_example: Start) -> None:
    example = start_example("serving")
    assert example.process.stderr is not None
    for _ in range(3):
        assert "pid" in example.process.stderr.readline()
    example.process.kill()
    example.finish(WATCHDOG_S)  # returns when nobody holds the other end of its stderr: all have ended
    for name in left(example):  # nobody was there to remove them
        (SHM / name).unlink()


def test_a_continuation_is_the_same_alone_and_in_a_batch() -> None:
    model = ngram.Model()
    prompts = ngram.prompts(5)
    together = model.continuations(prompts, 40)
    assert [model.continuations([prompt], 40)[0] for prompt in prompts] == together
    assert len(set(together)) == 5
    steps = list(model.generate(prompts[:2], [3, 9]))
    assert bytes(int(step[1]) for step in steps) == together[1][:9]
    assert [int(step[0]) for step in steps][3:] == [0] * 6


def test_a_wrong_answer_gives_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it compares with is replaced, so that all it gets is wrong."""
    monkeypatch.setattr(ngram.Model, "continuations", lambda self, batch, length: [b""] * len(batch))
    assert serving.main(["--prompts", "2", "--length", "5"]) == 1
    assert "2 answers are WRONG" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("--prompts", "-1"), ("--length", "2")])
def test_impossible_arguments_are_refused(arguments: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        serving.main(list(arguments))
    assert refusal.value.code == 2
