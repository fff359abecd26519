"""A model that is fitted for each question: the answered examples most like it are looked up, fitted, asked, forgotten.

There is no version to go stale: an example counts from its answer on, and one that is taken back counts no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.examples import Examples, Question
from engine.keeper import Erased
from engine.neighbours import Neighbours
from engine.policy import OnQuery
from engine.spec import ModelSpec, asks_probabilities, clone, fingerprint
from engine.student import Fixed, Online, labels, table, values
from engine.training import column
from operators.delta import BEGINNING, BOOL, Array, Columns, Ints, Schema, is_null


class Queried:
    """What keeps a model on query. See `engine.keeper.Keeper`.

    features: gives the features of questions as served.
    """

    steady, keeps, tell = False, False, None

    def __init__(self, spec: ModelSpec, policy: OnQuery, features: Callable[[Sequence[Question]], Columns]) -> None:
        self.spec, self.policy, self._features = spec, policy, features
        self._schema = {f: spec.questions[f] for f in spec.features}
        self._dtype = spec.answers[spec.label]
        self._held = self._none()
        self._fingerprint = fingerprint(spec)
        self._learned = self._short = 0
        self._since = BEGINNING
        self._newest: int | None = None
        self._examples: dict[int, tuple[Any, Any]] = {}

    def _none(self) -> Neighbours:
        return Neighbours(
            self._schema,
            "number" if not self.spec.classifies else "binary" if self._dtype == BOOL else "class",
            self.policy.neighbours,
            self.policy.index,
        )

    def begin(self, seq: int, clock: int, live: bool) -> None:
        return None

    def rows(self, columns: Columns, schema: Schema) -> Sequence[Any]:
        return [None] * len(next(iter(columns.values())))

    def asked(self, question: Question, clock: int) -> None:
        return None

    def say(self, questions: Sequence[Question], columns: Columns) -> list[Any]:
        for q in questions:
            q.version, q.trained = f"{self._fingerprint}.{self._learned}", self._newest
        if self.policy.window is None:
            return self._say(columns)
        out = []
        for i, q in enumerate(questions):
            self._forget(q.at - self.policy.window)
            out += self._say({n: c[i : i + 1] for n, c in columns.items()})
        return out

    def _say(self, columns: Columns) -> list[Any]:
        n = len(next(iter(columns.values())))
        if len(self._held) < self.policy.neighbours:
            self._short += n
        if not len(self._held):
            return [None] * n
        if self.policy.fit == "learner":
            return self._fitted(columns)
        found = self._held.predict(columns)
        none = is_null(found).tolist()
        said = [None if no else v for v, no in zip(found.tolist(), none, strict=True)]
        if self.spec.classifies and self._dtype == BOOL:
            proba = asks_probabilities(self.spec)
            return [v if v is None else {False: 1 - v, True: v} if proba else v > 0.5 for v in said]
        return said

    def _fitted(self, columns: Columns) -> list[Any]:
        """What the learner says once it is fitted to the neighbours; those most like the question are learnt last."""
        ids, _, found = self._held.nearest(columns)
        out = []
        for i in range(len(found)):
            near = ids[i, : found[i]].tolist()[::-1]
            row = {n: c[i : i + 1] for n, c in columns.items()}
            learner = clone(self.spec)
            if self.spec.river:
                online = Online(self.spec, learner, ahead=False)
                for j in near:
                    online.learn(*self._examples[j])
                out.append(online.predict(online.rows(row, self._schema)[0]))
            else:
                xs = {n: np.concatenate([self._examples[j][0][n] for j in near]) for n in self._schema}
                ys = labels(column([self._examples[j][1] for j in near], self._dtype), self._dtype)
                learner.fit(table(xs, self._schema), ys)
                out += Fixed(self.spec, learner)(row)
        return out

    def learn(self, question: Question, clock: int) -> None:
        question.example, self._newest = self._learned, clock
        self._learned += 1
        if question.at >= self._since:
            label = column([question.label], self._dtype)
            self._add(np.array([question.example]), self._features([question]), label, np.array([question.at]))

    def _add(self, numbers: Ints, columns: Columns, label: Array, at: Ints) -> None:
        """Let examples of these numbers be looked at."""
        truth = label == 1 if self.spec.classifies and self._dtype == BOOL else label
        self._held.add(numbers, columns, truth, at)
        if self.policy.fit == "learner":
            told = values(label, self._dtype)[0]
            rows = [{n: c[i : i + 1] for n, c in columns.items()} for i in range(len(numbers))]
            xs = Online(self.spec, clone(self.spec)).rows(columns, self._schema) if self.spec.river else rows
            self._examples.update(zip(numbers.tolist(), zip(xs, told, strict=True), strict=True))

    def unlearn(self, question: Question, clock: int) -> None:
        if question.at >= self._since:
            self._held.remove(np.array([question.example]))
            self._examples.pop(question.example, None)

    def forget(self, erased: Erased, seq: int, clock: int) -> str:
        if not len(erased.log):
            return "had learnt none of them"
        rest = erased.rest()
        for number, pos in enumerate(rest.pos.tolist()):
            if (question := erased.held.get(pos)) is not None:
                question.example = number
        self._held, self._examples = self._none(), {}
        near = rest.at >= self._since
        if near.any():
            rows = rest.take(near)
            self._add(np.flatnonzero(near), rows.columns, rows.columns["label"], rows.at)
        self._learned += 1
        return f"looks among the {int(near.sum()):,} other examples"

    def _forget(self, before: int) -> None:
        if before > self._since:
            self._since = before
            self._held.expire(before)

    def newest(self) -> int | None:
        return self._newest

    def due(self, seq: int, clock: int) -> bool:
        return False

    def refresh(self, seq: int, clock: int, examples: Examples) -> None:
        return None

    def close(self) -> None:
        return None

    def figures(self) -> dict[str, Any]:
        """The examples `held`, and how many questions were answered by `fewer` than there should be."""
        return {"held": len(self._held), "fewer": self._short}

    def snapshot(self) -> Any:
        return self._held.snapshot(), self._learned, self._short, self._since, self._newest, self._examples

    def restore(self, state: Any) -> None:
        held, self._learned, self._short, self._since, self._newest, self._examples = state
        self._held.restore(held)
