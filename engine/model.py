"""A model kept as a view that learns at once: questions first, answers later.

A *question* is a row of the questions view whose key has not been asked yet; an *answer* is a row of the answers view
with that key and a label. Rows are taken in the order of `seq` over both views; at one `seq` answers come first, as
river reveals a label that is due at t before the question at t.

- A question is predicted at once by the learner as it is then. The prediction is an immutable fact; the features it
  was given are kept *as served* (nulls left out, which is how river writes missing).
- Its answer is scored against the stored prediction and then learnt with the features as served. So predictions and
  metrics equal `river.evaluate.progressive_val_score` bit for bit, without delay and with any.
- An answer belongs to a question when its `at` is at most `wait` behind the question's. A question with no answer is
  closed when the watermark is more than `wait` past it. An answer that comes first is kept as long, for a question
  whose `at` is at most `wait` behind: it is then predicted, and learnt right after.
  The row's own `at` decides, never the watermark, which only frees memory: how the input was cut does not show.

Corrections. The learner cannot unlearn, so what was learnt stays learnt:

- of a question (-old +new of its key in one `seq`, or one more insert): neither predicted again nor learnt otherwise;
  if its `at` grows, its answer is awaited that much longer;
- of a question withdrawn (-old alone) before its answer: the answer is not learnt, even if the row comes back;
- of an answer whose question is unknown: replaces it (the newest counts, and one that was not taken back before the
  next came is unmatched);
- of an answer to a waiting question: there is none, for an answer is learnt when it arrives;
- of an answer learnt: counted as `corrections`, and so is a learnt question that is withdrawn;
- a null label is no answer, and a row with a null key is neither question nor answer: both are counted.

A key may be asked anew by a row whose `at` is more than `wait` past the earlier question.

Two more learners run beside the one that serves, and change nothing of what it serves. The *baseline* (the class
frequencies, or the mean label) learns with the same delays: a model that does not beat it is worth nothing. The
*naive* twin is told each label right after its question, as most evaluations do: its figures are what that leak would
have claimed.

Where it differs from river: a prediction that is not finite is not published (null, counted as `refused`), and is not
scored, so one overflow does not turn a metric into nan for good.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timezone
from math import isfinite, nan
from typing import Any

import numpy as np
import polars as pl
from river import dummy, metrics, stats

from engine.compiled import Linear, updates
from engine.spec import ModelSpec, asks_probabilities, clone, fingerprint, prediction_schema
from operators.delta import (
    BOOL,
    FLOAT,
    INT,
    STRING,
    TIME,
    Array,
    Delta,
    Schema,
    empty,
    is_null,
    null_of,
    numpy_type,
)


class ModelError(RuntimeError):
    """A learner failed on a row; the text names the model, the question, the step and the original error."""


_NUMBERS = (INT, FLOAT, BOOL)
_OPEN, _ANSWERED, _WITHDRAWN, _CLOSED = range(4)
_COUNTED = (
    "questions",
    "repeated",
    "answers",
    "predictions",
    "refused",
    "learned",
    "closed",
    "withdrawn",
    "unmatched",
    "corrections",
    "null_labels",
    "null_keys",
)


@dataclass(slots=True, eq=False)
class _Question:
    """What was served, and what became of it."""

    key: Any
    at: int
    x: Any
    prediction: Any
    guess: Any
    state: int = _OPEN
    label: Any = None


class _Student:
    """A learner, by river or compiled, and its metric, used exactly as `progressive_val_score` does."""

    def __init__(self, name: str, learner: Any, metric: Any, probabilities: bool, scored: int = 0) -> None:
        self.name, self.learner, self.metric, self.scored = name, learner, metric, scored
        self.predict: Callable[[Any], Any] = learner.predict_proba_one if probabilities else learner.predict_one
        self.score = updates(metric)

    @property
    def model(self) -> Any:
        """The learner as a river object."""
        return self.learner.river if isinstance(self.learner, Linear) else self.learner

    def learn(self, question: _Question, prediction: Any, y: Any) -> None:
        """Score the stored prediction, then learn the features as served."""
        step = "score"
        try:
            if prediction is not None and prediction != {}:
                self.score(y, prediction)
                self.scored += 1
            step = "learn"
            self.learner.learn_one(question.x, y)
        except Exception as e:
            raise _error(self.name, question.key, step, e) from e

    def figures(self) -> dict[str, float | None]:
        """The metrics by name; None as long as nothing was scored."""
        out: dict[str, float | None] = {}
        for m in self.metric if isinstance(self.metric, metrics.base.Metrics) else [self.metric]:
            name = n = type(m).__name__
            while n in out:
                n = f"{name}{int(n[len(name) :] or 1) + 1}"
            out[n] = float(m.get()) if self.scored else None
        return out


class OnlineModel:
    """A model kept by learning every answer when it arrives."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.schema = prediction_schema(spec)
        self._proba = asks_probabilities(spec)
        self._binary = spec.classifies and spec.answers[spec.label] == BOOL
        self._number = self.schema["prediction"] == FLOAT
        self._fingerprint = fingerprint(spec)
        self._compiled = Linear.takes(spec.learner) and all(spec.questions[f] in _NUMBERS for f in spec.features)
        guesser = _Prior() if spec.classifies else dummy.StatisticRegressor(stats.Mean())
        self._student = self._enrol("", clone(spec), spec.metrics)
        self._baseline = self._enrol(" (baseline)", guesser, spec.metrics)
        self._naive = self._enrol(" (naive)", clone(spec), spec.metrics) if spec.naive else None
        self._queue: deque[_Question] = deque()
        self._asked: dict[Any, _Question] = {}
        self._ends: list[tuple[int, int, _Question]] = []
        self._early: dict[Any, tuple[int, int, Any]] = {}
        self._early_ends: list[tuple[int, int, Any]] = []
        self._ticket = 0
        self._count = dict.fromkeys(_COUNTED, 0)
        self._version: str | None = None
        self._guess: Any = None
        self._guessed = False

    def _enrol(self, role: str, model: Any, metric: Any, scored: int = 0) -> _Student:
        if self._compiled and Linear.takes(model):
            model = Linear(model, self.spec.features, self.spec.advance == "questions")
        return _Student(self.spec.name + role, model, metric, self._proba, scored)

    def apply(self, questions: Delta, answers: Delta, watermark: int) -> Delta:
        """The predictions that follow from new questions and answers; their `seq` is that of the question.

        Both deltas are in the order of `seq`, and all rows of one `seq` are in one call. No question with `at` below
        `watermark` comes later or is taken back, and no answer comes. Predictions are only ever inserted. Raises
        `ModelError` when the learner fails; the state is then of no use: go back to a snapshot.
        """
        events, turn, told = self._events(answers), 0, len(answers)
        asked: list[int] = []
        values: list[Any] = []
        versions: list[str] = []
        if len(questions):
            spec, weights = self.spec, questions.weight.tolist()
            keys = _keys(questions, spec.key)
            rows = (_numbers if self._compiled else _features)(questions, {f: spec.questions[f] for f in spec.features})
            moved, there = _moved(questions, keys), self._asked
            before = np.searchsorted(answers.seq, questions.seq, side="right").tolist()
            for i, (key, x, at, weight) in enumerate(zip(keys, rows, questions.at.tolist(), weights, strict=True)):
                while turn < before[i]:
                    self._answer(*events[turn])
                    turn += 1
                if weight > 0:
                    if (key not in there and key is not None) or self._is_anew(key, at, moved[i]):
                        asked.append(i)
                        values.append(self._ask(key, x, at))
                        versions.append(self._version or self._name_version())
                        if self._early:
                            self._learn_early(key)
                elif not moved[i]:
                    self._withdraw(key, at)
        while turn < told:
            self._answer(*events[turn])
            turn += 1
        self._forget(watermark - self.spec.wait)
        return self._published(questions, asked, values, versions) if asked else empty(self.schema)

    def figures(self) -> dict[str, Any]:
        """What happened so far, and what the predictions were worth.

        `questions` asked, `repeated` rows of asked ones; `answers` that came with a label; `predictions` that are not
        null, `refused` ones that were not finite; `learned` examples; questions `waiting`, `closed` without an answer
        and `withdrawn` before it; `unmatched` answers that found no question in time; `corrections` that came after
        learning and were not learnt; `null_labels`; `null_keys`; and `metrics`, `baseline`, `naive` (None unless
        declared), each {metric: value}, the value None when nothing was scored.
        """
        count = self._count
        return {
            **count,
            "waiting": count["questions"] - count["learned"] - count["closed"] - count["withdrawn"],
            "metrics": self._student.figures(),
            "baseline": self._baseline.figures(),
            "naive": self._naive.figures() if self._naive else None,
        }

    def snapshot(self) -> Any:
        """All state, as something that can be pickled; not changed by a later `apply` once it is pickled."""
        students = [s and (s.model, s.metric, s.scored) for s in (self._student, self._baseline, self._naive)]
        kept = self._queue, self._asked, self._ends, self._early, self._early_ends, self._ticket, self._count
        return students, kept

    def restore(self, state: Any) -> None:
        """Take over the state that `snapshot` gave. Called at most once, before the first `apply`."""
        (student, baseline, naive), kept = state
        self._student = self._enrol("", *student)
        self._baseline = self._enrol(" (baseline)", *baseline)
        self._naive = self._enrol(" (naive)", *naive) if naive else None
        self._queue, self._asked, self._ends, self._early, self._early_ends, self._ticket, self._count = kept

    @property
    def model(self) -> Any:
        """The learner as it is now. To be looked at: what trains or predicts with it changes what is served."""
        return self._student.model

    def _is_anew(self, key: Any, at: int, moved: bool) -> bool:
        if key is None:
            self._count["null_keys"] += 1
            return False
        earlier = self._asked[key]
        if moved or at <= earlier.at + self.spec.wait:
            self._count["repeated"] += 1
            earlier.at = max(earlier.at, at)
            return False
        self._close(earlier)
        return True

    def _ask(self, key: Any, x: Any, at: int) -> Any:
        if not self._guessed:
            self._guess, self._guessed = self._baseline.predict(x), True
        try:
            prediction = self._student.predict(x.copy())  # a learner may change what it is given
            value = self._value(prediction)
        except Exception as e:
            raise _error(self.spec.name, key, "predict", e) from e
        if value is None:
            prediction = None
        elif type(value) is float and not isfinite(value):
            self._count["refused"] += 1
            value = prediction = None
        question = _Question(key, at, x, prediction, self._guess)
        self._asked[key] = question
        self._ticket += 1
        heapq.heappush(self._ends, (at, self._ticket, question))
        if self._naive is not None:
            self._queue.append(question)
        return value

    def _value(self, prediction: Any) -> Any:
        """What is published for what the learner said, if it is finite."""
        if prediction is None:
            return None
        if self._proba:
            if not prediction:
                return None
            if self._binary:
                return float(prediction.get(True, 0.0))
            return max(prediction, key=prediction.get) if all(map(isfinite, prediction.values())) else nan
        return float(prediction) if self._number else prediction

    def _answer(self, key: Any, label: Any, at: int, weight: int, moved: bool) -> None:
        count = self._count
        if key is None or label is None:
            if weight > 0:
                count["null_keys" if key is None else "null_labels"] += 1
            return
        if weight > 0:
            count["answers"] += 1
        elif (early := self._early.get(key)) and (early[0], early[2]) == (at, label):
            del self._early[key]
            return
        question = self._asked.get(key)
        if question is None or at > question.at + self.spec.wait:
            if weight > 0:
                count["unmatched"] += key in self._early
                self._ticket += 1
                self._early[key] = at, self._ticket, label
                heapq.heappush(self._early_ends, (at, self._ticket, key))
        elif question.state == _ANSWERED:
            count["corrections"] += weight < 0 or not moved
        elif question.state == _OPEN and weight > 0:
            self._learn(question, label)

    def _learn_early(self, key: Any) -> None:
        """Learn the answer that was there before its question."""
        question = self._asked[key]
        if (found := self._early.get(key)) and abs(found[0] - question.at) <= self.spec.wait:
            del self._early[key]
            self._learn(question, found[2])

    def _learn(self, question: _Question, y: Any) -> None:
        if self._naive is None:
            self._student.learn(question, question.prediction, y)
        else:
            served, question.x = question.x, question.x.copy()
            self._student.learn(question, question.prediction, y)
            question.x = served
        self._baseline.learn(question, question.guess, y)
        self._guessed, self._version = False, None
        question.label = y
        self._count["learned"] += 1
        self._settle(question, _ANSWERED)

    def _withdraw(self, key: Any, at: int) -> None:
        question = self._asked.get(key)
        if question is None or at > question.at + self.spec.wait:
            return
        if question.state == _ANSWERED:
            self._count["corrections"] += 1
        elif question.state == _OPEN:
            self._count["withdrawn"] += 1
            self._settle(question, _WITHDRAWN)

    def _close(self, question: _Question) -> None:
        if question.state == _OPEN:
            self._count["closed"] += 1
            self._settle(question, _CLOSED)

    def _settle(self, question: _Question, state: int) -> None:
        question.state, question.prediction, question.guess = state, None, None
        naive, queue = self._naive, self._queue
        if naive is None:
            question.x = None
            return
        while queue and queue[0].state != _OPEN:
            head = queue.popleft()
            if head.state == _ANSWERED:
                try:
                    prediction = naive.predict(head.x.copy())
                    value = self._value(prediction)
                    if type(value) is float and not isfinite(value):
                        prediction = None
                except Exception as e:
                    raise _error(naive.name, head.key, "predict", e) from e
                naive.learn(head, prediction, head.label)
            head.x = None

    def _forget(self, limit: int) -> None:
        """Close and drop what no row still to come can belong to."""
        ends, early_ends = self._ends, self._early_ends
        while ends and ends[0][0] < limit:
            _, ticket, question = heapq.heappop(ends)
            if question.at >= limit:
                heapq.heappush(ends, (question.at, ticket, question))
                continue
            self._close(question)
            if self._asked.get(question.key) is question:
                del self._asked[question.key]
        while early_ends and early_ends[0][0] < limit:
            _, ticket, key = heapq.heappop(early_ends)
            if (found := self._early.get(key)) and found[1] == ticket:
                del self._early[key]
                self._count["unmatched"] += 1

    def _name_version(self) -> str:
        self._version = f"{self._fingerprint}.{self._count['learned']}"
        return self._version

    def _events(self, answers: Delta) -> Sequence[tuple[Any, Any, int, int, bool]]:
        """The answers as (key, label, at, weight, whether `_moved`)."""
        if not len(answers):
            return ()
        spec = self.spec
        keys = _keys(answers, spec.answer_key)
        labels = _values(answers.columns[spec.label], spec.answers[spec.label])[0]
        return list(zip(keys, labels, answers.at.tolist(), answers.weight.tolist(), _moved(answers, keys), strict=True))

    def _published(self, questions: Delta, asked: list[int], values: list[Any], versions: list[str]) -> Delta:
        rows, n = np.array(asked), len(asked)
        self._count["questions"] += n
        self._count["predictions"] += n - values.count(None)
        at = questions.at[rows]
        names = np.empty(n, object)
        names[:] = self.spec.name
        dtype = self.schema["prediction"]
        columns = {k: questions.columns[k][rows] for k in self.spec.key}
        columns |= {"model": names, "prediction": _column(values, dtype), "at": at}
        columns["model_version"] = _column(versions, STRING)
        return Delta(columns, np.ones(n, np.int64), at, questions.pos[rows], questions.seq[rows])


