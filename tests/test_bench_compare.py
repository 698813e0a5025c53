"""The benchmark's JSON fits its schema, and `compare` judges two runs as it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from bench_reports import ROOT, check_schema, rich_run, row, run_of

from bench import __main__ as program
from bench import compare, document, report
from bench.model import Report

OLD = [100.0, 101.0, 102.0]


# ---- the JSON ----


def test_the_schema_file_is_that_of_the_classes() -> None:
    assert json.loads((ROOT / "bench" / "schema.json").read_text()) == document.schema()


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    made = rich_run()
    report.write_json(made, tmp_path / "run.json")
    data = json.loads((tmp_path / "run.json").read_text())
    check_schema(data)
    assert document.load(tmp_path / "run.json").as_json() == made.as_json()


@pytest.mark.parametrize(
    "where", [(), ("machine",), ("rows", 0), ("rows", 0, "results", 0), ("rows", 0, "point")]
)
def test_the_schema_knows_every_field(where: tuple[Any, ...]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema (pip install 'shmq[test]')")
    data = json.loads(json.dumps(rich_run().as_json()))
    inner = data
    for step in where:
        inner = inner[step]
    inner["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        check_schema(data)


def damaged(change: Callable[[Any], Any]) -> str:
    data = json.loads(json.dumps(run_of(row("a/b", shmq=OLD)).as_json()))
    return json.dumps(change(data) or data)


UNUSABLE = {
    "cut off": (damaged(lambda data: None)[:-9], "not JSON, or cut off"),
    "nothing": ("", "not JSON, or cut off"),
    "a list": ("[1]", "no result of a run: it has no schema number"),
    "no schema": (damaged(lambda data: data.pop("schema") and data), "it has no schema number"),
    "older": (damaged(lambda data: {**data, "schema": 1}), "schema 1, and this shmq reads 2: run shmq bench"),
    "newer": (damaged(lambda data: {**data, "schema": 3}), "schema 3, and this shmq reads 2: upgrade shmq"),
    "unknown field": (damaged(lambda data: {**data, "more": 1}), "unknown field `more`"),
    "in a row": (
        damaged(lambda data: data["rows"][0].update(more=1)),
        "unknown field `more` - at `$.rows[0]`",
    ),
    "text": (damaged(lambda data: data["rows"][0]["results"][0].update(samples=["1"])), "Expected `float`"),
    "twice": (damaged(lambda data: data["rows"].append(data["rows"][0])), "the row a/b is there twice"),
    "lacking": (
        damaged(lambda data: data["settings"].pop("cores") and None),
        "missing required field `cores`",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_that_cannot_be_used_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, complaint = UNUSABLE[name]
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    report.write_json(run_of(row("a/b", shmq=OLD)), good)
    bad.write_text(text)
    for files in ((good, bad), (bad, good)):
        assert compare.main(list(map(str, files))) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"shmq bench compare: {bad}: ")
        assert complaint in said.err
        assert said.err.count("\n") == 1


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err == f"shmq bench compare: {tmp_path / 'a'}: No such file or directory\n"


# ---- the comparison ----


def scaled(factor: float, samples: Iterable[float] = OLD) -> list[float]:
    return [factor * value for value in samples]


WILD = [70.0, 100.0, 130.0]
# Samples of shmq, floor and rival in the new run; then shmq's verdict. In the old run all have OLD.
VERDICTS = {
    "the same": (OLD, OLD, OLD, ""),
    "regression": (scaled(1.2), OLD, OLD, "regression"),
    "improvement": (scaled(0.8), OLD, OLD, "improvement"),
    "below 5 %": (scaled(1.04), OLD, OLD, ""),
    "inside the spread": (scaled(1.25, WILD), OLD, OLD, ""),
    "spans overlap": ([101.5, 120.0, 121.0], OLD, OLD, ""),
    "slow machine": (scaled(1.3), scaled(1.3), scaled(1.3), "the machine is slower"),
    "fast machine": (scaled(0.7), scaled(0.7), scaled(0.7), "the machine is faster"),
    "slow machine, and worse beside it": (scaled(2.0), scaled(1.3), OLD, "regression"),
    "fast machine, left behind": (OLD, scaled(0.7), OLD, "regression"),
    "slow machine, held": (OLD, scaled(1.5), OLD, "improvement"),
    "a floor that is noise excuses nothing": (scaled(1.3), scaled(1.3, WILD), OLD, "regression"),
    "one repetition": (scaled(2.0)[:1], OLD, OLD, "too few repetitions"),
    "zero": ([0.0, 0.0, 0.0], OLD, OLD, "not comparable: a median of zero"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_a_change_counts_only_beyond_the_noise(name: str) -> None:
    ours, floor, rival, verdict = VERDICTS[name]
    old, new = (
        run_of(row("a/b", shmq=s, floor=f, rival=r)) for s, f, r in ((OLD,) * 3, (ours, floor, rival))
    )
    assert [line.verdict for line in compare.lines(old, new)] == [verdict]


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "regression"), (1.5, "the machine is slower")])
def test_without_a_floor_the_rivals_are_the_control(factor: float, verdict: str) -> None:
    old = run_of(row("a/b", shmq=OLD, one=OLD, two=scaled(9), three=scaled(2)))
    new = run_of(row("a/b", shmq=scaled(1.5), one=scaled(factor), two=scaled(9 * factor), three=scaled(40)))
    (line,) = compare.lines(old, new)
    assert line.control == "3 rivals"
    assert line.verdict == verdict
    rates = [run_of(row("a/b", shmq=values)) for values in (OLD, scaled(1.5))]
    for rate in rates:
        rate.rows[0].better = "higher"
    assert next(compare.lines(*rates)).verdict == "improvement"


def test_more_repetitions_see_more() -> None:
    old, new = [[base + step for step in (-2.0, -1.0, 0.0, 1.0, 2.0)] for base in (100.0, 106.0)]
    assert not compare.change(old[::2], new[::2], "lower").real  # type: ignore[union-attr]
    assert compare.change(old, new, "lower").real  # type: ignore[union-attr]


def compared(
    old: Report, new: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    files = [tmp_path / "old.json", tmp_path / "new.json"]
    for run, file in zip((old, new), files, strict=True):
        report.write_json(run, file)
    status = program.main(["compare", *map(str, files)])
    return status, capsys.readouterr().out.splitlines()


def test_the_lines_of_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = run_of(row("a/b", shmq=OLD, floor=OLD), row("c/d", shmq=OLD, rival=OLD))
    new = run_of(row("a/b", shmq=scaled(1.5), floor=OLD), row("c/d", shmq=scaled(0.5), rival=OLD))
    status, said = compared(old, new, tmp_path, capsys)
    assert status == 1
    run = "2026-11-22T18:02:11+00:00, A Processor, Linux 6.1, shmq 0.1.0, 3 repetitions"
    assert said == [
        f"old: {run}",
        f"new: {run}",
        "",
        "row       contestant  old   new   change  noise  relative  to       verdict",
        "a/b [us]  shmq        101   152  +50.0 %    5 %   +50.0 %  floor    regression",
        "c/d [us]  shmq        101  50.5  -50.0 %    5 %   -50.0 %  1 rival  improvement",
        "",
        "1 regression, 1 improvement, 0 within the noise, of 2",
    ]


def test_rows_that_one_run_lacks_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (run_of(row("a/b", shmq=OLD), row(other, shmq=OLD), row("e/f")) for other in ("c/d", "g/h"))
    new.rows[2].skipped = "larger than --max-mib"
    status, said = compared(old, new, tmp_path, capsys)
    assert status == 0
    assert said[-4:] == [
        "missing row: c/d",
        "missing row: e/f (skipped: larger than --max-mib)",
        "new row: g/h",
        "0 regressions, 0 improvements, 1 within the noise, of 1",
    ]


def test_another_machine_is_said_at_the_top(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = run_of(row("a/b", shmq=OLD))
    new = run_of(
        row("a/b", shmq=OLD), cpu="Other", cores=[-1, -1], load_average=[0.2, 0.2, 0.2], codec="pickle"
    )
    new.machine["versions"] = {"shmq": "0.2.0"}
    new.warnings = ["noisy"]
    status, said = compared(old, new, tmp_path, capsys)
    assert status == 0
    assert said[2:7] == [
        "warning: another machine: cpu: A Processor, then Other",
        "warning: another version: pyzmq 27.0, then none",
        "warning: another pinning: pinned to cores 0 and 1, then not pinned",
        "warning: another setting: codec: None, then pickle",
        "warning: the new run: noisy",
    ]


def test_who_fails_only_now_is_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = run_of(row("a/b", shmq=OLD)), run_of(row("a/b", shmq=[]))
    new.rows[0].results[0].failed = "lost 3 of 5"
    status, said = compared(old, new, tmp_path, capsys)
    assert status == 1
    assert said[-3].endswith("regression: failed: lost 3 of 5")
    assert compared(new, old, tmp_path, capsys)[0] == 0
