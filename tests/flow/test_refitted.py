"""Deferred models in whole runs: their versions, their training sets, and what people do with both."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from engine.cli import load_pipeline
from engine.log import ROW, SEQ, as_of, scan
from operators.delta import AT, POS
from tests.flow.cards import data
from tests.flow.running import HERE, command, environment, freshet, versions_of, written
from tests.flow.test_oracle import on_time
from tests.flow.test_replay import frames

WAIT = 240_000
MODELS = ("fraud", "cost", "at_once", "similar")


def project(folder: Path, n: int) -> Path:
    """A copy of the pipeline in a folder of its own, with data of which some answers come late."""
    folder.mkdir(parents=True)
    shutil.copy(HERE / "refitted" / "pipeline.py", folder)
    (folder / "freshet.toml").write_text(
        'epoch = "50ms"\nbatch_rows = 50\nport = 0\n'
        '[sources.payments]\npath = "data/payments.jsonl"\n'
        '[sources.chargebacks]\npath = "data/chargebacks.jsonl"\nformat = "changes"\n'
    )
    data.write(folder / "data", n, seed=4)
    file, dice = folder / "data" / "chargebacks.jsonl", random.Random(4)
    lines = [(json.loads(line)["known"] + dice.choice([0, 0, 0, 40_000]), line) for line in file.open()]
    file.write_text("".join(line for _, line in sorted(lines, key=lambda pair: pair[0])))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("refitted") / "refitted", 1500)


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an uninterrupted run was."""
    base = tmp_path_factory.mktemp("reference")
    done = freshet("run", folder, "--out", "out", "--state", "state", cwd=base)
    assert done.returncode == 0, done.stderr
    assert "Refreshes of models" in done.stdout
    assert "deferred(rows=300)" in done.stdout
    return base


def lines(path: Path) -> list[dict[str, Any]]:
    """What is written: whole lines."""
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def kept(base: Path) -> dict[str, Any]:
    """All that a run leaves: outputs, training logs row by row, versions (but for what they took), when each served."""
    found: dict[str, Any] = {"outputs": written(base / "out")}
    for model in MODELS:
        found[f"{model} log"] = scan(base / "state" / "log" / f"{model}.training").collect().rows()
        there = versions_of(base / "state", "refitted", model)
        found[f"{model} versions"] = [{**_told(v), "seconds": None} for v in there.all()]
        found[f"{model} served"] = [_told(s) for s in there.served]
    return found


def _told(struct: Any) -> dict[str, Any]:
    return {n: getattr(struct, n) for n in struct.__struct_fields__}


def test_versions_are_there_and_predictions_carry_them(folder: Path, reference: Path) -> None:
    done = freshet("models", folder, "--state", "state", "--json", cwd=reference)
    found = {m["model"]: m for m in json.loads(done.stdout)}
    assert set(found) == set(MODELS)
    for model, least in (("fraud", 4), ("cost", 2)):
        versions = found[model]["versions"]
        assert len(versions) >= least
        published = [v for v in versions if v["verdict"] == "published"]
        assert [v["name"] for v in versions if v["serving"]] == [published[-1]["name"]]
        assert all(v["served"] == [v["known"]] for v in published), "history waits for the fit"
        rows = lines(reference / "out" / f"{model}.jsonl")
        assert len(rows) == len({r["tx"] for r in rows}) > 1400
        known = {v["name"]: v["known"] for v in published}
        seen = {r["model_version"] for r in rows}
        assert {None, *list(known)[:-1]} <= seen <= {None, *known}, "the last may come after the last question"
        assert all((r["model_version"] is None) == (r["prediction"] is None) for r in rows)
    assert found["at_once"] == {"model": "at_once", "refresh": "immediate()", "wanted": None, "versions": []}


