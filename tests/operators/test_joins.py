"""Joins: what the laws do not say. The laws themselves run over `join_asof`, `join` and `join_label` in tests/laws."""

from __future__ import annotations

import pickle
import zlib
from bisect import bisect_left
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.delta import BEGINNING, BOOL, FLOAT, INT, STRING, Delta, Schema, concat, empty, is_null, to_column
from operators.join import join
from operators.join_asof import join_asof
from operators.join_label import join_label, unanswered
from operators.message import UNAVAILABLE
from operators.operator import DefinitionError, Maintained, Named, Operator
from operators.timeline import LEAST, Timelines, cut, first, put, tidy
from tests.laws import laws
from tests.laws.history import Change, decode, generate
from tests.laws.laws import Case

LEFT: Schema = {"k": STRING, "x": INT}
RIGHT: Schema = {"k": STRING, "y": INT}
TABLE: Schema = {"k": STRING, "y": INT, "deleted": BOOL}
right, table = Named("right", RIGHT), Named("table", TABLE)
ASOF = join_asof(right, on="k")

Row = tuple[int, int, tuple[Any, ...]]


def delta(schema: Schema, *rows: tuple[Any, ...], weight: int = 1, seq: int = 1) -> Delta:
    """Rows (at, pos, *values), each with the next `seq`."""
    columns = {n: to_column([r[2 + i] for r in rows], t) for i, (n, t) in enumerate(schema.items())}
    at, pos = (np.array([r[i] for r in rows], np.int64) for i in (0, 1))
    return Delta(columns, np.full(len(rows), weight), at, pos, seq + np.arange(len(rows)))


def lefts(*rows: tuple[Any, ...], weight: int = 1, seq: int = 1) -> list[Delta]:
    return [delta(LEFT, *rows, weight=weight, seq=seq), empty(RIGHT)]


def rights(*rows: tuple[Any, ...], weight: int = 1, seq: int = 1) -> list[Delta]:
    return [empty(LEFT), delta(RIGHT, *rows, weight=weight, seq=seq)]


def out(d: Delta, column: str = "y") -> list[tuple[int, int, Any]]:
    """(weight, at, value) of each row that came out; None for null."""
    missing = is_null(d.columns[column])
    values = [None if m else v for m, v in zip(missing.tolist(), d.columns[column].tolist(), strict=True)]
    return list(zip(d.weight.tolist(), d.at.tolist(), values, strict=True))


def started(operator: Operator, other: Schema = RIGHT) -> Maintained:
    return operator.start([LEFT, other])


# ---- slow obvious twins


def asof_twin(left: list[Change], found: list[Change], tolerance: int | None) -> list[Row]:
    """For each left row a look at every right row."""
    result = []
    for row in left:
        met = [
            r
            for r in found
            if row.values[0] is not None
            and r.values[0] == row.values[0]
            and r.at <= row.at
            and (tolerance is None or r.at >= row.at - tolerance)
        ]
        last = max(met, key=lambda r: (r.at, r.pos), default=None)
        ends = [r for r in found if len(r.values) == 3 and r.values[0] is None and r.values[2] == 1 and r.at <= row.at]
        hidden = last is None or (len(last.values) == 3 and last.values[2] == 1)
        hidden = hidden or any((r.at, r.pos) > (last.at, last.pos) for r in ends)
        result.append((row.at, row.pos, (*row.values, None if hidden else last.values[1])))
    return result


def label_twin(left: list[Change], found: list[Change], wait: int) -> list[Row]:
    result = []
    for row in left:
        met = [r for r in found if r.values[0] == row.values[0] is not None and row.at <= r.at <= row.at + wait]
        if met:
            answer = min(met, key=lambda r: (r.at, r.pos))
            result.append((row.at, row.pos, (*row.values, answer.values[1])))
    return result


HISTORIES = st.binary(min_size=60, max_size=600)


def accumulated(operator: Operator, other: Schema, data: bytes) -> tuple[list[Row], list[Change], list[Change]]:
    """What the history of these bytes adds up to, cut at random; and the left and right rows that are live then."""
    case = Case(operator, [LEFT, other])
    history = decode(data, case.schemas)
    rng = np.random.default_rng(zlib.crc32(data))
    steps = history.steps(laws.random_cuts(history, rng))
    found = laws.run(case, steps, history.bounds(steps)).accumulated()
    live = history.live()
    return found, [c for c in live if c.source == 0], [c for c in live if c.source == 1]


