"""Taint: what stands on suspect rows is marked.

A row is *suspect* when it does not meet an expectation of its relation, when a row that it was made of is suspect, or
when a row that it would have been made of was put aside. A relation that is *marked* says so in a Boolean column,
`suspect`.

| a row of                        | is suspect as                                                                    |
| ------------------------------- | -------------------------------------------------------------------------------- |
| where, project, dedupe, latest  | the row that it was                                                              |
| window                          | any row of its key within the greatest size that is not after it, aside or not   |
| previous                        | the row that it was; and the row before, or one aside that would have been that  |
| runs                            | any row of its run, and any that has one aside before it                         |
| aggregate                       | any row of its key, aside or not                                                 |
| join_asof, join_label           | the row that it was; and the row found, or one aside that would have been found  |
| join                            | the row that it was: versions of a table are not marked                          |

So a step of a view becomes a few steps, all of them operators under the laws: late rows, corrections, deferral,
restarts and forgetting need no care. As long as rows that are aside matter they go with the others, marked in a column
`_aside`: the *whole* of a relation is its rows and those. They take part in no result. They have no value in the
columns for which they were put aside, and a condition that is null for them leaves none out. They end where rows of a
key become one (aggregate, latest), so a key all of whose rows are aside is not missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import reduce
from operator import or_

import polars as pl

from operators.aggregate import Aggregate
from operators.dedupe import Dedupe
from operators.delta import Schema
from operators.expectation import Expectation, met, quarantined
from operators.join import Join
from operators.join_asof import JoinAsof
from operators.join_label import JoinLabel
from operators.joining import Joined
from operators.latest import Latest
from operators.operator import DefinitionError, Named, Operator
from operators.previous import Previous
from operators.project import Project
from operators.reduction import maximum
from operators.runs import Runs
from operators.where import Where
from operators.window import FOREVER, Window

SUSPECT = "suspect"
"""The column of a marked relation that says whether a row is suspect."""

ASIDE = "_aside"
"""The column of the whole of a relation that says whether a row was put aside."""

_SAY = {Aggregate, Dedupe, Join, JoinAsof, JoinLabel, Latest, Previous, Project, Runs, Where, Window}
"""The operators of which it is known what becomes of marks; of what is derived from them it is not."""

_MADE, _FOUND, _ALIKE = "_suspect", "_found", "_alike"


@dataclass(frozen=True)
class Marked:
    """A marked relation: the node of its rows, and the node of its whole, the same when no row can be aside."""

    node: str
    schema: Schema
    whole: str
    whole_schema: Schema


def live(whole: Schema) -> list[Operator]:
    """The steps from a whole to the rows of the relation."""
    if ASIDE not in whole:
        return []
    return [Where(~pl.col(ASIDE)), Project(tuple(n for n in whole if n != ASIDE), {})]


def judged(expectations: Sequence[Expectation], given: Schema, columns: Sequence[str]) -> Operator:
    """The step from rows that are judged, or a whole, to the whole of their relation. columns: those of its rows."""
    bad = [pl.col(c) for c in (SUSPECT,) if c in given]
    made = {SUSPECT: reduce(or_, [*bad, ~met(expectations)])}
    aside = quarantined(expectations)
    if aside or ASIDE in given:
        gone = [pl.col(c) for c in (ASIDE,) if c in given]
        made[ASIDE] = reduce(or_, [*gone, ~met(aside)] if aside else gone)
    for column in columns:
        if reading := [e for e in aside if column in e.columns]:
            made[column] = pl.when(met(reading)).then(pl.col(column))
    return Project(tuple(n for n in columns if n != SUSPECT), made)


def marked(step: Operator, given: Schema, right: Marked | None) -> list[Operator]:
    """The steps that do on a whole, or on rows without marks, what `step` does on rows, and mark what comes out.

    given: the columns. right: the further input of the step, if that is marked. Raises `DefinitionError` for an
    operator of which it is not known what becomes of marks, and for one that makes a column of that name itself.
    """
    if type(step) not in _SAY:
        raise DefinitionError(
            f"op.{step.name} does not say what becomes of suspect rows; use it where none are, or leave out taint=True"
        )
    marks = [c for c in (SUSPECT, ASIDE) if c in given]
    if isinstance(step, Project):
        if SUSPECT in step.columns:
            raise taken()
        return [replace(step, names=tuple(dict.fromkeys((*step.names, *marks))))] if step.names else [step]
    if isinstance(step, Where):
        unknown = pl.col(ASIDE) & step.condition.is_null()
        return [replace(step, condition=step.condition | unknown)] if ASIDE in given else [step]
    if isinstance(step, Dedupe):
        return [replace(step, by=_apart(step.by, given))]
    if isinstance(step, Latest):
        return [*live(given), step]
    if isinstance(step, Window):
        return _window(step, given)
    if isinstance(step, Previous):
        return _previous(step, given)
    if isinstance(step, Runs):
        return _runs(step, given)
    if isinstance(step, Aggregate):
        return _aggregate(step, given)
    if isinstance(step, Joined) and right is not None and not isinstance(step, Join):
        return _joined(step, given, right)
    return [step]


def taken() -> DefinitionError:
    """The error of a column that has the name of marks."""
    return DefinitionError(f"the column {SUSPECT!r} says here which rows are suspect; give the new one another name")


def _window(step: Window, given: Schema) -> list[Operator]:
    made, reductions, names = list[Operator](), step.reductions, [n for n, _ in step.reductions]
    if ASIDE in given:
        only = {c: f"_only({c})" for c in dict.fromkeys(r.column or ASIDE for _, r in reductions)}
        made.append(Project((), {n: pl.when(~pl.col(ASIDE)).then(pl.col(c)) for c, n in only.items()}))
        reductions = tuple((n, replace(r, column=only[r.column or ASIDE])) for n, r in reductions)
    sizes = [step.microseconds(n, r) for n, r in step.reductions]
    known = [s for s in sizes if s is not None]
    size = FOREVER if len(known) < len(sizes) else timedelta(microseconds=max(known))
    mark = (_MADE, maximum(SUSPECT, size=size))
    kept = (*(n for n in given if n != SUSPECT), *names)
    return [
        *made,
        replace(step, reductions=(*reductions, mark)),
        Project(kept, {SUSPECT: pl.col(_MADE)}),
    ]


def _apart(by: tuple[str, ...], given: Schema) -> tuple[str, ...]:
    """A key by which rows that are aside do not meet the others."""
    return (*by, ASIDE) if ASIDE in given else by


def _previous(step: Previous, given: Schema) -> list[Operator]:
    """Of the rows that are not aside the columns, of all the mark."""
    steps = [
        replace(step, by=_apart(step.by, given)),
        replace(step, columns=((_FOUND, SUSPECT),), at=None),
    ]
    added = [*(new for new, _ in step.columns), *(() if step.at is None else (step.at,))]
    kept = (*(n for n in given if n != SUSPECT), *added)
    return [*steps, Project(kept, {SUSPECT: pl.col(SUSPECT) | pl.col(_FOUND).fill_null(False)})]


def _runs(step: Runs, given: Schema) -> list[Operator]:
    """A row of which the run of equal values and marks is not the whole run of equal values has a suspect one in it."""
    made, apart = list[Operator](), _apart(step.by, given)
    if ASIDE in given:
        made.append(Previous(step.by, ((_FOUND, ASIDE),), None, None))
        made.append(Project((), {SUSPECT: pl.col(SUSPECT) | pl.col(_FOUND).fill_null(False)}))
    values = step.run or _MADE
    made.append(replace(step, by=apart, run=values))
    made.append(Runs(apart, (*step.of, SUSPECT), _ALIKE, None))
    kept = (*(n for n in given if n != SUSPECT), *(n for n in (step.run, step.since) if n is not None))
    return [*made, Project(kept, {SUSPECT: pl.col(SUSPECT) | (pl.col(values) != pl.col(_ALIKE))})]


def _aggregate(step: Aggregate, given: Schema) -> list[Operator]:
    names = [n for n, _ in step.reductions]
    if SUSPECT in names:
        raise taken()
    aside = ASIDE if ASIDE in given else None
    found = [pl.col(c) for c in (_MADE, ASIDE)][: 2 if aside else 1]
    return [
        replace(step, reductions=(*step.reductions, (_MADE, maximum(SUSPECT))), aside=aside),
        Project((*(n for n in step.by if n != SUSPECT), *names), {SUSPECT: reduce(or_, found)}),
    ]


def _joined(step: Joined, given: Schema, right: Marked) -> list[Operator]:
    """Of the rows of the right input its columns, of its whole the mark."""
    plain = {n: t for n, t in right.schema.items() if n != SUSPECT}
    chosen, found = step.chosen([given, plain]), ((_FOUND, SUSPECT),)
    rows, whole = Named(right.node, right.schema), Named(right.whole, right.whole_schema)
    if rows == whole:
        steps = [replace(step, right=rows, columns=(*chosen, *found))]
    else:
        steps = [replace(step, right=rows, columns=chosen), replace(step, right=whole, columns=found)]
    own = [pl.col(SUSPECT)] if SUSPECT in given else []
    kept = (*(n for n in given if n != SUSPECT), *(new for new, _ in chosen))
    return [*steps, Project(kept, {SUSPECT: reduce(or_, [*own, pl.col(_FOUND).fill_null(False)])})]
