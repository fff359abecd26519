"""A Debezium truncation of a table: no row at or after it sees a version before it, whatever its key and its shard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import operators as op
from engine import Pipeline
from tests.flow.running import run_here


def pipeline() -> Pipeline:
    p = Pipeline("truncate")
    orders = p.source("orders", key="id", at="at", lateness="1h", schema={"id": int, "shop": str, "at": pl.Datetime})
    shops = p.table("shops", key="shop", at="since", schema={"shop": str, "since": pl.Datetime, "rate": float})
    p.sink("seen", p.view("seen", orders, op.join(shops, on="shop", columns=["rate"])))
    p.sink("shops", p.view("open", shops, op.where(pl.col("rate") > 0)))
    return p


def at(minute: int) -> str:
    return f"2024-01-01T00:{minute:02d}:00Z"


def event(kind: str, minute: int, shop: str | None = None, rate: float | None = None) -> dict[str, Any]:
    row = None if kind == "t" else {"shop": shop, "since": at(minute), "rate": rate}
    ms = 1_704_067_200_000 + 60_000 * minute
    return {"op": kind, "before": None, "after": row, "source": {"ts_ms": ms}, "ts_ms": ms}


@pytest.mark.parametrize(("workers", "shards"), [(1, 1), (1, 4), (3, 4)])
def test_a_truncation_reaches_every_key(workers: int, shards: int, tmp_path: Path) -> None:
    names = [f"shop{i}" for i in range(20)]
    changes = [event("c", 1, shop, 1.0) for shop in names] + [event("t", 10)]
    changes += [event("c", 20, shop, 2.0) for shop in names[:5]]
    (tmp_path / "shops.jsonl").write_text("\n".join(map(json.dumps, changes)) + "\n")
    orders = [{"id": n, "shop": s, "at": at(m)} for n, (m, s) in enumerate((m, s) for m in (5, 15, 25) for s in names)]
    (tmp_path / "orders.jsonl").write_text("\n".join(map(json.dumps, orders)) + "\n")
    (tmp_path / "freshet.toml").write_text(
        f'workers = {workers}\nshards = {shards}\nport = 0\n[sources.orders]\npath = "{tmp_path}/orders.jsonl"\n'
        f'[sources.shops]\npath = "{tmp_path}/shops.jsonl"\nformat = "debezium"\n'
    )
    run_here(pipeline(), tmp_path, tmp_path / "out", tmp_path / "state")
    rows = [json.loads(line) for line in (tmp_path / "out/seen.jsonl").read_text().splitlines()]
    net: dict[tuple[int, float | None], int] = {}
    for row in rows:
        net[row["id"], row["rate"]] = net.get((row["id"], row["rate"]), 0) + row["weight"]
    seen = {n: rate for (n, rate), weight in net.items() if weight}
    assert seen == {
        n: 1.0 if n < 20 else 2.0 if n >= 40 and order["shop"] in names[:5] else None for n, order in enumerate(orders)
    }
    open_now = [json.loads(line) for line in (tmp_path / "out/shops.jsonl").read_text().splitlines()]
    assert sum(row["weight"] for row in open_now) == 5
