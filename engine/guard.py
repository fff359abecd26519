"""Guards: rules before and after inference, declared on a model, counted, and recorded on the prediction.

A question passes the guards of its model in three parts, in each part in the order of declaration:

1. *Before* the learner. `refuse` leaves it without a prediction, `route` answers it. The first that takes it counts,
   and the learner is not asked.
2. *In place of* the learner, where it has no prediction (it failed, or gave nothing or nothing finite, and so did the
   version before, if there is one): `fallback` gives an answer, also when the version is too old.
3. *After*. `clip`, `rounded` and `override` change the prediction, whoever gave it, each as the one before left it.
   A refused question stays refused.

What holds for all of them:

- Conditions and values are row-wise Polars expressions of the question; a condition that is null does not hold.
- A guard looks only at the rows that reach it, so a row is judged by itself and how the input was cut does not show.
- A value that is null, not finite or, for a probability, outside 0 to 1 is *void*: the guard leaves that row as it is.
- A guard *acts* on a row when the prediction is its own (also when the learner said the same), or, for `clip` and
  `rounded`, when it changes the prediction.
- No clock and no chance: ages are arguments, so a replay decides as the live run did.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from operators.delta import BOOL, FLOAT, INT, Array, Columns, Ints, Schema, is_null, nulls, to_array, to_series
from operators.expression import ExpressionError, check, columns, evaluate, fingerprint
from operators.operator import DefinitionError, microseconds

Action = Literal["refuse", "route", "fallback", "clip", "rounded", "override"]
Bools = npt.NDArray[np.bool_]

PREDICTION = "prediction"
"""The column by which an `override` reads what has been predicted so far."""


ALWAYS = pl.lit(True)
"""The condition of a guard that has none."""


class GuardError(RuntimeError):
    """A guard failed on a row; the text names the model, the guard and the original error."""


@dataclass(frozen=True, eq=False)
class Guard:
    """A rule with a name. Made by the functions of this module.

    to: the value it gives. bounds: of `clip`. max_age: microseconds.
    """

    action: Action
    name: str
    condition: pl.Expr = ALWAYS
    to: pl.Expr | None = None
    bounds: tuple[float, float] | None = None
    decimals: int | None = None
    max_age: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", self.name):
            raise DefinitionError(
                f"{self.action}: the name is {self.name!r}: expected lower-case letters, digits, '_' and '-', "
                "at most 64, beginning with a letter or digit"
            )

    @property
    def definition(self) -> Any:
        """All that it decides by, as JSON values."""
        to = self.to if self.to is None else fingerprint(self.to)
        bounds = self.bounds and list(map(repr, self.bounds))
        return [self.action, self.name, fingerprint(self.condition), to, bounds, self.decimals, self.max_age]


def refuse(name: str, condition: pl.Expr) -> Guard:
    """Give no prediction where the condition holds, and do not ask the learner."""
    return Guard("refuse", name, condition)


def route(name: str, condition: pl.Expr, to: Any) -> Guard:
    """Answer by `to`, a constant or an expression, where the condition holds, and do not ask the learner."""
    return Guard("route", name, condition, _expression("route", name, to))


def fallback(name: str, to: Any, *, max_age: str | timedelta | None = None) -> Guard:
    """Answer by `to`, a constant or an expression, where the learner has no prediction.

    max_age: also where the version that predicted is too old: the question became known more than so long after the
    newest example that the version has learnt.
    """
    age = None if max_age is None else microseconds(max_age, f"fallback {name!r}: max_age")
    return Guard("fallback", name, to=_expression("fallback", name, to), max_age=age)


def clip(name: str, low: float, high: float) -> Guard:
    """Bring a number or a probability into the range from `low` to `high`; either may be infinite.

    Raises `DefinitionError` when these are not numbers, or `low` is above `high`.
    """
    if not all(isinstance(b, (int, float)) and not isinstance(b, bool) for b in (low, high)) or not low <= high:
        raise DefinitionError(f"clip {name!r}: low is {low!r} and high is {high!r}: expected two numbers, low <= high")
    return Guard("clip", name, bounds=(float(low), float(high)))


def rounded(name: str, decimals: int) -> Guard:
    """Round a number or a probability as Python's `round` does, to so many decimals.

    Raises `DefinitionError` when `decimals` is not an integer of 0 or more.
    """
    if not isinstance(decimals, int) or isinstance(decimals, bool) or decimals < 0:
        raise DefinitionError(f"rounded {name!r}: decimals is {decimals!r}: expected 0 or more")
    return Guard("rounded", name, decimals=decimals)


def override(name: str, condition: pl.Expr, to: Any) -> Guard:
    """Predict `to`, a constant or an expression, where the condition holds; both may read `pl.col("prediction")`."""
    return Guard("override", name, condition, _expression("override", name, to))


@dataclass(slots=True, eq=False)
class Taken:
    """What the guards before the learner made of some questions.

    by: for each the number of the guard that took it, -1 where the learner is to be asked. value: what it is answered
    by, null where it is refused. void: for each and each guard, whether the guard held and had no value to give.
    """

    by: Ints
    value: Array
    void: Bools

    def take(self, index: npt.NDArray[Any] | slice) -> Taken:
        """The questions numbered (or marked) by `index`, in its order."""
        return Taken(self.by[index], self.value[index], self.void[index])


class Guards:
    """The guards of one model.

    questions: the columns that a condition can read. prediction: the type of the predictions: Float64 for numbers and
    probabilities, else that of the classes. probability: whether they are of 0 to 1. what: the model, for messages.

    Raises `DefinitionError` when a guard does not fit these.

    >>> rules = [refuse("no_origin", pl.col("origin").is_null()), clip("sane", -60, 600)]
    >>> guards = Guards(rules, {"origin": pl.String()}, FLOAT, False, "model 'delay'")
    >>> asked = {"origin": np.array(["JFK", None, "LGA"], object)}
    >>> taken = guards.before(asked)
    >>> taken.by.tolist()
    [-1, 0, -1]
    >>> ages = np.zeros(3, np.int64)
    >>> predicted, acted = guards.after(asked, taken, np.array([5.0, np.nan, 999.0]), ages)
    >>> predicted.tolist(), acted.tolist()
    ([5.0, nan, 600.0], [None, 'no_origin', 'sane'])
    >>> guards.counts
    {('no_origin', 'refuse'): 1, ('sane', 'clip'): 1}
    """

    counts: dict[tuple[str, str], int]
    """By name of the guard and its action: predictions on which it acted; and by its name and "void": where it would
    have, but its value was void. Part of the state of a model."""

    def __init__(
        self, guards: Sequence[Guard], questions: Schema, prediction: pl.DataType, probability: bool, what: str
    ) -> None:
        if not isinstance(guards, Sequence) or not all(isinstance(g, Guard) for g in guards):
            raise DefinitionError(f"{what}: guards is {guards!r}: expected a list of guards, such as guard.clip(...)")
        names = [g.name for g in guards]
        if repeated := [n for i, n in enumerate(names) if n in names[:i]]:
            raise DefinitionError(f"{what}: two guards have the name {repeated[0]!r}; give one another name")
        self.guards, self.dtype, self.probability = tuple(guards), prediction, probability
        self._rules: dict[int, _Rule] = {}
        self.counts = {}
        for i, g in enumerate(guards):
            told = f"{what}: {g.action} {g.name!r}"
            self.counts[g.name, g.action] = 0
            if g.to is not None:
                self.counts[g.name, "void"] = 0
            if g.action in ("clip", "rounded"):
                self._check_number(g, told)
            else:
                schema = questions if g.action != "override" else _with_prediction(questions, prediction, told)
                self._rules[i] = _Rule(g, schema, prediction, probability, told)

    def __len__(self) -> int:
        return len(self.guards)

    @property
    def falls_back(self) -> bool:
        """Whether there is an answer when the learner has none."""
        return any(g.action == "fallback" for g in self.guards)

    @property
    def definition(self) -> Any:
        """What must not change while state is kept, as JSON values."""
        return [g.definition for g in self.guards]

    def before(self, questions: Columns) -> Taken:
        """Which questions the learner need not be asked, and what they are answered. Counts nothing yet.

        Raises `GuardError`.
        """
        n = len(next(iter(questions.values())))
        taken = Taken(np.full(n, -1), nulls(n, self.dtype), np.zeros((n, len(self)), np.bool_))
        for i in self._numbers("refuse", "route"):
            if len(rows := np.flatnonzero(taken.by < 0)):
                mine, given, void = self._rules[i].apply(questions, rows)
                taken.by[mine], taken.value[mine], taken.void[void, i] = i, given, True
        return taken

    def after(self, questions: Columns, taken: Taken, predictions: Array, ages: Ints) -> tuple[Array, Array]:
        """What is predicted, and for each prediction the names of the guards that acted, in order and joined by ",".

        taken: what `before` gave for these questions. predictions: of the learner; null where it was not asked or
        failed. ages: how long after the newest example of its version a question became known, in microseconds; the
        greatest int64 when it has learnt nothing.

        Called once for each question, for it counts. Raises `GuardError`.
        """
        asked = taken.by < 0
        out = np.where(asked & _is_finite(predictions), predictions, taken.value)
        age = ages.copy()
        acted = np.full(len(out), None, object)
        for i in self._numbers("refuse", "route"):
            self._act(i, np.flatnonzero(taken.by == i), acted, int(taken.void[:, i].sum()))
        for i in self._numbers("fallback"):
            limit = self.guards[i].max_age
            lacking = is_null(out) if limit is None else is_null(out) | (age > limit)
            if len(rows := np.flatnonzero(asked & lacking)):
                mine, given, void = self._rules[i].apply(questions, rows)
                out[mine], age[mine] = given, 0
                self._act(i, mine, acted, len(void))
        rows = np.flatnonzero(~np.isin(taken.by, self._numbers("refuse")))
        for i in self._numbers("clip", "rounded", "override") if len(rows) else ():
            if i in self._rules:
                mine, given, void = self._rules[i].apply({**questions, PREDICTION: out}, rows)
            else:
                mine, given, void = *_changed(self.guards[i], out, rows), rows[:0]
            out[mine] = given
            self._act(i, mine, acted, len(void))
        return out, acted

    def _numbers(self, *actions: Action) -> list[int]:
        return [i for i, g in enumerate(self.guards) if g.action in actions]

    def _act(self, i: int, rows: Ints, acted: Array, void: int) -> None:
        """Note that a guard acted on these rows, and on how many it would have."""
        guard = self.guards[i]
        acted[rows] = [guard.name if before is None else f"{before},{guard.name}" for before in acted[rows].tolist()]
        self.counts[guard.name, guard.action] += len(rows)
        if void:
            self.counts[guard.name, "void"] += void

    def _check_number(self, guard: Guard, what: str) -> None:
        if self.dtype != FLOAT:
            raise DefinitionError(
                f"{what}: the predictions are classes of type {self.dtype}; expected numbers or probabilities; "
                "use override for classes"
            )
        if self.probability and guard.bounds and not 0 <= guard.bounds[0] <= guard.bounds[1] <= 1:
            raise DefinitionError(f"{what}: the predictions are probabilities; expected bounds of 0 to 1")


class _Rule:
    """The condition of a guard and the value it gives, or no value when it refuses."""

    def __init__(self, guard: Guard, schema: Schema, dtype: pl.DataType, probability: bool, what: str) -> None:
        self.what, self.dtype, self.probability = what, dtype, probability
        try:
            found = check("condition", guard.condition, schema)
            gives = dtype if guard.to is None else check("to", guard.to, schema)
        except ExpressionError as error:
            raise DefinitionError(f"{what}: {error}") from None
        if found != BOOL:
            raise DefinitionError(
                f"{what}: the condition has type {found}; expected Boolean, such as pl.col('distance') < 50"
            )
        if gives != dtype and (gives, dtype) != (INT, FLOAT):
            raise DefinitionError(
                f"{what}: 'to' has type {gives}; expected {dtype}, the type of the predictions: "
                "a constant, or pl.col('name') for a column"
            )
        made = {"_holds": guard.condition}
        if guard.to is not None:
            made["_to"] = guard.to.cast(dtype, strict=False)
        self.needed = {n: schema[n] for e in made.values() for n in columns(e)}
        self.made = [e.alias(n) for n, e in made.items()]
        if guard.to is not None and not columns(guard.to):
            value = pl.select(made["_to"]).to_series()
            if not self._is_possible(to_array(value)).all():
                expected = "a probability, 0 to 1" if probability else "a value"
                raise DefinitionError(f"{what}: 'to' is {value.item()!r}; expected {expected} that is finite")

    def apply(self, given: Columns, rows: Ints) -> tuple[Ints, Array, Ints]:
        """Of these rows (at least one) those that it takes, their values, and those for which its value is void."""
        cells = [to_series(n, given[n][rows], t) for n, t in self.needed.items()]
        try:
            found = evaluate(pl.DataFrame([pl.Series("_row", rows), *cells]), self.made)
        except Exception as error:  # whatever a Python function raises comes through
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise GuardError(
                f"{self.what} failed: {first}; write it so that it takes every value, such as .cast(..., strict=False)"
            ) from error
        holds = to_array(found["_holds"]) == 1
        mine = rows[holds]
        if "_to" not in found.columns:
            return mine, nulls(len(mine), self.dtype), mine[:0]
        values = to_array(found["_to"])[holds]
        good = self._is_possible(values)
        return mine[good], values[good], mine[~good]

    def _is_possible(self, values: Array) -> Bools:
        good = _is_finite(values)
        return good & (values >= 0) & (values <= 1) if self.probability else good


def _expression(action: Action, name: str, to: Any) -> pl.Expr:
    value = to.item() if isinstance(to, np.generic) else to
    if isinstance(value, pl.Expr):
        return value
    if isinstance(value, (int, float, str)):
        return pl.lit(value)
    raise DefinitionError(
        f"{action} {name!r}: 'to' is {to!r}; expected a number, a class or a Polars expression; "
        "to give no prediction use refuse"
    )


def _with_prediction(questions: Schema, dtype: pl.DataType, what: str) -> Schema:
    if PREDICTION in questions:
        raise DefinitionError(
            f"{what}: the questions have a column {PREDICTION!r}, by which an override reads the prediction; "
            "rename the column in their view"
        )
    return {**questions, PREDICTION: dtype}


def _is_finite(values: Array) -> Bools:
    """Where there is a value that can be served."""
    return np.isfinite(values) if values.dtype == np.float64 else ~is_null(values)


def _changed(guard: Guard, predictions: Array, rows: Ints) -> tuple[Ints, Array]:
    """Those of the rows that a `clip` or `rounded` changes, and their new values."""
    rows = rows[_is_finite(predictions[rows])]
    old = predictions[rows]
    new = np.clip(old, *guard.bounds) if guard.bounds else np.array([round(v, guard.decimals) for v in old.tolist()])
    changed = new != old
    return rows[changed], new[changed]
