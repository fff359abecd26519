"""What the user writes: sources, tables, views, models and sinks, checked while they are declared.

    p = Pipeline("flights")
    departures = p.source("departures", key="flight_id", at="sched_dep", schema={...})
    features = p.view("features", departures, op.window(by="origin", size="1h", departures_1h=op.count()))

A pipeline holds definitions only, no data and no connection. Each mistake is a `DefinitionError` that says where it
is, what was found, what was expected and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import polars as pl

from engine.audit import SAMPLE
from engine.audit import audit as run_audit
from engine.draw import drawing, svg
from engine.freshness import Bounds
from engine.graph import AS_OF, DELETED, Expected, Graph, Model, Node, Sink, Source, View
from engine.guard import Guard
from engine.log import OWN
from engine.past import needed, past
from engine.plan import roots
from engine.policy import Policy, check_model, duration, immediate
from engine.replay import replay
from engine.spec import ModelSpec, prediction_schema, training_schema
from operators.dedupe import Dedupe, Repeats
from operators.delta import TIME, Schema, type_of
from operators.expectation import REASON, Expectation, Unique, checks, expected, met, quarantined, reason
from operators.latest import latest
from operators.operator import DefinitionError, Operator, as_names, fit_as_key, known, microseconds
from operators.project import project
from operators.where import where

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _name(name: str, what: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DefinitionError(
            f"{what} has the name {name!r}: expected lower-case letters, digits, '_' and '-', at most 64, "
            "beginning with a letter or digit"
        )
    return name


Relation = Source | View


def _bounds(
    what: str,
    policy: Policy,
    target: str | timedelta | None,
    warn: str | timedelta | None,
    error: str | timedelta | None,
) -> Bounds:
    """What is declared of a lag, checked: each bound is beyond the one before."""
    given = {"target_lag": target, "warn_after": warn, "error_after": error}
    if target is not None and getattr(policy, "target_lag", None) is not None:
        raise DefinitionError(f"{what}: target_lag is given, but refresh is {policy}; say it once")
    found = {n: microseconds(g, f"{what}: {n}") for n, g in given.items() if g is not None}
    for (a, least), (b, most) in pairwise(found.items()):
        if most <= least:
            raise DefinitionError(f"{what}: {b} is {duration(most)}, not more than {a}, which is {duration(least)}")
    return Bounds(found.get("target_lag"), found.get("warn_after"), found.get("error_after"))


def _lookup(given: bool | str | Sequence[str], key: tuple[str, ...], schema: Schema, what: str) -> tuple[str, ...]:
    """The columns by which rows can be looked up; none when they cannot."""
    if given is False:
        return ()
    if given is True and not key:
        raise DefinitionError(
            f"{what} has lookup=True, but its rows have no key any more; keep the key columns, or name the columns by "
            'which to look up, such as lookup="card"'
        )
    by = key if given is True else as_names(given, f"{what}: lookup")
    fit_as_key(by, schema, f"{what}: lookup")
    if AS_OF in by:
        raise DefinitionError(f"{what}: lookup by a column {AS_OF!r}, which asks for a time there; rename it")
    return by


def _audit(graph: Graph, questions: str, every: str | timedelta | None, what: str) -> int | None:
    """How often a model is audited, checked: its questions can be recomputed."""
    if every is None:
        return None
    try:
        needed(graph, questions, roots=True)
    except DefinitionError as error:
        raise DefinitionError(f"{what}: audit: {error}") from None
    if not (found := microseconds(every, f"{what}: audit")):
        raise DefinitionError(f"{what}: audit is {every!r}; expected more than nothing, such as '1h'")
    return found


class Pipeline(Graph):
    """A named set of sources, views, models and sinks.

    `prepare`, if given, is called with the folder of the pipeline file before a run; it makes data that is missing.
    """

    def __init__(self, name: str, prepare: Callable[[Path], object] | None = None) -> None:
        super().__init__(_name(name, "a pipeline"))
        self.prepare = prepare

    def _repr_html_(self) -> str:
        return svg(drawing(self))

    def source(
        self,
        name: str,
        *,
        key: str | Sequence[str],
        at: str,
        schema: Mapping[str, Any],
        lateness: str | timedelta = "0s",
        idle_after: str | timedelta | None = None,
        heartbeat: str | timedelta | None = None,
        append_only: bool = True,
        erasable: bool = False,
        epoch: Mapping[str, Literal["s", "ms", "us"]] | None = None,
        required: Sequence[str] = (),
        between: tuple[str, str] = ("1980-01-01", "2100-01-01"),
        expect: Sequence[Expectation] = (),
        log: bool = False,
    ) -> Source:
        """A stream of changes.

        key: what identifies a row. at: the Datetime column with the event time. schema: column to type (`int`, `float`,
        `str`, `bool`, `datetime` or a Polars type). lateness: how far behind the newest `at` of its partition a row may
        arrive and still count; later ones go to the late stream. idle_after: without a change for so long it no longer
        holds back the watermark of what depends on it. heartbeat: within what some record comes, if only one that tells
        nothing (Debezium's heartbeats); after a longer silence the source is held to be dead, not idle.
        append_only=False: the key's newest change replaces its earlier
        ones and a delete takes it back. erasable: whether `freshet forget` can take rows of any age back from
        views, which then forget none; otherwise, in an append-only source, only those within the lateness. epoch: the
        unit of Datetime columns that arrive as numbers. required: columns that may not be null (key and `at` never
        are). between: the event times that are believed. expect: what is expected of its rows, before anything
        reads them: `op.between("amount", 0, 10_000, severity="quarantine")`. log: whether its changes are kept in a
        change log; with those of all its sources any view can be told as it was at any moment.
        """
        made = self._source(name, key, at, schema, lateness, idle_after, append_only, False, epoch, required, between)
        if erasable and not append_only:
            raise DefinitionError(
                f"source {name!r} is erasable and append_only=False: of a source with corrections any row can be taken "
                "back; leave erasable out"
            )
        pulse = None if heartbeat is None else microseconds(heartbeat, f"source {name!r}: heartbeat")
        self.sources[name] = made = replace(made, erasable=erasable, heartbeat=pulse, log=log)
        self._expect_of(made, expect)
        return made

    def table(
        self,
        name: str,
        *,
        key: str | Sequence[str],
        schema: Mapping[str, Any],
        at: str | None = None,
        lateness: str | timedelta = "0s",
        epoch: Mapping[str, Literal["s", "ms", "us"]] | None = None,
        required: Sequence[str] = (),
        between: tuple[str, str] = ("1980-01-01", "2100-01-01"),
        expect: Sequence[Expectation] = (),
        log: bool = False,
    ) -> Source:
        """A keyed table: each change is the newest version of its key, or its deletion.

        Without `at` a version counts from when it became known; what is read before everything else counts from the
        beginning. `op.join` finds the version valid at a row's time; a view that starts from a table sees its newest
        versions. expect: what is expected of these, log: whether its changes are kept, see `source`.
        """
        made = self._source(name, key, at, schema, lateness, None, False, True, epoch, required, between)
        self.sources[name] = made = replace(made, log=log)
        self._expect_of(made, expect)
        return made

    def _source(
        self,
        name: str,
        key: str | Sequence[str],
        at: str | None,
        schema: Mapping[str, Any],
        lateness: str | timedelta,
        idle_after: str | timedelta | None,
        append_only: bool,
        table: bool,
        epoch: Mapping[str, Literal["s", "ms", "us"]] | None,
        required: Sequence[str],
        between: tuple[str, str],
    ) -> Source:
        what = f"{'table' if table else 'source'} {name!r}"
        self._new(name, what)
        columns: Schema = {}
        for column, given in schema.items():
            if not isinstance(column, str) or not column or column.startswith("_"):
                raise DefinitionError(
                    f"{what}: a column is named {column!r}; expected text that does not begin with '_'"
                )
            try:
                columns[column] = type_of(given)
            except TypeError as error:
                raise DefinitionError(f"{what}, column {column!r}: {error}") from None
        if not append_only and DELETED in columns:
            raise DefinitionError(f"{what}: the column {DELETED!r} is kept by the engine; rename yours")
        keys = as_names(key, f"{what}: the key")
        known(keys, columns, f"{what}: the key")
        if floats := [k for k in keys if columns[k] == pl.Float64]:
            raise DefinitionError(f"{what}: the key column {floats[0]!r} is a Float64; a key must compare exactly")
        if at is not None:
            known([at], columns, f"{what}: the event time")
            if columns[at] != TIME:
                raise DefinitionError(
                    f"{what}: the event time {at!r} has type {columns[at]}; expected datetime "
                    "(for numbers add epoch={" + repr(at) + ": 'ms'})"
                )
        known(list(required), columns, f"{what}: required")
        for column, unit in (epoch or {}).items():
            known([column], columns, f"{what}: epoch")
            if columns[column] != TIME or unit not in ("s", "ms", "us"):
                raise DefinitionError(
                    f"{what}: epoch[{column!r}] is {unit!r} of a {columns[column]}; "
                    "expected 's', 'ms' or 'us' of a datetime"
                )
        first, last = (self._instant(b, what) for b in between)
        made = Source(
            name,
            keys,
            at,
            columns,
            microseconds(lateness, f"{what}: lateness"),
            None if idle_after is None else microseconds(idle_after, f"{what}: idle_after"),
            append_only,
            table,
            dict(epoch or {}),
            frozenset({*keys, *([at] if at else []), *required}),
            first,
            last,
        )
        self.sources[name] = made
        return made

    @staticmethod
    def _instant(text: str, what: str) -> int:
        try:
            given = datetime.fromisoformat(text)
        except (TypeError, ValueError):
            raise DefinitionError(f"{what}: between contains {text!r}; expected dates such as '1980-01-01'") from None
        return (given.replace(tzinfo=given.tzinfo or timezone.utc) - _EPOCH) // timedelta(microseconds=1)

    def _new(self, name: str, what: str) -> None:
        _name(name, what)
        if name in self.sources or name in self.views or name in self.models:
            raise DefinitionError(f"{what}: the name {name!r} is taken in pipeline {self.name!r}; choose another")

    def _mine(self, relation: object, what: str) -> Relation:
        mine = {**self.sources, **self.views}
        if not isinstance(relation, (Source, View)):
            raise DefinitionError(f"{what} is {relation!r}; expected a source, table or view of this pipeline")
        if mine.get(relation.name) is not relation:
            raise DefinitionError(f"{what}: {relation.name!r} belongs to another pipeline")
        return relation

    def _rows(self, relation: Relation) -> tuple[str, Schema]:
        """The node whose output is the relation's rows, without those that are put aside."""
        if isinstance(relation, View):
            return relation.name, relation.schema
        if (meets := f"{relation.name}.meets") in self.declared:
            return meets, relation.schema
        return self._messages_as_rows(relation)

    def _messages_as_rows(self, relation: Source) -> tuple[str, Schema]:
        """The node whose output is all rows of a source; a keyed one gets the step that keeps newest messages."""
        if relation.append_only:
            return relation.name, relation.schema
        name = f"{relation.name}.latest"
        if name not in self.declared:
            step = latest(by=relation.key, order="at" if relation.table else "position")
            self.declared[name] = Node(name, step, (relation.name,), step.schema([relation.messages]))
            self._hold()
        return name, self.declared[name].schema

    def _expect_of(self, source: Source, expect: object) -> None:
        """Let something be expected of the rows of a source."""
        what = f"{'table' if source.table else 'source'} {source.name!r}"
        if not (found := expected(expect, source.schema, what)):
            return
        rows, schema = self._messages_as_rows(source)
        self._expect(what, source.name, rows, f"{source.name}.meets", schema, source.key, found)

    def _expect(
        self,
        what: str,
        name: str,
        rows: str,
        meets: str,
        schema: Schema,
        key: tuple[str, ...],
        expectations: tuple[Expectation, ...],
    ) -> None:
        """Let something be expected of the rows of a node; of what puts rows aside follow two relations.

        meets: the node of the rows that are not put aside. The quarantine is a view.
        """
        fails, quarantine = f"{name}.fails", f"{name}.quarantine"
        made, failing = list[Node](), dict[str, str]()
        for i, e in enumerate(expectations):
            if isinstance(e, Unique):
                failing[e.name] = fails if e.severity == "quarantine" else f"{name}.repeats-{i}"
                made.append(Node(failing[e.name], Repeats(e.by, e.within), (rows,), schema))
        self.expected[name] = Expected(what, rows, schema, expectations, failing)
        if aside := quarantined(expectations):
            if isinstance(first := aside[0], Unique):
                told = project(**{REASON: pl.lit(first.name)})
                made.append(Node(meets, Dedupe(first.by, first.within), (rows,), schema))
            else:
                good, told = met(checks(aside)), project(**{REASON: reason(checks(aside))})
                made += [Node(meets, where(good), (rows,), schema), Node(fails, where(~good), (rows,), schema)]
            made.append(Node(quarantine, told, (fails,), told.schema([schema])))
            self.views[quarantine] = View(quarantine, made[-1].schema, key)
        self.declared.update((n.name, n) for n in made)
        self._hold()

    def quarantine(self, relation: Relation) -> View:
        """The rows of a source, table or view that were put aside, with the column `reason`: the names of what each
        does not meet.

        Raises `DefinitionError` when none of its expectations has severity="quarantine".
        """
        mine = self._mine(relation, "quarantine: its relation")
        if (found := self.views.get(f"{mine.name}.quarantine")) is None:
            raise DefinitionError(
                f"{mine.name!r} has no quarantine: none of its expectations has severity='quarantine'; declare one, as "
                "in expect=[op.not_null('a', severity='quarantine')]"
            )
        return found

    def view(
        self,
        name: str,
        start: Relation,
        *steps: Operator,
        refresh: Policy | None = None,
        target_lag: str | timedelta | None = None,
        warn_after: str | timedelta | None = None,
        error_after: str | timedelta | None = None,
        lookup: bool | str | Sequence[str] = False,
        expect: Sequence[Expectation] = (),
        log: bool = False,
    ) -> View:
        """A named relation: the rows of `start`, taken through the steps one after another.

        refresh: when it takes in changes, `immediate()` (the default) or `deferred(every="1h")`, and how. target_lag:
        how far behind the present it is to be at most; how often it is, is measured (a policy with a `target_lag` says
        it already). warn_after, error_after: the lag past which somebody is to look, and past which it is not to be
        trusted: `freshet freshness` fails. lookup: whether its newest row of each key is kept to be looked up over
        HTTP: True for the key of the view, or the columns that are to be the key. expect: what is expected of its rows,
        such as `op.not_null("origin", severity="quarantine")`. log: whether its changes are kept in a change log, from
        which it can be told as it was at any moment (and looked up as of any, with `lookup`).
        """
        what = f"view {name!r}"
        self._new(name, what)
        relation = self._mine(start, f"{what}: the first input")
        if not steps:
            raise DefinitionError(f"{what} has no steps; expected at least one operator, such as op.project(...)")
        before, schema = self._rows(relation)
        made: list[Node] = []
        for i, step in enumerate(steps, 1):
            where = f"{what}, step {i}"
            if not isinstance(step, Operator):
                raise DefinitionError(
                    f"{where} is {step!r}; expected an operator, such as op.where(...) or op.window(...)"
                )
            where += f" ({step.name})"
            inputs, schemas = [before], [schema]
            for other in step.others:
                found = self._mine(other, f"{where}: its input")
                if step.versions:
                    if not isinstance(found, Source) or not found.table:
                        raise DefinitionError(
                            f"{where}: {found.name!r} is not a table; use op.join_asof, or declare it with p.table"
                        )
                    if set(step.keys[1]) != set(found.key):
                        raise DefinitionError(
                            f"{where}: the rows of table {found.name!r} are told apart by {', '.join(found.key)}, not "
                            f"by {', '.join(step.keys[1])}; join it on its key, right_on={list(found.key)!r}"
                        )
                    if f"{found.name}.meets" in self.declared:
                        raise DefinitionError(
                            f"{where}: table {found.name!r} has a quarantine, but a join finds versions of rows, not "
                            "rows; expect it of the view that joins it, or with severity='warn' or 'stop'"
                        )
                    inputs.append(found.name)
                    schemas.append(found.messages)
                else:
                    other_name, other_schema = self._rows(found)
                    inputs.append(other_name)
                    schemas.append(other_schema)
            try:
                schema = step.schema(schemas)
            except ValueError as error:
                raise DefinitionError(f"{where}: {error}") from None
            before = name if i == len(steps) else f"{name}.{i}"
            made.append(Node(before, step, tuple(inputs), schema))
        if reserved := [c for c in schema if c in OWN]:
            raise DefinitionError(f"{what}: the column {reserved[0]!r} is kept by the engine; rename yours")
        policy = immediate() if refresh is None else refresh
        self._check(name, policy, made)
        judged = expected(expect, schema, what)
        if quarantined(judged):
            made[-1] = replace(made[-1], name=f"{name}.{len(steps)}")
        key = tuple(relation.key)
        for step in steps:
            key = step.key(key)
        key = key if all(k in schema for k in key) else ()
        declared = _bounds(what, policy, target_lag, warn_after, error_after)
        view = View(name, schema, key, policy, declared, _lookup(lookup, key, schema, what), log)
        self.declared.update((n.name, n) for n in made)
        self.views[name] = view
        if judged:
            self._expect(what, name, made[-1].name, name, schema, view.key, judged)
        else:
            self._hold()
        return view

    def model(
        self,
        name: str,
        questions: View,
        *,
        answers: Relation,
        label: str,
        learner: Any,
        key: str | Sequence[str] | None = None,
        features: Sequence[str] | None = None,
        refresh: Policy | None = None,
        advance: Literal["answers", "questions"] = "answers",
        wait: str | timedelta = "7d",
        metric: Any = None,
        naive: bool = False,
        guards: Sequence[Guard] = (),
        warn_after: str | timedelta | None = None,
        error_after: str | timedelta | None = None,
        lookup: bool | str | Sequence[str] = False,
        expect: Sequence[Expectation] = (),
        audit: str | timedelta | None = None,
    ) -> Model:
        """A model that answers each row of `questions` once and learns from the `answers` when they come.

        label: the column of `answers` to predict. learner: a river classifier or regressor, or for a deferred model
        anything with fit and predict in the manner of scikit-learn. refresh: when and how it learns. key: the columns
        by which an answer finds its question (default: the key of `questions`). features: the columns that the learner
        sees (default: all but the key). advance: when unsupervised parts of a river pipeline learn: on answers (river's
        own order) or on questions. wait: how long after its `at` a question still waits for its answer. metric: a river
        metric or a list of them. naive: also report what learning each label at once, before it was known, would have
        claimed. guards: rules before and after inference, such as `guard.clip("sane", 0, 600)`.
        warn_after, error_after: as of a view, for the time since the newest example became known that the model has
        learnt. lookup: whether the newest prediction of each key can be looked up over HTTP, and the training set as of
        any time: True for the key, or some of its columns. expect: what is expected of predictions, with severity
        "warn" or "stop". audit: how often the features of a sample of questions are compared with what a recompute from
        the change logs of all sources gives (`freshet audit`), beside a run that follows.
        """
        what = f"model {name!r}"
        self._new(name, what)
        if not isinstance(questions, View):
            raise DefinitionError(f"{what}: questions is {questions!r}; expected a view")
        self._mine(questions, f"{what}: questions")
        replies = self._mine(answers, f"{what}: answers")
        reply_name, reply_schema = self._rows(replies)
        keys = as_names(key if key is not None else questions.key, f"{what}: the key")
        known(keys, questions.schema, f"{what}: the key")
        known(keys, reply_schema, f"{what}: the key in answers {replies.name!r}")
        known([label], reply_schema, f"{what}: the label in answers {replies.name!r}")
        chosen = tuple(features) if features is not None else tuple(c for c in questions.schema if c not in keys)
        known(chosen, questions.schema, f"{what}: features")
        policy = immediate() if refresh is None else refresh
        made_of = roots(self)[questions.name]
        spec = ModelSpec(
            name=name,
            key=keys,
            answer_key=keys,
            features=chosen,
            questions=questions.schema,
            answers=reply_schema,
            label=label,
            learner=learner,
            advance=advance,
            wait=microseconds(wait, f"{what}: wait"),
            metric=metric,
            naive=naive,
            guards=guards,
            sources=tuple(s for s in self.sources if s in made_of),
        )
        by = _lookup(lookup, keys, {k: questions.schema[k] for k in keys}, what)
        predictions = View(f"{name}.predictions", prediction_schema(spec), keys, lookup=by)
        check_model(spec, policy)
        training = View(f"{name}.training", training_schema(spec), keys, lookup=by)
        asked = expected(expect, predictions.schema, what)
        if aside := quarantined(asked):
            raise DefinitionError(
                f"{what}: {aside[0].name} has severity='quarantine', but a prediction is a fact once it is served; "
                "expected 'warn' or 'stop', or a guard, which acts before"
            )
        if aside := [e for e in asked if isinstance(e, Unique)]:
            raise DefinitionError(
                f"{what}: {aside[0].name} cannot be expected of predictions, of which there is one for each question; "
                "expect it of the questions"
            )
        if asked:
            self.expected[predictions.name] = Expected(
                f"predictions of {what}", predictions.name, predictions.schema, asked, {}
            )
        declared = _bounds(what, policy, None, warn_after, error_after)
        made = Model(
            name,
            spec,
            questions.name,
            reply_name,
            policy,
            predictions,
            training,
            declared,
            _audit(self, questions.name, audit, what),
        )
        self.models[name] = made
        self.views |= {predictions.name: predictions, training.name: training}
        return made

    def sink(self, name: str, *relations: View) -> Sink:
        """An output of the changes of the relations, which must have the same columns."""
        what = f"sink {name!r}"
        _name(name, what)
        if name in self.sinks or name in ("late", "dead_letters", "summary"):
            raise DefinitionError(f"{what}: the name is taken; choose another")
        if not relations:
            raise DefinitionError(f"{what} has nothing to write; expected at least one view")
        for r in relations:
            self._mine(r, f"{what}: its input")
            if not isinstance(r, View):
                raise DefinitionError(f"{what}: {r.name!r} is a source; expected a view")
            if r.schema != relations[0].schema:
                raise DefinitionError(
                    f"{what}: {r.name!r} has columns {list(r.schema)}, "
                    f"{relations[0].name!r} has {list(relations[0].schema)}; "
                    "relations of one sink need the same columns"
                )
        made = Sink(name, tuple(r.name for r in relations), relations[0].schema)
        self.sinks[name] = made
        return made

    def as_of(
        self, name: str, known: datetime | None = None, *, seq: int | None = None, state: str | Path
    ) -> pl.DataFrame:
        """A source, view or training set as it was with what was known at a time, or with the changes up to `seq`.

        state: where a run keeps its state, such as "state/flights". From its own change log, or recomputed from those
        of what it is made of. In the order of `_at` and `_pos`. Raises `DefinitionError` when neither is there,
        `LogError` when a log is damaged.
        """
        return past(self, Path(state), name, known, seq)

    def audit(self, model: str, *, state: str | Path, sample: int = SAMPLE) -> dict[str, Any]:
        """Whether features were served to a model as a recompute from the change logs gives them: see
        `engine.audit.audit`. `mismatches` must be 0.

        state: where a run keeps its state. sample: how many questions are looked at, at most. Raises `DefinitionError`
        when it cannot be audited, `LogError` when a log is damaged.
        """
        return run_audit(self, Path(state), model, sample)

    def replay(self, frames: Mapping[str, pl.DataFrame], batch_rows: int = 1000) -> dict[str, pl.DataFrame]:
        """The views and predictions that follow from these rows, by the same operators as in production.

        frames: for each source a frame with its columns (the order of rows is the order of arrival; those of a keyed
        source may have a Boolean `deleted`). Returns for each view and each model's predictions a frame, in the order
        of (at, position).
        """
        return replay(self, frames, batch_rows)
