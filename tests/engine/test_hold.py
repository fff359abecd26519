"""Deferred views: refreshed when due, with the net of what is pending; then they are what immediate ones are."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from river import drift

import operators as op
from engine import DefinitionError, Pipeline, deferred, immediate, on_query
from engine.bind import check_lags
from engine.flow import Run
from engine.graph import Policy
from engine.metrics import samples
from engine.plan import lags
from engine.publish import outputs
from engine.recovery import StateError, claim
from engine.report import figures
from engine.settings import Settings, SettingsError, SourceSettings
from operators.delta import FLOAT, INT, STRING, Delta, Schema, consolidated, to_column

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
SCHEMA: Schema = {"k": STRING, "n": INT, "x": FLOAT}


def orders(n: int, seed: int = 1) -> pl.DataFrame:
    """n orders, one a minute; some come up to ten minutes late."""
    rng = np.random.default_rng(seed)
    late = np.where(rng.random(n) < 0.2, rng.integers(0, 10, n), 0)
    return pl.DataFrame(
        {
            "id": np.arange(n),
            "shop": [f"s{i}" for i in rng.integers(0, 4, n)],
            "at": [START + timedelta(minutes=int(m)) for m in np.arange(n) - late],
            "x": rng.integers(0, 100, n).astype(float),
        }
    )


def pipeline(refresh: Policy) -> Pipeline:
    p = Pipeline("shop")
    source = p.source(
        "orders", key="id", at="at", lateness="1h", schema={"id": int, "shop": str, "at": pl.Datetime, "x": float}
    )
    recent = p.view("recent", source, op.window(by="shop", size="20m", n=op.count(), x_sum=op.total("x")))
    shops = p.view("shops", recent, op.aggregate(by="shop", n=op.count(), most=op.maximum("x_sum")), refresh=refresh)
    p.view("seen", source, op.join_asof(shops, on="shop", columns={"before": "n"}))
    return p


def rows(frame: pl.DataFrame) -> list[Any]:
    return sorted(frame.rows(), key=repr)


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
def test_one_change_at_a_time_is_immediate(batch_rows: int) -> None:
    want, got = (pipeline(r).replay({"orders": orders(200)}, batch_rows) for r in (immediate(), deferred(rows=1)))
    for view in ("recent", "shops"):
        assert rows(got[view]) == rows(want[view])


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
@pytest.mark.parametrize(
    "refresh",
    [
        deferred(every="30m"),
        deferred(rows=45),
        deferred(every="30m", rows=45),
        deferred(rows=45, mode="full"),
        deferred(every="30m", mode="auto"),
    ],
)
def test_a_deferred_view_is_as_of_its_last_refresh(refresh: Any, batch_rows: int) -> None:
    frame = orders(200)
    got = pipeline(refresh).replay({"orders": frame}, batch_rows)
    # The clock is the greatest `at` so far; late orders do not move it.
    turns = frame["at"].cum_max().dt.truncate("30m")
    last = max(
        int(np.flatnonzero((turns != turns.shift(1)).to_numpy())[-1]) if refresh.every else 0,
        len(frame) // 45 * 45 if refresh.rows else 0,
    )
    assert 100 < last < 200
    want = pipeline(immediate()).replay({"orders": frame[:last]}, batch_rows)
    assert rows(got["shops"]) == rows(want["shops"])
    assert rows(got["recent"]) != rows(want["recent"]), "the view before it goes on"


def test_how_batches_are_cut_does_not_show_behind_a_deferred_view() -> None:
    found = [pipeline(deferred(every="30m")).replay({"orders": orders(300)}, n) for n in (1, 13, 1000)]
    assert rows(found[0]["seen"]) == rows(found[1]["seen"]) == rows(found[2]["seen"])
    assert found[0]["seen"]["before"].n_unique() > 3


@pytest.mark.parametrize("batch_rows", [3, 1000])
def test_inputs_of_the_same_key_are_made_before_the_view_takes_them(batch_rows: int) -> None:
    def built(refresh: Policy) -> Pipeline:
        p = Pipeline("shop")
        schema = {"id": int, "shop": str, "at": pl.Datetime, "x": float}
        source = p.source("orders", key="id", at="at", lateness="1h", schema=schema)
        recent = p.view("recent", source, op.window(by="shop", size="20m", n=op.count()))
        both = p.view(
            "both",
            source,
            op.window(by="shop", size="1h", most=op.maximum("x")),
            op.join_asof(recent, on="shop", columns={"recent": "n"}),
            refresh=refresh,
        )
        p.view("again", both, op.aggregate(by="shop", rows=op.count(), n=op.total("recent")), refresh=refresh)
        return p

    frame = orders(200)
    want = built(immediate()).replay({"orders": frame}, batch_rows)
    for mode in ("incremental", "full", "auto"):
        got = built(deferred(rows=40, mode=mode)).replay({"orders": frame}, batch_rows)
        assert len(got["both"]) == 200
        assert rows(got["both"]) == rows(want["both"])
        assert rows(got["again"]) == rows(want["again"])


def test_what_waits_and_how_old_the_view_is_are_told(tmp_path: Path) -> None:
    orders(200).with_columns(pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_ndjson(tmp_path / "orders.jsonl")
    settings = Settings(sources={"orders": SourceSettings(path=str(tmp_path / "orders.jsonl"))})
    p = pipeline(deferred(rows=45))
    state = claim(tmp_path / "state", p.name, p.definition(), 1, tmp_path / "out", outputs(p))
    run = Run(p, settings, tmp_path / "out", state)
    run.run()
    views = figures(run, None)["views"]
    assert (views["shops"]["refresh"]["ways"]["incremental"]["refreshes"], views["recent"]["refresh"]) == (4, None)
    assert views["shops"]["pending_changes"] == views["seen"]["pending_changes"] > 20
    assert views["recent"]["pending_changes"] == 0
    last = orders(200)["at"][:180].max()
    assert views["shops"]["frontier"] == views["seen"]["frontier"] == f"{last:%Y-%m-%dT%H:%M:%SZ}"
    assert views["recent"]["frontier"] > views["shops"]["frontier"]
    assert views["shops"]["local_lag_seconds"] == views["shops"]["global_lag_seconds"] > 0
    told = {(n, labels): v for n, labels, v in samples(figures(run, None), False)}
    assert told["freshet_view_refreshes", ("shops", "incremental")] == 4
    assert told["freshet_view_refresh_seconds", ("shops", "incremental")] > 0
    assert not any(n.startswith("freshet_view_refresh") and labels[0] == "recent" for n, labels in told)
    state.release()
    other = pipeline(deferred(rows=46))
    with pytest.raises(StateError, match="refresh of view shops changed"):
        claim(tmp_path / "state", other.name, other.definition(), 1, tmp_path / "out", outputs(other))


def stacked(upper: Policy, lower: Policy) -> Pipeline:
    """Two views over a table and a stream, and one on both of them."""
    p = Pipeline("stacked")
    schema = {"id": int, "shop": str, "at": pl.Datetime, "x": float}
    source = p.source("orders", key="id", at="at", lateness="1h", schema=schema)
    shops = p.view("shops", source, op.aggregate(by="shop", n=op.count(), x_sum=op.total("x")), refresh=upper)
    most = p.view("most", shops, op.where(pl.col("n") > 3))
    p.view("sizes", most, op.aggregate(by="n", shops=op.count(), x_sum=op.total("x_sum")), refresh=lower)
    return p


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
@pytest.mark.parametrize("upper", [deferred(target_lag="downstream"), deferred(target_lag="45m"), immediate()])
def test_a_view_of_a_target_lag_contains_what_is_older(upper: Policy, batch_rows: int) -> None:
    frame = orders(200)
    clock = frame["at"].cum_max()
    refreshed, since = 0, clock[0]
    for n, now in enumerate(clock):
        if now >= since + timedelta(minutes=45):
            refreshed, since = n, now
    assert 150 < refreshed < 200
    got = stacked(upper, deferred(target_lag="45m")).replay({"orders": frame}, batch_rows)
    want = stacked(immediate(), immediate()).replay({"orders": frame[:refreshed]}, batch_rows)
    assert rows(got["sizes"]) == rows(want["sizes"])
    assert len(got["sizes"]) > 1


def test_downstream_is_the_least_lag_of_those_that_stand_on_a_view() -> None:
    p = Pipeline("p")
    source = p.source("s", key="id", at="at", schema={"id": int, "at": pl.Datetime})
    first = p.view("first", source, op.where(pl.col("id") > 0), refresh=deferred(target_lag="downstream"))
    second = p.view("second", first, op.where(pl.col("id") > 1), refresh=deferred(target_lag="downstream"))
    between = p.view("between", second, op.where(pl.col("id") > 2))
    p.view("slow", between, op.where(pl.col("id") > 3), refresh=deferred(target_lag="1h"))
    other = p.view("other", source, op.where(pl.col("id") > 0), refresh=deferred(every="1m"))
    p.view("third", other, op.where(pl.col("id") > 0), refresh=deferred(target_lag="1h"))
    with pytest.raises(DefinitionError, match="stands on view 'other'"):
        lags(p)
    p.refresh("other", immediate())
    assert lags(p) == dict.fromkeys(("first", "second", "slow", "third"), 3600_000_000)
    p.view("quick", second, op.where(pl.col("id") > 3), refresh=deferred(target_lag="5m", rows=3))
    found = lags(p)
    assert (found["first"], found["second"], found["slow"]) == (300_000_000, 300_000_000, 3600_000_000)


@pytest.mark.parametrize(
    ("upper", "lower", "text"),
    [
        (deferred(target_lag="downstream"), immediate(), "view 'shops': its target_lag is 'downstream', but no view"),
        (deferred(target_lag="downstream"), deferred(rows=3), "expected a duration such as '5m' here or there"),
        (immediate(), deferred(target_lag="downstream"), "view 'sizes': its target_lag is 'downstream'"),
        (
            deferred(every="1m"),
            deferred(target_lag="1h"),
            "view 'sizes': its target_lag is 1h, but it stands on view 'shops', which may be further behind with "
            "deferred(every='1m'); expected target_lag='downstream' there",
        ),
        (deferred(target_lag="2h"), deferred(target_lag="1h"), "further behind with deferred(target_lag='2h')"),
    ],
)
def test_a_lag_that_cannot_be_kept_is_refused_before_anything_runs(upper: Policy, lower: Policy, text: str) -> None:
    with pytest.raises(DefinitionError) as error:
        stacked(upper, lower).replay({"orders": orders(3)})
    assert text in str(error.value)


def test_a_lag_of_less_than_an_epoch_is_refused() -> None:
    p = stacked(deferred(target_lag="downstream"), deferred(target_lag="5s"))
    check_lags(p, Settings(epoch="5s"))
    with pytest.raises(SettingsError) as error:
        check_lags(p, Settings(epoch="6s"))
    assert "its target_lag is 5s, but what it contains is saved only every 6s (epoch)" in str(error.value)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (deferred(drift=drift.ADWIN(), every="1h"), "but drift= is for models; expected every=, rows= or target_lag="),
        (deferred(debt=3), "refresh is deferred(debt=debt(price=3)), but debt= is for models"),
        (deferred(every="1h", window="1d"), "but window= is for models"),
        (on_query(3), "refresh is on_query(neighbours=3), which is for models; expected immediate() or deferred(...)"),
        ("daily", "view 'shops': refresh is 'daily'; expected immediate() or deferred(...)"),
    ],
)
def test_policies_of_models_are_refused_for_views(policy: Any, text: str) -> None:
    for declare in (lambda: pipeline(policy), lambda: pipeline(immediate()).refresh("shops", policy)):
        with pytest.raises(DefinitionError) as error:
            declare()
        assert text in str(error.value)


def test_a_policy_given_later_is_the_same_as_one_declared() -> None:
    declared = pipeline(deferred(every="30m"))
    for before in (immediate(), deferred(rows=3)):
        given = pipeline(before)
        given.refresh("shops", deferred(every="30m"))
        assert given.definition() == declared.definition()
        frame = orders(200)
        got, want = (p.replay({"orders": frame}) for p in (given, declared))
        assert {n: rows(f) for n, f in got.items()} == {n: rows(f) for n, f in want.items()}
    given.refresh("shops", immediate())
    assert given.definition() == pipeline(immediate()).definition()
    given.view("more", given.views["shops"], op.where(pl.col("n") > 1))
    with pytest.raises(DefinitionError, match="no view or model 'shop' in pipeline 'shop'; did you mean 'shops'"):
        given.refresh("shop", immediate())


@pytest.mark.parametrize("mode", ["full", "auto"])
def test_a_view_that_forgets_keys_cannot_start_anew(mode: Any) -> None:
    p = Pipeline("p")
    schema = {"id": int, "k": str, "deleted": bool, "at": pl.Datetime}
    source = p.source("messages", key="id", at="at", schema=schema)
    policy = deferred(rows=3, mode=mode)
    with pytest.raises(DefinitionError, match=r"but latest forgets keys \(keep=\)"):
        p.view("kept", source, op.latest(by="k", keep="1d"), refresh=policy)
    p.view("kept", source, op.latest(by="k", keep="1d"), refresh=deferred(rows=3))
    with pytest.raises(DefinitionError, match="view 'kept': refresh is deferred"):
        p.refresh("kept", policy)
    p.view("all", source, op.latest(by="k"), refresh=policy)


def test_what_stands_on_a_deferred_view_of_the_same_key_sees_what_has_settled() -> None:
    """In mode "full" the steps of a view give all its rows anew; the next view must be given the difference."""

    def built(mode: Any) -> Pipeline:
        p = Pipeline("shop")
        schema = {"id": int, "shop": str, "at": pl.Datetime, "x": float}
        source = p.source("orders", key="id", at="at", lateness="1h", schema=schema)
        sums = p.view(
            "sums", source, op.window(by="shop", size="20m", n=op.count()), refresh=deferred(rows=30, mode=mode)
        )
        p.view("next", sums, op.aggregate(by="shop", rows=op.count(), n=op.total("n")))
        p.view("kept", sums, op.where(pl.col("n") > 1))
        return p

    found = [built(mode).replay({"orders": orders(200)}, 50) for mode in ("incremental", "full")]
    for view in ("sums", "next", "kept"):
        assert len(found[0][view]) > 3
        assert rows(found[0][view]) == rows(found[1][view])


def change(*given: tuple[int, int, int, str, int, float | None]) -> Delta:
    """Rows (weight, at, pos, k, n, x), each with the next seq."""
    weight, at, pos, *values = zip(*given, strict=True)
    columns = {name: to_column(v, t) for (name, t), v in zip(SCHEMA.items(), values, strict=True)}
    return Delta(columns, *(np.array(v, np.int64) for v in (weight, at, pos, range(len(given)))))


def test_what_cancels_out_is_left_out() -> None:
    net = consolidated(
        change(
            (1, 5, 1, "a", 1, 1.0),  # comes and goes
            (-1, 6, 2, "b", 2, None),  # is replaced twice, in the end by its like
            (1, 6, 2, "b", 3, None),
            (1, 5, 3, "c", 1, 1.0),  # comes and is corrected
            (-1, 5, 1, "a", 1, 1.0),
            (-1, 6, 2, "b", 3, None),
            (1, 6, 2, "b", 2, None),
            (-1, 5, 3, "c", 1, 1.0),
            (1, 5, 3, "c", 2, 1.0),
            (-1, 9, 4, "d", 1, 1.0),  # was there, and is another
            (1, 9, 4, "d", 1, 2.0),
            (-1, 9, 5, "e", 1, 1.0),  # was there, and is gone
            (-1, 9, 6, "f", 1, 0.0),  # differs in its sign only
            (1, 9, 6, "f", 1, -0.0),
        )
    )
    assert list(zip(net.weight.tolist(), net.columns["k"].tolist(), net.columns["n"].tolist(), strict=True)) == [
        (1, "c", 2), (-1, "d", 1), (1, "d", 1), (-1, "e", 1), (-1, "f", 1), (1, "f", 1),
    ]  # fmt: skip
    assert net.seq.tolist() == [8, 9, 10, 11, 12, 13]
