"""The naive twin of a model: told each label right after its question, as most evaluations do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from math import isfinite
from typing import Any

from engine.examples import OPEN, Question
from engine.keeper import relearn
from engine.spec import ModelSpec, clone
from engine.student import Judge, ModelError, Online
from operators.delta import Delta


class Naive:
    """Learns the answered questions in the order in which they were asked."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.schema = spec, {f: spec.questions[f] for f in spec.features}
        self.student, self.judge = Online(spec, clone(spec)), Judge(f"{spec.name} (naive)", spec.metrics)
        self._queue: deque[tuple[Question, Any]] = deque()

    def ask(self, question: Question, x: Any) -> None:
        """Take in a question and what the student is given of it."""
        self._queue.append((question, x))

    def settle(self, reading: Callable[[Any], Any]) -> None:
        """Go on as far as it is known what became of the questions."""
        queue = self._queue
        while queue and not (queue[0][0].state == OPEN and queue[0][0].first):
            head, x = queue.popleft()
            if not head.first:
                try:
                    said = self.student.predict(x)
                    value = reading(said)
                    if type(value) is float and not isfinite(value):
                        said = None
                except Exception as e:
                    raise ModelError.of(self.judge.name, head.key, "predict", e) from e
                self.judge(head.key, head.first_label, said)
                try:
                    self.student.learn(x, head.first_label)
                except Exception as e:
                    raise ModelError.of(self.judge.name, head.key, "learn", e) from e

    def forget(self, questions: Collection[Question]) -> None:
        """Let these questions go."""
        self._queue = deque(waiting for waiting in self._queue if waiting[0] not in questions)

    def relearn(self, examples: Delta) -> None:
        """Learn anew, from these examples, which are all there are."""
        self._queue = deque(waiting for waiting in self._queue if waiting[0].state == OPEN and waiting[0].first)
        self.student = Online(self.spec, clone(self.spec))
        relearn(self.spec, self.student, examples)

    def snapshot(self) -> Any:
        return self.student.model, self.judge.metric, self.judge.scored, self._queue

    def restore(self, state: Any) -> None:
        model, metric, scored, self._queue = state
        self.student, self.judge = Online(self.spec, model), Judge(self.judge.name, metric, scored)