class _Prior(dummy.PriorClassifier):
    """The class frequencies, counted in a third of the time."""

    def learn_one(self, x: object, y: Any) -> None:
        self.counts[y] += 1
        self.n += 1


def _error(name: str, key: Any, step: str, error: Exception) -> ModelError:
    return ModelError(
        f"model {name!r} failed to {step} at the question {key!r}: {type(error).__name__}: {error}; "
        "check its features and label against what the learner takes"
    )


def _values(a: Array, dtype: pl.DataType) -> tuple[list[Any], bool]:
    """A column as Python values, None for null; and whether there is a null."""
    out: list[Any]
    if dtype == STRING:
        out = a.tolist()
        return out, None in out
    if dtype == TIME:
        out = [t and t.replace(tzinfo=timezone.utc) for t in a.astype("datetime64[us]").tolist()]
        return out, None in out
    out = (a == 1).tolist() if dtype == BOOL else a.tolist()
    missing = is_null(a)
    if not missing.any():
        return out, False
    for i in np.flatnonzero(missing).tolist():
        out[i] = None
    return out, True


def _features(delta: Delta, schema: Schema) -> list[dict[str, Any]]:
    """The features of each row, nulls left out."""
    names = tuple(schema)
    found = [_values(delta.columns[n], t) for n, t in schema.items()]
    rows = zip(*(values for values, _ in found), strict=True)
    if any(nulls for _, nulls in found):
        return [{n: v for n, v in zip(names, row) if v is not None} for row in rows]  # noqa: B905
    return [dict(zip(names, row)) for row in rows]  # noqa: B905