@pytest.mark.parametrize("tolerance", [None, 0, 3, 3_600_000_000])
@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=HISTORIES)
def test_join_asof_is_its_twin(tolerance: int | None, data: bytes) -> None:
    limit = None if tolerance is None else f"{tolerance}us"
    found, left, other = accumulated(join_asof(right, on="k", tolerance=limit), RIGHT, data)
    assert sorted(found, key=laws.order) == sorted(asof_twin(left, other, tolerance), key=laws.order)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=HISTORIES)
def test_join_is_its_twin(data: bytes) -> None:
    found, left, other = accumulated(join(table, on="k"), TABLE, data)
    assert sorted(found, key=laws.order) == sorted(asof_twin(left, other, None), key=laws.order)


@pytest.mark.parametrize("wait", [0, 3, 7_200_000_000])
@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=HISTORIES)
def test_join_label_is_its_twin(wait: int, data: bytes) -> None:
    found, left, other = accumulated(join_label(right, on="k", wait=f"{wait}us"), RIGHT, data)
    assert sorted(found, key=laws.order) == sorted(label_twin(left, other, wait), key=laws.order)


@pytest.mark.parametrize("seed", range(4))
def test_join_asof_is_what_duckdb_calls_asof_left_join(seed: int) -> None:
    case = Case(ASOF, [LEFT, RIGHT])
    history = generate(np.random.default_rng(seed), case.schemas, 2000)
    left, other = history.relations()
    sql = """
        SELECT l.*, r.y FROM l ASOF LEFT JOIN (
            SELECT DISTINCT ON (k, _at) * FROM r ORDER BY _pos DESC
        ) r ON l.k = r.k AND l._at >= r._at"""
    con = duckdb.connect()
    for name, column, relation in (("l", "x", left), ("r", "y", other)):
        con.execute(f"CREATE TABLE {name} (k VARCHAR, {column} BIGINT, _at BIGINT, _pos BIGINT)")
        con.executemany(f"INSERT INTO {name} VALUES (?, ?, ?, ?)", relation.rows())
    expected = sorted(((at, pos, (k, x, y)) for k, x, at, pos, y in con.execute(sql).fetchall()), key=laws.order)
    assert laws.run(case, history.steps()).accumulated() == expected
    assert any(v[2] is not None for _, _, v in expected)


def test_long_runs_of_one_key_with_late_rows_and_retractions() -> None:
    """More entries of one key than the first stretches hold, and less again."""
    rng = np.random.default_rng(5)
    kept, live_left, live_right, stream = started(ASOF), {}, {}, laws.Stream(ASOF.schema([LEFT, RIGHT]))
    seq = 0
    for n, share in ((300, 0.1), (300, 0.6)):
        for _ in range(n):
            seq += 1
            side = int(rng.integers(2))
            live = (live_left, live_right)[side]
            if live and rng.random() < share:
                row = live.pop(list(live)[int(rng.integers(len(live)))])
                weight = -1
            else:
                row = (int(rng.integers(1000)), seq, "a", int(rng.integers(9)))
                live[seq] = row
                weight = 1
            stream.add(kept.apply((lefts, rights)[side](row, weight=weight, seq=seq)))
    changes = [
        [Change(0, s, 1, at, pos, v) for at, pos, *v in live.values()] for s, live in ((0, live_left), (1, live_right))
    ]
    assert len(stream.live) == len(live_left) > 20
    assert stream.accumulated() == sorted(
        ((at, pos, tuple(v)) for at, pos, v in asof_twin(*changes, None)), key=laws.order
    )


# ---- what a change touches


