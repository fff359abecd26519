"""What a model is declared as: the learner, the questions it is asked, the answers it learns from, the metric.

A declaration is checked when it is made; `definition` and `fingerprint` say what must not change while state is kept,
`warnings` what is most likely not meant.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import pickle
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any, Literal

import cloudpickle
import numpy as np
from river import base, compose, metrics
from river.active.base import ActiveLearningClassifier

from engine.guard import Guard, Guards
from engine.taint import SUSPECT
from operators.delta import BOOL, FLOAT, INT, STRING, TIME, Schema
from operators.operator import DefinitionError, as_names, fit_as_key, known, new_columns


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelSpec:
    """What is to be learnt from what: a learner, the questions it is asked and the answers it learns from.

    - `key`: the columns that tell questions apart; `answer_key`: the same in the answers (by default: same names).
    - `features`: the columns of a question given to the learner, in this order (sums of floats depend on it).
    - `label`: the column of the answers to predict. Boolean: `prediction` is P(True), or 1.0 and 0.0 when the metric
      asks for labels, as river then calls `predict_one`. Int64 or String: the predicted label. For regressors
      Int64 or Float64: the predicted number.
    - `learner`: a river classifier or regressor, or anything with `fit` and `predict` in the manner of scikit-learn,
      which is given frames. It is cloned: what it has learnt already is not used.
    - `advance`: when unsupervised steps of a pipeline (scalers, encoders) learn. "answers": with the learner, river's
      default; "questions": when a question is asked, as under `river.compose.learn_during_predict()`.
    - `wait`: microseconds for which an answer is awaited, in event time.
    - `metric`: a river metric or several; None: ROCAUC for Boolean labels, Accuracy for other classes, MAE for numbers.
    - `naive`: keep also the figures that learning each label at once would claim.
    - `guards`: rules before and after inference; see `engine.guard`.
    - `sources`: those that the questions are made of.
    - `marked`: whether the questions say in a column `suspect` which of them are; see `engine.taint`.

    Raises `DefinitionError` when the parts do not fit together.
    """

    name: str
    key: tuple[str, ...]
    answer_key: tuple[str, ...] = ()
    features: tuple[str, ...]
    questions: Schema
    answers: Schema
    label: str
    learner: Any
    advance: Literal["answers", "questions"] = "answers"
    wait: int
    metric: Any = None
    naive: bool = False
    guards: Sequence[Guard] = ()
    sources: tuple[str, ...] = ()
    marked: bool = False

    def __post_init__(self) -> None:
        what = f"model {self.name!r}"
        as_names(self.key, f"{what}: key")
        as_names(self.features, f"{what}: features")
        fit_as_key(self.key, self.questions, f"{what}: key")
        known(self.features, self.questions, f"{what}: features")
        if not self.answer_key:
            object.__setattr__(self, "answer_key", self.key)
        as_names(self.answer_key, f"{what}: answer_key")
        known(self.answer_key, self.answers, f"{what}: answer_key")
        known([self.label], self.answers, f"{what}: label")
        if len(self.key) != len(self.answer_key):
            raise DefinitionError(
                f"{what}: key {self.key!r} and answer_key {self.answer_key!r} differ in length: "
                "expected one column of the answers for each of the questions"
            )
        for k, a in zip(self.key, self.answer_key, strict=True):
            if self.questions[k] != self.answers[a]:
                raise DefinitionError(
                    f"{what}: the key {k!r} of the questions is {self.questions[k]} and {a!r} of the answers is "
                    f"{self.answers[a]}: expected the same type; cast one of them"
                )
        if self.advance not in ("answers", "questions"):
            raise DefinitionError(f"{what}: advance is {self.advance!r}: expected 'answers' or 'questions'")
        if self.wait < 0:
            raise DefinitionError(f"{what}: wait is {self.wait!r}: expected 0 or more microseconds")
        self._check_learner(what)
        self._check_metric(what)
        prediction_schema(self)
        training_schema(self)
        guarded(self)

    @property
    def river(self) -> bool:
        """Whether the learner is one of river's: it learns one example at a time."""
        return issubclass(type(_last(self.learner)), base.Estimator)

    @property
    def classifies(self) -> bool:
        """Whether the learner predicts classes (else numbers)."""
        if self.river:
            return issubclass(type(_last(self.learner)), base.Classifier)
        if tags := getattr(self.learner, "__sklearn_tags__", None):
            return bool(tags().estimator_type == "classifier")
        return hasattr(self.learner, "predict_proba")

    @property
    def metrics(self) -> Any:
        """A fresh copy of the metric, or of several as one, that judges the model."""
        kind: Any
        if self.metric is None:
            binary = self.answers[self.label] == BOOL
            kind = metrics.MAE if not self.classifies else metrics.ROCAUC if binary else metrics.Accuracy
            return kind()
        if isinstance(self.metric, (list, tuple)):
            kind = metrics.base.Metrics
            return kind([m.clone() for m in self.metric])
        return self.metric.clone()

    def _check_learner(self, what: str) -> None:
        last, dtype = _last(self.learner), self.answers[self.label]
        found = type(last).__name__
        if self.river:
            if not issubclass(type(last), (base.Classifier, base.Regressor)) or not isinstance(self.learner, base.Base):
                raise DefinitionError(f"{what}: the learner ends in {found}: expected a river classifier or regressor")
        elif isinstance(self.learner, type) or not all(callable(getattr(last, m, None)) for m in ("fit", "predict")):
            raise DefinitionError(
                f"{what}: the learner is {self.learner!r}: expected a river classifier or regressor, "
                "or an estimator with fit and predict"
            )
        elif self.naive or self.advance == "questions":
            raise DefinitionError(
                f"{what}: naive=True and advance='questions' are of learners that learn one example at a time; "
                f"{found} is fitted as a whole: leave them out"
            )
        if issubclass(type(last), ActiveLearningClassifier):
            raise DefinitionError(f"{what}: {found} chooses the labels it asks for, but answers come by themselves")
        if dtype not in ((BOOL, INT, STRING) if self.classifies else (INT, FLOAT)):
            expected = "Boolean, Int64 or String" if self.classifies else "Int64 or Float64"
            raise DefinitionError(
                f"{what}: the label {self.label!r} is {dtype}: the learner {found} expects {expected}; "
                "cast it in the answers view, or take a learner of the other kind"
            )
        if dtype == STRING and self.river and not last._multiclass:
            raise DefinitionError(
                f"{what}: {found} tells only two classes apart and the label {self.label!r} is String: "
                "make it Boolean, or wrap the learner in river.multiclass.OneVsRestClassifier"
            )
        try:
            cloudpickle.dumps(clone(self)) if not self.river else pickle.dumps(clone(self))
        except Exception as e:
            raise DefinitionError(
                f"{what}: the learner cannot be kept, for it does not pickle ({e}): "
                "replace a lambda or a local function by a function of a module"
            ) from e

    def _check_metric(self, what: str) -> None:
        for m in self.metric if isinstance(self.metric, (list, tuple)) else [self.metric]:
            if m is not None and not self._judged_by(m):
                raise DefinitionError(f"{what}: the metric {m!r} does not fit the learner {self.learner}")
        last = _last(self.learner)
        if asks_probabilities(self) and not (
            type(last).predict_proba_one is not base.Classifier.predict_proba_one
            if self.river
            else hasattr(last, "predict_proba")
        ):
            raise DefinitionError(
                f"{what}: {type(last).__name__} gives no probabilities, which the metric needs: "
                "declare metric=metrics.Accuracy() or another that compares labels"
            )

    def _judged_by(self, metric: Any) -> bool:
        if not isinstance(metric, metrics.base.Metric):
            return False
        kind = metrics.base.ClassificationMetric if self.classifies else metrics.base.RegressionMetric
        return bool(metric.works_with(self.learner)) if self.river else isinstance(metric, kind)


