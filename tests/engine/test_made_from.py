"""What predictions were made from: frontiers and the training watermark, a function of the rows and nothing else."""

from __future__ import annotations

import pickle
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model

import operators as op
from engine import DefinitionError, Pipeline, deferred, guard, immediate, on_query
from engine.graph import Source
from engine.merge import OFFSET_BITS, PARTITION_BITS, Merge
from engine.policy import Policy
from operators.delta import BEGINNING, NULL
from tests.engine.test_merge import MINUTE, Blocks, source, times

START = datetime(2024, 1, 1, tzinfo=timezone.utc)

Partitions = list[tuple[Source, list[list[int]]]]


@st.composite
def partitions(draw: st.DrawFn) -> Partitions:
    """Sources of up to three partitions: some lag, some give nothing, some sources are idle or have no time."""
    found: Partitions = []
    for i in range(draw(st.integers(1, 3))):
        idle, lateness = draw(st.sampled_from([None, 0, 3 * MINUTE])), draw(st.sampled_from([0, 100 * MINUTE]))
        timeless = draw(st.booleans()) and i > 0
        ats = draw(st.lists(times, min_size=1, max_size=3))
        found.append((source(f"s{i}", lateness, None if timeless else idle, timeless), ats))
    return [(s, [[NULL] * len(at) for at in ats] if s.at is None else ats) for s, ats in found]


def merging(case: Partitions, blocks: list[int], batch_rows: int, state: Any = None) -> Merge:
    def at(s: Source, i: int) -> int:
        return state["feeds"][f"{s.name}/{i}"]["position"] if state else 0

    parts = [(s, [Blocks(a, blocks, at(s, i)) for i, a in enumerate(ats)]) for s, ats in case]
    return Merge(parts, [s.name for s, _ in case], batch_rows, state=state, watermarks=True)


def after_each(m: Merge, stop_after: int | None = None) -> tuple[list[dict[str, int]], list[tuple[str, int, int]]]:
    """The watermarks after each change, and of each change where it came from: (source, partition, offset)."""
    marks: list[dict[str, int]] = []
    came: dict[int, tuple[str, int, int]] = {}
    batches = 0
    while (stop_after is None or batches < stop_after) and (batch := m.next()) is not None:
        batches += 1
        assert {name: int(mark[-1]) for name, mark in batch.watermarks.items()} == batch.watermark
        marks += [{n: int(mark[i]) for n, mark in batch.watermarks.items()} for i in range(len(batch.known))]
        for name, delta in batch.deltas.items():
            for pos, seq in zip(delta.pos.tolist(), delta.seq.tolist(), strict=True):
                number = (pos >> OFFSET_BITS) & ((1 << PARTITION_BITS) - 1)
                came[seq] = name, number, pos & ((1 << OFFSET_BITS) - 1)
    return marks, [came[seq] for seq in sorted(came)]


@settings(max_examples=150, deadline=None)
@given(
    partitions(), st.lists(st.integers(1, 7), min_size=1, max_size=3), st.sampled_from([1, 3, 50]), st.integers(0, 5)
)
def test_watermarks_after_each_change_are_a_function_of_the_changes(
    case: Partitions, blocks: list[int], batch_rows: int, stop_after: int
) -> None:
    first = merging(case, blocks, batch_rows)
    before, came_before = after_each(first, stop_after)
    rest, came_after = after_each(merging(case, [3], batch_rows, pickle.loads(pickle.dumps(first.state()))))
    got, came = before + rest, came_before + came_after
    whole, all_of_it = after_each(merging(case, [50], 1000))
    assert got == whole
    assert came == all_of_it
    if any(s.lateness == 0 for s, _ in case if s.at is not None):
        return  # some are late, and the twin is not told of these
    assert got == slowly(case, came)


