"""Expectations in whole runs: each row is in its relation or in the quarantine, also after corrections, late rows, a
crash or when it is forgotten; counts are right; and a run stops where it must not go on."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest

from engine.batch import Way
from engine.cost import Costs
from engine.expect import Judged
from engine.flow import FlowError
from engine.hold import Settling
from engine.metrics import samples
from engine.publish import Publish
from engine.report import figures
from tests.flow.cards import data
from tests.flow.running import HERE, cards, command, freshet, killed, project, run_here, written
from tests.flow.test_oracle import accumulated, on_time
from tests.flow.test_recovery import CrashingAt


def expected(folder: Path) -> Path:
    """A copy of the pipeline in a folder of its own."""
    made = project(folder)
    shutil.copy(HERE / "expected" / "pipeline.py", made / "pipeline.py")
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = expected(tmp_path_factory.mktemp("expected"))
    data.write(made / "data", 1000, seed=3)
    return made


@pytest.fixture(scope="module")
def base(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    base = tmp_path_factory.mktemp("base")
    run = run_here(cards(folder), folder, base / "out", base / "state", epoch="10s")
    return base, figures(run, None)


Base = tuple[Path, dict[str, Any]]


def rows(base: Base, name: str, *, without: str = "") -> Counter[str]:
    """The rows of an output, without a column."""
    found = accumulated(base[0] / "out" / f"{name}.jsonl")
    return Counter({json.dumps({k: v for k, v in json.loads(r).items() if k != without}): n for r, n in found.items()})


def values(base: Base, name: str) -> list[dict[str, Any]]:
    return [json.loads(r) for r in accumulated(base[0] / "out" / f"{name}.jsonl").elements()]


def read(folder: Path, base: Base) -> duckdb.DuckDBPyConnection:
    """The change files, and what ought to follow from them, in SQL."""
    db, lines = duckdb.connect(), (folder / "data" / "payments.jsonl").read_text().splitlines()
    messages = (folder / "data" / "chargebacks.jsonl").read_text().splitlines()
    kept = {
        "payments": on_time(lines, "at"),
        "messages": [{"fraud": None, **json.loads(line), "pos": i} for i, line in enumerate(messages)],
    }
    for name, found in kept.items():
        file = base[0] / f"{name}.ndjson"
        file.write_text("".join(json.dumps(r) + "\n" for r in found))
        db.execute(f"CREATE TABLE {name} AS SELECT * FROM read_json('{file}', sample_size=-1)")
    db.execute("""
        CREATE TABLE judged AS SELECT *, concat_ws('; ',
            CASE WHEN amount NOT BETWEEN 0.5 AND 100 THEN 'between(amount, 0.5, 100)' END,
            CASE WHEN shop = 's11' THEN 'shops' END) AS reason FROM payments;
        CREATE TABLE once AS SELECT * FROM judged p WHERE reason = '' AND NOT EXISTS (SELECT 1 FROM judged q
            WHERE q.reason = '' AND q.tx = p.tx AND (q.at, q.pos) < (p.at, p.pos) AND q.at >= p.at - 86400000);
        CREATE TABLE counted AS SELECT p.tx, count(*) AS n FROM once p JOIN once q
            ON q.card = p.card AND (q.at, q.pos) <= (p.at, p.pos) AND q.at > p.at - 600000 GROUP BY p.tx;
        CREATE TABLE newest AS SELECT * FROM messages m WHERE op <> 'delete'
            AND pos = (SELECT max(pos) FROM messages n WHERE n.tx = m.tx);
    """)
    return db


def test_the_rows_of_a_source_are_either_there_or_aside(folder: Path, base: Base) -> None:
    db = read(folder, base)
    aside = db.sql("SELECT tx, reason FROM judged WHERE reason <> ''").fetchall()
    assert Counter((r["tx"], r["reason"]) for r in values(base, "payments_aside")) == Counter(aside)
    assert {r for _, r in aside} == {"between(amount, 0.5, 100)", "shops", "between(amount, 0.5, 100); shops"}
    assert {r["tx"] for r in values(base, "once")} == {t for (t,) in db.sql("SELECT tx FROM once").fetchall()}


def test_repeated_rows_are_aside(folder: Path, base: Base) -> None:
    db = read(folder, base)
    want = db.sql("SELECT tx FROM judged WHERE reason = '' EXCEPT ALL SELECT tx FROM once").fetchall()
    aside = values(base, "once_aside")
    assert sorted((r["tx"],) for r in aside) == sorted(want)
    assert len(aside) > 2
    assert {r["reason"] for r in aside} == {"repeated"}


def test_what_is_counted_decides_and_a_late_row_moves_others(folder: Path, base: Base) -> None:
    db = read(folder, base)
    for name, sql in (("features", "n % 2 = 0"), ("features_aside", "n % 2 = 1")):
        want = dict(db.sql(f"SELECT tx, n FROM counted WHERE {sql}").fetchall())
        assert {r["tx"]: r["n"] for r in values(base, name)} == want
        assert len(want) > 100
    assert {r["reason"] for r in values(base, "features_aside")} == {"even"}
    moved = [json.loads(line) for line in (base[0] / "out/features.jsonl").read_text().splitlines()]
    gone = {r["tx"] for r in moved if r["weight"] < 0}
    assert gone & {r["tx"] for r in values(base, "features_aside")}, "a late row must have moved one"


def test_a_correction_releases_a_row_and_a_delete_takes_it(folder: Path, base: Base) -> None:
    db = read(folder, base)
    for name, sql in (("told", "fraud IS NOT true"), ("chargebacks_aside", "fraud")):
        want = dict(db.sql(f"SELECT tx, fraud FROM newest WHERE {sql}").fetchall())
        assert {r["tx"]: r["fraud"] for r in values(base, name)} == want
        assert len(want) > 100
    aside = [json.loads(line) for line in (base[0] / "out/chargebacks_aside.jsonl").read_text().splitlines()]
    gone = {r["tx"] for r in aside if r["weight"] < 0}
    assert gone & {r["tx"] for r in values(base, "told")}, "a correction must have released one"
    assert gone - {r["tx"] for r in values(base, "told")}, "a delete must have taken one"


@pytest.mark.parametrize("name", ["features", "cards"])
def test_no_row_is_lost(name: str, base: Base) -> None:
    meets, aside = rows(base, name), rows(base, f"{name}_aside", without="reason")
    assert meets + aside == rows(base, f"all_{name}")
    assert meets
    assert aside
    views = base[1]["views"]
    assert views[name]["rows"] + views[f"{name}.quarantine"]["rows"] == views[f"all_{name}"]["rows"]
    assert views[f"{name}.quarantine"]["retracted"] > 0


def test_a_deferred_view_is_split_as_it_is_refreshed(base: Base) -> None:
    aside = values(base, "cards_aside")
    assert all(r["payments"] * 7 % 5 < 3 for r in values(base, "cards"))
    assert all(r["payments"] * 7 % 5 >= 3 and r["reason"] == "small" for r in aside)
    (told,) = values(base, "unusual")
    assert (told["cards"], told["most"]) == (len(aside), max(r["payments"] for r in aside))


APPROVED = """SELECT tx FROM newest n JOIN judged p USING (tx) WHERE n.fraud IS NOT true
    AND n.known BETWEEN p.at AND p.at + 60000 AND p.reason = ''"""


def test_rows_that_are_approved_in_time_are_let_in(folder: Path, base: Base) -> None:
    db = read(folder, base)
    approved = {t for (t,) in db.sql(APPROVED).fetchall()}
    every = dict(db.sql("SELECT tx, amount FROM once").fetchall())
    want = {tx for tx, amount in every.items() if amount < 30 or tx in approved}
    assert {r["tx"] for r in values(base, "cleared")} == want
    assert {r["tx"] for r in values(base, "cleared_aside")} == every.keys() - want
    let_in = {tx for tx in want if every[tx] >= 30}
    assert len(let_in) > 20
    assert len(every) - len(want) > 20
    lines = [json.loads(line) for line in (base[0] / "out/cleared_aside.jsonl").read_text().splitlines()]
    gone = {r["tx"] for r in lines if r["weight"] < 0}
    assert {r["tx"] for r in lines} & let_in == gone & let_in, "what is let in leaves the quarantine"
    assert len(gone & let_in) > 10
    late = db.sql("SELECT tx FROM newest n JOIN once p USING (tx) WHERE fraud IS NOT true AND n.known > p.at + 60000")
    assert {t for (t,) in late.fetchall()} & {r["tx"] for r in values(base, "cleared_aside")}, "one comes too late"
    spent = {r["card"]: r["turnover"] for r in values(base, "sums")}
    sums = Counter[str]()
    for r in values(base, "cleared"):
        sums[r["card"]] += r["amount"]
    assert spent == pytest.approx(dict(sums))


def test_rows_of_a_deferred_view_are_let_in_at_once(folder: Path, base: Base) -> None:
    approved = {t for (t,) in read(folder, base).sql(APPROVED).fetchall()}
    every = {r["tx"]: r["amount"] for r in values(base, "all_later")}
    assert every
    want = {tx for tx, amount in every.items() if amount < 30 or tx in approved}
    assert {r["tx"] for r in values(base, "cleared_later")} == want
    assert {r["tx"] for r in values(base, "cleared_later_aside")} == every.keys() - want


def test_what_is_counted(base: Base) -> None:
    told = {(e["relation"], e["expectation"]): e for e in base[1]["expectations"]}
    views, aside = base[1]["views"], values(base, "payments_aside")
    high = [r for r in aside if "amount" in r["reason"]]
    assert told["payments", "between(amount, 0.5, 100)"]["failing"] == len(high)
    assert told["payments", "between(amount, 0.5, 100)"]["severity"] == "quarantine"
    assert told["payments", "shops"]["failing"] == sum("shops" in r["reason"] for r in aside)
    assert told["features", "even"]["failing"] == views["features.quarantine"]["rows"]
    assert told["features", "even"]["failures"] == views["features.quarantine"]["inserted"]
    warned = told["all_features", "even"]
    assert (warned["severity"], warned["failing"]) == ("warn", sum(r["n"] % 2 for r in values(base, "all_features")))
    assert warned["failures"] > warned["failing"] > 0
    assert told["cards", "not_null(card)"]["failures"] == 0
    counts = Counter(r["payments"] for r in values(base, "all_cards"))
    assert told["cards", "unique(payments)"]["failing"] == sum(n - 1 for n in counts.values()) > 0
    assert told["once", "repeated"]["failing"] == len(values(base, "once_aside"))
    predicted = values(base, "predictions")
    assert told["high.predictions", "between(prediction, 0, 1)"]["failures"] == 0
    over = sum(r["prediction"] > 0.5 for r in predicted)
    assert told["high.predictions", "between(prediction, 0, 0.5)"]["failing"] == over > 0
    assert told["high.training", "not_null(label)"]["failures"] == 0
    assert told["high.training", "even"]["failing"] == sum(r["n"] % 2 for r in values(base, "training")) > 0
    assert 0 < told["shops", "between(limit, 0, 200)"]["failing"] < told["shops", "between(limit, 0, 200)"]["failures"]
    exported = {labels: v for n, labels, v in samples(base[1], False) if n == "freshet_expectation_failing"}
    assert exported["payments", "shops", "quarantine"] == told["payments", "shops"]["failing"]
    assert len(exported) == len(told)


@pytest.mark.parametrize("given", [{"workers": 2, "shards": 3}, {"batch_rows": 7}, {"refresh": ["mode"]}], ids=str)
def test_how_it_is_run_does_not_show(
    given: dict[str, Any], folder: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "refresh" in given:
        rng, taken = random.Random(5), list[Way]()

        def choose(self: Costs, changes: dict[Way, int]) -> Way:
            taken.append(rng.choice(("incremental", "full")) if self.mode == "auto" else "incremental")
            return taken[-1]

        monkeypatch.setattr(Costs, "choose", choose)
        given = {"refresh": ["cards=deferred(every='2m', rows=40, mode='auto')"]}
    run = run_here(cards(folder), folder, tmp_path / "out", tmp_path / "state", **given)
    for now, was in zip(figures(run, None)["expectations"], base[1]["expectations"], strict=True):
        if "refresh" not in given and was["expectation"] == "even":
            now["failures"] = was["failures"]  # counts what came between two corrections of one batch, too
        assert now == was
    for name, lines in written(base[0] / "out").items():
        if name in ("dead_letters.jsonl", "late.jsonl"):
            continue
        assert accumulated(tmp_path / "out" / name) == accumulated(base[0] / "out" / name)
        if "refresh" in given:
            assert (tmp_path / "out" / name).read_bytes() == lines
            assert {"incremental", "full"} == set(taken)


@pytest.mark.parametrize(
    ("owner", "method", "after"),
    [
        (Judged, "__call__", False),
        (Judged, "__call__", True),
        (Publish, "__call__", True),
        (Publish, "snapshot", True),
        (Settling, "__call__", True),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_a_crash_does_not_show(
    owner: type, method: str, after: bool, folder: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash, rng = CrashingAt(monkeypatch, owner, method, after), random.Random(f"{owner}.{method}.{after}")
    for n in (2, rng.randrange(5, 20), rng.randrange(20, 40)):
        crash.left = n
        landed = crash.landed
        with suppress(FlowError):
            run_here(cards(folder), folder, tmp_path / "out", tmp_path / "state", epoch="1ms")
        if crash.landed == landed:
            break
    assert crash.landed >= 2, "the crash must land, or nothing was tested"
    crash.left = -1
    run = run_here(cards(folder), folder, tmp_path / "out", tmp_path / "state")
    assert written(tmp_path / "out") == written(base[0] / "out")
    assert figures(run, None)["expectations"] == base[1]["expectations"]


def test_kill_9_does_not_show(folder: Path, base: Base, tmp_path: Path) -> None:
    rng = random.Random(2)
    args = command("run", folder, "--out", "out", "--state", "state", "--quiet")
    assert killed(args, tmp_path, rng, 100_000) >= 2
    assert freshet(*args[3:], cwd=tmp_path).returncode == 0
    assert written(tmp_path / "out") == written(base[0] / "out")
    assert json.loads((tmp_path / "out/summary.json").read_text())["expectations"] == base[1]["expectations"]


def test_what_is_forgotten_leaves_the_quarantine(folder: Path, tmp_path: Path) -> None:
    ran = freshet("run", folder, "--out", "out", "--state", "state", "--quiet", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    before = {name: accumulated(tmp_path / "out" / f"{name}.jsonl") for name in ("payments_aside", "features_aside")}
    failing = json.loads((tmp_path / "out/summary.json").read_text())["expectations"]
    done = freshet("forget", folder, "card=c1", "--out", "out", "--state", "state", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, was in before.items():
        mine = Counter({r: n for r, n in was.items() if json.loads(r)["card"] == "c1"})
        assert mine
        assert accumulated(tmp_path / "out" / f"{name}.jsonl") == was - mine
    assert freshet("run", folder, "--out", "out", "--state", "state", "--quiet", cwd=tmp_path).returncode == 0
    after = json.loads((tmp_path / "out/summary.json").read_text())["expectations"]
    for was, now in zip(failing, after, strict=True):
        if was["expectation"] == "shops":
            left = accumulated(tmp_path / "out/payments_aside.jsonl")
            assert now["failing"] == sum("shops" in json.loads(r)["reason"] for r in left) < was["failing"]


STOPPING = """
import operators as op
import polars as pl
from engine import Pipeline
from river import linear_model

