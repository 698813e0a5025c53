"""What the benchmark shows of a run: on the terminal, and as a page that a browser opens."""

from __future__ import annotations

import contextlib
import functools
import html
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from bench_reports import EVIL, ROOT, check_schema, rich_run, row, run_of

from bench import __main__ as program
from bench import compare, document, machine, plots, report
from bench import html as page
from bench.progress import rows_done

TINY = (
    *("--repetitions", "2", "--seconds", "0.002", "--max-mib", "1", "--rivals", "mp.Pipe"),
    *("--only", "latency", "--loads", "1000", "--sizes", "4096"),
)


# ---- the terminal ----


def test_the_terminal_says_what_the_machine_is() -> None:
    made = rich_run()
    made.warnings = machine.noise_warnings(1.5, {"at the start": {"p90_percent": 40.0}})
    lines = list(report._machine_lines(made))
    assert "governor: performance" in lines
    assert any("2 cores (1 socket, 1 NUMA node, SMT off)" in line for line in lines)
    assert sum(line.startswith("warning: load average 1.50 at the start") for line in lines) == 1
    assert sum(line.startswith("warning: noisy at the start: 1 in 10") for line in lines) == 1
    assert machine.noise_warnings(0.1, {"at the start": {"p90_percent": 1.0}}) == []


def test_this_machine_fits_the_schema() -> None:
    found = machine.describe()
    assert found["governor"]
    check_schema(json.loads(json.dumps({**run_of().as_json(), "machine": found})))


def test_a_figure_in_a_unit_of_its_own() -> None:
    assert report.extra("p99", [2.0, 2.1, 9.0]) == "p99 2.10"
    assert report.extra("power [M/s per us]", [3.0, 3.5, 4.0]) == "power 3.50 M/s per us"


def test_lost_rows_are_named() -> None:
    lost, won = (
        row("a/lost", shmq=[3.0, 3.0], other=[2.0, 2.0]),
        row("a/won", shmq=[1.0, 3.0], other=[2.0, 2.9]),
    )
    assert report.standing(lost) == "LOST"
    assert report.standing(won) == "ahead, not in every repetition"
    assert list(report.summary(run_of(lost, won))) == ["ahead of the best rival in 1 of 2 rows; LOST: a/lost"]


def test_a_row_at_work_is_not_counted_as_done() -> None:
    made = run_of(row("a/b"), row("c/d"))
    assert rows_done(made, "c/d: repetition 1 of 3: shmq") == 1
    assert rows_done(made, "starting shmq") == 2
    assert rows_done(run_of(), "compiling floors.c") == 0


# ---- the HTML ----

needs_libraries = pytest.mark.skipif(page.missing() is not None, reason=str(page.missing()))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium (apt-get install chromium)")


