"""What is expected, as it is declared: what it adds to the graph, what is refused, what a replay does with it."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from river import linear_model

import operators as op
from engine import DefinitionError, Pipeline, deferred
from engine.expect import ExpectationError, place
from engine.graph import Source
from engine.merge import OFFSET_BITS, PARTITION_BITS
from engine.plan import lags
from engine.show import graph_of
from operators.expectation import Expectation, Severity
from operators.operator import DefinitionError as Error

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
SCHEMA = {"id": int, "at": pl.Datetime, "key": str, "x": float}


def source(p: Pipeline, *expect: Expectation, **given: Any) -> Source:
    return p.source("s", key="id", at="at", lateness="1h", schema=SCHEMA, expect=expect, **given)


def frame(*rows: tuple[int, float | None]) -> dict[str, pl.DataFrame]:
    """Rows (id, x), a second after each other."""
    at = [START + timedelta(seconds=i) for i in range(len(rows))]
    return {
        "s": pl.DataFrame(
            {"id": [r[0] for r in rows], "at": at, "key": ["a"] * len(rows), "x": [r[1] for r in rows]},
            schema=dict(Pipeline("f").source("s", key="id", at="at", schema=SCHEMA).columns),
        )
    }


def few(severity: Severity = "quarantine") -> Expectation:
    return op.between("x", 0, 1, severity=severity)


def test_a_keyed_source_lets_a_corrected_row_in_and_out() -> None:
    p = Pipeline("p")
    s = source(p, few(), append_only=False)
    p.view("v", s, op.project("id", "x"))
    p.view("aside", p.quarantine(s), op.project("id", "reason"))
    steps = [((1, 0.5),), ((2, 7.0),), ((1, 3.0),), ((2, None),), ((3, 1.0),)]
    rows = [r for step in steps for r in step]
    for n, (v, aside) in enumerate([([1], []), ([1], [2]), ([], [2, 1]), ([2], [1]), ([2, 3], [1])], 1):
        for batch_rows in (1, 100):
            got = p.replay(frame(*rows[:n]), batch_rows)
            assert got["v"]["id"].to_list() == v
            assert got["aside"]["id"].to_list() == got["s.quarantine"]["id"].to_list() == aside
    assert got["aside"]["reason"].to_list() == ["between(x, 0, 1)"]


def test_everything_that_reads_a_source_reads_what_it_lets_in() -> None:
    p = Pipeline("p")
    s = source(p, few())
    other = p.source("other", key="id", at="at", schema={"id": int, "at": pl.Datetime, "key": str})
    joined = p.view(
        "joined",
        other,
        op.join_asof(s, on="key", columns=["x"]),
        op.join_label(s, on="id", columns={"y": "x"}, wait="1d"),
    )
    p.model("m", joined, answers=s, label="x", features=["y"], learner=linear_model.LinearRegression())
    reads = {i for n in p.declared.values() if n.view == "joined" for i in n.inputs}
    assert reads == {"other", "joined.1", "s.meets"}
    assert p.models["m"].answers == "s.meets"


def test_what_state_belongs_to() -> None:
    def definition(*expect: Expectation, view: Expectation | None = None) -> dict[str, str]:
        p = Pipeline("p")
        p.view("v", source(p, *expect), op.project("id", "x"), expect=[] if view is None else [view])
        return p.definition()

    none = definition()
    assert definition(few("warn")) == definition(few("stop"), op.not_null("x")) == none
    assert definition(view=few("warn")) == definition(view=few("stop")) == none
    assert definition(few()).keys() - none.keys() == {
        "step s.meets (where)",
        "step s.fails (where)",
        "step s.quarantine (project)",
    }
    assert definition(view=few()) != definition(view=op.between("x", 0, 2, severity="quarantine"))


def test_a_deferred_view_takes_its_quarantine_along() -> None:
    p = Pipeline("p")
    s = source(p)
    v = p.view("v", s, op.project("id", "x"), refresh=deferred(target_lag="5m"), expect=[few()])
    above = p.view("w", p.quarantine(v), op.project("id"))
    with pytest.raises(DefinitionError, match=r"no view or model 'v\.quarantine' in pipeline 'p'\. Known: v, w"):
        p.refresh("v.quarantine", deferred(every="1h"))
    p.refresh("w", deferred(target_lag="1m"))
    with pytest.raises(
        DefinitionError, match="'w': its target_lag is 1m, but it stands on view 'v', which may be further"
    ):
        lags(p)
    p.refresh("w", deferred(target_lag="10m"))
    assert lags(p) == {"v": 300_000_000, "w": 600_000_000}
    assert above.key == ("id",)


WRONG: list[tuple[Callable[[Pipeline], object], str]] = [
    (lambda p: p.quarantine(source(p)), "'s' has no quarantine: none of its expectations has severity='quarantine'"),
    (lambda p: p.quarantine(source(p, few("stop"))), "'s' has no quarantine"),
    (lambda p: source(p, op.not_null("y")), "source 's': expect: not_null(y): no column 'y'"),
    (lambda p: p.table("t", key="k", schema={"k": str}, expect=op.not_null("k")), "table 't': expect is Expectation"),  # type: ignore[arg-type]
    (
        lambda p: p.view("v", source(p), op.project("id"), expect=[op.not_null("x")]),
        "view 'v': expect: not_null(x): no column 'x'. Known columns: id",
    ),
    (
        lambda p: p.view(
            "v",
            source(p),
            op.join(
                p.table(
                    "t", key="key", schema={"key": str, "y": int}, expect=[op.between("y", 0, severity="quarantine")]
                ),
                on="key",
            ),
        ),
        "view 'v', step 1 (join): table 't' has a quarantine, but a join finds versions of rows, not rows; expect it",
    ),
    (
        lambda p: p.model(
            "m",
            p.view("v", s := source(p), op.project("id", "x")),
            answers=s,
            label="x",
            learner=linear_model.LinearRegression(),
            expect=[op.between("prediction", 0, 1, severity="quarantine")],
        ),
        "predictions of model 'm': between(prediction, 0, 1) has severity='quarantine', but what was served is a fact",
    ),
    (
        lambda p: p.model(
            "m",
            p.view("v", s := source(p), op.project("id", "x")),
            answers=s,
            label="x",
            learner=linear_model.LinearRegression(),
            expect=[op.unique("id")],
        ),
        "predictions of model 'm': unique(id) compares rows, which cannot be expected of what comes when all steps",
    ),
    (
        lambda p: source(p, few("warn"), release=op.release(approved(p), within="1d")),
        "source 's': release is given, but no expectation has severity='quarantine'; leave it out",
    ),
    (
        lambda p: source(p, few(), release=approved(p)),
        "source 's': release is Source(name='ok'",
    ),
    (
        lambda p: source(p, few(), release=op.release(approved(Pipeline("q")), within="1d")),
        "source 's': release: 'ok' belongs to another pipeline",
    ),
    (
        lambda p: source(p, few(), release=op.release(approved(p), on="number", within="1d")),
        "source 's': release by 'ok': join_label: right_on: no column 'number'. Known columns: id, at",
    ),
    (
        lambda p: p.view("v", source(p), op.project("x"), expect=[few()], release=op.release(approved(p), within="1d")),
        "view 'v': release is given, but its rows have no key any more by which to approve one",
    ),
    (lambda p: op.release(approved(p), within="soon"), "release: within is 'soon': expected a timedelta or text"),
    (lambda p: op.release("ok", within="1d"), "release: what approves is 'ok'; expected a source or a view"),  # type: ignore[arg-type]
]


def approved(p: Pipeline) -> Source:
    return p.source("ok", key="id", at="at", schema={"id": int, "at": pl.Datetime}, append_only=False)


def test_a_row_that_is_approved_is_let_in_until_that_is_taken_back() -> None:
    p = Pipeline("p")
    s = source(p, few(), release=op.release(approved(p), within="1m"))
    p.view("v", s, op.project("id", "x"))
    rows = frame((1, 0.5), (2, 7.0), (3, 9.0))
    seconds = {3: [(2, 50)], 4: [(2, 50), (3, 63)], 5: [(2, 50), (2, None)], 6: [(2, 70)]}
    for n, (let_in, aside) in {3: ([1, 2], [3]), 4: ([1, 2], [3]), 5: ([1], [2, 3]), 6: ([1], [2, 3])}.items():
        at = [START + timedelta(seconds=t if t is not None else 55) for _, t in seconds[n]]
        given = {"id": [i for i, _ in seconds[n]], "at": at, "deleted": [t is None for _, t in seconds[n]]}
        got = p.replay({**rows, "ok": pl.DataFrame(given)})
        assert sorted(got["v"]["id"]) == let_in
        assert sorted(got["s.quarantine"]["id"]) == aside
        assert set(got["s.quarantine"]["reason"]) == {"between(x, 0, 1)"}


@pytest.mark.parametrize(("wrong", "text"), WRONG, ids=[w[1][:50] for w in WRONG])
def test_a_mistake_is_refused_with_a_text(wrong: Callable[[Pipeline], object], text: str) -> None:
    with pytest.raises(Error) as error:
        wrong(Pipeline("p"))
    assert text in str(error.value)


def test_a_replay_stops_at_a_row_and_at_a_prediction() -> None:
    p = Pipeline("p")
    s = source(p, few("stop"))
    v = p.view("v", s, op.project("id", "x"))
    assert p.replay(frame((1, 0.5), (2, None)))["v"].height == 2
    with pytest.raises(
        ExpectationError, match=r"source 's': a row does not meet between\(x, 0, 1\), and .* position 1;"
    ):
        p.replay(frame((1, 0.5), (2, 7.0), (3, 8.0)))
    never = op.check("never", pl.col("prediction") != 0, severity="stop")
    p.model("m", v, answers=s, label="x", learner=linear_model.LinearRegression(), features=["x"], expect=[never])
    with pytest.raises(ExpectationError, match="predictions of model 'm': a row does not meet never"):
        p.replay(frame((1, 0.5)))


def test_a_row_that_is_taken_back_stops_nothing() -> None:
    p = Pipeline("p")
    s = source(p, append_only=False)
    p.view("v", s, op.aggregate(by="key", n=op.count()), expect=[op.between("n", 1, 2, severity="stop")])
    assert p.replay(frame((1, 0.0), (2, 0.0), (1, 0.0)), 1)["v"]["n"].to_list() == [2]
    with pytest.raises(ExpectationError):
        p.replay(frame((1, 0.0), (2, 0.0), (3, 0.0)), 1)


def test_where_a_row_came_from() -> None:
    p = Pipeline("p")
    source(p)
    p.table("t", key="k", schema={"k": str})
    pos = (((1 << PARTITION_BITS) + 7) << OFFSET_BITS) + 123_456_789_012
    assert place(p, pos) == "source 't', partition 7, position 123456789012"


def test_what_is_expected_is_shown() -> None:
    p = Pipeline("p")
    s = source(p, few(), op.not_null("key"))
    v = p.view(
        "v",
        s,
        op.where(pl.col("x") > 0),
        op.project("id", "x"),
        expect=[op.check("odd", pl.col("id") > 1, severity="quarantine")],
    )
    learner, expect = linear_model.LinearRegression(), [op.between("prediction", high=9, severity="stop")]
    p.model("m", v, answers=s, label="x", features=["x"], learner=learner, expect=expect)
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(graph_of(p))
    lines = [line.strip("│├└─ ") for line in console.export_text().splitlines()]
    for line in (
        "expects between(x, 0, 1): quarantine",
        "expects not_null(key): warn",
        "s.quarantine: key id, what s does not let in",
        "v.quarantine: key id, what v does not let in",
        "expects between(prediction, None, 9): stop",
    ):
        assert lines.count(line) == 1, line
    i = lines.index("v: key id, refresh immediate()")
    assert lines[i + 1 : i + 4] == ["where <- s.meets", "project <- v.1", "id int64, x float64"]


def test_a_repeated_row_is_let_in_when_the_first_goes() -> None:
    p = Pipeline("p")
    s, tenths = source(p, append_only=False), (pl.col("x") * 10).cast(pl.Int64)
    one = op.unique("tenths", severity="quarantine", name="one")
    p.view("v", s, op.project("id", tenths=tenths), expect=[one])
    rows = [(1, 0.5), (2, 0.5), (3, 0.7), (1, 0.6), (3, 0.6)]
    for n, (v, aside) in enumerate([([1], []), ([1], [2]), ([1, 3], [2]), ([2, 3, 1], []), ([2, 1], [3])], 1):
        for batch_rows in (1, 100):
            got = p.replay(frame(*rows[:n]), batch_rows)
            assert got["v"]["id"].to_list() == v
            assert got["v.quarantine"].select("id", "reason").rows() == [(i, "one") for i in aside]


def test_rows_are_put_aside_for_what_they_are_and_for_those_before_them() -> None:
    p = Pipeline("p")
    s = source(p, few(), op.unique("key", within="1s", severity="quarantine"), append_only=False)
    p.view("v", s, op.project("id"))
    rows = [(1, 0.5), (2, 7.0), (3, 0.5), (1, None)]
    one, both = "unique(key)", "between(x, 0, 1); unique(key)"
    for n, (v, aside) in enumerate(
        [([1], []), ([1], [(2, both)]), ([1], [(2, both), (3, one)]), ([], [(2, few().name), (3, one), (1, one)])], 1
    ):
        for batch_rows in (1, 100):
            got = p.replay(frame(*rows[:n]), batch_rows)
            assert got["v"]["id"].to_list() == v
            assert got["s.quarantine"].columns == ["id", "at", "key", "x", "reason"]
            assert got["s.quarantine"].select("id", "reason").rows() == aside


def test_a_repeated_row_stops_a_run() -> None:
    p = Pipeline("p")
    p.view("v", source(p), op.project("id", "x"), expect=[op.unique("id", severity="stop"), few("warn")])
    assert p.replay(frame((1, 0.5), (2, 7.0)))["v"].height == 2
    with pytest.raises(ExpectationError, match=r"view 'v': a row does not meet unique\(id\), and .* position 2;"):
        p.replay(frame((1, 0.5), (2, 0.5), (1, 0.5)))
