"""JSON lines to columns in one pass over the bytes, for records that are beyond doubt.

A record is *taken* when it is one flat object, and every value in it is plainly of its column's type: what the exact
decoder (`engine.decode`) would say of it is then known, and is what is said here. Any other record is left to it:
nested values, escapes, numbers of more than 19 digits, a field of the wrong type or given twice, a missing key, broken
JSON.

Text is kept once per distinct value: the same text in two records is the same Python string, so that it costs no
memory and its hash is known.

Numbers are rounded as by `float()`: the method of Clinger for short ones, that of Eisel and Lemire ("Number parsing at
a gigabyte per second", 2021) for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.delta import NULL, NULL_BOOL, Array, Ints
from operators.kernel import pointer

Bytes = npt.NDArray[np.uint8]

INTEGER, REAL, TRUTH, TEXT, MOMENT = range(5)
"""Kinds of fields; MOMENT is an ISO 8601 time with a time zone."""

KIND, NULLABLE, LEAST, MOST, SCALE, WIDTH = range(6)
"""Columns of the table of fields, and how many there are. Integers from LEAST to MOST are taken, times SCALE."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a record that becomes a column."""

    name: str
    kind: int
    nullable: bool = True
    least: int = NULL + 1
    most: int = -(NULL + 1)
    scale: int = 1


class Records:
    r"""Records in one block of bytes: record i is `block[begin[i]:end[i]]`, and the block ends with a line feed.

    >>> records = Records.of([b'{"n":1}', b"null"])
    >>> records, records.block
    (Records(b'{"n":1}', b'null'), b'{"n":1}\nnull\n')
    """

    __slots__ = ("begin", "block", "end")

    def __init__(self, block: bytes, begin: Ints, end: Ints) -> None:
        self.block, self.begin, self.end = block, begin, end

    @classmethod
    def of(cls, records: Sequence[bytes]) -> Records:
        """Records that lie apart."""
        lengths = np.fromiter(map(len, records), np.int64, len(records))
        end = np.cumsum(lengths + 1) - 1
        return cls(b"\n".join([*records, b""]) if records else b"\n", end - lengths, end)

    def __len__(self) -> int:
        return len(self.begin)

    def __iter__(self) -> Iterator[bytes]:
        return (self.block[a:b] for a, b in zip(self.begin.tolist(), self.end.tolist(), strict=True))

    def __repr__(self) -> str:
        return f"Records({', '.join(map(repr, self))})"

    def __getitem__(self, i: int | np.int64) -> bytes:
        return self.block[self.begin[i] : self.end[i]]

    def take(self, index: Any) -> Records:
        """The records numbered (or marked) by `index`."""
        return Records(self.block, self.begin[index], self.end[index])

    def then(self, more: Records) -> Records:
        """These records and more."""
        if not len(self):
            return more
        a, b = int(self.begin[0]), int(self.end[-1])
        kept = self.block[a:b] + b"\n"
        return Records(
            kept + more.block,
            np.concatenate([self.begin - a, more.begin + len(kept)]),
            np.concatenate([self.end - a, more.end + len(kept)]),
        )


def plain(name: str) -> bool:
    """Whether a name is the same in JSON."""
    return not any(c in '"\\' or c < " " for c in name)


