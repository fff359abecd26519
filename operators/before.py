"""What is expected of a row beside those before it, in the order of (at, position): unique."""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from operators.expectation import Expectation, Severity, named
from operators.operator import as_names, microseconds
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
