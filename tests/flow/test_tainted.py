"""What stands on suspect rows is marked, in whole runs: against SQL over the change files, also when one was killed."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

from engine.metrics import samples
from engine.report import figures
from tests.flow.cards import data
from tests.flow.running import HERE, cards, command, freshet, killed, project, run_here, written
from tests.flow.test_oracle import accumulated, on_time


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = project(tmp_path_factory.mktemp("tainted"))
    shutil.copy(HERE / "tainted" / "pipeline.py", made / "pipeline.py")
    data.write(made / "data", 600, seed=4)
    return made


Base = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def base(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    base = tmp_path_factory.mktemp("base")
    run = run_here(cards(folder), folder, base / "out", base / "state", epoch="10s")
    return base, figures(run, None)


def values(base: Base, name: str) -> list[dict[str, Any]]:
    return [json.loads(r) for r in accumulated(base[0] / "out" / f"{name}.jsonl").elements()]


@pytest.fixture(scope="module")
def db(folder: Path, base: Base) -> duckdb.DuckDBPyConnection:
    """What ought to be marked: from the files, in SQL."""
    db, lines = duckdb.connect(), (folder / "data" / "payments.jsonl").read_text().splitlines()
    shops = [json.loads(line) for line in (folder / "data" / "shops.jsonl").read_text().splitlines()]
    told = (folder / "data" / "chargebacks.jsonl").read_text().splitlines()
    kept = {
        "payments": on_time(lines, "at"),
        "messages": [{"fraud": None, **json.loads(line), "pos": i} for i, line in enumerate(told)],
        "versions": [
            {
                "shop": (e["after"] or e["before"])["shop"],
                "since": e["source"]["ts_ms"],
                "limit": (e["after"] or {}).get("limit"),
                "pos": i,
            }
            for i, e in enumerate(shops)
        ],
    }
    for name, rows in kept.items():
        file = base[0] / f"{name}.ndjson"
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        db.execute(f"CREATE TABLE {name} AS SELECT * FROM read_json('{file}', sample_size=-1)")
    db.execute("""
        CREATE TABLE judged AS SELECT *, amount NOT BETWEEN 2 AND 150 AS aside, shop = 's3' AS odd FROM payments;
        CREATE TABLE once AS SELECT * FROM judged p WHERE NOT EXISTS (SELECT 1 FROM judged q WHERE q.aside = p.aside
            AND q.tx = p.tx AND (q.at, q.pos) < (p.at, p.pos) AND q.at >= p.at - 86400000);
        CREATE TABLE seen AS SELECT p.tx, p.card, p.at, p.pos, p.amount, p.shop, p.aside,
                count(*) FILTER (NOT q.aside) AS n, bool_or(q.aside OR q.odd) AS marked
            FROM once p JOIN once q ON q.card = p.card AND (q.at, q.pos) <= (p.at, p.pos) AND q.at > p.at - 5000
            GROUP BY ALL;
        CREATE TABLE limited AS SELECT s.*, NOT coalesce(amount / v."limit" BETWEEN 0 AND 1.5, true) AS high
            FROM seen s ASOF LEFT JOIN (SELECT shop, since, arg_max("limit", pos) AS "limit" FROM versions
                WHERE (shop, since, pos) IN (SELECT (shop, since, max(pos)) FROM versions GROUP BY shop, since)
                GROUP BY shop, since) v ON v.shop = s.shop AND s.at >= v.since;
        CREATE TABLE whole AS SELECT tx, card, "at", pos, n, aside, high, aside OR high AS gone,
            marked OR n > 3 OR aside OR high AS suspect FROM limited;
        CREATE TABLE newest AS SELECT * FROM messages m WHERE op <> 'delete'
            AND pos = (SELECT max(pos) FROM messages n WHERE n.tx = m.tx);
    """)
    return db


def marks(rows: list[dict[str, Any]], *names: str) -> Counter[Any]:
    return Counter(tuple(r[n] for n in (*names, "suspect")) for r in rows)


def same(found: Counter[Any], wanted: list[Any]) -> None:
    want = Counter(wanted)
    assert found == want, (list((found - want).items())[:5], list((want - found).items())[:5])
    assert {row[-1] for row in want} == {False, True}, "there must be both"


def test_what_a_window_saw_is_marked(base: Base, db: duckdb.DuckDBPyConnection) -> None:
    same(
        marks(values(base, "features"), "tx", "n"), db.sql("SELECT tx, n, suspect FROM whole WHERE NOT gone").fetchall()
    )
    alone = db.sql("""SELECT p.tx FROM once p JOIN once q ON q.card = p.card AND (q.at, q.pos) <= (p.at, p.pos)
        AND q.at > p.at - 5000 GROUP BY p.tx, p.aside, p.pos HAVING NOT p.aside AND bool_or(q.aside) AND NOT
        bool_or(q.odd)""").fetchall()
    assert len(alone) > 5, "what is aside alone must have marked some"


def test_what_a_key_has_is_marked(base: Base, db: duckdb.DuckDBPyConnection) -> None:
    want = "SELECT card, count(*) FILTER (NOT aside) AS n, bool_or(aside OR odd) FROM judged GROUP BY card HAVING n > 0"
    same(marks(values(base, "cards"), "card", "n"), db.sql(want).fetchall())
    want = "SELECT card, count(*) FILTER (NOT gone) AS n, bool_or(suspect) FROM whole GROUP BY card HAVING n > 0"
    found = {r["card"]: r for r in values(base, "busy")}
    want_busy = {card: (n, mark) for card, n, mark in db.sql(want).fetchall()}
    assert found.keys() <= want_busy.keys()
    behind = [c for c, r in found.items() if (r["n"], r["suspect"]) != want_busy[c]]
    assert len(behind) < len(found) / 2, "it is deferred, so some may lack their newest rows, but not most"


def test_what_is_found_or_would_have_been_is_marked(base: Base, db: duckdb.DuckDBPyConnection) -> None:
    want = """SELECT m.tx, w.n, coalesce(v.suspect, false) FROM newest m
        ASOF LEFT JOIN (SELECT * FROM whole WHERE NOT gone) w ON w.tx = m.tx AND m.known >= w.at
        ASOF LEFT JOIN whole v ON v.tx = m.tx AND m.known >= v.at"""
    found = values(base, "known")
    same(marks(found, "tx", "n"), db.sql(want).fetchall())
    assert any(r["suspect"] and r["n"] is None for r in found), "one that is aside must have been missed"
    want = (
        "SELECT w.tx, m.fraud, w.suspect FROM whole w JOIN newest m ON m.tx = w.tx AND m.known >= w.at WHERE NOT gone"
    )
    same(marks(values(base, "labelled"), "tx", "fraud"), db.sql(want).fetchall())


def test_predictions_and_examples_say_it_and_a_guard_acts_on_it(base: Base) -> None:
    predicted = values(base, "predictions")
    assert {(r["suspect"], r["prediction"] is None, r["guards"]) for r in predicted} == {
        (True, True, "suspect"),
        (False, False, None),
    }
    examples = values(base, "training")
    assert {r["tx"]: r["suspect"] for r in examples}.items() <= {r["tx"]: r["suspect"] for r in predicted}.items()
    assert {r["suspect"] for r in examples} == {False, True}
    assert {r["suspect"] for r in values(base, "clean")} == {False}
    features = values(base, "features")
    assert len(values(base, "clean")) == sum(not r["suspect"] for r in features) < len(features)


def test_what_is_counted(base: Base) -> None:
    views = base[1]["views"]
    for name in ("features", "cards", "busy", "known", "labelled", "clean"):
        assert views[name]["suspect"] == sum(r["suspect"] for r in values(base, name))
        assert views[name]["suspect_inserted"] >= views[name]["suspect"]
    for name in ("predictions", "training"):
        assert views[f"fraud.{name}"]["suspect"] == sum(r["suspect"] for r in values(base, name)) > 0
    assert views["features.quarantine"]["suspect"] is None
    exported = {labels[0]: v for n, labels, v in samples(base[1], False) if n == "freshet_view_suspect_rows"}
    assert exported == {name: v["suspect"] for name, v in views.items() if v["suspect"] is not None}


@pytest.mark.parametrize("mode", ["incremental", "full"])
def test_how_it_is_run_does_not_show(mode: str, folder: Path, base: Base, tmp_path: Path) -> None:
    given = {"workers": 2, "shards": 3, "batch_rows": 30} if mode == "incremental" else {}
    refresh = [f"busy=deferred(every='2m', rows=40, mode='{mode}')"]
    run_here(cards(folder), folder, tmp_path / "out", tmp_path / "state", refresh, **given)
    for name in written(base[0] / "out"):
        if name not in ("dead_letters.jsonl", "late.jsonl"):
            assert accumulated(tmp_path / "out" / name) == accumulated(base[0] / "out" / name)


def test_kill_9_does_not_show(folder: Path, base: Base, tmp_path: Path) -> None:
    args = command("run", folder, "--out", "out", "--state", "state", "--quiet")
    assert killed(args, tmp_path, random.Random(2), 100_000, 2) >= 1
    assert freshet(*args[3:], cwd=tmp_path).returncode == 0
    assert written(tmp_path / "out") == written(base[0] / "out")
    views = json.loads((tmp_path / "out/summary.json").read_text())["views"]
    assert {n: v["suspect_inserted"] for n, v in views.items()} == {
        n: v["suspect_inserted"] for n, v in base[1]["views"].items()
    }
