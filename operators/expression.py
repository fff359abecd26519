"""Is a Polars expression row-wise, and of which type? Asked once, when a pipeline is built.

A stateless step of a view is a Polars expression, and it must mean the same for one row as for a million:
value i of the result depends on row i of the columns and on nothing else. Three questions are asked:

- its serialised form is walked, and every part must be one that is known to be row-wise;
- it is typed twice, lazily and over an empty frame (each finds mistakes that the other misses);
- it is probed with random rows: whole, reversed and row by row must agree. This finds functions that lie.

A frame of ONE row must not be evaluated: there Polars divides by a constant, in every other it multiplies by
its reciprocal, and the last bit of `x / 24` differs for a third of all values. Evaluate such a row twice and
keep one.

Not found: a value taken when the pipeline was built, such as `pl.lit(datetime.now())`; a Python function that
depends on the outside world; a strict cast, which fails for a whole batch when one of its rows does not fit.
The serialised form is not promised to be stable between versions of Polars: an unknown part is refused, never
let through, and `tests/operators/test_expression.py` pins the form of each part that is let through.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import random
import re
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import datetime, timezone
from typing import Any, NoReturn

import polars as pl

from operators.delta import BOOL, FLOAT, INT, STRING, TIME, Schema


class ExpressionError(ValueError):
    """An expression that cannot be a column of a view; the text says why and what to do."""


def check(name: str, expr: pl.Expr, schema: Schema) -> pl.DataType:
    """The type of column `name` as the engine keeps it. Raises `ExpressionError` when `expr` cannot be one.

    >>> check("far", pl.col("distance") > 1000, {"distance": pl.Int64()})
    Boolean
    >>> check("far", pl.col("distance") > pl.col("distance").mean(), {"distance": pl.Int64()})
    Traceback (most recent call last):
    ...
    operators.expression.ExpressionError: 'far': 'distance.mean()' looks across rows; expected an expression \
of the columns of one row; use op.aggregate, or op.window for the rows before
    """
    if not isinstance(expr, pl.Expr):
        constant = f"pl.lit({expr!r}) for a constant"
        hint = f"pl.col({expr!r}) for a column or {constant}" if isinstance(expr, str) else constant
        hint = hint if isinstance(expr, (str, int, float, datetime)) else "pl.col(...) and what is done to it"
        raise ExpressionError(
            f"{name!r}: {expr!r} is of type {type(expr).__name__}; expected a Polars expression; write {hint}"
        )
    with _panics_as_errors(name):
        _walk(name, _tree(expr))
        roots = columns(expr)
        for column in roots:
            if column not in schema:
                close = difflib.get_close_matches(column, schema, 1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                known = ", ".join(map(repr, schema))
                raise ExpressionError(f"{name!r}: no column {column!r}; {hint}known columns: {known}")
        kept = _kept(name, _type(name, expr.alias(name), schema))
        if roots:
            _probe(name, expr.alias(name), {c: schema[c] for c in roots}, kept)
    return kept


def evaluate(frame: pl.DataFrame, made: Iterable[pl.Expr]) -> pl.DataFrame:
    """The frame with the columns of the expressions.

    A row gives the same whether it comes alone or among others: Polars divides a frame of one row by a constant, and
    multiplies longer ones by its reciprocal, so a row is never evaluated alone.

    >>> evaluate(pl.DataFrame({"x": [5.0]}), [(pl.col("x") / 3).alias("y")]).height
    1
    """
    if len(frame) == 1:
        twice = pl.DataFrame(
            [pl.Series(s.name, s.to_list() * 2, s.dtype) for s in frame]
        )  # Polars keeps one as a scalar
        return twice.with_columns_seq(made).head(1)
    return frame.with_columns_seq(made)


def columns(expr: pl.Expr) -> list[str]:
    """The columns that an expression reads, each once, in the order in which it names them."""
    named = re.findall(r'"Column": ("(?:[^"\\]|\\.)*")', json.dumps(_tree(expr)))
    return list(dict.fromkeys(map(json.loads, named)))


def fingerprint(expr: pl.Expr) -> str:
    """What an expression computes as a short text, the same in every process.

    A Python function counts by its code, constants, closure and the plain globals and functions it names, so
    it also depends on the minor version of Python. An imported object counts by its name and attributes only.
    """
    tree = json.dumps(_tree(expr), sort_keys=True)
    return hashlib.sha256(tree.encode()).hexdigest()


# The serialised form ----------------------------------------------------------------------------------------

_STAND_IN = threading.Lock()


def _tree(expr: pl.Expr) -> Any:
    """The serialised expression as JSON values.

    Polars asks cloudpickle for the Python functions within. Their code is not needed here, and its pickle is
    not the same in two processes, so for this moment cloudpickle is a stand-in that gives a
    digest of 32 bytes.
    """
    stand_in: Any = types.ModuleType("cloudpickle")
    stand_in.dumps = lambda function, *_: hashlib.sha256(_text(function, {}).encode()).digest()
    with _STAND_IN:
        real = sys.modules.get("cloudpickle")
        sys.modules["cloudpickle"] = stand_in
        try:
            return json.loads(expr.meta.serialize(format="json"), object_hook=_without_python_version)
        finally:
            del sys.modules["cloudpickle"]
            if real is not None:
                sys.modules["cloudpickle"] = real


def _without_python_version(node: dict[str, Any]) -> dict[str, Any]:
    """Cut [1, minor, micro] from before the digest of a Python function."""
    blob = node.get("function")
    if isinstance(blob, list) and len(blob) >= 35 and blob[-35] == 1:
        node["function"] = blob[:-35] + blob[-32:]
    return node


def _text(value: Any, seen: dict[int, int]) -> str:
    """A Python value as text without addresses, file names, line numbers or the order of sets."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if id(value) in seen:
        return f"again {seen[id(value)]}"
    seen[id(value)] = len(seen)
    if isinstance(value, (set, frozenset)):
        return f"set{sorted(_text(v, {}) for v in value)}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_text(v, seen) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_text(k, seen)}: {_text(v, seen)}' for k, v in value.items())}}}"
    if isinstance(value, types.CodeType):
        names = (value.co_names, value.co_varnames, value.co_freevars)
        return f"code({value.co_code.hex()}, {names}, {_text(value.co_consts, seen)})"
    if isinstance(value, types.FunctionType):
        cells = [c.cell_contents for c in value.__closure__ or ()]
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, cells, _globals(value))
        return f"function{_text(parts, seen)}"
    if isinstance(value, (type, types.ModuleType)):
        return f"{getattr(value, '__module__', '')}.{value.__name__}"
    return f"{re.sub(r' at 0x[0-9a-fA-F]+', '', repr(value))}{_text(getattr(value, '__dict__', None), seen)}"


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """The functions and plain values of its own module that a function names, inner functions included."""
    if function.__module__.partition(".")[0] == "polars":
        return {}
    codes, names = [function.__code__], dict[str, None]()
    for code in codes:
        names.update(dict.fromkeys(code.co_names))
        codes.extend(c for c in code.co_consts if isinstance(c, types.CodeType))
    plain = (types.FunctionType, bool, int, float, str, bytes, tuple, list, dict, set, frozenset)
    found = {n: function.__globals__[n] for n in names if n in function.__globals__}
    return {n: v for n, v in found.items() if isinstance(v, plain)}


