"""The contract of an operator: one definition, kept in two ways that must agree.

An `Operator` is what the user declares: immutable, without data. It says

- `schema(inputs)`: the columns of its result, or an error that names what does not fit;
- `recompute(relations)`: the result from scratch, as a Polars query over whole relations. This *is* its meaning;
- `start(inputs)`: a `Maintained`, which keeps the same result incrementally: `apply(deltas)`.

The laws, tested for every operator found in the catalogue: after any sequence of deltas, the accumulated output of
`apply` equals `recompute` of the accumulated input; how the input was cut into deltas does not show; retracting
everything leaves nothing; `snapshot` and `restore` do not show; the order of arrival does not show.
"""

from __future__ import annotations

import abc
import difflib
import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import polars as pl

from operators.delta import BEGINNING, FLOAT, TIME, Delta, Schema

CLOCK: Schema = {"now": TIME}
"""The columns of a clock: a relation whose greatest `now` is the time that it is."""


class DefinitionError(ValueError):
    """A pipeline, view or operator that cannot work as declared; the text says why and what to do."""


@runtime_checkable
class Relation(Protocol):
    """Anything with a name and columns that an operator can take as a further input: a source or a view."""

    @property
    def name(self) -> str: ...

    @property
    def schema(self) -> Schema: ...


class Operator(abc.ABC):
    """What one step of a view means."""

    versions: ClassVar[bool] = False
    """Whether its further inputs are tables as streams of versions, with a Boolean column `deleted`."""

    outer: ClassVar[bool] = False
    """Whether its rows are those of the first input, to which the others add columns only."""

    timed: ClassVar[bool] = False
    """Whether its last input, behind `others`, is a clock: that of the rows of the first, given by the pipeline."""

    @property
    def name(self) -> str:
        """The word the user wrote: the class name in snake case."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def forgets(self) -> bool:
        """Whether it lets go of what could still change its result, which then depends on when that was."""
        return False

    @property
    def reach(self) -> int | None:
        """How far back, in microseconds, the rows of the first input lie that a row of the result is made of.

        Those of the result with `at` from a to b are made of those with `at` from a - reach to b, and of all of the
        other inputs. None: that cannot be said.
        """
        return None

    @property
    def others(self) -> tuple[Relation, ...]:
        """The inputs beside the first, in the order in which `apply` takes their deltas."""
        return ()

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        """For each input the columns by which its rows meet, () for one that every row meets; () when every row stands
        alone."""
        return ()

    @property
    @abc.abstractmethod
    def definition(self) -> dict[str, Any]:
        """The parameters as JSON values: what must not change while state of this operator is kept."""

    @abc.abstractmethod
    def schema(self, inputs: Sequence[Schema]) -> Schema:
        """The columns of the result. Raises `DefinitionError`."""

    def key(self, key: tuple[str, ...]) -> tuple[str, ...]:
        """What tells the rows of the result apart, when `key` does it with those of the first input."""
        return key

    def horizon(self, bound: int, inserts: bool = False) -> int:
        """Below which event time the result changes no more when no input row with `at` below `bound` comes any more.

        Less than `bound` for an operator that adds or takes back rows older than the rows that make it do so. inserts:
        below which no row is added, whatever is taken back.
        """
        return bound

    @abc.abstractmethod
    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        """The result from scratch. Relations carry `_at` and `_pos` beside their columns; so must the result."""

    @abc.abstractmethod
    def start(self, inputs: Sequence[Schema]) -> Maintained:
        """Begin to keep the result."""


class Maintained(abc.ABC):
    """The result of an operator kept incrementally: the state, and how a change moves it."""

    @abc.abstractmethod
    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        """The change of the result that follows from one delta per input (empty ones included), in order of `seq`.

        No row with `at` below `horizon` will come any more at any input, now or later; state that only such rows
        could ask for may be forgotten. A row is first emitted as it was known: what arrives behind a row of its
        own key corrects it by a retraction and an insert, even within one delta.
        Not called when all deltas are empty.
        """

    def snapshot(self) -> Any:
        """All state, as something that can be pickled; not changed by a later `apply` once it is pickled."""
        return None

    def restore(self, state: Any) -> None:
        """Take over the state that `snapshot` gave. Called at most once, before the first `apply`."""

    @property
    def size(self) -> tuple[int, int]:
        """(keys held, bytes held), approximately."""
        return 0, 0


_UNITS = {"us": 1, "ms": 10**3, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6, "w": 604800 * 10**6}


def microseconds(duration: str | timedelta, what: str = "a duration") -> int:
    """A duration such as "90s", "1h", "1h30m", "7d" or a timedelta, in microseconds (0 or more).

    Raises `DefinitionError` naming `what` when it is not one.
    """
    if isinstance(duration, timedelta):
        n = duration // timedelta(microseconds=1)
    elif isinstance(duration, str) and re.fullmatch(r"(\d+(us|ms|s|m|h|d|w))+", duration):
        n = sum(int(k) * _UNITS[u] for k, u in re.findall(r"(\d+)(us|ms|s|m|h|d|w)", duration))
    else:
        raise DefinitionError(
            f"{what} is {duration!r}: expected a timedelta or text such as '90s', '30m', '1h30m', '7d'"
        )
    if n < 0:
        raise DefinitionError(f"{what} is {duration!r}: expected a duration of 0 or more")
    return n


def as_names(names: str | Sequence[str], what: str) -> tuple[str, ...]:
    """One column name or several as a tuple. Raises `DefinitionError` when there is none or one is repeated."""
    found = (names,) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
    if not found or len(set(found)) < len(found) or not all(isinstance(n, str) for n in found):
        raise DefinitionError(f"{what} is {names!r}: expected one column name or several different ones")
    return found


def known(names: Sequence[str], schema: Schema, what: str) -> None:
    """Raises `DefinitionError` when a name is not a column, with the closest one that is."""
    for n in names:
        if n not in schema:
            close = difflib.get_close_matches(n, schema, 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise DefinitionError(f"{what}: no column {n!r}{hint} Known columns: {', '.join(schema)}")


def fit_as_key(by: Sequence[str], schema: Schema, what: str) -> None:
    """Raises `DefinitionError` naming `what` when a column of a key is not there, or holds floats."""
    known(by, schema, what)
    for n in by:
        if schema[n] == FLOAT:
            raise DefinitionError(
                f"{what}: {n!r} has type Float64; expected Int64, String, Boolean or Datetime: "
                "floats that look alike may differ, so round it or cast it first"
            )


def new_columns(schema: Schema, added: Schema, what: str) -> Schema:
    """`schema` with columns added. Raises `DefinitionError` when a name is taken."""
    if taken := [n for n in added if n in schema]:
        raise DefinitionError(f"{what}: the column {taken[0]!r} is there already; give the new one another name")
    return {**schema, **added}


class Named(NamedTuple):
    """The least that an operator needs to know of a further input: a name and columns."""

    name: str
    schema: Schema
