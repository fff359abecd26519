"""What `freshet forget` leaves, in small pipelines that are cut off, asked and looked into at every point."""

from __future__ import annotations

import pickle
import shlex
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from msgspec import structs

import operators as op
from engine.bind import set_policies
from engine.erase import finish
from engine.examples import ANSWERED, OPEN
from engine.flow import Run
from engine.forget import request
from engine.publish import outputs
from engine.recovery import StateError, claim
from engine.settings import load
from engine.versions import Versions
from operators.delta import BOOL, STRING, Delta, empty, to_column
from operators.operator import DefinitionError, Named
from tests.flow.running import cards, freshet, run_here, versions_of
from tests.flow.test_forget import holding

SOURCES = ("asked", "told", "people", "notes")
POISON = np.int64(0x5EC2E75EC2E75EC2)
SEEN = {"who": STRING}
PEOPLE = Named("people", {"who": STRING, "town": STRING, "deleted": BOOL})
SECRET = "nobody-else-has-this"

DECLARED = """
import polars as pl
from river import linear_model, preprocessing
import operators as op
from engine import Pipeline, deferred, immediate, on_query
from engine.learners import Ridge, NaiveBayes

p = Pipeline("small")
asked = p.source("asked", key="id", at="at", lateness="1m", erasable=True, epoch={"at": "s"},
    schema={"id": int, "who": str, "a": float, "at": pl.Datetime})
told = p.source("told", key="id", at="at", lateness="1m", append_only=False, epoch={"at": "s"},
    schema={"id": int, "y": float, "word": str, "at": pl.Datetime})
people = p.table("people", key="who", at="at", lateness="1m", epoch={"at": "s"},
    schema={"who": str, "town": str, "at": pl.Datetime})
notes = p.source("notes", key="who", at="at", lateness="1m", append_only=False, epoch={"at": "s"},
    schema={"who": str, "y": float, "at": pl.Datetime})
questions = p.view("questions", asked, op.where(pl.col("id") >= 0))
"""

T0 = 1_700_000_000


class Small:
    """A pipeline of questions, answers and a table, over rows that a test gives; `at` counts seconds."""

    def __init__(self, folder: Path, declared: str) -> None:
        self.folder, self.state, self.out = folder, folder / "state", folder / "out"
        folder.mkdir()
        (folder / "pipeline.py").write_text(DECLARED + declared)
        (folder / "freshet.toml").write_text(
            'epoch = "1s"\nport = 0\n'
            + "".join(f'[sources.{n}]\npath = "{n}.jsonl"\nformat = "changes"\n' for n in SOURCES)
        )
        for name in SOURCES:
            (folder / f"{name}.jsonl").touch()

    def add(self, source: str, *rows: dict[str, Any]) -> None:
        with (self.folder / f"{source}.jsonl").open("ab") as file:
            for row in rows:
                file.write(orjson.dumps({**row, "at": T0 + row["at"]}) + b"\n")

    def ask(self, first: int, n: int, who: str = "x", at: int | None = None, told: bool = True, **more: Any) -> None:
        """Questions of these numbers, one a second, each answered two seconds later."""
        at = first if at is None else at
        self.add("asked", *({"id": first + i, "who": who, "a": float(i % 7), "at": at + i} for i in range(n)))
        if told:
            answer = {"op": "insert", "word": "w", **more}
            self.add("told", *({"id": first + i, "y": 2.0 * (i % 7), "at": at + i + 2, **answer} for i in range(n)))

    def run(self) -> Run:
        return run_here(cards(self.folder), self.folder, self.out, self.state)

    def forget(self, *what: str, remove: bool = False, cut: bool = False) -> dict[str, Any]:
        """As the command does. cut: before what follows the run."""
        p, settings = cards(self.folder), load(self.folder, {})
        set_policies(p, settings)
        asked = request(p, what)
        held = claim(self.state, p.name, p.definition(), 1, self.out, outputs(p), asked.where)
        try:
            run = Run(p, settings, self.out, held, forget=asked)
            run.run()
            if cut:
                return {}
            report = finish(run, remove)
            held.forgotten()
            return report
        finally:
            held.release()

    def rows(self, sink: str) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in (self.out / f"{sink}.jsonl").open("rb")]

    def holding(self, what: str = SECRET) -> list[str]:
        return holding(self.state, what.encode())

    def versions(self, model: str) -> Versions:
        return versions_of(self.state, cards(self.folder).name, model)


