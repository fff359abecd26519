"""Which faults learned expectations find in the flights' weather, and how often they are wrong: `make faults`.

Twice: bounds are learnt on one half of the year and judged on the other. A fault is put into the hours of one station
and one day, for some days all over that half, each kind and column in a run of its own. It is found when on that day,
up to the first row behind it, an expectation fails that does not fail without the fault; the delay is from midnight.
False alarms are check-days (expectation, station, day) of the other half, as it was recorded, with a failing row; what
is known to be wrong there (`KNOWN`) does not count.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import polars as pl

import operators as op
from engine import Pipeline
from engine.calibrate import calibrate
from engine.learnt import write
from engine.merge import Merge
from engine.plan import rank
from engine.replay import changes, partitions
from operators.delta import TIME, to_series
from operators.expectation import Judge

KINDS = {
    "temp": "smooth, with seasons",
    "pressure": "smooth, a tenth null",
    "wind_speed": "coarse",
    "visib": "mostly at its greatest",
    "precip": "mostly 0",
}
"""The columns into which faults are put, and what they are like."""

UNITS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "temp": lambda c: (c - 32) / 1.8,
    "pressure": lambda c: c * 0.02953,
    "wind_speed": lambda c: c * 0.44704,
    "visib": lambda c: c * 1.609344,
    "precip": lambda c: c * 25.4,
}
"""What another unit makes of a value: Celsius, inches of mercury, meters a second, kilometers, millimeters."""

KNOWN = {("EWR", datetime(2013, 2, 12, tzinfo=timezone.utc)), ("EWR", datetime(2013, 2, 13, tzinfo=timezone.utc))}
"""Station-days with a fault of the record: a wind of 1,048 miles an hour, and the day that still has it in a window."""

SILENCE = "silence"

MIDDLE = datetime(2013, 7, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)

Fault = Callable[[pl.DataFrame, str, pl.Expr], pl.DataFrame]
"""Takes all rows, a column and what marks the hours with the fault; gives the rows with it."""


def _put(made: Callable[[str], pl.Expr]) -> Fault:
    return lambda rows, column, here: rows.with_columns(
        pl.when(here).then(made(column)).otherwise(pl.col(column)).alias(column)
    )


def _stay(column: str) -> pl.Expr:
    return pl.col(column).fill_null(strategy="forward").first().over("origin", pl.col("observed").dt.truncate("1d"))


def _swap(rows: pl.DataFrame, column: str, here: pl.Expr) -> pl.DataFrame:
    other = list(KINDS)[(list(KINDS).index(column) + 1) % len(KINDS)]
    swapped = [
        pl.when(here).then(pl.col(b)).otherwise(pl.col(a)).alias(a) for a, b in ((column, other), (other, column))
    ]
    return rows.with_columns(swapped)


FAULTS: dict[str, Fault] = {
    "stuck": _put(_stay),
    "default 0": _put(lambda c: pl.lit(0.0)),
    "default -9999": _put(lambda c: pl.lit(-9999.0)),
    "other unit": _put(lambda c: UNITS[c](pl.col(c))),
    "nulls": _put(lambda c: pl.lit(None, pl.Float64)),
    "swapped columns": _swap,
    "stopped feed": lambda rows, column, here: rows.filter(~here),
}


def declared(learned: Path, columns: Sequence[str] = tuple(KINDS)) -> Pipeline:
    """The weather with everything learned of these columns."""
    p, gap = Pipeline("faults", learned=learned), op.jump("observed", by="origin")
    observations = p.source(
        "weather",
        key=["origin", "observed"],
        at="observed",
        schema={"origin": str, "observed": pl.Datetime, **dict.fromkeys(KINDS, float)},
        expect=[
            gap,
            *(
                e
                for c in columns
                for e in (
                    op.usual(c, by="origin"),
                    op.jump(c, by="origin"),
                    op.stuck(c, by="origin"),
                    op.level(c, by="origin", within="1d", against="28d"),
                    op.null_ratio(c, by="origin", within="1d"),
                    op.default_ratio(c, 0.0, by="origin", within="1d"),
                )
            ),
        ],
    )
    p.view(SILENCE, observations, op.silence(by="origin", **p.gaps(observations, gap)))
    return p


def learnt(rows: pl.DataFrame, folder: Path, columns: Sequence[str] = tuple(KINDS), budget: float = 0.001) -> Pipeline:
    """The same with the bounds that these rows teach."""
    path = folder / "learned.json"
    path.unlink(missing_ok=True)
    p = declared(path, columns)
    write(path, calibrate(p, partitions(p, {"weather": rows}), budget)[1], budget, None)
    return declared(path, columns)


def alarms(p: Pipeline, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that do not meet an expectation, and when a station fell silent: expectation, origin, observed."""
    told = p.expected["weather"]
    judge, found = Judge(told.expectations, told.schema), list[pl.DataFrame]()
    for batch in changes(p, Merge(partitions(p, {"weather": rows}), rank(p), 4000)):
        delta = batch.deltas[told.judged]
        frame = delta.frame({"origin": pl.String(), "observed": TIME})
        for e, failing in zip(told.expectations, judge(delta), strict=True):
            some = frame.filter(pl.Series(failing & (delta.weight > 0)))
            found.append(some.select(pl.lit(e.name).alias("expectation"), "origin", "observed"))
        silent = batch.deltas[SILENCE]
        begun = silent.frame({"origin": pl.String()}).with_columns(to_series("observed", silent.at, TIME))
        found.append(begun.select(pl.lit(SILENCE).alias("expectation"), "origin", "observed"))
    return pl.concat(found).unique(maintain_order=True)


