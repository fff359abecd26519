"""UNION: the rows of two relations of the same columns as one.

    union(B)(A) = the rows of A and the rows of B, each with its weight, `at` and position

The relations have no row in common: they come from different sources, or are disjoint parts of one, for (at, position)
tells the rows of the result apart. No state is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from operators.delta import BEGINNING, BOOL, FLOAT, INT, STRING, Delta, Schema, concat, in_order
from operators.operator import DefinitionError, Maintained, Named, Operator, Relation


@dataclass(frozen=True, eq=False)
class Union(Operator):
    """Adds the rows of another relation.

    SQL: `SELECT * FROM a UNION ALL SELECT * FROM b`

    >>> import numpy as np
    >>> from operators.delta import to_column
    >>> def rows(weight, seq, *values):
    ...     ones = np.ones(len(values), np.int64)
    ...     return Delta({"n": to_column(values, INT)}, ones * weight, ones, ones * values, np.array(seq))
    >>> kept = union(Named("b", {"n": INT})).start([{"n": INT}, {"n": INT}])
    >>> out = kept.apply([rows(1, [1, 3], 10, 30), rows(-1, [2], 20)])
    >>> out.columns["n"].tolist(), out.weight.tolist()
    ([10, 20, 30], [1, -1, 1])
    """

    other: Relation

    @property
    def others(self) -> tuple[Relation, ...]:
        return (self.other,)

    @property
    def definition(self) -> dict[str, Any]:
        return {"other": self.other.name}

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        mine, given = inputs
        for n in [n for n in {**mine, **given} if mine.get(n) != given.get(n)]:
            here, there = (str(s[n]) if n in s else "missing" for s in inputs)
            raise DefinitionError(
                f"union: the column {n!r} is {there} in {self.other.name!r} and {here} in what its rows are added to; "
                "expected the same columns of the same types: op.project makes them"
            )
        return dict(mine)

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        names = relations[0].collect_schema().names()
        return pl.concat([relations[0], relations[1].select(names)])

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        self.schema(inputs)
        return _Both(list(inputs[0]))

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        a: Schema = {"name": STRING, "n": INT, "yes": BOOL, "x": FLOAT}
        return [(union(Named("b", b)), [a, b]) for b in (a, dict(reversed(a.items())))]


class _Both(Maintained):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        mine, other = deltas
        if not len(other):
            return mine
        return in_order(concat([mine, other.with_columns({n: other.columns[n] for n in self.names})]))


def union(other: Relation) -> Union:
    """Add the rows of a relation of the same columns, in any order of them, that has no row in common with this one.

    Raises `DefinitionError` when it is no relation and, once the columns are known, when it has others. SQL: `UNION
    ALL`.
    """
    if not isinstance(other, Relation):
        raise DefinitionError(f"union: the other relation is {other!r}; expected a source or a view")
    return Union(other)
