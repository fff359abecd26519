"""The views of the cards pipeline, read back from its output files, against SQL over the base rows.

The checker uses no code of the engine: it reads the change files itself, decides in ten lines which rows count, and
lets DuckDB compute each view from scratch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from tests.flow.cards import data
from tests.flow.running import cards, project, run_here

LATENESS = 60_000


def accumulated(path: Path) -> Counter[str]:
    """The rows that a file of changes adds up to."""
    rows: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        row = json.loads(line)
        weight = row.pop("weight")
        rows[json.dumps(row, sort_keys=True)] += weight
        assert rows[json.dumps(row, sort_keys=True)] >= 0, "retracted before it was there"
    return +rows


def on_time(lines: list[str], at: str) -> list[dict[str, object]]:
    """The records that are whole and not late, with their line number as position."""
    newest, rows = 0, []
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row.get("tx"), int) or isinstance(row.get("amount", 0.0), str):
            continue
        newest = max(newest, row[at])
        if row[at] >= newest - LATENESS:
            rows.append({**row, "pos": i})
    return rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = project(tmp_path_factory.mktemp("oracle"))
    data.write(folder / "data", 4000, seed=5)
    run_here(cards(folder), folder, folder / "out", folder / "state")
    return folder


def known_by(lines: list[str], at: Callable[[dict[str, Any]], int], known: int | None) -> list[str]:
    """The first lines: those that were known by then, in milliseconds; all of them by default."""
    newest = 0
    for i, line in enumerate(lines):
        try:
            newest = max(newest, at(json.loads(line)))
        except (ValueError, KeyError):
            continue
        if known is not None and newest > known:
            return lines[:i]
    return lines


def oracle(base: Path, known: int | None = None) -> duckdb.DuckDBPyConnection:
    """The views from scratch, over the rows that were known by then, in milliseconds."""
    db = duckdb.connect()

    def lines(name: str, at: Callable[[dict[str, Any]], int]) -> list[str]:
        return known_by((base / "data" / f"{name}.jsonl").read_text().splitlines(), at, known)

    payments = pl.DataFrame(on_time(lines("payments", lambda row: int(row["at"])), "at"))
    messages = pl.DataFrame(
        [
            {"fraud": None, **json.loads(line), "pos": i}
            for i, line in enumerate(lines("chargebacks", lambda row: int(row["known"])))
        ],
        infer_schema_length=None,
    )
    versions = pl.DataFrame(
        [
            {
                "shop": (e["after"] or e["before"])["shop"],
                "since": e["source"]["ts_ms"],
                "country": (e["after"] or {}).get("country"),
                "limit": (e["after"] or {}).get("limit"),
                "pos": i,
            }
            for i, e in enumerate(map(json.loads, lines("shops", lambda e: int(e["source"]["ts_ms"]))))
        ],
        infer_schema_length=None,
    )
    for name, frame in (("payments", payments), ("messages", messages), ("versions", versions)):
        frame.write_ndjson(base / f"{name}.ndjson")
        types = {pl.Int64: "BIGINT", pl.Float64: "DOUBLE", pl.Boolean: "BOOLEAN", pl.String: "VARCHAR"}
        columns = ", ".join(f"'{n}': '{types[type(t)]}'" for n, t in frame.schema.items())
        db.execute(f"CREATE TABLE {name} AS SELECT * FROM read_json('{base}/{name}.ndjson', columns={{{columns}}})")
    db.execute("""
        CREATE TABLE once AS SELECT * FROM payments p WHERE NOT EXISTS (
            SELECT 1 FROM payments q WHERE q.tx = p.tx AND (q.at, q.pos) < (p.at, p.pos) AND q.at >= p.at - 86400000);
        CREATE TABLE features AS
        SELECT p.tx, p.card, p.shop, p.amount, p.at,
            count(*) FILTER (WHERE q.at > p.at - 600000) AS n,
            fsum(q.amount) FILTER (WHERE q.at > p.at - 600000) AS spent,
            fsum(q.amount) AS spent_ever,
            max(q.amount) FILTER (WHERE q.at > p.at - 600000) AS most,
            any_value(v.country) AS country, any_value(v."limit") AS "limit"
        FROM once p JOIN once q ON q.card = p.card AND (q.at, q.pos) <= (p.at, p.pos)
        LEFT JOIN versions v ON v.shop = p.shop AND (v.since, v.pos) =
            (SELECT max((w.since, w.pos)) FROM versions w WHERE w.shop = p.shop AND w.since <= p.at)
        GROUP BY ALL
    """)
    return db


LABELLED = """
    WITH newest AS (
        SELECT * FROM messages m WHERE pos = (SELECT max(pos) FROM messages n WHERE n.tx = m.tx) AND op <> 'delete')
    SELECT f.tx, newest.fraud FROM features f JOIN newest ON newest.tx = f.tx
    WHERE newest.known BETWEEN f.at AND f.at + 86400000
