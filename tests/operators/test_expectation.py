"""Expectations: what a row must be, what null and nan are, what is refused; and the two relations that they make."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import polars as pl
import pytest

import operators as op
from operators.delta import BOOL, FLOAT, INT, STRING, TIME, Delta, Schema, to_column
from operators.expectation import REASON, Expectation, Judge, expected, met, reason
from operators.operator import DefinitionError
from tests.laws import laws
from tests.laws.history import generate
from tests.laws.laws import Case, order, relation
from tests.laws.oracle import answer

SCHEMA: Schema = {"name": STRING, "n": INT, "x": FLOAT, "yes": BOOL, "when": TIME}
NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
NAN, INF = float("nan"), float("inf")


def failed(expectation: Expectation, *values: Any) -> list[bool]:
    """For each value of the column that is read whether the row does not meet what is expected."""
    column = expectation.columns[0]
    n = len(values)
    cells = {c: to_column(values if c == column else [None] * n, t) for c, t in SCHEMA.items()}
    one = np.ones(n, np.int64)
    assert expected([expectation], SCHEMA, "view 'v'") == (expectation,)
    (found,) = Judge([expectation], SCHEMA)(Delta(cells, one, one, np.arange(n), one))
    assert found.dtype == np.bool_
    return found.tolist()


CHECKS: list[tuple[Expectation, str, list[Any], list[Any]]] = [
    (op.not_null("x"), "not_null(x)", [0.0, -0.0, INF], [None, NAN]),
    (op.not_null("name"), "not_null(name)", ["", "a"], [None]),
    (op.not_null("yes"), "not_null(yes)", [True, False], [None]),
    (op.not_null("when"), "not_null(when)", [NOON], [None]),
    (op.between("x", 0, 200), "between(x, 0, 200)", [0.0, -0.0, 200.0, None, NAN], [-0.001, 200.001, INF, -INF]),
    (op.between("x", low=0), "between(x, 0, None)", [0.0, 1e300, INF, None], [-1.0, -INF]),
    (op.between("n", high=1.5), "between(n, None, 1.5)", [1, -(2**62), None], [2, 2**62]),
    (op.between("n", np.int64(3), np.int64(3)), "between(n, 3, 3)", [3], [2, 4]),
    (
        op.between("when", NOON, NOON.astimezone(timezone(timedelta(hours=2))), name="noon"),
        "noon",
        [NOON, None],
        [NOON - timedelta(microseconds=1), NOON + timedelta(microseconds=1)],
    ),
    (op.one_of("name", ["a", "b"]), "one_of(name, a, b)", ["a", "b", None], ["", "A", "ab"]),
    (op.one_of("n", [1, 3]), "one_of(n, 1, 3)", [1, 3, None], [2, -1]),
    (op.one_of("yes", [True]), "one_of(yes, True)", [True, None], [False]),
    (op.matches("name", "a|bc+"), "matches(name, a|bc+)", ["a", "bcc", None], ["", "ab", "xa", "a\n", "bcx"]),
    (op.matches("name", "(?i)n[0-9]{2}"), "matches(name, (?i)n[0-9]{2})", ["N12", "n00"], ["n1", "n123"]),
    (op.check("odd", pl.col("n") % 2 == 1), "odd", [1, 3, None], [0, 2]),
]


def test_what_was_joined_is_not_too_old() -> None:
    schema: Schema = {"seen": TIME, "when": TIME}
    ages = [timedelta(0), timedelta(hours=1), timedelta(hours=1, microseconds=1), timedelta(days=-9), None]
    columns = {"seen": to_column([None if a is None else NOON - a for a in ages], TIME)}
    columns["when"] = to_column([NOON] * len(ages), TIME)
    one = np.ones(len(ages), np.int64)
    given = op.fresh("seen", at="when", within="1h")
    assert (given.name, expected([given], schema, "v")) == ("fresh(seen, 1h)", (given,))
    (found,) = Judge([given], schema)(Delta(columns, one, one, one, one))
    assert found.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(("expectation", "name", "good", "bad"), CHECKS, ids=[c[1] for c in CHECKS])
def test_each_check(expectation: Expectation, name: str, good: list[Any], bad: list[Any]) -> None:
    assert expectation.name == name
    assert expectation.severity == "warn"
    assert failed(expectation, *good, *bad) == [False] * len(good) + [True] * len(bad)
    assert failed(expectation) == []
    for value, wrong in [(good[0], False), (bad[0], True)]:
        assert failed(expectation, value) == [wrong], "alone as among others"


def test_several_columns_and_none() -> None:
    cells = {"n": to_column([1, None, 1, None], INT), "x": to_column([1.0, 1.0, NAN, None], FLOAT)}
    one = np.ones(4, np.int64)
    asked = [op.not_null("n", "x"), op.check("never", pl.lit(False))]
    expected(asked, {"n": INT, "x": FLOAT}, "v")
    found = Judge(asked, {"n": INT, "x": FLOAT})(Delta(cells, one, one, one, one))
    assert [f.tolist() for f in found] == [[False, True, True, True], [True] * 4]


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: op.not_null(), "not_null: the columns is (): expected one column name or several different ones"),
    (lambda: op.not_null("a", "a"), "expected one column name or several different ones"),
    (lambda: op.between("x"), "between: 'x' has no bound; expected the lowest, the highest or both"),
    (lambda: op.between("x", 2, 1), "the bounds of 'x' are 2 and 1; expected the lower first"),
    (lambda: op.between("x", NAN, 1), "a bound of 'x' is nan; expected a number, or a datetime with a time zone"),
    (lambda: op.between("x", True), "a bound of 'x' is True; expected a number"),
    (lambda: op.between("x", datetime(2024, 1, 1)), "expected a number, or a datetime with a time zone"),
    (lambda: op.between("x", 1, NOON), "the bounds of 'x' are 1 and datetime"),
    (lambda: op.between(3, 1), "between: the column is 3; expected its name"),  # type: ignore[arg-type]
    (lambda: op.one_of("n", []), "the values of 'n' are []; expected some, all texts, integers or Booleans"),
    (lambda: op.one_of("n", "ab"), "the values of 'n' are 'ab'; expected some"),
    (lambda: op.one_of("n", [1, "a"]), "expected some, all texts, integers or Booleans"),
    (lambda: op.one_of("n", [1.5]), "expected some, all texts, integers or Booleans"),
    (lambda: op.matches("name", "a("), "the pattern of 'name' is 'a('; expected a regular expression (error: unclosed"),
    (lambda: op.matches("name", "a)|(b"), "expected a regular expression (error: unopened group"),
    (lambda: op.check("c", True), "check 'c': the condition is True; expected a Polars expression"),  # type: ignore[arg-type]
    (lambda: op.check("", pl.col("n") > 0), "an expectation has the name '': expected 1 to 100 printable characters"),
    (lambda: op.check("a\nb", pl.col("n") > 0), "expected 1 to 100 printable characters"),
    (lambda: op.not_null("n", severity="drop"), "not_null(n): its severity is 'drop'; expected 'warn', 'quarantine'"),  # type: ignore[arg-type]
    (lambda: expected(op.not_null("n"), SCHEMA, "v"), "v: expect is Expectation"),
    (lambda: expected([pl.col("n")], SCHEMA, "v"), "v: expect contains <Expr"),
    (lambda: expected([op.not_null("m")], SCHEMA, "v"), "v: expect: not_null(m): no column 'm'"),
    (lambda: expected([op.between("name", 0, 1)], SCHEMA, "v"), "'name' has type String; expected Int64 or Float64"),
    (lambda: expected([op.between("n", NOON)], SCHEMA, "v"), "'n' has type Int64; expected Datetime"),
    (lambda: expected([op.one_of("n", ["a"])], SCHEMA, "v"), "'n' has type Int64; expected String"),
    (lambda: expected([op.matches("n", "a")], SCHEMA, "v"), "'n' has type Int64; expected String"),
    (lambda: expected([op.fresh("when", at="n", within="1h")], SCHEMA, "v"), "'n' has type Int64; expected Datetime"),
    (lambda: op.fresh("when", at="seen", within="soon"), "fresh: within is 'soon': expected a timedelta or text"),
    (lambda: expected([op.check("c", pl.col("n") + 1)], SCHEMA, "v"), "c: it has type Int64; expected Boolean"),
    (lambda: expected([op.check("c", pl.col("n").shift() > 0)], SCHEMA, "v"), "looks across rows"),
    (lambda: expected([op.check("c", pl.col("n") > pl.col("n").mean())], SCHEMA, "v"), "looks across rows"),
    (
        lambda: expected([op.not_null("n"), op.check("not_null(n)", pl.col("n") > 0)], SCHEMA, "v"),
        "v: two expectations are called 'not_null(n)'; give one another name=",
    ),
    (lambda: op.unique(), "unique: the columns is (): expected one column name or several different ones"),
    (lambda: op.unique("n", within="soon"), "unique: within is 'soon': expected a timedelta or text"),
    (lambda: expected([op.unique("x")], SCHEMA, "v"), "unique(x): window by: 'x' has type Float64; expected Int64"),
    (
        lambda: expected([op.not_null("n", severity="quarantine")], {**SCHEMA, "reason": STRING}, "v"),
        "v: expect with severity='quarantine': the column 'reason' is there already",
    ),
]


@pytest.mark.parametrize(("wrong", "text"), WRONG, ids=[w[1][:60] for w in WRONG])
def test_a_mistake_is_refused_with_a_text(wrong: Callable[[], object], text: str) -> None:
    with pytest.raises(DefinitionError) as error:
        wrong()
    assert text in str(error.value)


def test_a_long_name_is_cut() -> None:
    assert len(op.one_of("n", list(range(100))).name) == 100


def test_what_it_is_does_not_depend_on_its_severity() -> None:
    assert op.between("x", 0, 1).definition == op.between("x", 0, 1, severity="stop").definition
    assert op.between("x", 0, 1).definition != op.between("x", 0, 2, name="between(x, 0, 1)").definition


GIVEN: Schema = {"name": STRING, "n": INT, "x": FLOAT, "yes": BOOL}
ASKED = [op.not_null("name"), op.between("n", 0, 2), op.between("x", -1, 1.5), op.one_of("name", ["a"])]
SQL = ["name IS NULL", "n NOT BETWEEN 0 AND 2", "x NOT BETWEEN -1 AND 1.5", "name NOT IN ('a')"]
FAILS = " OR ".join(f"coalesce({s}, false)" for s in SQL)
TOLD = (
    "concat_ws('; ', " + ", ".join(f"CASE WHEN {s} THEN '{e.name}' END" for e, s in zip(ASKED, SQL, strict=True)) + ")"
)
PARTS = [
    (op.where(met(ASKED)), f"SELECT * FROM r0 WHERE NOT ({FAILS})"),
    (op.where(~met(ASKED)), f"SELECT * FROM r0 WHERE {FAILS}"),
    (op.project(**{REASON: reason(ASKED)}), f"SELECT name, n, x, yes, {TOLD} AS reason, _at, _pos FROM r0"),
]
LAWS = [
    laws.cuts_do_not_show,
    laws.undone,
    laws.restart_does_not_show,
    laws.arrival_does_not_show,
    laws.refreshes_do_not_show,
    laws.horizon_does_not_show,
]


@pytest.mark.parametrize("part", range(len(PARTS)), ids=["meets", "fails", "reason"])
@pytest.mark.parametrize("seed", range(6))
def test_the_two_relations_keep_the_laws_and_are_what_sql_gives(part: int, seed: int) -> None:
    operator, sql = PARTS[part]
    case, rng = Case(operator, [GIVEN]), np.random.default_rng(seed)
    history = generate(rng, case.schemas, 400)

    laws.one_definition(case, history, rng, lambda case, inputs: answer(case, inputs, sql))
    for law in LAWS:
        law(case, history, rng)


@pytest.mark.parametrize("seed", range(6))
def test_no_row_is_lost_or_doubled(seed: int) -> None:
    rng = np.random.default_rng(seed)
    history = generate(rng, [GIVEN], 600)
    meets, fails = (laws.run(Case(o, [GIVEN]), history.steps(history.seqs)).accumulated() for o, _ in PARTS[:2])
    assert meets
    assert fails
    assert sorted([*meets, *fails], key=order) == relation(history.relations()[0], GIVEN)
