"""A model kept as a view: questions first, answers later, under any refresh policy.

Rows are taken in the order of `seq` over questions and answers; at one `seq` answers come first, as river reveals a
label that is due at t before the question at t.

- A question is predicted when it comes, by the learner as it is then. The prediction is an immutable fact; the features
  it was given are kept *as served* (nulls left out, which is how river writes missing).
- Its answer is scored against the stored prediction, once, when it first comes. The question is then an example, with
  the features as served: a row of the training set. How questions and answers meet, and what a correction does, is said
  in `engine.examples`.
- What is learnt of it, and when, is a matter of the policy: an immediate model learns it right after it was scored, so
  that predictions and metrics equal `river.evaluate.progressive_val_score` bit for bit, without delay and with any;
  a deferred one when it is refitted (`engine.refit`), one on query when a question is asked (`engine.query`).

Corrections under `immediate()`: a learner that can unlearn (`engine.learners`) unlearns what was taken back and learns
what replaces it. What another one has learnt stays learnt; `corrections` counts it.

Two more learners may run beside the one that serves, and change nothing of what it serves. The *baseline* (the class
frequencies, or the mean label) learns with the same delays: a model that does not beat it is worth nothing. The
*naive* twin is told each label right after its question, as most evaluations do: its figures are what that leak would
have claimed.

Where it differs from river: a prediction that is not finite is not published (null, counted as `refused`), and is not
scored, so one overflow does not turn a metric into nan for good.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from engine.examples import GONE, Answer, Examples, Question
from engine.fit import Beside, Here
from engine.guard import Taken
from engine.keeper import AtOnce, Erased, Keeper
from engine.log import SEQ, WEIGHT, ChangeLog, Saved, as_of
from engine.naive import Naive
from engine.policy import Deferred, OnQuery, Policy
from engine.query import Queried
from engine.refit import NOTHING_LEARNT, Fits, Log, Refitted
from engine.seal import Seal
from engine.skew import Tally, skew_of
from engine.spec import ModelSpec, asks_probabilities, frontier, guarded, prediction_schema
from engine.student import Judge, ModelError, Reading, guesser, values
from engine.training import MemoryLog, Training, column, examples, from_log, of_rows
from engine.versions import Versions
from operators.delta import (
    BEGINNING,
    FLOAT,
    INT,
    NULL,
    STRING,
    TIME,
    Columns,
    Delta,
    Ints,
    concat,
    empty,
    is_null,
    nulls,
)

__all__ = ["KeptModel", "ModelError", "kept"]


DELAYS = (1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 259_200.0, 604_800.0, 2_592_000.0)
"""Label delays are counted up to each of these seconds, and beyond the last."""


class KeptModel:
    """A model, kept as its policy says.

    keeper: what its policy makes of it. log: where the changes of its training set go; training: what gives these.
    """

    def __init__(
        self, spec: ModelSpec, keeper: Keeper | None = None, log: Log | None = None, training: Training | None = None
    ) -> None:
        self.spec = spec
        self.schema = prediction_schema(spec)
        self.examples = Examples(spec, self._learn, self._unlearn, self._gone)
        self.training = training or Training(spec)
        self.keeper: Keeper = keeper or AtOnce(spec)
        self.log = log
        self._judge = Judge(spec.name, spec.metrics)
        self._reading = Reading(spec, self.schema["prediction"] == FLOAT)
        self._guesser, self._baseline = guesser(spec), Judge(f"{spec.name} (baseline)", spec.metrics)
        self._proba = asks_probabilities(spec)
        self._guess: Any = None
        self._guessed = False
        self._naive = Naive(spec) if spec.naive else None
        self._guards = guarded(spec)
        self._guarding: tuple[Columns, Taken] | None = None
        self._twins: list[Any] = []
        self._unsaid: list[Question] = []
        self._unguarded: list[tuple[int, Question]] = []
        self._forgotten: list[int] = []
        self._leaving: list[Question] = []
        self._before: dict[Question, int | None] = {}
        self._open, self._final = (Tally({f: spec.questions[f] for f in spec.features}) for _ in range(2))
        self._count = {"predictions": 0, "refused": 0, "failed": 0}
        self._labelled: int | None = None
        self._delays = [0] * (len(DELAYS) + 1)
        self._delay = 0.0
        self._seq, self._clock, self._first = -1, 0, 0
        self._known: list[int] = []
        self._told: list[Delta] = []
        self.forgotten: dict[str, Any] = {}

    def apply(
        self,
        questions: Delta,
        answers: Delta,
        watermark: int,
        clocks: Ints | None = None,
        first: int = 0,
        live: bool = False,
        refreshes: bool = True,
        reached: Mapping[str, Ints] | None = None,
    ) -> tuple[Delta, Delta]:
        """The predictions, and the changes of the training set, that follow from new questions and answers.

        Both deltas are in the order of `seq`, and all rows of one `seq` are in one call. No question with `at` below
        `watermark` comes later or is taken back, and no answer comes. clocks: when each `seq` from `first` on became
        known (by default all at 0). live: whether the present is being followed. reached: by source that the questions
        are made of how far it was after each `seq` from `first` on (by default that is not known). Predictions are only
        ever inserted, with the `seq` of their question. Raises `ModelError` when the learner fails; the state is then
        of no use: go back to a snapshot.
        """
        self._first, self._known = first, [] if clocks is None else clocks.tolist()
        self.keeper.begin(first, self._known[0] if self._known else self._clock, live)
        asked: list[Question] = []
        numbers: list[int] = []
        events, seqs, turn = self._events(answers), answers.seq.tolist(), 0
        if len(questions):
            served = questions.with_columns(questions.columns | self._from(questions.seq, reached))
            keys = _keys(questions, self.spec.key)
            rows = self.keeper.rows(questions.columns, {f: self.spec.questions[f] for f in self.spec.features})
            if self._naive is not None and self.keeper.tell is None:
                self._twins = self._naive.student.rows(questions.columns, self._naive.schema)
            moved, row = _moved(questions, keys), self.training.serve(served)
            if self._guards:
                columns = {n: questions.columns[n] for n in self.spec.questions}
                self._guarding = columns, self._guards.before(columns)
            before = np.searchsorted(answers.seq, questions.seq, side="right").tolist()
            each = zip(
                keys, rows, questions.at.tolist(), questions.weight.tolist(), questions.seq.tolist(), strict=True
            )
            for i, (key, x, at, weight, seq) in enumerate(each):
                while turn < before[i]:
                    self._tell(events[turn], seqs[turn])
                    turn += 1
                self._reach(seq)
                if weight > 0 and self.examples.is_new(key, at, moved[i]):
                    asked.append(question := Question(key, at, row + i, x))
                    numbers.append(i)
                    self._ask(question, i)
                elif weight > 0:
                    self._becomes(self.examples.of(key, at), row + i)
                else:
                    self._forgotten.append(row + i)
                    if not moved[i]:
                        self._becomes(self.examples.of(key, at), GONE)
                        self.examples.withdraw(key, at)
                        self._settle()
        while turn < len(events):
            self._tell(events[turn], seqs[turn])
            turn += 1
        if self.keeper.steady and refreshes:
            self._refresh(self._seq)
        self._guard()
        self._guarding = None
        self._record()
        self._open.questions += len(asked)
        self._compare()
        self.examples.forget(watermark - self.spec.wait)
        self._let_go()
        self._settle()
        if self._forgotten:
            self.training.forget(self._forgotten)
            self._forgotten = []
        told, self._told = self._told, []
        predictions = self._published(served, numbers, asked) if asked else empty(self.schema)
        return predictions, concat(told) if told else empty(self.training.schema)

    def forget(self, positions: Ints, seq: int, clock: int) -> Delta:
        """Forget the examples that came from these rows of sources, or whose answers did; gives out what the training
        set loses, after what `apply` gave out of the changes of that `seq`, which became known at `clock`.

        They are told by position, however old. `forgotten` says what became of them. The training set must have a
        change log; its rows stay in there, as taken back, until they are erased.
        """
        assert isinstance(self.log, ChangeLog)
        self._seq, self._clock = seq, clock
        gone = self.examples.erase(frozenset(positions.tolist()), self.training.position)
        self._settle()
        self._record()
        for question in gone:
            self._becomes(question, GONE)
        self._compare()
        for question in gone:
            self.training.blank(question)
        self.training.forget(self._forgotten)
        self._forgotten = []
        if self._naive is not None:
            self._naive.forget(frozenset(gone))
        log = self.log.read()
        told = of_rows(log, positions).collect()
        left = as_of(told.lazy()).with_columns(pl.lit(-1, INT).alias(WEIGHT), pl.lit(seq, INT).alias(SEQ)).collect()
        change, _ = from_log(left, self.spec)
        self._told.append(change)
        self.log.append(change, np.full(len(change), clock))

        @cache
        def rest() -> Delta:
            others = of_rows(log, positions, others=True).collect()
            return examples(*from_log(others, self.spec))[0]

        held = {self.training.position(q): q for q in self.examples.answered()}
        how = self.keeper.forget(Erased(told, change, rest, held), seq, clock)
        if self._naive is not None and len(told):
            self._naive.relearn(rest())
        self._refresh(seq)
        self.forgotten = {"examples": len(as_of(told.lazy(), seq=seq - 1).collect()), "how": how}
        self.log.flush()  # what is to be erased may lie in the log only, not in the state
        out, self._told = self._told, []
        return concat([empty(self.training.schema), *out])

    def figures(self) -> dict[str, Any]:
        """What happened so far, and what the predictions were worth.

        `questions` asked, `repeated` rows of asked ones; `answers` that came with a label; `predictions` that are not
        null, `refused` ones that were not finite; `learned` examples; questions `waiting`, `closed` without an answer
        and `withdrawn` before it; `unmatched` answers that found no question in time; `corrections` that came after
        the answer; `null_labels`; `null_keys`; and `metrics`, `baseline`, `naive` (None unless declared), each
        {metric: value}, the value None when nothing was scored; how often the learner `failed`; when the newest example
        that it has learnt became known, `trained`, and the newest label, `labelled`; `label_delays`, from `at` of a
        question until its label was known, counted in the steps of `DELAYS`; `skew` of the features, see `engine.skew`:
        of questions that can still be corrected (`open`), of the others as they were last (`final`), and of `all`.
        Further what the policy has to say.
        """
        kept = self.keeper.figures()
        return {
            **self.examples.count,
            **self._count,
            "waiting": self.examples.waiting,
            "metrics": self._judge.figures(),
            "baseline": self._baseline.figures(),
            "naive": self._naive.judge.figures() if self._naive else None,
            "guards": {f"{name}: {action}": n for (name, action), n in self._guards.counts.items()},
            "trained": self.keeper.newest(),
            "labelled": self._labelled,
            "label_delays": {"counts": list(self._delays), "seconds": self._delay},
            "skew": skew_of(self._open, self._final),
            **kept,
            "failed": self._count["failed"] + kept.get("failed", 0),
        }

    def snapshot(self) -> Any:
        """All state, as something that can be pickled; not changed by a later `apply` once it is pickled."""
        judges = [(j.metric, j.scored) for j in (self._judge, self._baseline)]
        naive = self._naive and self._naive.snapshot()
        parts = self.examples.snapshot(), self.training.snapshot(), self.keeper.snapshot()
        labels, skew = (self._labelled, list(self._delays), self._delay), (self._open, self._final)
        kept = parts, judges, self._guesser, naive, self._count, self._seq, self._guards.counts, labels, skew
        return kept, self.log.save() if self.log else None

    def restore(self, state: Any) -> None:
        """Take over the state that `snapshot` gave. Called at most once, before the first `apply`."""
        (
            ((examples, training, keeper), judges, self._guesser, naive, self._count, self._seq, counts, labels, skew),
            _,
        ) = state
        self._open, self._final = skew
        self._guards.counts = counts
        self._labelled, self._delays, self._delay = labels
        self.examples.restore(examples)
        self.training.restore(training)
        self.keeper.restore(keeper)
        self._judge, self._baseline = (
            Judge(j.name, *given) for j, given in zip((self._judge, self._baseline), judges, strict=True)
        )
        if self._naive is not None:
            self._naive.restore(naive)

    def end(self) -> None:
        """No change comes any more: let the log have all there is."""
        if self.log is not None:
            self.log.flush()

    def close(self) -> None:
        """Leave nothing running."""
        self.keeper.close()
        if self.log is not None:
            self.log.close()

    def _reach(self, seq: int) -> None:
        """Go on to the changes of this `seq`: all of the one before have been taken in."""
        if seq == self._seq:
            return
        if self.keeper.steady:
            self._refresh(self._seq)
        self._seq = seq
        if self._known:
            self._clock = self._known[seq - self._first]
        if self.keeper.steady:
            self._refresh(seq - 1)

    def _tell(self, answer: Answer, seq: int) -> None:
        self._reach(seq)
        self.examples.answer(answer, self._clock)
        self._settle()

    def _ask(self, question: Question, i: int) -> None:
        if not self._guessed:
            guess = self._guesser.predict_proba_one if self._proba else self._guesser.predict_one
            self._guess, self._guessed = guess({}), True
        question.guess = self._guess
        self.examples.add(question)
        if self._naive is not None:
            self._naive.ask(question, self._twins[i] if self.keeper.tell is None else question.x)
        if self._guarding is not None:
            self._unguarded.append((i, question))
        question.age = self._clock  # for now when it was asked
        try:
            self.keeper.asked(question, self._clock)
        except Exception as e:
            raise ModelError.of(self.spec.name, question.key, "predict", e) from e
        if self._guarding is not None and self._guarding[1].by[i] >= 0:
            question.version = ""
        elif (tell := self.keeper.tell) is not None:
            try:
                said = tell(question)
                self._take(question, said, self._reading(said))
            except Exception as e:
                self._let_off(question, e)
        else:
            self._unsaid.append(question)
        self.examples.told_before(question)
        self._settle()

    def _say(self) -> None:
        """Let all questions that were asked have their predictions."""
        if not self._unsaid:
            return
        questions, self._unsaid = self._unsaid, []
        try:
            given = self.keeper.say(questions, self.training.features(questions))
            for question, said in zip(questions, given, strict=True):
                self._take(question, said, self._reading(said))
        except Exception as e:
            for question in questions:
                self._let_off(question, e)

    def _take(self, question: Question, said: Any, value: Any) -> None:
        """What the keeper said of a question, and what is read from it."""
        if type(value) is float and not isfinite(value):
            self._count["refused"] += 1
            said = value = None
        question.said, question.value = said, value
        if self._guards:
            question.age = NOTHING_LEARNT if question.trained is None else question.age - question.trained

    def _let_off(self, question: Question, error: Exception) -> None:
        """The learner failed: there is no prediction, if a guard falls back. Raises `ModelError`."""
        if not self._guards.falls_back:
            raise ModelError.of(self.spec.name, question.key, "predict", error) from error
        self._count["failed"] += 1
        self._take(question, None, None)

    def _guard(self) -> None:
        """Let the guards act on all questions that have been answered by the learner, or are not to be."""
        self._say()
        if self._guarding is None or not self._unguarded:
            return
        (columns, taken), unguarded = self._guarding, self._unguarded
        self._unguarded = []
        rows = np.array([i for i, _ in unguarded])
        values = column([q.value for _, q in unguarded], self.schema["prediction"])
        ages = np.array([q.age for _, q in unguarded], np.int64)
        out, acted = self._guards.after({n: c[rows] for n, c in columns.items()}, taken.take(rows), values, ages)
        served = Delta({"prediction": out}).frame({"prediction": self.schema["prediction"]})["prediction"].to_list()
        for (_, q), value, guards in zip(unguarded, served, acted.tolist(), strict=True):
            q.guarded, q.guards = True, guards
            if guards is not None:
                q.value, q.said = value, self._reading.said(value)

    def _learn(self, question: Question) -> None:
        if self._guarding is not None and not question.guarded:
            self._guard()
        elif self._unsaid and (question.version is None or not self.keeper.steady):
            self._say()
        if question.first:
            self._judge(question.key, question.label, question.said)
            self._baseline(question.key, question.label, question.guess)
            self._guesser.learn_one({}, question.label)
            self._guessed = False
            self._labelled, delay = self._clock, max(self._clock - question.at, 0) / 1e6
            self._delays[bisect_left(DELAYS, delay)] += 1
            self._delay += delay
        try:
            self.keeper.learn(question, self._clock)
        except Exception as e:
            raise ModelError.of(self.spec.name, question.key, "learn", e) from e
        self.training.enter(question, self._seq)
        question.said = question.guess = question.shade = None
        if not self.keeper.keeps:
            question.x = None

    def _unlearn(self, question: Question) -> None:
        if not self.keeper.steady:
            self._say()
        self.keeper.unlearn(question, self._clock)
        self.training.enter(question, self._seq, -1)

    def _gone(self, question: Question) -> None:
        self._leaving.append(question)

    def _let_go(self) -> None:
        """Count the questions that are forgotten as they were last, and let their rows go."""
        if not self._leaving:
            return
        left = self.training.compare([q for q in self._leaving if q.now is not None])
        left.questions = len(self._leaving)
        self._open.add(left, -1)
        self._final.add(left)
        for question in self._leaving:
            self._forgotten += [row for row in (question.row, question.now) if row is not None and row != GONE]
        self._leaving = []

    def _becomes(self, question: Question | None, row: int) -> None:
        """The features of a question are now in another row, or with `GONE` in none."""
        if question is None:
            self._forgotten += [row] if row != GONE else []
            return
        if question in self._before:
            self._forgotten += [question.now] if question.now is not None and question.now != GONE else []
        else:
            self._before[question] = question.now
        question.now = row

    def _compare(self) -> None:
        """Count the questions of which the features have become others as they are now, and no more as they were."""
        if not self._before:
            return
        was = list(self._before.values())
        self._open.add(self.training.compare(list(self._before), was), -1)
        self._open.add(self.training.compare(list(self._before)))
        self._forgotten += [row for row in was if row is not None and row != GONE]
        self._before = {}

    def _refresh(self, seq: int) -> None:
        """Refresh the model if it is due, with the changes up to `seq`; there is no clock before the first change."""
        if self._seq >= 0 and self.keeper.due(seq, self._clock):
            self._guard()
            self._record()
            self.keeper.refresh(seq, self._clock, self.examples)

    def _record(self) -> None:
        """Give out and keep what changed in the training set."""
        changes = self.training.changes()
        if len(changes):
            self._told.append(changes)
            if self.log is not None:
                none = np.zeros(len(changes), np.int64)
                known = np.array(self._known, np.int64)[changes.seq - self._first] if self._known else none
                self.log.append(changes, known)

    def _settle(self) -> None:
        if self._naive is not None:
            self._naive.settle(self._reading)

    def _events(self, answers: Delta) -> list[Answer]:
        if not len(answers):
            return []
        spec, keys = self.spec, _keys(answers, self.spec.answer_key)
        labels = values(answers.columns[spec.label], spec.answers[spec.label])[0]
        at, pos, weight = (a.tolist() for a in (answers.at, answers.pos, answers.weight))
        return list(zip(keys, labels, at, pos, weight, _moved(answers, keys), strict=True))

    def _from(self, seq: Ints, reached: Mapping[str, Ints] | None) -> Columns:
        """What questions of these `seq` are made from, as columns."""
        none = nulls(len(seq), TIME)
        each = [none if reached is None else reached[s][seq - self._first] for s in self.spec.sources]
        each = [np.where(mark > BEGINNING, mark, NULL) for mark in each]
        named = dict(zip(map(frontier, self.spec.sources), each, strict=True))
        return {"seq": seq, "frontier": np.minimum.reduce(each) if each else none, **named}

    def _published(self, questions: Delta, numbers: list[int], asked: list[Question]) -> Delta:
        rows, n = np.array(numbers), len(numbers)
        given = [q.value for q in asked]
        self._count["predictions"] += n - given.count(None)
        at = questions.at[rows]
        names = np.empty(n, object)
        names[:] = self.spec.name
        columns = {k: questions.columns[k][rows] for k in self.spec.key}
        columns |= {"model": names, "prediction": column(given, self.schema["prediction"]), "at": at}
        columns["model_version"] = column([q.version or None for q in asked], STRING)
        columns["trained"] = column([q.trained for q in asked], TIME)
        columns |= {n: questions.columns[n][rows] for n in self.schema if n not in columns and n != "guards"}
        if self._guards:
            columns["guards"] = column([q.guards for q in asked], STRING)
        return Delta(columns, np.ones(n, np.int64), at, questions.pos[rows], questions.seq[rows])


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


def kept(
    spec: ModelSpec, refresh: Policy, folder: Path | None = None, state: Any = None, seal: Seal | None = None
) -> KeptModel:
    """A model under a policy.

    folder: the state of the pipeline, where its training set and versions are kept; None: in memory, for a replay.
    state: what `snapshot` gave. seal: that of the folder. Raises `LogError`, `VersionError` or `SealError` when what is
    kept there cannot be used.
    """
    training = Training(spec)
    schema = training.schema
    fits: Fits | None = None
    log: Log | None = None
    where = folder and folder / "models" / spec.name
    versions = Versions(where, seal).claim() if isinstance(refresh, Deferred) else None
    if folder is not None:
        assert seal is not None
        changes = folder / "log" / f"{spec.name}.training"
        log = ChangeLog(changes, schema, *(Saved() if state is None else state[1]))
        fits = Beside(changes, folder / "models" / spec.name / "progress", seal)
    elif versions is not None:
        log = memory = MemoryLog()
        fits = Here(lambda: memory.changes(schema))
    keeper: Keeper
    if isinstance(refresh, Deferred) and versions is not None and fits is not None and log is not None:
        keeper = Refitted(spec, refresh, versions, fits, log)
    elif isinstance(refresh, OnQuery):
        keeper = Queried(spec, refresh, training.features)
    else:
        keeper = AtOnce(spec)
    model = KeptModel(spec, keeper, log, training)
    if state is not None:
        model.restore(state)
    return model
