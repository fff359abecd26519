"""When views are due: however the input is cut, never later than the target lag, and by the present when idle."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.graph import Source
from engine.merge import Merge
from engine.schedule import Due
from tests.engine.test_merge import MINUTE, Blocks, source

S0, S1, BOTH = frozenset({"s0"}), frozenset({"s1"}), frozenset({"s0", "s1"})


def merge(dues: list[Due], ats: list[list[int]], batch_rows: int, state: Any = None) -> Merge:
    sources: list[Source] = [source(f"s{i}") for i in range(len(ats))]
    parts = [
        (s, [Blocks(at, [3, 1], state["feeds"][f"{s.name}/0"]["position"] if state else 0)])
        for s, at in zip(sources, ats, strict=True)
    ]
    return Merge(parts, [s.name for s in sources], batch_rows, state=state, dues=dues)


def known(ats: list[list[int]]) -> list[tuple[int, str]]:
    """The slow obvious twin of the merge: (when it becomes known, source) of every row, in order."""
    rows = []
    for i, at in enumerate(ats):
        newest = at[0] if at else 0
        for n, t in enumerate(at):
            newest = max(newest, t)
            rows.append((newest, i, n))
    return [(clock, f"s{i}") for clock, i, _ in sorted(rows)]


def expected(dues: list[Due], ats: list[list[int]]) -> list[tuple[int, str]]:
    """Row by row: (how many rows came before, view) of each refresh, and that no view lacks a row for too long."""
    rows, found = known(ats), []
    contains: dict[str, set[int]] = {d.view: set() for d in dues}

    def refresh(views: list[str], seq: int) -> None:
        for d in dues:
            if d.view in views:
                there = {n for n in range(seq) if rows[n][1] in d.sources}
                for a in dues:
                    if a.view in d.above:
                        there -= {n for n in there if rows[n][1] in a.sources} - contains[a.view]
                contains[d.view] = there
                found.append((seq, d.view))

    def oldest(d: Due, seq: int) -> int | None:
        return min(
            (rows[n][0] for n in range(seq) if rows[n][1] in d.sources and n not in contains[d.view]), default=None
        )

    for seq, (clock, name) in enumerate(rows):
        turned = [d for d in dues if d.every and seq and clock // d.every > rows[seq - 1][0] // d.every]
        lagging = [d for d in dues if d.lag and (o := oldest(d, seq)) is not None and clock >= o + d.lag]
        refresh([d.view for d in [*turned, *lagging]], seq)
        for d in dues:
            since = oldest(d, seq)
            assert d.lag is None or since is None or clock < since + d.lag, (
                f"{d.view} lacks a row of {since} at {clock}"
            )
        full = []
        for d in dues:
            if d.rows and name in d.sources and sum(n in d.sources for _, n in rows[: seq + 1]) % d.rows == 0:
                full.append(d.view)
        refresh(full, seq + 1)
    return found


def refreshes(m: Merge, stop_after: int | None = None) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    batches = 0
    while (stop_after is None or batches < stop_after) and (batch := m.next()) is not None:
        batches += 1
        found += [(m.seq, d.view) for d in m.schedule.dues if d.view in batch.due]
        if batch.due and not batch.late and not any(map(len, batch.deltas.values())):
            assert (batch.first, batch.last) == (m.seq, m.seq)
    return found


spans = st.sampled_from([None, 1, 2, 5]).map(lambda m: m and m * MINUTE)
counts = st.sampled_from([None, 1, 3])


@st.composite
def chains(draw: st.DrawFn) -> list[Due]:
    """Views of which each stands on the one before it, and on a source more."""
    dues: list[Due] = []
    lag = 0
    for i in range(draw(st.integers(1, 3))):
        more = draw(st.sampled_from([0, 1, 3]))
        lag = (lag or MINUTE) + more * MINUTE
        sources = dues[-1].sources | draw(st.sampled_from([S0, S1])) if dues else draw(st.sampled_from([S0, BOTH]))
        above = frozenset(d.view for d in dues if d.lag)
        dues.append(Due(f"v{i}", sources, draw(spans), draw(counts), lag, above))
    return dues


times = st.lists(st.integers(0, 20).map(lambda m: m * MINUTE), max_size=15)


@settings(max_examples=200, deadline=None)
@given(chains(), times, times, st.integers(1, 9), st.integers(0, 5))
def test_when_views_are_refreshed_depends_on_what_became_known_only(
    dues: list[Due], s0: list[int], s1: list[int], batch_rows: int, stop_after: int
) -> None:
    want = expected(dues, [s0, s1])
    assert refreshes(merge(dues, [s0, s1], batch_rows)) == want
    first = merge(dues, [s0, s1], batch_rows)
    before = refreshes(first, stop_after)
    second = merge(dues, [s0, s1], batch_rows, pickle.loads(pickle.dumps(first.state())))
    assert before + refreshes(second) == want


def test_views_of_the_same_lag_are_refreshed_at_the_same_point_and_keep_it() -> None:
    lag = 5 * MINUTE
    dues = [Due("up", S0, lag=lag), Due("down", S0, rows=3, lag=lag, above=frozenset({"up"}))]
    at = [m * MINUTE for m in (0, 1, 2, 4, 5, 6, 7, 10, 11, 12, 20)]
    m = merge(dues, [at], 100)
    seen = []
    while (batch := m.next()) is not None:
        if batch.due:
            assert batch.clock is not None
            seen.append((batch.clock // MINUTE, len(batch.deltas["s0"]), sorted(batch.due)))
    # By `rows` alone the lower one finds nothing new, and goes on to lack what it lacked.
    assert [(c, due) for c, n, due in seen if n == 0] == [
        (5, ["down", "up"]), (10, ["down", "up"]), (20, ["down", "up"])
    ]  # fmt: skip
    assert [due for _, n, due in seen if n] == [["down"]] * 3


@pytest.mark.parametrize("due", [Due("v", S0, every=5 * MINUTE), Due("v", S0, lag=5 * MINUTE)])
def test_while_nothing_is_there_to_read_the_present_makes_views_due(due: Due) -> None:
    at = [m * MINUTE for m in (10, 11, 9)]
    m = merge([due], [at], 100)
    rows = m.next(0)
    assert rows is not None
    assert rows.last == 2
    marks, read = m.watermark, m.state()["feeds"]
    assert m.next() is None, "without a present nothing is due"
    assert m.next(15 * MINUTE - 1) is None
    tick = m.next(15 * MINUTE)
    assert tick is not None
    assert (tick.due, tick.clock, tick.first, tick.last) == ({"v"}, 15 * MINUTE, 3, 3)
    assert not any(map(len, tick.deltas.values()))
    assert (m.watermark, tick.watermark, m.clock, m.state()["feeds"]) == (marks, marks, 11 * MINUTE, read)
    assert m.next(15 * MINUTE) is None, "once"
    # A change that comes after its time is lacking from when it came.
    m.feeds[0].partition.at.append(9 * MINUTE)  # type: ignore[attr-defined]
    late = m.next(16 * MINUTE)
    assert late is not None
    assert len(late.late) == 1
    assert m.next(20 * MINUTE - 1) is None
    again = m.next(20 * MINUTE)
    assert again is not None
    assert again.due == {"v"}


def test_nothing_is_due_while_there_is_more_to_read() -> None:
    m = merge([Due("v", BOTH, lag=MINUTE)], [[0, MINUTE // 2], [0]], 1)
    assert m.next(10 * MINUTE) is not None
    batch = m.next(10 * MINUTE)
    assert batch is not None
    assert not batch.due


def test_a_run_that_goes_on_knows_when_it_was_idle() -> None:
    due = Due("v", S0, every=5 * MINUTE)
    m = merge([due], [[MINUTE]], 100)
    assert m.next(6 * MINUTE) is not None
    assert m.next(6 * MINUTE) is not None, "the turn at 5 has passed"
    m = merge([due], [[MINUTE]], 100, pickle.loads(pickle.dumps(m.state())))
    assert m.next(9 * MINUTE) is None
    assert m.next(10 * MINUTE) is not None