# Row-wise ---------------------------------------------------------------------------------------------------

_ACROSS = "looks across rows"
_ONE_PER_ROW = "does not keep one row per row"
_REFUSED = [  # (kind of part, what is wrong with it, what to do), the first match counts
    (r"^Selector|SelectFields", "may stand for several columns", "name one: pl.col('a')"),
    (r"^Over", _ACROSS, "use op.window(by=...)"),
    (
        r"Random|Sample",
        "is random",
        "derive it from a column, such as pl.col('id') % 10 == 0: a view can be recomputed",
    ),
    (r"^Literal", "has rows of its own", "give a list instead of a Series, as in .is_in([1, 2])"),
    (
        r"^AnonymousFunction",
        "may look across rows",
        "use .map_elements(f, return_dtype=...), or, when f treats every "
        "row alone, .map_batches(f, return_dtype=..., is_elementwise=True)",
    ),
    (r"Fold|Reduce", "cannot be checked", "write it out, or use pl.sum_horizontal, pl.max_horizontal, ..."),
    (r"Strptime", "guesses the format from other rows", "give it: .str.to_datetime('%Y-%m-%d %H:%M')"),
    (r"SetSorted", "claims an order that a delta does not have", "leave it out"),
    (
        r"NUnique|Counts|Strategy\.M|Agg\.(Min|Max|First|Last)",
        _ACROSS,
        "use op.aggregate, or op.window for the rows before",
    ),
    (
        r"Shift|Diff|PctChange",
        _ACROSS,
        "use op.previous for the row before, or op.join_asof for the latest row of another source",
    ),
    (r"RLE", _ACROSS, "use op.runs"),
    (
        r"^Eval|Rolling|Cum|Ewm|Interpol|Strategy|Rank|Peak|QCut",
        _ACROSS,
        "use op.window for the rows before, or op.join_asof for the latest row of another source",
    ),
    (r"Filter|DropN", _ONE_PER_ROW, "use op.where"),
    (r"Unique|Distinct|Duplicated", _ACROSS, "use op.dedupe"),
    (
        r"Sort|Slice|Explode|Gather|TopK|Reverse|Append|Extend|Repeat|Range|Reshape|Mode|Where|Hist|Implode",
        _ONE_PER_ROW,
        "leave it out: a view keeps one row per row, in no order; sort or cut where it is read",
    ),
    (r"^Agg|^Len|^Function", _ACROSS, "use op.aggregate, or op.window for the rows before"),
    (r"", "is not known to be row-wise", "use another expression, or an operator of op"),
]


