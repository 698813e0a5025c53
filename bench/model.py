"""What a run produces: rows of results, their ratios, and the verdict on the budget.

Every result holds one sample per repetition. A ratio is taken repetition by repetition (the
contestants ran one after the other inside each, A B C A B C), then summarised, so that a slow phase
of the machine weighs on both sides of it. `as_json` documents the schema.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

SCHEMA = 2
OURS = "shmq"
Role = Literal["shmq", "floor", "rival", "reference"]


@dataclass(frozen=True)
class Budget:
    """A limit from the design, in its own words (`text`): `factor` times what `against` names.

    against: "value" (the unit of the row), "floor", "best rival", or the name of one contestant.
    """

    text: str
    factor: float
    against: str


@dataclass(frozen=True)
class Point:
    """Where a row stands in a plot of several: the rows of one `plot` make its lines, a contestant each."""

    plot: str
    """Its title; all its rows have the same unit."""
    axis: str
    """What `at` counts, with its unit: "bytes", "subscribers", "messages/s offered"."""
    at: float


@dataclass
class Result:
    """One contestant in one row."""

    name: str
    role: Role
    samples: list[float] = field(default_factory=list)
    extras: dict[str, list[float]] = field(default_factory=dict)
    """Further figures per repetition in the row's unit, for example p99."""
    verified: bool = False
    """The payloads were checked in a pass of their own (floors carry none: True there)."""
    failed: str | None = None
    note: str = ""
    distribution: list[tuple[float, float]] = field(default_factory=list)
    """(percentile, value in the row's unit), rising, of all repetitions together; empty: no latency."""

    @property
    def median(self) -> float:
        return median(self.samples)


@dataclass(frozen=True)
class Ratio:
    """Ours divided by another, per repetition."""

    other: str
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    measured: float | None
    reached: bool | None
    """By the median; None where the run lacks what the budget compares with."""
    certain: bool
    """Every repetition says the same."""


@dataclass
class Row:
    """One question: the same work done by several contestants."""

    id: str
    suite: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    budget: Budget | None = None
    point: Point | None = None
    results: list[Result] = field(default_factory=list)
    skipped: str | None = None

    def result(self, name: str) -> Result | None:
        return next((r for r in self.results if r.name == name and r.samples), None)

    def of_role(self, role: Role) -> list[Result]:
        return [r for r in self.results if r.role == role and r.samples]

    @property
    def ours(self) -> Result | None:
        return next(iter(self.of_role("shmq")), None)

    @property
    def floor(self) -> Result | None:
        return next(iter(self.of_role("floor")), None)

    @property
    def best_rival(self) -> Result | None:
        pick = max if self.better == "higher" else min
        return pick(self.of_role("rival"), key=lambda r: r.median, default=None)

    def ratio(self, other: Result | None) -> Ratio | None:
        ours = self.ours
        if ours is None or other is None or other is ours:
            return None
        each = [a / b for a, b in zip(ours.samples, other.samples, strict=False) if b > 0]
        return Ratio(other.name, median(each), min(each), max(each)) if each else None

    def verdict(self) -> Verdict | None:
        budget, ours = self.budget, self.ours
        if budget is None:
            return None
        if budget.against == "value":
            spread = (ours.median, min(ours.samples), max(ours.samples)) if ours else None
        else:
            other = {"floor": self.floor, "best rival": self.best_rival}.get(
                budget.against, self.result(budget.against)
            )
            ratio = self.ratio(other)
            spread = (ratio.median, ratio.low, ratio.high) if ratio else None
        if spread is None:
            return Verdict(None, None, certain=False)
        sign = 1 if self.better == "higher" else -1
        says = [sign * value >= sign * budget.factor for value in spread]
        return Verdict(spread[0], says[0], certain=len(set(says)) == 1)


def _ratio_json(ratio: Ratio | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    return {"to": ratio.other, "median": ratio.median, "min": ratio.low, "max": ratio.high}


def _result_json(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "role": result.role,
        "samples": result.samples,
        "median": result.median if result.samples else None,
        "min": min(result.samples, default=None),
        "max": max(result.samples, default=None),
        "extras": result.extras,
        "verified": result.verified,
        "failed": result.failed,
        "note": result.note,
        "distribution": result.distribution,
    }


def _row_json(row: Row) -> dict[str, Any]:
    verdict = row.verdict()
    budget = None
    if row.budget is not None and verdict is not None:
        budget = {
            "text": row.budget.text,
            "factor": row.budget.factor,
            "against": row.budget.against,
            "measured": verdict.measured,
            "reached": verdict.reached,
            "certain": verdict.certain,
        }
    return {
        "id": row.id,
        "suite": row.suite,
        "title": row.title,
        "unit": row.unit,
        "better": row.better,
        "point": None if row.point is None else asdict(row.point),
        "skipped": row.skipped,
        "results": [_result_json(r) for r in row.results],
        "ratio_to_floor": _ratio_json(row.ratio(row.floor)),
        "ratio_to_best_rival": _ratio_json(row.ratio(row.best_rival)),
        "budget": budget,
    }


@dataclass
class Report:
    """A whole run."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    noise: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Contestant -> why it took no part."""
    warnings: list[str] = field(default_factory=list)

    def drop_unfinished(self, repetitions: int) -> None:
        """The last row, if not everybody in it who did not fail has all repetitions."""
        last = self.rows[-1].results if self.rows else []
        if any(result.failed is None and len(result.samples) < repetitions for result in last):
            self.rows.pop()

    def as_json(self) -> dict[str, Any]:
        """The schema, which README.md explains field by field:

        {"schema": 2, "machine": {...}, "settings": {...}, "noise": {...}, "absent": {name: reason},
         "warnings": [text], "rows": [{
           "id", "suite", "title", "unit", "better": "higher" | "lower", "skipped": text | null,
           "point": {"plot": title, "axis": what "at" counts, "at": number} | null,
           "results": [{"name", "role": "shmq" | "floor" | "rival" | "reference",
                        "samples": [one per repetition], "median", "min", "max",
                        "extras": {name: [one per repetition]}, "verified", "failed": text | null,
                        "note", "distribution": [[percentile, value], ...]}],
           "ratio_to_floor" and "ratio_to_best_rival": {"to", "median", "min", "max"} | null,
           "budget": {"text", "factor", "against", "measured", "reached": true | false | null,
                      "certain"} | null}]}
        """
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "settings": self.settings,
            "noise": self.noise,
            "absent": self.absent,
            "warnings": self.warnings,
            "rows": [_row_json(row) for row in self.rows],
        }