@dataclass(frozen=True)
class Found:
    """Of a fault in a column: in how many station-days it was put, in how many it was found, after how many hours."""

    fault: str
    column: str
    put: int
    hours: list[float]


def judged(p: Pipeline, rows: pl.DataFrame, days: Sequence[datetime], faults: Sequence[tuple[str, str]]) -> list[Found]:
    """Each fault put into these days of each station, one run for each fault and column."""
    clean, found = alarms(p, rows), list[Found]()
    stations = rows["origin"].unique().sort()
    cases = pl.DataFrame({"day": list(days)}, schema={"day": TIME}).join(stations.to_frame(), how="cross")
    cases = cases.filter(~pl.struct("origin", "day").is_in([{"origin": o, "day": d} for o, d in KNOWN]))
    for fault, column in faults:
        here = pl.struct("origin", day=pl.col("observed").dt.truncate("1d")).is_in(
            [{"origin": o, "day": d} for d, o in cases.iter_rows()]
        )
        new = alarms(p, FAULTS[fault](rows, column, here)).join(clean, on=clean.columns, how="anti")
        near = cases.join(new, on="origin").filter(
            pl.col("observed").is_between("day", pl.col("day") + DAY + timedelta(hours=1))
        )
        first = near.group_by("origin", "day").agg(pl.col("observed").min() - pl.col("day").first())
        found.append(Found(fault, column, len(cases), [d / timedelta(hours=1) for d in first["observed"]]))
    return found


def false_alarms(p: Pipeline, rows: pl.DataFrame, begin: datetime, end: datetime) -> pl.DataFrame:
    """By expectation the check-days from begin to end, and those with a failing row: `days`, `alarms`."""
    inside = (pl.col("observed") >= begin) & (pl.col("observed") < end)
    day = pl.struct("origin", day=pl.col("observed").dt.truncate("1d")).alias("day")
    known = pl.col("day").is_in([{"origin": o, "day": d} for o, d in KNOWN])
    days = rows.filter(inside).select(day).unique().filter(~known).height
    failing = alarms(p, rows).filter(inside).select("expectation", day).unique().filter(~known)
    names = pl.DataFrame({"expectation": [SILENCE, *(e.name for e in p.expected["weather"].expectations)]})
    counts = failing.group_by("expectation").agg(alarms=pl.len())
    return names.join(counts, on="expectation", how="left").select(
        "expectation", days=days, alarms=pl.col("alarms").fill_null(0)
    )


