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
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import polars as pl

from engine.audit import SAMPLE
from engine.audit import audit as run_audit
from engine.draw import drawing, svg
from engine.freshness import Bounds
from engine.graph import AS_OF, DELETED, Expected, Graph, Model, Node, Sink, Source, View
from engine.guard import Guard
from engine.learnt import read
from engine.log import OWN
from engine.past import needed, past
from engine.plan import roots
from engine.policy import Policy, check_model, duration, immediate
from engine.replay import replay
from engine.spec import ModelSpec, prediction_schema, training_schema
from engine.taint import ASIDE, SUSPECT, Marked, judged, live, marked, taken
from operators.delta import BOOL, INT, STRING, TIME, Schema, type_of
from operators.expectation import REASON, Expectation, Release, chain, expected, met, quarantined, reason
from operators.join_label import join_label, unanswered
from operators.latest import latest
from operators.learned import EVERY, Learned, Ranges
from operators.operator import CLOCK, DefinitionError, Named, Operator, as_names, fit_as_key, known, microseconds
from operators.project import Project, project
from operators.union import union
from operators.where import where

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_NEVER = timedelta(days=36_500)
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


def _something(asked: Sequence[Expectation], taint: bool, what: str) -> None:
    if taint and not asked:
        raise DefinitionError(
            f"{what} has taint=True, but nothing is expected of its rows, so none is suspect; declare expect=[...]"
        )


def _behind(before: str, given: Schema, steps: Sequence[tuple[str, Operator]]) -> list[Node]:
    """Nodes of these names, one behind another."""
    made = list[Node]()
    for name, operator in steps:
        given = operator.schema([given, *(o.schema for o in operator.others)])
        made.append(Node(name, operator, (before, *(o.name for o in operator.others)), given))
        before = name
    return made