def test_a_replay_gives_the_same(folder: Path, reference: Path) -> None:
    p, _ = load_pipeline(folder)
    given = {n: f for n, f in frames_of(folder).items() if n in p.sources}
    views = p.replay(given, batch_rows=400)
    assert (folder / "fitting").exists(), "the learner of the pipeline file was fitted"
    for model in MODELS:
        log = scan(reference / "state" / "log" / f"{model}.training")
        got = as_of(log).drop(AT, POS, SEQ, "_known", "answer_pos").collect().sort("tx")
        assert got.equals(views[f"{model}.training"].drop("answer_pos").sort("tx"))
        assert len(got) > 800
    for model in ("fraud", "cost"):
        got = {r["tx"]: (r["prediction"], r["model_version"]) for r in lines(reference / "out" / f"{model}.jsonl")}
        want = views[f"{model}.predictions"].select("tx", "prediction", "model_version").rows()
        assert got == {tx: (prediction, version) for tx, prediction, version in want}


def frames_of(folder: Path) -> dict[str, pl.DataFrame]:
    return frames(folder / "data")


@pytest.fixture
def hold(folder: Path) -> Iterator[Path]:
    """While this file is there no fit of `cost` ends."""
    yield folder / "hold"
    (folder / "hold").unlink(missing_ok=True)