ONLINE = """
later = p.view("later", told, op.project("id", "y"), refresh=deferred(every="30s"))
m = p.model("m", questions, answers=later, label="y", features=["a"], wait="1h", refresh=immediate(),
    learner=preprocessing.StandardScaler() | linear_model.LinearRegression(), advance="{advance}", naive=True)
p.sink("m", m.predictions)
"""


@pytest.mark.parametrize(("advance", "off"), [("answers", 0.0), ("questions", 0.15)])
def test_what_cannot_unlearn_learns_the_others_as_it_did(tmp_path: Path, advance: str, off: float) -> None:
    """Its examples in the order of their answers, though several became known at once; and its scaler, too."""
    said = []
    for forgets in (True, False):
        here = Small(tmp_path / str(forgets), ONLINE.replace("{advance}", advance))
        for k in range(0, 200, 20):
            here.ask(k, 20, told=False)
            answers = [{"op": "insert", "id": k + i, "y": 2.0 * (i % 7), "at": k + 25} for i in range(19, -1, -1)]
            here.add("told", *answers)
        if forgets:
            here.ask(300, 1, who=SECRET, at=202)
        here.add("told", {"op": "insert", "id": -1, "y": 0.0, "at": 260})
        here.run()
        if forgets:
            assert here.forget(f"who={SECRET}")["models"]["m"]["examples"] == 1
        here.ask(400, 7, at=270, told=False)
        here.run()
        said.append([row["prediction"] for row in here.rows("m")[-7:]])
    assert said[0] == pytest.approx(said[1], abs=off, rel=0)
    assert len(set(said[0])) == 7


def test_a_refit_that_is_due_anyway_waits_until_all_is_forgotten(tmp_path: Path) -> None:
    """What is taken back makes a model due, too; it is fitted once, without examples of any age."""
    here = Small(
        tmp_path / "p",
        """
p.model("m", questions, answers=told, label="y", features=["who", "a"], wait="10s", learner=Ridge(),
    refresh=deferred(rows=20, mode="incremental"))
""",
    )
    here.ask(0, 15, who=SECRET)
    here.ask(15, 200)
    here.ask(215, 25, who=SECRET)
    here.run()
    fit = here.forget(f"who={SECRET}")["models"]["m"]["refit"]
    assert fit["reason"].startswith("forgotten: ")
    assert fit["examples"] == 200
    assert SECRET not in str(vars(here.versions("m").model(fit["name"])))
    assert [v.seq for v in here.versions("m").all()].count(fit["seq"]) == 1


def test_a_version_that_had_seen_the_key_is_not_fallen_back_on(tmp_path: Path) -> None:
    here = Small(
        tmp_path / "p",
        """
class Odd(Ridge):
    def predict_one(self, x):
        return float("nan") if x["a"] == 99.0 and self.n > 90 else super().predict_one(x)

    def learn_one(self, x, y):
        self.n = getattr(self, "n", 0) + 1
        super().learn_one(x, y)

m = p.model("m", questions, answers=told, label="y", features=["a"], wait="1m", learner=Odd(),
    refresh=deferred(rows=50))
p.sink("m", m.predictions)
""",
    )
    here.ask(0, 40)
    here.ask(40, 5, who=SECRET)
    here.ask(60, 60)
    here.run()
    here.forget(f"who={SECRET}", remove=True)
    here.ask(200, 1, told=False)
    here.add("asked", {"id": 201, "who": "x", "a": 99.0, "at": 201})
    run = here.run()
    assert [row["prediction"] is None for row in here.rows("m")[-2:]] == [False, True]
    assert run.models["m"].figures()["refreshes"]["fallen_back"] == 0


FITTED = """
m = p.model("m", questions, answers=told, label="y", features=["a"], wait="1m", learner=Ridge(),
    refresh=deferred(rows=50))
"""


