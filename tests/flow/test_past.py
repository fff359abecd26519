"""Any view at any moment: what change logs say of a view is what SQL makes of the rows that were known then.

And what was served is what a recompute from the logs gives.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from river.linear_model import LinearRegression

import operators as op
from engine import deferred
from engine.audit import audit
from engine.bind import set_policies
from engine.changes import complete
from engine.flow import Run
from engine.log import KNOWN, ROW, SEQ, WEIGHT, LogError, scan
from engine.past import Recompute, needed, past, then
from engine.pipeline import Pipeline
from engine.settings import load
from engine.skew import KINDS
from operators.delta import AT, POS, TIME
from operators.operator import DefinitionError
from tests.flow import running
from tests.flow.cards import data
from tests.flow.running import cards, command, freshet, killed, run_here, written
from tests.flow.test_oracle import LABELLED, accumulated, close, oracle

LOGS = ("payments", "chargebacks", "shops", "features", "by_country", "cards")


def project(folder: Path, n: int = 1200) -> Path:
    """The cards pipeline with change logs of its sources and of some of its views."""
    made = running.project(folder)
    text = (made / "pipeline.py").read_text()
    for old in (
        '"at": pl.Datetime},\n',
        '"fraud": bool},\n',
        '"limit": float},\n',
        '    op.project(share=pl.col("amount") / pl.col("spent")),\n',
        '    refresh=deferred(every="2m", rows=40),\n',
    ):
        assert text.count(old) == 1
        text = text.replace(old, f"{old}    log=True,\n")
    text = text.replace('turnover=op.total("amount"))\n)\nlab', 'turnover=op.total("amount")),\n    log=True,\n)\nlab')
    (made / "pipeline.py").write_text(text)
    data.write(made / "data", n, seed=5)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("past"))


@pytest.fixture(scope="module")
def p(folder: Path) -> Pipeline:
    return cards(folder)


@pytest.fixture(scope="module")
def run(folder: Path, p: Pipeline) -> Run:
    assert set(p.logged) == set(LOGS)
    return run_here(p, folder, folder / "out", folder / "state")


def relation(frame: pl.DataFrame) -> pl.DataFrame:
    """What identifies rows and their values, whatever they were read from."""
    return frame.drop(KNOWN, SEQ, strict=False).with_columns(pl.col(AT).cast(pl.Int64)).sort(AT, POS)


def content(state: Path) -> dict[str, list[tuple[Any, ...]]]:
    return {name: scan(state / "log" / name).collect().rows() for name in LOGS}


def moments(n: int) -> list[int]:
    """Milliseconds at random in the stream, and its end."""
    dice = random.Random(11)
    return [data.START + dice.randrange(60_000, 1_150_000) for _ in range(n)] + [data.START + 10**9]


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("known", moments(4))
def test_a_view_is_what_sql_makes_of_what_was_known_then(folder: Path, p: Pipeline, known: int) -> None:
    """With late corrections, duplicates, a table with deletes, and answers that were changed or taken back."""
    db, state = oracle(folder, known), folder / "state"
    want = db.sql(
        'SELECT tx, card, shop, amount, n, spent, spent_ever, most, country, "limit" FROM features ORDER BY tx'
    )
    names, rows = want.columns, want.fetchall()
    got = past(p, state, "features", known * 1000).sort("tx").select(names).rows()
    assert len(got) == len(rows) > 30
    assert all(close(a, b) for mine, theirs in zip(got, rows, strict=True) for a, b in zip(mine, theirs, strict=True))
    labelled = past(p, state, "labelled", known * 1000)
    assert dict(labelled.select("tx", "fraud").rows()) == dict(db.sql(LABELLED).fetchall())
    answers = past(p, state, "chargebacks", known * 1000)
    newest = db.sql(
        "SELECT tx, fraud FROM messages m WHERE op <> 'delete' AND pos = "
        "(SELECT max(pos) FROM messages n WHERE n.tx = m.tx)"
    )
    assert dict(answers.select("tx", "fraud").rows()) == dict(newest.fetchall())


def test_what_a_log_says_is_what_recompute_gives(folder: Path, p: Pipeline, run: Run) -> None:
    """After any change, bit for bit: a view's own log, and its operators over those of its sources."""
    state, dice = folder / "state", random.Random(3)
    merge = run.merge
    assert merge is not None
    assert complete(state) == merge.seq - 1
    of = needed(p, "features", roots=True)
    assert of == {"payments", "shops"}
    for seq in [*(dice.randrange(merge.seq) for _ in range(6)), merge.seq]:
        given = {n: then(scan(state / "log" / n), seq=seq).collect() for n in of}
        want = relation(Recompute(p, given)("features"))
        assert relation(past(p, state, "features", seq=seq)).equals(want.select(want.columns), null_equal=True)