def test_a_late_right_row_corrects_the_left_rows_up_to_the_next_right_row_and_no_others() -> None:
    kept = started(ASOF)
    kept.apply(
        [
            delta(LEFT, *((at, at, "a", at) for at in (5, 10, 15, 19, 20, 25)), seq=9),
            rights((0, 1, "a", 1), (20, 2, "a", 2))[1],
        ]
    )
    assert out(kept.apply(rights((10, 3, "a", 7), seq=20))) == [
        (-1, 10, 1), (1, 10, 7), (-1, 15, 1), (1, 15, 7), (-1, 19, 1), (1, 19, 7),
    ]  # fmt: skip
    assert out(kept.apply(rights((10, 3, "a", 7), weight=-1, seq=30))) == [
        (-1, 10, 7), (1, 10, 1), (-1, 15, 7), (1, 15, 1), (-1, 19, 7), (1, 19, 1),
    ]  # fmt: skip


def test_a_correction_has_the_seq_of_the_last_change_that_caused_it() -> None:
    kept = started(ASOF)
    kept.apply(lefts((20, 1, "a", 0)))
    found = kept.apply(rights((10, 1, "a", 1), (15, 2, "a", 2), (12, 3, "a", 3), seq=5))
    assert (out(found), found.seq.tolist()) == ([(-1, 20, None), (1, 20, 2)], [6, 6])


def test_the_cause_is_the_last_change_also_when_an_earlier_one_brings_the_row_that_is_met() -> None:
    kept = started(ASOF)
    kept.apply([delta(LEFT, (20, 1, "a", 0)), delta(RIGHT, (11, 1, "a", 1), seq=0)])
    come, gone = rights((10, 2, "a", 2), seq=5)[1], rights((11, 1, "a", 1), weight=-1, seq=6)[1]
    found = kept.apply([empty(LEFT), concat([come, gone])])
    assert (out(found), found.seq.tolist()) == ([(-1, 20, 1), (1, 20, 2)], [6, 6])


def test_a_right_row_that_changes_nothing_visible_emits_nothing() -> None:
    kept = started(ASOF)
    kept.apply([delta(LEFT, (20, 1, "a", 0), seq=9), delta(RIGHT, (10, 1, "a", 5))])
    assert len(kept.apply(rights((15, 2, "a", 5), seq=10))) == 0
    assert out(kept.apply(lefts((20, 1, "a", 0), weight=-1, seq=11))) == [(-1, 20, 5)]


def test_ties_of_at_are_broken_by_position_and_the_match_is_inclusive() -> None:
    kept = started(ASOF)
    kept.apply(rights((10, 1, "a", 1), (10, 3, "a", 3), (10, 2, "a", 2)))
    assert out(kept.apply(lefts((10, 1, "a", 0), (9, 2, "a", 0), seq=5))) == [(1, 10, 3), (1, 9, None)]


def test_the_tolerance_is_inclusive() -> None:
    kept = started(join_asof(right, on="k", tolerance="5us"))
    kept.apply(rights((10, 1, "a", 1)))
    assert out(kept.apply(lefts((15, 1, "a", 0), (16, 2, "a", 0), seq=5))) == [(1, 15, 1), (1, 16, None)]


@pytest.mark.parametrize(
    "operator", [ASOF, join_label(right, on="k", wait="1h"), join_asof(right, on=["k", "x"], right_on=["k", "y"])]
)
def test_a_null_key_meets_nothing_and_is_not_kept(operator: Operator) -> None:
    kept = started(operator)
    kept.apply(rights((10, 1, None, None), (11, 2, None, 1)))
    found = kept.apply(lefts((10, 1, None, None), (20, 2, None, 1), seq=5))
    assert found.weight.tolist() == ([] if operator.name == "join_label" else [1, 1])
    assert all(v is None or v == v for v in found.at.tolist())
    assert kept.size[0] == 0
    back = kept.apply(lefts((10, 1, None, None), weight=-1, seq=9))
    assert back.weight.tolist() == ([] if operator.name == "join_label" else [-1])


def test_a_table_shows_each_row_the_version_of_its_time() -> None:
    kept = started(join(table, on="k"), TABLE)
    versions = delta(
        TABLE, (BEGINNING, 1, "a", 1, False), (10, 2, "a", 2, False), (20, 3, "a", None, True), (30, 4, "a", 4, False)
    )
    asked = delta(LEFT, *((at, at, "a", 0) for at in (5, 10, 19, 20, 29, 30)), seq=10)
    assert [v for _, _, v in out(kept.apply([asked, versions]))] == [1, 2, 2, None, None, 4]
    late = kept.apply([empty(LEFT), delta(TABLE, (25, 5, "a", 9, False), seq=20)])
    assert out(late) == [(-1, 29, None), (1, 29, 9)]
    assert "deleted" not in late.columns


