"""What is expected of a row beside those before it, in the order of (at, position): unique, step, increasing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import polars as pl

from operators.delta import FLOAT, INT, TIME
from operators.expectation import Expectation, Severity, column_named, named
from operators.operator import DefinitionError, as_names, microseconds
from operators.previous import previous
from operators.reduction import count
from operators.window import FOREVER, Window


def unique(
    *names: str, within: str | timedelta | None = None, severity: Severity = "warn", name: str | None = None
) -> Expectation:
    """No row before it, in the order of (at, position), has the same values in these columns; null is one, too.

    within: only rows that came at most so long before it count, such as "1h"; values are forgotten after that time.
    Without it they are remembered for ever.

    Raises `DefinitionError` when no column is named, or one twice. SQL: `UNIQUE NULLS NOT DISTINCT`.
    """
    found = as_names(names, "unique: the columns")
    size = FOREVER if within is None else timedelta(microseconds=microseconds(within, "unique: within") + 1)
    alike = f"_alike({', '.join(found)}; {within})"
    chain = (Window(found, size, ((alike, count()),)),)
    return Expectation(named(name, "unique", *found), severity, pl.col(alike) == 1, chain=chain)


def step(
    column: str, most: float, *, by: str | Sequence[str], severity: Severity = "warn", name: str | None = None
) -> Expectation:
    """A number differs by at most `most` from that of the row of its key before it. Where one of them is null, or there
    is none before, a row is as expected. SQL: `abs(x - lag(x) OVER (PARTITION BY by ORDER BY at, pos)) <= most`.

    Raises `DefinitionError` when `most` is no number of 0 or more.
    """
    if isinstance(most, bool) or not isinstance(most, (int, float)) or not most >= 0:
        raise DefinitionError(f"step: the most of {column!r} is {most!r}; expected a number, 0 or more")
    change = (pl.col(column_named(column, "step")) - pl.col(_last(column, by))).abs()
    return _beside_last(named(name, "step", column, most), severity, change <= most, column, by, (INT, FLOAT))


def increasing(
    column: str,
    *,
    by: str | Sequence[str],
    strictly: bool = False,
    severity: Severity = "warn",
    name: str | None = None,
) -> Expectation:
    """A number or time is no less than that of the row of its key before it; strictly: it is more. Where one of them is
    null, or there is none before, a row is as expected. SQL: `x >= lag(x) OVER (PARTITION BY by ORDER BY at, pos)`.
    """
    here, last = pl.col(column_named(column, "increasing")), pl.col(_last(column, by))
    met = here > last if strictly else here >= last
    return _beside_last(named(name, "increasing", column), severity, met, column, by, (INT, FLOAT, TIME))


def _last(column: str, by: str | Sequence[str]) -> str:
    return f"_last({column}; {', '.join(as_names(by, 'by'))})"


def _beside_last(
    name: str, severity: Severity, met: pl.Expr, column: str, by: str | Sequence[str], types: tuple[pl.DataType, ...]
) -> Expectation:
    """What a row is to be beside the row of its key before it."""
    chain = (previous(by=by, at=None, within=None, **{_last(column, by): column}),)
    return Expectation(name, severity, met, types, chain)