class Scanner:
    """Scans records with these fields, whose names are written without escapes (see `plain`).

    strict: whether a record with any other field is left; otherwise such fields are skipped. longest: the most bytes of
    a record that is taken.

    >>> scanner = Scanner([Field("id", INTEGER, nullable=False), Field("who", TEXT)])
    >>> taken, columns = scanner.scan(Records.of([b'{"id": 7, "who": "Ann"}', b'{"id": "x"}']))
    >>> taken.tolist(), columns["id"].tolist(), columns["who"].tolist()
    ([True, False], [7], ['Ann'])
    """

    def __init__(self, fields: Sequence[Field], strict: bool = False, longest: int = 1 << 20) -> None:
        self._fields = list(fields)
        self._table = np.array([(f.kind, f.nullable, f.least, f.most, f.scale) for f in fields], np.int64)
        names = [f.name.encode() + b'"' for f in fields]
        self._names = np.frombuffer(b"".join(names) + b"\n", np.uint8)
        self._ends = np.cumsum([0, *map(len, names)])
        self._strict, self._longest = strict, longest
        self._guess = np.full(64, -1)
        self._texts = {f.name: Texts() for f in fields if f.kind == TEXT}

    def scan(self, records: Records, valid: bool = True) -> tuple[npt.NDArray[np.bool_], dict[str, Array]]:
        """Which records are taken, and the columns of those.

        valid: whether the block is known to be UTF-8; otherwise only records in ASCII are taken.
        """
        n, block = len(records), np.frombuffer(records.block, np.uint8)
        taken = np.empty(n, np.bool_)
        words = np.empty((len(self._fields) + 1, n), np.int64)  # the last for numbers that nobody wants
        lengths, found = np.zeros((len(self._fields), n), np.int64), np.full(len(self._fields), -1)
        good = _scan(
            block, records.begin, records.end, self._table, self._names, self._ends, self._guess, self._strict, valid,
            self._longest, _POWERS, taken, words, words.view(np.float64), lengths, found,
        )  # fmt: skip
        columns: dict[str, Array] = {}
        for c, field in enumerate(self._fields):
            a = words[c, :good]
            if field.kind == TEXT:
                columns[field.name] = self._texts[field.name].of(records.block, block, a, lengths[c, :good])
            elif field.kind == REAL:
                columns[field.name] = a.view(np.float64)
            else:
                columns[field.name] = a.astype(np.int8) if field.kind == TRUTH else a
        return taken, columns


class Texts:
    """Pieces of a block as Python strings, each distinct text once, as long as there are not too many."""

    _MANY, _ROOM, _LONG = 1 << 16, 1 << 22, 64

    def __init__(self) -> None:
        self._clear(0)

    def _clear(self, room: int) -> None:
        """Forget all texts; make room for that many."""
        self._strings = np.empty(max(room, 16) + 1, object)
        self._places = np.zeros((len(self._strings), 2), np.int64)
        self._bytes = np.empty(16 * len(self._strings), np.uint8)
        self._table = np.zeros(1 << (2 * len(self._strings)).bit_length(), np.int64)
        self._many = 1

    def of(self, block: bytes, view: Bytes, begin: Ints, length: Ints) -> Array:
        """The texts that begin at `begin`, NULL for none. Long ones are made anew each time."""
        n = len(begin)
        self._reserve(n, int(length.sum()))
        codes, first = np.empty(n, np.int64), np.empty(n, np.int64)
        many = _codes(view, begin, length, self._places, self._bytes, self._table, self._many, self._LONG, codes, first)
        new = slice(self._many, self._many + many)
        if many:
            self._strings[new] = _cut(block, begin, length, first[:many])
            self._many += many
        out: Array = self._strings[codes]
        long = codes < 0
        if long.any():
            out[long] = _cut(block, begin, length, np.flatnonzero(long))
        return out

    def _reserve(self, n: int, size: int) -> None:
        """Make room for n more texts of so many bytes together."""
        used = int(self._places[self._many - 1].sum())
        if self._many + n <= len(self._strings) and used + size <= len(self._bytes):
            return
        if self._many > self._MANY or used > self._ROOM:
            self._clear(n)
            used = 0
        if used + size > len(self._bytes):
            self._bytes = _longer(self._bytes, 2 * (used + size))
        if self._many + n > len(self._strings):
            self._strings = _longer(self._strings, 2 * (self._many + n))
            self._places = _longer(self._places, len(self._strings))
            self._table = np.zeros(1 << (2 * len(self._strings)).bit_length(), np.int64)
            _fill(self._table, self._places, self._bytes, self._many)


def _longer(a: Array, n: int) -> Array:
    out = np.zeros((n, *a.shape[1:]), a.dtype)
    out[: len(a)] = a
    return out


def _cut(block: bytes, begin: Ints, length: Ints, rows: Ints) -> list[str]:
    a = begin[rows]
    return [str(block[i:j], "utf-8") for i, j in zip(a.tolist(), (a + length[rows]).tolist(), strict=True)]


@njit(cache=True, forceinline=True)
def _hash(b, i, n):  # type: ignore[no-untyped-def]
    h = np.uint64(n) * np.uint64(0x9E3779B97F4A7C15)
    for j in range(i, i + n):
        h = (h ^ np.uint64(b[j])) * np.uint64(0x100000001B3)
    return h ^ (h >> np.uint64(29))