@pytest.mark.parametrize("where", ["erase", "compact"])
def test_cut_off_while_versions_are_marked_it_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    here = Small(tmp_path / "p", FITTED)
    here.ask(0, 40)
    here.ask(40, 5, who=SECRET)
    here.ask(60, 60)
    here.run()

    def fails(*args: Any) -> None:
        raise RuntimeError("the power went off")

    with monkeypatch.context() as broken:
        broken.setattr(f"engine.erase.{where}", fails)
        with pytest.raises(RuntimeError, match="the power"):
            here.forget(f"who={SECRET}")
    report = here.forget(f"who={SECRET}")["models"]["m"]
    assert [v["forgotten"] for v in report["versions"]] == [5, 5]
    assert [v.forgotten for v in here.versions("m").all()] == [5, 5, 0]
    again = here.forget(f"who={SECRET}", remove=True)["models"]["m"]
    assert [(v["forgotten"], v["verdict"]) for v in again["versions"]] == [(5, "removed"), (5, "removed")]


def test_what_looks_into_the_store_does_not_keep_it(tmp_path: Path) -> None:
    here = Small(tmp_path / "p", FITTED + 'p.view("each", asked, op.aggregate(by="who", n=op.count()))')
    here.ask(0, 10, who=SECRET)
    here.run()
    assert here.holding()
    store = sqlite3.connect(here.state / "recovery" / "part-0.sqlite3")
    store.execute("SELECT * FROM snaps").fetchall()
    here.forget(f"who={SECRET}")
    found = here.holding()
    store.close()
    assert found == []


@pytest.mark.parametrize("naive", [False, True])
def test_nothing_is_left_of_questions_in_memory(tmp_path: Path, naive: bool) -> None:
    """Neither of one that waits, in the twin's queue too, nor of one whose key was asked again."""
    here = Small(
        tmp_path / "p",
        f"""
m = p.model("m", questions, answers=told, label="y", features=["who", "a"], wait="1m", learner=Ridge(),
    refresh=immediate(), naive={naive})
""",
    )
    here.ask(0, 20)
    here.ask(20, 1, told=False)
    here.ask(50, 1, who=SECRET, told=False)
    here.ask(50, 1, at=115)
    here.ask(120, 1, who=SECRET, told=False)
    here.ask(130, 10, at=120)
    here.run()
    assert here.holding()
    here.forget(f"who={SECRET}")
    assert here.holding() == []
    assert here.run().models["m"].examples.find(50).state == ANSWERED


def test_nothing_is_left_of_an_answer_whose_question_stays(tmp_path: Path) -> None:
    here = Small(
        tmp_path / "p",
        """
m = p.model("m", questions, answers=told, label="word", features=["a"], wait="1m", learner=NaiveBayes(),
    refresh=immediate())
""",
    )
    here.ask(0, 20)
    here.ask(20, 1, word=SECRET)
    here.ask(30, 3)
    here.run()
    here.forget(f"word={SECRET}")
    left = here.run().models["m"].examples.find(20)
    assert (left.state, left.label, left.first_label) == (OPEN, None, None)


def test_nothing_is_left_of_an_answer_that_came_first(tmp_path: Path) -> None:
    here = Small(
        tmp_path / "p",
        """
m = p.model("m", questions, answers=notes, label="y", key="who", features=["a"], wait="1h", learner=Ridge(),
    refresh=immediate())
""",
    )
    here.ask(0, 20, told=False)
    here.add("notes", {"who": SECRET, "y": 1.0, "at": 5}, {"who": "later", "y": 1.0, "at": 6})
    here.ask(100, 1, told=False)
    here.run()
    here.forget(f"who={SECRET}")
    examples = here.run().models["m"].examples
    assert [key for _, _, key in examples._early_ends] == ["later"]


