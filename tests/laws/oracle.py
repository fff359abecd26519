"""DuckDB as the independent oracle: for each operator one SQL query over the final base rows.

The inputs are tables r0, r1, ... with their columns and `_at`, `_pos`; times are microseconds (BIGINT). A query gives
the columns of the result and `_at`, `_pos`. It is found by the operator's class and written from the operator's
documented meaning, not from its code. SQL does not round a sum of floats once: where that is claimed a query gives the
list of the values, or {'mean': list}, and Python sums exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import duckdb
import polars as pl

from operators.delta import BOOL, FLOAT, INT, STRING, Schema
from tests.laws.laws import Case, Row, order, relation

_TYPES = {INT: "BIGINT", FLOAT: "DOUBLE", STRING: "VARCHAR", BOOL: "BOOLEAN"}
_CONNECTION = duckdb.connect(config={"threads": 1})
QUERIES: dict[str, Callable[[Case], str]] = {}


def query(function: Callable[[Case], str]) -> Callable[[Case], str]:
    """Names the function as the oracle of the operator class of its name in camel case."""
    QUERIES["".join(w.title() for w in function.__name__.split("_"))] = function
    return function


def query_of(case: Case) -> str:
    """The SQL for a case. Raises `LookupError` when an operator has none."""
    name = type(case.operator).__name__
    if name not in QUERIES:
        raise LookupError(
            f"the operator {name} ({type(case.operator).__module__}) has no SQL oracle: add a function "
            f"@query def {case.operator.name}(case) to tests/laws/oracle.py that gives the SQL of its meaning"
        )
    return QUERIES[name](case)


def oracle(case: Case, inputs: Sequence[pl.DataFrame]) -> list[Row]:
    """What the SQL gives for these inputs, as (at, pos, values) in order."""
    return answer(case, inputs, query_of(case))


def answer(case: Case, inputs: Sequence[pl.DataFrame], sql: str) -> list[Row]:
    """What a query gives for these inputs, as (at, pos, values) in order."""
    tables = ", ".join(f"r{i} AS ({_values(f, s)})" for i, (f, s) in enumerate(zip(inputs, case.schemas, strict=True)))
    names = ", ".join(f'"{n}"' for n in (*case.out, "_at", "_pos"))
    found = _CONNECTION.execute(f"WITH {tables} SELECT {names} FROM ({sql})").fetchall()
    return sorted(((at, pos, tuple(map(_finished, values))) for *values, at, pos in found), key=order)


def _finished(value: Any) -> Any:
    """A value of a SQL result as the engine keeps it."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, list):
        return math.fsum(value) if value else None
    if isinstance(value, dict):
        return math.fsum(value["mean"]) / len(value["mean"]) if value["mean"] else None
    return value


def _values(frame: pl.DataFrame, schema: Schema) -> str:
    """A relation as a SQL query without tables."""
    types = [*(_TYPES.get(t, "BIGINT") for t in schema.values()), "BIGINT", "BIGINT"]
    names = [*schema, "_at", "_pos"]
    columns = ", ".join(f'c{i}::{t} AS "{n}"' for i, (n, t) in enumerate(zip(names, types, strict=True)))
    rows = [
        f"({', '.join(_literal(v, t) for v, t in zip((*vs, at, pos), types, strict=True))})"
        for at, pos, vs in relation(frame, schema)
    ]
    made = f"VALUES {', '.join(rows or ['(' + ', '.join('NULL' for _ in types) + ')'])}"
    end = "" if rows else " WHERE false"
    return f"SELECT {columns} FROM ({made}) t({', '.join(f'c{i}' for i in range(len(names)))}){end}"


def _literal(value: Any, sql_type: str) -> str:
    if value is None:
        return "NULL"
    if sql_type == "BOOLEAN":
        return "true" if value else "false"
    if sql_type == "DOUBLE":
        return repr(value) if "e" in repr(value) else f"{value!r}e0"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def _sample(case: Case, *queries: str) -> str:
    """The query for the sample of this number: for operators whose parameters are expressions."""
    count = len(type(case.operator).samples())
    if count != len(queries):
        raise LookupError(
            f"the operator {type(case.operator).__name__} has {count} samples but tests/laws/oracle.py has SQL for "
            f"{len(queries)}: add the query of the new one in its place"
        )
    return queries[case.sample]


@query
def where(case: Case) -> str:
    return _sample(
        case,
        "SELECT * FROM r0 WHERE n > 1",
        "SELECT * FROM r0 WHERE yes OR name = 'a'",
        "SELECT * FROM r0",
    )


@query
def project(case: Case) -> str:
    hour = '("when" // 3600000000) % 24'
    return _sample(
        case,
        "SELECT name, n * 2 AS twice, _at, _pos FROM r0",
        'SELECT name, abs(n) AS n, x, yes, "when", '
        f"{hour} AS hour, x * (1.0::DOUBLE / 3) AS third, n > 0 AS both, _at, _pos FROM r0",
        "SELECT yes, _at, _pos FROM r0",
        "SELECT n, 1 AS one, _at, _pos FROM r0",
        "SELECT name, x AS n, n AS x, x + x AS x_twice, _at, _pos FROM r0",
    )