@njit(cache=True)
def _fill(table, places, kept, many):  # type: ignore[no-untyped-def]
    """Enter all texts into an empty hash table."""
    k, mask = pointer(kept), table.shape[0] - 1
    for code in range(1, many):
        t = np.int64(_hash(k, places[code, 0], places[code, 1]) & np.uint64(mask))
        while table[t] > 0:
            t = (t + 1) & mask
        table[t] = code


@njit(cache=True, forceinline=True)
def _same(a, i, b, j, n):  # type: ignore[no-untyped-def]
    while n > 0 and a[i] == b[j]:
        i += 1
        j += 1
        n -= 1
    return n == 0


@njit(cache=True)
def _codes(block, begin, length, places, kept, table, many, long, codes, first):  # type: ignore[no-untyped-def]
    """The code of each text (0: none, -1: too long), new ones counted from `many` on; returns how many are new.

    first: for each new one a row that has it.
    """
    b, k, place, slot = pointer(block), pointer(kept), pointer(places), pointer(table)
    mask, new = table.shape[0] - 1, 0
    used = place[2 * many - 2] + place[2 * many - 1]
    for i in range(begin.shape[0]):
        a, n = begin[i], length[i]
        if a == NULL or n > long:
            codes[i] = 0 if a == NULL else -1
            continue
        t = np.int64(_hash(b, a, n) & np.uint64(mask))
        code = slot[t]
        while code > 0 and not (place[2 * code + 1] == n and _same(b, a, k, place[2 * code], n)):
            t = (t + 1) & mask
            code = slot[t]
        if code == 0:
            code = many + new
            slot[t] = code
            place[2 * code], place[2 * code + 1] = used, n
            for j in range(n):
                k[used + j] = b[a + j]
            used += n
            first[new] = i
            new += 1
        codes[i] = code
    return new


# Numbers ----------------------------------------------------------------------------------------------------

_MIN_POWER, _MAX_POWER = -342, 308


def _powers() -> npt.NDArray[np.uint64]:
    """For each power of ten its power of five, shifted to 128 bits: the upper and the lower 64."""
    out = []
    for q in range(_MIN_POWER, _MAX_POWER + 1):
        if q >= 0:
            five = 5**q
            bits = five.bit_length()
            c = five << (128 - bits) if bits <= 128 else five >> (bits - 128)
        else:
            five = 5**-q
            z = five.bit_length()
            c = (1 << (z + 127)) // five + 1
            while c >= 1 << 128:
                c >>= 1
        out.append((c >> 64, c & (2**64 - 1)))
    return np.array(out, np.uint64)


_POWERS = _powers()
_EXACT = np.array([10.0**k for k in range(23)])
_MASK32 = np.uint64(0xFFFFFFFF)


@njit(cache=True, forceinline=True)
def _times(a, b):  # type: ignore[no-untyped-def]
    """The product of two unsigned numbers of 64 bits: upper and lower half."""
    s = np.uint64(32)
    a1, a0, b1, b0 = a >> s, a & _MASK32, b >> s, b & _MASK32
    low, m1, m2, high = a0 * b0, a1 * b0, a0 * b1, a1 * b1
    carry = ((low >> s) + (m1 & _MASK32) + (m2 & _MASK32)) >> s
    return high + (m1 >> s) + (m2 >> s) + carry, a * b


@njit(cache=True, forceinline=True)
def _digit(byte):  # type: ignore[no-untyped-def]
    return np.int64(byte) - 48