def test_the_naive_twin_learns_each_example_once(tmp_path: Path) -> None:
    here = Small(
        tmp_path / "p",
        """
m = p.model("m", questions, answers=told, label="y", features=["a"], wait="1h", learner=Ridge(),
    refresh=immediate(), naive=True)
""",
    )
    here.ask(0, 10)
    here.ask(10, 1, told=False)
    here.ask(11, 10)
    here.ask(30, 2, who=SECRET)
    here.run()
    here.forget(f"who={SECRET}")
    here.add("told", {"op": "insert", "id": 10, "y": 0.0, "word": "w", "at": 60})
    model = here.run().models["m"]
    x = {"a": 3.0}
    assert model._naive.student.predict(x) == model.keeper.student.predict(x)


TABLE = """
joined = p.view("joined", asked, op.join(people, on="who", columns=["town"]))
p.sink("joined", joined)
towns = p.view("towns", people, op.where(pl.col("who") != ""))
p.sink("towns", towns)
words = p.view("words", told, op.where(pl.col("id") >= 0))
p.sink("words", words)
"""


def net(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What rows of an output add up to."""
    total: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        total[tuple(v for n, v in row.items() if n != "weight")] += row["weight"]
    return sorted((+total).elements(), key=str)


def test_versions_of_a_table_are_as_if_they_had_never_been(tmp_path: Path) -> None:
    """Newest ones and older ones, and for what looks them up: and what comes next counts, at its own time."""
    outs = []
    for forgets in (True, False):
        here = Small(tmp_path / str(forgets), TABLE)
        here.ask(0, 300, who="k", told=False)
        here.add("people", {"who": "x", "town": "here", "at": 0}, {"who": "y", "town": "there", "at": 0})
        if forgets:
            here.add("people", {"who": "k", "town": SECRET, "at": 1}, {"who": "y", "town": SECRET, "at": 2})
        here.add("people", {"who": "y", "town": "again", "at": 10}, {"who": "z", "town": "here", "at": 70})
        here.run()
        if forgets:
            assert here.holding()
            assert here.forget(f"town={SECRET}")["sources"]["people"]["changes"] == 2
            assert here.holding() == []
        here.add("people", {"who": "k", "town": "new", "at": 75})
        here.ask(400, 1, who="k", at=310, told=False)
        here.run()
        outs.append([net(here.rows(name)) for name in ("joined", "towns")])
    assert outs[0] == outs[1]


def test_what_an_answer_says_is_not_kept_of_a_deleted_key(tmp_path: Path) -> None:
    here = Small(tmp_path / "p", TABLE)
    here.ask(0, 20)
    here.ask(20, 1, word=SECRET)
    here.run()
    assert here.forget(f"word={SECRET}")["sources"]["told"]["changes"] == 1
    assert here.holding() == []
    assert len(net(here.rows("words"))) == 20


def test_what_is_not_there_is_not_forgotten(tmp_path: Path) -> None:
    """Nothing is refreshed for it; a second time finds nothing more to do either."""
    here = Small(
        tmp_path / "p",
        FITTED
        + """
each = p.view("each", asked, op.aggregate(by="who", n=op.count()), refresh=deferred(every="1h"))
p.sink("each", each)
""",
    )
    here.ask(0, 40)
    here.run()
    before = here.rows("each")
    done = freshet("forget", here.folder, "who=nobody", "--out", here.out, "--state", here.state, cwd=here.folder)
    assert done.returncode == 0, done.stderr
    assert "nothing of who=nobody was found" in done.stdout
    assert here.rows("each") == before
    assert not (here.state / "forget.json").exists()
    report = here.forget("who=nobody")
    assert report["sources"]["asked"] == {"records": 0, "late": 0, "final": 0, "changes": 0}
    assert report["views"] == report["models"] == {}


def test_a_failure_in_reading_what_a_version_says_is_counted(tmp_path: Path) -> None:
    here = Small(
        tmp_path / "p",
        """
from engine import guard

class Odd(Ridge):
    def predict_one(self, x):
        if x["a"] == 98.0:
            raise ArithmeticError("ninety-eight")
        return "no number" if x["a"] == 99.0 else super().predict_one(x)

m = p.model("m", questions, answers=told, label="y", features=["a"], wait="1m", learner=Odd(),
    refresh=deferred(rows=8), guards=[guard.fallback("none", 0.0)])
""",
    )
    here.ask(0, 10)
    here.run()
    here.add("asked", {"id": 50, "who": "x", "a": 99.0, "at": 50})
    assert here.run().models["m"].figures()["failed"] == 1
    here.add("asked", {"id": 51, "who": "x", "a": 98.0, "at": 51})
    assert here.run().models["m"].figures()["failed"] == 2


@pytest.mark.parametrize("learnt", [True, False])
def test_what_a_lost_future_fitted_does_not_come_back(tmp_path: Path, learnt: bool) -> None:
    """A live run that was killed had fitted and served a version after its last saved state; its notes are lost too."""
    here = Small(tmp_path / "p", FITTED + 'p.sink("m", m.predictions)\n')
    here.ask(0, 60)
    here.ask(60, 5, who=SECRET, told=learnt)
    here.run()
    saved = here.folder / "saved"
    shutil.copytree(here.state / "recovery", saved)
    if not learnt:
        here.add("told", *({"op": "insert", "id": 60 + i, "y": 1.0, "word": "w", "at": 67} for i in range(5)))
    here.ask(65, 60)
    here.run()
    lost = here.versions("m").all()[-1]
    versions = here.versions("m")
    versions._note_served([structs.replace(s, live=True) for s in versions.served])
    shutil.rmtree(here.state / "recovery")
    saved.rename(here.state / "recovery")
    shutil.rmtree(here.state / "intake")
    here.forget(f"who={SECRET}", remove=True)
    assert lost.name not in here.versions("m")
    here.ask(130, 80)
    run = here.run()
    assert lost.name not in {row["model_version"] for row in here.rows("m")}
    assert run.models["m"].figures()["version"] == here.versions("m").serving


@pytest.mark.parametrize("made", [op.join(PEOPLE, on="who"), op.window(by="who", size="1m", n=op.count())])
def test_a_state_holds_nothing_of_the_memory_around_it(made: Any) -> None:
    """What was read lies about in memory that is used again."""
    schemas = [SEEN, PEOPLE.schema][: len(made.keys)]
    kept = made.start(schemas)
    for k in range(200):
        lying = [np.full(size, POISON) for size in 16 * 2 ** np.arange(12) for _ in range(20)]
        del lying
        at = np.arange(20) + 20 * k
        rows = Delta({"who": to_column([f"w{i % 37}" for i in at.tolist()], STRING)}, at * 0 + 1, at, at, at)
        kept.apply([rows, *map(empty, schemas[1:])])
        assert POISON.tobytes() not in pickle.dumps(kept.snapshot())


@pytest.mark.parametrize("what", [f"id={10**30}", "at=0001-01-01T00:00:00+14:00"])
def test_what_no_column_can_hold_is_refused(tmp_path: Path, what: str) -> None:
    here = Small(tmp_path / "p", TABLE)
    with pytest.raises(DefinitionError, match="expected such a value"):
        request(cards(here.folder), [what])


def test_the_command_that_finishes_is_one_to_be_pasted(tmp_path: Path) -> None:
    here = Small(tmp_path / "p", TABLE)
    here.ask(0, 5, who="o'neill & co")
    here.run()
    here.forget("who=o'neill & co", cut=True)
    with pytest.raises(StateError) as error:
        here.run()
    *_, command = str(error.value).partition("freshet forget PIPELINE ")
    assert shlex.split(command) == ["who=o'neill & co"]
    here.forget("who=o'neill & co")
    here.run()


def test_large_states_of_before_are_gone(tmp_path: Path) -> None:
    """And what a crash left: half written, or of an epoch that never completed."""
    here = Small(tmp_path / "p", 'p.view("w", asked, op.window(by="who", size="1m", n=op.count()))\n')
    here.ask(0, 20, told=False)
    here.ask(20, 8000, who=SECRET, told=False)
    here.run()
    large = here.state / "large"
    (large / "left.1.new").write_text(SECRET)
    for path in list(large.glob("*.state")):
        name, number = path.name.rsplit(".", 2)[:2]
        shutil.copy(path, large / f"{name}.{int(number) + 2}.state")
    assert any(name.endswith(".state") for name in here.holding())
    here.forget(f"who={SECRET}")
    assert here.holding() == []
    here.run()
