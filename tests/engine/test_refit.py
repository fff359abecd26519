"""Deferred models: a version serves until the next is due, fitted, judged and put in its place."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from river import drift, linear_model, preprocessing
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
from sklearn.tree import DecisionTreeRegressor

import operators as op
from engine import DefinitionError, Pipeline, debt, deferred, immediate
from engine.model import KeptModel, kept
from engine.seal import Seal
from engine.spec import ModelSpec, fingerprint
from engine.versions import VersionError, Versions
from operators.delta import BOOL, FLOAT, STRING, Delta, to_column

HOUR = 3_600_000_000
sklearn_version = tuple(map(int, metadata.version("scikit-learn").split(".")[:2]))


def pipeline(refresh: Any, learner: Any, label: str = "y", features: Sequence[str] | None = None) -> Pipeline:
    """Questions about numbers, with answers an hour or two later."""
    p = Pipeline("p")
    asked = p.source(
        "asked", key="id", at="at", schema={"id": str, "at": pl.Datetime, "a": float, "c": str}, lateness="5h"
    )
    told = p.source(
        "told", key="id", at="at", schema={"id": str, "at": pl.Datetime, "y": float, "late": bool},
        append_only=False, lateness="5h",
    )  # fmt: skip
    questions = p.view("questions", asked, op.project("id", "a", "c"))
    answers = p.view("answers", told, op.project("id", label))
    p.model(
        "m", questions, answers=answers, label=label, learner=learner, features=features, refresh=refresh, wait="1d"
    )
    return p


def stream(n: int, seed: int = 0, turn: int | None = None) -> dict[str, pl.DataFrame]:
    """y = 2a + 1 with noise; from row `turn` on y = -2a. Each is answered 1 to 3 hours later."""
    dice = np.random.default_rng(seed)
    a = dice.normal(size=n)
    at = np.arange(n) * HOUR // 4
    y = np.where(np.arange(n) < (turn or n), 2 * a + 1, -2 * a) + dice.normal(scale=0.1, size=n)
    told = at + dice.integers(1, 4, n) * HOUR
    ids = [f"q{i}" for i in range(n)]
    questions = pl.DataFrame({"id": ids, "at": pl.Series(at).cast(pl.Datetime("us", "UTC")), "a": a})
    questions = questions.with_columns(c=pl.Series(dice.choice(["u", "v"], n)))
    answers = pl.DataFrame({"id": ids, "at": pl.Series(told).cast(pl.Datetime("us", "UTC")), "y": y, "late": y > 1})
    return {"asked": questions, "told": answers.sort("at", maintain_order=True)}


def run(p: Pipeline, frames: dict[str, pl.DataFrame], batch_rows: int = 1000) -> pl.DataFrame:
    return p.replay(frames, batch_rows)["m.predictions"]


def words(estimator: Any) -> Any:
    """An estimator that takes words too."""
    if not hasattr(pl.DataFrame, "__dataframe__") and sklearn_version < (1, 8):
        return make_pipeline(FunctionTransformer(coded), estimator)  # which knows no columns of Polars by name
    encoder = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["c"]), remainder="passthrough")
    return make_pipeline(encoder, estimator)


def coded(frame: pl.DataFrame) -> Any:
    return frame.select("a", *(pl.col("c").eq(c).cast(float).alias(c) for c in "uv")).to_numpy()


ESTIMATORS = {
    "line": lambda: words(LinearRegression()),
    "tree": lambda: words(DecisionTreeRegressor(max_depth=4, random_state=1)),
}


@pytest.mark.parametrize("learner", ESTIMATORS)
def test_a_version_is_the_estimator_fitted_to_the_answers_known_when_it_was_due(learner: str) -> None:
    frames = stream(300)
    got = run(pipeline(deferred(every="1d"), ESTIMATORS[learner]()), frames).sort("at")
    asked, told = frames["asked"], frames["told"]
    want: list[float | None] = []
    for at in asked["at"]:
        midnight = at.replace(hour=0, minute=0, second=0)
        seen = told.filter(pl.col("at") < midnight).join(asked.rename({"at": "asked"}), on="id").sort("at", "asked")
        if not len(seen):
            want.append(None)
            continue
        model = ESTIMATORS[learner]().fit(seen.select("a", "c"), seen["y"].to_numpy())
        row = asked.filter(pl.col("at") == at).select("a", "c")
        want.append(float(model.predict(row)[0]))
    assert got["prediction"].is_null().to_list() == [w is None for w in want]
    np.testing.assert_allclose(got["prediction"].drop_nulls(), [w for w in want if w is not None], rtol=1e-9)
    assert got["model_version"].n_unique() == 4, "none, then one for each of three midnights"


def test_a_cadence_counts_from_the_first_change() -> None:
    frames = stream(300)
    later = {n: f.with_columns(pl.col("at") + pl.duration(days=10_000)) for n, f in frames.items()}
    got, want = (run(pipeline(deferred(every="1d"), ESTIMATORS["line"]()), given) for given in (later, frames))
    assert got["model_version"].to_list() == want["model_version"].to_list()


def test_a_correction_is_a_change_that_the_version_lacks() -> None:
    frames = stream(40)
    told = frames["told"]
    last = told["at"][-1]
    again = told.head(20).with_columns(y=pl.col("y") + 100, at=last + pl.duration(minutes=pl.int_range(1, 21)))
    p = pipeline(deferred(rows=20), Tree(max_depth=2, random_state=1))
    later = pl.DataFrame({"id": ["z"], "at": [last + timedelta(hours=2)], "a": [0.0], "c": ["u"]})
    asked = pl.concat([frames["asked"], later.cast(dict(frames["asked"].schema))])
    many = run(p, {"asked": asked, "told": pl.concat([told, again])})
    none = run(p, {"asked": asked, "told": told})
    assert many["model_version"][-1] != none["model_version"][-1]
    assert many["prediction"][-1] > none["prediction"][-1] + 20


SEAL = Seal(b"a key", "refit")
RIVER = preprocessing.StandardScaler() | linear_model.LinearRegression()
POLICIES = {
    "every": deferred(every="6h"),
    "rows": deferred(rows=37),
    "target_lag": deferred(target_lag="5h"),
    "drift": deferred(drift=drift.PageHinkley(min_instances=20, threshold=5.0)),
    "drift of a feature": deferred(drift={"a": drift.PageHinkley(min_instances=10, threshold=1.0)}, every="2d"),
    "debt": deferred(debt=20.0),
    "window": deferred(every="6h", window="12h"),
}


class Tree(DecisionTreeRegressor):
    """An estimator that looks at the number only, quick enough to be asked row by row."""

    def fit(self, x: Any, y: Any) -> Any:
        return super().fit(x.select("a").to_numpy(), y)

    def predict(self, x: Any) -> Any:
        return super().predict(x.select("a").to_numpy())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("learner", ["river", "tree"])
def test_how_batches_are_cut_does_not_show(policy: str, learner: str) -> None:
    made = (lambda: numbers_only(RIVER)) if learner == "river" else lambda: Tree(max_depth=4, random_state=1)
    frames = stream(2400, turn=1800) if policy == "debt" else stream(600, turn=350)
    cuts = (1000, 13) if policy == "debt" else (1000, 1, 13)
    found = [run(pipeline(POLICIES[policy], made()), frames, n) for n in cuts]
    assert all(found[0].equals(other) for other in found[1:])
    assert found[0]["model_version"].n_unique() > 2


def numbers_only(learner: Any) -> Any:
    from river import compose

    return compose.Select("a") | learner.clone()


def model(refresh: Any, learner: Any, label: str = "y", folder: Path | None = None) -> KeptModel:
    return kept(spec(learner, label), refresh, folder, seal=SEAL)


def spec(learner: Any, label: str = "y") -> ModelSpec:
    return pipeline(immediate() if hasattr(learner, "learn_one") else deferred(rows=1), learner, label).models["m"].spec


def feed(
    m: KeptModel, rows: Sequence[tuple[int, str, float, float]], known: int | None = None, live: bool = False
) -> tuple[list[tuple[str, float | None, str | None]], Delta]:
    """Rows (seq, key, a, y): a question, or an answer where y is a number. Returns (key, prediction, version)."""
    asked, told = [r for r in rows if r[3] != r[3]], [r for r in rows if r[3] == r[3]]

    def delta(some: Sequence[tuple[int, str, float, float]], **columns: Any) -> Delta:
        seq = np.array([r[0] for r in some], np.int64)
        return Delta(columns, np.ones(len(some), np.int64), seq, seq, seq)

    q = delta(asked, id=to_column([r[1] for r in asked], STRING), a=to_column([r[2] for r in asked], FLOAT))
    q.columns["c"] = to_column(["u"] * len(asked), STRING)
    label = m.spec.label
    dtype = m.spec.answers[label]
    ys = [bool(r[3]) if dtype == BOOL else r[3] for r in told]
    t = delta(told, id=to_column([r[1] for r in told], STRING), **{label: to_column(ys, dtype)})
    first = min(r[0] for r in rows)
    clocks = np.arange(first, max(r[0] for r in rows) + 1) if known is None else np.full(99, known)
    out, training = m.apply(q, t, -(10**9), clocks, first, live)
    frame = out.frame(m.schema)
    return list(zip(frame["id"], frame["prediction"], frame["model_version"], strict=True)), training


ASK = float("nan")


def asked(first: int, n: int, a: float = 1.0) -> list[tuple[int, str, float, float]]:
    return [(first + i, f"k{first + i}", a + i, ASK) for i in range(n)]


def told(first: int, questions: Sequence[tuple[int, str, float, float]], slope: float = 2.0) -> list[Any]:
    return [(first + i, k, 0.0, slope * a) for i, (_, k, a, _) in enumerate(questions)]


class Moody(Ridge):
    """A learner that fails as the newest label says."""

    def fit(self, x: Any, y: Any) -> Any:
        if y[-1] == 13:
            raise ArithmeticError("thirteen")
        super().fit(x.select("a"), y)
        self.mood_ = y[-1]
        return self

    def predict(self, x: Any) -> Any:
        found = super().predict(x.select("a"))
        if self.mood_ == 14:
            found[-1] = np.nan
        if self.mood_ == 15 and 99.0 in x["a"]:
            raise ArithmeticError("ninety-nine")
        return found


def test_before_the_first_version_there_is_no_prediction() -> None:
    m = model(deferred(rows=3), Ridge())
    with pytest.raises(DefinitionError, match="cannot learn each answer as it comes: declare refresh=deferred"):
        pipeline(immediate(), Ridge())
    questions = asked(0, 3)
    m = model(deferred(rows=3), Moody())
    assert [p for _, p, _ in feed(m, questions)[0]] == [None] * 3
    feed(m, told(3, questions))
    (row,) = feed(m, [(6, "x", 1.0, ASK)])[0]
    assert row[1] is not None
    assert row[2] == f"{fingerprint(m.spec)}.5"
    assert m.figures()["refreshes"] == {"published": 1, "refused": 0, "failed": 0, "fallen_back": 0}


@pytest.mark.parametrize(
    ("label", "why"), [(13.0, "ArithmeticError: thirteen"), (14.0, "1 of its predictions for its 6 newest examples")]
)
def test_a_fit_that_fails_keeps_the_old_version_and_says_so(label: float, why: str) -> None:
    m = model(deferred(rows=3), Moody())
    feed(m, first := asked(0, 3))
    feed(m, told(3, first))
    served = feed(m, second := asked(6, 3))[0]
    feed(m, [*told(9, second[:2]), (11, second[2][1], 0.0, label)])
    found = feed(m, [(20, "x", 1.0, ASK)])[0]
    assert found[0][2] == served[0][2], "the version that served goes on"
    figures = m.figures()
    assert figures["refreshes"]["failed"] == 1
    assert figures["last"]["verdict"] == "failed"
    assert why in figures["last"]["why"]
    feed(m, [(21, "x", 0.0, 2.0)])
    assert m.figures()["refreshes"]["failed"] == 1, "conditions begin anew"


def test_where_a_version_fails_at_a_question_the_one_before_is_asked() -> None:
    m = model(deferred(rows=3), Moody())
    feed(m, first := asked(0, 3))
    feed(m, told(3, first))
    (old,) = feed(m, [(6, "w", 99.0, ASK)])[0]
    feed(m, second := asked(7, 3))
    feed(m, [*told(10, second[:2]), (12, second[2][1], 0.0, 15.0)])
    found = feed(m, [(20, "x", 1.0, ASK), (21, "y", 99.0, ASK), (22, "z", 2.0, ASK)])[0]
    assert [v == old[2] for _, _, v in found] == [False, True, False]
    assert found[1][1] == old[1]
    assert m.figures()["refreshes"]["fallen_back"] == 1


def test_a_worse_version_does_not_serve() -> None:
    class Contrary(Ridge):
        """Fits well at first, then badly."""

        def fit(self, x: Any, y: Any) -> Any:
            return super().fit(x.select("a"), y if len(y) < 150 else -y)

        def predict(self, x: Any) -> Any:
            return super().predict(x.select("a"))

    m = model(deferred(rows=100), Contrary())
    at = 0
    for _ in range(2):
        feed(m, block := asked(at, 100))
        feed(m, told(at + 100, block))
        at += 200
    figures = m.figures()
    assert figures["refreshes"] == {"published": 1, "refused": 1, "failed": 0, "fallen_back": 0}
    last = figures["last"]
    assert last["why"].startswith("worse: a loss of ")
    assert last["checks"]["loss"] > last["checks"]["served_loss"] + last["checks"]["by_chance"]
    assert last["checks"]["held_out"] == 20
    assert feed(m, [(at, "x", 1.0, ASK)])[0][0][2].endswith(".199")


def test_what_is_held_out_was_asked_after_all_that_the_candidate_saw() -> None:
    seen: list[tuple[int, float]] = []

    class Spy(Ridge):
        def fit(self, x: Any, y: Any) -> Any:
            seen.append((len(y), float(x["a"].max())))
            return super().fit(x.select("a"), y)

        def predict(self, x: Any) -> Any:
            return super().predict(x.select("a"))

    m = model(deferred(rows=100), Spy())
    feed(m, first := asked(0, 100, a=0))
    feed(m, told(100, first))
    late = asked(200, 100, a=200)
    feed(m, late)
    feed(m, told(300, late))
    assert seen == [(100, 99.0), (100, 99.0), (200, 299.0)], "no answer of the second block was known when it was asked"


def tail(version: str | None) -> str | None:
    """The number of a version: the last change that it saw."""
    return version and version.split(".")[1]


class Slow(Ridge):
    """A learner whose fit ends when a file is there."""

    def __init__(self, until: str = "", alpha: float = 1.0) -> None:
        self.until = until
        super().__init__(alpha=alpha)

    def fit(self, x: Any, y: Any) -> Any:
        import os
        import time

        while self.until and not os.path.exists(self.until):
            time.sleep(0.01)
        if y[-1] == 666:
            os._exit(9)
        return super().fit(x.select("a"), y)

    def predict(self, x: Any) -> Any:
        return super().predict(x.select("a"))


def saved(m: KeptModel) -> Any:
    """What a state is when it is read again."""
    return pickle.loads(pickle.dumps(m.snapshot()))


def done(m: KeptModel) -> None:
    """Wait for the fit that runs, as time does."""
    m.keeper._fit[1].result(60)  # type: ignore[attr-defined]


def test_a_live_run_does_not_wait_and_one_that_goes_back_comes_to_the_same(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    refresh, learner = deferred(rows=3), Slow(str(gate))
    m = model(refresh, learner, folder=tmp_path)
    feed(m, first := asked(0, 3), live=True)
    start = saved(m)
    feed(m, told(3, first), live=True)
    assert m.figures()["fitting"] is not None
    before = feed(m, asked(10, 1), live=True)[0]
    fitting = saved(m)
    gate.touch()
    done(m)
    after = feed(m, asked(11, 2), live=True)[0]
    assert [tail(v) for _, _, v in before + after] == [None, "5", "5"]
    m.close()
    for state in (fitting, start):
        m = kept(m.spec, refresh, tmp_path, state, SEAL)
        if state is start:
            feed(m, told(3, first))
            assert feed(m, asked(10, 1))[0] == before
        assert feed(m, asked(11, 2))[0] == after, "the version begins to serve where it did before"
        assert m.figures()["refreshes"]["published"] == 1
        m.close()


def test_history_waits_and_a_fit_that_was_cut_off_begins_anew(tmp_path: Path) -> None:
    refresh = deferred(rows=3)
    m = model(refresh, Slow(str(tmp_path / "never")), folder=tmp_path)
    feed(m, first := asked(0, 3), live=True)
    feed(m, told(3, first), live=True)
    state = saved(m)
    m.close()
    (tmp_path / "never").touch()
    m = kept(m.spec, refresh, tmp_path, state, SEAL)
    done(m)
    assert tail(feed(m, asked(20, 1))[0][0][2]) == "5"
    m.close()
    m = model(refresh, Slow(), folder=tmp_path / "other")
    feed(m, first)
    feed(m, told(3, first))
    assert tail(feed(m, asked(6, 1))[0][0][2]) == "5", "at once"
    m.close()


def test_a_process_that_dies_keeps_the_old_version_and_the_next_is_fitted(tmp_path: Path) -> None:
    m = model(deferred(rows=3), Slow(), folder=tmp_path)
    at = 0
    for newest in (1.0, 666.0, 2.0):
        feed(m, block := asked(at, 3))
        feed(m, [*told(at + 3, block[:2]), (at + 5, block[2][1], 0.0, newest)])
        at += 6
    assert m.figures()["refreshes"] == {"published": 2, "refused": 0, "failed": 1, "fallen_back": 0}
    (failed,) = [v for v in m.keeper.versions.all() if v.verdict == "failed"]  # type: ignore[attr-defined]
    assert failed.why.startswith("the fit died: ")
    m.close()


def test_a_version_that_is_asked_for_serves_from_the_next_batch_on(tmp_path: Path) -> None:
    refresh = deferred(rows=3)
    m = model(refresh, Slow(), folder=tmp_path)
    at, seen = 0, []
    for slope in (1.0, 5.0):
        feed(m, block := asked(at, 3))
        feed(m, told(at + 3, block, slope))
        seen.append(feed(m, asked(at + 6, 1))[0][0][2])
        at += 7
    state = saved(m)
    versions = Versions(tmp_path / "models" / "m", SEAL)
    with pytest.raises(VersionError, match="there is no published version 'nothing'; there are: "):
        versions.want("nothing")
    versions.want(seen[0])
    one = feed(m, asked(at, 2))[0]
    assert [v for _, _, v in one] == [seen[0]] * 2
    m.close()
    m = kept(m.spec, refresh, tmp_path, state, SEAL)
    assert feed(m, asked(at, 2))[0] == one
    assert Versions(tmp_path / "models" / "m", SEAL).served[-1].why == "asked for"
    m.close()


@pytest.mark.parametrize("mode", ["incremental", "auto"])
def test_catching_up_is_the_learner_that_went_on(mode: Any) -> None:
    frames = stream(300)
    got = run(pipeline(deferred(rows=50, mode=mode), numbers_only(RIVER)), frames)
    full = run(pipeline(deferred(rows=50), numbers_only(RIVER)), frames)
    assert got.equals(full), "river learns one after another: to go on is to begin anew, only sooner"


def test_a_version_says_what_it_is_made_of() -> None:
    m = model(deferred(rows=3, window="4us"), Moody())
    feed(m, first := asked(0, 3))
    feed(m, told(3, first))
    feed(m, second := asked(6, 3))
    feed(m, told(9, second))
    one, two = m.keeper.versions.all()  # type: ignore[attr-defined]
    assert (one.parent, two.parent) == (None, one.name)
    assert (one.examples, two.examples) == (3, 3), "the first three left the window"
    assert (two.first, two.last, two.newest, two.seq, two.known) == (6, 8, 11, 11, 11)
    assert two.reason == "rows: answers=3, expected=3"
    assert two.numbers == {"answers": 3, "expected": 3}
    assert two.seconds > 0


@pytest.mark.parametrize(
    ("refresh", "learner", "text"),
    [
        (deferred(every="1h", mode="incremental"), Ridge(), "Ridge is fitted as a whole: leave the mode out"),
        (deferred(every="1h", mode="auto", window="1d"), RIVER, "does not forget what leaves the window"),
        (deferred(target_lag="downstream"), Ridge(), "nothing stands on a model; give its target_lag a duration"),
        (deferred(drift={"b": drift.ADWIN()}), Ridge(), "no column 'b'"),
        (deferred(drift={"c": drift.ADWIN()}), Ridge(), "drift of 'c', a String: expected numbers"),
        (deferred(debt=debt(3, shadow=Ridge())), Ridge(), "the shadow is Ridge(): expected a learner of river"),
        (deferred(every="1h"), object(), "expected a river classifier or regressor, or an estimator with fit"),
        (deferred(every="1h"), Ridge, "expected a river classifier or regressor, or an estimator with fit"),
    ],
)
def test_a_policy_that_cannot_keep_the_model_is_refused(refresh: Any, learner: Any, text: str) -> None:
    with pytest.raises(DefinitionError) as error:
        pipeline(refresh, learner)
    assert text in str(error.value)


def test_classes_and_probabilities_of_an_estimator() -> None:
    frames = stream(200)
    got = run(pipeline(deferred(every="1d"), words(LogisticRegression()), label="late"), frames).drop_nulls()
    assert got["prediction"].is_between(0, 1).all()
    truth = got.join(frames["told"], on="id")
    assert ((truth["prediction"] > 0.5) == truth["late"]).mean() > 0.9


@pytest.mark.parametrize(("boosted", "label"), [(LGBMRegressor, "y"), (LGBMClassifier, "late")])
def test_versions_of_lightgbm_serve(boosted: Any, label: str) -> None:
    frames = stream(300)
    learner = boosted(n_estimators=5, min_child_samples=5, learning_rate=0.5, n_jobs=1, verbose=-1)
    got = run(pipeline(deferred(every="1d"), learner, label, ["a"]), frames).sort("at")
    assert got["model_version"].drop_nulls().n_unique() == 3
    served = got.drop_nulls("model_version").join(frames["told"], on="id")
    assert len(served) > 200
    assert served["prediction"].is_finite().all()
    if label == "late":
        assert ((served["prediction"] > 0.5) == served["late"]).mean() > 0.9
    else:
        assert (served["prediction"] - served["y"]).abs().mean() < 0.5 * served["y"].std()