def weather(folder: Path) -> pl.DataFrame:
    """The rows of the example, in their order."""
    rows = pl.read_ndjson(folder / "weather.jsonl", infer_schema_length=None)
    return rows.select("origin", pl.col("observed").str.to_datetime("%FT%TZ", time_zone="UTC"), *KINDS)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--out", type=Path, default=Path("docs/faults.md"))
    out: Path = args.parse_args().out
    from engine.cli import load_pipeline  # the example makes its data

    p, folder = load_pipeline(Path("examples/flights"))
    assert p.prepare is not None
    p.prepare(folder)
    rows = weather(folder / "data")
    first, last = rows["observed"].min(), rows["observed"].max()
    assert isinstance(first, datetime)
    assert isinstance(last, datetime)
    cases = [(f, c) for f in FAULTS for c in KINDS if f != "stopped feed"] + [("stopped feed", "temp")]
    found, false = list[Found](), list[pl.DataFrame]()
    gust, longest = 0, 0
    with tempfile.TemporaryDirectory() as at:
        for begin, end in ((MIDDLE, last + timedelta(hours=1)), (first, MIDDLE)):
            teaching = rows.filter(~pl.col("observed").is_between(begin, end, closed="left"))
            made = learnt(teaching, Path(at))
            days = [begin.replace(hour=0) + DAY * n for n in range(5, 181, 15)]
            found += judged(made, rows, days, cases)
            false.append(false_alarms(made, rows, begin, end))
            told = alarms(made, rows).filter(pl.col("observed").is_between(begin, end, closed="left"))
            wrong = rows.filter(pl.col("wind_speed") > 1000).select("origin", "observed")
            gust += (
                told.join(wrong, on=["origin", "observed"]).filter(pl.col("expectation") == "usual(wind_speed)").height
            )
            longest += told.filter(pl.col("expectation") == "stuck(visib)").height
    text = report(found, pl.concat(false), gust, longest)
    out.write_text(text)
    print(text)


def report(found: Sequence[Found], false: pl.DataFrame, gust: int, longest: int) -> str:
    """The page."""
    both: dict[tuple[str, str], Found] = {}
    for f in found:
        was = both.get((f.fault, f.column), Found(f.fault, f.column, 0, []))
        both[f.fault, f.column] = Found(f.fault, f.column, was.put + f.put, was.hours + f.hours)

    def cell(f: Found | None) -> str:
        if f is None:
            return ""
        share = f"{100 * len(f.hours) / f.put:.0f} %"
        return f"{share}, {pl.Series(f.hours).median():.0f} h" if f.hours else share

    head = "| fault | " + " | ".join(KINDS) + " |\n| --- |" + " ---: |" * len(KINDS)
    lines = [
        f"| {fault} | " + " | ".join(cell(both.get((fault, c))) for c in KINDS) + " |"
        for fault in FAULTS
        if fault != "stopped feed"
    ]
    stopped = both["stopped feed", "temp"]
    sums = false.group_by("expectation", maintain_order=True).sum()
    rates = [f"| `{name}` | {days:,} | {n} | {1000 * n / days:.1f} |" for name, days, n in sums.iter_rows()]
    days, n = sums["days"].sum(), sums["alarms"].sum()
    cases = next(iter(both.values())).put
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, polars {pl.__version__}"
    caught = "found by `usual(wind_speed)`, learnt on the other half" if gust else "not found"
    kinds = ", ".join(f"`{c}` ({kind})" for c, kind in KINDS.items())
    return f"""# Faults that learned expectations find

Made by `make faults` ({machine}); what it does is said in `benchmarks/faults.py`. The weather of three airports in
2013, 26,115 hours; bounds learnt with the default budget, at most 1 false alarm per 1,000 check-days, on one half
of the year and judged on the other, both ways.

## Found

Each fault for 24 hours, in {cases} station-days: the share in which it was found, and after how many hours (median).
The columns are {kinds}.

{head}
{chr(10).join(lines)}

A stopped feed, of all columns: {cell(stopped)}, by `op.silence` after the gaps that `jump(observed)` has learnt.

The wind of 1,048 miles an hour at Newark is {caught}.
Visibility stays at 10 miles for up to 313 hours; `stuck(visib)` fails in {longest} hours of the year.

## False alarms

| expectation | check-days | with an alarm | per 1,000 |
| --- | ---: | ---: | ---: |
{chr(10).join(rates)}
| all | {days:,} | {n} | {1000 * n / days:.2f} |

Of an expectation alone a rate says little: where 1.1 alarms are due in 1,090 check-days, chance makes 2 or more in 3 of
10 cases.
"""


if __name__ == "__main__":
    main()
