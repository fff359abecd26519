"""Rows as JSON lines: what orjson would write for each row as a dict, made column by column.

A line holds the columns in the order of the schema, then the event time and the weight where asked for. Null is `null`;
so are floats that JSON does not know (infinite ones), and times outside the years 1 to 9999, such as the beginning.
A time is ISO 8601 in UTC, `2013-01-01T10:15:00Z`, with six digits of a second only where they are not all zero.

For many rows orjson writes each text or float column as a whole and a kernel deals the values out to their rows; it
also writes integers, booleans and times. For a few rows orjson writes each of them.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from numba import njit

from operators.delta import BOOL, FLOAT, INT, NULL, NULL_BOOL, STRING, TIME, Array, Delta, Ints, Schema

FEW = 4
"""Below so many rows each is written alone."""
_TEXT, _INT, _BOOL, _TIME = 0, 1, 2, 3
_KIND = {STRING: _TEXT, FLOAT: _TEXT, INT: _INT, BOOL: _BOOL, TIME: _TIME}
_WIDTH = {INT: 20, BOOL: 5, TIME: 29}
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The years 1 to 9999: microseconds of the first and the last."""

Bytes = npt.NDArray[np.uint8]
_NONE, _TRUE, _FALSE = (np.frombuffer(word, np.uint8) for word in (b"null", b"true", b"false"))


def encode(delta: Delta, schema: Schema, *, at: str | None = None, weight: bool = False) -> bytes:
    """The rows of a delta as JSON lines, each ended by a newline; b"" for no rows.

    schema: the columns to write. at: the name of a further field with the event time of the row. weight: whether a last
    field `weight` says 1 or -1. Neither is written when the schema has a column of that name. Raises orjson's
    `TypeError` for text that is not valid Unicode.

    >>> d = Delta({"n": np.array([1, NULL])}, np.array([1, -1]), np.array([0, 1]), np.zeros(2, int), np.zeros(2, int))
    >>> print(encode(d, {"n": INT}, at="at", weight=True).decode(), end="")
    {"n":1,"at":"1970-01-01T00:00:00Z","weight":1}
    {"n":null,"at":"1970-01-01T00:00:00.000001Z","weight":-1}
    """
    fields = [(name, delta.columns[name], dtype) for name, dtype in schema.items()]
    if at is not None and at not in schema:
        fields.append((at, delta.at, TIME))
    if weight and "weight" not in schema:
        fields.append(("weight", delta.weight, INT))
    n = len(delta)
    if n < FEW or not fields:
        return _row_by_row(fields, n)
    return _by_columns(fields, n)


def _row_by_row(fields: list[tuple[str, Array, Any]], n: int) -> bytes:
    names = [name for name, _, _ in fields]
    values = [_python(column, dtype) for _, column, dtype in fields]
    rows = zip(*values, strict=True) if fields else [()] * n
    lines = [orjson.dumps(dict(zip(names, row, strict=True)), option=orjson.OPT_APPEND_NEWLINE) for row in rows]
    return b"".join(lines)


def _python(column: Array, dtype: Any) -> list[Any]:
    values: list[Any] = column.tolist()
    if column.dtype == np.int8:
        return [None if v == NULL_BOOL else v == 1 for v in values]
    if column.dtype != np.int64:
        return values
    return [_iso(v) for v in values] if dtype == TIME else [None if v == NULL else v for v in values]


def _iso(at: int) -> str | None:
    if not _FIRST <= at <= _LAST:
        return None
    return (_EPOCH + timedelta(microseconds=at)).isoformat().removesuffix("+00:00") + "Z"


def _by_columns(fields: list[tuple[str, Array, Any]], n: int) -> bytes:
    kinds = np.array([_KIND[dtype] for _, _, dtype in fields], np.int64)
    heads = [(b"," if i else b"{") + orjson.dumps(name) + b":" for i, (name, _, _) in enumerate(fields)]
    head_ends = np.cumsum(np.array([len(h) for h in heads], np.int64))
    numbers = np.empty((len(fields), n), np.int64)
    texts: list[bytes] = []
    cursors = np.zeros(len(fields), np.int64)
    size = n * (int(head_ends[-1]) + 2)
    begin = 0
    for i, (_, column, dtype) in enumerate(fields):
        if kinds[i] == _TEXT:
            text = (
                orjson.dumps(column.tolist())
                if dtype == STRING
                else orjson.dumps(np.ascontiguousarray(column), option=orjson.OPT_SERIALIZE_NUMPY)
            )
            texts.append(text)
            cursors[i] = begin + 1
            begin += len(text)
            size += len(text)
        else:
            numbers[i] = column
            size += n * _WIDTH[dtype]
    out = np.empty(size, np.uint8)
    end = _rows(
        out,
        n,
        kinds,
        np.frombuffer(b"".join(heads), np.uint8),
        head_ends,
        numbers,
        np.frombuffer(b"".join(texts), np.uint8),
        cursors,
    )
    return out[:end].tobytes()