def test_a_version_without_a_key_that_is_deleted_ends_all_versions_before_it() -> None:
    kept = started(join(table, on="k"), TABLE)
    kept.apply([empty(LEFT), delta(TABLE, (10, 1, "a", 1, False), (10, 2, "b", 2, False))])
    # What was served before the truncation became known is corrected, also within one delta.
    asked = delta(LEFT, (30, 1, "a", 0), (15, 2, "b", 0), seq=10)
    told = kept.apply(
        [concat([asked, delta(LEFT, (31, 3, "b", 0), seq=13)]), delta(TABLE, (20, 3, None, None, True), seq=12)]
    )
    assert out(told) == [(1, 30, 1), (1, 15, 2), (-1, 30, 1), (1, 30, None), (1, 31, None)]
    assert told.seq.tolist() == [10, 11, 12, 12, 13]
    # A key that comes later: its versions before the truncation are ended, those after it are not.
    kept.apply([empty(LEFT), delta(TABLE, (12, 4, "c", 3, False), (25, 5, "c", 4, False), seq=20)])
    again = delta(LEFT, (13, 4, "c", 0), (22, 5, "c", 0), (26, 6, "c", 0), (40, 7, "a", 0), seq=30)
    assert out(kept.apply([again, empty(TABLE)])) == [(1, 13, 3), (1, 22, None), (1, 26, 4), (1, 40, None)]


def test_what_ended_all_versions_is_remembered_until_no_version_before_it_can_come() -> None:
    for horizon, seen in ((20, None), (21, 5)):
        kept = started(join(table, on="k"), TABLE)
        kept.apply([empty(LEFT), delta(TABLE, (20, 3, None, None, True))], 15)
        kept.apply([delta(LEFT, (50, 1, "z", 0), seq=5), empty(TABLE)], horizon)
        kept.apply([empty(LEFT), delta(TABLE, (20, 1, "a", 5, False), seq=6)], horizon)  # breaks the promise of 21
        assert out(kept.apply([delta(LEFT, (60, 2, "a", 0), seq=7), empty(TABLE)], horizon)) == [(1, 60, seen)]


def test_a_version_that_was_deleted_before_the_horizon_releases_its_key() -> None:
    kept = started(join(table, on="k"), TABLE)
    kept.apply([empty(LEFT), delta(TABLE, (10, 1, "a", 1, False), (20, 2, "a", 1, True), (10, 3, "b", 1, False))], 10)
    assert kept.size[0] == 2
    kept.apply([delta(LEFT, (100, 1, "c", 0), seq=9), empty(TABLE)], 100)
    assert sorted(kept.slots.keys(range(3)), key=str) == [None, "b", "c"]  # type: ignore[attr-defined]


TEXTS: Schema = {"k": STRING, "y": STRING, "u": STRING, "deleted": BOOL}


def test_what_a_version_leaves_untold_it_has_from_the_version_before_it() -> None:
    kept = started(join(Named("table", TEXTS), on="k", columns=["y"]), TEXTS)
    versions = delta(
        TEXTS,
        (BEGINNING, 1, "a", UNAVAILABLE, "u", None),
        (10, 2, "a", "p", "u", False),
        (20, 3, "a", UNAVAILABLE, UNAVAILABLE, None),
        (30, 4, "a", UNAVAILABLE, "u", None),
        (40, 5, "a", None, None, True),
        (50, 6, "a", UNAVAILABLE, "u", None),
        (60, 7, "a", UNAVAILABLE, "u", False),
    )
    asked = delta(LEFT, *((at, at, "a", 0) for at in (5, 15, 25, 35, 45, 55, 65)), seq=10)
    told = out(kept.apply([asked, versions]))
    assert [v for _, _, v in told] == [None, "p", "p", "p", None, None, UNAVAILABLE]
    kept2 = started(join(Named("table", TEXTS), on="k", columns=["y"]), TEXTS)
    kept2.restore(pickle.loads(pickle.dumps(kept.snapshot())))
    for again in (kept, kept2):
        late = again.apply([empty(LEFT), delta(TEXTS, (21, 8, "a", "q", "u", False), seq=20)])
        assert sorted(out(late)) == [(-1, 25, "p"), (-1, 35, "p"), (1, 25, "q"), (1, 35, "q")]
        gone = again.apply([empty(LEFT), delta(TEXTS, (22, 9, None, None, None, True), seq=21)])
        assert sorted(out(gone), key=str) == [(-1, 25, "q"), (-1, 35, "q"), (1, 25, None), (1, 35, None)]
        assert out(again.apply([empty(LEFT), delta(TEXTS, (29, 10, "a", "r", "u", False), seq=22)])) == [
            (-1, 35, None), (1, 35, "r"),
        ]  # fmt: skip