def until(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> bool:
    """Wait for a condition, at most a minute, or until a process ends; returns whether it holds."""
    for _ in range(6000):
        if condition():
            return True
        if process is not None and process.poll() is not None:
            return False
        time.sleep(0.01)
    raise AssertionError("waited for a minute")


def test_kill_9_at_any_moment_also_while_a_fit_runs(folder: Path, reference: Path, hold: Path, tmp_path: Path) -> None:
    dice, fits, landed = random.Random(7), 0, 0
    args = command("run", folder, "--out", "out", "--state", "state", "--quiet")

    def size() -> int:
        return sum(f.stat().st_size for f in (tmp_path / "out").glob("*.jsonl"))

    for turn in range(8):
        (folder / "fitting").unlink(missing_ok=True)
        begun, target = size(), dice.randrange(20_000, 150_000)
        if turn == 0:
            hold.touch()
        process = subprocess.Popen(args, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
        if turn and not until(lambda b=begun, t=target: size() > b + t, process):  # type: ignore[misc]
            break
        if turn % 2 == 0:
            (folder / "fitting").unlink(missing_ok=True)
            hold.touch()
            fits += until((folder / "fitting").exists, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        hold.unlink(missing_ok=True)
        landed += process.returncode == -signal.SIGKILL
    assert landed >= 3
    assert fits >= 2, "kills must hit running fits"
    done = freshet("run", folder, "--out", "out", "--state", "state", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path) == kept(reference)


@pytest.fixture(scope="module")
def db(folder: Path) -> duckdb.DuckDBPyConnection:
    """The input files, each row with when it became known: the greatest time that its file had reached."""
    db = duckdb.connect()
    read = {
        "payments": on_time((folder / "data" / "payments.jsonl").read_text().splitlines(), "at"),
        "messages": on_time((folder / "data" / "chargebacks.jsonl").read_text().splitlines(), "known"),
    }
    for name, rows in read.items():
        time_ = "at" if name == "payments" else "known"
        frame = pl.DataFrame(rows, infer_schema_length=None).rename({time_: "time"})
        frame.with_columns(known=pl.col("time").cum_max()).write_parquet(folder / f"{name}.parquet")
        db.execute(f"CREATE TABLE {name} AS SELECT * FROM '{folder}/{name}.parquet'")
    return db


@pytest.mark.parametrize("share", [0.1, 0.45, 0.8, None])
def test_export_holds_what_was_known_then_and_nothing_later(
    share: float | None, folder: Path, reference: Path, db: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    first, last = db.sql("SELECT min(time), max(known) FROM payments").fetchall()[0]
    then = int(first + (last - first) * share) if share else 2**60
    out = tmp_path / "training.parquet"
    given = [] if share is None else ["--as-of", db.sql(f"SELECT make_timestamp_ms({then})").fetchall()[0][0]]
    done = freshet("export", folder, "fraud.training", "--out", out, "--state", "state", *given, cwd=reference)
    assert done.returncode == 0, done.stderr
    want = db.sql(f"""
        WITH q AS (SELECT DISTINCT ON (tx) * FROM payments WHERE known <= {then} ORDER BY tx, pos),
        m AS (
            SELECT m.*, q.known AS asked FROM messages m JOIN q USING (tx)
            WHERE m.known <= {then} AND CASE WHEN m.op = 'delete' THEN m.known ELSE m.time END <= q.time + {WAIT}),
        newest AS (SELECT DISTINCT ON (tx) * FROM m ORDER BY tx, pos DESC)
        SELECT q.tx, q.shop, q.amount,
            (SELECT count(*) FROM q r
                WHERE r.card = q.card AND r.time BETWEEN q.time - 599999 AND q.time AND r.pos <= q.pos),
            q.time, newest.fraud, newest.time, greatest(q.known, newest.known)
        FROM q JOIN newest USING (tx) WHERE op <> 'delete' ORDER BY tx
    """).fetchall()
    got = db.sql(f"""
        SELECT tx, shop, amount, n, epoch_ms("at"), label, epoch_ms(answered), epoch_ms(_known) FROM '{out}' ORDER BY tx
    """).fetchall()
    assert got == want
    assert f"{len(want):,} rows of fraud.training written to" in done.stdout
    assert all(row[-1] <= then for row in got)
    assert len(want) > (20 if share == 0.1 else 300)


def test_what_is_exported_was_put_to_the_test(reference: Path, db: duckdb.DuckDBPyConnection) -> None:
    late, deleted, corrected, too_late = db.sql(f"""
        SELECT count(*) FILTER (WHERE m.time < m.known AND m.time <= p.time + {WAIT}),
            count(*) FILTER (WHERE op = 'delete' AND m.known <= p.time + {WAIT}),
            count(*) FILTER (WHERE op = 'update' AND m.time <= p.time + {WAIT}),
            count(*) FILTER (WHERE op <> 'insert' AND m.known > p.time + {WAIT})
        FROM messages m JOIN payments p USING (tx)
    """).fetchall()[0]
    assert min(late, deleted, corrected, too_late) >= 3
    log = scan(reference / "state" / "log" / "fraud.training").collect()
    assert log[ROW].to_list() == list(range(len(log)))
    assert (log["_weight"] == -1).sum() >= deleted // 2


def grow(folder: Path, whole: dict[str, list[bytes]], before: int) -> None:
    """Let the input files hold what became known before a time, in milliseconds."""
    for name, key in (("chargebacks", "known"), ("payments", "at")):
        newest, n = 0, 0
        for line in whole[name]:
            found = re.search(rb'"%s":(\d+)' % key.encode(), line)
            newest = max(newest, int(found[1]) if found else 0)
            if newest >= before:
                break
            n += 1
        file = folder / "data" / f"{name}.jsonl"
        there = file.read_bytes().count(b"\n") if file.exists() else 0
        with file.open("ab") as f:
            f.writelines(whole[name][there:n])


def test_a_live_run_predicts_while_it_fits_and_goes_back_when_asked(tmp_path: Path) -> None:
    folder = project(tmp_path / "refitted", 1500)
    files = {n: folder / "data" / f"{n}.jsonl" for n in ("chargebacks", "payments")}
    whole = {n: f.read_bytes().splitlines(keepends=True) for n, f in files.items()}
    for f in files.values():
        f.unlink()
    hold, told = folder / "hold", tmp_path / "stderr"
    args = ("run", folder, "--out", "out", "--state", "state")

    def predictions() -> list[str]:
        return [r["model_version"] for r in lines(tmp_path / "out" / "cost.jsonl")]

    def more(part: float) -> list[str]:
        """The versions that predict what comes when the files grow to so many hundred seconds."""
        before = len(predictions())
        grow(folder, whole, data.START + int(part * 100_000))
        asked = {r["tx"] for r in on_time(files["payments"].read_text().splitlines(), "at")}
        until(lambda: len(predictions()) >= len(asked), process)
        return predictions()[before:]

    grow(folder, whole, data.START + 800_000)
    with told.open("w") as err:
        process = subprocess.Popen(
            command(*args, "--follow", "--port", 9477), cwd=tmp_path, env=environment(), stderr=err, stdout=err
        )
    try:
        until(lambda: "metrics=" in told.read_text(), process)
        more(8)
        (served,) = versions_of(tmp_path / "state", "refitted", "cost").served
        old = served.version
        hold.touch()
        (folder / "fitting").unlink()
        assert set(more(12)) == {old}
        until((folder / "fitting").exists, process)
        assert set(more(13)) == {old}, "the version that served goes on while the next is fitted"
        page = urllib.request.urlopen(re.findall(r"http\S+", told.read_text())[0]).read().decode()
        assert 'freshet_model_fitting{model="cost"} 1.0' in page
        assert f'freshet_model_version_info{{model="cost",version="{old}"}} 1.0' in page
        assert 'freshet_model_refreshes_total{model="cost",verdict="published"} 1.0' in page
        assert re.search(r'freshet_model_examples_held\{model="similar"\} [1-9]', page)
        mark = re.search(r'freshet_model_training_watermark_timestamp_seconds\{model="cost"\} (\S+)', page)
        assert mark
        assert 0 < float(mark[1]) - data.START / 1000 < 800
        export = freshet("export", folder, "cost.training", "--out", "live.csv", "--state", "state", cwd=tmp_path)
        assert export.returncode == 0, export.stderr
        assert len(pl.read_csv(tmp_path / "live.csv")) > 300
        hold.unlink()
        part, seen = 13.0, {old}
        while seen == {old}:
            assert part < 14
            part += 0.05
            seen |= set(more(part))
            time.sleep(0.2)
        (new,) = seen - {old}
        assert set(more(14.2)) == {new}
        back = freshet("rollback", folder, "cost", "--state", "state", cwd=tmp_path)
        assert f"cost: {old} serves from the next batch on, instead of {new}" in back.stdout
        assert set(more(14.6)) == {old}
    finally:
        hold.unlink(missing_ok=True)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert process.returncode == 0, told.read_text()
    before = len(predictions())
    assert freshet("rollback", folder, "cost", new, "--state", "state", cwd=tmp_path).returncode == 0
    listed = freshet("models", folder, "cost", "--state", "state", cwd=tmp_path)
    assert f"* {old}" in listed.stdout
    assert f"{new} was asked for, and serves from the next batch on" in listed.stdout
    grow(folder, whole, data.START + 10**7)
    assert freshet(*args, "--quiet", cwd=tmp_path).returncode == 0
    assert predictions()[before] == new


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("export", "cost", "--out", "a.csv"), "there is no source or view 'cost' in pipeline 'refitted'"),
        (("export", "cost.training", "--out", "a.xls"), "expected a name that ends in .parquet, .csv"),
        (
            ("export", "cost.training", "--out", "a.csv", "--as-of", "noon"),
            "--as-of is 'noon': expected a time such as",
        ),
        (("models", "costs"), "there is no model 'costs' in pipeline 'refitted'; there are: fraud, cost, at_once"),
        (("rollback", "at_once"), "model 'at_once' is kept by immediate(): it has no versions to go back to"),
        (("rollback", "cost", "none"), "there is no published version 'none'; there are: "),
    ],
)
def test_what_cannot_be_done_is_refused(args: tuple[str, ...], said: str, folder: Path, reference: Path) -> None:
    done = freshet(args[0], folder, *args[1:], "--state", "state", cwd=reference)
    assert done.returncode == 2
    assert said in done.stderr
    assert not list(reference.glob("a.*"))
    there = [m for m in MODELS if f"{m}.training" in done.stderr]
    assert there == (list(MODELS) if args[1] == "cost" and args[0] == "export" else [])
    nowhere = freshet(args[0], folder, *args[1:], "--state", "nowhere", cwd=reference)
    assert nowhere.returncode == 2
    assert "there is no state in 'nowhere'" in nowhere.stderr or said in nowhere.stderr


def test_models_are_listed_for_people(folder: Path, reference: Path) -> None:
    text = freshet("models", folder, "--state", "state", cwd=reference).stdout
    (newest,) = [v.name for v in versions_of(reference / "state", "refitted", "cost").all()][-1:]
    assert f"* {newest}" in text
    assert "cost: refresh deferred(rows=300)" in text
    assert "learns each answer as it comes: there are no versions" in text
    assert "fitted for each question: there are no versions" in text
