"""What is answered below `/views/`: the newest rows of keys, or what was known of them at a time.

| request | |
| --- | --- |
| `GET /views/NAME/KEY` | the row of a key; the parts of one of several columns are separated by `/` |
| `GET /views/NAME?card=4711&shop=s` | the same, its parts by name |
| `POST /views/NAME` with `{"keys": [...]}` | the rows of many keys; one of several columns is a list of its parts |

An answer is a JSON object: `view`, `version` (the number of the last batch that was taken in), `frontier`,
`lag_seconds`, `phase`, and `rows`, one for each key in their order, null for a key that is not there. All rows are of
that version. With `?as_of=TIME` it is `view`, `as_of` and `rows`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import numpy as np
import orjson
import polars as pl

from engine.encode import encode
from engine.flow import Run
from engine.graph import AS_OF, View
from engine.log import KNOWN, SEQ, as_of, scan
from engine.report import freshness_of, instant
from engine.server import Answer, Asked
from engine.settings import instant as time_of
from operators.delta import (
    AT,
    BOOL,
    INT,
    POS,
    STRING,
    TIME,
    Array,
    Delta,
    Schema,
    null_of,
    numpy_type,
    to_array,
    to_series,
)
from operators.state import keys_of

MOST = 1_000
"""Keys in one request."""

_JSON = "application/json"
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EXPECTED = {
    INT: "an integer of 64 bits",
    STRING: "text",
    BOOL: "true or false",
    TIME: "a time such as 2013-02-01T12:00:00Z",
}


class _Refused(Exception):
    """A request that is not answered. Its status, and what is wrong with it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Views:
    """Answers requests below `/views/` from a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        graph = run.graph
        self.training = {m.training.name: m.training for m in graph.models.values() if m.training.lookup}
        self.views: dict[str, View] = {**graph.lookups, **self.training}
        self.logged = self.training | {v.name: v for v in graph.lookups.values() if v.log}
        self._reading = Lock()

    def __call__(self, asked: Asked) -> Answer:
        """The answer to a request."""
        try:
            name, *parts = [_text(part, "the path") for part in asked.path.split("/")[2:]]
            view = self._view(name)
            given = _parameters(asked.query)
            at = given.pop(AS_OF, None)
            if asked.body is None:
                keys = [_key_of(view, parts, given)]
            elif parts or given:
                raise _Refused(400, f"keys are posted to /views/{name}; expected nothing behind it but ?{AS_OF}=TIME")
            else:
                keys = _keys_of(view, asked.body)
            body, there = self._now(view, keys) if at is None else self._then(view, keys, at)
        except _Refused as refused:
            return Answer(
                refused.status, orjson.dumps({"error": str(refused)}, option=orjson.OPT_APPEND_NEWLINE), _JSON
            )
        return Answer(200 if there or asked.body is not None else 404, body, _JSON)

    def _view(self, name: str) -> View:
        if (view := self.views.get(name)) is None:
            names = ", ".join(self.views) or "none; declare a view with lookup=True"
            raise _Refused(404, f"{_short(name)} cannot be looked up; there are: {names}")
        return view

    def _now(self, view: View, keys: Sequence[Any]) -> tuple[bytes, bool]:
        """The answer as of now, and whether any row is there."""
        run = self.run
        if view.name in self.training:
            raise _Refused(400, f"{view.name} is looked up as of a time; expected ?{AS_OF}=TIME")
        if run.lookups is None:
            raise _Refused(503, "the run is starting; ask again when /readyz says that it is ready")
        found = run.lookups.find(view.name, keys)
        fresh = freshness_of(run, run.now(), found.version, [view.name])[view.name]
        head = {
            "view": view.name,
            "version": found.version.number,
            "frontier": instant(fresh.frontier),
            "lag_seconds": {"local": fresh.local_lag / 1e6, "global": fresh.global_lag / 1e6},
            "phase": "live" if run.live else "backfill",
        }
        return _body(head, found.rows, found.there.tolist(), view.schema), bool(found.there.any())

    def _then(self, view: View, keys: Sequence[Any], text: str) -> tuple[bytes, bool]:
        """The answer as of a time, from the log of the view, and whether any row is there."""
        if view.name not in self.logged:
            having = ", ".join(self.logged) or "none"
            raise _Refused(
                400,
                f"{view.name} has no change log (log=True), so it is not known what it was at a time; "
                f"those that have: {having}",
            )
        known = _value(AS_OF, TIME, text)
        wanted = pl.DataFrame(
            [to_series(n, _column(c, view.schema[n]), view.schema[n]) for n, c in _columns(view, keys).items()]
        ).unique()
        with self._reading:
            log = scan(self.run.state.folder / "log" / view.name)
            then = as_of(log.join(wanted.lazy(), on=view.lookup, how="semi", nulls_equal=True), known).collect()
        newest = then.drop(KNOWN, SEQ).group_by(view.lookup).last()
        columns = {n: to_array(newest[n]) for n in view.schema}
        one = np.ones(len(newest), np.int64)
        rows = Delta(columns, one, to_array(newest[AT]), to_array(newest[POS]), one)
        place = {key: i for i, key in enumerate(keys_of(columns, view.lookup))}
        there = [key in place for key in keys]
        some = rows.take(np.array([place[key] for key in keys if key in place], np.int64))
        head = {"view": view.name, AS_OF: instant(known)}
        return _body(head, some, there, view.schema), any(there)


def _body(head: dict[str, Any], rows: Delta, there: Sequence[bool], schema: Schema) -> bytes:
    lines = iter(encode(rows, schema, at="at").split(b"\n"))
    told = b",".join(next(lines) if is_there else b"null" for is_there in there)
    return orjson.dumps(head)[:-1] + b',"rows":[' + told + b"]}\n"


def _columns(view: View, keys: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """By column the parts of keys."""
    return (
        {view.lookup[0]: keys}
        if len(view.lookup) == 1
        else dict(zip(view.lookup, zip(*keys, strict=True), strict=True))
    )


def _column(values: Sequence[Any], dtype: pl.DataType) -> Array:
    out = np.empty(len(values), numpy_type(dtype))
    out[:] = values
    return out


def _text(part: str, what: str) -> str:
    try:
        return unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise _Refused(400, f"{what} is no UTF-8; expected percent-encoded UTF-8") from None


def _parameters(query: str) -> dict[str, str]:
    """By name what a query asks for."""
    try:
        pairs = parse_qsl(query, True, bool(query), errors="strict", max_num_fields=64)
    except ValueError:
        raise _Refused(400, "the query cannot be read; expected name=value, percent-encoded, joined by &") from None
    if len(found := dict(pairs)) < len(pairs):
        raise _Refused(400, "the query names one thing twice; expected each name once")
    return found


def _key_of(view: View, parts: Sequence[str], given: dict[str, str]) -> Any:
    """The key in a path or a query."""
    by = view.lookup
    if parts and not given and len(parts) == len(by):
        named = dict(zip(by, parts, strict=True))
    elif not parts and given.keys() == set(by):
        named = given
    else:
        path, query = "/".join(map(str.upper, by)), "&".join(f"{n}={n.upper()}" for n in by)
        raise _Refused(
            400, f"expected the key of {view.name}: /views/{view.name}/{path}, or /views/{view.name}?{query}"
        )
    values = [_value(n, view.schema[n], _parsed(view.schema[n], named[n])) for n in by]
    return values[0] if len(by) == 1 else tuple(values)


def _keys_of(view: View, body: bytes) -> list[Any]:
    """The keys in what was posted."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(given, dict) or given.keys() != {"keys"} or not isinstance(given["keys"], list):
        raise _Refused(400, 'the body is another object; expected {"keys": [...]}')
    keys, by = given["keys"], view.lookup
    if len(keys) > MOST:
        raise _Refused(400, f"there are {len(keys):,} keys; expected at most {MOST:,}")
    if len(by) == 1:
        return [_value(by[0], view.schema[by[0]], key) for key in keys]
    for key in keys:
        if not isinstance(key, list) or len(key) != len(by):
            raise _Refused(400, f"a key is {_short(key)}; expected a list of {', '.join(by)}")
    return [tuple(_value(n, view.schema[n], v) for n, v in zip(by, key, strict=True)) for key in keys]


def _parsed(dtype: pl.DataType, text: str) -> Any:
    """What a text stands for, as JSON would have it; the text itself when it does not stand for that."""
    if dtype == INT and re.fullmatch("-?[0-9]{1,19}", text):
        return int(text)
    return {"true": True, "false": False}.get(text, text) if dtype == BOOL else text


def _value(name: str, dtype: pl.DataType, given: Any) -> Any:
    """A JSON value as a column of that type holds it."""
    if given is None:
        return null_of(dtype)
    if dtype == STRING and isinstance(given, str):
        return given
    if dtype == BOOL and isinstance(given, bool):
        return int(given)
    if dtype == INT and type(given) is int and -(2**63) < given < 2**63:
        return given
    if dtype == TIME and isinstance(given, str):
        with suppress(ValueError, OverflowError):
            return (time_of(given) - _EPOCH) // timedelta(microseconds=1)
    raise _Refused(400, f"{name} is {_short(given)}; expected {_EXPECTED[dtype]}")


def _short(value: Any) -> str:
    """A JSON value in few letters."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    text = orjson.dumps(value).decode()
    return text if len(text) <= 80 else f"{text[:80]}..."
