"""The JSON of a run: its fields, and the way back from a file to a `Report`.

The classes are the schema; `python -m bench.document` prints it as JSON Schema, which `schema.json` keeps.
What is derived (medians, ratios, verdicts) is for other readers of the file: `load` takes the samples and
derives it anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from . import model
from .model import SCHEMA, Report, Role

_Text = Annotated[str, Meta(min_length=1)]
_Sample = Annotated[float, Meta(description="in the row's unit")]


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Refuses what it does not know: a reader that skips a field would misread the run."""


class Noise(_Strict):
    """A fixed loop that only counts, timed 40 times on the first core."""

    loop_median_ms: float
    spread_percent: Annotated[float, Meta(description="(max - min) / median")]
    p90_percent: Annotated[float, Meta(description="(p90 - median) / median")]


class Budget(_Strict):
    """A limit from the design and the verdict on it."""

    text: str
    factor: Annotated[float, Meta(description="times what `against` names")]
    against: Annotated[str, Meta(description="value, floor, best rival, or a contestant's name")]
    measured: float | None
    reached: Annotated[bool | None, Meta(description="null: not measurable in this run")]
    certain: Annotated[bool, Meta(description="every repetition says the same")]


class Ratio(_Strict):
    """shmq divided by `to`, repetition by repetition."""

    to: str
    median: float
    min: float
    max: float


class Result(_Strict):
    """One contestant in one row."""

    name: _Text
    role: Annotated[Role, Meta(description="reference: shown beside, never ranked")]
    samples: Annotated[list[_Sample], Meta(description="one per repetition")]
    median: float | None
    min: float | None
    max: float | None
    extras: Annotated[
        dict[str, list[float]],
        Meta(description="further figures, one per repetition; a unit other than the row's in brackets"),
    ]
    verified: Annotated[bool, Meta(description="every payload was checked in a pass of its own")]
    failed: Annotated[str | None, Meta(description="why it dropped out")]
    note: str
    distribution: Annotated[
        list[tuple[Annotated[float, Meta(ge=0, le=100)], _Sample]],
        Meta(description="(percentile, value), rising; empty: no latency"),
    ]


class Point(_Strict):
    """Where a row stands in a plot of several: the rows of one `plot` make its lines, a contestant each."""

    plot: Annotated[str, Meta(description="its title")]
    axis: Annotated[str, Meta(description="what `at` counts, with its unit")]
    at: float


class Row(_Strict):
    """One question that several contestants answer."""

    id: _Text
    suite: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    point: Point | None
    skipped: Annotated[str | None, Meta(description="why it has no results")]
    results: list[Result]
    ratio_to_floor: Ratio | None
    ratio_to_best_rival: Ratio | None
    budget: Budget | None


class Machine(_Strict):
    """What it ran on."""

    cpu: str
    cpu_cores: Annotated[int, Meta(description="those that the run was allowed to use")]
    sockets: int
    numa_nodes: int
    smt: Annotated[str, Meta(description="on, off or unknown")]
    governor: str
    virtual: Annotated[str, Meta(description="the hypervisor, none or unknown")]
    kernel: str
    memory_bytes: int
    dev_shm_free_bytes: int
    huge_pages_shmem: str
    clocksource: str
    python: str
    python_optimized_build: bool
    compiler: str
    versions: Annotated[dict[str, str], Meta(description="of the packages")]
    load_average: Annotated[tuple[float, float, float], Meta(description="at the start")]


class Settings(msgspec.Struct):
    """How it was asked to run. More may stand here: each option of `shmq bench`."""

    repetitions: Annotated[int, Meta(ge=1)]
    target_s: Annotated[float, Meta(gt=0, description="aim for the length of one timed run")]
    cores: Annotated[tuple[int, int], Meta(description="pinned to; -1: not pinned")]
    started: Annotated[str, Meta(description="ISO 8601, UTC")]
    took_s: float


class Document(_Strict):
    """A run of `shmq bench`."""

    schema: Annotated[Literal[2], Meta(description="grows when a field changes its meaning")]
    machine: Machine
    settings: Settings
    noise: Annotated[dict[str, Noise], Meta(description='"at the start" and "at the end"')]
    absent: Annotated[dict[str, str], Meta(description="contestant: why it took no part")]
    warnings: list[str]
    rows: list[Row]


class Unusable(Exception):
    """A file that is not the result of a run that this version reads; says what to do."""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what `Report.as_json` returns."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Document)}


def _check_schema(data: Any, path: Path) -> None:
    found = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(found, int):
        raise Unusable(
            f"{path}: no result of a run: it has no schema number; write one with: shmq bench --json FILE"
        )
    if found != SCHEMA:
        newer = found > SCHEMA
        todo = "upgrade shmq" if newer else "run shmq bench --json again, or use the shmq that wrote it"
        raise Unusable(f"{path}: schema {found}, and this shmq reads {SCHEMA}: {todo}")


def _check_rows(rows: list[Row], path: Path) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise Unusable(f"{path}: the row {row.id} is there twice")
        seen.add(row.id)
        if len({result.name for result in row.results}) < len(row.results):
            raise Unusable(f"{path}: a contestant is twice in the row {row.id}")


def load(path: Path) -> Report:
    """The report that `--json` wrote there. Raises Unusable."""
    try:
        data = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise Unusable(f"{path}: not JSON, or cut off: {error}") from None
    _check_schema(data, path)
    try:
        document = msgspec.convert(data, Document)
        _check_rows(document.rows, path)
        rows = msgspec.convert(document.rows, list[model.Row], from_attributes=True)
    except msgspec.ValidationError as error:
        raise Unusable(f"{path}: not as schema {SCHEMA} says: {error}") from None
    return Report(
        machine=data["machine"],
        settings=data["settings"],  # with what the class does not list
        noise=data["noise"],
        rows=rows,
        absent=data["absent"],
        warnings=data["warnings"],
    )


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