@pytest.mark.usefixtures("run")
def test_at_the_end_it_is_what_was_written(folder: Path, p: Pipeline) -> None:
    for name in ("features", "by_country", "cards", "labelled", "known_cards"):
        schema = {n: t for n, t in p.views[name].schema.items() if t != TIME}
        rows = [json.loads(r) for r in accumulated(folder / "out" / f"{name}.jsonl").elements()]
        want = pl.DataFrame([{n: r[n] for n in schema} for r in rows], schema).sort(list(schema))
        got = p.as_of(name, state=folder / "state").select(list(schema)).sort(list(schema))
        assert len(got) > 2
        assert got.equals(want, null_equal=True), name


@pytest.mark.usefixtures("run")
def test_export_writes_any_of_them(folder: Path) -> None:
    for name, given in (("labelled", ()), ("shops", ("--as-of", "2023-11-14T22:20:00Z")), ("features", ("--seq", 700))):
        out = folder / f"{name}.parquet"
        done = freshet("export", folder, name, "--out", out, "--state", "state", *given, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert 5 < len(pl.read_parquet(out)) < 1100
    assert "_seq" in pl.read_parquet(folder / "features.parquet").columns


@pytest.mark.usefixtures("run")
def test_what_depends_on_more_than_logs_is_refused(folder: Path, tmp_path: Path) -> None:
    plain = cards(running.project(tmp_path / "plain"))
    state = folder / "state"
    for name, text in (
        (
            "features",
            "no change log|there is none of source 'payments', table 'shops'; declare log=True of them, or of",
        ),
        ("shops", "there is none of table 'shops'; declare log=True of it, and start anew"),
        ("known_cards", "what the deferred view 'cards' was depends on when it was refreshed; declare log=True of"),
        ("fraud.predictions", "is made by a model as it was then: take it from where a sink keeps it"),
        ("feature", "did you mean 'features'"),
        ("xyz", r"there is no source or view 'xyz' in pipeline 'cards'\. There are: payments"),
    ):
        with pytest.raises(DefinitionError, match=text):
            past(plain, state, name)
    aside = Pipeline("p")
    bound = op.not_null("x", severity="quarantine")
    aside.source("s", key="id", at="at", schema={"id": int, "x": float, "at": pl.Datetime}, expect=[bound])
    with pytest.raises(DefinitionError, match="none of source 's'; declare log=True of it, and start anew"):
        past(aside, state, "s.quarantine")
    with pytest.raises(LogError, match="nothing has been saved, or a run is being resumed"):
        past(cards(folder), tmp_path, "labelled")


def test_what_a_deferred_view_puts_aside_is_not_in_its_log() -> None:
    p = Pipeline("p")
    s = p.source("s", key="id", at="at", schema={"id": int, "at": pl.Datetime}, log=True)
    low = op.between("id", 0, 9, severity="quarantine")
    v = p.view("v", s, op.project("id"), expect=[low], refresh=deferred(rows=3), log=True)
    p.view("w", p.quarantine(v), op.project("id"))
    assert needed(p, "v") == {"v"}
    for name, text in (("v.quarantine", "it cannot be recomputed"), ("w", "declare log=True of 'w'")):
        with pytest.raises(
            DefinitionError, match=f"the deferred view 'v' was depends on when it was refreshed; {text}"
        ):
            needed(p, name)


@pytest.mark.parametrize("asked", ["audit", "models"])
def test_a_pipeline_without_models_has_none_to_tell_of(asked: str, tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("from engine import Pipeline\n\np = Pipeline('bare')\n")
    done = freshet(asked, tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pipeline 'bare' has no model" in done.stderr


def test_killed_at_any_moment_the_logs_are_what_they_would_be(folder: Path, run: Run, tmp_path: Path) -> None:
    assert run.publish is not None
    args = command("run", folder, "--out", "out", "--state", "state", "--quiet")
    landed = killed(args, tmp_path, random.Random(2), 200_000, times=3)
    assert landed
    done = freshet("run", folder, "--out", "out", "--state", "state", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "out") == written(folder / "out")
    assert content(tmp_path / "state") == content(folder / "state")
    assert complete(tmp_path / "state") == complete(folder / "state")


@pytest.mark.usefixtures("run")
def test_a_log_holds_the_messages_of_a_keyed_source(folder: Path) -> None:
    shops = scan(folder / "state" / "log" / "shops").collect()
    assert shops["deleted"].sum() > 0
    assert set(shops[WEIGHT]) == {1}
    assert shops[ROW].to_list() == list(range(len(shops)))


@pytest.fixture(scope="module")
def served(folder: Path, run: Run) -> pl.DataFrame:
    """What the training set says was served."""
    assert run.publish is not None
    return scan(folder / "state" / "log" / "fraud.training").filter(pl.col(WEIGHT) > 0).collect()


def test_what_was_served_is_what_a_recompute_gives(folder: Path, p: Pipeline, served: pl.DataFrame) -> None:
    """Also where the view has been corrected since: it is compared with what it was."""
    found = p.audit("fraud", state=folder / "state", sample=150)
    assert found["checked"] == 150 < found["answered"] == served["tx"].n_unique()
    assert found["mismatches"] == found["absent"] == found["later"] == 0
    assert found["wrong"] == []
    assert set(found["features"]) == {"amount", "n", "spent", "spent_ever", "most", "share"}
    assert all(kinds == dict.fromkeys(KINDS, 0) for kinds in found["features"].values())
    now = past(p, folder / "state", "features").select("tx", "n")
    both = served.unique("tx").join(now, on="tx", suffix="_now")
    assert (both["n"] != both["n_now"]).sum() > 20, "late payments have corrected what was served"
    some = audit(p, folder / "state", "fraud", sample=12)
    assert (some["checked"], some["answered"], some["mismatches"]) == (12, found["answered"], 0)
    last = audit(p, folder / "state", "fraud", since=int(served[SEQ].max()) - 1)  # type: ignore[arg-type]
    assert (last["checked"], last["mismatches"]) == (1, 0)
    assert audit(p, folder / "state", "fraud", since=found["to"])["checked"] == 0


TAMPERED = [
    ("fraud.training", {"n": "n + 1"}, {"n": "mismatch"}),
    ("fraud.training", {"spent": "spent * (1 + 2.3e-16)"}, {"spent": "mismatch"}),
    ("fraud.training", {"most": "NULL"}, {"most": "missing"}),
    ("payments", {"amount": "NULL"}, {"amount": "extra", "share": "extra"}),
    ("payments", None, {"absent": 1}),
]


@pytest.mark.parametrize(("log", "change", "expected"), TAMPERED, ids=lambda v: str(v))
def test_what_was_tampered_with_is_found_and_nothing_else(
    log: str, change: dict[str, str] | None, expected: dict[str, Any],
    folder: Path, p: Pipeline, served: pl.DataFrame, tmp_path: Path,
) -> None:  # fmt: skip
    """One value of the last question of a card, or its row, is changed in a log."""
    state, since = shutil.copytree(folder / "state", tmp_path / "state"), int(served[SEQ].max()) - 40  # type: ignore[arg-type]
    last = scan(state / "log" / "payments").sort(AT, POS).unique("card", keep="last").collect()["tx"].to_list()
    row = served.filter((pl.col(SEQ) > since) & pl.col("tx").is_in(last) & (pl.col("n") > 1)).row(0, named=True)
    before = audit(p, state, "fraud", since=since)
    assert before["checked"] > 5
    assert before["mismatches"] == 0
    table, where = DeltaTable(state / "log" / log), f"tx = {row['tx']}"
    if change is None:
        assert table.delete(where)["num_deleted_rows"] == 1
    else:
        assert table.update(change, predicate=where)["num_updated_rows"] == 1
    found = audit(p, state, "fraud", since=since)
    assert (found["checked"], found["later"]) == (before["checked"], 0)
    assert found["absent"] == expected.get("absent", 0)
    told = {w["feature"]: w for w in found["wrong"]}
    for name, kind in expected.items():
        if name != "absent":
            assert found["features"][name] == {**dict.fromkeys(KINDS, 0), kind: 1}
            assert (told[name]["key"], told[name]["seq"]) == ([row["tx"]], row["seq"])
            assert told[name]["served"] != told[name]["recomputed"]
    if log == "fraud.training" or change is None:
        assert found["mismatches"] == 1
    assert {tuple(w["key"]) for w in found["wrong"]} <= {(row["tx"],)}


def test_what_became_known_later_is_found(folder: Path, p: Pipeline, served: pl.DataFrame, tmp_path: Path) -> None:
    state, since = shutil.copytree(folder / "state", tmp_path / "state"), int(served[SEQ].max()) - 40  # type: ignore[arg-type]
    asked = served.filter(pl.col(SEQ) > since).unique("tx").sort("seq")
    table = DeltaTable(state / "log" / "payments")
    changed = table.update({"_known": "_known + INTERVAL '1 day'"}, predicate=f"tx = {asked['tx'][0]}")
    assert changed["num_updated_rows"] == 1
    found = audit(p, state, "fraud", since=since)
    assert found["mismatches"] == found["later"] == found["checked"] - 1 == len(asked) - 1 > 5


def test_the_command_fails_when_another_definition_was_served(
    folder: Path, served: pl.DataFrame, tmp_path: Path
) -> None:
    """The exit code is for cron and CI, and for what runs beside a run."""
    since = int(served[SEQ].max()) - 20  # type: ignore[arg-type]
    args = ("--state", folder / "state", "--since", since)
    done = freshet("audit", folder, *args, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [(one["model"], one["mismatches"]) for one in json.loads(done.stdout)] == [("fraud", 0)]
    other = project(tmp_path / "other", 10)
    text = (other / "pipeline.py").read_text()
    (other / "pipeline.py").write_text(text.replace('size="10m",\n', 'size="2m",\n'))
    done = freshet("audit", other, *args, cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(r"fraud: \d+ of \d+ answered questions", done.stdout)
    assert "was served as" in done.stdout
    assert "mismatches: what was served is not what a recompute gives" in done.stderr


def test_what_cannot_be_audited_is_refused(folder: Path, tmp_path: Path) -> None:
    plain = running.project(tmp_path / "plain")
    text = (plain / "pipeline.py").read_text()
    (plain / "pipeline.py").write_text(text.replace("    naive=True,\n", '    audit="1h",\n'))
    with pytest.raises(
        DefinitionError, match=r"model 'fraud': audit: .* there is none of source 'payments', table 'shops'"
    ):
        cards(plain)
    with pytest.raises(DefinitionError, match="there is no model 'frauds' in pipeline 'cards'; there are: fraud"):
        audit(cards(folder), folder / "state", "frauds")


def test_a_policy_that_is_set_later_and_cannot_be_audited_is_refused(tmp_path: Path) -> None:
    p = Pipeline("p")
    s = p.source("s", key="id", at="at", schema={"id": int, "at": pl.Datetime, "y": float}, log=True)
    v = p.view("v", s, op.project("id", "y"))
    p.model("m", v, answers=s, label="y", learner=LinearRegression(), audit="1h")
    set_policies(p, load(tmp_path, {}, refreshes=["m=deferred(every='1d')"]))
    with pytest.raises(DefinitionError, match=r"model 'm': audit: .*'v' was depends on when it was refreshed"):
        set_policies(p, load(tmp_path, {}, refreshes=["v=deferred(every='1h')"]))


def test_a_relation_and_a_feature_may_have_any_name(tmp_path: Path) -> None:
    p = Pipeline("names")
    asked = p.source("complete", key="id", at="at", schema={"id": int, "at": pl.Datetime, "there": float}, log=True)
    p.model(
        "m", p.view("v", asked, op.project("id", "there")), answers=asked, label="there", learner=LinearRegression()
    )
    lines = [{"id": i, "at": f"2024-01-01T12:00:{i:02}Z", "there": i / 4} for i in range(20)]
    (tmp_path / "complete.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "freshet.toml").write_text('port = 0\n[sources.complete]\npath = "complete.jsonl"\n')
    state = tmp_path / "state"
    run_here(p, tmp_path, tmp_path / "out", state)
    found = p.audit("m", state=state)
    assert (found["checked"], found["mismatches"]) == (20, 0)
    assert p.as_of("complete", state=state)["there"].to_list() == [line["there"] for line in lines]


def test_what_other_rows_took_from_what_is_forgotten_remains_in_a_log_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text(
        "import polars as pl\nimport operators as op\nfrom engine import Pipeline\np = Pipeline('p')\n"
        "schema = {'id': int, 'at': pl.Datetime, 'who': str}\n"
        "s = p.source('s', key='id', at='at', schema=schema, log=True, erasable=True)\n"
        "p.view('before', s, op.previous(by='at', last='who'), log=True)\n"
        "p.view('alone', s, op.project('who'), log=True)\n"
    )
    lines = [{"id": i, "at": "2024-01-01T12:00:00Z", "who": f"w{i}"} for i in range(3)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "freshet.toml").write_text('port = 0\n[sources.s]\npath = "s.jsonl"\n')
    given = ("--state", "state", "--out", "out")
    assert freshet("run", tmp_path, *given, cwd=tmp_path).returncode == 0
    done = freshet("forget", tmp_path, "who=w1", "--json", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = [text for text in json.loads(done.stdout)["remains"] if "change logs" in text]
    assert told == ["the change logs of before: what other rows had taken from them, as it was before"]
    log = scan(tmp_path / "state" / "log" / "before").collect()
    assert log.filter(pl.col("who") == "w1").is_empty()
    assert log.filter(pl.col("last") == "w1")[WEIGHT].to_list() == [1, -1]
