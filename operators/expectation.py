"""What is expected of each row of a relation: not_null, between, one_of, matches, check; and unique.

All but `unique` are checks: pure functions of a row. A null meets every check but `not_null`, as in SQL's CHECK. What
follows for a row that does not meet what is expected is its severity:

- "warn" (the default): it is counted;
- "quarantine": it is put aside, in a relation beside this one, with the reason. A row that is taken back is taken back
  from where it went, so a correction releases it;
- "stop": the run ends, and nothing of its batch is published.

Every expectation is judged on all rows, also on those that are put aside for another.
"""

from __future__ import annotations

import abc
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
from operators.operator import DefinitionError, as_names, fit_as_key, known, microseconds, new_columns

Severity = Literal["warn", "quarantine", "stop"]

REASON = "reason"
"""The column that says what a row was put aside for: the names of what it does not meet."""


@dataclass(frozen=True, eq=False)
class Expectation(abc.ABC):
    """What is expected of each row, and what follows for one that does not meet it."""

    name: str
    severity: Severity

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 100 or not self.name.isprintable():
            raise DefinitionError(f"an expectation has the name {self.name!r}: expected 1 to 100 printable characters")
        if self.severity not in get_args(Severity):
            raise DefinitionError(
                f"{self.name}: its severity is {self.severity!r}; expected 'warn', 'quarantine' or 'stop'"
            )

    @property
    @abc.abstractmethod
    def definition(self) -> tuple[str, str]:
        """What it is, whatever follows from it: its name and a text that stands for what it computes."""

    @abc.abstractmethod
    def fit(self, schema: Schema) -> None:
        """Raises `DefinitionError` when it cannot be asked of rows with these columns."""