_FLAGS = {"ROW_SEPARABLE", "LENGTH_PRESERVING"}
_INSIDE: dict[str, Callable[[Any], list[Any]]] = {  # parts that are row-wise when what is inside them is
    "Column": lambda b: [],
    "Field": lambda b: [],
    "Alias": lambda b: [b[0]],
    "KeepName": lambda b: [b],
    "RenameAlias": lambda b: [b["expr"]],
    "Cast": lambda b: [b["expr"]],
    "BinaryExpr": lambda b: [b["left"], b["right"]],
    "Ternary": lambda b: [b["predicate"], b["truthy"], b["falsy"]],
    "StructEval": lambda b: [b["expr"], *b["evaluation"]],
}


def _walk(name: str, node: Any) -> None:
    """Raises `ExpressionError` unless every part of a serialised expression is row-wise."""
    body: Any
    kind, body = next(iter(node.items())) if isinstance(node, dict) else (node, {})
    if kind == "Eval" and re.search(r'"(Random|Sample)":', json.dumps(body["evaluation"])):
        _refuse(name, node, "Eval.Random")
    if kind in _INSIDE:
        inside = _INSIDE[kind](body)
    elif kind == "Literal" and next(iter(body)) in ("Dyn", "Scalar"):
        inside = []
    elif kind == "Eval" and isinstance(body["variant"], str):  # the list of one row: all but chance is fine
        inside = [body["expr"]]
    elif (kind == "Function" and _row_wise(body)) or (
        kind == "AnonymousFunction" and _FLAGS.issubset(body["options"]["flags"].split(" | "))
    ):
        inside = body["input"]
    else:
        _refuse(name, node, _kind(node))
    for part in inside:
        _walk(name, part)


def _row_wise(body: dict[str, Any]) -> bool:
    """Does Polars call this function row-wise? Asked of it alone: Polars judges only the top."""
    if re.search(r"Random|Sample|SetSorted|SelectFields|Fold|Reduce", _kind({"Function": body})):
        return False  # what Polars calls row-wise and is not, and what it cannot be asked
    given = [n if "Literal" in n else {"Column": str(i)} for i, n in enumerate(body["input"])]
    alone = _expression({"Function": {**body, "input": given}})
    try:
        return alone.meta.is_row_separable() and (alone.meta.is_length_preserving() or alone.meta.is_scalar())
    except pl.exceptions.PolarsError:
        return False


def _expression(node: Any) -> pl.Expr:
    return pl.Expr.deserialize(io.StringIO(json.dumps(node)), format="json")


def _kind(node: Any) -> str:
    """The names of a part from the outside in, such as "Function.Boolean.IsUnique"."""
    found: list[str] = []
    while isinstance(node, dict) and len(node) >= 1:
        key = "function" if "function" in node and found == ["Function"] else next(iter(node))
        if key[0].isupper():
            found.append(key)
        elif key != "function":
            break
        node = node[key]
    return ".".join([*found, node] if isinstance(node, str) and node[:1].isupper() else found)


def _refuse(name: str, node: Any, kind: str) -> NoReturn:
    wrong, hint = next((w, h) for pattern, w, h in _REFUSED if re.search(pattern, kind))
    raise ExpressionError(
        f"{name!r}: {_written(node)!r} {wrong}; expected an expression of the columns of one row; {hint}"
    )


def _written(node: Any) -> str:
    """A part of an expression much as the user wrote it."""

    def without_functions(part: dict[str, Any]) -> dict[str, Any]:
        function = part.get("AnonymousFunction")
        return {"Column": f"{_written(function['input'][0])}.python_udf()"} if function else part

    try:
        text = str(_expression(json.loads(json.dumps(node), object_hook=without_functions)))
    except pl.exceptions.PolarsError:
        text = _kind(node)
    text = re.sub(r'col\("([^"]*)"\)|dyn (?:int|float): ', r"\1", " ".join(text.split()))
    text = re.sub(r"\(\[([^][()]*)\]\)", r"(\1)", text)
    return text if len(text) <= 100 else f"{text[:97]}..."


# Types ------------------------------------------------------------------------------------------------------


