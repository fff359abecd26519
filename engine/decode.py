"""From records to columns: each record is one message, decoded and checked alone, so that a bad one harms no other.

What a message means depends on the format:

| format     | a message                                                                                            |
| ---------- | ---------------------------------------------------------------------------------------------------- |
| "rows"     | a JSON object of columns: an insert; of a table: the newest version of its key                        |
| "changes"  | the same, with the optional fields `op` ("insert", "update", "delete" or c, u, d, r) and `weight`     |
|            | (1 or -1; -1 is a delete), and, for a source without an event time of its own, `at`                   |
| "debezium" | a change envelope, bare or as {"schema", "payload"}, or its flattened form with `__deleted`           |

A field that has the name of a column is that column and never `op`, `weight` or `at`. A missing or null field is null;
of fields given twice the last counts, but each value must fit. What asks for nothing is skipped: blank records,
tombstones (null) of "changes" and "debezium", and what Debezium writes about itself: heartbeats, messages (op m), where
a transaction begins and ends.

A delete needs its key only. Debezium's truncation (op t) is a deleted row without a key: of all keys. A text that
Debezium does not tell, because it is long and an update did not touch it, is as it was before: the message is one whose
`deleted` is null (`operators/message.py`). Floats may come as text, also "NaN", which is null, and "Infinity".

A record of a topic can have no value but a key: a tombstone, which deletes that key. The key is a JSON object of the
key columns (Debezium's may be wrapped as its values are), or the value of a single key column, in JSON or plain.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from engine.scan import INTEGER, MOMENT, REAL, TEXT, TRUTH, Field, Records, Scanner, plain
from operators.delta import (
    BOOL,
    FLOAT,
    INT,
    NULL,
    NULL_BOOL,
    STRING,
    TIME,
    Array,
    Columns,
    Ints,
    Schema,
    is_null,
    null_of,
    numpy_type,
)
from operators.message import UNAVAILABLE

Format = Literal["rows", "changes", "debezium"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The years 1 to 9999, in which a time can be written: microseconds of the first and the last."""
_SCALE = {"s": 1_000_000, "ms": 1_000, "us": 1}
_DELETES = {"delete", "d"}
_UPDATES = {"update", "u"}
_INSERT, _UPDATE, _DELETE, _DOUBTFUL = range(1, 5)
_ASKED: dict[str | None, int] = {
    None: 0,
    **dict.fromkeys(("insert", "c", "r"), _INSERT),
    **dict.fromkeys(_UPDATES, _UPDATE),
    **dict.fromkeys(_DELETES, _DELETE),
}
_OPS = Literal["insert", "update", "delete", "c", "u", "d", "r"]
_MALFORMED = re.compile(r"^JSON is malformed: |^Input data was ")
_PATH = re.compile(r"`\$\.([^`]*)`")
_UNTOLD = (UNAVAILABLE, b64encode(UNAVAILABLE.encode()).decode(), UNAVAILABLE.encode().hex())
"""What stands for a value that is not told: of a text, and of bytes as Debezium writes them."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
_NO_NUMBER = {
    "nan": np.nan,
    **dict.fromkeys(("infinity", "+infinity", "positive_infinity"), np.inf),
    **dict.fromkeys(("-infinity", "negative_infinity"), -np.inf),
}
_TRANSACTION = {"status", "id", "event_count", "data_collections", "ts_ms"}
_CLOCKS = {"ts_ms", "ts_us", "ts_ns"}
_DECIMAL = "; let Debezium write numeric columns as numbers or text: decimal.handling.mode=double or string"


@dataclass(frozen=True)
class Shape:
    """What a decoder must know of a source.

    schema: its columns. key: what identifies a row. at: the column with the event time, if it has one. epoch: the unit
    of Datetime columns that arrive as integers. append_only: whether updates, deletes and truncations are refused.
    required: columns that may not be null; they contain the key and `at`. earliest, latest: the event times that are
    believed, microseconds, both inclusive.
    """

    name: str
    schema: Schema
    key: tuple[str, ...]
    at: str | None
    epoch: Mapping[str, Literal["s", "ms", "us"]]
    append_only: bool
    required: frozenset[str]
    earliest: int
    latest: int


@dataclass
class Decoded:
    """The rows of a sequence of records.

    columns: of the good rows. deleted: a Boolean column, whether a row says that its key is gone; its other columns may
    be null then. Where it is null, some texts are as they were before. at: event time in microseconds, null where the
    record gives none. index: which record each row came from, ascending. bad: (record number, reason), ascending.
    skipped: how many records asked for nothing.
    """

    columns: Columns
    deleted: Array
    at: Ints
    index: Ints
    bad: list[tuple[int, str]] = field(default_factory=list)
    skipped: int = 0

    def among(self, others: Decoded, numbers: Ints) -> Decoded:
        """With the rows of other records of the same sequence, whose numbers are given."""
        index = np.concatenate([self.index, numbers[others.index]])
        order = np.argsort(index)
        return Decoded(
            {n: np.concatenate([c, others.columns[n]])[order] for n, c in self.columns.items()},
            np.concatenate([self.deleted, others.deleted])[order],
            np.concatenate([self.at, others.at])[order],
            index[order],
            sorted([*self.bad, *((int(numbers[i]), reason) for i, reason in others.bad)]),
            self.skipped + others.skipped,
        )


class _Refused(ValueError):
    """A record that is well-formed and cannot be accepted; the text is the reason."""


class _Message(NamedTuple):
    row: Any
    deleted: bool
    at: int


class _Source(msgspec.Struct, gc=False):
    ts_ms: int | str | None = None


class Decoder:
    """Decodes the records of one source.

    strict_columns: whether a record with a field that is no column is bad; otherwise such fields are ignored.
    max_record: the most bytes of a record.

    >>> from operators.delta import INT, STRING
    >>> shape = Shape("users", {"id": INT, "name": STRING}, ("id",), None, {}, False, frozenset({"id"}), 0, 0)
    >>> records = [b'{"id": 1, "name": "Ann"}', b'{"id": 1, "op": "delete"}', b'{"id": "x"}']
    >>> got = Decoder(shape, "changes").decode(Records.of(records))
    >>> got.columns["id"].tolist(), got.deleted.tolist(), got.index.tolist()
    ([1, 1], [0, 1], [0, 1])
    >>> got.bad
    [(2, "expected `int`, got `str` - at `$.id`: 'x'")]
    """

    def __init__(
        self, shape: Shape, form: Format = "rows", strict_columns: bool = False, *, max_record: int = 1 << 20
    ) -> None:
        self.shape = shape
        self.form = form
        self.strict_columns = strict_columns
        self.max_record = max_record
        self._fields = {name: f"f{i}" for i, name in enumerate(shape.schema)}
        self._columns = [_Column(name, f, shape, form == "debezium") for name, f in self._fields.items()]
        self._texts = [n for n, t in shape.schema.items() if form == "debezium" and t == STRING and n not in shape.key]
        self._row = self._struct({})
        self._empty = self._row(**dict.fromkeys(self._fields.values()))
        self._loose = shape.required - set(shape.key)
        self._op = self._weight = self._reserved_at = False
        self._plain = True
        parsed: Any = self._row
        if form == "changes":
            self._op, self._weight = "op" not in shape.schema, "weight" not in shape.schema
            self._reserved_at = shape.at is None and "at" not in shape.schema
            extra: dict[str, Any] = {}
            if self._op:
                extra["op"] = _OPS | None
            if self._weight:
                extra["weight"] = Literal[1, -1] | None
            if self._reserved_at:
                extra["at"] = Annotated[datetime, msgspec.Meta(tz=True)] | None
            elif strict_columns and "at" not in shape.schema:
                extra["at"] = Any
            parsed = self._struct(extra) | None
        elif form == "debezium":
            self._plain = not {"op", "before", "after", "source", "payload"} & set(shape.schema)
            self._flat = self._struct(
                {
                    "__deleted": bool | str | None,
                    "__op": str | None,
                    "__source_ts_ms": int | str | None,
                    "__ts_ms": int | str | None,
                },
                strict=False,
            )
            self._parse_flat = msgspec.json.Decoder(self._flat).decode
            parts: list[Any] = [
                ("op", str | None, None),
                ("before", self._row | None, None),
                ("after", self._row | None, None),
                ("source", _Source | None, None),
                ("ts_ms", int | str | None, None),
            ]
            body = msgspec.defstruct("Body", parts, gc=False)
            wrapped = ("payload", body | None | msgspec.UnsetType, msgspec.UNSET)
            parsed = msgspec.defstruct("Envelope", [wrapped, *parts], gc=False) | None
        elif form != "rows":
            raise ValueError(f"the format is {form!r}: expected 'rows', 'changes' or 'debezium'")
        self._parse: Callable[[bytes], Any] = msgspec.json.Decoder(parsed).decode
        self._scanner = None
        if form != "debezium" and all(map(plain, shape.schema)):
            fields = [c.scanned for c in self._columns]
            fields += [Field("op", TEXT)] * self._op + [Field("weight", INTEGER, least=-1, most=1)] * self._weight
            self._scanner = Scanner([*fields, *[Field("at", MOMENT)] * self._reserved_at], strict_columns, max_record)

    def decode(self, records: Records, tombstones: Sequence[tuple[int, bytes | None]] = ()) -> Decoded:
        """The rows of the records, in their order. No record makes it raise.

        tombstones: the numbers of blank records that have no value, and their keys.
        """
        found = self._decode(records)
        if not tombstones:
            return found
        found.skipped -= len(tombstones)
        return found.among(self._deletes([key for _, key in tombstones]), np.array([i for i, _ in tombstones]))

    def _deletes(self, keys: Sequence[bytes | None]) -> Decoded:
        rows: list[Any] = []
        index: list[int] = []
        bad: list[tuple[int, str]] = []
        quiet = self.form == "debezium" and self.shape.append_only  # the delete itself was refused
        for i, key in enumerate(keys):
            try:
                if key is None:
                    raise _Refused("neither a key nor a value")
                if not quiet:
                    self._allow("a tombstone")
                    rows.append(self._keyed(key))
                    index.append(i)
            except Exception as error:
                bad.append((i, self._why(key or b"", error)))
        gone = np.ones(len(rows), np.bool_)
        return self._build(rows, gone, None, np.array(index, np.int64), bad, len(keys) - len(rows) - len(bad))

    def _keyed(self, key: bytes) -> Any:
        """A row of which only the key is known."""
        names = self.shape.key
        try:
            given = msgspec.json.decode(key)
        except (msgspec.DecodeError, UnicodeDecodeError):
            given = key.decode()
        if isinstance(given, dict) and "payload" in given and "payload" not in names:
            given = given["payload"]
        if not isinstance(given, dict):
            if len(names) > 1:
                raise _Refused(f"a tombstone whose key is {_short(given)}: expected an object of {', '.join(names)}")
            text = self.shape.schema[names[0]] == STRING and not isinstance(given, str)
            given = {names[0]: key.decode() if text else given}
        return self._convert({n: given[n] for n in names if n in given}, self._row, "$")

    def _decode(self, records: Records) -> Decoded:
        if self._scanner is None:
            return self._one_by_one(list(records))
        taken, columns = self._scanner.scan(records, self._valid(records))
        index = np.flatnonzero(taken)
        deleted, given, doubtful = self._changes(columns, len(index))
        if doubtful is not None:
            taken[index[doubtful]] = False
            columns, index = {n: c[~doubtful] for n, c in columns.items()}, index[~doubtful]
            deleted, given = deleted[~doubtful], given if given is None else given[~doubtful]
        scanned = self._checked(columns, deleted, given, index, [], 0)
        if len(index) == len(records):
            return scanned
        rest = np.flatnonzero(~taken)
        return scanned.among(self._one_by_one([records[i] for i in rest.tolist()]), rest)

    def _valid(self, records: Records) -> bool:
        if records.block.isascii():
            return True
        try:
            records.block.decode()
        except UnicodeDecodeError:
            return False
        return True

    def _changes(
        self, columns: Columns, n: int
    ) -> tuple[npt.NDArray[np.bool_], Ints | None, npt.NDArray[np.bool_] | None]:
        """What scanned rows ask for, from the fields that are no columns, which are taken out.

        Whether each is a delete, what it says of its time, and which rows are to be looked at alone.
        """
        given = columns.pop("at") if self._reserved_at else None
        none = np.zeros(n, np.bool_)
        if not self._op and not self._weight:
            return none, given, None
        op = none.astype(np.int64)
        if self._op and not is_null(found := columns.pop("op")).all():
            op = np.fromiter((_ASKED.get(o, _DOUBTFUL) for o in found.tolist()), np.int64, n)
        weight = columns.pop("weight") if self._weight else np.full(n, NULL)
        deleted = (op == _DELETE) | ((op == 0) & (weight == -1))
        doubtful = (op == _DOUBTFUL) | (weight == 0)
        doubtful |= (op > 0) & (weight != NULL) & (deleted != (weight == -1))
        if self.shape.append_only:
            doubtful |= deleted | (op == _UPDATE)
        return deleted, given, doubtful if doubtful.any() else None

    def _one_by_one(self, records: list[bytes]) -> Decoded:
        """`decode` by msgspec."""
        parsed: list[Any] | None = None
        if self._clean(records):
            try:
                parsed = list(map(self._parse, records))
            except Exception:  # beside msgspec's errors UnicodeDecodeError and RecursionError; found again one by one
                parsed = None
        if parsed is not None and (self.form == "rows" or (self.form == "changes" and self._all_upserts(parsed))):
            return self._build(parsed, None, None, np.arange(len(parsed)), [], 0)
        rows: list[Any] = []
        deleted: list[bool] = []
        at: list[int] = []
        index: list[int] = []
        bad: list[tuple[int, str]] = []
        for i, record in enumerate(records):
            try:
                message = self._one(record) if parsed is None else self._message(parsed[i], record)
            except Exception as error:
                bad.append((i, self._why(record, error)))
                continue
            if message is not None:
                rows.append(message.row)
                deleted.append(message.deleted)
                at.append(message.at)
                index.append(i)
        skipped = len(records) - len(rows) - len(bad)
        given = np.array(at, np.int64) if self.form == "debezium" or self._reserved_at else None
        return self._build(rows, np.array(deleted, np.bool_), given, np.array(index, np.int64), bad, skipped)

    def _struct(self, extra: Mapping[str, Any], strict: bool = True) -> Any:
        """A struct type of the columns and of optional further fields, the latter under their own names."""
        key = self.shape.key
        names = {**self._fields, **{n: n.strip("_") for n in extra}}
        parts: list[Any] = [
            (c.field, c.type) if c.name in key else (c.field, c.type | None, None) for c in self._columns
        ]
        parts += [(names[n], t, None) for n, t in extra.items()]
        return msgspec.defstruct(
            "Row",
            parts,
            rename={f: n for n, f in names.items()},
            kw_only=True,
            gc=False,
            forbid_unknown_fields=strict and self.strict_columns,
        )

    def _clean(self, records: Sequence[bytes]) -> bool:
        """Whether no record is too long or bad UTF-8, which msgspec overlooks in fields that it skips."""
        joined = b"\n".join(records)
        if len(joined) > self.max_record and max(map(len, records)) > self.max_record:
            return False
        if joined.isascii():
            return True
        try:
            joined.decode()
        except UnicodeDecodeError:
            return False
        return True

    def _one(self, record: bytes) -> _Message | None:
        if len(record) > self.max_record:
            raise _Refused(f"record of {len(record):,} bytes: more than {self.max_record:,}")
        record.decode()
        if not record.strip():
            return None
        if self.form != "debezium":
            return self._message(self._parse(record), record)
        try:
            parsed = self._parse(record)
        except Exception:
            return self._by_parts(record)
        return self._message(parsed, record)

    def _message(self, parsed: Any, record: bytes) -> _Message | None:
        """What a record asks for; None for nothing. Raises `_Refused` and msgspec's errors."""
        if self.form == "rows":
            return _Message(parsed, False, NULL)
        if parsed is None:
            return None
        if self.form == "changes":
            return self._change(parsed)
        return self._envelope(parsed, record)

    def _all_upserts(self, rows: list[Any]) -> bool:
        return (
            None not in rows
            and not self._reserved_at
            and not (self._op and any(map(attrgetter("op"), rows)))
            and not (self._weight and any(map(attrgetter("weight"), rows)))
        )

    def _change(self, row: Any) -> _Message:
        op = row.op if self._op else None
        weight = row.weight if self._weight else None
        deleted = weight == -1 if op is None else op in _DELETES
        if op is not None and weight is not None and deleted != (weight == -1):
            raise _Refused(f"op {op!r} and weight {weight} contradict each other")
        if deleted or op in _UPDATES:
            self._allow("a delete" if deleted else "an update")
        at = NULL
        if self._reserved_at and row.at is not None:
            at = _microseconds(row.at)
        return _Message(row, deleted, at)

    def _allow(self, what: str) -> None:
        if self.shape.append_only:
            raise _Refused(f"{what}, but source {self.shape.name!r} takes only inserts: declare append_only=False")

    def _envelope(self, parsed: Any, record: bytes) -> _Message | None:
        """A Debezium record whose usual form is told from the typed envelope; any other goes through its parts."""
        body = parsed if parsed.payload is msgspec.UNSET else parsed.payload
        if body is None:
            return None
        if self._plain:
            row = body.before if body.op == "d" else body.after
            if row is not None and body.op in ("c", "r", "u", "d"):
                return self._event(body.op, row, body.source.ts_ms if body.source else None, body.ts_ms)
            if body.op is None and body is parsed and row is None and body.before is None and not self.strict_columns:
                if b'"data_collections"' in record:
                    return self._by_parts(record)
                try:
                    flat = self._parse_flat(record)
                except Exception:
                    return self._by_parts(record)
                return self._flattened(flat)
        return self._by_parts(record)

    def _event(self, op: str, row: Any, source_ms: Any, ms: Any) -> _Message:
        if op in ("d", "u", "t"):
            self._allow({"d": "a delete", "u": "an update", "t": "a truncation"}[op])
        return _Message(row, op in ("d", "t"), _from_ms(source_ms) or _from_ms(ms) or NULL)

    def _flattened(self, flat: Any) -> _Message:
        said = flat.deleted
        if said not in (None, True, False, "true", "false"):
            raise _Refused(f"__deleted is {_short(said)}: expected 'true' or 'false'")
        deleted = said in (True, "true") or (said is None and flat.op == "d")
        op = "d" if deleted else "u" if flat.op == "u" else "c"
        return self._event(op, flat, flat.source_ts_ms, flat.ts_ms)

    def _by_parts(self, record: bytes) -> _Message | None:
        """The same as `_envelope` for every form, from a plain dict: slower."""
        whole = msgspec.json.decode(record)
        body, path = whole, "$"
        columns = self.shape.schema
        if isinstance(whole, dict) and "payload" in whole and ("schema" in whole or "payload" not in columns):
            body, path = whole["payload"], "$.payload"
        if body is None:
            return None
        if not isinstance(body, dict):
            raise _Refused(f"expected an object, got {_short(body)} - at `{path}`")
        inner = [n for n in ("before", "after", "source") if n in body and n not in columns]
        if "op" not in body or ("op" in columns and not inner):
            if self._about_itself(body):
                return None
            if self.strict_columns and (unknown := [n for n in body if n not in columns and not n.startswith("__")]):
                raise msgspec.ValidationError(f"Object contains unknown field `{unknown[0]}`")
            return self._flattened(self._convert(body, self._flat, path))
        op = body["op"]
        if op == "m":
            return None
        source = body.get("source")
        source_ms = source.get("ts_ms") if isinstance(source, dict) else None
        if op == "t":
            return self._event(op, self._empty, source_ms, body.get("ts_ms"))
        if op not in ("c", "r", "u", "d"):
            raise _Refused(f"op is {_short(op)}: expected 'c', 'u', 'd', 'r', 't' or 'm' - at `{path}.op`")
        side = "before" if op == "d" else "after"
        if body.get(side) is None:
            lost = "key" if op == "d" else "row"
            raise _Refused(f"op {op!r} without {side!r}: its {lost} is unknown - at `{path}.{side}`")
        return self._event(op, self._convert(body[side], self._row, f"{path}.{side}"), source_ms, body.get("ts_ms"))

    def _about_itself(self, body: dict[str, Any]) -> bool:
        """Whether Debezium says that it is alive, or that a transaction begins or ends."""
        if "ts_ms" in body and body.keys() <= _CLOCKS:
            return set(self.shape.key) != {"ts_ms"}
        return (
            body.keys() == _TRANSACTION
            and body["status"] in ("BEGIN", "END")
            and isinstance(body["id"], str)
            and not {"event_count", "data_collections"} & self.shape.schema.keys()
        )

    @staticmethod
    def _convert(given: Any, to: Any, path: str) -> Any:
        try:
            return msgspec.convert(given, to)
        except msgspec.ValidationError as error:
            told = str(error)
            told = told.replace("`$", f"`{path}", 1) if "`$" in told else f"{told} - at `{path}`"
            raise msgspec.ValidationError(told) from None

    def _build(
        self,
        rows: list[Any],
        deleted: npt.NDArray[np.bool_] | None,
        given: Ints | None,
        index: Ints,
        bad: list[tuple[int, str]],
        skipped: int,
    ) -> Decoded:
        n = len(rows)
        columns = {c.name: c.of(rows, n) for c in self._columns}
        gone = np.zeros(n, np.bool_) if deleted is None else deleted
        wrong = {i: reason for c in self._columns for i, reason in c.wrong}
        return self._checked(columns, gone, given, index, bad, skipped, wrong)

    def _checked(
        self,
        columns: Columns,
        gone: npt.NDArray[np.bool_],
        given: Ints | None,
        index: Ints,
        bad: list[tuple[int, str]],
        skipped: int,
        wrong: Mapping[int, str] | None = None,
    ) -> Decoded:
        """The rows without those that are wrong, or have a null or a time that cannot be, which are refused.

        given: event times that count where the row has none, and always for deletes.
        """
        shape, n = self.shape, len(gone)
        deleted = self._partial(columns, gone)
        at = np.full(n, NULL) if shape.at is None else columns[shape.at]
        if given is not None:
            own = at
            at = np.where(gone | (own == NULL), given, own)
            if shape.at is not None:
                columns[shape.at] = np.where(gone, own, at)
        reasons: dict[int, str] = dict(wrong or {})
        for name in self._loose:
            if (missing := is_null(columns[name]) & ~gone).any():
                for i in np.flatnonzero(missing):
                    reasons.setdefault(int(i), f"`{name}` is null or missing: it is required")
        for column in self._columns:
            if column.iso:
                a = columns[column.name]
                if (outside := (a != NULL) & ((a < _FIRST) | (a > _LAST))).any():
                    for i in np.flatnonzero(outside):
                        reasons.setdefault(int(i), f"`{column.name}` lies outside the years 1 to 9999 in UTC")
        if ((at < shape.earliest) | (at > shape.latest)).any():
            for i in np.flatnonzero((at != NULL) & ((at < shape.earliest) | (at > shape.latest))):
                reasons.setdefault(int(i), self._not_believed(int(at[i])))
        if reasons:
            bad = sorted([*bad, *((int(index[i]), reason) for i, reason in reasons.items())])
            good = np.ones(n, np.bool_)
            good[list(reasons)] = False
            columns = {name: c[good] for name, c in columns.items()}
            deleted, at, index = deleted[good], at[good], index[good]
        return Decoded(columns, deleted, at, index, bad, skipped)

    def _partial(self, columns: Columns, gone: npt.NDArray[np.bool_]) -> Array:
        """The column `deleted`. Texts that are not told are marked; in a source of inserts, which has none, null."""
        deleted = gone.astype(np.int8)
        for name in self._texts:
            cells = columns[name].tolist()
            if any(mark in cells for mark in _UNTOLD):
                untold = np.fromiter((c in _UNTOLD for c in cells), np.bool_, len(cells))
                columns[name][untold] = None if self.shape.append_only else UNAVAILABLE
                deleted[untold & ~gone] = 0 if self.shape.append_only else NULL_BOOL
        return deleted

    def _not_believed(self, at: int) -> str:
        if at < self.shape.earliest:
            return f"event time {_iso(at)} lies before {_iso(self.shape.earliest)}: a default value?"
        return f"event time {_iso(at)} lies after {_iso(self.shape.latest)}: another unit, or a clock that is wrong?"

    def _why(self, record: bytes, error: Exception) -> str:
        """The reason of a record's refusal: one line, lower case."""
        if isinstance(error, UnicodeDecodeError):
            return f"bad utf-8 at byte {error.start}"
        if isinstance(error, RecursionError):
            return "nested too deeply"
        told = str(error)
        if isinstance(error, _Refused):
            return told
        if record.startswith(b"\xef\xbb\xbf"):
            return "begins with a byte order mark: write utf-8 without it"
        if _MALFORMED.search(told):
            told = told.replace("JSON is malformed", "not JSON")
            told = told.replace("Input data was truncated", "not JSON: ends early, or a lone surrogate")
            at = re.search(r"\(byte (\d+)\)", told)
            if at and re.match(rb"-?(NaN|nan|Infinity|inf)", record[max(0, int(at[1]) - 1) :].lstrip(b"-:[, ")):
                told += "; NaN and Infinity are not JSON: write null"
            return told
        for name in self.shape.key:
            if told.startswith(f"Object missing required field `{name}`"):
                return f"null key: `{name}` is missing"
            if "got `null`" in told and f".{name}`" in told:
                return f"null key: `{name}` is null"
        told = re.sub("^Invalid enum value .* - at", "invalid value - at", told, flags=re.DOTALL)
        told = re.sub(r"`([^`]{60})[^`]+`", r"`\1...`", " ".join(told.split()))
        told = told[:1].lower() + told[1:]
        if path := _PATH.search(told):
            told += self._found(record, path[1]) + self._hint(told, path[1].rsplit(".", 1)[-1])
        return told

    @staticmethod
    def _found(record: bytes, path: str) -> str:
        try:
            value = msgspec.json.decode(record)
            for name in path.split("."):
                value = value[name]
        except Exception:  # a name with a dot, or a number beyond every type: the reason stands without the value
            return ""
        return "" if value is None or isinstance(value, (dict, list)) else f": {_short(value)}"

    def _hint(self, told: str, name: str) -> str:
        if name == "op":
            return "; expected 'insert', 'update' or 'delete'"
        if name == "weight":
            return "; expected 1 or -1"
        unit = self.shape.epoch.get(name)
        if self.form == "debezium" and self.shape.schema.get(name) in (FLOAT, INT, STRING) and "got `object`" in told:
            return _DECIMAL
        if self.form == "debezium" and self.shape.schema.get(name) == INT and "got `str`" in told:
            return _DECIMAL + ", and declare them as float or str"
        if "timezone" in told:
            return "; write it with Z or an offset, such as 2013-01-01T10:15:00Z"
        if unit and (">=" in told or "<=" in told or "out of range" in told):
            return f"; is the unit {unit!r}?"
        if unit is None and self.shape.schema.get(name) == TIME and "got `int`" in told:
            return f"; for numbers declare epoch={{{name!r}: 'ms'}}"
        return ""