def _completed(table: str, schema: Schema, by: Sequence[str], newness: str) -> str:
    """Messages, with the texts of which they say that they are as before."""
    same = " AND ".join(f'b."{n}" IS NOT DISTINCT FROM a."{n}"' for n in by)
    keyless = " AND ".join(f'b."{n}" IS NULL' for n in by)
    texts = [n for n, t in schema.items() if t == STRING and n not in by]

    def filled(name: str) -> str:
        told = f"NOT (b.deleted IS NULL AND b.\"{name}\" IS NOT DISTINCT FROM '__debezium_unavailable_value')"
        value = f'CASE WHEN b.deleted THEN NULL ELSE b."{name}" END'
        before = f"FROM {table} b WHERE (({same}) OR (b.deleted AND {keyless})) AND {told}"
        before += f" AND {_of('b', newness)} <= {_of('a', newness)}"
        return f"(SELECT arg_max({{'v': {value}}}, {_of('b', newness)}).v {before}) AS \"{name}\""

    if not texts:
        return f"SELECT * FROM {table}"
    others = [f'"{n}"' for n in (*schema, "_at", "_pos") if n not in texts]
    return f"SELECT {', '.join([*others, *map(filled, texts)])} FROM {table} a"


def _met(case: Case, kind: str, within: str, first: str, added: str, right: str = "r1") -> str:
    """Each left row l with the one right row r, of those of its key `within` reach, that is `first`."""
    op: Any = case.operator
    keys = " AND ".join(f'l."{a}" = r."{b}"' for a, b in zip(op.on, op.right_on, strict=True))
    columns = op.columns
    if columns is None:
        names = [n for n in case.schemas[1] if n not in op.right_on and n != "deleted"]
        columns = [(getattr(op, "prefix", "") + n, n) for n in names]
    chosen = "".join(f', {added.format(old)} AS "{new}"' for new, old in columns)
    number = f"row_number() OVER (PARTITION BY l._at, l._pos ORDER BY {first})"
    met = f"SELECT l.*{chosen}, {number} AS _n FROM r0 l {kind} JOIN {right} r ON {keys} AND {within}"
    return f"SELECT * EXCLUDE (_n) FROM ({met}) WHERE _n = 1"


@query
def join_asof(case: Case) -> str:
    op: Any = case.operator
    within = "r._at <= l._at"
    if op.tolerance is not None:
        within += f" AND l._at - r._at <= {op.tolerance}"
    return _met(case, "LEFT", within, "r._at DESC, r._pos DESC", 'r."{}"')


@query
def join(case: Case) -> str:
    by = cast(Any, case.operator).right_on
    gone = " AND ".join(["e.deleted", *(f'e."{n}" IS NULL' for n in by)])
    ended = f"EXISTS (FROM r1 e WHERE {gone} AND e._at <= l._at AND (e._at, e._pos) > (r._at, r._pos))"
    shown = f'CASE WHEN r.deleted IS NOT TRUE AND NOT {ended} THEN r."{{}}" END'
    versions = f"({_completed('r1', case.schemas[1], by, '(_at, _pos)')})"
    return _met(case, "LEFT", "r._at <= l._at", "r._at DESC, r._pos DESC", shown, versions)


@query
def join_label(case: Case) -> str:
    op: Any = case.operator
    return _met(case, "INNER", f"r._at >= l._at AND r._at - l._at <= {op.wait}", "r._at, r._pos", 'r."{}"')


@query
def unanswered(case: Case) -> str:
    return f"SELECT * FROM r0 EXCEPT ALL ({join_label(case)})"


@query
def union(case: Case) -> str:
    names = ", ".join(f'"{n}"' for n in (*case.out, "_at", "_pos"))
    return f"SELECT {names} FROM r0 UNION ALL SELECT {names} FROM r1"


@query
def dedupe(case: Case) -> str:
    op: Any = case.operator
    same = " AND ".join(f'b."{n}" IS NOT DISTINCT FROM a."{n}"' for n in op.by)
    near = "" if op.within is None else f" AND a._at - b._at <= {op.within}"
    return f"SELECT * FROM r0 a WHERE NOT EXISTS (FROM r0 b WHERE {same} AND (b._at, b._pos) < (a._at, a._pos){near})"


@query
def previous(case: Case) -> str:
    op: Any = case.operator
    lag = f"lag({{}}) OVER (PARTITION BY {', '.join(op.by)} ORDER BY _at, _pos)"
    near = "true" if op.within is None else f"_at - {lag.format('_at')} <= {op.within}"
    names = [*op.columns, *([(op.at, "_at")] if op.at else [])]
    made = ", ".join(f'CASE WHEN {near} THEN {lag.format(old)} END AS "{new}"' for new, old in names)
    return f"SELECT *, {made} FROM r0"