@njit(cache=True, forceinline=True)
def _double(w, q, powers):  # type: ignore[no-untyped-def]
    """The bits of w * 10**q (w > 0), or -1 when this method cannot tell."""
    if q < _MIN_POWER or q > _MAX_POWER:
        return np.int64(-1)
    one = np.uint64(1)
    shift = np.int64(0)
    m = w
    while m < (one << np.uint64(63)):
        m <<= one
        shift += 1
    high, low = _times(m, powers[2 * (q - _MIN_POWER)])
    if (high & np.uint64(0x1FF)) == np.uint64(0x1FF):
        more, _ = _times(m, powers[2 * (q - _MIN_POWER) + 1])
        low += more
        if low < more:
            high += one
    if low == np.uint64(0xFFFFFFFFFFFFFFFF) and (q < -27 or q > 55):
        return np.int64(-1)
    upper = high >> np.uint64(63)
    mantissa = high >> (upper + np.uint64(9))
    # The binary exponent: floor(q * log2(10)) by a fraction that is exact in this range.
    exponent = ((152170 + 65536) * q >> 16) + 63 + np.int64(upper) - shift + 1023
    if exponent <= 0 or exponent >= 2046:
        return np.int64(-1)
    if (
        low <= one
        and -4 <= q <= 23
        and (mantissa & np.uint64(3)) == one
        and (mantissa << (upper + np.uint64(9))) == high
    ):
        mantissa &= ~one
    mantissa += mantissa & one
    mantissa >>= one
    if mantissa >= np.uint64(1 << 53):
        mantissa = np.uint64(1 << 52)
        exponent += 1
        if exponent >= 2047:
            return np.int64(-1)
    return np.int64(mantissa & np.uint64((1 << 52) - 1)) | (exponent << 52)


@njit(cache=True, forceinline=True)
def _real(block, p, powers, out, floats, o):  # type: ignore[no-untyped-def]
    """Scan the JSON number at p and put the bits of the float into out[o]; returns where it ends, or -1."""
    negative = block[p] == 45
    if negative:
        p += 1
    w, digits, power = np.uint64(0), 0, 0
    begin = p
    while 48 <= block[p] <= 57:
        w = w * np.uint64(10) + np.uint64(_digit(block[p]))
        digits += 1 if digits > 0 or w > 0 else 0
        p += 1
    if p == begin or (p > begin + 1 and block[begin] == 48):
        return -1
    if block[p] == 46:
        p += 1
        point = p
        while 48 <= block[p] <= 57:
            w = w * np.uint64(10) + np.uint64(_digit(block[p]))
            digits += 1 if digits > 0 or w > 0 else 0
            p += 1
        power = point - p
        if power == 0:
            return -1
    if block[p] == 101 or block[p] == 69:
        p += 1
        minus = block[p] == 45
        if minus or block[p] == 43:
            p += 1
        begin, e = p, 0
        while 48 <= block[p] <= 57:
            e = e * 10 + _digit(block[p])
            p += 1
        if p == begin or p - begin > 4:
            return -1
        power += -e if minus else e
    if digits > 19 or (negative and w == 0 and power == 0):  # -0 is an integer, and so 0
        return -1
    bits = np.int64(0)
    if w <= np.uint64(1 << 53) and -22 <= power <= 22:
        x = float(np.int64(w))
        x = x * _EXACT[power] if power >= 0 else x / _EXACT[-power]
        floats[o] = -x if negative else x
        return p
    if w:
        bits = _double(w, power, powers)
        if bits < 0:
            return -1
    out[o] = bits | NULL if negative else bits
    return p


# Scanning ---------------------------------------------------------------------------------------------------


@njit(cache=True, forceinline=True)
def _space(block, p):  # type: ignore[no-untyped-def]
    while block[p] <= 32 and (block[p] == 32 or block[p] == 9 or block[p] == 13):
        p += 1
    return p


@njit(cache=True, forceinline=True)
def _is(block, p, word):  # type: ignore[no-untyped-def]
    """Whether the bytes at p are those of a word; a block ends with a line feed, which is in no word."""
    j = 0
    while j < word.shape[0] and block[p + j] == word[j]:
        j += 1
    return j == word.shape[0]


_NULL, _TRUE, _FALSE = (np.frombuffer(word, np.uint8) for word in (b"null", b"true", b"false"))


@njit(cache=True, forceinline=True)
def _text(block, p, valid):  # type: ignore[no-untyped-def]
    """Where the text that begins at p (after its quote) ends, or -1."""
    while True:
        b = block[p]
        if b == 34:
            return p
        if b < 32 or b == 92 or (b >= 128 and not valid):
            return -1
        p += 1


