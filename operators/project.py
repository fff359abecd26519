"""PROJECT: columns computed from the columns of the same row.

    project(c = e, ...)(R) = the rows of R, each with its weight, `at` and position, with the value of e as column c

Expressions are row-wise Polars expressions over the columns as they come in, so no state is kept. Results have one of
the types a column can have: all integers become Int64, all floats Float64; nan is null. When a correction changed only
columns that are projected away, the old and the new row are equal and nothing is emitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from operators.delta import (
    AT,
    BEGINNING,
    BOOL,
    FLOAT,
    INT,
    POS,
    STRING,
    TIME,
    Delta,
    Schema,
    to_array,
    to_series,
    without_idle,
)
from operators.expression import ExpressionError, check, columns, evaluate, fingerprint
from operators.operator import DefinitionError, Maintained, Operator, known


@dataclass(frozen=True, eq=False)
class Project(Operator):
    """Keeps, adds and replaces columns.

    names: the columns that stay, in this order; empty when all stay. columns: name to expression; each is put in the
    place of the column of that name, or at the end.

    SQL: `SELECT names, expression AS name, ... FROM r`

    >>> import numpy as np
    >>> from operators.delta import to_column
    >>> late = project("flight", late=pl.col("delay") > 10).start([{"flight": STRING, "delay": INT}])
    >>> def change(weight, *delays):
    ...     seen = {"flight": to_column(["UA1"] * len(delays), STRING), "delay": to_column(delays, INT)}
    ...     one = np.ones(len(delays), np.int64)
    ...     out = late.apply([Delta(seen, np.array(weight), one, one, one)])
    ...     return list(zip(out.weight.tolist(), out.columns["late"].tolist()))
    >>> change([1], 15)
    [(1, 1)]
    >>> change([-1, 1], 15, 20)  # corrected, but as late as before
    []
    >>> change([-1, 1], 20, 5)
    [(-1, 1), (1, 0)]
    """

    names: tuple[str, ...]
    columns: Mapping[str, pl.Expr]
    _types: dict[tuple[tuple[str, pl.DataType], ...], Schema] = field(default_factory=dict, init=False, repr=False)

    @property
    def reach(self) -> int | None:
        return 0

    @property
    def definition(self) -> dict[str, Any]:
        return {"names": list(self.names), "columns": {n: fingerprint(e) for n, e in self.columns.items()}}

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        given = inputs[0]
        known(self.names, given, "project")
        if (made := self._types.get(tuple(given.items()))) is None:
            try:
                made = {name: check(name, expression, given) for name, expression in self.columns.items()}
            except ExpressionError as error:
                raise DefinitionError(f"project: {error}") from None
            self._types[tuple(given.items())] = made
        return {**{n: given[n] for n in self.names or given}, **made}

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        given = {n: t for n, t in relations[0].collect_schema().items() if n not in (AT, POS)}
        out = self.schema([given])
        made = _typed(self.columns, out)
        return evaluate(relations[0].collect(), made.values()).lazy().select(*out, AT, POS)

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return _Projected(self.columns, inputs[0], self.schema(inputs))

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        given: Schema = {"name": STRING, "n": INT, "x": FLOAT, "yes": BOOL, "when": TIME}
        return [
            (project("name", twice=pl.col("n") * 2), [given]),
            (
                project(
                    n=pl.col("n").abs(), hour=pl.col("when").dt.hour(), third=pl.col("x") / 3, both=pl.col("n") > 0
                ),
                [given],
            ),
            (project("yes"), [given]),
            (project("n", one=pl.lit(1)), [given]),
            (project("name", n=pl.col("x"), x=pl.col("n"), x_twice=pl.col("x") + pl.col("x")), [given]),
        ]


def _typed(made: Mapping[str, pl.Expr], schema: Schema) -> dict[str, pl.Expr]:
    """The expressions with results of the types of the schema."""
    cast = {n: e.cast(schema[n], strict=False) for n, e in made.items()}
    return {n: (e.fill_nan(None) if schema[n] == FLOAT else e).alias(n) for n, e in cast.items()}


class _Projected(Maintained):
    def __init__(self, made: Mapping[str, pl.Expr], given: Schema, out: Schema) -> None:
        read = {n: columns(e) for n, e in made.items()}
        self.copied = {n: c[0] for n, c in read.items() if len(c) == 1 and made[n].meta.eq(pl.col(c[0]))}
        self.needed = {c: given[c] for c in sorted({c for n in made.keys() - self.copied.keys() for c in read[n]})}
        self.made = _typed({n: e for n, e in made.items() if n not in self.copied}, out)
        self.out = out
        self.drops = bool(set(given) - (set(out) - set(made)))

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        delta = deltas[0]
        found = {**delta.columns, **{n: delta.columns[c] for n, c in self.copied.items()}}
        if self.made:
            rows = [to_series(n, delta.columns[n], t) for n, t in self.needed.items()] or [pl.Series(POS, delta.pos)]
            frame = evaluate(pl.DataFrame(rows), self.made.values())
            found.update((n, to_array(frame[n])) for n in self.made)
        out = delta.with_columns({n: found[n] for n in self.out})
        return without_idle(out) if self.drops else out


def project(*names: str, **columns: pl.Expr) -> Project:
    """Keep the named columns, or all when none is named, and add the given ones; a name that is there is replaced.

    An expression is a row-wise Polars expression over the columns as they come in. An integer that does not fit Int64
    becomes null. Raises `DefinitionError` when nothing is asked for, a name is repeated or begins with `_`, or a value
    is not an expression; and, once the columns are known, for unknown columns, other types and expressions that look
    across rows. SQL: `SELECT names, expression AS name, ...`.
    """
    if not names and not columns:
        raise DefinitionError(
            "project: no columns; expected names to keep or expressions such as hour=pl.col('at').dt.hour()"
        )
    if wrong := [n for n in names if not isinstance(n, str)]:
        raise DefinitionError(
            f"project: {wrong[0]!r} is not a column name; give an expression a name: name=pl.col(...)"
        )
    if repeated := [n for i, n in enumerate(names) if n in names[:i]]:
        raise DefinitionError(f"project: the column {repeated[0]!r} is named twice; name it once")
    for name, expression in columns.items():
        if name.startswith("_"):
            raise DefinitionError(f"project: a column is named {name!r}; expected a name that does not begin with '_'")
        if not isinstance(expression, pl.Expr):
            raise DefinitionError(
                f"project: {name} is {expression!r}; expected a Polars expression (constant: pl.lit({expression!r}))"
            )
    return Project(names, dict(columns))