def test_what_was_untold_is_known_only_until_the_horizon() -> None:
    kept = started(join(Named("table", TEXTS), on="k"), TEXTS)
    for n in range(200):
        version = (n, n, f"k{n % 3}", UNAVAILABLE if n > 2 else f"t{n}", None, None)
        kept.apply([empty(LEFT), delta(TEXTS, version, seq=n)], n - 10)
    assert sum(map(len, kept.partial.values())) <= 11  # type: ignore[attr-defined]
    asked = delta(LEFT, *((300, n, f"k{n}", 0) for n in range(3)), seq=300)
    assert [v for _, _, v in out(kept.apply([asked, empty(TEXTS)], 190))] == ["t0", "t1", "t2"]


def test_the_first_answer_counts_whatever_its_order_of_arrival() -> None:
    kept = started(join_label(right, on="k", wait="10us"))
    assert out(kept.apply(rights((18, 1, "a", 1)))) == []
    assert out(kept.apply(lefts((10, 7, "a", 0), (3, 8, "a", 0), (8, 9, "a", 0), seq=5))) == [(1, 10, 1), (1, 8, 1)]
    first_ = kept.apply(rights((13, 2, "a", 2), seq=10))
    assert out(first_) == [(1, 3, 2), (-1, 8, 1), (1, 8, 2), (-1, 10, 1), (1, 10, 2)]
    assert set(first_.pos.tolist()) == {7, 8, 9}
    assert sorted(out(kept.apply(rights((13, 2, "a", 2), weight=-1, seq=11)))) == [
        (-1, 3, 2), (-1, 8, 2), (-1, 10, 2), (1, 8, 1), (1, 10, 1),
    ]  # fmt: skip


def test_what_an_earlier_answer_served_is_not_lost_within_one_delta() -> None:
    kept = started(join_label(right, on="k", wait="1h"))
    found = kept.apply([delta(LEFT, (10, 1, "a", 0), seq=1), delta(RIGHT, (20, 1, "a", 1), (15, 2, "a", 2), seq=2)])
    assert (out(found), found.seq.tolist()) == ([(1, 10, 1), (-1, 10, 1), (1, 10, 2)], [2, 3, 3])


def moves(found: Delta) -> list[tuple[int, int]]:
    """What comes and goes, as (weight, at)."""
    return list(zip(found.weight.tolist(), found.at.tolist(), strict=True))


def test_a_question_is_unanswered_until_the_answer_comes_and_again_when_that_is_taken_back() -> None:
    kept = started(unanswered(right, on="k", wait="10us"))
    asked = kept.apply(lefts((10, 7, "a", 0), (10, 8, None, 0), (30, 9, "a", 0), seq=5))
    assert moves(asked) == [(1, 10), (1, 10), (1, 30)]
    assert moves(kept.apply(rights((18, 1, "a", 1), seq=9))) == [(-1, 10)]
    assert len(kept.apply(rights((19, 2, "a", 1), (21, 3, "a", 1), seq=10))) == 0, "it is answered already, or too late"
    assert len(kept.apply(rights((18, 1, "a", 1), weight=-1, seq=20))) == 0, "another answers it"
    assert moves(kept.apply(rights((19, 2, "a", 1), weight=-1, seq=21))) == [(1, 10)]
    late = kept.apply([delta(LEFT, (50, 10, "b", 0), seq=30), delta(RIGHT, (55, 4, "b", 1), seq=31)])
    assert moves(late) == [(1, 50), (-1, 50)], "it was unanswered when it came"


