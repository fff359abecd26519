"""The scanner: what it takes, msgspec takes too and reads alike; numbers are those of `float()`; text is kept once."""

from __future__ import annotations

import json
import random
import struct
from datetime import datetime, timezone
from typing import Annotated, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scan import INTEGER, MOMENT, REAL, TEXT, TRUTH, Field, Records, Scanner, Texts, plain
from operators.delta import BOOL, FLOAT, INT, STRING, TIME, to_series

FIELDS = [
    Field("id", INTEGER, nullable=False),
    Field("who", TEXT),
    Field("x", REAL),
    Field("ok", TRUTH),
    Field("at", MOMENT),
    Field("n", INTEGER, least=-5, most=5),
]
TYPES = {"id": INT, "who": STRING, "x": FLOAT, "ok": BOOL, "at": TIME, "n": INT}


class Row(msgspec.Struct):
    id: int
    who: str | None = None
    x: float | None = None
    ok: bool | None = None
    at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    n: Annotated[int, msgspec.Meta(ge=-5, le=5)] | None = None


EXACT = msgspec.json.Decoder(Row).decode


def scanned(scanner: Scanner, records: list[bytes], valid: bool = True) -> list[tuple[Any, ...] | None]:
    """For each record its values, None when it is not taken."""
    taken, columns = scanner.scan(Records.of(records), valid)
    lists = [to_series(n, columns[n], t).to_list() for n, t in TYPES.items()]
    lists[4] = [t and t.replace(tzinfo=timezone.utc) for t in lists[4]]
    rows = iter(zip(*lists, strict=True))
    return [next(rows) if took else None for took in taken]


def exact(record: bytes) -> tuple[Any, ...]:
    record.decode()
    row = EXACT(record)
    at = row.at and row.at.astimezone(timezone.utc)
    return row.id, row.who, row.x, row.ok, at, row.n


VALUES: dict[str, st.SearchStrategy[str]] = {
    "id": st.integers(-(10**19), 10**19).map(str) | st.sampled_from(["0", "-0", "01", "1.0", "1e3", "null", '"1"']),
    "who": st.text(max_size=5).map(lambda s: json.dumps(s, ensure_ascii=False))
    | st.sampled_from(['"a\\"b"', '"\\u0041"', '"a\tb"', "null", "1", '"']),
    "x": st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.sampled_from(["1.", ".5", "-", "+1", "1e", "1e+5", "-0.0", "00.5", "1e400", "NaN", "5", "null", "true"]),
    "ok": st.sampled_from(["true", "false", "null", "tru", "True", "1", "trueish"]),
    "at": st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1)).map(lambda t: json.dumps(t.isoformat() + "Z"))
    | st.sampled_from(
        [
            '"2024-02-30T00:00:00Z"', '"2024-02-29T00:00:00Z"', '"2023-02-29T00:00:00Z"', '"2024-01-01T24:00:00Z"',
            '"2024-01-01T00:00:00.1234567Z"', '"2024-01-01T00:00:00+05:30"', '"2024-01-01T00:00:00"',
            '"2024-01-01 00:00:00Z"', '"2024-01-01T00:00:00.5-11:45"', '"2024-01-01T00:00:00."', "null", '""',
        ]
    ),
    "n": st.integers(-7, 7).map(str) | st.just("null"),
    "other": st.sampled_from(["1", '"x"', "null", "[1]", "{}", "-1.5e3", "nul", '"\\n"', "1e999", "true"]),
}  # fmt: skip


@st.composite
def records(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(st.sampled_from(list(VALUES)), max_size=8))
    space = st.sampled_from(["", "", "", " ", "\t \r"])
    fields = [f'{draw(space)}"{n}"{draw(space)}:{draw(space)}{draw(VALUES[n])}{draw(space)}' for n in ["id", *names]]
    text = f"{draw(space)}{{{','.join(fields)}}}{draw(space)}"
    kind = draw(st.integers(0, 5))
    if kind == 0 and text:  # a byte is lost, doubled or another
        i, c = draw(st.integers(0, len(text) - 1)), draw(st.sampled_from('"{}:,\\ \n0a'))
        text = draw(st.sampled_from([text[:i] + text[i + 1 :], text[: i + 1] + text[i:], text[:i] + c + text[i + 1 :]]))
    return text.encode("utf-8", "surrogatepass")


def test_what_is_taken_is_read_as_msgspec_reads_it() -> None:
    scanner, count = Scanner(FIELDS), {"taken": 0, "left": 0}

    @given(st.lists(records(), max_size=8))
    @settings(max_examples=1500, deadline=None)
    def holds(batch: list[bytes]) -> None:
        for record, row in zip(batch, scanned(scanner, batch, valid=False), strict=True):
            count["taken" if row else "left"] += 1
            if row is not None:
                assert repr(row) == repr(exact(record))

    holds()
    assert min(count.values()) > 200


