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
from pathlib import Path
from typing import Any, Literal

import polars as pl

from engine.draw import drawing, svg
from engine.graph import DELETED, Graph, Model, Node, Sink, Source, View
from engine.guard import Guard
from engine.policy import Policy, check_model, immediate
from engine.replay import replay
from engine.spec import ModelSpec, prediction_schema, training_schema
from operators.delta import AT, POS, TIME, Schema, type_of
from operators.latest import latest
from operators.operator import DefinitionError, Operator, as_names, known, microseconds

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
        append_only: bool = True,
        erasable: bool = False,
        epoch: Mapping[str, Literal["s", "ms", "us"]] | None = None,
        required: Sequence[str] = (),
        between: tuple[str, str] = ("1980-01-01", "2100-01-01"),
    ) -> Source:
        """A stream of changes.

        key: what identifies a row. at: the Datetime column with the event time. schema: column to type (`int`, `float`,
        `str`, `bool`, `datetime` or a Polars type). lateness: how far behind the newest `at` of its partition a row may
        arrive and still count; later ones go to the late stream. idle_after: without a change for so long it no longer
        holds back the watermark of what depends on it. append_only=False: the key's newest change replaces its earlier
        ones and a delete takes it back. erasable: whether `freshet forget` can take rows of any age back from
        views, which then forget none; otherwise, in an append-only source, only those within the lateness. epoch: the
        unit of Datetime columns that arrive as numbers. required: columns that may not be null (key and `at` never
        are). between: the event times that are believed.
        """
        made = self._source(name, key, at, schema, lateness, idle_after, append_only, False, epoch, required, between)
        if erasable and not append_only:
            raise DefinitionError(
                f"source {name!r} is erasable and append_only=False: of a source with corrections any row can be taken "
                "back; leave erasable out"
            )
        self.sources[name] = made = replace(made, erasable=erasable)
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
    ) -> Source:
        """A keyed table: each change is the newest version of its key, or its deletion.

        Without `at` a version counts from when it became known; what is read before everything else counts from the
        beginning. `op.join` finds the version valid at a row's time; a view that starts from a table sees its newest
        versions.
        """
        return self._source(name, key, at, schema, lateness, None, False, True, epoch, required, between)

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
        """The node whose output is the relation's rows; a keyed source gets the step that keeps newest messages."""
        if isinstance(relation, View) or relation.append_only:
            return relation.name, relation.schema
        name = f"{relation.name}.latest"
        if name not in self.declared:
            step = latest(by=relation.key, order="at" if relation.table else "position")
            self.declared[name] = Node(name, step, (relation.name,), step.schema([relation.messages]))
            self._hold()
        return name, self.declared[name].schema

    def view(self, name: str, start: Relation, *steps: Operator, refresh: Policy | None = None) -> View:
        """A named relation: the rows of `start`, taken through the steps one after another.

        refresh: when it takes in changes, `immediate()` (the default) or `deferred(every="1h")`, and how.
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
        if reserved := [c for c in schema if c in (AT, POS)]:
            raise DefinitionError(f"{what}: the column {reserved[0]!r} is kept by the engine; rename yours")
        policy = immediate() if refresh is None else refresh
        self._check(name, policy, made)
        key = tuple(relation.key)
        for step in steps:
            key = step.key(key)
        view = View(name, schema, key if all(k in schema for k in key) else (), policy)
        self.declared.update((n.name, n) for n in made)
        self.views[name] = view
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
    ) -> Model:
        """A model that answers each row of `questions` once and learns from the `answers` when they come.

        label: the column of `answers` to predict. learner: a river classifier or regressor, or for a deferred model
        anything with fit and predict in the manner of scikit-learn. refresh: when and how it learns. key: the columns
        by which an answer finds its question (default: the key of `questions`). features: the columns that the learner
        sees (default: all but the key). advance: when unsupervised parts of a river pipeline learn: on answers (river's
        own order) or on questions. wait: how long after its `at` a question still waits for its answer. metric: a river
        metric or a list of them. naive: also report what learning each label at once, before it was known, would have
        claimed. guards: rules before and after inference, such as `guard.clip("sane", 0, 600)`.
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
        )
        predictions = View(f"{name}.predictions", prediction_schema(spec), keys)
        check_model(spec, policy)
        training = View(f"{name}.training", training_schema(spec), keys)
        made = Model(name, spec, questions.name, reply_name, policy, predictions, training)
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

    def replay(self, frames: Mapping[str, pl.DataFrame], batch_rows: int = 1000) -> dict[str, pl.DataFrame]:
        """The views and predictions that follow from these rows, by the same operators as in production.

        frames: for each source a frame with its columns (the order of rows is the order of arrival; those of a keyed
        source may have a Boolean `deleted`). Returns for each view and each model's predictions a frame, in the order
        of (at, position).
        """
        return replay(self, frames, batch_rows)
