"""What can be taken back from a learner, and that it is as if it had never been learnt."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import (
    base,
    checks,
    compose,
    dummy,
    ensemble,
    feature_extraction,
    linear_model,
    naive_bayes,
    preprocessing,
    stats,
    tree,
)
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import Ridge as SklearnRidge

from engine.learners import NaiveBayes, Ridge, retraction, unlearn
from operators.operator import DefinitionError

Examples = list[tuple[dict[str, Any], Any, float]]

PLAIN = st.one_of(
    st.integers(-3, 3), st.floats(-50, 50).map(lambda v: round(v, 3)), st.sampled_from(["r", "s", ""]), st.booleans()
)
FEATURES = st.dictionaries(st.sampled_from("abc"), PLAIN)
WEIGHTS = st.sampled_from([1.0, 1.0, 2.0, 0.3])


def examples(labels: st.SearchStrategy[Any], features: Any = FEATURES) -> st.SearchStrategy[Examples]:
    return st.lists(st.tuples(features, labels, WEIGHTS), max_size=12)


def interleaved(learner: Any, rows: Examples, taken: set[int], seed: int) -> None:
    """Learn the rows in some order, and take those marked back, each at some time after it was learnt."""
    r = random.Random(seed)
    to_learn, to_unlearn = r.sample(range(len(rows)), len(rows)), []
    while to_learn or to_unlearn:
        if to_learn and (not to_unlearn or r.random() < 0.6):
            i = to_learn.pop()
            learner.learn_one(*rows[i])
            if i in taken:
                to_unlearn.append(i)
        else:
            learner.unlearn_one(*rows[to_unlearn.pop(r.randrange(len(to_unlearn)))])


def in_order(learner: Any, rows: Examples) -> Any:
    for row in rows:
        learner.learn_one(*row)
    return learner


CHOICES = st.sets(st.integers(0, 11))
SEEDS = st.integers(0, 2**32)
NUMBERS = st.floats(-100, 100).map(lambda v: round(v, 3))
CLASSES = st.sampled_from(["u", "v", "w"])


class Counted(base.Regressor):
    """Declares itself."""

    retraction = "group"

    def __init__(self) -> None:
        self.n = 0

    def learn_one(self, x: Any, y: Any) -> None:
        self.n += 1

    def unlearn_one(self, x: Any, y: Any) -> None:
        self.n -= 1

    def predict_one(self, x: Any) -> float:
        return float(self.n)


class Typo(Counted):
    retraction = "groups"


class Unable(base.Regressor):
    retraction = "group"

    def learn_one(self, x: Any, y: Any) -> None: ...

    def predict_one(self, x: Any) -> float:
        return 0.0


class Adding(Unable):
    retraction = "semigroup"


@pytest.mark.parametrize(
    ("learner", "expected"),
    [
        (Ridge(), "group"),
        (NaiveBayes(), "group"),
        (Counted(), "group"),
        (Adding(), "semigroup"),
        (dummy.PriorClassifier(), "group"),
        (dummy.StatisticRegressor(stats.Mean()), "group"),
        (dummy.StatisticRegressor(stats.EWMean()), "replay"),
        (dummy.NoChangeClassifier(), "replay"),
        (naive_bayes.GaussianNB(), "semigroup"),
        (naive_bayes.MultinomialNB(), "semigroup"),
        (naive_bayes.BernoulliNB(), "semigroup"),
        (naive_bayes.ComplementNB(), "semigroup"),
        (linear_model.LinearRegression(), "replay"),
        (linear_model.BayesianLinearRegression(), "replay"),
        (tree.HoeffdingTreeClassifier(), "replay"),
        (ensemble.BaggingClassifier(NaiveBayes(), seed=1), "replay"),
        (compose.Select("a") | compose.Prefixer("x_") | Ridge(), "group"),
        (compose.FuncTransformer(dict) | (compose.Discard("a") | compose.Suffixer("x") | NaiveBayes()), "group"),
        ((compose.Select("a") + (compose.Select("b") | compose.Prefixer("c"))) | Ridge(), "group"),
        (feature_extraction.PolynomialExtender() | Ridge(), "group"),
        (feature_extraction.BagOfWords() | naive_bayes.MultinomialNB(), "semigroup"),
        (preprocessing.StandardScaler() | Ridge(), "replay"),
        ((compose.Select("a") + preprocessing.StandardScaler()) | Ridge(), "replay"),
        (compose.Select("a") | feature_extraction.RBFSampler(seed=1) | Ridge(), "replay"),
        (preprocessing.TargetStandardScaler(Ridge()), "replay"),
        (compose.Pipeline(), "replay"),
        (object(), "replay"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_what_can_be_taken_back(learner: Any, expected: str) -> None:
    assert retraction(learner) == expected


def test_a_class_that_declares_what_cannot_be_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"Typo: retraction is 'groups': expected 'group', 'semigroup' or"):
        retraction(Typo())
    with pytest.raises(DefinitionError, match=r"Unable: retraction is 'group' but there is no unlearn_one: define"):
        retraction(Unable())


@pytest.mark.parametrize("make", [naive_bayes.MultinomialNB, naive_bayes.BernoulliNB, naive_bayes.ComplementNB])
def test_counts_of_river_do_not_tell_who_named_a_feature(make: Callable[[], Any]) -> None:
    """Two histories in one state that differ in what is left when the same example is taken back: hence no group."""
    one, other = [({"a": 0}, True), ({"a": 1}, True)], [({}, True), ({"a": 1}, True)]
    models = [make(), make()]
    rests = [make(), make()]
    for model, rest, rows in zip(models, rests, (one, other), strict=True):
        for x, y in rows:
            model.learn_one(x, y)
        rest.learn_one(*rows[0])
    assert vars(models[0]) == vars(models[1])
    assert vars(rests[0]) != vars(rests[1])


def test_a_gaussian_of_river_keeps_a_visible_trace() -> None:
    """What is left is off by a rounding error, and yet the prediction is another: hence no group."""
    one, other = naive_bayes.GaussianNB(), naive_bayes.GaussianNB()
    for model in (one, other):
        for a, y in [(5.0, False), (6.0, False), (0.1, True), (0.1, True), (0.1, True)]:
            model.learn_one({"a": a}, y)
    one.learn_one({"a": 0.7}, True)
    one.class_counts[True] -= 1
    one.gaussians[True]["a"].revert(0.7)
    assert one.predict_proba_one({"a": 0.1})[True] > other.predict_proba_one({"a": 0.1})[True] + 0.3


def test_unlearn_takes_back_from_river_and_from_pipelines() -> None:
    prior, mean = dummy.PriorClassifier(), dummy.StatisticRegressor(stats.Mean())
    line = compose.Renamer({"a": "c"}) | compose.Select("c") | Ridge(l2=0.1)
    for x, y in [({"a": 1.0}, True), ({"a": 2.0}, False), ({"a": 4.0}, True)]:
        prior.learn_one(x, y)
        mean.learn_one(x, y)
        line.learn_one(dict(x), y)
    taken = {"a": 2.0}
    for learner in (prior, mean, line):
        unlearn(learner, taken, False)
    assert taken == {"a": 2.0}
    assert vars(prior) == {"counts": {True: 2}, "n": 2}
    assert (mean.statistic.n, mean.predict_one({})) == (2, 1.0)
    assert line.steps["Ridge"].weights == in_order(Ridge(l2=0.1), [({"c": a}, True, 1.0) for a in (1.0, 4.0)]).weights
    counted = Counted()
    counted.learn_one({}, 1)
    unlearn(counted, {}, 1)
    assert counted.n == 0


def test_unlearn_refuses_what_cannot_be() -> None:
    with pytest.raises(DefinitionError, match=r"LinearRegression cannot unlearn.*'replay'.*refit it without"):
        unlearn(linear_model.LinearRegression(), {}, 1.0)
    with pytest.raises(DefinitionError, match=r"GaussianNB cannot unlearn.*'semigroup'"):
        unlearn(naive_bayes.GaussianNB(), {}, True)


@pytest.mark.parametrize(
    "make",
    [Ridge, NaiveBayes, dummy.PriorClassifier, lambda: dummy.StatisticRegressor(stats.Mean())],
    ids=["Ridge", "NaiveBayes", "PriorClassifier", "Mean"],
)
def test_what_was_not_learnt_cannot_be_taken_back(make: Callable[[], Any]) -> None:
    learner = make()
    before = pickle.dumps(learner)
    with pytest.raises(
        ValueError, match=r"the example \{'a': 1.0\} with label 1 cannot be taken back: it was not learnt"
    ):
        unlearn(learner, {"a": 1.0}, 1)
    assert pickle.dumps(learner.clone()) == before


@pytest.mark.parametrize("learner", [Ridge(), Ridge(l2=0.01, intercept=False), NaiveBayes()])
def test_they_pass_the_checks_of_river(learner: Any) -> None:
    done = [check(learner.clone()) for check in checks.yield_checks(learner)]
    assert len(done) > 5


@pytest.mark.parametrize(("make", "value"), [(Ridge, 0), (Ridge, -1.0), (Ridge, math.nan), (Ridge, "1")])
def test_a_penalty_that_cannot_be_is_refused(make: Any, value: Any) -> None:
    with pytest.raises(DefinitionError, match=r"Ridge: l2 is .*: expected a number above 0"):
        make(value)


@pytest.mark.parametrize("value", [0, 1e-10, math.inf, None])
def test_a_smoothing_that_cannot_be_is_refused(value: Any) -> None:
    with pytest.raises(DefinitionError, match=r"NaiveBayes: alpha is .*: expected a number of 1e-9 or more"):
        NaiveBayes(value)


# Ridge


def told(ridge: Ridge) -> Any:
    """All of a ridge that shows, to the last bit."""
    names = sorted(ridge.weights, key=repr)
    return ridge._held, ridge.predict_one({}).hex(), [(n, ridge._named[n], ridge.weights[n].hex()) for n in names]


@settings(deadline=None)
@given(examples(NUMBERS), CHOICES, SEEDS, st.booleans())
def test_ridge_is_that_of_what_is_left(rows: Examples, taken: set[int], seed: int, intercept: bool) -> None:
    ridge = Ridge(0.5, intercept)
    interleaved(ridge, rows, taken, seed)
    left = [row for i, row in enumerate(rows) if i not in taken]
    assert told(ridge) == told(in_order(Ridge(0.5, intercept), left))
    if not left:
        same_state(ridge, Ridge(0.5, intercept))


def same_state(one: Ridge, other: Ridge) -> None:
    a, b = vars(one), vars(other)
    assert np.array_equal(a.pop("_sums"), b.pop("_sums"))
    assert a == b


@settings(deadline=None)
@given(examples(NUMBERS), st.sampled_from([0.1, 1.0, 10.0]), st.booleans())
def test_ridge_is_the_ridge_of_sklearn(rows: Examples, l2: float, intercept: bool) -> None:
    ridge = in_order(Ridge(l2, intercept), rows)
    if not any(x for x, _, _ in rows):
        return
    encoder = DictVectorizer(sparse=False)
    found = encoder.fit_transform([x for x, _, _ in rows])
    oracle = SklearnRidge(alpha=l2, fit_intercept=intercept)
    oracle.fit(found, [y for _, y, _ in rows], sample_weight=[w for _, _, w in rows])
    for x, expected in zip([x for x, _, _ in rows], oracle.predict(found), strict=True):
        assert ridge.predict_one(x) == pytest.approx(expected, rel=1e-6, abs=1e-6)


WIDE = st.dictionaries(st.sampled_from("ab"), st.floats(-1e140, 1e140), min_size=1)


@settings(deadline=None)
@given(examples(st.floats(-1e140, 1e140), WIDE), CHOICES, SEEDS)
def test_sums_of_ridge_keep_within_their_bound(rows: Examples, taken: set[int], seed: int) -> None:
    ridge = Ridge()
    interleaved(ridge, rows, taken, seed)
    left = [row for i, row in enumerate(rows) if i not in taken]
    for f in ridge._named:
        sums = [Fraction(v) for v in ridge._sums[ridge._places[f], 1].tolist()]
        products = [Fraction(w * (x.get(f, 0.0) * y)) for x, y, w in rows]
        exact = sum((Fraction(w * (x.get(f, 0.0) * y)) for x, y, w in left), Fraction(0))
        changes = len(rows) + len(taken)
        assert abs(sum(sums) - exact) <= changes * Fraction(1, 2**157) * sum(map(abs, products))


def test_a_feature_that_nobody_names_any_more_is_forgotten() -> None:
    ridge = Ridge()
    for i in range(40):
        ridge.learn_one({"id": f"n{i}", "a": i % 7}, i)
        if i >= 5:
            ridge.unlearn_one({"id": f"n{i - 5}", "a": (i - 5) % 7}, i - 5)
    assert set(ridge.weights) == {"a", *(("id", f"n{i}") for i in range(35, 40))}
    assert len(ridge._sums) < 20
    left = [({"id": f"n{i}", "a": i % 7}, i, 1.0) for i in range(35, 40)]
    assert told(ridge) == told(in_order(Ridge(), left))


def test_ridge_takes_numbers_that_are_missing_or_beyond_as_missing() -> None:
    ridge = Ridge()
    ridge.learn_one({"a": math.nan, "b": math.inf, "c": 1e200, "d": None, "e": 10**400, "f": 1.0}, 2.0)
    assert list(ridge.weights) == ["f"]
    with pytest.raises(ValueError, match=r"y is nan and its weight 1\.0: expected numbers up to 1e"):
        ridge.learn_one({}, math.nan)
    with pytest.raises(ValueError, match=r"y is 1\.0 and its weight 0: expected"):
        ridge.unlearn_one({}, 1.0, 0)
    assert ridge._held == 1


def test_ridge_tells_columns_that_are_alike_apart_from_none() -> None:
    ridge = Ridge(l2=1e-12)
    for a in range(1, 30):
        ridge.learn_one({"a": a * 1e9, "b": a * 1e9}, 3.0 * a)
    assert ridge.predict_one({"a": 2e9, "b": 2e9}) == pytest.approx(6.0)
    assert ridge.weights["a"] == pytest.approx(ridge.weights["b"])


# NaiveBayes


@settings(deadline=None)
@given(examples(CLASSES), CHOICES, SEEDS)
def test_naive_bayes_is_that_of_what_is_left(rows: Examples, taken: set[int], seed: int) -> None:
    model = NaiveBayes()
    interleaved(model, rows, taken, seed)
    rest = in_order(NaiveBayes(), [row for i, row in enumerate(rows) if i not in taken])
    assert vars(model) == vars(rest)
    for x, _, _ in rows:
        assert model.predict_proba_one(x) == rest.predict_proba_one(x)
        assert model.predict_one(x) == rest.predict_one(x)


@settings(deadline=None)
@given(examples(CLASSES, st.dictionaries(st.sampled_from("ab"), st.floats())), CHOICES, SEEDS)
def test_naive_bayes_is_exact_for_every_float(rows: Examples, taken: set[int], seed: int) -> None:
    model = NaiveBayes()
    interleaved(model, rows, taken, seed)
    assert vars(model) == vars(in_order(NaiveBayes(), [row for i, row in enumerate(rows) if i not in taken]))
    for x, _, _ in rows:
        found = model.predict_proba_one(x)
        assert not found or sum(found.values()) == pytest.approx(1.0)


def is_category(v: Any) -> bool:
    return isinstance(v, (str, bool))


def plain(rows: Examples, x: dict[str, Any], alpha: float) -> dict[Any, float]:
    """Naive Bayes as its docstring says it, from the examples."""
    score = {}
    for c in {y for _, y, _ in rows}:
        score[c] = math.log(sum(Fraction(w) for _, y, w in rows if y == c))
        for f, v in x.items():
            found = [(z[f], y, Fraction(w)) for z, y, w in rows if f in z and is_category(z[f]) == is_category(v)]
            if not found:
                continue
            mine = [(u, w) for u, y, w in found if y == c]
            if is_category(v):
                n, having = sum(w for u, w in mine if u == v), sum(w for _, w in mine)
                score[c] += math.log((n + alpha) / (having + alpha * len({u for u, _, _ in found})))
            else:
                score[c] += normal(Fraction(v), mine, [(u, w) for u, _, w in found], Fraction(alpha))
    most = max(score.values(), default=0.0)
    total = sum(math.exp(s - most) for s in score.values())
    return {c: math.exp(s - most) / total for c, s in score.items()}


def normal(v: Fraction, mine: list[Any], everyones: list[Any], alpha: Fraction) -> float:
    whole = sum(w for _, w in everyones)
    more = [(Fraction(u), w * alpha / whole) for u, w in everyones]
    all_of_it = [(Fraction(u), w) for u, w in mine] + more
    n = sum(w for _, w in all_of_it)
    mean = sum(w * u for u, w in all_of_it) / n
    square = sum(w * (u - mean) ** 2 for u, w in all_of_it) / n
    if len({Fraction(u) for u, _ in everyones}) == 1:
        return 0.0
    return -0.5 * math.log(square) - float((v - mean) ** 2 / (2 * square))


@settings(deadline=None)
@given(examples(CLASSES), FEATURES, st.sampled_from([0.5, 1.0, 3.0]))
def test_naive_bayes_is_as_its_definition_says(rows: Examples, x: dict[str, Any], alpha: float) -> None:
    found = in_order(NaiveBayes(alpha), rows).predict_proba_one(x)
    assert found == pytest.approx(plain(rows, x, alpha), rel=1e-9, abs=1e-12)


def test_naive_bayes_when_all_is_taken_back_is_as_new() -> None:
    rows: Examples = [({"a": "s", "b": 1.5, "c": True}, "u", 1.0), ({"a": "t", "b": -2}, "v", 0.1)]
    model = in_order(NaiveBayes(), rows)
    for row in rows:
        model.unlearn_one(*row)
    assert vars(model) == vars(NaiveBayes())
    assert (model.predict_proba_one({"a": "s"}), model.predict_one({"a": "s"})) == ({}, None)


def test_naive_bayes_takes_back_nothing_when_a_part_was_not_learnt() -> None:
    model = in_order(NaiveBayes(), [({"a": "s", "b": 1.0}, True, 1.0)])
    before = pickle.dumps(model)
    for x, y, w in [
        ({"a": "t"}, True, 1.0),
        ({"c": 1.0}, True, 1.0),
        ({"a": "s"}, True, 1.5),
        ({"a": "s"}, False, 1.0),
    ]:
        with pytest.raises(ValueError, match=r"cannot be taken back"):
            model.unlearn_one(x, y, w)
    with pytest.raises(ValueError, match=r"the weight is 0: expected a number above 0"):
        model.learn_one({}, True, 0)
    assert pickle.dumps(model) == before


def test_of_equally_likely_classes_the_least_is_predicted() -> None:
    for labels in ([True, False], ["v", "u"], [3, 2]):
        model = in_order(NaiveBayes(), [({}, y, 1.0) for y in labels])
        assert model.predict_one({}) == min(labels)


@pytest.mark.parametrize("make", [Ridge, NaiveBayes])
def test_a_pickle_goes_on_as_the_learner_does(make: Callable[[], Any]) -> None:
    rows: Examples = [({"a": i % 3, "b": "st"[i % 2]}, i % 2, 1.0) for i in range(20)]
    learner = in_order(make(), rows[:10])
    again = in_order(pickle.loads(pickle.dumps(learner)), rows[10:])
    in_order(learner, rows[10:])
    assert again.predict_one(rows[0][0]) == learner.predict_one(rows[0][0])
    fresh = learner.clone()
    assert pickle.dumps(fresh) == pickle.dumps(make())