p = Pipeline("stopping")
orders = p.source(
    "orders", key="id", at="at", epoch={"at": "ms"}, schema={"id": int, "at": pl.Datetime, "amount": float},
    expect=[op.not_null("amount")],
)
paid = p.source("paid", key="id", at="at", epoch={"at": "ms"}, schema={"id": int, "at": pl.Datetime, "late": bool})
rounded = p.view(
    "rounded", orders, op.project("id", whole=pl.col("amount").round(0)),
    expect=[op.between("whole", 0, 100, severity="SEVERITY")],
)
p.model("late", rounded, answers=paid, label="late", key="id", learner=linear_model.LogisticRegression())
p.sink("rounded", rounded)
p.sink("predictions", p.models["late"].predictions)
"""
BAD = 333


def stopping(folder: Path, severity: str) -> Path:
    """A pipeline that stops at the order number `BAD`, or does not."""
    folder.mkdir(exist_ok=True)
    (folder / "pipeline.py").write_text(STOPPING.replace("SEVERITY", severity))
    (folder / "freshet.toml").write_text(
        'epoch = "1ms"\nbatch_rows = 50\nport = 0\n'
        '[sources.orders]\npath = "orders.jsonl"\n[sources.paid]\npath = "paid.jsonl"\n'
    )
    return folder


def orders(bad: float) -> str:
    rows = [{"id": i, "at": data.START + i * 1000, "amount": bad if i == BAD else i % 100} for i in range(500)]
    return "".join(json.dumps(r) + "\n" for r in rows)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that stopped."""
    made = stopping(tmp_path / "stopping", "stop")
    (made / "orders.jsonl").write_text(orders(98765.4))
    paid = [{"id": i, "at": data.START + i * 1000 + 20_500, "late": i % 3 == 0} for i in range(470)]
    (made / "paid.jsonl").write_text("".join(json.dumps(r) + "\n" for r in paid))
    for _ in range(2):
        done = freshet("run", made, "--out", "out", "--state", "state", cwd=tmp_path)
        assert done.returncode == 1
        offset = orders(98765.4).index('{"id": 333,')
        assert (
            "view 'rounded': a row does not meet between(whole, 0, 100), and its severity is 'stop'. It came from "
            f"source 'orders', partition 0, position {offset}; nothing of its batch is published. Mend it there; or "
        ) in done.stderr
        assert "9876" not in done.stderr + done.stdout, "the row stays out of logs"
        ids = [r["id"] for r in map(json.loads, (tmp_path / "out/rounded.jsonl").read_text().splitlines())]
        assert ids == list(range(len(ids)))
        assert BAD - 50 < len(ids) <= BAD, "all batches before, nothing of the one in which it is"
        asked = [json.loads(line)["id"] for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
        assert asked == ids
    return tmp_path


@pytest.mark.parametrize(("severity", "amount"), [("warn", 98765.4), ("stop", 12345e-3), ("stop", 7)])
def test_a_run_stops_and_goes_on_once_it_may(severity: str, amount: float, stopped: Path) -> None:
    mended = stopping(stopped / "stopping", severity)
    (mended / "orders.jsonl").write_text(orders(amount))
    for name in ("state", "whole"):
        out = {"state": "out"}.get(name, name)
        done = freshet("run", mended, "--out", out, "--state", name, cwd=stopped)
        assert done.returncode == 0, done.stderr
    assert written(stopped / "out") == written(stopped / "whole")
    told, whole = (json.loads((stopped / out / "summary.json").read_text()) for out in ("out", "whole"))
    assert told["expectations"] == whole["expectations"]
    assert told["expectations"][1]["failing"] == (severity == "warn")
    assert ("Expectations that were not met" in done.stdout) == (severity == "warn")
    assert told["models"]["late"]["metrics"] == whole["models"]["late"]["metrics"]


def test_a_quarantine_is_another_definition(stopped: Path) -> None:
    aside = stopping(stopped / "stopping", "quarantine")
    refused = freshet("run", aside, "--out", "out", "--state", "state", cwd=stopped)
    assert refused.returncode == 3
    assert "step rounded" in refused.stderr
    done = freshet("run", aside, "--out", "other", "--state", "other", "--quiet", cwd=stopped)
    assert done.returncode == 0, done.stderr
    told = json.loads((stopped / "other/summary.json").read_text())["views"]
    assert (told["rounded"]["rows"], told["rounded.quarantine"]["rows"]) == (499, 1)


def test_of_an_expectation_that_is_added_later_only_what_comes_is_known(stopped: Path) -> None:
    changed = stopping(stopped / "stopping", "warn")
    text = (changed / "pipeline.py").read_text().replace("[op.not_null", '[op.between("amount", 0, 1), op.not_null')
    (changed / "pipeline.py").write_text(text)
    done = freshet("run", changed, "--out", "out", "--state", "state", cwd=stopped)
    assert done.returncode == 0, done.stderr
    added, before, _ = json.loads((stopped / "out/summary.json").read_text())["expectations"]
    assert added["failing"] is None
    assert 100 < added["failures"] < 250
    assert (before["failures"], before["failing"]) == (0, 0)
