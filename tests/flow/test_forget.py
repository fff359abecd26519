"""`freshet forget`: what is left is as if the key had never been."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from engine.bind import set_policies
from engine.flow import FlowError, Run
from engine.forget import request
from engine.learners import Ridge
from engine.log import as_of, scan
from engine.model import KeptModel
from engine.publish import outputs
from engine.recovery import StateError, claim
from engine.settings import load
from operators.message import UNAVAILABLE
from tests.flow import running
from tests.flow.cards import data
from tests.flow.running import HERE, cards, freshet, run_here, versions_of

ERASED, SECRET = "card-of-nobody-else", "shop-of-nobody-else"


def without(lines: list[bytes], card: str) -> list[bytes]:
    return [line for line in lines if f'"card":"{card}"'.encode() not in line]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The cards pipeline, whose payments are erasable, over payments of which one is from a shop of its own."""
    folder = running.project(tmp_path / "cards")
    file = folder / "pipeline.py"
    declared = file.read_text()
    changed = declared.replace(
        '    at="at",\n    lateness="60s",\n', '    at="at",\n    lateness="60s",\n    erasable=True,\n'
    )
    assert changed != declared
    file.write_text(changed)
    data.write(folder / "data", 1200, seed=3)
    payments = folder / "data" / "payments.jsonl"
    lines = payments.read_bytes().replace(b'"card":"c2"', f'"card":"{ERASED}"'.encode()).splitlines()
    mine = next(i for i, line in enumerate(lines) if f'"card":"{ERASED}"'.encode() in line)
    row = orjson.loads(lines[mine])
    lines[mine] = orjson.dumps({**row, "shop": SECRET})
    payments.write_bytes(b"\n".join(lines) + b"\n")
    return folder


def rows(file: Path) -> Counter[str]:
    """What the lines of an output add up to."""
    total: Counter[str] = Counter()
    for line in file.open("rb"):
        row = orjson.loads(line)
        weight = row.pop("weight")
        total[json.dumps(row, sort_keys=True)] += weight
    assert min(total.values(), default=0) >= 0
    return +total


IMMEDIATE = ("cards=immediate()",)


