"""Views on views whose rows are taken back or come out long after their own time: nothing may be forgotten too soon."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest

import operators as op
from engine import Pipeline

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
N = 3000


def orders() -> pl.DataFrame:
    """An order a minute of one of 300 shops, each paid for up to two days later, or never."""
    rng = np.random.default_rng(4)
    at = [START + timedelta(minutes=m) for m in range(N)]
    paid = [t + timedelta(minutes=int(m)) for t, m in zip(at, rng.integers(1, 2880, N), strict=True)]
    shop = [f"s{i}" for i in rng.integers(0, 300, N)]
    return pl.DataFrame({"id": np.arange(N), "shop": shop, "at": at, "paid": paid})


@pytest.mark.parametrize("batch_rows", [1, 50, 2000])
def test_views_on_aggregates_labels_and_corrected_sources(batch_rows: int) -> None:
    p = Pipeline("stacked")
    placed = p.source("placed", key="id", at="at", lateness="2m", schema={"id": int, "shop": str, "at": pl.Datetime})
    paid = p.source("paid", key="id", at="paid", lateness="2m", schema={"id": int, "paid": pl.Datetime})
    moves = p.source(
        "moves", key="shop", at="at", lateness="2m", append_only=False,
        schema={"shop": str, "at": pl.Datetime, "id": int},
    )  # fmt: skip
    shops = p.view("shops", placed, op.aggregate(by="shop", n=op.count()))
    p.view("sizes", shops, op.aggregate(by="n", shops=op.count()))
    p.view("same_size", shops, op.window(by="n", size="forever", rank=op.count()))
    p.view("seen", placed, op.join_asof(shops, on="shop", columns={"now": "n"}))
    settled = p.view("settled", placed, op.join_label(paid, on="id", columns={"when": "paid"}, wait="1d"))
    p.view("settled_by_shop", settled, op.aggregate(by="shop", n=op.count()))
    p.view("newest", moves, op.window(by="shop", size="forever", n=op.count()))

    frame = orders()
    answers = frame.select("id", "paid").sort("paid")
    got = p.replay(
        {"placed": frame.drop("paid"), "paid": answers, "moves": frame.select("shop", "at", "id")}, batch_rows
    )

    count = frame.group_by("shop").agg(pl.len().cast(pl.Int64).alias("n"), pl.col("id").max())
    assert set(got["shops"].rows()) == set(count.select("shop", "n").rows())
    sizes = count.group_by("n").agg(pl.len().cast(pl.Int64))
    assert set(got["sizes"].rows()) == set(sizes.rows())
    ranks = got["same_size"].group_by("n").agg(pl.col("rank").sort())
    assert all(rank == list(range(1, len(rank) + 1)) for _, rank in ranks.rows())
    assert ranks.select(pl.col("rank").list.len().sum()).item() == 300
    # Of each shop only its last order is not older than the row that counts it.
    seen = frame.join(count.select("id", now="n"), on="id", how="left", maintain_order="left")
    assert got["seen"].sort("id")["now"].to_list() == seen["now"].to_list()
    in_time = frame.filter(pl.col("paid") - pl.col("at") <= timedelta(days=1))
    assert 1000 < len(in_time) < 2000
    assert set(got["settled"]["id"]) == set(in_time["id"])
    assert set(got["settled_by_shop"].rows()) == set(in_time.group_by("shop").agg(pl.len().cast(pl.Int64)).rows())
    assert set(got["newest"].select("shop", "id", "n").rows()) == {(s, i, 1) for s, _, i in count.rows()}