def training_schema(spec: ModelSpec) -> Schema:
    """The columns of the training set.

    The key and the features as they were served, `at` of the question, the `label`, the `prediction` and the
    `model_version` that made it, what it was made from (see `prediction_schema`), `answered`: `at` of the answer, and
    `answer_pos`, its position. Of a marked model also `suspect`.
    """
    dtype = spec.answers[spec.label]
    served = {n: spec.questions[n] for n in (*spec.key, *(f for f in spec.features if f not in spec.key))}
    added: Schema = {
        "at": TIME,
        "label": dtype,
        "prediction": dtype if spec.classifies and dtype != BOOL else FLOAT,
        "model_version": STRING,
        **_made_from(spec),
        "answered": TIME,
        "answer_pos": INT,
    }
    return new_columns(served, added, f"training set of {spec.name!r}") | _marks(spec)


def prediction_schema(spec: ModelSpec) -> Schema:
    """The columns of the predictions: the key, `model`, `prediction`, `at` of the question and `model_version`.

    With guards also `guards`: the names of those that acted, joined by ",". Then what it was made from: `trained`, when
    the newest example that the version has learnt became known; `seq`, the number of the change that asked, which names
    the state of the pipeline; and the frontiers of the questions after that change: `frontier_NAME` for each source
    that they are made of, and `frontier`, the least of them. What is before the beginning is null. Of a marked model
    also `suspect`, whether the question is.
    """
    dtype = spec.answers[spec.label]
    added: Schema = {
        "model": STRING,
        "prediction": dtype if spec.classifies and dtype != BOOL else FLOAT,
        "at": TIME,
        "model_version": STRING,
    }
    if spec.guards:
        added["guards"] = STRING
    added |= _made_from(spec)
    return new_columns({k: spec.questions[k] for k in spec.key}, added, f"predictions of {spec.name!r}") | _marks(spec)


