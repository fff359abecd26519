"""What keeps a model under its policy; here the contract, and the immediate one.

The others are in `engine.refit` (deferred) and `engine.query` (on query).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import polars as pl

from engine.examples import Examples, Question
from engine.learners import retraction, unlearn
from engine.spec import ModelSpec, clone, fingerprint
from engine.student import ModelError, Online
from operators.delta import Columns, Delta, Schema


class Erased(NamedTuple):
    """What a model is to forget.

    log: all that the training set ever said of the examples. gone: those that were examples until now, of which
    `unlearn` has not told. rest: gives all other examples, in the order in which they became such. held: by position
    those of their questions that can still be corrected.
    """

    log: pl.DataFrame
    gone: Delta
    rest: Callable[[], Delta]
    held: Mapping[int, Question]


class Keeper(Protocol):
    """What a policy makes of a model.

    steady: examples do not change what it says until it is refreshed, and only such a one is `due`. keeps: it still
    needs what it was given of a question once that is an example.
    """

    steady: bool
    keeps: bool

    def rows(self, columns: Columns, schema: Schema) -> Sequence[Any]:
        """What it is given of each question as soon as it comes."""

    def asked(self, question: Question, clock: int) -> None:
        """A question came."""

    @property
    def tell(self) -> Callable[[Question], Any] | None:
        """Gives what it says of a question now, and sets by which version, and how far that is `trained`, where that
        depends on all that came before.

        None for one that can be asked for many questions at once, by `say`.
        """

    def say(self, questions: Sequence[Question], columns: Columns) -> Sequence[Any]:
        """What it says of each question now, if it cannot `tell`; sets by which versions. columns: their features."""

    def learn(self, question: Question, clock: int) -> None:
        """Take in an example, for the first time or again."""

    def unlearn(self, question: Question, clock: int) -> None:
        """Take back an example."""

    def begin(self, seq: int, clock: int, live: bool) -> None:
        """Before the changes from `seq` on. live: whether the present is being followed."""

    def newest(self) -> int | None:
        """When the newest example that it has learnt became known."""

    def due(self, seq: int, clock: int) -> bool:
        """Whether it is to be refreshed, now that the changes up to `seq` are known."""

    def refresh(self, seq: int, clock: int, examples: Examples) -> None:
        """Refresh it with the changes up to `seq`, which the training set holds, and no others."""

    def forget(self, erased: Erased, seq: int, clock: int) -> str:
        """Be as if these examples had never been, now or with the next refresh; says how."""

    def close(self) -> None:
        """Leave nothing running."""

    def figures(self) -> dict[str, Any]: ...

    def snapshot(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


def pairs(spec: ModelSpec, student: Online, rows: Delta) -> Iterator[tuple[Any, Any]]:
    """What a student is given of examples: features and label."""
    labels = rows.frame({"label": spec.answers[spec.label]})["label"].to_list()
    yield from zip(student.rows(rows.columns, {f: spec.questions[f] for f in spec.features}), labels, strict=True)


def relearn(spec: ModelSpec, student: Online, rows: Delta) -> int:
    """Let a new student be asked and told examples one after another; returns how many. Raises `ModelError`.

    It is asked because some learners advance on questions.
    """
    try:
        for x, y in pairs(spec, student, rows):
            student.predict(x)
            student.learn(x, y)
    except Exception as e:
        raise ModelError.of(spec.name, None, "learn", e) from e
    return len(rows)


class AtOnce:
    """An immediate model: learns every answer when it arrives."""

    steady = False

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.learned = spec, 0
        self._newest: int | None = None
        self._enrol(clone(spec))
        self._fingerprint = fingerprint(spec)
        self._version: str | None = None
        self.keeps = retraction(spec.learner) == "group"

    def _enrol(self, learner: Any) -> None:
        self.student = Online(self.spec, learner)
        self.rows = self.student.rows

    @property
    def model(self) -> Any:
        """The learner as it is now. To be looked at: what trains or predicts with it changes what is served."""
        return self.student.model

    def begin(self, seq: int, clock: int, live: bool) -> None:
        return None

    def newest(self) -> int | None:
        return self._newest

    def due(self, seq: int, clock: int) -> bool:
        return False

    def asked(self, question: Question, clock: int) -> None:
        return None

    def tell(self, question: Question) -> Any:
        version = self._version
        if version is None:
            version = self._version = f"{self._fingerprint}.{self.learned}"
        question.version, question.trained = version, self._newest
        return self.student.predict(question.x)

    def say(self, questions: Sequence[Question], columns: Columns) -> list[Any]:
        return [self.tell(q) for q in questions]

    def learn(self, question: Question, clock: int) -> None:
        if question.first or self.keeps:
            x = self.student.mine(question.x) if self.spec.naive or self.keeps else question.x
            self.student.learn(x, question.label)
            self.learned += 1
            self._version, self._newest = None, clock

    def unlearn(self, question: Question, clock: int) -> None:
        if self.keeps:
            unlearn(self.student.model, question.x, question.label)
            self.learned += 1
            self._version = None

    def refresh(self, seq: int, clock: int, examples: Examples) -> None:
        return None

    def forget(self, erased: Erased, seq: int, clock: int) -> str:
        if not len(erased.log):
            return "had learnt none of them"
        self.learned += 1
        self._version = None
        if self.keeps:
            for x, y in pairs(self.spec, self.student, erased.gone):
                unlearn(self.student.model, x, y)
            return "unlearnt, as if it had never seen them"
        self._enrol(clone(self.spec))
        learnt = relearn(self.spec, self.student, erased.rest())
        return f"learnt anew, from the {learnt:,} other examples"

    def close(self) -> None:
        return None

    def figures(self) -> dict[str, Any]:
        return {}

    def snapshot(self) -> Any:
        return self.student.model, self.learned, self._newest

    def restore(self, state: Any) -> None:
        learner, self.learned, self._newest = state
        self._enrol(learner)
