"""Deferred views: refreshed when due, with the net of what is pending; then they are what immediate ones are."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import operators as op
from engine import Pipeline, deferred, immediate
from engine.flow import Run
from engine.graph import Policy
from engine.metrics import samples
from engine.publish import outputs
from engine.recovery import StateError, claim
from engine.report import figures
from engine.settings import Settings, SourceSettings
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
@pytest.mark.parametrize("refresh", [deferred(every="30m"), deferred(rows=45), deferred(every="30m", rows=45)])
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
    got = built(deferred(rows=40)).replay({"orders": frame}, batch_rows)
    want = built(immediate()).replay({"orders": frame}, batch_rows)
    assert len(got["both"]) == 200
    assert rows(got["both"]) == rows(want["both"])
    assert rows(got["again"]) == rows(want["again"])


def test_what_waits_and_how_old_the_view_is_are_told(tmp_path: Path) -> None:
    orders(200).with_columns(pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_ndjson(tmp_path / "orders.jsonl")
    settings = Settings(sources={"orders": SourceSettings(path=str(tmp_path / "orders.jsonl"))})
    p = pipeline(deferred(rows=45))
    state = claim(tmp_path / "state", p.name, p.definition(), 1, tmp_path / "out", outputs(p))
    run = Run(p, settings, tmp_path / "out", state.recovery)
    run.run()
    views = figures(run, None)["views"]
    assert (views["shops"]["refreshes"], views["recent"]["refreshes"]) == (4, None)
    assert views["shops"]["pending_changes"] == views["seen"]["pending_changes"] > 20
    assert views["recent"]["pending_changes"] == 0
    last = orders(200)["at"][:180].max()
    assert views["shops"]["frontier"] == views["seen"]["frontier"] == f"{last:%Y-%m-%dT%H:%M:%SZ}"
    assert views["recent"]["frontier"] > views["shops"]["frontier"]
    assert views["shops"]["local_lag_seconds"] == views["shops"]["global_lag_seconds"] > 0
    told = {(n, labels): v for n, labels, v in samples(figures(run, None), False)}
    assert told["freshet_view_refreshes", ("shops",)] == 4
    assert ("freshet_view_refreshes", ("recent",)) not in told
    state.release()
    other = pipeline(deferred(rows=46))
    with pytest.raises(StateError, match="refresh of view shops changed"):
        claim(tmp_path / "state", other.name, other.definition(), 1, tmp_path / "out", outputs(other))


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
        )
    )
    assert list(zip(net.weight.tolist(), net.columns["k"].tolist(), net.columns["n"].tolist(), strict=True)) == [
        (1, "c", 2), (-1, "d", 1), (1, "d", 1), (-1, "e", 1),
    ]  # fmt: skip
    assert net.seq.tolist() == [8, 9, 10, 11]