@query
def runs(case: Case) -> str:
    op: Any = case.operator
    mine = " AND ".join(f'b."{n}" IS NOT DISTINCT FROM a."{n}"' for n in op.by)
    alike = " AND ".join(f'c."{n}" = a."{n}"' for n in op.of)
    between = f"{mine.replace('b.', 'c.')} AND (c._at, c._pos) BETWEEN (b._at, b._pos) AND (a._at, a._pos)"
    run = f"FROM r0 b WHERE {mine} AND (b._at, b._pos) <= (a._at, a._pos) AND NOT EXISTS (FROM r0 c WHERE {between} "
    run += f"AND ({alike}) IS NOT TRUE)"
    made = {"run": f"(SELECT count(*) {run})", "since": f"(SELECT min(b._at) {run})"}
    named = [f'{sql} AS "{name}"' for what, sql in made.items() if (name := getattr(op, what))]
    return f"SELECT *, {', '.join(named)} FROM r0 a"


@query
def silence(case: Case) -> str:
    op: Any = case.operator
    keys = ", ".join(f'"{n}"' for n in op.by)
    when = ""
    for key, after in op.after:
        values = key if isinstance(key, tuple) else (key,)
        same = " AND ".join(f'"{n}" = {_literal(v, "")}' for n, v in zip(op.by, values, strict=True))
        when += f" WHEN {same} THEN {after}"
    each = f"CASE{when} ELSE {op.default} END" if when else op.default
    last = f"SELECT *, lead(_at) OVER (PARTITION BY {keys} ORDER BY _at, _pos) AS until, {each} AS d FROM r0"
    return f"""SELECT {keys}, _at AS since, until, _at + d AS _at, _pos FROM ({last})
        WHERE until - _at > d OR (until IS NULL AND _at + d < (SELECT max(now) FROM r1))"""


@query
def latest(case: Case) -> str:
    op: Any = case.operator
    newness = "_pos" if op.order == "position" else "(_at, _pos)"
    everything = " AND ".join(["b.deleted", *(f'b."{n}" IS NULL' for n in op.by)])
    keys = ", ".join(f'"{n}"' for n in op.by)
    return f"""
        WITH whole AS ({_completed("r0", case.schemas[0], op.by, newness)}), standing AS (
            SELECT * FROM whole a WHERE NOT EXISTS (FROM r0 b WHERE {everything}
                AND {_of("b", newness)} >= {_of("a", newness)})
        ), newest AS (SELECT *, row_number() OVER (PARTITION BY {keys} ORDER BY {newness} DESC) AS _n FROM standing)
        SELECT * FROM newest WHERE _n = 1 AND deleted IS NOT TRUE"""


def _of(table: str, newness: str) -> str:
    return newness.replace("_at", f"{table}._at").replace("_pos", f"{table}._pos")


@query
def window(case: Case) -> str:
    op: Any = case.operator
    mine = ", ".join(f'a."{n}"' for n in case.schemas[0])
    same = " AND ".join(f'b."{n}" IS NOT DISTINCT FROM a."{n}"' for n in op.by)
    made = []
    for name, reduction in op.reductions:
        size = op.microseconds(name, reduction)
        inside = "true" if size is None else f"a._at - b._at < {size}"
        made.append(f'{_reduced(reduction, case.schemas[0], inside)} AS "{name}"')
    return f"""SELECT {mine}, {", ".join(made)}, a._at, a._pos
        FROM r0 a JOIN r0 b ON {same} AND (b._at, b._pos) <= (a._at, a._pos) GROUP BY {mine}, a._at, a._pos"""


def _reduced(reduction: Any, schema: Schema, inside: str) -> str:
    """A reduction of the rows b that are `inside`."""
    kind, column = reduction.kind, f'b."{reduction.column}"'
    if reduction.column is None:
        return f"count(*) FILTER ({inside})"
    if kind == "count":
        return f"count({column}) FILTER ({inside})"
    if kind in ("minimum", "maximum"):
        return f"{kind[:3]}({column}) FILTER ({inside})"
    values = f"list({column}::DOUBLE) FILTER ({inside} AND {column} IS NOT NULL)"
    if kind == "mean":
        return f"{{'mean': {values}}}"
    return values if schema[reduction.column] == FLOAT else f"sum({column}::BIGINT) FILTER ({inside})"


@query
def aggregate(case: Case) -> str:
    op: Any = case.operator
    keys = ", ".join(f'b."{n}"' for n in op.by)
    made = ", ".join(f'{_reduced(r, case.schemas[0], "true")} AS "{n}"' for n, r in op.reductions)
    last = "arg_max(b._pos, (b._at, b._pos)) AS _pos"
    if op.aside is None:
        return f"SELECT {keys}, {made}, max(b._at) AS _at, {last} FROM r0 b GROUP BY {keys}"
    same = " AND ".join(f'a."{n}" IS NOT DISTINCT FROM b."{n}"' for n in op.by)
    having = f'EXISTS (FROM r0 a WHERE a."{op.aside}" AND {same}) AS "{op.aside}"'
    rows = f'(FROM r0 WHERE "{op.aside}" IS NOT TRUE)'
    return f"SELECT {keys}, {made}, {having}, max(b._at) AS _at, {last} FROM {rows} b GROUP BY {keys}"