# ---- what is kept


def test_the_row_before_the_horizon_is_kept_while_one_on_it_can_be_taken_back() -> None:
    kept = started(ASOF)
    kept.apply(rights((5, 1, "a", 1), (10, 2, "a", 2)), 5)
    kept.apply(lefts((10, 1, "b", 0), seq=5), 10)
    kept.apply(rights((10, 2, "a", 2), weight=-1, seq=6), 10)
    assert out(kept.apply(lefts((10, 2, "a", 0), seq=7), 10)) == [(1, 10, 1)]


def test_an_answer_that_is_forgotten_still_answers() -> None:
    kept = started(join_label(right, on="k", wait="100us"))
    assert out(kept.apply([delta(LEFT, (10, 1, "a", 0)), delta(RIGHT, (20, 1, "a", 1))])) == [(1, 10, 1)]
    kept.apply(lefts((50, 2, "b", 0), seq=5), 50)
    assert out(kept.apply(rights((55, 2, "z", 3), (60, 3, "a", 2), seq=6), 50)) == []


@pytest.mark.parametrize(
    ("operator", "keys"),
    [
        (ASOF, 8),
        (join_asof(right, on="k", tolerance="1ms"), 0),
        (join_label(right, on="k", wait="1ms"), 0),
        (unanswered(right, on="k", wait="1ms"), 0),
    ],
)
def test_memory_is_bounded_while_the_horizon_moves(operator: Operator, keys: int) -> None:
    kept = started(operator)
    sizes = []
    for n in range(300):
        at = n * 100
        asked = delta(LEFT, *((at + i, n * 50 + i, f"k{i % 8}", i) for i in range(50)), seq=2 * n * 50)
        answers = delta(RIGHT, *((at + i, n * 50 + i, f"k{i % 8}", i) for i in range(50)), seq=(2 * n + 1) * 50)
        kept.apply([asked, answers], at)
        sizes.append(kept.size[1])
    assert max(sizes[200:]) <= max(sizes[50:100]) < 200_000
    kept.apply(lefts((10**6, 10**6, None, 0), seq=10**6), 10**6)
    assert kept.size[0] == keys


def test_taking_back_a_row_that_is_not_there_is_refused() -> None:
    kept = started(ASOF)
    with pytest.raises(ValueError, match=r"a left row with at=5, pos=1 was taken back that is not there"):
        kept.apply(lefts((5, 1, "a", 0), weight=-1))
    with pytest.raises(ValueError, match=r"a right row with at=6, pos=2 was taken back that is not there"):
        started(ASOF).apply(rights((6, 2, "a", 0), weight=-1))


def test_timelines_are_sorted_lists() -> None:
    """A twin of sorted Python lists, through growth, shrinking and stretches used again."""
    rng = np.random.default_rng(3)
    lines, twin = Timelines(), [[] for _ in range(5)]
    lines.reserve(5)
    for n in range(4000):
        s = int(rng.integers(5))
        grow = 0.75 if n % 1000 < 500 else 0.25
        if rng.random() < grow:
            entry = (int(rng.integers(50)), n, n + 1, n + 2)
            twin[s].insert(bisect_left(twin[s], entry), entry)
            lines.slab = put(lines.slab, lines.runs, lines.free, s, *entry)
        elif twin[s]:
            i = int(rng.integers(len(twin[s])))
            at, pos, *_ = twin[s].pop(i)
            found = first(lines.slab, lines.runs[s, 2], lines.runs[s, 3], at, pos)
            assert found == lines.runs[s, 2] + i
            cut(lines.slab, lines.runs, s, found)
            lines.slab = tidy(lines.slab, lines.runs, lines.free, s)
        run = lines.slab[lines.runs[s, 2] : lines.runs[s, 3]]
        assert [tuple(e) for e in run.tolist()] == twin[s]
    most = len(lines.slab)
    for s in range(5):
        lines.runs[s, 2] = lines.runs[s, 3]
        lines.slab = tidy(lines.slab, lines.runs, lines.free, s)
        assert not lines.runs[s].any() or lines.runs[s, 1] == 0
    assert most < 8 * 1300
    assert first(lines.slab, 0, 0, LEAST, LEAST) == 0


