"""What is expected of a row as it is usual for its key: bounds that are learnt from history.

    usual        the value itself
    stuck        how many rows in a row have had the same value
    jump         how far the value is from that of the row before
    null_ratio   the share of nulls within a duration
    default_ratio    the share of one value within a duration
    level        the mean within a duration, less the mean within a longer one before and with it
    shape, categories    how the values within a duration are spread, beside those within a longer one
    new_ratio    the share of rows within a duration with a value that was not there before
    distinct_ratio   the share of rows within a duration with a value that is not yet there

Each is a number for each row, the *statistic*, computed by operators; what is expected is that it lies within bounds.
These are constants, by key, that `freshet calibrate` finds for a budget of false alarms (`engine.calibrate`). So what
is kept of a stream is the statistic only, and whether a row is as expected is a function of the row and its hidden
columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import reduce
from hashlib import sha256
from itertools import pairwise
from math import inf, isfinite
from operator import add
from typing import Any

import polars as pl

from operators.delta import FLOAT, INT, STRING, TIME, Schema
from operators.expectation import Expectation, Severity, column_named, named
from operators.expression import columns
from operators.operator import DefinitionError, as_names, fit_as_key, microseconds
from operators.previous import Previous
from operators.project import Project
from operators.reduction import count, mean
from operators.runs import Runs
from operators.window import Window

Range = tuple[float, float]
"""The least and the greatest value of a statistic; infinite where there is no bound."""

EVERY: Range = (-inf, inf)
SHARE: Range = (0.0, 1.0)


@dataclass(frozen=True)
class Ranges:
    """What was learnt: by group (see `Learned.group`) a range, and one for all groups that are not named."""

    groups: Mapping[str, Range]
    rest: Range


@dataclass(frozen=True, eq=False, kw_only=True)
class Learned(Expectation):
    """A statistic lies within bounds; before they are known every row is as expected.

    by: the columns of the key. statistic: a Float64; null is as expected. both: whether too little is not, either.
    of: a column whose values have bounds of their own where they are common, so that what is usual for one does not
    hide what is unusual for others. span: what the statistic can be; a bound that is not inside it is none. warm: for
    how many microseconds rows of a key teach nothing, for it is too new.
    """

    by: tuple[str, ...]
    statistic: pl.Expr
    both: bool = False
    of: str | None = None
    span: Range = EVERY
    warm: int = 0
    bounds: Ranges | None = None
    met: pl.Expr = field(default_factory=lambda: pl.lit(True))

    def fit(self, schema: Schema) -> None:
        Expectation(self.name, self.severity, self.statistic <= 0, self.types, self.chain).fit(schema)
        fit_as_key(self.by, schema, f"{self.name}: by")

    @property
    def key(self) -> pl.Expr:
        """The key as a text."""
        return _text(self.by)

    @property
    def group(self) -> pl.Expr:
        """What has bounds of its own, as a text: the key, or with `of` the key and the value of that column."""
        return self.key if self.of is None else _text([*self.by, self.of])

    @property
    def asked(self) -> str:
        """What is computed, as a short text made of the names that say so: bounds of another are no bounds."""
        told = f"{columns(self.statistic)} {self.by} {self.of} {self.both}"
        return sha256(told.encode()).hexdigest()[:12]

    def learnt(self, bounds: Ranges) -> Learned:
        """The same with these bounds."""
        low, high = (self._bound(bounds, side) for side in (0, 1))
        met = self.statistic <= high
        return replace(self, bounds=bounds, met=met & (self.statistic >= low) if self.both else met)

    def _bound(self, bounds: Ranges, side: int) -> pl.Expr:
        rest = bounds.rest[side]
        if not bounds.groups:
            return pl.lit(rest)
        values = [r[side] for r in bounds.groups.values()]
        return self.group.replace_strict(list(bounds.groups), values, default=rest, return_dtype=FLOAT)


def _text(names: Sequence[str]) -> pl.Expr:
    parts = [pl.col(n).cast(STRING).fill_null("null") for n in names]
    return parts[0] if len(parts) == 1 else pl.concat_str(parts, separator=" / ")


def usual(column: str, *, by: str | Sequence[str], severity: Severity = "warn", name: str | None = None) -> Learned:
    """A number is neither less nor more than is usual for its key."""
    value = pl.col(column_named(column, "usual")).cast(FLOAT)
    return Learned(
        name=named(name, "usual", column),
        severity=severity,
        types=(INT, FLOAT),
        by=as_names(by, "usual: by"),
        statistic=value,
        both=True,
    )


def jump(column: str, *, by: str | Sequence[str], severity: Severity = "warn", name: str | None = None) -> Learned:
    """A number or time is not further from that of the row of its key before it than is usual for it; times in
    microseconds. Of the time of the event it is the gap between rows, told when the row behind it comes.
    """
    keys = as_names(by, "jump: by")
    last = f"_last({column_named(column, 'jump')}; {', '.join(keys)})"
    return Learned(
        name=named(name, "jump", column),
        severity=severity,
        types=(INT, FLOAT, TIME),
        chain=(Previous(keys, ((last, column),), None, None),),
        by=keys,
        statistic=(pl.col(column).cast(FLOAT) - pl.col(last).cast(FLOAT)).abs(),
    )


def stuck(column: str, *, by: str | Sequence[str], severity: Severity = "warn", name: str | None = None) -> Learned:
    """No more rows of a key in a row have the same value than is usual for it, and, where the value is a common one,
    usual for that value: a clear sky may last for days, and a temperature may not. A null is in no run.
    """
    keys = as_names(by, "stuck: by")
    run = f"_run({column_named(column, 'stuck')}; {', '.join(keys)})"
    return Learned(
        name=named(name, "stuck", column),
        severity=severity,
        chain=(Runs(keys, (column,), run, None),),
        by=keys,
        statistic=pl.col(run).cast(FLOAT),
        of=column,
    )


def null_ratio(
    column: str,
    *,
    by: str | Sequence[str],
    within: str | timedelta,
    severity: Severity = "warn",
    name: str | None = None,
) -> Learned:
    """Of the rows of a key within a duration up to a row no larger share is null in this column than is usual for it.

    Raises `DefinitionError` when `within` is no duration, or 0.
    """
    keys, size = as_names(by, "null_ratio: by"), _duration(within, "null_ratio: within")
    about = f"{column_named(column, 'null_ratio')}; {', '.join(keys)}; {size}"
    some, rows = f"_known({about})", f"_rows({', '.join(keys)}; {size})"
    return Learned(
        name=named(name, "null_ratio", column),
        severity=severity,
        chain=(Window(keys, size, ((some, count(column)),)), Window(keys, size, ((rows, count()),))),
        by=keys,
        statistic=1 - pl.col(some).cast(FLOAT) / pl.col(rows).cast(FLOAT),
        span=SHARE,
    )


def default_ratio(
    column: str,
    value: Any,
    *,
    by: str | Sequence[str],
    within: str | timedelta,
    severity: Severity = "warn",
    name: str | None = None,
) -> Learned:
    """Of the values of a key within a duration up to a row no larger share is this one than is usual for it, such as 0
    or -9999, which stand for none. Nulls are no values.
    """
    if not isinstance(value, (str, int, float, bool)):
        raise DefinitionError(f"default_ratio: the value of {column!r} is {value!r}; expected a text or number")
    keys, size = as_names(by, "default_ratio: by"), _duration(within, "default_ratio: within")
    here = f"_is({column_named(column, 'default_ratio')}; {value!r})"
    share = f"_share({column}; {value!r}; {', '.join(keys)}; {size})"
    return Learned(
        name=named(name, "default_ratio", column, value),
        severity=severity,
        chain=(
            Project((), {here: pl.col(column) == value}),
            Window(keys, size, ((share, mean(here)),)),
        ),
        by=keys,
        statistic=pl.col(share),
        span=SHARE,
    )


def level(
    column: str,
    *,
    by: str | Sequence[str],
    within: str | timedelta,
    against: str | timedelta,
    severity: Severity = "warn",
    name: str | None = None,
) -> Learned:
    """The mean of a key within a duration up to a row is not further from its mean within a longer one, `against`, than
    is usual for it. A season moves both; another unit moves the first at once.

    Raises `DefinitionError` when `against` is not longer than `within`.
    """
    keys, short, long = _durations("level", column, by, within, against)
    about = f"{column_named(column, 'level')}; {', '.join(keys)}; {short} of {long}"
    here, usually = (f"_mean({about}; {d})" for d in (short, long))
    return Learned(
        name=named(name, "level", column),
        severity=severity,
        chain=(Window(keys, None, ((here, mean(column, size=short)), (usually, mean(column, size=long)))),),
        by=keys,
        statistic=pl.col(here) - pl.col(usually),
        both=True,
        warm=microseconds(long),
    )


def shape(
    column: str,
    edges: Sequence[float],
    *,
    by: str | Sequence[str],
    within: str | timedelta,
    against: str | timedelta,
    severity: Severity = "warn",
    name: str | None = None,
) -> Learned:
    """The values of a key within a duration up to a row are spread over bins much as those within a longer one,
    `against`: the total variation of the shares, half the sum of their differences, is no greater than is usual for it.

    edges: n numbers in rising order make n + 1 bins; a bin has its lower edge. Nulls are no values.
    """
    cuts = list(edges)
    numbers = [c for c in cuts if isinstance(c, (int, float)) and not isinstance(c, bool)]
    if not cuts or numbers != cuts or sorted(set(cuts)) != cuts:
        raise DefinitionError(f"shape: the edges of {column!r} are {edges!r}; expected numbers in rising order")
    here = pl.col(column_named(column, "shape"))
    bins = [here < cuts[0], *((here >= a) & (here < b) for a, b in pairwise(cuts)), here >= cuts[-1]]
    return _spread("shape", column, dict(zip([None, *cuts], bins, strict=True)), by, within, against, severity, name)


def categories(
    column: str,
    values: Sequence[Any],
    *,
    by: str | Sequence[str],
    within: str | timedelta,
    against: str | timedelta,
    severity: Severity = "warn",
    name: str | None = None,
) -> Learned:
    """The values of a key within a duration up to a row are shared out among these ones, and all others together, much
    as those within a longer one, `against`; see `shape`.
    """
    known_ones = [] if isinstance(values, str) else list(values)
    if not known_ones or len(set(known_ones)) < len(known_ones):
        raise DefinitionError(f"categories: the values of {column!r} are {values!r}; expected different ones")
    here = pl.col(column_named(column, "categories"))
    bins = {v: here == v for v in known_ones} | {None: ~here.is_in(known_ones)}
    return _spread("categories", column, bins, by, within, against, severity, name)


def _spread(
    kind: str,
    column: str,
    bins: Mapping[Any, pl.Expr],
    by: str | Sequence[str],
    within: str | timedelta,
    against: str | timedelta,
    severity: Severity,
    name: str | None,
) -> Learned:
    """The total variation between the shares of bins within a duration and within a longer one."""
    keys, short, long = _durations(kind, column, by, within, against)
    inside = {f"_in({kind}; {column}; {list(bins)}; {value!r})": made for value, made in bins.items()}
    about = f"{', '.join(keys)}; {short} of {long}"
    shares = [(f"{one}; {about}; {size}", mean(one, size=size)) for one in inside for size in (short, long)]
    apart = [(pl.col(a) - pl.col(b)).abs() for (a, _), (b, _) in zip(shares[::2], shares[1::2], strict=True)]
    return Learned(
        name=named(name, kind, column),
        severity=severity,
        chain=(Project((), inside), Window(keys, None, tuple(shares))),
        by=keys,
        statistic=reduce(add, apart) / 2,
        span=SHARE,
        warm=microseconds(long),
    )


def new_ratio(
    column: str,
    *,
    by: str | Sequence[str],
    within: str | timedelta,
    against: str | timedelta,
    severity: Severity = "warn",
    name: str | None = None,
) -> Learned:
    """Of the rows of a key within a duration up to a row no larger share has a value in this column that was not there
    before it, in the rest of a longer one, `against`, than is usual for the key. Null is a value. While the longer one
    has less than twice as many rows as the shorter every row is as expected.
    """
    keys, short, long = _durations("new_ratio", column, by, within, against)
    about = f"{column_named(column, 'new_ratio')}; {', '.join(keys)}; {short} of {long}"
    few, many, rows, all_rows = (f"_{what}({about}; {d})" for what in ("alike", "rows") for d in (short, long))
    new, share = f"_new({about})", f"_new_share({about})"
    return Learned(
        name=named(name, "new_ratio", column),
        severity=severity,
        chain=(
            Window((*keys, column), None, ((few, count(size=short)), (many, count(size=long)))),
            Project((), {new: pl.col(few) == pl.col(many)}),
            Window(keys, None, ((rows, count(size=short)), (all_rows, count(size=long)))),
            Window(keys, short, ((share, mean(new)),)),
        ),
        by=keys,
        statistic=pl.when(pl.col(all_rows) >= 2 * pl.col(rows)).then(pl.col(share)),
        span=SHARE,
        warm=microseconds(long),
    )


def distinct_ratio(
    column: str,
    *,
    by: str | Sequence[str],
    within: str | timedelta,
    severity: Severity = "warn",
    name: str | None = None,
) -> Learned:
    """Of the rows of a key within a duration up to a row neither fewer nor more have a value in this column that none
    had within that duration before them than is usual for the key. Null is a value.
    """
    keys, size = as_names(by, "distinct_ratio: by"), _duration(within, "distinct_ratio: within")
    about = f"{column_named(column, 'distinct_ratio')}; {', '.join(keys)}; {size}"
    alike, first, share = f"_alike({about})", f"_first({about})", f"_first_share({about})"
    return Learned(
        name=named(name, "distinct_ratio", column),
        severity=severity,
        chain=(
            Window((*keys, column), size, ((alike, count()),)),
            Project((), {first: pl.col(alike) == 1}),
            Window(keys, size, ((share, mean(first)),)),
        ),
        by=keys,
        statistic=pl.col(share),
        span=SHARE,
        both=True,
    )


def _durations(
    kind: str, column: str, by: str | Sequence[str], within: str | timedelta, against: str | timedelta
) -> tuple[tuple[str, ...], timedelta, timedelta]:
    keys, short, long = as_names(by, f"{kind}: by"), *(_duration(d, kind) for d in (within, against))
    if long <= short:
        raise DefinitionError(f"{kind}: {column!r} within {within!r} against {against!r}; expected a longer duration")
    return keys, short, long


def _duration(given: str | timedelta, what: str) -> timedelta:
    size = timedelta(microseconds=microseconds(given, what))
    if not size:
        raise DefinitionError(f"{what} is {given!r}; expected more than 0")
    return size


def range_of(given: Any, what: str) -> Range:
    """A range of two numbers, null for no bound. Raises `DefinitionError` naming `what` when it is none."""
    try:
        low, high = (None if g is None else float(g) for g in given)
    except (TypeError, ValueError):
        raise DefinitionError(f"{what} is {given!r}; expected two numbers, or null for no bound") from None
    return (-inf if low is None else low, inf if high is None else high)


def told(found: Range) -> list[float | None]:
    """A range as JSON values."""
    return [b if isfinite(b) else None for b in found]