def test_plain_records_are_taken() -> None:
    scanner = Scanner(FIELDS)
    batch = [
        b'{"id":1,"who":"Ann","x":1.5,"ok":true,"at":"2024-02-29T01:02:03.5+01:00","n":-5}',
        b' { "n" : 5 , "other" : "y" , "id" : -999999999999999999 , "x" : 17.000000000000001e-5 } ',
        b'{"id":0,"who":null,"x":null,"ok":null,"at":null,"n":null}',
        '{"id":2,"who":"é"}'.encode(),
        b'{"id":3,"who":"a"}\r',
    ]
    assert scanned(scanner, batch) == [exact(r) for r in batch]
    assert scanned(scanner, batch, valid=False)[3] is None
    strict = Scanner(FIELDS, strict=True)
    assert [row is None for row in scanned(strict, batch)] == [False, True, False, False, False]
    short = Scanner(FIELDS, longest=30)
    assert [row is None for row in scanned(short, batch)] == [True, True, True, False, False]


def test_numbers_are_those_of_float() -> None:
    rng = random.Random(1)
    bits = (struct.unpack("<d", struct.pack("<Q", rng.getrandbits(64)))[0] for _ in range(50_000))
    texts = [repr(x) for x in bits if np.isfinite(x)]
    texts += [repr(rng.random() * 10.0 ** rng.randint(-8, 18)) for _ in range(50_000)]
    texts += [f"-{rng.getrandbits(rng.randint(1, 63))}E{rng.randint(-340, 310)}" for _ in range(50_000)]
    # Half-way between two floats, and as near to it as 19 digits come.
    texts += [str(2**53 + 2 * k + 1) for k in range(2_000)]
    texts += [f"{(2**53 + 2 * k + 1) * 5**j}e{j - 27}" for k in range(50) for j in range(4)]
    texts += [f"{k * 2**64}{tail}" for k in range(1, 40) for tail in ("", ".0", "0", "e-5", "1")]
    texts += ["1844674407370955161.6", "-0", "-0e0", "-0.000"]
    texts += ["0.000000000000000000000000000000012345678901234567", "0.0", "-0.0", "0e5", "4.9e-324", "2.2e-308"]
    taken, columns = Scanner([Field("x", REAL)]).scan(Records.of([b'{"x":%s}' % t.encode() for t in texts]))
    want = np.array([float(t) for t, took in zip(texts, taken, strict=True) if took])
    assert taken.mean() > 0.95
    assert (columns["x"].view(np.int64) == want.view(np.int64)).all()


def test_a_text_that_is_refused_leaves_nothing_behind() -> None:
    batch = [b'{"id":%d,"who":"%s"}' % (i, b"x" * (i % 60)) for i in range(12_000)]
    for i in range(0, 11_000, 50):
        batch[i], batch[i + 1] = b'{"id":1,"who":"a\\"b"}', b'{"id":2,"who":null}'
    scanner = Scanner(FIELDS[:2])
    for _ in range(2):
        taken, columns = scanner.scan(Records.of(batch))
        assert columns["who"].tolist() == [exact(r)[1] for r, took in zip(batch, taken, strict=True) if took]
        (texts,) = scanner._texts.values()
        assert texts._places[: texts._many].sum(1).max() <= len(texts._bytes)


def test_a_field_given_twice_is_left() -> None:
    assert scanned(Scanner(FIELDS), [b'{"id":3,"who":1,"who":"b"}', b'{"id":3,"n":2,"n":3}']) == [None, None]


def test_minus_nought_without_a_point_is_left_because_msgspec_reads_an_integer() -> None:
    assert scanned(Scanner(FIELDS), [b'{"id":3,"x":-0}', b'{"id":3,"x":-0.0}'])[0] is None
    assert repr(scanned(Scanner(FIELDS), [b'{"id":3,"x":-0.0}'])[0]) == repr(exact(b'{"id":3,"x":-0.0}'))


def test_text_is_kept_once_as_long_as_there_is_not_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Texts, "_MANY", 50)
    monkeypatch.setattr(Texts, "_ROOM", 400)
    scanner, rng = Scanner([Field("who", TEXT)]), random.Random(2)
    first = scanner.scan(Records.of([b'{"who":"a"}']))[1]["who"][0]
    assert scanner.scan(Records.of([b'{"who":"a"}']))[1]["who"][0] is first
    for _ in range(200):
        words = [rng.choice(["", "é" * 40, f"{rng.randint(0, 300):x}" * rng.randint(1, 30)]) for _ in range(20)]
        batch = [json.dumps({"who": w}, ensure_ascii=False).encode() for w in words]
        assert scanner.scan(Records.of(batch))[1]["who"].tolist() == words


def test_records_apart_and_together() -> None:
    some, more = Records.of([b"a", b"", b"ccc"]), Records.of([b"d"])
    assert [*some, *more] == list(some.then(more)) == [b"a", b"", b"ccc", b"d"]
    assert list(some.take(slice(1, None)).then(more)) == [b"", b"ccc", b"d"]
    assert list(some.take(np.array([2, 0]))) == [b"ccc", b"a"]
    assert list(Records.of([]).then(more)) == list(more.then(Records.of([]))) == [b"d"]


def test_names_that_json_writes_otherwise() -> None:
    assert [plain(n) for n in ("a", "é", "", 'a"b', "a\\b", "a\n")] == [True, True, True, False, False, False]