@dataclass(frozen=True, eq=False)
class Check(Expectation):
    """What a row must be by itself. met: true, or null, for one that is. types: those its columns may have."""

    met: pl.Expr
    types: tuple[pl.DataType, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The columns that it reads."""
        return columns(self.met)

    @property
    def definition(self) -> tuple[str, str]:
        return self.name, fingerprint(self.met)

    def fit(self, schema: Schema) -> None:
        known(self.columns, schema, self.name)
        for c in self.columns:
            if self.types and schema[c] not in self.types:
                raise DefinitionError(
                    f"{self.name}: the column {c!r} has type {schema[c]}; expected {' or '.join(map(str, self.types))}"
                )
        try:
            found = checked(self.name, self.met, schema)
        except ExpressionError as error:
            raise DefinitionError(str(error)) from None
        if found != BOOL:
            raise DefinitionError(f"{self.name}: it has type {found}; expected Boolean, such as pl.col('delay') > -60")


@dataclass(frozen=True, eq=False)
class Unique(Expectation):
    """A row must be the first of its key: see `dedupe`, which keeps those that are."""

    by: tuple[str, ...]
    within: int | None

    @property
    def definition(self) -> tuple[str, str]:
        return self.name, f"unique {self.by} {self.within}"

    def fit(self, schema: Schema) -> None:
        fit_as_key(self.by, schema, self.name)


def expected(given: object, schema: Schema, what: str) -> tuple[Expectation, ...]:
    """The expectations that were given for a relation with these columns.

    Raises `DefinitionError` naming `what` when one is none, cannot be asked, or has the name of another.
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
    aside = quarantined(given)
    if len(aside) > 1 and (one := next((e for e in aside if isinstance(e, Unique)), None)):
        raise DefinitionError(
            f"{what}: expect: {one.name} and {next(e.name for e in aside if e is not one)} have severity='quarantine', "
            "but where unique puts rows aside nothing else can; expect the other of the relation that this is made of"
        )
    if aside:
        new_columns(schema, {REASON: STRING}, f"{what}: expect with severity='quarantine'")
    return tuple(given)


def quarantined(expectations: Sequence[Expectation]) -> list[Expectation]:
    """Those for which rows are put aside."""
    return [e for e in expectations if e.severity == "quarantine"]


def checks(expectations: Sequence[Expectation]) -> list[Check]:
    """Those that are pure functions of a row."""
    return [e for e in expectations if isinstance(e, Check)]


def met(expectations: Sequence[Check]) -> pl.Expr:
    """Whether a row meets all of them (at least one); never null."""
    return reduce(and_, (e.met.fill_null(True) for e in expectations))


def reason(expectations: Sequence[Check]) -> pl.Expr:
    """The names of those that a row does not meet, in their order."""
    names = [pl.when(~e.met.fill_null(True)).then(pl.lit(e.name)) for e in expectations]
    return pl.concat_str(names, separator="; ", ignore_nulls=True)


class Judge:
    """Finds the rows of deltas that do not meet these checks."""

    def __init__(self, expectations: Sequence[Check], schema: Schema) -> None:
        self._needed = {c: schema[c] for c in dict.fromkeys(c for e in expectations for c in e.columns)}
        self._names = [f"_{i}" for i in range(len(expectations))]
        self._failed = [(~e.met.fill_null(True)).alias(name) for e, name in zip(expectations, self._names, strict=True)]

    def __call__(self, delta: Delta) -> list[npt.NDArray[np.bool_]]:
        """For each expectation which rows do not meet it."""
        rows = [to_series(n, delta.columns[n], t) for n, t in self._needed.items()] or [pl.Series(POS, delta.pos)]
        frame = evaluate(pl.DataFrame(rows), self._failed)
        return [frame[name].to_numpy() for name in self._names]


def _named(name: str | None, kind: str, *arguments: object) -> str:
    if name is not None:
        return name
    made = f"{kind}({', '.join(map(str, arguments))})"
    return made if len(made) <= 100 else f"{made[:95]} ...)"


def _column(name: object, kind: str) -> str:
    if not isinstance(name, str) or not name:
        raise DefinitionError(f"{kind}: the column is {name!r}; expected its name")
    return name


def not_null(*names: str, severity: Severity = "warn", name: str | None = None) -> Check:
    """In none of these columns a row is null (a float nan is null). SQL: `a IS NOT NULL AND ...`.

    Raises `DefinitionError` when no column is named, or one twice.
    """
    found = as_names(names, "not_null: the columns")
    made = reduce(and_, (pl.col(n).is_not_null() for n in found))
    return Check(_named(name, "not_null", *found), severity, made)


def between(
    column: str, low: Any = None, high: Any = None, *, severity: Severity = "warn", name: str | None = None
) -> Check:
    """A number or a time lies between two bounds, both included; None for no bound. SQL: `a BETWEEN low AND high`.

    Bounds of a time are datetimes with a time zone. Raises `DefinitionError` for other bounds, and for none.
    """
    made, types = pl.col(_column(column, "between")), tuple[pl.DataType, ...]()
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
    return Check(_named(name, "between", column, low, high), severity, reduce(and_, terms), types)


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


def one_of(column: str, values: Sequence[Any], *, severity: Severity = "warn", name: str | None = None) -> Check:
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
    made = pl.col(_column(column, "one_of")).is_in(found)
    return Check(_named(name, "one_of", column, *found), severity, made, (dtype,))


def matches(column: str, pattern: str, *, severity: Severity = "warn", name: str | None = None) -> Check:
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
    condition = pl.col(_column(column, "matches")).str.contains(whole)
    return Check(_named(name, "matches", column, pattern), severity, condition, (STRING,))


def check(name: str, condition: pl.Expr, *, severity: Severity = "warn") -> Check:
    """A row-wise Polars expression is true, or null. SQL: `CHECK (condition)`.

    Raises `DefinitionError` when it is no expression and, once the columns are known, when it is not Boolean, names
    unknown columns or looks across rows.
    """
    if not isinstance(condition, pl.Expr):
        raise DefinitionError(
            f"check {name!r}: the condition is {condition!r}; expected a Polars expression such as pl.col('n') > 0"
        )
    return Check(name, severity, condition)


def unique(
    *names: str, within: str | timedelta | None = None, severity: Severity = "warn", name: str | None = None
) -> Unique:
    """No row before it, in the order of (at, position), has the same values in these columns; null is one, too.

    within: only rows that came at most so long before it count, such as "1h"; values are forgotten after that time.
    Without it they are remembered for ever. Where repeated rows are put aside no other expectation can do that.

    Raises `DefinitionError` when no column is named, or one twice. SQL: `UNIQUE NULLS NOT DISTINCT`.
    """
    found = as_names(names, "unique: the columns")
    limit = None if within is None else microseconds(within, "unique: within")
    return Unique(_named(name, "unique", *found), severity, found, limit)
