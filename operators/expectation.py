"""What is expected of each row of a relation: not_null, between, one_of, matches, check.

What is expected is a row-wise condition. A null meets every check but `not_null`, as in SQL's CHECK. Where a row is to
be judged by those before it, the expectation has a *chain*: operators that add hidden columns to the rows, which the
condition reads (`operators.before`).

    rows -> chain -> those that meet the condition, those that do not -> without hidden columns

So such an expectation, too, is under the laws of its operators: a row that comes late or is taken back corrects what is
said of others. What follows for a row that does not meet what is expected is its severity:

- "warn" (the default): it is counted;
- "quarantine": it is put aside, in a relation beside this one, with the reason. A row that is taken back is taken back
  from where it went, so a correction releases it;
- "stop": the run ends, and nothing of its batch is published.

Every expectation is judged on all rows, also on those that are put aside for another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import reduce
from operator import and_
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from operators.delta import BOOL, FLOAT, INT, POS, STRING, TIME, Delta, Schema, to_series
from operators.expression import ExpressionError, columns, evaluate, fingerprint
from operators.expression import check as checked
from operators.operator import DefinitionError, Operator, Relation, as_names, known, microseconds, new_columns

Severity = Literal["warn", "quarantine", "stop"]

REASON = "reason"
"""The column that says what a row was put aside for: the names of what it does not meet."""


@dataclass(frozen=True, eq=False)
class Expectation:
    """What is expected of each row, and what follows for one that does not meet it.

    met: true, or null, for a row that is as expected. types: those that the columns may have that it reads.
    chain: operators that add what `met` reads beside the columns of the row. Each keeps the rows as they are, with
    their `at` and position, and adds columns whose names begin with `_` and say what they hold: one name, one meaning.
    """

    name: str
    severity: Severity
    met: pl.Expr
    types: tuple[pl.DataType, ...] = ()
    chain: tuple[Operator, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 100 or not self.name.isprintable():
            raise DefinitionError(f"an expectation has the name {self.name!r}: expected 1 to 100 printable characters")
        if self.severity not in get_args(Severity):
            raise DefinitionError(
                f"{self.name}: its severity is {self.severity!r}; expected 'warn', 'quarantine' or 'stop'"
            )

    @property
    def columns(self) -> list[str]:
        """The columns that the condition reads."""
        return columns(self.met)

    @property
    def definition(self) -> tuple[str, str]:
        """What it is, whatever follows from it: its name and a text that stands for what it computes."""
        told = [f"; {step.name} {json.dumps(step.definition, sort_keys=True)}" for step in self.chain]
        return self.name, fingerprint(self.met) + "".join(told)

    def fit(self, schema: Schema) -> None:
        """Raises `DefinitionError` when it cannot be asked of rows with these columns."""
        for step in self.chain:
            try:
                schema = step.schema([schema])
            except ValueError as error:
                raise DefinitionError(f"{self.name}: {error}") from None
        known(self.columns, schema, self.name)
        for c in self.columns:
            if self.types and not c.startswith("_") and schema[c] not in self.types:
                raise DefinitionError(
                    f"{self.name}: the column {c!r} has type {schema[c]}; expected {' or '.join(map(str, self.types))}"
                )
        try:
            found = checked(self.name, self.met, schema)
        except ExpressionError as error:
            raise DefinitionError(str(error)) from None
        if found != BOOL:
            raise DefinitionError(f"{self.name}: it has type {found}; expected Boolean, such as pl.col('delay') > -60")


def expected(given: object, schema: Schema, what: str, release: object = None) -> tuple[Expectation, ...]:
    """The expectations that were given for a relation with these columns. release: what lets rows in all the same.

    Raises `DefinitionError` naming `what` when one is none, cannot be asked, or has the name of another, and when there
    is nothing to release.
    """
    if isinstance(given, (str, Expectation)) or not isinstance(given, Sequence):
        raise DefinitionError(f"{what}: expect is {given!r}; expected a list, such as [op.not_null('origin')]")
    for i, one in enumerate(given):
        if not isinstance(one, Expectation):
            raise DefinitionError(f"{what}: expect contains {one!r}; expected an expectation such as op.not_null('a')")
        try:
            one.fit(schema)
        except DefinitionError as error:
            raise DefinitionError(f"{what}: expect: {error}") from None
        if one.name in [other.name for other in given[:i]]:
            raise DefinitionError(f"{what}: two expectations are called {one.name!r}; give one another name=")
    if quarantined(given):
        new_columns(schema, {REASON: STRING}, f"{what}: expect with severity='quarantine'")
    elif release is not None:
        raise DefinitionError(f"{what}: release is given, but no expectation has severity='quarantine'; leave it out")
    if release is not None and not isinstance(release, Release):
        raise DefinitionError(f"{what}: release is {release!r}; expected op.release(approved, within='7d')")
    return tuple(given)


@dataclass(frozen=True, eq=False)
class Release:
    """What lets rows out of quarantine, see `release`."""

    approved: Relation
    on: tuple[str, ...] | None
    within: timedelta


def release(approved: Relation, *, within: str | timedelta, on: str | Sequence[str] | None = None) -> Release:
    """Rows that were put aside are let in when their key is in another relation: each row there approves one.

    It counts when its `at` is at most `within` after that of the row that was put aside; so long what stands on the
    relation expects such rows. on: what the columns of the key are called there (default: as here).

    Raises `DefinitionError` when it is no relation. SQL: `EXISTS (SELECT * FROM approved WHERE ...)`.
    """
    if not isinstance(approved, Relation):
        raise DefinitionError(f"release: what approves is {approved!r}; expected a source or a view")
    limit = timedelta(microseconds=microseconds(within, "release: within"))
    return Release(approved, None if on is None else as_names(on, "release: on"), limit)


def chain(expectations: Sequence[Expectation]) -> tuple[Operator, ...]:
    """One chain that adds the hidden columns of all; what several ask for is kept once."""
    steps = [step for e in expectations for step in e.chain]
    return tuple({(s.name, json.dumps(s.definition, sort_keys=True)): s for s in steps}.values())


def quarantined(expectations: Sequence[Expectation]) -> list[Expectation]:
    """Those for which rows are put aside."""
    return [e for e in expectations if e.severity == "quarantine"]


def met(expectations: Sequence[Expectation]) -> pl.Expr:
    """Whether a row meets all of them (at least one); never null."""
    return reduce(and_, (e.met.fill_null(True) for e in expectations))


def reason(expectations: Sequence[Expectation]) -> pl.Expr:
    """The names of those that a row does not meet, in their order."""
    names = [pl.when(~e.met.fill_null(True)).then(pl.lit(e.name)) for e in expectations]
    return pl.concat_str(names, separator="; ", ignore_nulls=True)


class Judge:
    """Finds the rows of deltas that do not meet these checks."""

    def __init__(self, expectations: Sequence[Expectation], schema: Schema) -> None:
        self._needed = {c: schema[c] for c in dict.fromkeys(c for e in expectations for c in e.columns)}
        self._names = [f"_{i}" for i in range(len(expectations))]
        self._failed = [(~e.met.fill_null(True)).alias(name) for e, name in zip(expectations, self._names, strict=True)]

    def __call__(self, delta: Delta) -> list[npt.NDArray[np.bool_]]:
        """For each expectation which rows do not meet it."""
        rows = [to_series(n, delta.columns[n], t) for n, t in self._needed.items()] or [pl.Series(POS, delta.pos)]
        frame = evaluate(pl.DataFrame(rows), self._failed)
        return [frame[name].to_numpy() for name in self._names]


def named(name: str | None, kind: str, *arguments: object) -> str:
    if name is not None:
        return name
    made = f"{kind}({', '.join(map(str, arguments))})"
    return made if len(made) <= 100 else f"{made[:95]} ...)"


def column_named(name: object, kind: str) -> str:
    if not isinstance(name, str) or not name:
        raise DefinitionError(f"{kind}: the column is {name!r}; expected its name")
    return name


def not_null(*names: str, severity: Severity = "warn", name: str | None = None) -> Expectation:
    """In none of these columns a row is null (a float nan is null). SQL: `a IS NOT NULL AND ...`.

    Raises `DefinitionError` when no column is named, or one twice.
    """
    found = as_names(names, "not_null: the columns")
    made = reduce(and_, (pl.col(n).is_not_null() for n in found))
    return Expectation(named(name, "not_null", *found), severity, made)


def between(
    column: str, low: Any = None, high: Any = None, *, severity: Severity = "warn", name: str | None = None
) -> Expectation:
    """A number or a time lies between two bounds, both included; None for no bound. SQL: `a BETWEEN low AND high`.

    Bounds of a time are datetimes with a time zone. Raises `DefinitionError` for other bounds, and for none.
    """
    made, types = pl.col(column_named(column, "between")), tuple[pl.DataType, ...]()
    terms = []
    for bound, above in ((low, True), (high, False)):
        if bound is None:
            continue
        value, fits = _bound(column, bound)
        if types and fits != types:
            raise DefinitionError(f"between: the bounds of {column!r} are {low!r} and {high!r}; expected one kind")
        types = fits
        terms.append(made >= value if above else made <= value)
    if not terms:
        raise DefinitionError(f"between: {column!r} has no bound; expected the lowest, the highest or both")
    if len(terms) == 2 and low > high:
        raise DefinitionError(f"between: the bounds of {column!r} are {low!r} and {high!r}; expected the lower first")
    return Expectation(named(name, "between", column, low, high), severity, reduce(and_, terms), types)


def _bound(column: str, value: Any) -> tuple[pl.Expr, tuple[pl.DataType, ...]]:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, datetime) and value.tzinfo is not None:
        return pl.lit(value.astimezone(timezone.utc)).cast(TIME), (TIME,)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value):
        return pl.lit(value), (INT, FLOAT)
    raise DefinitionError(
        f"between: a bound of {column!r} is {value!r}; expected a number, or a datetime with a time zone"
    )


def one_of(column: str, values: Sequence[Any], *, severity: Severity = "warn", name: str | None = None) -> Expectation:
    """A text, integer or Boolean is one of these values. SQL: `a IN (...)`.

    Raises `DefinitionError` when there is no value, or they are of several types or another one.
    """
    kinds = {str: STRING, int: INT, bool: BOOL}
    found = [] if isinstance(values, str) else list(values)
    types = {type(v) for v in found}
    if len(types) != 1 or not types <= kinds.keys():
        raise DefinitionError(
            f"one_of: the values of {column!r} are {values!r}; expected some, all texts, integers or Booleans"
        )
    dtype = kinds[types.pop()]
    made = pl.col(column_named(column, "one_of")).is_in(found)
    return Expectation(named(name, "one_of", column, *found), severity, made, (dtype,))


def matches(column: str, pattern: str, *, severity: Severity = "warn", name: str | None = None) -> Expectation:
    """The whole of a text matches a regular expression (of Rust's `regex`, as Polars has it). SQL: `SIMILAR TO`.

    Raises `DefinitionError` when it is none.
    """
    whole = rf"\A(?:{pattern})\z"
    try:
        for made in (pattern, whole):
            pl.select(pl.lit("").str.contains(made))
    except (pl.exceptions.PolarsError, TypeError) as error:
        why = next((s for line in str(error).splitlines() if (s := line.strip()).startswith("error: ")), str(error))
        raise DefinitionError(
            f"matches: the pattern of {column!r} is {pattern!r}; expected a regular expression ({why})"
        ) from None
    condition = pl.col(column_named(column, "matches")).str.contains(whole)
    return Expectation(named(name, "matches", column, pattern), severity, condition, (STRING,))


def fresh(
    column: str, *, at: str, within: str | timedelta, severity: Severity = "warn", name: str | None = None
) -> Expectation:
    """A time is at most so long before another of the row: what was joined was not too old. SQL: `at - a <= within`.

    Raises `DefinitionError` for other than names of columns and a duration.
    """
    limit = timedelta(microseconds=microseconds(within, "fresh: within"))
    met = pl.col(column_named(at, "fresh")) - pl.col(column_named(column, "fresh")) <= limit
    return Expectation(named(name, "fresh", column, within), severity, met, (TIME,))


def check(name: str, condition: pl.Expr, *, severity: Severity = "warn") -> Expectation:
    """A row-wise Polars expression is true, or null. SQL: `CHECK (condition)`.

    Raises `DefinitionError` when it is no expression and, once the columns are known, when it is not Boolean, names
    unknown columns or looks across rows.
    """
    if not isinstance(condition, pl.Expr):
        raise DefinitionError(
            f"check {name!r}: the condition is {condition!r}; expected a Polars expression such as pl.col('n') > 0"
        )
    return Expectation(name, severity, condition)