class _Column:
    """One column: the type that msgspec checks and the way from its values to an array."""

    def __init__(self, name: str, field: str, shape: Shape, textual: bool) -> None:
        self.name, self.field = name, field
        self.wrong: list[tuple[int, str]] = []
        dtype = shape.schema[name]
        self.textual = textual and dtype == FLOAT
        self.null, self.numpy = null_of(dtype), numpy_type(dtype)
        unit = shape.epoch.get(name) if dtype == TIME else None
        self.iso = dtype == TIME and unit is None
        self.scale = _SCALE[unit] if unit else 1
        kind = {STRING: TEXT, FLOAT: REAL, BOOL: TRUTH, INT: INTEGER, TIME: MOMENT if self.iso else INTEGER}[dtype]
        self.scanned = Field(name, kind, name not in shape.key)
        if unit:
            self.scanned = Field(
                name, kind, name not in shape.key, _FIRST // self.scale, _LAST // self.scale, self.scale
            )
        self.type: Any = {STRING: str, FLOAT: float | str if self.textual else float, BOOL: bool}.get(dtype)
        if dtype == INT:
            self.type = Annotated[int, msgspec.Meta(ge=NULL + 1, le=-(NULL + 1))]
        elif self.iso:
            self.type = Annotated[datetime, msgspec.Meta(tz=True)]
        elif dtype == TIME:
            self.type = Annotated[int, msgspec.Meta(ge=_FIRST // self.scale, le=_LAST // self.scale)]
        # A comprehension that names the attribute takes half the time of attrgetter.
        self._values: Callable[[list[Any]], list[Any]] = eval(f"lambda rows: [r.{field} for r in rows]")

    def of(self, rows: list[Any], n: int) -> Array:
        """The values of the rows; of those that are no such values `wrong` says which and why."""
        values = self._values(rows)
        self.wrong = []
        if self.textual and str in set(map(type, values)):
            values = [self._number(i, v) if type(v) is str else v for i, v in enumerate(values)]
        if self.iso:
            return _times(values, n)
        try:
            if self.numpy == np.int8:  # a third of fromiter's time
                return np.frombuffer(bytearray(values), np.int8)
            a = np.fromiter(values, self.numpy, n)
        except TypeError:  # None among integers or booleans
            a = np.fromiter([self.null if v is None else v for v in values], self.numpy, n)
            return a if self.scale == 1 else np.where(a == NULL, NULL, a * self.scale)
        return a if self.scale == 1 else a * self.scale

    def _number(self, i: int, text: str) -> float | None:
        found = float(text) if _NUMBER.fullmatch(text) else _NO_NUMBER.get(text.lower())
        if found is None or (text[-1:].isdigit() and abs(found) == np.inf):
            self.wrong.append((i, f"`{self.name}` is the text {_short(text)}: expected a number{_DECIMAL}"))
        return found


def _times(values: list[datetime | None], n: int) -> Ints:
    """Datetimes with a time zone as microseconds, exactly."""
    since = [None if v is None else v - _EPOCH for v in values]
    missing = None in since
    there: list[Any] = [d for d in since if d is not None] if missing else since
    m = len(there)
    seconds = np.fromiter([d.days for d in there], np.int64, m) * 86_400 + np.fromiter(
        [d.seconds for d in there], np.int64, m
    )
    a = seconds * 1_000_000 + np.fromiter([d.microseconds for d in there], np.int64, m)
    if not missing:
        return a
    out = np.full(n, NULL)
    out[[d is not None for d in since]] = a
    return out


def _microseconds(t: datetime) -> int:
    d = t - _EPOCH
    return (d.days * 86_400 + d.seconds) * 1_000_000 + d.microseconds


def _from_ms(given: Any) -> int | None:
    """Debezium's milliseconds, a number or text, as microseconds; None for none, and for 0, which means none."""
    if given is None:
        return None
    try:
        ms = int(given)
    except (TypeError, ValueError):
        raise _Refused(f"ts_ms is {_short(given)}: expected milliseconds since 1970") from None
    if abs(ms) >= 1 << 53:
        raise _Refused(f"ts_ms is {_short(given)}: beyond every date")
    return ms * 1_000


def _iso(at: int) -> str:
    text: str = np.datetime_as_string(np.datetime64(at, "us"), unit="us").item()
    return text.removesuffix(".000000") + "Z"


def _short(value: Any) -> str:
    """The value for a reason: at most 60 characters on one line."""
    told = repr(value[:80] if isinstance(value, str) else value)
    return told if len(told) <= 60 else told[:57] + "..."
