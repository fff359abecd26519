"""WHERE: the rows for which a condition is true.

    where(c)(R) = the rows of R for which c is true, each with its weight, `at` and position

As in SQL a row is not kept when the condition is null. The condition is a row-wise Polars expression, so a row is
judged by itself, and no state is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from operators.delta import BEGINNING, BOOL, FLOAT, INT, POS, STRING, Delta, Schema, to_series
from operators.expression import ExpressionError, check, columns, evaluate, fingerprint
from operators.operator import DefinitionError, Maintained, Operator


@dataclass(frozen=True, eq=False)
class Where(Operator):
    """Keeps the rows for which a condition is true.

    SQL: `SELECT * FROM r WHERE condition`

    >>> import numpy as np
    >>> from operators.delta import to_column
    >>> late = where(pl.col("delay") > 10).start([{"delay": INT}])
    >>> one = np.array([0, 1, 1])
    >>> changes = Delta({"delay": to_column([15, 15, 5], INT)}, np.array([1, -1, 1]), one, one, one)
    >>> out = late.apply([changes])  # 15 comes, and is then corrected to 5: nothing is left
    >>> out.columns["delay"].tolist(), out.weight.tolist()
    ([15, 15], [1, -1])
    """

    condition: pl.Expr

    @property
    def reach(self) -> int | None:
        return 0

    @property
    def definition(self) -> dict[str, Any]:
        return {"condition": fingerprint(self.condition)}

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        try:
            found = check("condition", self.condition, inputs[0])
        except ExpressionError as error:
            raise DefinitionError(f"where: {error}") from None
        if found != BOOL:
            raise DefinitionError(
                f"where: the condition has type {found}; expected Boolean, such as pl.col('delay') > 10"
            )
        return dict(inputs[0])

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        kept = evaluate(relations[0].collect(), [self.condition.alias("_kept")])
        return kept.lazy().filter(pl.col("_kept")).drop("_kept")

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return _Kept(self.condition, inputs[0])

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        return [
            (where(pl.col("n") > 1), [{"name": STRING, "n": INT, "yes": BOOL}]),
            (where(pl.col("yes") | (pl.col("name") == "a")), [{"name": STRING, "x": FLOAT, "yes": BOOL}]),
            (where(pl.lit(True)), [{"n": INT}]),
        ]


class _Kept(Maintained):
    def __init__(self, condition: pl.Expr, schema: Schema) -> None:
        self.needed = {n: schema[n] for n in columns(condition)}
        self.condition = condition.alias("_kept")

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        delta = deltas[0]
        rows = [to_series(n, delta.columns[n], t) for n, t in self.needed.items()] or [pl.Series(POS, delta.pos)]
        kept = evaluate(pl.DataFrame(rows), [self.condition])["_kept"].fill_null(False).to_numpy()
        return delta if kept.all() else delta.take(kept)


def where(condition: pl.Expr) -> Where:
    """Keep the rows for which the condition, a row-wise Polars expression, is true; not those for which it is null.

    Raises `DefinitionError` when the condition is not an expression and, once the columns are known, when it is not
    Boolean, names unknown columns or looks across rows. SQL: `WHERE condition`.
    """
    if not isinstance(condition, pl.Expr):
        raise DefinitionError(
            f"where: the condition is {condition!r}; expected a Polars expression such as pl.col('delay') > 10"
        )
    return Where(condition)