def _type(name: str, expr: pl.Expr, schema: Schema) -> pl.DataType:
    """The type of an expression as Polars has it."""
    try:
        pl.LazyFrame(schema=schema).select(expr).collect_schema()
        return pl.DataFrame(schema=schema).select(expr).dtypes[0]
    except Exception as error:  # whatever a Python function raises comes through
        found = ", ".join(f"{c} {schema[c]}" for c in columns(expr))
        raise ExpressionError(
            f"{name!r}: types do not fit: {_first_line(error)}; found {found}; "
            "expected operands that Polars combines; cast one of them"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_HINTS: dict[Any, str] = {
    pl.Date: "cast it to Datetime or String: .cast(pl.Datetime('us', 'UTC'))",
    pl.Time: "use .dt.hour(), .dt.minute() or cast it to String",
    pl.Duration: "use .dt.total_seconds()",
    pl.Decimal: "cast it to Float64, or to Int64 in the smallest unit",
    pl.List: "use .list.get(0), .list.len(), .list.join(',') or the like",
    pl.Array: "use .arr.get(0) or the like",
    pl.Struct: "use .struct.field('a')",
    pl.Null: "give the null a type: .cast(pl.Int64)",
    pl.Binary: "use .bin.encode('hex')",
}


def _kept(name: str, dtype: pl.DataType) -> pl.DataType:
    """The type in which the engine keeps a column that Polars types as `dtype`."""
    if dtype.is_integer():
        return INT
    if dtype.is_float():
        return FLOAT
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return STRING
    if dtype == pl.Boolean:
        return BOOL
    hint = _HINTS.get(dtype.base_type(), "cast it to one of these")
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone == "UTC":
            return TIME
        convert = "convert" if dtype.time_zone else "replace"
        hint = f"use .dt.{convert}_time_zone('UTC')"
    raise ExpressionError(
        f"{name!r}: a column cannot have type {dtype}; "
        f"expected Int64, Float64, String, Boolean or Datetime('us', 'UTC'); {hint}"
    )


# The probe --------------------------------------------------------------------------------------------------

_MOMENTS = [
    (1969, 12, 31, 23),
    (1970, 1, 1),
    (2013, 1, 1, 5, 15),
    (2024, 2, 29, 12, 30, 1, 250),
    (2024, 12, 31),
]
_VALUES: dict[pl.DataType, list[Any]] = {
    INT: [None, 0, 1, 2, 3, -1, 7, 100, 2013],
    FLOAT: [None, 0.0, 0.5, 1.0, -1.5, 3.25, 100.0, float("nan"), float("inf")],
    STRING: [None, "", "a", "B b", "3", "-1.5", "a,b,c", "2013-01-01", "2013-01-01 05:15", '{"a": 1}'],
    BOOL: [None, True, False],
    TIME: [None, *(datetime(*m, tzinfo=timezone.utc) for m in _MOMENTS)],  # type: ignore[arg-type,misc]
}


def _probe(name: str, expr: pl.Expr, schema: Schema, kept: pl.DataType) -> None:
    """Raises `ExpressionError` unless random rows give the same whole, reversed and one by one."""
    draw = random.Random(0)
    rows = pl.DataFrame({c: draw.choices(_VALUES[t], k=16) for c, t in schema.items()}, schema=schema)

    def values(frame: pl.DataFrame) -> pl.Series:
        return frame.select(expr).to_series().cast(kept, strict=False)

    good, single = [], []
    for i in range(rows.height):
        try:
            single.append(values(rows[[i, i]])[:1])  # twice: see the text of the module
            good.append(i)
        except pl.exceptions.SchemaError as error:
            raise ExpressionError(
                f"{name!r}: {_first_line(error)}; expected a Python function that gives one type "
                "for all values; say which by return_dtype="
            ) from None
        except Exception:  # a value that the expression does not take, such as "a" cast to Int64
            continue
    if not good:
        return
    rows, alone = rows[[*good, good[0]]], pl.concat([*single, single[0]])
    try:
        same = values(rows).equals(alone) and values(rows.reverse()).reverse().equals(alone)
        difference = "gives other values for a batch than row by row"
    except Exception as error:
        same, difference = False, f"works row by row, but fails for a batch ({_first_line(error)})"
    if not same:
        raise ExpressionError(
            f"{name!r}: {_written(_tree(expr)['Alias'][0])!r} {difference}; expected an expression of "
            "the columns of one row; use a function that treats every row alone, or op.window"
        )


@contextmanager
def _panics_as_errors(name: str) -> Iterator[None]:
    """Turn a panic within Polars (not an `Exception`) into an error, without what it prints."""
    stderr, printed, panicked = os.dup(2), io.StringIO(), False
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            with redirect_stderr(printed):
                yield
        except pl.exceptions.PanicException as panic:
            panicked = True
            raise ExpressionError(
                f"{name!r}: polars {pl.__version__} panics on this expression: {panic}; expected an "
                "expression that it can evaluate; write it in another way"
            ) from None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            if not panicked:  # what others printed meanwhile
                held.seek(0)
                os.write(2, held.read())
                sys.stderr.write(printed.getvalue())