"""


@pytest.fixture(scope="module")
def db(base: Path) -> duckdb.DuckDBPyConnection:
    return oracle(base)


def close(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a == b or abs(a - b) <= 1e-12 * max(abs(a), abs(b))
    return a == b


def test_features(base: Path, db: duckdb.DuckDBPyConnection) -> None:
    got = sorted(
        (json.loads(r) for r in accumulated(base / "out" / "features.jsonl").elements()), key=lambda r: r["tx"]
    )
    want = db.sql(
        'SELECT tx, card, shop, amount, n, spent, spent_ever, most, country, "limit" FROM features ORDER BY tx'
    )
    names, rows = want.columns, want.fetchall()
    assert len(got) == len(rows) > 3000
    for mine, theirs in zip(got, rows, strict=True):
        for name, value in zip(names, theirs, strict=True):
            assert close(mine[name], value), (mine, theirs)
        assert close(mine["share"], mine["amount"] / mine["spent"])


def test_by_country(base: Path, db: duckdb.DuckDBPyConnection) -> None:
    got = {r["country"]: r for r in map(json.loads, accumulated(base / "out" / "by_country.jsonl").elements())}
    want = db.sql("SELECT country, count(*), fsum(amount) FROM features GROUP BY country").fetchall()
    assert len(got) == len(want) >= 3
    for country, n, turnover in want:
        assert got[country]["payments"] == n
        assert close(got[country]["turnover"], turnover)


def test_labelled(base: Path, db: duckdb.DuckDBPyConnection) -> None:
    got = {r["tx"]: r for r in map(json.loads, accumulated(base / "out" / "labelled.jsonl").elements())}
    want = db.sql(LABELLED).fetchall()
    assert {tx: r["fraud"] for tx, r in got.items()} == dict(want)
    assert len(want) > 2000


def test_one_prediction_for_each_question_and_none_of_the_dead_or_late(
    base: Path, db: duckdb.DuckDBPyConnection
) -> None:
    lines = [json.loads(line) for line in (base / "out" / "predictions.jsonl").read_text().splitlines()]
    counts = Counter(r["tx"] for r in lines)
    assert set(counts.values()) == {1}
    assert set(counts) == {tx for (tx,) in db.sql("SELECT tx FROM features").fetchall()}
    assert {r["weight"] for r in lines} == {1}


def test_nothing_is_lost(base: Path) -> None:
    lines = (base / "data" / "payments.jsonl").read_text().splitlines()
    dead = (base / "out" / "dead_letters.jsonl").read_text().splitlines()
    late = (base / "out" / "late.jsonl").read_text().splitlines()
    assert len(on_time(lines, "at")) + len(dead) + len(late) == len(lines)
    assert dead
    assert late
    raw = {json.loads(d)["raw"] for d in dead}
    assert raw <= set(lines)
