"""`where` and `project`: row by row, what they refuse, and what they do not emit."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import numpy as np
import polars as pl
import pytest

from operators import project, union, where
from operators.delta import BOOL, FLOAT, INT, STRING, TIME, Delta, Schema, empty, to_column
from operators.operator import DefinitionError, Named, Operator

SCHEMA: Schema = {"name": STRING, "n": INT, "x": FLOAT, "yes": BOOL, "when": TIME}
NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)


def delta(*rows: tuple[int, int, tuple[Any, ...]], seq: list[int] | None = None) -> Delta:
    """Rows as (weight, at, (n, x)); seq 1 unless given."""
    n = len(rows)
    cells = {"name": ["a"] * n, "n": [r[2][0] for r in rows], "x": [r[2][1] for r in rows]}
    cells |= {"yes": [True] * n, "when": [NOON] * n}
    weight, at = (np.array([r[i] for r in rows], np.int64) for i in (0, 1))
    columns = {c: to_column(v, SCHEMA[c]) for c, v in cells.items()}
    return Delta(columns, weight, at, at + 100, np.array(seq or [1] * n, np.int64))


def apply(operator: Operator, change: Delta) -> list[tuple[Any, ...]]:
    """What comes out, as (seq, weight, at, pos, *columns)."""
    out = operator.start([SCHEMA]).apply([change])
    assert list(out.columns) == list(operator.schema([SCHEMA]))
    cells = [out.columns[c].tolist() for c in out.columns]
    return list(zip(out.seq.tolist(), out.weight.tolist(), out.at.tolist(), out.pos.tolist(), *cells, strict=True))


def test_where_keeps_what_is_true() -> None:
    change = delta((1, 5, (1, 0.0)), (1, 6, (3, 0.0)), (-1, 7, (4, 0.0)), (1, 8, (None, 0.0)))
    found = apply(where(pl.col("n") > 2), change)
    assert [r[:4] for r in found] == [(1, 1, 6, 106), (1, -1, 7, 107)]


def test_where_does_not_keep_what_is_unknown() -> None:
    change = delta((1, 5, (None, 0.0)), (1, 6, (1, float("nan"))))
    assert apply(where(pl.col("n") == 1), change)[0][2] == 6
    assert apply(where(pl.col("n") != 1), change) == []
    assert [r[2] for r in apply(where(pl.col("x") >= 0), change)] == [5]


def test_where_that_keeps_all_copies_nothing() -> None:
    change = delta((1, 5, (1, 0.0)))
    assert where(pl.col("n") == 1).start([SCHEMA]).apply([change]) is change


def test_project_keeps_adds_and_replaces() -> None:
    change = delta((1, 5, (3, 0.5)))
    assert list(project("x", "name").schema([SCHEMA])) == ["x", "name"]
    assert list(project(m=pl.col("n")).schema([SCHEMA])) == [*SCHEMA, "m"]
    assert apply(project("n", m=pl.col("n") + 1), change) == [(1, 1, 5, 105, 3, 4)]
    swapped = project("n", "x", n=pl.col("n") * 10, m=pl.col("n") + pl.col("x"))
    assert apply(swapped, change) == [(1, 1, 5, 105, 30, 0.5, 3.5)]


def test_project_gives_the_types_of_a_column() -> None:
    made = project(
        hour=pl.col("when").dt.hour(),
        small=pl.col("x").cast(pl.Float32),
        text=pl.lit("t"),
        later=pl.col("when").dt.offset_by("1h"),
        both=pl.col("n") > 0,
    )
    types = [made.schema([SCHEMA])[c] for c in ("hour", "small", "text", "later", "both")]
    assert types == [INT, FLOAT, STRING, TIME, BOOL]
    row = apply(made, delta((1, 5, (3, 0.5))))[0][-5:]
    hour = 3_600_000_000
    assert row == (12, 0.5, "t", NOON.timestamp() * 10**6 + hour, 1)


def test_project_takes_nan_for_null() -> None:
    change = delta((1, 5, (0, 0.0)))
    made = project("n", ratio=pl.col("x") / pl.col("x"))
    assert np.isnan(apply(made, change)[0][-1])
    frame = change.frame(SCHEMA).with_columns(_at=pl.lit(5), _pos=pl.lit(105)).lazy()
    assert made.recompute([frame]).collect()["ratio"].to_list() == [None]


def test_a_correction_that_is_projected_away_is_not_emitted() -> None:
    change = delta((-1, 5, (1, 0.0)), (1, 5, (1, 9.0)), (-1, 6, (1, 0.0)), (1, 6, (2, 0.0)), (1, 7, (1, 0.0)))
    assert [r[1:3] for r in apply(project("n"), change)] == [(-1, 6), (1, 6), (1, 7)]
    assert len(apply(project("n", "x"), change)) == 5
    assert len(apply(project(far=pl.col("x") > 1), change)) == 5
    assert [r[1:3] for r in apply(project("name", "x", far=pl.col("n") > 5), change)] == [(-1, 5), (1, 5), (1, 7)]


def test_what_was_served_is_emitted_although_it_is_taken_back_later() -> None:
    served = delta((1, 5, (1, 0.0)), (-1, 5, (1, 0.0)), seq=[1, 2])
    assert [r[:2] for r in apply(project("n"), served)] == [(1, 1), (2, -1)]


def test_a_row_that_moved_is_emitted() -> None:
    assert len(apply(project("n"), delta((-1, 5, (1, 0.0)), (1, 6, (1, 0.0))))) == 2


def test_nulls_are_the_same_value_when_corrections_cancel() -> None:
    change = delta((-1, 5, (None, None)), (1, 5, (None, None)))
    change.columns["when"] = to_column([NOON, None], TIME)
    assert apply(project("n", "x"), change) == []


def test_no_state_is_kept() -> None:
    for kept in (where(pl.col("yes")).start([SCHEMA]), project("n").start([SCHEMA])):
        kept.apply([delta((1, 5, (1, 0.0)))])
        assert kept.size == (0, 0)
        assert kept.snapshot() is None
        assert len(kept.apply([empty(SCHEMA)])) == 0


def test_the_definition_tells_expressions_apart() -> None:
    assert where(pl.col("n") > 1).definition == where(pl.col("n") > 1).definition
    assert where(pl.col("n") > 1).definition != where(pl.col("n") > 2).definition
    assert project(a=pl.col("n")).definition != project(b=pl.col("n")).definition
    assert project("n").definition != project("x").definition


REFUSED = [
    (
        lambda: where("n > 1"),
        "where: the condition is 'n > 1'; expected a Polars expression such as pl.col('delay') > 10",
    ),
    (lambda: where(pl.col("n") + 1).schema([SCHEMA]), "where: the condition has type Int64; expected Boolean"),
    (lambda: where(pl.col("nam") > 1).schema([SCHEMA]), "where: 'condition': no column 'nam'; did you mean 'name'?"),
    (lambda: where(pl.col("n") > pl.col("n").mean()).schema([SCHEMA]), "looks across rows"),
    (lambda: project(), "project: no columns; expected names to keep or expressions such as hour="),
    (lambda: project(pl.col("n")), "is not a column name; give an expression a name: name=pl.col"),
    (lambda: project("n", "n"), "project: the column 'n' is named twice; name it once"),
    (lambda: project(_n=pl.col("n")), "project: a column is named '_n'; expected a name that does not begin with '_'"),
    (lambda: project(n=5), r"project: n is 5; expected a Polars expression (constant: pl.lit(5))"),
    (lambda: project("nam").schema([SCHEMA]), "project: no column 'nam'; did you mean 'name'?"),
    (lambda: project(m=pl.col("when") - pl.col("when")).schema([SCHEMA]), "a column cannot have type Duration"),
    (lambda: project(m=pl.col("n").shift(1)).schema([SCHEMA]), "looks across rows"),
]


@pytest.mark.parametrize(("made", "text"), REFUSED, ids=[t for _, t in REFUSED])
def test_what_is_refused(made: Any, text: str) -> None:
    with pytest.raises(DefinitionError) as error:
        made()
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            {"n": INT},
            r"union: the column 'x' is missing in 'b' and Float64 in what its rows are added to; expected the",
        ),
        ({"n": INT, "x": INT}, r"union: the column 'x' is Int64 in 'b' and Float64 in"),
        ({"n": INT, "x": FLOAT, "y": INT}, r"union: the column 'y' is Int64 in 'b' and missing in"),
    ],
)
def test_a_union_of_other_columns_is_refused(other: Schema, text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        union(Named("b", other)).start([{"n": INT, "x": FLOAT}, other])


def test_a_union_needs_a_relation() -> None:
    with pytest.raises(DefinitionError, match=r"union: the other relation is 'b'; expected a source or a view"):
        union("b")  # type: ignore[arg-type]