@njit(cache=True)
def _word(out: Bytes, o: int, word: Bytes):  # type: ignore[no-untyped-def]
    for c in word:
        out[o] = c
        o += 1
    return o


@njit(cache=True)
def _split(v: int, by: int):  # type: ignore[no-untyped-def]
    """Quotient and remainder of v (0 or more); without a sign the machine divides faster."""
    whole, part = np.uint64(v) // np.uint64(by), np.uint64(v) % np.uint64(by)
    return np.int64(whole), np.int64(part)


@njit(cache=True)
def _digits(out: Bytes, o: int, v: int, width: int):  # type: ignore[no-untyped-def]
    """Write v (0 or more) in `width` digits."""
    for k in range(o + width - 1, o - 1, -1):
        v, digit = _split(v, 10)
        out[k] = 48 + digit
    return o + width


@njit(cache=True)
def _integer(out: Bytes, o: int, v: int):  # type: ignore[no-untyped-def]
    if v < 0:
        out[o] = 45
        o += 1
        v = -v
    width, limit = 1, 10
    while width < 19 and v >= limit:
        limit *= 10
        width += 1
    return _digits(out, o, v, width)


@njit(cache=True)
def _time(out: Bytes, o: int, at: int):  # type: ignore[no-untyped-def]
    """Write microseconds since 1970 as ISO 8601; the date as in Howard Hinnant's `civil_from_days`.

    Days are counted from 1 March of the year 0, in eras of 400 years, so that the leap day ends a year.
    """
    seconds, micro = _split(at - _FIRST, 1_000_000)
    days, second = _split(seconds, 86_400)
    era, of_era = _split(days + 306, 146_097)
    leap_days = _split(of_era, 1_460)[0] - _split(of_era, 36_524)[0] + _split(of_era, 146_096)[0]
    year, _ = _split(of_era - leap_days, 365)
    of_year = of_era - (365 * year + _split(year, 4)[0] - _split(year, 100)[0])
    month, _ = _split(5 * of_year + 2, 153)
    day = of_year - _split(153 * month + 2, 5)[0] + 1
    year += era * 400
    if month < 10:
        month += 3
    else:
        month -= 9
        year += 1
    hour, second = _split(second, 3_600)
    minute, second = _split(second, 60)
    out[o] = 34
    o = _digits(out, o + 1, year, 4)
    out[o] = 45
    o = _digits(out, o + 1, month, 2)
    out[o] = 45
    o = _digits(out, o + 1, day, 2)
    out[o] = 84
    o = _digits(out, o + 1, hour, 2)
    out[o] = 58
    o = _digits(out, o + 1, minute, 2)
    out[o] = 58
    o = _digits(out, o + 1, second, 2)
    if micro:
        out[o] = 46
        o = _digits(out, o + 1, micro, 6)
    out[o] = 90
    out[o + 1] = 34
    return o + 2


@njit(cache=True)
def _rows(  # type: ignore[no-untyped-def]
    out: Bytes, n: int, kinds: Ints, heads: Bytes, head_ends: Ints, numbers: Ints, texts: Bytes, cursors: Ints
):
    """Write the rows to `out`; returns where they end. `cursors` is where each text column's next value begins."""
    o = 0
    for row in range(n):
        h = 0
        for i in range(len(kinds)):
            while h < head_ends[i]:
                out[o] = heads[h]
                o += 1
                h += 1
            kind = kinds[i]
            if kind == _TEXT:
                c = cursors[i]
                if texts[c] == 34:
                    out[o] = 34
                    o += 1
                    c += 1
                    while texts[c] != 34:
                        if texts[c] == 92:
                            out[o] = 92
                            o += 1
                            c += 1
                        out[o] = texts[c]
                        o += 1
                        c += 1
                    out[o] = 34
                    o += 1
                    c += 1
                else:
                    while texts[c] != 44 and texts[c] != 93:
                        out[o] = texts[c]
                        o += 1
                        c += 1
                cursors[i] = c + 1
                continue
            v = numbers[i, row]
            if kind == _INT and v != NULL:
                o = _integer(out, o, v)
            elif kind == _BOOL and v != NULL_BOOL:
                o = _word(out, o, _TRUE if v == 1 else _FALSE)
            elif kind == _TIME and _FIRST <= v <= _LAST:
                o = _time(out, o, v)
            else:
                o = _word(out, o, _NONE)
        out[o] = 125
        out[o + 1] = 10
        o += 2
    return o