def _and_aside(name: str, beside: str, wide: Schema, whole: str, whole_schema: Schema) -> list[Node]:
    """The nodes from rows with hidden columns, `beside`, to these and those of a whole that were put aside before."""
    if ASIDE not in whole_schema:
        return []
    hidden = {n: pl.lit(None, t) for n, t in wide.items() if n not in whole_schema}
    made = _behind(
        whole, whole_schema, [(f"{name}.aside", where(pl.col(ASIDE))), (f"{name}.aside-wide", Project((), hidden))]
    )
    aside = Named(made[-1].name, made[-1].schema)
    steps = [(f"{name}.beside-there", Project((), {ASIDE: pl.lit(False)})), (f"{name}.beside", union(aside))]
    return [*made, *_behind(beside, wide, steps)]


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
    learned: the file of the bounds that `freshet calibrate` finds, such as `Path(__file__).with_name("learned.json")`.
    """

    def __init__(
        self, name: str, prepare: Callable[[Path], object] | None = None, learned: str | Path | None = None
    ) -> None:
        super().__init__(_name(name, "a pipeline"))
        self.prepare = prepare
        self.learned = None if learned is None else Path(learned)
        self._learnt = {} if self.learned is None else read(self.learned)

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
        release: Release | None = None,
        taint: bool = False,
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
        reads them: `op.between("amount", 0, 10_000, severity="quarantine")`. release: what lets rows that were put
        aside in all the same: `op.release(approved, within="7d")`. taint: whether what stands on rows that do not meet
        it is marked, in a column `suspect`. log: whether its changes are kept in a change log; with those of all its
        sources any view can be told as it was at any moment.
        """
        made = self._source(name, key, at, schema, lateness, idle_after, append_only, False, epoch, required, between)
        if erasable and not append_only:
            raise DefinitionError(
                f"source {name!r} is erasable and append_only=False: of a source with corrections any row can be taken "
                "back; leave erasable out"
            )
        pulse = None if heartbeat is None else microseconds(heartbeat, f"source {name!r}: heartbeat")
        self.sources[name] = made = replace(made, erasable=erasable, heartbeat=pulse, log=log)
        self._expect_of(made, expect, release, taint)
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
        release: Release | None = None,
        taint: bool = False,
        log: bool = False,
    ) -> Source:
        """A keyed table: each change is the newest version of its key, or its deletion.

        Without `at` a version counts from when it became known; what is read before everything else counts from the
        beginning. `op.join` finds the version valid at a row's time; a view that starts from a table sees its newest
        versions. expect, release, taint: what is expected of these, log: whether its changes are kept, see `source`.
        """
        made = self._source(name, key, at, schema, lateness, None, False, True, epoch, required, between)
        self.sources[name] = made = replace(made, log=log)
        self._expect_of(made, expect, release, taint)
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
            return meets, self.declared[meets].schema
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

    def _marked(self, node: str) -> Marked | None:
        """The relation whose rows this node gives, if it is marked."""
        if (whole := self.marks.get(node)) is None:
            return None
        return Marked(node, self.declared[node].schema, whole, self.declared[whole].schema)

    def _expected(
        self, given: object, schema: Schema, relation: str, what: str, release: Release | None
    ) -> tuple[Expectation, ...]:
        """What is expected of a relation, with the bounds that were learnt."""
        made = list[Expectation]()
        for e in expected(given, schema, what, release):
            if isinstance(e, Learned):
                if self.learned is None:
                    raise DefinitionError(
                        f"{what}: {e.name} is learned, but the pipeline names no file for what is learnt; declare "
                        'Pipeline(..., learned=Path(__file__).with_name("learned.json"))'
                    )
                found = self._learnt.get(f"{relation}: {e.name}")
                e = e.learnt(found.bounds) if found is not None and found.asked == e.asked else e
            made.append(e)
        return tuple(made)

    def _expect_of(self, source: Source, expect: object, release: Release | None, taint: bool) -> None:
        """Let something be expected of the rows of a source."""
        what = f"{'table' if source.table else 'source'} {source.name!r}"
        found = self._expected(expect, source.schema, source.name, what, release)
        _something(found, taint, what)
        if not found:
            return
        if taint and SUSPECT in source.schema:
            raise DefinitionError(f"{what}: {taken()}")
        rows, schema = self._messages_as_rows(source)
        whole = (rows, schema) if taint else None
        self._expect(what, source.name, rows, f"{source.name}.meets", schema, source.key, found, release, whole)

    def _expect(
        self,
        what: str,
        name: str,
        rows: str,
        meets: str,
        schema: Schema,
        key: tuple[str, ...],
        expectations: tuple[Expectation, ...],
        release: Release | None,
        whole: tuple[str, Schema] | None,
    ) -> None:
        """Let something be expected of the rows of a node; of what puts rows aside follow two relations.

        meets: the node of the rows that are not put aside. The quarantine is a view. whole: the node, with its columns,
        of what is to be marked.
        """
        made, beside, wide = list[Node](), rows, schema
        for i, step in enumerate(chain(expectations), 1):
            made.append(Node(f"{name}.beside-{i}", step, (beside,), wide := step.schema([wide])))
            beside = made[-1].name
        self.expected[name] = Expected(what, rows, beside, wide, expectations)
        if whole is not None and release is not None:
            raise DefinitionError(
                f"{what}: release lets in rows that do not meet what is expected, but here rows are marked; expected "
                "one of the two: leave out release or taint=True, or release them where nothing is marked yet"
            )
        if whole is not None:
            if beside != rows:
                made += _and_aside(name, beside, wide, *whole)
                whole = made[-1].name, made[-1].schema
            made += self._marks(name, meets, schema, expectations, whole)
        if aside := quarantined(expectations):
            fails, quarantine, good = f"{name}.fails", f"{name}.quarantine", met(aside)
            line: list[Operator] = [where(good)]
            if release is None:
                made.append(Node(fails, where(~good), (beside,), wide))
            else:
                bad = Node(f"{name}.bad", where(~good), (beside,), wide)
                made += [bad, *self._approved(what, bad, f"{name}.approved", fails, key, release)]
                line.append(union(Named(f"{name}.approved", wide)))
            if beside != rows:
                line.append(project(*schema))
            if whole is None:
                names = [*(f"{name}.good-{i}" for i in range(1, len(line))), meets]
                made += _behind(beside, wide, list(zip(names, line, strict=True)))
            plain = [c for c in schema if whole is None or c != SUSPECT]
            told = project(*([] if list(wide) == plain else plain), **{REASON: reason(aside)})
            made.append(Node(quarantine, told, (fails,), told.schema([wide])))
            self.views[quarantine] = View(quarantine, made[-1].schema, key)
        self.declared.update((n.name, n) for n in made)
        self._hold()

    def _marks(
        self, name: str, meets: str, schema: Schema, expectations: Sequence[Expectation], given: tuple[str, Schema]
    ) -> list[Node]:
        """The nodes from what is judged to the rows that are not put aside, marked."""
        step = judged(expectations, given[1], list(schema))
        there = live(step.schema([given[1]]))
        made = _behind(*given, [(f"{name}.whole" if there else meets, step)])
        made += _behind(made[0].name, made[0].schema, [*zip((f"{name}.there", meets), there, strict=False)])
        self.marks[meets] = made[0].name
        return made

    def _approved(
        self, what: str, bad: Node, approved: str, rest: str, key: tuple[str, ...], release: Release
    ) -> list[Node]:
        """Of rows that are to be put aside the nodes of those that are approved, and of the rest."""
        if not key:
            raise DefinitionError(
                f"{what}: release is given, but its rows have no key any more by which to approve one"
            )
        given = self._mine(release.approved, f"{what}: release")
        name, schema = self._rows(given)
        found = Named(name, schema)
        try:
            steps = (
                join_label(found, on=key, right_on=release.on or key, columns=[], wait=release.within),
                unanswered(found, on=key, right_on=release.on or key, wait=release.within),
            )
            return [
                Node(n, step, (bad.name, name), step.schema([bad.schema, schema]))
                for n, step in zip((approved, rest), steps, strict=True)
            ]
        except DefinitionError as error:
            raise DefinitionError(f"{what}: release by {given.name!r}: {error}") from None

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

    def gaps(self, relation: Relation, expectation: Learned) -> dict[str, Any]:
        """How long is no silence, as learnt: `op.silence(by="meter", **p.gaps(readings, gap))`, where the rows of
        `readings` are expected to meet `gap = op.jump("at", by="meter")`, the time since the row before.

        Until it is learnt, without which no run begins, nothing is silent. Raises `DefinitionError` when the relation
        is not expected to meet it, or its key is not one column of texts or integers.
        """
        mine = self._mine(relation, "gaps: the relation")
        told = self.expected.get(mine.name)
        found = next((e for e in (told.expectations if told else ()) if e.name == expectation.name), None)
        if not isinstance(found, Learned) or found.asked != expectation.asked:
            raise DefinitionError(
                f"gaps: {mine.name!r} is not expected to meet {expectation.name}; expected that which was declared "
                "there with expect=[...]"
            )
        if len(found.by) > 1 or mine.schema[found.by[0]] not in (STRING, INT):
            raise DefinitionError(
                f"gaps: the key of {found.name} is {', '.join(found.by)}; expected one column of texts or integers"
            )
        kind = int if mine.schema[found.by[0]] == INT else str
        learnt = found.bounds or Ranges({}, EVERY)
        longest = {group: most for group, (_, most) in learnt.groups.items() if group != "null"}
        after = {kind(group): timedelta(microseconds=most) for group, most in longest.items() if isfinite(most)}
        most = learnt.rest[1]
        return {"after": after, "default": timedelta(microseconds=most) if isfinite(most) else _NEVER}

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
        release: Release | None = None,
        taint: bool = False,
        log: bool = False,
    ) -> View:
        """A named relation: the rows of `start`, taken through the steps one after another.

        refresh: when it takes in changes, `immediate()` (the default) or `deferred(every="1h")`, and how. target_lag:
        how far behind the present it is to be at most; how often it is, is measured (a policy with a `target_lag` says
        it already). warn_after, error_after: the lag past which somebody is to look, and past which it is not to be
        trusted: `freshet freshness` fails. lookup: whether its newest row of each key is kept to be looked up over
        HTTP: True for the key of the view, or the columns that are to be the key. expect: what is expected of its rows,
        such as `op.not_null("origin", severity="quarantine")`. release: what lets rows that were put aside in all the
        same: `op.release(approved, within="7d")`. taint: whether rows that do not meet it, and what stands on them, are
        marked, as they are anyway when something that it stands on is marked. log: whether its changes are kept in a
        change log, from which it can be told as it was at any moment (and looked up as of any, with `lookup`).
        """
        what = f"view {name!r}"
        self._new(name, what)
        relation = self._mine(start, f"{what}: the first input")
        if not steps:
            raise DefinitionError(f"{what} has no steps; expected at least one operator, such as op.project(...)")
        before, schema = self._rows(relation)
        given, marks = schema, (found := self._marked(before)) is not None
        if found is not None:
            before, given = found.whole, found.whole_schema
        made: list[Node] = []
        clock, clock_of = f"{name}.clock", [before]
        for i, step in enumerate(steps, 1):
            where = f"{what}, step {i}"
            if not isinstance(step, Operator):
                raise DefinitionError(
                    f"{where} is {step!r}; expected an operator, such as op.where(...) or op.window(...)"
                )
            where += f" ({step.name})"
            others = [self._other(o, step, where) for o in step.others]
            right = next((m for node, _ in others if (m := self._marked(node)) is not None), None)
            if right is not None and not marks and SUSPECT in schema:
                raise DefinitionError(f"{where}: {taken()}")
            marks |= right is not None
            clock_of += [] if step.outer else [node for node, _ in others]
            if step.timed:
                others.append((clock, CLOCK))
            try:
                hidden = () if right is None else (SUSPECT,)
                schema = step.schema([schema, *({n: t for n, t in s.items() if n not in hidden} for _, s in others)])
                done = marked(step, given, right) if marks else [step]
            except ValueError as error:
                raise DefinitionError(f"{where}: {error}") from None
            if marks:
                schema = {**{n: t for n, t in schema.items() if n != SUSPECT}, SUSPECT: BOOL}
            known_as = {o.name: node for o, (node, _) in zip(step.others, others, strict=False)}
            columns = dict(others) | ({} if right is None else {right.whole: right.whole_schema})
            for j, one in enumerate(done, 1):
                inputs = [*(known_as.get(o.name, o.name) for o in one.others), *([clock] if one.timed else [])]
                given = one.schema([given, *(columns[n] for n in inputs)])
                made.append(Node(f"{name}.{i}" + f"-{j}" * (len(done) > 1), one, (before, *inputs), given))
                before = made[-1].name
        if reserved := [c for c in schema if c in OWN]:
            raise DefinitionError(f"{what}: the column {reserved[0]!r} is kept by the engine; rename yours")
        policy = immediate() if refresh is None else refresh
        self._check(name, policy, made)
        asked = self._expected(expect, schema, name, what, release)
        _something(asked, taint, what)
        if taint and not marks and SUSPECT in schema:
            raise DefinitionError(f"{what}: {taken()}")
        there = live(given)
        if not there and not quarantined(asked) and not (asked and (marks or taint)):
            made[-1] = replace(made[-1], name=name)
        end = made[-1].name
        made += _behind(end, given, [*zip((f"{name}.live", f"{name}.rows" if asked else name), there, strict=False)])
        key = tuple(relation.key)
        for step in steps:
            key = step.key(key)
        key = key if all(k in schema for k in key) else ()
        declared = _bounds(what, policy, target_lag, warn_after, error_after)
        view = View(name, made[-1].schema, key, policy, declared, _lookup(lookup, key, schema, what), log)
        if any(step.timed for step in steps):
            self.clocks[clock] = tuple(clock_of)
        if marks and not asked:
            self.marks[name] = end
        self.ends[name] = end
        self.declared.update((n.name, n) for n in made)
        self.views[name] = view
        if asked:
            whole = (end, given) if marks or taint else None
            self._expect(what, name, made[-1].name, name, made[-1].schema, view.key, asked, release, whole)
            view.schema = self.declared[name].schema
        else:
            self._hold()
        return view

    def _other(self, relation: object, step: Operator, where: str) -> tuple[str, Schema]:
        """The node that a step reads of a further input, with its columns."""
        found = self._mine(relation, f"{where}: its input")
        if not step.versions:
            return self._rows(found)
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
            has = "a quarantine" if f"{found.name}.quarantine" in self.views else "taint=True"
            raise DefinitionError(
                f"{where}: table {found.name!r} has {has}, but a join finds versions of rows, not "
                "rows; expect it of the view that joins it, or with severity='warn' or 'stop'"
            )
        return found.name, found.messages

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
        training_expect: Sequence[Expectation] = (),
        audit: str | timedelta | None = None,
    ) -> Model:
        """A model that answers each row of `questions` once and learns from the `answers` when they come.

        label: the column of `answers` to predict. learner: a river classifier or regressor, or for a deferred model
        anything with fit and predict in the manner of scikit-learn. refresh: when and how it learns. key: the columns
        by which an answer finds its question (default: the key of `questions`). features: the columns that the learner
        sees (default: all but the key, and `suspect` where questions are marked). advance: when unsupervised parts of
        a river pipeline learn: on answers (river's own order) or on questions. wait: how long after its `at` a question
        still waits for its answer. metric: a river metric or a list of them. naive: also report what learning each
        label at once, before it was known, would have claimed. guards: rules before and after inference, such as
        `guard.clip("sane", 0, 600)`.
        warn_after, error_after: as of a view, for the time since the newest example became known that the model has
        learnt. lookup: whether the newest prediction of each key can be looked up over HTTP, and the training set as of
        any time: True for the key, or some of its columns. expect: what is expected of predictions, with severity
        "warn" or "stop"; training_expect: of the training set. audit: how often the features of a sample of questions
        are compared with what a recompute from the change logs of all sources gives (`freshet audit`), beside a run
        that follows.
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
        marks = questions.name in self.marks
        seen = [c for c in questions.schema if c not in keys and not (marks and c == SUSPECT)]
        chosen = tuple(features) if features is not None else tuple(seen)
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
            marked=marks,
        )
        by = _lookup(lookup, keys, {k: questions.schema[k] for k in keys}, what)
        predictions = View(f"{name}.predictions", prediction_schema(spec), keys, lookup=by)
        check_model(spec, policy)
        training = View(f"{name}.training", training_schema(spec), keys, lookup=by)
        for kind, view, given in (("predictions", predictions, expect), ("training set", training, training_expect)):
            self._expect_of_model(f"{kind} of {what}", view, given)
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

    def _expect_of_model(self, what: str, view: View, expect: object) -> None:
        """Let something be expected of what a model makes."""
        asked = expected(expect, view.schema, what)
        if aside := quarantined(asked):
            raise DefinitionError(
                f"{what}: {aside[0].name} has severity='quarantine', but what was served is a fact; expected 'warn' or "
                "'stop', a guard, which acts before, or to put questions or answers aside"
            )
        if beside := [e for e in asked if e.chain or isinstance(e, Learned)]:
            raise DefinitionError(
                f"{what}: {beside[0].name} compares rows, which cannot be expected of what comes when all steps are "
                "done; expect it of the questions, or of the answers"
            )
        if asked:
            self.expected[view.name] = Expected(what, view.name, view.name, view.schema, asked)

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