def _marks(spec: ModelSpec) -> Schema:
    return {SUSPECT: BOOL} if spec.marked else {}


def _made_from(spec: ModelSpec) -> Schema:
    return {"trained": TIME, "seq": INT, "frontier": TIME, **{frontier(s): TIME for s in spec.sources}}


def frontier(source: str) -> str:
    """The column of predictions that tells how far a source was."""
    return f"frontier_{source}"


def guarded(spec: ModelSpec) -> Guards:
    """The guards of a model. Raises `DefinitionError` when one does not fit."""
    dtype = spec.answers[spec.label]
    probability = spec.classifies and dtype == BOOL
    kind = FLOAT if probability or not spec.classifies else dtype
    return Guards(spec.guards, spec.questions, kind, probability, f"model {spec.name!r}")


def definition(spec: ModelSpec) -> dict[str, Any]:
    """All that determines the predictions, as JSON values: what must not change while state is kept."""
    return {
        "name": spec.name,
        "key": {k: str(spec.questions[k]) for k in spec.key},
        "answer_key": list(spec.answer_key),
        "features": {f: str(spec.questions[f]) for f in spec.features},
        "label": {spec.label: str(spec.answers[spec.label])},
        "learner": describe(spec.learner),
        "advance": spec.advance,
        "wait": spec.wait,
        "metric": describe(spec.metrics),
        "naive": spec.naive,
        "guards": [g.definition for g in spec.guards],
        "sources": list(spec.sources),
        **({"marked": True} if spec.marked else {}),
    }


def fingerprint(spec: ModelSpec) -> str:
    """8 hex digits that stand for the name, learner, features and `advance`; the same in every process.

    river's `repr` rounds parameters to six digits, so two learning rates may look alike: the parameters are taken.
    """
    told = json.dumps([spec.name, describe(spec.learner), list(spec.features), spec.advance])
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def warnings(spec: ModelSpec) -> list[str]:
    """What is allowed but most likely not meant: one line each, with the cure."""
    what, found = f"model {spec.name!r}", dict.fromkeys(_unsupervised(spec.learner))
    names = ", ".join(dict.fromkeys(n for n, _ in found))
    nested = ", ".join(dict.fromkeys(n for n, inner in found if inner))
    lines = []
    if names and spec.advance == "answers":
        lines.append(
            f"{what}: {names} would advance on answers, so late labels leave it behind the questions it transforms: "
            'declare advance="questions"'
        )
    if nested and spec.advance == "questions":
        lines.append(
            f"{what}: {nested} is in a pipeline within the pipeline and advances twice, on the question and on its "
            "answer (river's learn_during_predict does that): make it a step of the outer one, or keep it in a view"
        )
    if any(_parameters(o).get("seed", 0) is None for o in _parts(spec.learner)) or _random(spec.learner):
        lines.append(f"{what}: the learner is random and has no seed, so a replay predicts otherwise: declare its seed")
    return lines


