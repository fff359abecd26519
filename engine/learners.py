"""Learners from which an example can be taken back, and what can be taken back from any other.

| `retraction`  | what the learner keeps                                     | to take an example back    |
| ------------- | ---------------------------------------------------------- | -------------------------- |
| `"group"`     | sums, in which the order of examples does not show         | it is subtracted           |
| `"semigroup"` | the same, but not all that is needed to subtract           | refit, in any order        |
| `"replay"`    | what depends on the order of the examples                  | refit in the order         |

Of river's learners few are groups. The naive Bayes classifiers are semigroups: `MultinomialNB`, `BernoulliNB` and
`ComplementNB` count the features they know, but not how many examples named each; `GaussianNB` gives a feature that
does not vary no density and one that varies by a rounding error an enormous one, so what subtraction leaves behind
shows. `NaiveBayes` below is a group. A running mean is one up to rounding: of the greatest value it ever held.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
from numba import njit
from river import base, compose, dummy, feature_extraction, naive_bayes, preprocessing, stats

from operators.delta import Array
from operators.exact import add, rounded
from operators.operator import DefinitionError

Retraction = Literal["group", "semigroup", "replay"]

GREATEST = 1e140
"""The greatest number that is learnt, in size; one beyond it counts as missing, as nan does."""

_RETRACTIONS = ("group", "semigroup", "replay")
_ADDED = (naive_bayes.GaussianNB, naive_bayes.MultinomialNB, naive_bayes.BernoulliNB, naive_bayes.ComplementNB)
_STATELESS = (
    compose.FuncTransformer,
    compose.Select,
    compose.SelectType,
    compose.Discard,
    compose.Renamer,
    compose.Prefixer,
    compose.Suffixer,
    feature_extraction.BagOfWords,
    feature_extraction.PolynomialExtender,
    preprocessing.Normalizer,
)


def retraction(learner: Any) -> Retraction:
    """What can be taken back from a learner.

    A class says it itself by an attribute `retraction`; a "group" then has `unlearn_one(x, y)`. River's own are judged
    by their type, and a pipeline by its last step when no other step keeps anything. All others are "replay".

    >>> retraction(compose.Select("a") | dummy.PriorClassifier()), retraction(preprocessing.StandardScaler() | Ridge())
    ('group', 'replay')

    Raises `DefinitionError` when a class declares what cannot be.
    """
    kind = type(learner)
    if issubclass(kind, compose.Pipeline):
        steps = list(learner.steps.values())
        return retraction(steps[-1]) if steps and all(map(_stateless, steps[:-1])) else "replay"
    if kind is dummy.PriorClassifier or (kind is dummy.StatisticRegressor and type(learner.statistic) is stats.Mean):
        return "group"
    if kind in _ADDED:
        return "semigroup"
    declared: Retraction = getattr(kind, "retraction", "replay")
    if declared not in _RETRACTIONS:
        raise DefinitionError(f"{kind.__name__}: retraction is {declared!r}: expected 'group', 'semigroup' or 'replay'")
    if declared == "group" and not callable(getattr(kind, "unlearn_one", None)):
        raise DefinitionError(
            f"{kind.__name__}: retraction is 'group' but there is no unlearn_one: define unlearn_one(x, y), which "
            "takes back what learn_one(x, y) learnt, or declare retraction = 'semigroup'"
        )
    return declared


def unlearn(learner: Any, x: Any, y: Any) -> None:
    """Take one example back from a "group" learner: it is then as if it had never been learnt.

    Raises `DefinitionError` for another learner, and `ValueError` when the example cannot have been learnt.
    """
    if (found := retraction(learner)) != "group":
        raise DefinitionError(
            f"{type(learner).__name__} cannot unlearn (it is {found!r}): refit it without the example, or take a "
            "learner that can, such as engine.learners.Ridge or NaiveBayes"
        )
    if issubclass(type(learner), compose.Pipeline):
        *steps, last = learner.steps.values()
        x = copy(x)  # some steps change what they are given
        for step in steps:
            x = step.transform_one(x)
        unlearn(last, x, y)
    elif type(learner) is dummy.PriorClassifier:
        if learner.counts[y] < 1:
            raise _never(x, y)
        learner.counts[y] -= 1
        learner.n -= 1
        if not learner.counts[y]:
            del learner.counts[y]
    elif type(learner) is dummy.StatisticRegressor:
        mean: Any = learner.statistic
        if mean.n < 1:
            raise _never(x, y)
        mean.revert(y)
    else:
        learner.unlearn_one(x, y)


class Ridge(base.Regressor):
    """Linear regression with an l2 penalty, fitted exactly: minimises sum(w (y - b - c x)**2) + l2 sum(c**2).

    Keeps the sums of products of all columns (the Gram matrix), and solves when asked. A string is one column per
    value; a boolean is 0 or 1; a missing feature counts as 0. A feature may come at any time.

    The sums are held to 159 bits. As long as values lie within a dozen orders of magnitude nothing is rounded away, and
    what was taken back leaves no trace: weights are bit for bit those of a learner that never learnt it, in whatever
    order. Beyond, n changes leave each sum off by at most n 2**-157 of the greatest that it held. Weights are as exact
    as normal equations allow: for a feature far from 0 to about 1e-16 (mean / spread)**2.

    l2: the penalty, above 0; the intercept is not penalised. intercept: whether there is one.

    >>> ridge = Ridge(l2=1e-9)
    >>> for a, y in [(1, 3), (2, 5), (3, 70)]:
    ...     ridge.learn_one({"a": a}, y)
    >>> ridge.unlearn_one({"a": 3}, 70)
    >>> round(ridge.predict_one({"a": 3}), 6)
    7.0
    """

    retraction: ClassVar[Retraction] = "group"

    def __init__(self, l2: float = 1.0, intercept: bool = True) -> None:
        if not (isinstance(l2, (int, float)) and 0 < l2 < math.inf):
            raise DefinitionError(f"Ridge: l2 is {l2!r}: expected a number above 0")
        self.l2, self.intercept = l2, intercept
        self._reset()

    def _reset(self) -> None:
        self._held = 0
        self._named: dict[Any, int] = {}
        self._places: dict[Any, int] = {}
        self._free: list[int] = []
        self._sums: Array = np.zeros((8, 8, 3))
        self._solution: tuple[float, dict[Any, float]] | None = (0.0, {})

    def learn_one(self, x: Mapping[Any, Any], y: float, w: float = 1.0) -> None:
        """Learn one example of weight w. Raises `ValueError` when y or w is not a number that can be learnt."""
        self._add(_columns(x), y, w, 1)

    def unlearn_one(self, x: Mapping[Any, Any], y: float, w: float = 1.0) -> None:
        """Take an example back that was learnt with this weight. Raises `ValueError` when that cannot be."""
        columns = _columns(x)
        if not self._held or not all(c in self._named for c in columns):
            raise _never(x, y)
        self._add(columns, y, w, -1)

    def predict_one(self, x: Mapping[Any, Any]) -> float:
        """The value of the line; 0 when nothing is learnt."""
        at_zero, weights = self._solve()
        return at_zero + sum(weights[c] * v for c, v in _columns(x).items() if c in weights)

    @property
    def weights(self) -> dict[Any, float]:
        """The weight of each feature; of a string feature for each value, as (feature, value)."""
        return dict(self._solve()[1])

    def _add(self, columns: dict[Any, float], y: float, w: float, sign: int) -> None:
        if not (abs(y) <= GREATEST and 0 < w <= GREATEST):
            raise ValueError(f"y is {y!r} and its weight {w!r}: expected numbers up to {GREATEST}, the weight above 0")
        for c in columns:
            self._named[c] = self._named.get(c, 0) + sign
            if c not in self._places:
                self._places[c] = self._free.pop() if self._free else len(self._places) + 2
        if (room := len(self._places) + len(self._free) + 2) > len(self._sums):
            grown = np.zeros((2 * room, 2 * room, 3))
            grown[: len(self._sums), : len(self._sums)] = self._sums
            self._sums = grown
        places = np.array([0, 1, *(self._places[c] for c in columns)])
        _add_products(self._sums, places, np.array([1.0, y, *columns.values()]), sign * float(w))
        self._held += sign
        self._solution = None
        if not self._held:
            self._reset()
        elif sign < 0:
            for c in [c for c in columns if not self._named[c]]:
                del self._named[c]
                place = self._places.pop(c)
                self._sums[place] = self._sums[:, place] = 0.0
                self._free.append(place)

    def _solve(self) -> tuple[float, dict[Any, float]]:
        """The intercept and the weights; the columns in an order that does not tell when they came."""
        if self._solution is None:
            names = sorted(self._places, key=repr)
            places = np.array([1, *[0] * self.intercept, *(self._places[c] for c in names)])
            sums = _symmetric(self._sums, places)
            gram, products = sums[1:, 1:], sums[1:, 0]
            gram[np.diag_indices(len(gram))] += [*[0.0] * self.intercept, *[float(self.l2)] * len(names)]
            size = np.sqrt(np.diag(gram))
            gram /= np.outer(size, size)
            try:
                np.linalg.cholesky(gram)
                found = np.linalg.solve(gram, products / size) / size
            except np.linalg.LinAlgError:  # columns alike, and too large for l2 to tell them apart
                found = np.linalg.lstsq(gram, products / size)[0] / size
            at_zero, *weights = found.tolist() if self.intercept else [0.0, *found.tolist()]
            self._solution = at_zero, dict(zip(names, weights, strict=True))
        return self._solution


_Weight = int | Fraction
_Moments = tuple[_Weight, _Weight, _Weight]


class NaiveBayes(base.Classifier):
    """Naive Bayes over features of any kind: counts for strings and booleans, normal densities for numbers.

    P(class) times, for each feature of x that is known,

    - a string or boolean: (n + alpha) / (N + alpha K), where n of the N examples of the class that have the feature
      have this value, and K values are known;
    - a number: the normal density of the mean and spread of the class, as if alpha more examples of the class had come
      with the mean and spread of all classes. A feature with one and the same value everywhere says nothing.

    Missing features are left out. All is counted and summed exactly, as integers: what was taken back leaves no trace,
    and the order of examples does not show. Of classes that are equally likely the least is predicted.

    alpha: the smoothing, 1e-9 or more.

    >>> model = NaiveBayes()
    >>> for x, y in [({"a": "s", "b": 1.5}, True), ({"a": "t", "b": 2.0}, False), ({"b": 9.0}, True)]:
    ...     model.learn_one(x, y)
    >>> model.unlearn_one({"b": 9.0}, True)
    >>> {y: round(p, 3) for y, p in model.predict_proba_one({"a": "s"}).items()}
    {False: 0.333, True: 0.667}
    """

    retraction: ClassVar[Retraction] = "group"

    def __init__(self, alpha: float = 1.0) -> None:
        if not (isinstance(alpha, (int, float)) and 1e-9 <= alpha < math.inf):
            raise DefinitionError(f"NaiveBayes: alpha is {alpha!r}: expected a number of 1e-9 or more")
        self.alpha = alpha
        self._classes: dict[Any, _Weight] = {}
        self._having: dict[tuple[Any, Any], _Weight] = {}
        self._counts: dict[tuple[Any, Any, Any], _Weight] = {}
        self._values: dict[Any, dict[Any, _Weight]] = {}
        self._moments: dict[tuple[Any, Any], _Moments] = {}
        self._overall: dict[Any, _Moments] = {}

    @property
    def _multiclass(self) -> bool:
        return True

    def learn_one(self, x: Mapping[Any, Any], y: Any, w: float = 1.0) -> None:
        """Learn one example of weight w. Raises `ValueError` when the weight is not above 0."""
        self._add(x, y, _weight(w))

    def unlearn_one(self, x: Mapping[Any, Any], y: Any, w: float = 1.0) -> None:
        """Take an example back that was learnt with this weight. Raises `ValueError` when that cannot be."""
        weight = _weight(w)
        found = [self._classes.get(y, 0)]
        for f, v in x.items():
            if _is_category(v):
                found.append(self._counts.get((f, v, y), 0))
            elif _is_number(v):
                found.append(self._moments.get((f, y), (0,))[0])
        if min(found) < weight:
            raise _never(x, y)
        self._add(x, y, -weight)

    def predict_proba_one(self, x: Mapping[Any, Any], **_: Any) -> dict[Any, float]:
        """The probability of each class, least class first; empty when nothing is learnt."""
        score = {y: math.log(self._classes[y]) for y in sorted(self._classes, key=_order)}
        for f, v in x.items():
            if _is_category(v):
                self._weigh_category(score, f, v)
            elif _is_number(v):
                self._weigh_number(score, f, float(v))
        top = max(score.values(), default=0.0)
        odds = {y: math.exp(s - top) for y, s in score.items()}
        total = sum(odds.values())
        return {y: o / total for y, o in odds.items()}

    def _weigh_category(self, score: dict[Any, float], f: Any, v: Any) -> None:
        if f not in self._values:
            return
        added = self.alpha * len(self._values[f])
        for y in score:
            n, having = self._counts.get((f, v, y), 0), self._having.get((f, y), 0)
            score[y] += math.log((float(n) + self.alpha) / (float(having) + added))

    def _weigh_number(self, score: dict[Any, float], f: Any, v: float) -> None:
        """Add log densities, in units of the spread of all classes about their mean."""
        mean, spread = _mean_and_spread(*self._overall[f]) if f in self._overall else (0.0, 0.0)
        if not spread:
            return
        z = min(max((v - mean) / spread, -1e100), 1e100)
        for y in score:
            centre, square = 0.0, 1.0
            if (f, y) in self._moments:
                own, own_spread = _mean_and_spread(*self._moments[f, y])
                n = float(self._moments[f, y][0])
                share, rest, shift = n / (n + self.alpha), self.alpha / (n + self.alpha), (own - mean) / spread
                centre = share * shift
                square = share * (own_spread / spread) ** 2 + rest * (1 + centre * shift)
            score[y] -= 0.5 * (math.log(square) + (z - centre) * (z - centre) / square)

    def _add(self, x: Mapping[Any, Any], y: Any, w: _Weight) -> None:
        _count(self._classes, y, w)
        for f, v in x.items():
            if _is_category(v):
                _count(self._having, (f, y), w)
                _count(self._counts, (f, v, y), w)
                _count(self._values.setdefault(f, {}), v, w)
                if not self._values[f]:
                    del self._values[f]
            elif _is_number(v):
                exact = _exact(v)
                change = w, w * exact, w * exact * exact
                _sum(self._moments, (f, y), change)
                _sum(self._overall, f, change)


def _stateless(step: Any) -> bool:
    if issubclass(type(step), compose.Pipeline):
        return all(map(_stateless, step.steps.values()))
    if type(step) is compose.TransformerUnion:
        return all(map(_stateless, step.transformers.values()))
    return type(step) in _STATELESS


def _never(x: Any, y: Any) -> ValueError:
    return ValueError(f"the example {x!r} with label {y!r} cannot be taken back: it was not learnt")


def _is_category(v: Any) -> bool:
    return isinstance(v, (str, bool))


def _is_number(v: Any) -> bool:
    return v is not None and bool(abs(v) <= GREATEST)


def _columns(x: Mapping[Any, Any]) -> dict[Any, float]:
    """The columns of an example that are not missing: a number by its feature, a string by (feature, value)."""
    return {
        (f, v) if isinstance(v, str) else f: 1.0 if isinstance(v, str) else float(v)
        for f, v in x.items()
        if isinstance(v, str) or _is_number(v)
    }


@njit(cache=True)
def _add_products(sums, places, values, w):  # type: ignore[no-untyped-def]
    """Add w times each product of two values to the sum at (greater, lesser) place."""
    for a in range(len(places)):
        for b in range(a + 1):
            i, j = max(places[a], places[b]), min(places[a], places[b])
            s = sums[i, j]
            s[0], s[1], s[2], _ = add(s[0], s[1], s[2], w * (values[a] * values[b]))


@njit(cache=True)
def _symmetric(sums, places):  # type: ignore[no-untyped-def]
    """The sums of products of the columns at these places, rounded once."""
    n = len(places)
    out = np.empty((n, n))
    for a in range(n):
        for b in range(a + 1):
            s = sums[max(places[a], places[b]), min(places[a], places[b])]
            out[a, b] = out[b, a] = rounded(s[0], s[1], s[2])
    return out


_UNIT = 1074
"""Every float is an integer times 2**-_UNIT."""


def _exact(v: float) -> int:
    """A number in units of 2**-_UNIT."""
    n, d = float(v).as_integer_ratio()
    return n << (_UNIT + 1 - d.bit_length())


def _weight(w: float) -> _Weight:
    if not 0 < w < math.inf:
        raise ValueError(f"the weight is {w!r}: expected a number above 0")
    return int(w) if w == int(w) else Fraction(w)


def _count(table: dict[Any, _Weight], key: Any, w: _Weight) -> None:
    table[key] = table.get(key, 0) + w
    if not table[key]:
        del table[key]


def _sum(table: dict[Any, _Moments], key: Any, change: _Moments) -> None:
    n, s, q = table.get(key, (0, 0, 0))
    table[key] = n, s, q = n + change[0], s + change[1], q + change[2]
    if not n:
        del table[key]


def _mean_and_spread(n: _Weight, s: _Weight, q: _Weight) -> tuple[float, float]:
    """The mean and the standard deviation of numbers, from their weight, sum and sum of squares."""
    whole = n << _UNIT if isinstance(n, int) else n * (1 << _UNIT)
    root = math.isqrt(int((q * n - s * s) * 2**128))
    return float(s / whole), float(root / (whole * 2**64))


def _order(label: Any) -> Any:
    return isinstance(label, str), label
