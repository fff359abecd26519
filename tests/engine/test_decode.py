"""Decoding: columns and reasons, against a decoder that reads record after record with `json` and checks by hand."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode import Decoded, Decoder, Shape
from engine.scan import Records
from operators.delta import BOOL, FLOAT, INT, NULL, STRING, TIME, Schema, to_series
from operators.message import UNAVAILABLE

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
EARLIEST, LATEST = 315_532_800_000_000, 4_102_444_800_000_000
NOW = 1_704_067_200_000_000
SCHEMA: Schema = {"id": INT, "who": STRING, "x": FLOAT, "ok": BOOL, "seen": TIME, "t": TIME}


def shape(
    schema: Schema = SCHEMA,
    key: tuple[str, ...] = ("id",),
    at: str | None = "t",
    append_only: bool = False,
    required: tuple[str, ...] = (),
    epoch: Any = None,
) -> Shape:
    needed = frozenset({*key, *([at] if at else []), *required})
    return Shape("s", schema, key, at, {"t": "ms"} if epoch is None else epoch, append_only, needed, EARLIEST, LATEST)


def rows(got: Decoded, schema: Schema = SCHEMA) -> list[tuple[Any, ...]]:
    """(record number, deleted, at, values in the order of the schema)."""
    lists = [to_series(n, got.columns[n], t).to_list() for n, t in schema.items()]
    at = [None if a == NULL else a for a in got.at.tolist()]
    deleted = to_series("deleted", got.deleted, BOOL).to_list()
    return [
        (i, d, a, *values)
        for i, d, a, values in zip(got.index.tolist(), deleted, at, zip(*lists, strict=True), strict=True)
    ]


def reason(record: bytes, form: Any = "rows", strict: bool = False, **how: Any) -> str:
    """Why a record is refused, between two good ones that are not."""
    schema = how.get("schema", SCHEMA)
    good = json.dumps({"id": 1, "t": NOW // 1000} if "t" in schema else {"id": 1}).encode()
    if form == "debezium":
        good = b'{"op":"c","after":' + good + b"}"
    decoder = Decoder(shape(**how), form, strict)
    alone, among = decoder.decode(Records.of([record])), decoder.decode(Records.of([good, record, good]))
    assert alone.bad == [(0, among.bad[0][1])]
    assert [i for i, _ in among.bad] == [1]
    assert among.index.tolist() == [0, 2]
    told = alone.bad[0][1]
    assert "\n" not in told
    assert len(told) < 300
    assert told[:1].lower() == told[:1]
    return told


# The independent decoder: raises on what is bad, None for what is skipped.


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def slow_value(value: Any, column: str, dtype: Any, form: str) -> Any:
    if value is None:
        return None
    if form == "debezium" and dtype == FLOAT and type(value) is str:
        if value in ("NaN", "NAN"):
            return None
        assert value.strip("-") == "Infinity" or value.strip("-")[:1].isdigit()
        return float(value)
    if dtype == STRING:
        assert type(value) is str
    elif dtype == BOOL:
        assert type(value) is bool
    elif dtype == FLOAT:
        assert type(value) in (int, float)
        value = float(value)
    elif dtype == INT:
        assert type(value) is int
        assert NULL < value < 2**63
    elif column == "t":
        assert type(value) is int
        value = EPOCH + timedelta(milliseconds=value)
    else:
        assert type(value) is str
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        assert value.tzinfo is not None
        value = value.astimezone(timezone.utc)
    return value


def slow(record: bytes, form: str) -> tuple[Any, ...] | None:
    if len(record) > 1 << 20:
        raise ValueError
    text = record.decode()
    if not text.strip():
        return None
    row = json.loads(text, parse_constant=_no_constant)
    if row is None and form != "rows":
        return None
    assert isinstance(row, dict)
    deleted, envelope_ms = False, None
    if form == "changes":
        op, weight = row.get("op"), row.get("weight")
        assert op in (None, "insert", "update", "delete", "c", "u", "d", "r")
        assert weight is None or (type(weight) is int and weight in (1, -1))
        deleted = op in ("delete", "d") or (op is None and weight == -1)
        assert op is None or weight is None or deleted == (weight == -1)
    elif form == "debezium":
        if "payload" in row:
            row = row["payload"]
            if row is None:
                return None
        if set(row) == {"ts_ms"} or row.get("op") == "m":
            return None
        if "op" in row:
            op, envelope_ms = row["op"], (row.get("source") or {}).get("ts_ms") or row.get("ts_ms")
            assert op in ("c", "u", "d", "r", "t")
            deleted = op in ("d", "t")
            if op == "t":
                at = int(envelope_ms) * 1000 if envelope_ms else None
                assert at is None or EARLIEST <= at <= LATEST
                return True, at, *[None] * len(SCHEMA)
            row = row["before" if deleted else "after"]
        else:
            assert row.get("__deleted") in (None, "true", "false", True, False)
            deleted = row.get("__deleted") in ("true", True)
            envelope_ms = row.get("__source_ts_ms")
    values = {n: slow_value(row.get(n), n, t, form) for n, t in SCHEMA.items()}
    assert values["id"] is not None
    at = None if values["t"] is None else (values["t"] - EPOCH) // timedelta(microseconds=1)
    if envelope_ms is not None and (deleted or at is None):
        at = int(envelope_ms) * 1000
    elif form == "debezium" and deleted:
        at = None
    if not deleted and values["t"] is None and at is not None:
        values["t"] = EPOCH + timedelta(microseconds=at)
    assert deleted or values["t"] is not None
    assert at is None or EARLIEST <= at <= LATEST
    partial = form == "debezium" and values["who"] == UNAVAILABLE and not deleted
    return None if partial else deleted, at, *values.values()


GOOD: dict[str, st.SearchStrategy[Any]] = {
    "id": st.integers(-3, 3) | st.sampled_from([NULL + 1, 2**63 - 1]),
    "who": st.text(max_size=3) | st.none() | st.just(UNAVAILABLE),
    "x": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 5) | st.none(),
    "ok": st.booleans() | st.none(),
    "seen": st.sampled_from(
        [
            None,
            "2013-01-01T10:15:00Z",
            "2013-01-01T10:15:00.123456+05:30",
            "1969-12-31T23:59:59-11:00",
            "9999-12-31T23:59:59Z",
        ]
    ),
    "t": st.integers(0, 10**9).map(lambda n: NOW // 1000 + n),
}
BAD: dict[str, list[Any]] = {
    "id": [None, "1", 1.0, True, 2**63, NULL, 10**30, [1]],
    "who": [1, ["a"], {}, False],
    "x": ["1", "-2.5e3", True, "NaN", "-Infinity", "B88=", "", float("nan"), float("inf"), []],
    "ok": [0, 1, "true"],
    "seen": ["2013-01-01T10:15:00", 5, "yesterday", ""],
    "t": [None, 0, "2013-01-01T10:15:00Z", NOW, 10**14, -(10**14), 1.5],
}
RAW = [
    b"",
    b" \t",
    b"null",
    b"[]",
    b"5",
    b"{",
    b"{}",
    b'{"id":1}x',
    b"\xef\xbb\xbf{}",
    b'{"id":1,"u":"\xff"}',
    b"[" * 5000,
]


@st.composite
def records(draw: st.DrawFn, form: str) -> bytes:
    kind = draw(st.integers(0, 12))
    if kind == 0:
        return draw(st.sampled_from(RAW))
    if kind in (4, 5):
        return draw(st.sampled_from([b"", b" \t", b"null"]))
    row: dict[str, Any] = {n: draw(s) for n, s in GOOD.items()}
    for name in draw(st.sets(st.sampled_from(["who", "x", "ok", "seen"]))):
        del row[name]
    if kind == 1:
        name = draw(st.sampled_from(list(BAD)))
        row[name] = draw(st.sampled_from(BAD[name]))
    if kind == 2:
        del row[draw(st.sampled_from(["id", "t"]))]
    if kind == 3:
        row["unknown"] = draw(st.sampled_from([1, None, {"a": [1, {"b": 2}]}, "é"]))
    if form == "changes":
        ops = [None, "insert", "update", "delete", "c", "u", "d", "r", "x", 1]
        if draw(st.booleans()):
            row["op"] = draw(st.sampled_from(ops))
        if draw(st.integers(0, 3)) == 0:
            row["weight"] = draw(st.sampled_from([1, -1, None, 2]))
        if row.get("op") == "delete" and draw(st.booleans()):
            row = {"id": row.get("id"), "op": "delete"}
    if form == "debezium":
        ms = draw(st.sampled_from([None, NOW // 1000, str(NOW // 1000), 5, 0]))
        if draw(st.integers(0, 3)) == 0:
            row |= draw(
                st.sampled_from(
                    [{}, {"__deleted": "true"}, {"__deleted": "false"}, {"__deleted": True}, {"__deleted": "x"}]
                )
            )
            row |= {} if ms in (None, 0) else {"__source_ts_ms": ms}
        else:
            op = draw(st.sampled_from(["c", "u", "d", "r", "t", "m", "x"]))
            before = draw(st.sampled_from([None, row, {"id": 1}, {"id": None}]))
            row = {"op": op, "before": before, "after": None if op == "d" else row, "ts_ms": NOW // 1000}
            row["source"] = draw(st.sampled_from([None, {"ts_ms": ms, "db": "x"}, {}]))
        if draw(st.booleans()):
            row = draw(st.sampled_from([row, {"ts_ms": 5}]))
            row = {"schema": {"type": "struct"}, "payload": draw(st.sampled_from([row, None]))}
    text = json.dumps(row, ensure_ascii=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("form", ["rows", "changes", "debezium"])
def test_equals_the_slow_decoder(form: Any) -> None:
    decoder = Decoder(shape(), form)
    seen = {"rows": 0, "bad": 0, "skipped": 0}

    @given(st.lists(records(form), max_size=6))
    @settings(max_examples=150, deadline=None)
    def holds(batch: list[bytes]) -> None:
        want, bad, skipped = [], [], 0
        for i, record in enumerate(batch):
            try:
                row = slow(record, form)
            except (AssertionError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                bad.append(i)
                continue
            if row is None:
                skipped += 1
            else:
                want.append((i, *row))
        got = decoder.decode(Records.of(batch))
        assert [i for i, _ in got.bad] == bad
        assert rows(got) == want
        assert got.skipped == skipped
        for _, told in got.bad:
            assert told
            assert "\n" not in told
            assert len(told) < 300
            assert told[0].lower() == told[0]
        seen["rows"] += len(want)
        seen["bad"] += len(bad)
        seen["skipped"] += skipped

    holds()
    assert min(seen.values()) > 20


def test_types_and_nulls_of_the_columns() -> None:
    good = [b'{"id":1,"t":1704067200000}', b'{"id":2,"t":1704067200000,"x":1,"ok":true,"who":"a"}']
    got = Decoder(shape()).decode(Records.of(good))
    assert {n: c.dtype for n, c in got.columns.items()} == {
        "id": np.int64, "who": object, "x": np.float64, "ok": np.int8, "seen": np.int64, "t": np.int64,
    }  # fmt: skip
    none = (None, None, None, None, datetime(2024, 1, 1, tzinfo=timezone.utc))
    assert rows(got)[0] == (0, False, NOW, 1, *none)
    assert got.deleted.dtype == np.int8
    assert got.at.dtype == got.index.dtype == np.int64


def test_nothing_and_blank_records() -> None:
    for form in ("rows", "changes", "debezium"):
        got = Decoder(shape(), form).decode(Records.of([]))
        assert (len(got.at), got.bad, got.skipped, list(got.columns)) == (0, [], 0, list(SCHEMA))
        got = Decoder(shape(), form).decode(Records.of([b"", b" \r\t"]))
        assert (len(got.at), got.bad, got.skipped) == (0, [], 2)


def test_the_last_of_two_fields_counts() -> None:
    got = Decoder(shape()).decode(Records.of([b'{"id":1,"who":"a","who":"b","t":1704067200000}']))
    assert got.columns["who"].tolist() == ["b"]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (b'{"t":1}', "null key: `id` is missing"),
        (b'{"id":null,"t":1}', "null key: `id` is null"),
        (b'{"id":1,"x":"abc"}', "expected `float | null`, got `str` - at `$.x`: 'abc'"),
        (b'{"id":9223372036854775808}', "expected `int` <= 9223372036854775807 - at `$.id`: 9223372036854775808"),
        (b'{"id":-9223372036854775808}', "expected `int` >= -9223372036854775807"),
        (b'{"id":1}', "`t` is null or missing: it is required"),
        (b'{"id":1,"t":0}', "event time 1970-01-01T00:00:00Z lies before 1980-01-01T00:00:00Z: a default value?"),
        (
            b'{"id":1,"t":4102444800001}',
            "event time 2100-01-01T00:00:00.001000Z lies after 2100-01-01T00:00:00Z: another",
        ),
        (b'{"id":1,"t":1704067200000000}', "- at `$.t`: 1704067200000000; is the unit 'ms'?"),
        (
            b'{"id":1,"t":1,"seen":"2013-01-01T10:15:00"}',
            "; write it with Z or an offset, such as 2013-01-01T10:15:00Z",
        ),
        (b'{"id":1,"t":1,"seen":5}', "got `int` - at `$.seen`: 5; for numbers declare epoch={'seen': 'ms'}"),
        (b'{"id":1,"t":1704067200000,"seen":"0001-01-01T00:00:00+01:00"}', "`seen` lies outside the years 1 to 9999"),
        (b'{"id":1,"x":NaN}', "not JSON: invalid character (byte 12); NaN and Infinity are not JSON: write null"),
        (b'{"id":1,"x":-Infinity}', "NaN and Infinity are not JSON: write null"),
        (b'{"id":1', "not JSON: ends early"),
        (b'{"id":1} x', "not JSON: trailing characters (byte 10)"),
        (b'{"id":1,"u":"\xff"}', "bad utf-8 at byte 13"),
        (b'\xef\xbb\xbf{"id":1}', "begins with a byte order mark: write utf-8 without it"),
        (b'{"id":1,"u":' + b"[" * 10_000, "nested too deeply"),
        (b"null", "expected `object`, got `null`"),
        (b"[1]", "expected `object`, got `array`"),
    ],
)
def test_reasons(record: bytes, told: str) -> None:
    assert told in reason(record)


def test_a_long_record_is_refused() -> None:
    record = b'{"id":1,"t":1704067200000,"who":"' + b"x" * (10 << 20) + b'"}'
    assert reason(record) == f"record of {len(record):,} bytes: more than 1,048,576"


def test_no_reason_holds_much_of_the_record() -> None:
    for record in (b'{"id":"%s"}', b'{"id":1,"%s":1}', b'{"id":1,"seen":"%s"}', b'{"id":1,"op":"%s"}'):
        for form in ("changes", "debezium"):
            assert reason(record % (b"\\n" + b"z" * 500), form, strict=True).count("z") <= 80


def test_strict_columns() -> None:
    record = b'{"id":1,"t":1704067200000,"extra":1}'
    assert rows(Decoder(shape()).decode(Records.of([record])))
    for form in ("rows", "changes", "debezium"):
        assert "object contains unknown field `extra`" in reason(record, form, strict=True)
    good = b'{"id":1,"t":1704067200000,"op":"c","weight":1,"at":"2024-01-01T00:00:00Z"}'
    assert Decoder(shape(), "changes", True).decode(Records.of([good])).bad == []
    flat = b'{"id":1,"t":1704067200000,"__deleted":"false","__lsn":5}'
    assert Decoder(shape(), "debezium", True).decode(Records.of([flat])).bad == []


def test_a_field_that_is_a_column_is_never_reserved() -> None:
    schema: Schema = {"id": INT, "op": STRING, "weight": FLOAT, "at": STRING}
    got = Decoder(shape(schema, at=None), "changes").decode(
        Records.of([b'{"id":1,"op":"delete","weight":-1,"at":"x"}'])
    )
    assert rows(got, schema) == [(0, False, None, 1, "delete", -1.0, "x")]


def test_debezium_with_columns_named_as_its_fields() -> None:
    schema: Schema = {"id": INT, "op": STRING, "source": STRING, "payload": STRING}
    row = b'{"id":1,"op":"c","source":"web","payload":"p"}'
    envelope = b'{"op":"d","before":' + row + b',"after":null,"ts_ms":1704067200000}'
    wrapped = b'{"schema":{},"payload":' + envelope + b"}"
    got = Decoder(shape(schema, at=None), "debezium").decode(Records.of([row, envelope, wrapped]))
    values = (1, "c", "web", "p")
    assert rows(got, schema) == [(0, False, None, *values), (1, True, NOW, *values), (2, True, NOW, *values)]


def test_the_flattened_form_of_debezium() -> None:
    schema: Schema = {"id": INT}
    lines = [
        b'{"id":1,"__op":"d","__source_ts_ms":"1704067200000"}',
        b'{"id":1,"__op":"u","__deleted":"false","__ts_ms":1704067200000}',
        b'{"id":1,"__op":"r"}',
        b'{"schema":{},"payload":{"id":1,"__deleted":"true"}}',
    ]
    got = Decoder(shape(schema, at=None), "debezium").decode(Records.of(lines))
    assert rows(got, schema) == [(0, True, NOW, 1), (1, False, NOW, 1), (2, False, None, 1), (3, True, None, 1)]


def test_a_view_file_is_read_as_changes() -> None:
    schema: Schema = {"id": INT, "n": INT}
    lines = [
        b'{"id":1,"n":5,"at":"2024-01-01T00:00:00Z","weight":1}',
        b'{"id":1,"n":5,"at":"2024-01-01T00:00:00Z","weight":-1}',
        b'{"id":1,"n":6,"at":"2024-01-01T00:00:00Z","weight":1}',
        b'{"id":1,"n":6,"at":null,"weight":1}',
    ]
    got = Decoder(shape(schema, at=None), "changes").decode(Records.of(lines))
    assert rows(got, schema) == [
        (0, False, NOW, 1, 5),
        (1, True, NOW, 1, 5),
        (2, False, NOW, 1, 6),
        (3, False, None, 1, 6),
    ]


@pytest.mark.parametrize(
    ("record", "form", "told"),
    [
        (
            b'{"id":1,"op":"delete"}',
            "changes",
            "a delete, but source 's' takes only inserts: declare append_only=False",
        ),
        (b'{"id":1,"weight":-1}', "changes", "a delete, but source 's'"),
        (b'{"id":1,"t":1704067200000,"op":"update"}', "changes", "an update, but source 's'"),
        (
            b'{"op":"u","after":{"id":1}}',
            "debezium",
            "an update, but source 's' takes only inserts: declare append_only=F",
        ),
        (b'{"op":"d","before":{"id":1}}', "debezium", "a delete, but source 's'"),
        (b'{"op":"t"}', "debezium", "a truncation, but source 's'"),
        (b'{"id":1,"__deleted":"true"}', "debezium", "a delete, but source 's'"),
    ],
)
def test_an_append_only_source_takes_inserts(record: bytes, form: Any, told: str) -> None:
    assert told in reason(record, form, append_only=True)


@pytest.mark.parametrize(
    ("record", "form", "told"),
    [
        (
            b'{"id":1,"op":"upsert"}',
            "changes",
            "invalid value - at `$.op`: 'upsert'; expected 'insert', 'upd",
        ),
        (b'{"id":1,"op":""}', "changes", "invalid value - at `$.op`: ''; expected 'insert', 'update' or 'delete'"),
        (b'{"id":1,"weight":3}', "changes", "invalid value - at `$.weight`: 3; expected 1 or -1"),
        (b'{"id":1,"op":"delete","weight":1}', "changes", "op 'delete' and weight 1 contradict each other"),
        (b'{"op":"d","before":null}', "debezium", "op 'd' without 'before': its key is unknown - at `$.before`"),
        (b'{"schema":{},"payload":{"op":"u"}}', "debezium", "op 'u' without 'after': its row is unknown"),
        (b'{"op":"x","after":{"id":1}}', "debezium", "op is 'x': expected 'c', 'u', 'd', 'r', 't' or 'm'"),
        (b'{"payload":{"op":"c","after":{"id":1,"x":"a"}}}', "debezium", "`x` is the text 'a': expected a number"),
        (b'{"op":"c","after":{"id":null}}', "debezium", "null key: `id` is null"),
        (b'{"op":"d","before":{"who":"a"}}', "debezium", "null key: `id` is missing"),
        (
            b'{"op":"c","after":{"id":1},"ts_ms":"soon"}',
            "debezium",
            "ts_ms is 'soon': expected milliseconds since 1970",
        ),
        (b'{"op":"c","after":{"id":1},"ts_ms":1e300}', "debezium", "beyond every date"),
        (b'{"id":1,"__deleted":"maybe"}', "debezium", "__deleted is 'maybe': expected 'true' or 'false'"),
        (b"[1]", "debezium", "expected an object, got [1] - at `$`"),
    ],
)
def test_reasons_of_changes(record: bytes, form: Any, told: str) -> None:
    assert told in reason(record, form)


def test_a_required_column_may_be_null_in_a_delete_only() -> None:
    decoder = Decoder(shape(required=("who",)), "changes")
    got = decoder.decode(Records.of([b'{"id":1,"t":1704067200000}', b'{"id":1,"op":"delete"}']))
    assert got.bad == [(0, "`who` is null or missing: it is required")]
    assert rows(got) == [(1, True, None, 1, None, None, None, None, None)]


@pytest.mark.parametrize(("unit", "number"), [("s", NOW // 10**6), ("ms", NOW // 1000), ("us", NOW)])
def test_epochs(unit: str, number: int) -> None:
    decoder = Decoder(shape(epoch={"t": unit, "seen": unit}))
    got = decoder.decode(Records.of([b'{"id":1,"t":%d}' % number, b'{"id":1,"t":%d,"seen":%d}' % (number, number)]))
    assert got.at.tolist() == [NOW, NOW]
    assert got.columns["seen"].tolist() == [NULL, NOW]


def test_an_unknown_format() -> None:
    with pytest.raises(ValueError, match="the format is 'csv': expected 'rows', 'changes' or 'debezium'"):
        Decoder(shape(), "csv")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["rows", "changes", "debezium"])
@pytest.mark.parametrize(
    ("key", "row"),
    [
        (b'{"id": 7}', 7),
        (b'{"schema": {"type": "struct"}, "payload": {"id": 7}}', 7),
        (b"7", 7),
        (b"seven", "`int`, got `str` - at `$.id`"),
        (b'{"other": 7}', "null key: `id` is missing"),
        (b'{"id": null}', "null key: `id` is null"),
        (b"\xff", "bad utf-8 at byte 0"),
        (None, "neither a key nor a value"),
    ],
)
def test_a_tombstone_deletes_its_key(form: Any, key: bytes | None, row: Any) -> None:
    shape = Shape("s", {"id": INT, "name": STRING}, ("id",), None, {}, False, frozenset({"id"}), 0, 0)
    value = b'{"id": 1}' if form != "debezium" else b'{"op": "c", "after": {"id": 1}}'
    got = Decoder(shape, form).decode(Records.of([value, b"", value]), [(1, key)])
    if isinstance(row, int):
        assert got.columns["id"].tolist() == [1, row, 1]
        assert got.columns["name"].tolist() == [None] * 3
        assert got.deleted.tolist() == [False, True, False]
        assert got.at.tolist() == [NULL] * 3
        assert (got.bad, got.skipped) == ([], 0)
    else:
        assert got.index.tolist() == [0, 2]
        ((number, reason),) = got.bad
        assert number == 1
        assert row in reason


def test_tombstones_of_text_keys_and_of_several_columns() -> None:
    text = Shape("s", {"id": STRING}, ("id",), None, {}, False, frozenset({"id"}), 0, 0)
    keys = [b"N102", b'"N102"', b'{"id": "N102"}', b"102", b"true", b""]
    got = Decoder(text).decode(Records.of([b""] * 6), list(enumerate(keys)))
    assert got.columns["id"].tolist() == ["N102", "N102", "N102", "102", "true", ""]
    both = Shape("s", {"a": INT, "b": INT}, ("a", "b"), None, {}, False, frozenset({"a", "b"}), 0, 0)
    got = Decoder(both).decode(Records.of([b""] * 2), [(0, b'{"b": 2, "a": 1, "more": 3}'), (1, b"1")])
    assert (got.columns["a"].tolist(), got.columns["b"].tolist()) == ([1], [2])
    assert got.bad == [(1, "a tombstone whose key is 1: expected an object of a, b")]


def test_a_tombstone_of_an_append_only_source() -> None:
    shape = Shape("s", {"id": INT}, ("id",), None, {}, True, frozenset({"id"}), 0, 0)
    got = Decoder(shape).decode(Records.of([b""]), [(0, b"1")])
    assert got.bad == [(0, "a tombstone, but source 's' takes only inserts: declare append_only=False")]
    got = Decoder(shape, "debezium").decode(Records.of([b""]), [(0, b"1")])
    assert (got.bad, got.skipped) == ([], 1)


# ---- what is peculiar to Debezium

ROW: Schema = {"id": INT, "note": STRING, "x": FLOAT, "n": INT}


def envelope(**after: Any) -> bytes:
    return json.dumps({"op": "u", "after": {"id": 1, **after}}).encode()


def decoded(*records: bytes, form: Any = "debezium", schema: Schema = ROW, append_only: bool = False) -> Decoded:
    return Decoder(shape(schema, at=None, append_only=append_only), form).decode(Records.of(list(records)))


@pytest.mark.parametrize("told", [UNAVAILABLE, "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==", UNAVAILABLE.encode().hex()])
def test_a_text_that_is_not_told_is_as_before(told: str) -> None:
    flat = json.dumps({"id": 1, "note": told, "__op": "u"}).encode()
    got = decoded(envelope(note="a"), envelope(note=told), flat, envelope())
    assert got.columns["note"].tolist() == ["a", UNAVAILABLE, UNAVAILABLE, None]
    assert to_series("deleted", got.deleted, BOOL).to_list() == [False, None, None, False]


def test_in_other_formats_that_is_a_text_like_any_other() -> None:
    for form in ("rows", "changes"):
        got = decoded(json.dumps({"id": 1, "note": UNAVAILABLE}).encode(), form=form)
        assert (got.columns["note"].tolist(), got.deleted.tolist()) == ([UNAVAILABLE], [0])


def test_where_nothing_can_be_before_a_text_that_is_not_told_is_null() -> None:
    got = decoded(envelope(note=UNAVAILABLE).replace(b'"u"', b'"c"'), append_only=True)
    assert (got.columns["note"].tolist(), got.deleted.tolist()) == ([None], [0])


def test_a_delete_tells_its_key_only() -> None:
    before = json.dumps({"op": "d", "before": {"id": 1, "note": UNAVAILABLE}}).encode()
    assert decoded(before).deleted.tolist() == [1]


def test_floats_as_text() -> None:
    texts = ["19.99", "-1", "1e30", "NaN", "NAN", "Infinity", "-Infinity", "POSITIVE_INFINITY", "NEGATIVE_INFINITY"]
    got = decoded(*(envelope(x=x) for x in texts))
    inf = float("inf")
    assert to_series("x", got.columns["x"], FLOAT).to_list() == [19.99, -1, 1e30, None, None, inf, -inf, inf, -inf]
    assert got.bad == []


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ({"x": "B88="}, "`x` is the text 'B88=': expected a number; let Debezium write"),
        ({"x": "1e999"}, "`x` is the text '1e999': expected a number"),
        ({"x": {"scale": 0, "value": "DJ8snNBGdO3qQAAAAA=="}}, "decimal.handling.mode=double or string"),
        ({"note": {"scale": 0, "value": "DA=="}}, "got `object` - at `$.after.note`; let Debezium write numeric"),
        ({"n": "19"}, "got `str` - at `$.after.n`: '19'; let Debezium write numeric columns as numbers or text"),
    ],
)
def test_a_decimal_that_is_no_number_is_refused_with_the_cure(cells: dict[str, Any], told: str) -> None:
    got = decoded(envelope(), envelope(**cells), envelope())
    assert got.index.tolist() == [0, 2]
    ((number, why),) = got.bad
    assert number == 1
    assert told in why


BEGIN = {"status": "BEGIN", "id": "753:27", "ts_ms": 5, "event_count": None, "data_collections": None}


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_debezium_says_about_itself_is_skipped(wrapped: bool) -> None:
    end = {**BEGIN, "status": "END", "event_count": 1, "data_collections": [{"data_collection": "a", "event_count": 1}]}
    message = {"op": "m", "ts_ms": 5, "source": {"ts_ms": 5}, "message": {"prefix": "a", "content": "YQ=="}}
    said = [BEGIN, end, {"ts_ms": 5}, {"ts_ms": 5, "ts_us": 5000, "ts_ns": 5000000}, message]
    records = [json.dumps({"schema": {}, "payload": m} if wrapped else m).encode() for m in said]
    for schema in (ROW, {"id": STRING, "status": STRING}):
        got = decoded(*records, schema=schema)
        assert (got.bad, len(got.index), got.skipped) == ([], 0, 5)


def test_a_row_that_looks_nearly_so_is_a_row() -> None:
    schema: Schema = {"id": STRING, "status": STRING}
    for row in ({"id": "1", "status": "BEGIN"}, {**BEGIN, "status": "OPEN"}, {**BEGIN, "more": 1}):
        assert len(decoded(json.dumps(row).encode(), schema=schema).index) == 1
    schema = {"id": STRING, "event_count": INT}
    assert len(decoded(json.dumps(BEGIN).encode(), schema=schema).index) == 1