def slowly(case: Partitions, came: list[tuple[str, int, int]]) -> list[dict[str, int]]:
    """The twin: for each change the watermark of each source from all (source, partition, known) up to it."""
    ats = {(s.name, i): at for s, several in case for i, at in enumerate(several)}
    known = {(*key, n): max([t for t in at[: n + 1] if t != NULL], default=BEGINNING) for key, at in ats.items()
             for n in range(len(at))}  # fmt: skip
    found = []
    for end in range(1, len(came) + 1):
        seen = came[:end]
        clock = max(known[c] for c in seen)
        one = {}
        for s, several in case:
            heard = [
                max((known[c] for c in seen if c[:2] == (s.name, i)), default=BEGINNING) for i in range(len(several))
            ]
            one[s.name] = min(heard)
            if s.at is None:
                one[s.name] = clock
            elif s.idle_after is not None and clock > BEGINNING:
                one[s.name] = max(one[s.name], clock - s.idle_after)
        found.append(one)
    return found


def test_a_partition_that_joins_later_holds_its_source_where_it_was() -> None:
    a, b = Blocks([MINUTE, 2 * MINUTE], [20]), Blocks([3 * MINUTE], [20])
    s = source("s")
    m = Merge([(s, [a])], ["s"], 100, follow=True, watermarks=True)
    batch = m.next()
    assert batch is not None
    assert batch.watermarks["s"].tolist() == [MINUTE, 2 * MINUTE]
    m.add(s, 1, b)
    a.at += [5 * MINUTE]
    batch = m.next()
    assert batch is not None
    assert batch.watermarks["s"].tolist() == [2 * MINUTE, 3 * MINUTE], "first the new one's row, then that of the other"


def test_a_batch_of_nothing_but_what_became_no_row_tells_of_no_change() -> None:
    m = Merge([(source("s"), [Blocks([MINUTE, 2 * MINUTE], [20], bad=(0, 1))])], ["s"], 100, watermarks=True)
    batch = m.next()
    assert batch is not None
    assert len(batch.dead) == 2
    assert {name: len(mark) for name, mark in batch.watermarks.items()} == {"s": 0}


def frames(n: int) -> dict[str, pl.DataFrame]:
    """Rides, one a minute, some late; weather, seldom, which stops for long; what rides cost, known half an hour on."""
    rng = np.random.default_rng(7)
    minutes = np.sort(rng.integers(0, 3 * n, n))
    rides = pl.DataFrame(
        {
            "id": np.arange(n),
            "place": [f"p{i}" for i in rng.integers(0, 3, n)],
            "at": [START + timedelta(minutes=int(m)) for m in minutes - rng.choice([0, 0, 0, 5], n)],
        }
    )
    seen = np.concatenate([np.arange(0, n, 7), np.arange(2 * n, 3 * n, 11)])
    weather = pl.DataFrame(
        {
            "place": [f"p{i}" for i in rng.integers(0, 3, len(seen))],
            "seen": [START + timedelta(minutes=int(m)) for m in seen],
            "rain": rng.random(len(seen)).round(3),
        }
    )
    told = minutes + rng.integers(5, 60, n)
    order = np.argsort(told, kind="stable")
    costs = pl.DataFrame(
        {
            "id": np.arange(n)[order],
            "known": [START + timedelta(minutes=int(m)) for m in told[order]],
            "cost": rng.random(n).round(3)[order],
        }
    )
    places = pl.DataFrame({"place": ["p0", "p1", "p2"], "size": [1, 2, 3]})
    return {"rides": rides, "weather-feed": weather, "places": places, "costs": costs}


def pipeline(
    refresh: Policy, recent: Policy, idle_after: str | None = None, asks: Policy | None = None, **given: Any
) -> Pipeline:
    """Models of rides. recent: how the rain is kept; asks: and the questions."""
    p = Pipeline("rides")
    rides = p.source("rides", key="id", at="at", lateness="10m", schema={"id": int, "place": str, "at": pl.Datetime})
    weather = p.source(
        "weather-feed",
        key="place",
        at="seen",
        schema={"place": str, "seen": pl.Datetime, "rain": float},
        idle_after=idle_after,
    )
    places = p.table("places", key="place", schema={"place": str, "size": int})
    costs = p.source("costs", key="id", at="known", schema={"id": int, "known": pl.Datetime, "cost": float})
    rain = p.view("rain", weather, op.window(by="place", size="6h", wet=op.mean("rain")), refresh=recent)
    asked = p.view(
        "asked",
        rides,
        op.join_asof(rain, on="place", columns=["wet"]),
        op.join(places, on="place", columns=["size"]),
        op.project("id", "wet", "size"),
        refresh=asks,
    )
    learner = linear_model.LinearRegression()
    p.model("m", asked, answers=costs, label="cost", learner=learner, refresh=refresh, wait="1d", **given)
    return p