def _random(learner: Any) -> bool:
    """Whether an estimator, or one of its parts, draws numbers without a seed."""
    if not hasattr(learner, "get_params"):
        return False
    return any(n.split("__")[-1] == "random_state" and v is None for n, v in learner.get_params().items())


class _OnQuestions(compose.Pipeline):
    """A pipeline that is always under river's `learn_during_predict()`.

    river's context manager sets a flag for all pipelines of the process; another worker's thread would see it.
    """

    _LEARN_UNSUPERVISED_DURING_PREDICT = True


def clone(spec: ModelSpec, advance: Literal["answers", "questions"] | None = None) -> Any:
    """A pristine learner whose unsupervised steps advance as declared, and so do those it makes of itself later.

    advance: instead of what is declared.
    """
    if not spec.river:
        return _cloned(spec.learner)
    learner = spec.learner.clone()
    if (advance or spec.advance) == "answers":
        return learner
    for part in _parts(learner):
        if type(part) is compose.Pipeline:
            part.__class__ = _OnQuestions
    return learner.clone()


def _cloned(learner: Any) -> Any:
    """An estimator as it was declared, without what it has been fitted to."""
    if hasattr(learner, "get_params") and hasattr(learner, "__sklearn_tags__"):
        from sklearn.base import clone as cloned

        return cloned(learner)
    return copy.deepcopy(learner)


def _last(learner: Any) -> Any:
    while issubclass(type(learner), compose.Pipeline) and learner.steps:
        learner = next(reversed(learner.steps.values()))
    return learner


def asks_probabilities(spec: ModelSpec) -> bool:
    return spec.classifies and not spec.metrics.requires_labels


def _parameters(part: Any) -> dict[str, Any]:
    """The parameters of a river object by name, `*args` and `**kwargs` as the attributes that hold them."""
    names = inspect.signature(type(part).__init__).parameters
    return {n: getattr(part, n, None) for n in names if n != "self"}


def _parts(value: Any) -> Iterator[Any]:
    """A river object and all river objects among its parameters, outer ones first."""
    if issubclass(type(value), base.Base):
        yield value
        value = _parameters(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        for v in value:
            yield from _parts(v)


def _unsupervised(value: Any, nested: bool = False, step: bool = False) -> Iterator[tuple[str, bool]]:
    """The steps that learn without a label, each with whether its pipeline is a step of another one."""
    kind = type(value)
    if issubclass(kind, compose.Pipeline):
        for s in value.steps.values():
            yield from _unsupervised(s, nested or step, True)
    elif issubclass(kind, compose.TransformerUnion):
        for s in value.transformers.values():
            yield from _unsupervised(s, nested, step)
    elif issubclass(kind, base.Transformer) and not value._supervised:
        if kind.learn_one is not base.Transformer.learn_one:
            yield kind.__name__, nested
    elif issubclass(kind, base.Base):
        for v in _parameters(value).values():
            for part in v.values() if isinstance(v, Mapping) else v if isinstance(v, (list, tuple)) else [v]:
                yield from _unsupervised(part)


def describe(value: Any) -> Any:
    """Any value as JSON that is equal for equal parameters, in every process."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, Mapping):
        return [[describe(k), describe(v)] for k, v in value.items()]
    if isinstance(value, (set, frozenset)):
        return sorted((describe(v) for v in value), key=json.dumps)
    if isinstance(value, (list, tuple, deque)):
        return [describe(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return describe(value.tolist())
    if isinstance(value, CodeType):
        return [value.co_code.hex(), describe(value.co_consts), list(value.co_names)]
    if isinstance(value, FunctionType):
        return [value.__module__, value.__qualname__, describe(value.__code__), describe(value.__defaults__)]
    if isinstance(value, MethodType):
        return [describe(value.__func__), describe(value.__self__)]
    if isinstance(value, partial):
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    named = value if isinstance(value, (type, BuiltinFunctionType)) else type(value)
    name = f"{named.__module__}.{named.__qualname__}"
    if named is value:
        return name
    if issubclass(type(value), base.Base):
        return [name, describe(_parameters(value))]
    if hasattr(value, "__sklearn_tags__"):
        return [name, describe(value.get_params(deep=False))]
    if hasattr(value, "__dict__"):
        return [name, describe(vars(value))]
    return [name, text if " at 0x" not in (text := repr(value)) else ""]
