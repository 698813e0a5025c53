"""How far a run is: a bar on a terminal's stderr, nothing elsewhere.

It is drawn only when something new begins. A thread that refreshes it, as is usual, would take processor time
from what is being measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .harness import Progress
from .model import Report, Row


def rows_done(report: Report, text: str) -> int:
    """The last row of the report is still at work while its id begins what the harness says."""
    rows = report.rows
    return len(rows) - (bool(rows) and text.startswith(f"{rows[-1].id}: "))


@contextmanager
def bar(report: Report, planned: dict[str, list[Row]]) -> Iterator[Progress]:
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Bar(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as shown:
        task = shown.add_task("starting", total=sum(map(len, planned.values())))

        def progress(text: str) -> None:
            shown.update(task, description=text, completed=rows_done(report, text), refresh=True)

        yield progress