def text_of(made: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", made))


@needs_libraries
def test_the_page_has_every_row() -> None:
    made = rich_run()
    text = page.page(made)
    assert text.count('<details class="row"') == len(made.rows)
    for one in made.rows:
        assert html.escape(one.id, quote=False) in text.replace("&#34;", '"').replace("&#39;", "'")
    assert text.count("<svg") == 1 + len(plots.by_point(made)) + len(plots.distributions(made)) == 4
    assert text.count("<desc id=") == text.count("<title id=") == 4
    assert text.count('<tr role="row" class="lost">') == 2  # fanout/1 and fanout/2
    assert "power 3.25 M/s per us" in text
    assert "larger than --max-mib" in text
    assert page.page(made) == text


@functools.cache
def rich_page() -> str:
    return page.page(rich_run())


@needs_libraries
def test_the_page_refers_to_nothing_outside() -> None:
    text = rich_page()
    assert not re.findall(r"https?:|@import|url\((?!#)|<script", text)
    assert {link for link in re.findall(r'(?:href|src)="([^"]*)"', text) if not link.startswith("#")} == {
        "data:,"
    }
    ids = re.findall(r' id="([^"]*)"', text)
    assert sorted(set(ids)) == sorted(ids)
    assert set(re.findall(r'href="#([^"]*)"', text)) <= set(ids)


@needs_libraries
def test_what_comes_in_is_escaped() -> None:
    text = rich_page()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 8


@needs_libraries
def test_a_page_of_an_earlier_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.write_json(rich_run(), tmp_path / "run.json")
    assert program.main(["html", str(tmp_path / "run.json"), str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == rich_page()
    assert program.main(["html", str(tmp_path / "page.html"), str(tmp_path / "other.html")]) == 2
    assert "not JSON" in capsys.readouterr().err


def test_a_library_that_is_missing_is_said_before_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else "here")
    monkeypatch.setattr(program, "run", lambda *_: pytest.fail("it ran"))
    assert program.main(["--html", str(tmp_path / "page.html")]) == 2
    assert capsys.readouterr().err == "shmq bench: --html needs matplotlib: pip install 'shmq[bench]'\n"


def browse(text: str, directory: Path) -> tuple[list[dict[str, Any]], str]:
    """What a browser makes of the page at 360 and at 1280 pixels: counts and sizes; and its console."""
    frames = "".join(
        f'<iframe srcdoc="{html.escape(text)}" style="width:{width}px;height:900px"></iframe>'
        for width in (360, 1280)
    )
    script = """<script>onload = () => { document.body.dataset.seen = JSON.stringify(
      [...document.querySelectorAll("iframe")].map(frame => { const d = frame.contentDocument; return {
        drawn: [...d.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().width > 200
          && s.getBoundingClientRect().height > 100 && s.querySelectorAll("path").length > 3).length,
        rows: d.querySelectorAll("details.row").length,
        overflow: d.documentElement.scrollWidth - d.documentElement.clientWidth,
        fetched: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name),
        evil: d.documentElement.dataset.evil || null,
      }})); }</script>"""
    file = directory / "frames.html"
    file.write_text(
        f"<!DOCTYPE html><meta charset=utf-8><link rel=icon href=data:,>{script}<body>{frames}</body>"
    )
    # Of its own and short: the browser makes sockets in there, whose paths are limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="page-") as room:
        command = [
            str(CHROMIUM),
            *(
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
            ),
            *(
                "--host-resolver-rules=MAP * ~NOTFOUND",
                "--enable-logging=stderr",
                "--virtual-time-budget=5000",
            ),
            *(f"--user-data-dir={room}/profile", "--window-size=1400,2000", "--dump-dom", file.as_uri()),
        ]
        environment = {**os.environ, "TMPDIR": room, "HOME": room}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=100, check=False, env=environment
        )
    assert done.returncode == 0, done.stderr
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(seen[1])), "\n".join(console)


@needs_libraries
@needs_browser
def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    made = rich_run()
    seen, console = browse(rich_page(), tmp_path)
    expected = {"drawn": 4, "rows": len(made.rows), "overflow": 0, "fetched": [], "evil": None}
    assert seen == [expected, expected]
    assert console == ""


@needs_browser
def test_a_bad_page_is_noticed(tmp_path: Path) -> None:
    bad = (
        '<img src="http://127.0.0.1:9/x.png"><p style="width: 3000px">wide</p><svg></svg>'
        + EVIL.split("--")[0]
    )
    seen, console = browse(bad + "<script>console.error('no')</script>", tmp_path)
    assert all(
        one["overflow"] > 0 and one["fetched"] and one["evil"] == "1" and not one["drawn"] for one in seen
    )
    assert "no" in console


def bench_on_terminal(*arguments: str) -> str:
    """What it says to a terminal that is its stderr; its stdout is none."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "bench", *arguments]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=follower, env=environment
    ) as child:
        os.close(follower)
        said = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while some := os.read(leader, 1 << 16):
                said += some
    os.close(leader)
    assert child.returncode == 0, said
    return said.decode()


@needs_libraries
@pytest.mark.timeout(300)
def test_a_real_run_has_a_bar_and_a_page(tmp_path: Path) -> None:
    files = [tmp_path / "run.json", tmp_path / "page.html"]
    said = bench_on_terminal(*TINY, "--json", str(files[0]), "--html", str(files[1]))
    data, text = json.loads(files[0].read_text()), files[1].read_text()
    assert f"/{len(data['rows'])}" in said
    for step in ("repetition 1 of 2: shmq", "repetition 2 of 2: mp.Pipe"):
        assert step in said
    check_schema(data)
    for one in data["rows"]:
        assert f'<span class="id">{one["id"]}</span>' in text
    assert data["machine"]["kernel"] in text_of(text)
    assert page.page(document.load(files[0])) == text
    assert compare.main([str(files[0])] * 2) == 0
    if CHROMIUM:
        seen, console = browse(text, tmp_path)
        assert [(one["rows"], one["fetched"], one["overflow"]) for one in seen] == [
            (len(data["rows"]), [], 0)
        ] * 2
        assert console == ""