def forget(folder: Path, *what: str, **given: Any) -> dict[str, Any]:
    """The command, in the folder with out and state of the pipeline."""
    refresh = [part for text in given.get("refresh", IMMEDIATE) for part in ("--refresh", text)]
    done = freshet(
        "forget", folder, *what, *refresh, *given.get("flags", ()), "--json",
        "--out", folder / "out", "--state", folder / "state", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = orjson.loads(done.stdout)
    return report


def test_views_are_as_if_the_key_had_never_been(project: Path, tmp_path: Path) -> None:
    run_here(cards(project), project, project / "out", project / "state", IMMEDIATE)
    report = forget(project, f"card={ERASED}")
    assert report["sources"]["payments"]["records"] > 100
    assert report["sources"]["payments"]["final"] == 0
    clean = tmp_path / "clean"
    shutil.copytree(project, clean, ignore=shutil.ignore_patterns("out", "state"))
    file = clean / "data" / "payments.jsonl"
    file.write_bytes(b"\n".join(without(file.read_bytes().splitlines(), ERASED)) + b"\n")
    run_here(cards(clean), clean, clean / "out", clean / "state", IMMEDIATE)
    for name in ("features", "by_country", "labelled", "cards", "known_cards"):
        found = rows(project / "out" / f"{name}.jsonl")
        assert found == rows(clean / "out" / f"{name}.jsonl"), name
        assert found, name


MODELS = ("group", "online", "similar", "nearest", "fitted", "shops")
AT_ONCE, DEFERRED = MODELS[:4], MODELS[4:]


class Halves:
    """A pipeline of models over the first half of its payments; `go_on` adds the other."""

    def __init__(
        self, folder: Path, erased: bool = False, corrections: bool = False, left_out: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.models = folder, [name for name in MODELS if name not in left_out]
        folder.mkdir()
        declared = (HERE / "forgotten" / "pipeline.py").read_text()
        (folder / "pipeline.py").write_text(declared.replace("] = ()", f"] = {left_out!r}"))
        (folder / "freshet.toml").write_text(
            'epoch = "1s"\nbatch_rows = 200\nport = 0\n'
            '[sources.payments]\npath = "payments.jsonl"\n'
            '[sources.chargebacks]\npath = "chargebacks.jsonl"\nformat = "changes"\n'
        )
        data.write(folder / "data", 600, seed=5)
        payments, told = (
            (folder / "data" / f"{n}.jsonl").read_bytes().splitlines() for n in ("payments", "chargebacks")
        )
        payments = [line.replace(b'"card":"c2"', f'"card":"{ERASED}"'.encode()) for line in payments]
        secret = next(i for i, line in enumerate(payments) if f'"card":"{ERASED}"'.encode() in line)
        payments[secret] = orjson.dumps({**orjson.loads(payments[secret]), "shop": SECRET})
        half = orjson.loads(payments[len(payments) // 2])["at"]
        self.parts: list[dict[str, list[bytes]]] = [{}, {}]
        for late, part in enumerate(self.parts):
            mine = payments[len(payments) // 2 :] if late else payments[: len(payments) // 2]
            part["payments"] = without(mine, ERASED) if late or erased else mine
            part["chargebacks"] = [
                line
                for line in told
                if (orjson.loads(line)["known"] >= half) == bool(late)
                and (corrections or orjson.loads(line)["op"] == "insert")
            ]
        self.write(0)

    def write(self, part: int) -> None:
        for name, lines in self.parts[part].items():
            with (self.folder / f"{name}.jsonl").open("ab") as file:
                file.write(b"".join(line + b"\n" for line in lines))

    def run(self) -> Run:
        return run_here(cards(self.folder), self.folder, self.folder / "out", self.folder / "state")

    def go_on(self) -> Run:
        self.write(1)
        return self.run()

    def predictions(self, model: str, skip: int = 0) -> list[tuple[int, float | None]]:
        lines = (self.folder / "out" / f"{model}.jsonl").read_bytes().splitlines()[skip:]
        return [(row["tx"], row["prediction"]) for row in map(orjson.loads, lines)]

    def count(self, model: str) -> int:
        return len(self.predictions(model))

    def training(self, model: str) -> pl.DataFrame:
        return as_of(scan(self.folder / "state" / "log" / f"{model}.training")).collect()


def _check_refits(here: Halves, report: dict[str, Any]) -> None:
    """The deferred models were fitted on the other examples, and say so."""
    for name, mode in (("fitted", "full"), ("shops", "incremental")):
        fit = report["models"][name]["refit"]
        assert fit["reason"].startswith("forgotten: examples=")
        assert (fit["mode"], fit["verdict"]) == (mode, "published")
        rows = as_of(scan(here.folder / "state" / "log" / f"{name}.training"), seq=fit["seq"]).collect()
        assert fit["examples"] == len(rows)
        versions = versions_of(here.folder / "state", "forgotten", name)
        saw = [v for v in versions.all() if v.forgotten]
        assert saw
        assert all(v.seq < fit["seq"] for v in saw)
        assert [v["version"] for v in report["models"][name]["versions"]] == [v.name for v in saw]
        model = versions.model(fit["name"])
        if name == "fitted":
            expected = type(model)().fit(rows.select("amount", pl.col("n").cast(float)), rows["label"])
            assert model.coef_ == pytest.approx(expected.coef_, rel=1e-9)
        else:
            fresh = Ridge()
            for shop, label in rows.select("shop", "label").iter_rows():
                fresh.learn_one({"shop": shop}, label)
            assert SECRET not in rows["shop"].to_list()
            for shop in {*rows["shop"], SECRET}:
                assert model.predict_one({"shop": shop}) == fresh.predict_one({"shop": shop})


def test_models_go_on_as_if_they_had_never_seen_the_key(tmp_path: Path) -> None:
    """Half of the payments, the key forgotten, the other half; and the same without the key from the start."""
    here, clean = Halves(tmp_path / "p"), Halves(tmp_path / "clean", erased=True, left_out=DEFERRED)
    here.run()
    clean.run()
    before = {name: (here.count(name), clean.count(name)) for name in AT_ONCE}
    report = forget(here.folder, f"card={ERASED}", refresh=())
    _check_refits(here, report)
    here.go_on()
    clean.go_on()
    for name in AT_ONCE:
        assert report["models"][name]["examples"] >= 20
        mine, others = before[name]
        found = here.predictions(name, mine)
        assert found == clean.predictions(name, others), name
        assert len({value for _, value in found}) > 30
        training = here.training(name)
        told = ("prediction", "model_version", "trained", "seq", "answer_pos", "_pos", "_seq")
        columns = [c for c in training.columns if c not in told and not c.startswith("frontier")]
        expected = clean.training(name)
        assert training.select(columns).sort("tx").equals(expected.select(columns).sort("tx")), name


def holding(folder: Path, what: bytes) -> list[str]:
    """The files in a folder that hold some bytes, compressed or not."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.suffix == ".parquet":
            there = what.decode() in str(pl.read_parquet(path).rows())
        else:
            there = what in path.read_bytes()
        if there:
            found.append(str(path.relative_to(folder)))
    return found


def test_nothing_of_the_key_is_left_in_the_state(tmp_path: Path) -> None:
    here = Halves(tmp_path / "p", corrections=True)
    here.run()
    state = here.folder / "state"
    assert any("log/" in name for name in holding(state, SECRET.encode()))
    assert any("models/shops/" in name for name in holding(state, SECRET.encode()))
    report = forget(here.folder, f"card={ERASED}", refresh=(), flags=("--remove",))
    assert holding(state, ERASED.encode()) == holding(state, SECRET.encode()) == []
    for name in ("fitted", "shops"):
        versions = versions_of(state, "forgotten", name).all()
        assert {v.verdict for v in versions if v.forgotten} == {"removed"}
        assert [v.verdict for v in versions if not v.forgotten].count("published") >= 1
        assert all(v["verdict"] == "removed" for v in report["models"][name]["versions"])
    old = report["models"]["fitted"]["versions"][0]["version"]
    back = freshet("rollback", here.folder, "fitted", old, "--state", state, cwd=here.folder)
    assert back.returncode == 2
    assert "there is no published version" in back.stderr
    here.go_on()
    assert holding(state, ERASED.encode()) == holding(state, SECRET.encode()) == []
    listed = freshet("models", here.folder, "fitted", "--state", state, cwd=here.folder)
    assert "removed" in listed.stdout
    told = freshet("models", here.folder, "fitted", "--state", state, "--json", cwd=here.folder)
    saw = {v["version"]: v["forgotten"] for v in report["models"]["fitted"]["versions"]}
    for v in orjson.loads(told.stdout)[0]["versions"]:
        assert v["taken_back"] >= saw.get(v["name"], 0), v["name"]  # corrected since, or forgotten


def test_cut_off_it_is_finished_by_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, other = Halves(tmp_path / "p", left_out=("shops",)), Halves(tmp_path / "other", left_out=("shops",))
    here.run()
    other.run()
    expected = forget(other.folder, f"card={ERASED}", refresh=())
    p, settings = cards(here.folder), load(here.folder, {})
    set_policies(p, settings)
    asked = request(p, [f"card={ERASED}"])

    def begin() -> tuple[Run, Any]:
        state, out = here.folder / "state", here.folder / "out"
        held = claim(state, p.name, p.definition(), 1, out, outputs(p), asked.where)
        return Run(p, settings, out, held, forget=asked), held

    def fails(*args: Any) -> None:
        raise RuntimeError("the power went off")

    with monkeypatch.context() as broken:  # before the state is saved
        broken.setattr(KeptModel, "forget", fails)
        run, held = begin()
        with pytest.raises(FlowError, match="the power went off"):
            run.run()
        held.release()
    with pytest.raises(StateError, match=f"forgetting card={ERASED} was cut off"):
        here.run()
    other_key = freshet("forget", here.folder, "card=c3", "--out", "out", "--state", "state", cwd=here.folder)
    assert other_key.returncode == 3
    assert f"freshet forget PIPELINE card={ERASED}" in other_key.stderr
    run, held = begin()  # after it is saved, before anything is erased
    run.run()
    held.release()
    with pytest.raises(StateError, match=f"forgetting card={ERASED} was cut off"):
        here.run()
    forget(here.folder, f"card={ERASED}", refresh=())
    before = here.count("group")
    here.go_on()
    other.go_on()
    for name in here.models:
        mine, others = (h.training(name).drop("_seq", "seq", "_known", "model_version") for h in (here, other))
        assert mine.equals(others), name
    for name in AT_ONCE:
        assert here.predictions(name, before) == other.predictions(name, before)
    saw = [v["forgotten"] for v in expected["models"]["fitted"]["versions"]]
    assert [v.forgotten for v in versions_of(here.folder / "state", "forgotten", "fitted").all() if v.forgotten] == saw


def test_twice_is_once_and_what_comes_later_stays(tmp_path: Path) -> None:
    here = Halves(tmp_path / "p", left_out=DEFERRED)
    here.run()
    first = forget(here.folder, f"card={ERASED}", refresh=())
    again = forget(here.folder, f"card={ERASED}", refresh=())
    assert again["sources"]["payments"] == {**first["sources"]["payments"], "changes": 0}
    assert all(m["examples"] == 0 for m in again["models"].values())
    assert all(v == {"retracted": 0, "inserted": 0} for v in again["views"].values())
    row = orjson.loads(here.parts[1]["payments"][0])
    here.parts[1]["payments"].insert(1, orjson.dumps({**row, "tx": 777_777, "card": ERASED}))
    here.go_on()
    assert 777_777 in dict(here.predictions("group"))
    third = forget(here.folder, f"card={ERASED}", refresh=())
    assert third["sources"]["payments"]["changes"] == 1


def test_corrections_and_a_key_of_a_source_with_corrections(tmp_path: Path) -> None:
    """An answer that is forgotten is no answer; the question waits on, or is closed."""
    here = Halves(tmp_path / "p", corrections=True, left_out=DEFERRED)
    here.run()
    told = here.training("group").sort("_at")["tx"].to_list()
    old, new = told[5], told[-1]
    for tx in (old, new):
        report = forget(here.folder, f"tx={tx}", refresh=())
        assert report["sources"]["chargebacks"]["changes"] <= 1
        assert report["sources"]["payments"]["changes"] >= 1
        for name in here.models:
            assert tx not in here.training(name)["tx"].to_list()
    assert set(told) - set(here.training("group")["tx"].to_list()) == {old, new}


def test_rows_of_a_source_that_is_not_erasable_are_final_when_they_are_old(tmp_path: Path) -> None:
    folder = running.project(tmp_path / "cards")
    data.write(folder / "data", 600, seed=3)
    run_here(cards(folder), folder, folder / "out", folder / "state")
    last = [r for r in map(orjson.loads, (folder / "out" / "features.jsonl").open("rb")) if r["weight"] > 0][-1]
    report = forget(folder, f"card={last['card']}", refresh=())
    count = report["sources"]["payments"]
    assert count["final"] > 0
    assert count["changes"] >= 1
    assert report["views"]["features"]["retracted"] >= 1
    assert any("older than the lateness" in line for line in report["remains"])
    assert any(line.startswith("chargebacks, shops: no such column") for line in report["remains"])
    training = as_of(scan(folder / "state" / "log" / "fraud.training")).collect()
    mine = {
        r["tx"] for r in map(orjson.loads, (folder / "out" / "features.jsonl").open("rb")) if r["card"] == last["card"]
    }
    assert not mine & set(training["tx"].to_list())


def test_a_row_of_a_table_is_deleted(project: Path) -> None:
    run_here(cards(project), project, project / "out", project / "state", IMMEDIATE)
    report = forget(project, "country=DK")
    assert list(report["sources"]) == ["shops"]
    assert report["sources"]["shops"]["changes"] >= 1
    again = forget(project, "country=DK")
    assert again["sources"]["shops"]["changes"] == 0


def test_a_version_is_found_by_a_text_that_it_leaves_untold(project: Path) -> None:
    file = project / "data" / "shops.jsonl"
    events = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    newest = {(e["after"] or e["before"])["shop"]: e for e in events}
    there = [e for e in events if e["op"] != "d" and e["after"]["country"] == "DK"]
    event = next(e for e in newest.values() if e in there)
    now = max(e["source"]["ts_ms"] for e in events) + 1
    update = {**event, "op": "u", "after": {**event["after"], "country": UNAVAILABLE, "since": now}}
    file.write_bytes(file.read_bytes() + orjson.dumps(update) + b"\n")
    run_here(cards(project), project, project / "out", project / "state", IMMEDIATE)
    assert forget(project, "country=DK")["sources"]["shops"]["changes"] == len(there) + 1


def test_with_shards_and_workers(project: Path, tmp_path: Path) -> None:
    out, state = project / "out", project / "state"
    run_here(cards(project), project, out, state, IMMEDIATE, shards=4, workers=2)
    flags = ("--shards", "4")
    forget(project, f"card={ERASED}", flags=flags)
    one = tmp_path / "one"
    shutil.copytree(project, one, ignore=shutil.ignore_patterns("out", "state"))
    run_here(cards(one), one, one / "out", one / "state", IMMEDIATE)
    forget(one, f"card={ERASED}")
    for name in ("features", "by_country", "cards"):
        assert rows(out / f"{name}.jsonl") == rows(one / "out" / f"{name}.jsonl"), name


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("card", "expected column=value, such as card=1234"),
        ("=c2", "expected column=value"),
        ("cart=c2", "no source has the columns cart. Known columns: payments: tx, card, shop, amount, at"),
        ("tx=c2", "tx is 'c2', but in source 'payments' it has the type Int64: expected such a value"),
        ("amount=1.0", "floats that look alike may differ; choose another column"),
        ("at=yesterday", "it has the type Datetime"),
    ],
)
def test_what_cannot_be_meant_is_refused(project: Path, what: str, says: str) -> None:
    with pytest.raises(ValueError, match="forg") as error:
        request(cards(project), [what])
    assert says in str(error.value)


def test_a_key_that_is_not_there_changes_nothing(project: Path) -> None:
    nothing_yet = freshet("forget", project, "card=x", "--state", project / "state", cwd=project)
    assert nothing_yet.returncode == 2
    assert "run the pipeline first" in nothing_yet.stderr
    run_here(cards(project), project, project / "out", project / "state", IMMEDIATE)
    before = running.written(project / "out")
    report = forget(project, "card=nobody")
    assert report["sources"] == {"payments": {"records": 0, "late": 0, "final": 0, "changes": 0}}
    assert running.written(project / "out") == before


def test_while_a_run_is_live_it_is_refused(project: Path) -> None:
    p = cards(project)
    held = claim(project / "state", p.name, p.definition(), 1, project / "out", outputs(p))
    done = freshet("forget", project, f"card={ERASED}", "--out", "out", "--state", "state", cwd=project)
    held.release()
    assert done.returncode == 3
    assert "another run uses the state" in done.stderr
