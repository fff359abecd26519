"""JOIN_LABEL: each question that was answered in time, with its answer; UNANSWERED: all others.

    unanswered(A)(Q) = the rows of Q that have no row in join_label(A)(Q)
    join_label(A)(Q) = for each question q of Q the answer a of A with the same key and the least (at, pos) such that
                       q.at <= a.at <= q.at + wait; no row when there is none

Both bounds are inclusive. The row has the `at` and position of the question, and becomes known when the later of the
two does. Of several answers the first counts, also when it arrives last: then it corrects the row. A null key is
never answered. A question is forgotten when no answer within `wait` can come any more, or the answer it has is before
the horizon; an answer, which may arrive before its question, when the horizon has passed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import polars as pl

from operators.delta import AT, FLOAT, INT, POS, STRING, Schema
from operators.joining import Choice, Joined, Meeting, declared
from operators.operator import Maintained, Named, Operator, Relation, microseconds
from operators.timeline import back


@dataclass(frozen=True, eq=False)
class JoinLabel(Joined):
    """Keeps the questions that have an answer, and adds its columns.

    SQL: `SELECT DISTINCT ON (q.at, q.pos) q.*, a.delay FROM q JOIN a ON q.flight = a.flight
    AND a.at BETWEEN q.at AND q.at + wait ORDER BY a.at, a.pos`

    >>> import numpy as np
    >>> from operators.delta import Delta, empty, to_column
    >>> asked, landed = {"flight": STRING}, {"flight": STRING, "delay": INT}
    >>> def row(seq, weight, at, schema, *cells):
    ...     one = np.array([1])
    ...     columns = {n: to_column([c], t) for (n, t), c in zip(schema.items(), cells)}
    ...     return Delta(columns, one * weight, one * at, one, one * seq)
    >>> kept = join_label(Named("landed", landed), on="flight", wait="1d").start([asked, landed])
    >>> len(kept.apply([row(1, 1, 10, asked, "A1"), empty(landed)]))
    0
    >>> kept.apply([empty(asked), row(2, 1, 70, landed, "A1", 5)]).columns["delay"].tolist()
    [5]
    >>> out = kept.apply([empty(asked), row(3, -1, 70, landed, "A1", 5)])  # the answer is taken back
    >>> list(zip(out.weight.tolist(), out.columns["delay"].tolist(), out.at.tolist()))
    [(-1, 5, 10)]
    """

    rest: ClassVar[bool] = False
    """Whether the other questions are kept instead."""

    wait: int

    @property
    def definition(self) -> dict[str, Any]:
        return {**super().definition, "wait": self.wait}

    def horizon(self, bound: int, inserts: bool = False) -> int:
        return int(back(bound, self.wait))  # a question comes out with its own `at`, when it is answered

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        r_at, at = pl.col("_r_at"), pl.col(AT)
        rows, found = self.pairs(relations, (r_at >= at) & (r_at <= at + self.wait))
        answered = found.unique("_row", keep="first", maintain_order=True)
        return rows.join(answered.drop(AT, "_r_at", "_r_pos"), on="_row").drop("_row")

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return Meeting(self.keys, inputs, self.chosen(inputs), reach=self.wait, forward=True, rest=self.rest)

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        asked: Schema = {"k": STRING, "x": INT}
        answers: Schema = {"k": STRING, "label": FLOAT, "note": STRING}
        other: Schema = {"a": STRING, "b": INT, "label": INT}
        return [
            (join_label(Named("answers", answers), on="k", wait="2h"), [asked, answers]),
            (join_label(Named("answers", answers), on="k", columns={"y": "label"}, wait="3us"), [asked, answers]),
            (join_label(Named("other", other), on=["k", "x"], right_on=["a", "b"], wait="1d"), [asked, other]),
        ]


class Unanswered(JoinLabel):
    """Keeps the questions that have no answer, or none yet.

    SQL: `SELECT * FROM q WHERE NOT EXISTS (SELECT * FROM a WHERE q.flight = a.flight
    AND a.at BETWEEN q.at AND q.at + wait)`
    """

    rest = True

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        answered = super().recompute(relations)
        return relations[0].join(answered, on=[AT, POS], how="anti")

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        return [(cls(o.right, o.on, o.right_on, (), "", o.wait), given) for o, given in JoinLabel.samples()
                if isinstance(o, JoinLabel)]  # fmt: skip


def join_label(
    answers: Relation,
    *,
    on: str | Sequence[str],
    right_on: str | Sequence[str] | None = None,
    columns: Choice = None,
    wait: str | timedelta,
) -> JoinLabel:
    """Keep the questions that were answered within `wait`, and add the columns of the first such answer.

    on: the key columns, right_on: what they are called in the answers. columns: the answers' columns to add, all but
    the key unless given; a dict gives them new names, {new: old}. wait: how long after the question its answer may
    come, such as "1d".

    Raises `DefinitionError` when a column is unknown or a name taken. SQL: an interval join, first match.
    """
    limit = microseconds(wait, "join_label: wait")
    return JoinLabel(*declared(answers, on, right_on, columns, "", "join_label"), limit)


def unanswered(
    answers: Relation,
    *,
    on: str | Sequence[str],
    right_on: str | Sequence[str] | None = None,
    wait: str | timedelta,
) -> Unanswered:
    """Keep the questions that `join_label` with the same arguments leaves out: no answer, or none yet, or too late.

    Raises `DefinitionError` when a column is unknown. SQL: `NOT EXISTS`.
    """
    limit = microseconds(wait, "unanswered: wait")
    return Unanswered(*declared(answers, on, right_on, (), "", "unanswered"), limit)