@njit(cache=True, forceinline=True)
def _integer(block, p, least, most, scale, out, o):  # type: ignore[no-untyped-def]
    negative = block[p] == 45
    if negative:
        p += 1
    v, begin = 0, p
    while 48 <= block[p] <= 57 and p - begin < 19:
        v = v * 10 + _digit(block[p])
        p += 1
    n = p - begin
    if n == 0 or n > 18 or (n > 1 and block[begin] == 48) or block[p] == 46 or block[p] == 101 or block[p] == 69:
        return -1
    if negative:
        v = -v
    if v < least or v > most:
        return -1
    out[o] = v * scale
    return p


@njit(cache=True, forceinline=True)
def _digits(block, p, n):  # type: ignore[no-untyped-def]
    """The number of n digits at p, or -1."""
    v = 0
    for j in range(p, p + n):
        if not 48 <= block[j] <= 57:
            return -1
        v = v * 10 + _digit(block[j])
    return v


@njit(cache=True, forceinline=True)
def _moment(block, p, out, o):  # type: ignore[no-untyped-def]
    """Scan `YYYY-MM-DDTHH:MM:SS[.ffffff](Z|+HH:MM)"` at p; returns where it ends, or -1.

    Days since 1970 as in Howard Hinnant's `days_from_civil`.
    """
    year = _digits(block, p, 4)
    if year < 1 or block[p + 4] != 45:
        return -1
    month = _digits(block, p + 5, 2)
    if month < 1 or month > 12 or block[p + 7] != 45:
        return -1
    day = _digits(block, p + 8, 2)
    longest = 30 + ((month + (month >> 3)) & 1)
    if month == 2:
        longest = 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    if day < 1 or day > longest or block[p + 10] != 84:
        return -1
    hour = _digits(block, p + 11, 2)
    if hour < 0 or hour > 23 or block[p + 13] != 58:
        return -1
    minute = _digits(block, p + 14, 2)
    if minute < 0 or minute > 59 or block[p + 16] != 58:
        return -1
    second = _digits(block, p + 17, 2)
    if second < 0 or second > 59:
        return -1
    p += 19
    micro = 0
    if block[p] == 46:
        p += 1
        begin = p
        while 48 <= block[p] <= 57 and p - begin < 7:
            micro = micro * 10 + _digit(block[p])
            p += 1
        n = p - begin
        if n == 0 or n > 6:
            return -1
        for _ in range(6 - n):
            micro *= 10
    offset = 0
    if block[p] == 90:
        p += 1
    elif block[p] == 43 or block[p] == 45:
        hours = _digits(block, p + 1, 2)
        if hours < 0 or hours > 23 or block[p + 3] != 58:
            return -1
        minutes = _digits(block, p + 4, 2)
        if minutes < 0 or minutes > 59:
            return -1
        offset = 60 * hours + minutes
        if block[p] == 45:
            offset = -offset
        p += 6
    else:
        return -1
    y = year if month > 2 else year - 1
    era = y // 400
    of_era = y - 400 * era
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    days = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    out[o] = (((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1_000_000 + micro
    return p


@njit(cache=True, forceinline=True)
def _skip(block, p, powers, valid, words, floats, o):  # type: ignore[no-untyped-def]
    """Where a value that is not wanted ends, if it is flat, or -1."""
    b = block[p]
    if b == 34:
        p = _text(block, p + 1, valid)
        return p + 1 if p >= 0 else -1
    if b == 110:
        return p + 4 if _is(block, p, _NULL) else -1
    if b == 116:
        return p + 4 if _is(block, p, _TRUE) else -1
    if b == 102:
        return p + 5 if _is(block, p, _FALSE) else -1
    return _real(block, p, powers, words, floats, o)


@njit(cache=True, forceinline=True)
def _value(block, p, table, c, powers, valid, words, floats, lengths, o):  # type: ignore[no-untyped-def]
    """Scan the value of field c at p; returns where it ends, or -1."""
    kind = table[c * WIDTH + KIND]
    if block[p] == 110:
        if not table[c * WIDTH + NULLABLE] or not _is(block, p, _NULL):
            return -1
        words[o] = _absent(kind)
        return p + 4
    if kind == INTEGER:
        return _integer(block, p, table[c * WIDTH + LEAST], table[c * WIDTH + MOST], table[c * WIDTH + SCALE], words, o)
    if kind == REAL:
        return _real(block, p, powers, words, floats, o)
    if kind == TRUTH:
        if _is(block, p, _TRUE):
            words[o] = 1
            return p + 4
        words[o] = 0
        return p + 5 if _is(block, p, _FALSE) else -1
    if block[p] != 34:
        return -1
    p += 1
    if kind == TEXT:
        end = _text(block, p, valid)
        if end < 0:
            return -1
        words[o], lengths[o] = p, end - p
        return end + 1
    p = _moment(block, p, words, o)
    return p + 1 if p >= 0 and block[p] == 34 else -1


_NAN = int(np.array(np.nan).view(np.int64))


@njit(cache=True, forceinline=True)
def _absent(kind):  # type: ignore[no-untyped-def]
    return _NAN if kind == REAL else NULL_BOOL if kind == TRUTH else NULL


@njit(cache=True, forceinline=True)
def _named(block, p, names, ends, c):  # type: ignore[no-untyped-def]
    """Where the name of field c, which must begin at p, has ended with its quote; -1 if that is not the name there."""
    for j in range(ends[c], ends[c + 1]):
        if block[p] != names[j]:
            return -1
        p += 1
    return p


@njit(cache=True, forceinline=True)
def _record(  # type: ignore[no-untyped-def]
    block, p, table, C, names, ends, guess, strict, valid, powers, words, floats, lengths, n, i, found, stamp
):  # fmt: skip
    """Scan the record at p into place i of n; returns where it ends, or -1. found[c] is `stamp` for a field there."""
    p = _space(block, p)
    if block[p] != 123:
        return -1
    p = _space(block, p + 1)
    if block[p] == 125:
        return _space(block, p + 1)
    turn = 0
    while block[p] == 34:
        begin = p + 1
        c, p = guess[turn & 63], -1
        if c >= 0:  # fields mostly come in the order of the record before
            p = _named(block, begin, names, ends, c)
        if p < 0:
            c = -1
            while c < C - 1 and p < 0:
                c += 1
                p = _named(block, begin, names, ends, c)
            if p < 0:
                c, p = -1, _text(block, begin, valid) + 1
                if p == 0 or strict:
                    return -1
            guess[turn & 63] = c
        turn += 1
        p = _space(block, p)
        if block[p] != 58:
            return -1
        p = _space(block, p + 1)
        if c >= 0:
            if found[c] == stamp:
                return -1
            found[c] = stamp
            p = _value(block, p, table, c, powers, valid, words, floats, lengths, c * n + i)
        else:
            p = _skip(block, p, powers, valid, words, floats, C * n + i)
        if p < 0:
            return -1
        p = _space(block, p)
        if block[p] == 125:
            return _space(block, p + 1)
        if block[p] != 44:
            return -1
        p = _space(block, p + 1)
    return -1


@njit(cache=True, forceinline=True)
def _complete(table, C, found, stamp, words, n, i):  # type: ignore[no-untyped-def]
    """Whether no field is missing that must be there; any other that is missing is null."""
    for c in range(C):
        if found[c] != stamp:
            if not table[c * WIDTH + NULLABLE]:
                return False
            words[c * n + i] = _absent(table[c * WIDTH + KIND])
    return True


@njit(cache=True)
def _scan(  # type: ignore[no-untyped-def]
    block, begin, end, table, names, ends, guess, strict, valid, longest, powers, taken, words, floats, lengths, found
):  # fmt: skip
    """Scan all records; returns how many are taken. Their values stand at the front of `words`."""
    b, t, w, ends_at, marks = pointer(block), pointer(table), pointer(words), pointer(ends), pointer(found)
    C, n, good = table.shape[0], begin.shape[0], 0
    for i in range(n):
        p = _record(
            b, begin[i], t, C, pointer(names), ends_at, pointer(guess), strict, valid, pointer(powers), w,
            pointer(floats), pointer(lengths), n, good, marks, i,
        )  # fmt: skip
        # White space may have been cut off the record's end; more than that, and it is not the record that was scanned.
        whole = p >= end[i] and _space(b, end[i]) == p and end[i] - begin[i] <= longest
        taken[i] = whole and _complete(t, C, marks, i, w, n, good)
        good += taken[i]
    return good