FROM = ("trained", "seq", "frontier", "frontier_rides", "frontier_weather-feed", "frontier_places")
POLICIES = [
    (immediate(), immediate(), None),
    (immediate(), deferred(every="3h", mode="full"), None),
    (deferred(every="2h"), deferred(rows=5), None),
    (on_query(neighbours=4, window="1d"), deferred(rows=5), None),
    (immediate(), deferred(rows=5), deferred(every="20m")),
    (immediate(), immediate(), deferred(rows=9)),
]
"""Of the model, of a view that its questions stand on, and of the questions."""


@pytest.mark.parametrize(("refresh", "recent", "asks"), POLICIES, ids=str)
def test_how_batches_are_cut_does_not_show(refresh: Policy, recent: Policy, asks: Policy | None) -> None:
    given = frames(120)
    one, few, all_ = (pipeline(refresh, recent, "1h", asks).replay(given, rows) for rows in (1, 7, 1000))
    for view in ("m.predictions", "m.training"):
        assert set(FROM) <= set(one[view].columns)
        assert one[view].equals(few[view])
        assert one[view].equals(all_[view])
    assert one["m.predictions"]["trained"].null_count() < 60
    assert one["m.predictions"]["frontier_rides"].n_unique() > (30 if asks is None else 10)
    assert one["m.predictions"]["frontier"].n_unique() > 5
    served = one["m.training"].select("id", *FROM, "model_version").sort("id")
    kept = one["m.predictions"].filter(pl.col("id").is_in(served["id"].to_list()))
    assert served.equals(kept.select("id", *FROM, "model_version").sort("id")), (
        "examples say what they were served from"
    )


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("idle_after", [None, "1h"])
def test_frontiers_are_those_of_the_changes_before(rows: int, idle_after: str | None) -> None:
    """Against the list of all changes, in order; weather counts as of the last refresh, after every so many rows."""
    given = frames(120)
    recent = immediate() if rows == 1 else deferred(rows=rows)
    got = pipeline(immediate(), recent, idle_after).replay(given, 1000)["m.predictions"].sort("seq")
    changes = in_order(given)
    questions = {key: i for i, (_, name, key) in enumerate(changes) if name == "rides"}
    assert got["seq"].to_list() == sorted(questions.values())
    idle = None if idle_after is None else timedelta(hours=1)

    def reached(i: int) -> dict[str, datetime | None]:
        """The watermarks after change i, and of the weather that the view contains."""
        seen = [c for c in changes[: i + 1] if c[0] is not None]
        clock = max(known for known, *_ in seen)
        marks = {n: max((k for k, name, _ in seen if name == n), default=None) for n in ("rides", "weather-feed")}
        if idle is not None:
            marks = {n: m if n == "rides" else max(m or clock - idle, clock - idle) for n, m in marks.items()}
        return {**marks, "places": clock}

    def contained(i: int) -> datetime | None:
        came = [j for j, c in enumerate(changes[: i + 1]) if c[1] == "weather-feed"]
        if len(came) % rows == 0:
            return reached(i)["weather-feed"]
        waits = came[len(came) // rows * rows]
        return reached(waits - 1)["weather-feed"] if waits and changes[waits - 1][0] is not None else None

    for row in got.rows(named=True):
        marks = {**reached(row["seq"]), "weather-feed": contained(row["seq"])}
        assert {n: row[f"frontier_{n}"] for n in marks} == marks
        assert row["frontier"] == (None if None in marks.values() else min(m for m in marks.values() if m is not None))
    behind = (got["at"] - got["frontier_weather-feed"]).max()
    assert behind >= timedelta(hours=1)


def in_order(given: dict[str, pl.DataFrame]) -> list[tuple[Any, str, Any]]:
    """All changes in the order of knowledge: when each becomes known (None: from the start), its source, its id."""
    ranks = {"places": 0, "weather-feed": 1, "costs": 2, "rides": 3}
    every = []
    for name, time in (("rides", "at"), ("weather-feed", "seen"), ("costs", "known"), ("places", None)):
        known = None
        for i, row in enumerate(given[name].rows(named=True)):
            if time is not None:
                known = row[time] if known is None else max(known, row[time])
            every.append((known, ranks[name], i, name, row.get("id")))
    every.sort(key=lambda c: (c[0] or START - timedelta(days=1), *c[1:3]))
    return [(known, name, key) for known, _, _, name, key in every]


def test_trained_is_when_the_newest_example_became_known() -> None:
    given = frames(120)
    got = pipeline(immediate(), immediate()).replay(given, 50)["m.predictions"].sort("seq")
    changes, asked, newest, want = in_order(given), set(), None, []
    early: dict[int, datetime] = {}
    for known, name, key in changes:
        if name == "costs":
            if key in asked:
                newest = max(filter(None, (newest, known)))
            else:
                early[key] = known
        elif name == "rides":
            want.append(newest)
            asked.add(key)
            if key in early:
                newest = known
    assert got["trained"].to_list() == want
    assert want[-1] is not None


def test_nothing_is_said_of_a_version_where_none_served() -> None:
    refuse = guard.refuse("small", pl.col("size") == 1)
    got = pipeline(immediate(), immediate(), guards=[refuse]).replay(frames(120), 50)["m.predictions"]
    refused = got.filter(pl.col("guards") == "small")
    assert len(refused) > 10
    assert refused["trained"].null_count() == refused["model_version"].null_count() == len(refused)
    assert refused["frontier_rides"].null_count() == refused["seq"].null_count() == 0
    fitted = pipeline(deferred(every="2h"), immediate()).replay(frames(120), 50)["m.predictions"]
    assert fitted["trained"].is_null().equals(fitted["model_version"].is_null())
    assert fitted["model_version"].n_unique() > 2
    assert fitted.filter(pl.col("trained").is_not_null()).group_by("model_version").agg(
        pl.col("trained").n_unique()
    )["trained"].to_list() == [1] * (fitted["model_version"].n_unique() - 1)  # fmt: skip


def test_a_column_of_such_a_name_that_is_no_feature_is_left_as_it_is() -> None:
    p = Pipeline("p")
    rides = p.source("rides", key="id", at="at", schema={"id": int, "at": pl.Datetime, "x": float})
    asked = p.view("asked", rides, op.project("id", "x", seq=pl.col("id") * 100))
    told = p.source("told", key="id", at="at", schema={"id": int, "at": pl.Datetime, "y": float})
    far = guard.refuse("far", pl.col("seq") >= 300)
    learner = linear_model.LinearRegression()
    p.model("m", asked, answers=told, label="y", features=["x"], learner=learner, guards=[far])
    given = pl.DataFrame({"id": range(5), "at": [START] * 5, "x": [1.0] * 5})
    got = p.replay({"rides": given})["m.predictions"]
    assert got.select("id", "seq", "guards").rows() == [(i, i, "far" if i >= 3 else None) for i in range(5)]


def test_a_feature_of_such_a_name_is_refused() -> None:
    p = Pipeline("p")
    rides = p.source("rides", key="id", at="at", schema={"id": int, "at": pl.Datetime, "frontier": float})
    asked = p.view("asked", rides, op.project("id", "frontier"))
    told = p.source("told", key="id", at="at", schema={"id": int, "at": pl.Datetime, "y": float})
    with pytest.raises(DefinitionError, match="training set of 'm': the column 'frontier' is there already"):
        p.model("m", asked, answers=told, label="y", learner=linear_model.LinearRegression())