# ---- what is refused

OTHER: Schema = {"k": INT, "x": INT}


@pytest.mark.parametrize(
    ("operator", "other", "text"),
    [
        (join_asof(right, on="q"), RIGHT, r"join_asof: on: no column 'q'.*Known columns: k, x"),
        (join_asof(right, on="k", right_on="kk"), RIGHT, r"right_on: no column 'kk'; did you mean 'k'\?"),
        (join_asof(right, on="k", columns=["yy"]), RIGHT, r"columns: no column 'yy'; did you mean 'y'\?"),
        (join_asof(right, on="k"), OTHER, r"the key 'k' has type String and 'k' on the right Int64; expected the same"),
        (join_asof(right, on="x", right_on="k"), OTHER, r"the column 'x' is there already"),
        (
            join_label(right, on="k", wait="1h", columns={"x": "y"}),
            RIGHT,
            r"join_label: the column 'x' is there already",
        ),
        (join_asof(right, on="k", columns=["y", "y"]), RIGHT, r"columns are \['y', 'y'\]; expected different names"),
        (
            join(right, on="k"),
            RIGHT,
            r"'right' has no Boolean column 'deleted'; expected a table, for a stream use join_asof",
        ),
        (join_asof(Named("f", {"k": STRING, "y": FLOAT}), on="y"), {"k": STRING, "y": FLOAT}, r"on: no column 'y'"),
        (
            join_asof(Named("f", {"k": FLOAT, "y": INT}), on="k"),
            {"k": FLOAT, "y": INT},
            r"join_asof: right_on: 'k' has type Float64; expected Int64",
        ),
        (join(table, on="k", columns=["deleted"]), TABLE, r"columns: no column 'deleted'"),
    ],
)
def test_schemas_that_do_not_fit_are_refused(operator: Operator, other: Schema, text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        operator.schema([LEFT, other])
    with pytest.raises(DefinitionError, match=text):
        operator.start([LEFT, other])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: join_asof("weather", on="k"), r"join_asof: the right input is 'weather'; expected a source or a view"),  # type: ignore[arg-type]
        (lambda: join(right, on=["k", "x"], right_on="k"), r"on has 2 columns \['k', 'x'\] and right_on 1 \['k'\]"),
        (lambda: join(right, on=[]), r"join: on is \[\]: expected one column name"),
        (lambda: join_asof(right, on="k", tolerance="soon"), r"join_asof: tolerance is 'soon': expected"),
        (lambda: join_asof(right, on="k", columns="y"), r"columns is 'y'; expected a list such as \['y'\], or a dict"),
        (lambda: join_asof(right, on="k", columns={"a": "y"}, prefix="p_"), r"leave out prefix='p_'"),
        (lambda: join_label(right, on="k", wait="-1h"), r"join_label: wait is '-1h': expected"),
        (lambda: unanswered("right", on="k", wait="1h"), r"unanswered: the right input is 'right'"),  # type: ignore[arg-type]
        (lambda: unanswered(right, on="k", wait="soon"), r"unanswered: wait is 'soon': expected"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(make: Any, text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        make()


def test_columns_are_chosen_renamed_and_prefixed() -> None:
    wide: Schema = {"k": STRING, "y": INT, "z": FLOAT}
    named = Named("wide", wide)

    def names(operator: Operator, other: Schema = wide) -> list[str]:
        return list(operator.schema([LEFT, other]))

    assert names(join_asof(named, on="k")) == ["k", "x", "y", "z"]
    assert names(join_asof(named, on="k", prefix="w_")) == ["k", "x", "w_y", "w_z"]
    assert names(join_asof(named, on="k", columns=["z"], prefix="w_")) == ["k", "x", "w_z"]
    assert names(join_asof(named, on="k", columns={"a": "z", "b": "k"})) == ["k", "x", "a", "b"]
    assert names(join_label(named, on="k", wait="1h", columns=[])) == ["k", "x"]
    assert names(join(Named("t", versions := {**wide, "deleted": BOOL}), on="k"), versions) == ["k", "x", "y", "z"]
