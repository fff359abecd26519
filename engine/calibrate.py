"""Calibration: the bounds of learned expectations, from history, for a budget of false alarms.

What is counted is *check-days*: one expectation of one key on one day (UTC). A check-day with a row beyond the bounds
is an alarm; in history that is held to be as usual it is a false one, and the budget is how many of those there may be
per check-day. So what matters of a day is the greatest value of the statistic (and the least, where too little is no
better), as it was served: also what a late row corrected later.

Of the daily maxima of a group, n days, the greatest tenth (but at least 10) lies above a threshold u, m days. Days
above it that follow one another are one episode, and only its peak tells something of its own ("declustering", Davison
and Smith 1990). The c peaks exceed u by y, about exponentially distributed with scale s (peaks over a threshold:
Pickands 1975; used for alarms by Siffer et al., "Anomaly detection in streams with extreme value theory", KDD 2017,
with a free shape, which so few days do not tell). A day is beyond b with a probability of at most (m / n) exp(-(b - u)
/ s), so

    b = u + s ln(m / (n q)),    q: the budget;    s = mean(y) (1 + 1.645 / sqrt(c))

where the last factor makes of the estimate its upper bound of 95 %. The bound is never less than the greatest maximum,
unless that stands alone: more than `ALONE` times as far from the threshold as the next. That is held to be a fault
of history, left out, and told. Where too little is no better each side has half of the budget. Where a bound is none
that the statistic can pass, as of a share that may be anything, there is none, and the table shows so.

A key with fewer than `DAYS` days has no bounds of its own; such keys share those found for all of them together, or,
where there are none, for all keys, and so do keys that are not known yet. A bound learnt from fewer than `TOLD` peaks
is at least as far above its threshold as the shared one. Where common values of a column have bounds of their own
(`stuck`), those are values that a `COMMON` share of the rows of a key have, and the budget of the key is divided
equally among them and the rest. A key teaches nothing before its longest window is full (`Learned.warm`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.graph import Expected, Graph, Source
from engine.learnt import Calibrated, Learnt
from engine.merge import Partition, merged
from engine.replay import changes
from operators.delta import BEGINNING, FLOAT, Delta, to_series
from operators.expression import columns, evaluate
from operators.learned import Learned, Range, Ranges
from operators.operator import DefinitionError

DAYS, TOLD, ALONE, COMMON = 60, 5, 5.0, 0.2
"""Days from which on a key has bounds of its own, and peaks from which on they stand for themselves; how much further
than the next a maximum is that stands alone; the share of rows from which on a value is common."""

_DAY = 86_400_000_000
_NONE = pl.DataFrame(
    schema={
        "_key": pl.String,
        "_group": pl.String,
        "_day": pl.Int64,
        "_least": FLOAT,
        "_most": FLOAT,
        "_rows": pl.Int64,
    }
)


def calibrate(
    graph: Graph,
    parts: Sequence[tuple[Source, Sequence[Partition]]],
    budget: float = 0.001,
    batch_rows: int = 4000,
    until: int | None = None,
    progress: Callable[[float, int], None] = lambda done, changes: None,
) -> tuple[list[Calibrated], dict[str, Learnt]]:
    """The bounds of all learned expectations, as a table and as what is to be written.

    budget: false alarms per check-day. until: microseconds UTC, only rows before it count. Raises `DefinitionError`
    when nothing is learned, or there is too little history.
    """
    if not 0 < budget < 1:
        raise DefinitionError(
            f"the budget is {budget!r}; expected more than 0 and less than 1 false alarm per check-day"
        )
    seen = {
        (name, e.name): (told, e, list[pl.DataFrame]())
        for name, told in graph.expected.items()
        for e in told.expectations
        if isinstance(e, Learned)
    }
    if not seen:
        raise DefinitionError(
            f"pipeline {graph.name!r} has no learned expectation; declare one, such as op.stuck('x', by='sensor')"
        )
    merge = merged(graph, parts, batch_rows)
    for batch in changes(graph, merge):
        for told, e, days in seen.values():
            if len(rows := batch.deltas[told.judged]):
                days.append(_days(rows, told, e, until))
        progress(merge.progress, sum(merge.read.values()))
    table, found = list[Calibrated](), dict[str, Learnt]()
    for (name, expectation), (_, e, days) in seen.items():
        of = f"{name}: {expectation}"
        told_of = _found(_warm(_together([_NONE, *days]), e), e, budget, of)
        table += [Calibrated(name, expectation, *one) for one in told_of]
        groups = {group: bounds for group, bounds, _, _ in told_of if group is not None}
        found[of] = Learnt(e.asked, Ranges(groups, next(b for group, b, _, _ in told_of if group is None)))
    return table, found


def _days(rows: Delta, told: Expected, e: Learned, until: int | None) -> pl.DataFrame:
    """Of the rows that come the least and greatest statistic of each group on each day."""
    usable = (rows.weight > 0) & (rows.at > BEGINNING) & (rows.at < (until if until is not None else np.inf))
    rows = rows.take(usable)
    needed = dict.fromkeys(c for x in (e.statistic, e.group, e.key) for c in columns(x))
    frame = pl.DataFrame([to_series(n, rows.columns[n], told.schema[n]) for n in needed])
    made = [e.key.alias("_key"), e.group.alias("_group"), e.statistic.alias("_value")]
    frame = evaluate(frame, made).select("_key", "_group", "_value", _day=pl.Series(rows.at // _DAY))
    frame = frame.filter(pl.col("_value").is_finite())
    return _together(
        [frame.select("_key", "_group", "_day", _least="_value", _most="_value", _rows=pl.lit(1, pl.Int64))]
    )


def _together(days: Sequence[pl.DataFrame]) -> pl.DataFrame:
    least, most = pl.col("_least").min(), pl.col("_most").max()
    found = pl.concat(days).group_by("_key", "_group", "_day")
    return found.agg(least, most, pl.col("_rows").sum())


def _warm(days: pl.DataFrame, e: Learned) -> pl.DataFrame:
    """The days of each key on which it is no more too new to teach something."""
    return days.filter((pl.col("_day") - pl.col("_day").min().over("_key")) * _DAY >= e.warm)


_Found = tuple[str | None, Range, int, int]


def _found(days: pl.DataFrame, e: Learned, budget: float, what: str) -> list[_Found]:
    """For each group with bounds of its own, and for all others together, the bounds and what they rest on."""
    seen = days["_day"].n_unique()
    if seen < DAYS // 2:
        raise DefinitionError(
            f"{what}: history has {seen} days on which it can be judged; expected {DAYS // 2} or more: give it more "
            "history, or leave it out until there is"
        )
    groups = days.group_by("_key", "_group").agg(pl.len(), pl.col("_rows").sum())
    common = pl.col("_rows") >= COMMON * pl.col("_rows").sum().over("_key")
    own = groups.filter(common & (pl.col("len") >= DAYS))
    parts = dict(own.group_by("_key").len().iter_rows())
    several = bool((days["_key"] != days["_group"]).any())
    others = days.join(own, on=["_key", "_group"], how="anti")
    rest = others if others["_day"].n_unique() >= DAYS // 2 else days
    rest = rest.group_by("_key", "_day").agg(pl.col("_least").min(), pl.col("_most").max())
    shared, about = _range(rest, e, budget / (max(parts.values(), default=0) + 1 if several else 1))
    found: list[_Found] = []
    for key, group in own.select("_key", "_group").sort("_key", "_group").iter_rows():
        mine = days.filter((pl.col("_key") == key) & (pl.col("_group") == group))
        found.append((group, *_range(mine, e, budget / (parts[key] + several), shared)[1]))
    return [*found, (None, *about)]


def _range(
    days: pl.DataFrame, e: Learned, q: float, shared: Sequence[float] = (0.0, 0.0)
) -> tuple[list[float], tuple[Range, int, int]]:
    """How far the bound is above the threshold, on the lower and the upper side; and the bounds of these days, how many
    days they are, and on how many of them something was beyond.

    shared: how far above it is at least where these days do not tell enough.
    """
    days = days.sort("_key", "_day")
    alone = (days["_day"].diff() != 1) | (days["_key"] != days["_key"].shift())
    run, least, most = alone.fill_null(True).cum_sum().to_numpy(), days["_least"].to_numpy(), days["_most"].to_numpy()
    bounds, above = [math.inf, math.inf], [0.0, 0.0]
    for side, maxima in enumerate((-least, most)):
        if side or e.both:
            u, above[side], peaks = upper(maxima, run, q / 2 if e.both else q)
            bounds[side] = u + (above[side] if peaks >= TOLD else max(above[side], shared[side]))
    low, high = -outward(bounds[0]), outward(bounds[1])
    low, high = (low if low > e.span[0] else -math.inf), (high if high < e.span[1] else math.inf)
    return above, ((low, high), len(days), int(((most > high) | (least < low)).sum()))


def upper(maxima: NDArray[np.float64], run: NDArray[np.uint32], q: float) -> tuple[float, float, int]:
    """The threshold, how far above it a daily maximum is with probability q, and from how many peaks that is learnt.

    run: days that follow one another have the same number.
    """
    n = len(maxima)
    u = float(np.sort(maxima)[::-1][min(max(10, n // 10), n - 1)])
    above = np.flatnonzero(maxima > u)
    if not len(above):
        return u, 0.0, 0
    begins = np.flatnonzero(np.r_[True, (np.diff(above) > 1) | (np.diff(run[above]) != 0)])
    peaks = np.sort(np.maximum.reduceat(maxima[above], begins) - u)[::-1]
    faults = 0
    while faults < max(1, n // 100) and faults + 1 < len(peaks) and peaks[faults] > ALONE * peaks[faults + 1]:
        faults += 1
    peaks = peaks[faults:]
    scale = float(peaks.mean()) * (1 + 1.645 / math.sqrt(len(peaks)))
    return u, max(float(peaks[0]), scale * max(0.0, math.log(len(above) / (n * q)))), len(peaks)


def outward(bound: float) -> float:
    """The next number above with four digits."""
    if bound == 0 or not math.isfinite(bound):
        return bound
    digits = 3 - math.floor(math.log10(abs(bound)))
    return float(f"{math.ceil(round(bound * 10.0**digits, 6)) / 10.0**digits:.12g}")