def _numbers(delta: Delta, schema: Schema) -> list[Array]:
    """The features of each row as an array, nan for null."""
    columns = [delta.columns[n].astype(np.float64) for n in schema]
    for n, column in zip(schema, columns, strict=True):
        column[is_null(delta.columns[n])] = nan
    return [row.copy() for row in np.stack(columns, 1)]


def _keys(delta: Delta, names: tuple[str, ...]) -> list[Any]:
    """The key of each row, a tuple if it is of several columns; None when a part of it is null."""
    columns = [delta.columns[n] for n in names]
    keys: list[Any] = columns[0].tolist() if len(names) == 1 else list(zip(*(c.tolist() for c in columns)))  # noqa: B905
    for c in columns:
        if c.dtype == object:
            missing = [i for i, v in enumerate(c.tolist()) if v is None] if None in c.tolist() else []
        else:
            missing = np.flatnonzero(is_null(c)).tolist()
        for i in missing:
            keys[i] = None
    return keys


def _moved(delta: Delta, keys: list[Any]) -> list[bool]:
    """For each row, whether the same `seq` has a row of its key with the other sign: it is half of a correction."""
    if int(delta.weight.min()) > 0:
        return [False] * len(delta)
    signs = [w > 0 for w in delta.weight.tolist()]
    there = set(zip(delta.seq.tolist(), keys, signs, strict=True))
    return [(s, k, not w) in there for s, k, w in zip(delta.seq.tolist(), keys, signs, strict=True)]


def _column(values: list[Any], dtype: pl.DataType) -> Array:
    null = null_of(dtype)
    out = np.empty(len(values), numpy_type(dtype))
    out[:] = [null if v is None else v for v in values]
    return out
