"""The answered examples most like a question, and what they say of it: the core of `on_query`.

The squared distance of two examples is a sum over features: for numbers the squared difference in units of the spread
of the feature, for strings and booleans 1 when they differ, and 1 when one is null and the other is not; a number that
does not vary says nothing. Of examples equally near the older come first. The spread is the standard deviation over the
examples held; it comes from sums that are exact, so it depends on which examples are held and on nothing else. So does
all that is answered: what was added and removed leaves no trace. (An approximate index does depend on the past.)

The weight of a neighbour is exp(-2 (d / h)**2), with d its distance and h that of the furthest of the neighbours: from
1 down to 0.14.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal
from zlib import crc32

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.delta import (
    BOOL,
    FLOAT,
    INT,
    NULL,
    STRING,
    Array,
    Columns,
    Ints,
    Schema,
    is_null,
    nulls,
)
from operators.exact import add
from operators.operator import DefinitionError

Floats = npt.NDArray[np.float64]
Rows = tuple[Ints, Columns, Array, Ints]
"""Examples: ids, features, labels, at."""

GREATEST = 1e140
"""Numbers greater in size are taken as this."""

FAR = 1e12
"""The most that one number adds to a squared distance: a million spreads."""

DAMPING = 0.1
"""The ridge penalty of the local line, for slopes per spread, as a share of the sum of weights."""

_NEVER = np.iinfo(np.int64).max
_SPARE = 1000
"""So many removed examples are left where they are before the rest is moved together."""


class Neighbours:
    """Examples with their labels, and the k nearest of them to each question.

    features: the columns by which examples are compared. kind: what labels are: "number", "binary" (a boolean column)
    or "class" (strings or integers). index: "exact" compares with all examples; "approximate" searches a graph of them
    (usearch), which finds nearly all, and depends on the order in which examples came and went.

    Raises `DefinitionError` when one is not possible, or usearch is not installed.

    >>> near = Neighbours({"a": FLOAT}, "number", k=2)
    >>> near.add(np.array([1, 2, 3]), {"a": np.array([0.0, 1.0, 9.0])}, np.array([5.0, 6.0, 7.0]), np.array([0, 0, 0]))
    >>> near.remove(np.array([2]))
    >>> near.nearest({"a": np.array([1.0])})[0]
    array([[1, 3]])
    """

    def __init__(
        self,
        features: Schema,
        kind: Literal["number", "binary", "class"],
        k: int,
        index: Literal["exact", "approximate"] = "exact",
    ) -> None:
        if not features:
            raise DefinitionError("neighbours: there are no features: expected one or more to compare examples by")
        if kind not in ("number", "binary", "class"):
            raise DefinitionError(f"neighbours: kind is {kind!r}: expected 'number', 'binary' or 'class'")
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise DefinitionError(f"neighbours: k is {k!r}: expected 1 or more")
        if index not in ("exact", "approximate"):
            raise DefinitionError(f"neighbours: index is {index!r}: expected 'exact' or 'approximate'")
        self._features, self._kind, self._k = dict(features), kind, k
        self._numbers = [n for n, t in features.items() if t not in (STRING, BOOL)]
        self._categories = [n for n, t in features.items() if t in (STRING, BOOL)]
        self._graph = _Graph(len(self._numbers), self._categories, k) if index == "approximate" else None
        self._labels_are: Any = object
        self._clear()

    def _clear(self) -> None:
        self._used = self._held = self._true = 0
        self._ids, self._at, self._labels = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1)
        self._values, self._codes = np.zeros((len(self._numbers), 1)), np.zeros((len(self._categories), 1), np.int32)
        self._alive = np.zeros(1, np.bool_)
        self._strings: dict[Any, int] = {None: -1}
        self._classes: dict[Any, int] = {}
        self._oldest = _NEVER
        self._sums = np.zeros((len(self._numbers), 1 + 2 * _LIMBS), np.int64)
        self._scale: Floats | None = None

    def __len__(self) -> int:
        return self._held

    @property
    def nbytes(self) -> int:
        """Bytes held, approximately."""
        arrays = (self._ids, self._at, self._labels, self._values, self._codes, self._alive, self._sums)
        names = sum(map(len, (self._strings, self._classes)))
        return sum(a.nbytes for a in arrays) + 100 * names + (self._graph.nbytes if self._graph else 0)

    def add(self, ids: Ints, columns: Columns, labels: Array, at: Ints) -> None:
        """Hold further examples.

        ids: ascending; smaller than one that is held costs the time to sort all. columns: as in a delta. labels: none
        of them null. Raises `ValueError` when an id is held already or the ids do not ascend; nothing is then added.
        """
        if not len(ids):
            return
        if (np.diff(ids) <= 0).any():
            raise ValueError(f"ids are {ids.tolist()[:10]!r}: expected each greater than the one before")
        rows = ids, columns, labels, at
        if self._used and ids[0] <= self._ids[self._used - 1]:
            rows = self._merged(rows)
            self._clear()
        self._append(*rows)
        if self._graph:
            self._graph.add(ids, self._query(columns)[0], columns)
            if self._graph.is_stale(self._scales()):
                ids, columns, *_ = self._rows()
                self._graph.build(ids, self._query(columns)[0], columns, self._scales())

    def remove(self, ids: Ints) -> None:
        """Forget examples. Raises `ValueError` when one is not held, or is named twice; nothing is then removed."""
        rows = self._places(ids)
        if (rows < 0).any() or len(np.unique(ids)) < len(ids):
            raise ValueError(f"ids to remove are {ids.tolist()[:10]!r}: expected ids that are held, each once")
        self._drop(rows)

    def expire(self, before: int) -> None:
        """Forget examples with `at` below `before`."""
        if before > self._oldest:
            at = self._at[: self._used]
            self._drop(np.flatnonzero(self._alive[: self._used] & (at < before)))
            left = self._at[: self._used][self._alive[: self._used]]
            self._oldest = int(left.min()) if len(left) else _NEVER

    def nearest(self, columns: Columns) -> tuple[Ints, Floats, Ints]:
        """The nearest examples of each row: their ids and weights, nearest first, and how many were found.

        Ids and weights are n x k; where fewer than k examples are held the rest is null and 0.
        """
        rows, square, found = self._search(columns, *self._query(columns))
        return np.where(rows >= 0, self._ids[rows], NULL), _weights(square, found), found

    def predict(self, columns: Columns) -> Array:
        """What the neighbours of each row say; null when no example is held.

        - "number": the value at the row of a line through the neighbours' labels over the numbers, fitted with their
          weights and damped (ridge); their weighted mean where the line goes further from it than the labels reach;
        - "binary": the probability of true: the weighted frequency, with one more neighbour of average label;
        - "class": the class of most weight, the least of several.
        """
        values, codes = self._query(columns)
        rows, square, found = self._search(columns, values, codes)
        if not self._held:
            return nulls(len(rows), FLOAT if self._kind != "class" else INT if self._labels_are == np.int64 else STRING)
        weights, labels = _weights(square, found), np.where(rows >= 0, self._labels[rows], 0.0)
        if self._kind == "number":
            line: Array = _lines(self._values, rows, found, weights, labels, values, self._scales())
            return line
        if self._kind == "binary":
            average = (self._true + 1) / (self._held + 2)
            said: Array = ((weights * labels).sum(1) + average) / (weights.sum(1) + 1.0)
            return said
        names = sorted(self._classes)
        rank = np.empty(len(names), np.int64)
        rank[[self._classes[y] for y in names]] = np.arange(len(names))
        modes: Array = _modes(rank[labels.astype(np.int64)], found, weights)
        return _column(names, self._labels_are)[modes]

    def snapshot(self) -> Any:
        """All state, as something that can be pickled."""
        return self._rows(), self._graph and self._graph.snapshot()

    def restore(self, state: Any) -> None:
        """Take over the state that `snapshot` gave."""
        rows, graph = state
        self._clear()
        self._append(*rows)
        if self._graph:
            self._graph.restore(graph)

    def _rows(self) -> Rows:
        """The examples held; numbers as floats."""
        alive = np.flatnonzero(self._alive[: self._used])
        columns: Columns = {n: v[alive] for n, v in zip(self._numbers, self._values, strict=True)}
        strings = _column(self._strings, object)
        for name, codes in zip(self._categories, self._codes, strict=True):
            columns[name] = (
                strings[codes[alive] + 1] if self._features[name] == STRING else codes[alive].astype(np.int8)
            )
        labels = self._labels[alive]
        if self._kind == "class":
            labels = _column(self._classes, self._labels_are)[labels.astype(np.int64)]
        return self._ids[alive], columns, labels, self._at[alive]

    def _merged(self, new: Rows) -> Rows:
        old = self._rows()
        ids = np.concatenate([old[0], new[0]])
        order = np.argsort(ids)
        if len(again := ids[order][1:][np.diff(ids[order]) == 0]):
            raise ValueError(
                f"the ids {again.tolist()[:10]!r} are held already: expected new ones, or remove them first"
            )
        more = new[1] | dict(zip(self._numbers, self._query(new[1])[0], strict=True))
        columns = {n: np.concatenate([old[1][n], more[n]])[order] for n in self._features}
        labels, at = (np.concatenate([old[i], new[i]])[order] for i in (2, 3))
        return ids[order], columns, labels, at

    def _append(self, ids: Ints, columns: Columns, labels: Array, at: Ints) -> None:
        start, end = self._used, self._used + len(ids)
        if end > len(self._ids):
            self._grow(2 * end)
        for name in self._categories:
            if self._features[name] == STRING:
                for s in columns[name].tolist():
                    self._strings.setdefault(s, len(self._strings) - 1)
        if self._kind == "class":
            self._labels_are = labels.dtype
            for y in labels.tolist():
                self._classes.setdefault(y, len(self._classes))
            labels = np.array([self._classes[y] for y in labels.tolist()])
        self._values[:, start:end], self._codes[:, start:end] = self._query(columns)
        self._ids[start:end], self._at[start:end], self._labels[start:end] = ids, at, labels
        self._alive[start:end] = True
        self._used = end
        self._oldest = min(self._oldest, int(at.min(initial=_NEVER)))
        self._account(np.arange(start, end), 1)

    def _grow(self, room: int) -> None:
        def grown(a: Array) -> Array:
            out = np.zeros((*a.shape[:-1], room), a.dtype)
            out[..., : self._used] = a[..., : self._used]
            return out

        self._ids, self._at, self._labels, self._alive = map(grown, (self._ids, self._at, self._labels, self._alive))
        self._values, self._codes = grown(self._values), grown(self._codes)

    def _drop(self, rows: Ints) -> None:
        self._account(rows, -1)
        self._alive[rows] = False
        if self._graph:
            self._graph.remove(self._ids[rows])
        if self._used - self._held > _SPARE + self._held // 4:
            held = self._rows()
            self._clear()
            self._append(*held)

    def _account(self, rows: Ints, sign: int) -> None:
        """Count rows in, or out."""
        self._held += sign * len(rows)
        self._true += sign * int((self._labels[rows] == 1.0).sum())
        _sum_rows(self._sums, self._values, rows, sign)
        self._scale = None

    def _places(self, ids: Ints) -> Ints:
        """The row of each id; -1 when it is not held."""
        rows = np.searchsorted(self._ids[: self._used], ids)
        rows[rows == self._used] = -1
        return np.where((self._ids[rows] == ids) & self._alive[rows], rows, -1)

    def _scales(self) -> Floats:
        """For each number 1 / spread; 0 when it does not vary."""
        if self._scale is None:
            self._scale = _scales(self._sums)
        return self._scale

    def _query(self, columns: Columns) -> tuple[Floats, npt.NDArray[np.int32]]:
        """Numbers (nan for null) and codes (-2 for an unknown string), each features x rows."""
        n = len(columns[next(iter(self._features))])
        values = np.empty((len(self._numbers), n))
        for row, name in zip(values, self._numbers, strict=True):
            row[:] = columns[name]
            row[is_null(columns[name])] = np.nan
        np.clip(values, -GREATEST, GREATEST, out=values)
        codes = np.empty((len(self._categories), n), np.int32)
        for i, name in enumerate(self._categories):
            column = columns[name]
            known = self._strings.get
            codes[i] = [known(s, -2) for s in column.tolist()] if self._features[name] == STRING else column
        return values, codes

    def _search(self, columns: Columns, values: Floats, codes: npt.NDArray[np.int32]) -> tuple[Ints, Floats, Ints]:
        """For each question the rows of its neighbours (-1 for none), their squared distances, and their number."""
        if self._graph is None:
            return self._nearest(slice(None), self._used, values, codes)
        parts = [
            self._nearest(rows, len(rows), values[:, i : i + 1].copy(), codes[:, i : i + 1].copy())
            for i, rows in enumerate(map(self._places, self._graph.candidates(values, columns)))
        ]
        nothing = np.empty((0, self._k), np.int64), np.empty((0, self._k)), np.empty(0, np.int64)
        near, square, found = (np.concatenate(p) for p in zip(nothing, *parts, strict=True))
        return near, square, found

    def _nearest(
        self, rows: Ints | slice, n: int, values: Floats, codes: npt.NDArray[np.int32]
    ) -> tuple[Ints, Floats, Ints]:
        """The nearest among the first n of these rows."""
        own_values, own_codes, alive = (
            np.ascontiguousarray(a[..., rows]) for a in (self._values, self._codes, self._alive)
        )
        near, square, found = _search(own_values, own_codes, alive, n, values, codes, self._scales(), self._k)
        return near if isinstance(rows, slice) else np.where(near >= 0, np.append(rows, -1)[near], -1), square, found


class _Graph:
    """A graph of examples as vectors, by usearch; what it finds is ranked again by the true distance.

    Numbers are scaled as of when it was built, and a null is their mean; it is built anew when one of the scales has
    doubled or halved. Strings and booleans are random signs, so that two different ones are about 1 apart.
    """

    def __init__(self, numbers: int, categories: list[str], k: int) -> None:
        try:
            from usearch.index import Index
        except ImportError as error:
            raise DefinitionError(
                f"neighbours: index='approximate' needs usearch, which cannot be imported ({error}): "
                "pip install 'freshet[approximate]', or take index='exact'"
            ) from None
        self._make, self._categories, self._count = Index, categories, 2 * k
        self._start(np.zeros(numbers), np.zeros(numbers))

    def _start(self, scale: Floats, centre: Floats) -> None:
        self._scale, self._centre = scale, centre
        size = len(scale) + _SIGNS * len(self._categories)
        self._index = self._make(ndim=size, metric="l2sq", dtype="f32", expansion_search=max(128, 2 * self._count))

    @property
    def nbytes(self) -> int:
        return int(self._index.memory_usage)

    def build(self, ids: Ints, values: Floats, columns: Columns, scale: Floats) -> None:
        """Begin anew with these examples."""
        known = (v[v == v] for v in values)
        self._start(scale, np.array([v.mean() if len(v) else 0.0 for v in known]))
        self.add(ids, values, columns)

    def is_stale(self, scale: Floats) -> bool:
        """Whether the numbers are scaled otherwise by now."""
        return bool(((scale > 2 * self._scale) | (self._scale > 2 * scale)).any())

    def add(self, ids: Ints, values: Floats, columns: Columns) -> None:
        self._index.add(ids.astype(np.uint64), self._vectors(values, columns), threads=1)

    def remove(self, ids: Ints) -> None:
        self._index.remove(ids.astype(np.uint64), threads=1)

    def candidates(self, values: Floats, columns: Columns) -> list[Ints]:
        """For each question the ids of examples among which its neighbours are."""
        if not len(self._index):
            return [np.zeros(0, np.int64)] * len(columns[next(iter(columns))])
        found: Any = self._index.search(self._vectors(values, columns), self._count, threads=1)
        keys = np.atleast_2d(found.keys).astype(np.int64)
        counts = getattr(found, "counts", [keys.shape[1]])  # there are none for one question
        return [np.sort(row[:n]) for row, n in zip(keys, counts, strict=True)]

    def snapshot(self) -> Any:
        saved: Any = self._index.save()
        return bytes(saved), self._scale, self._centre

    def restore(self, state: Any) -> None:
        saved, scale, centre = state
        self._start(scale, centre)
        self._index.load(saved)

    def _vectors(self, values: Floats, columns: Columns) -> npt.NDArray[np.float32]:
        numbers = (values.T - self._centre) * self._scale
        numbers[numbers != numbers] = 0.0
        parts: list[Array] = [np.clip(numbers, -1e9, 1e9)]
        for name in self._categories:
            sums = np.array([crc32(str(v).encode()) for v in columns[name].tolist()], np.int64)
            parts.append(((sums[:, None] >> np.arange(_SIGNS) & 1) - 0.5) * math.sqrt(2 / _SIGNS))
        return np.ascontiguousarray(np.concatenate(parts, 1), np.float32)


_SIGNS = 16
"""Dimensions of a string or boolean in the graph."""

_LIMBS = 68
"""An exact sum is so many integers, each in units 2**32 times that of the one before. The first unit is 2**-1126."""


@njit(cache=True)
def _add_exactly(limbs, first, v, sign):  # type: ignore[no-untyped-def]
    """Add a float to the sum of which the least integer is limbs[first]. Integers wrap at 2**30 additions or more."""
    fraction, exponent = math.frexp(v)
    n = int(abs(fraction) * 9007199254740992.0)
    s = sign if fraction >= 0.0 else -sign
    place = exponent + 1073
    i, shift = first + (place >> 5), place & 31
    low, high = (n & 0xFFFFFFFF) << shift, (n >> 32) << shift
    limbs[i] += s * (low & 0xFFFFFFFF)
    limbs[i + 1] += s * ((low >> 32) + (high & 0xFFFFFFFF))
    limbs[i + 2] += s * (high >> 32)


@njit(cache=True)
def _value(limbs, first):  # type: ignore[no-untyped-def]
    """An exact sum as two floats, the second a correction of the first."""
    a = b = c = 0.0
    for i in range(_LIMBS - 1, -1, -1):
        if limbs[first + i] != 0:
            high = limbs[first + i] >> 32
            low = limbs[first + i] - (high << 32)
            a, b, c, _ = add(a, b, c, math.ldexp(float(high), 32 * i - 1094))
            a, b, c, _ = add(a, b, c, math.ldexp(float(low), 32 * i - 1126))
    return a, b


@njit(cache=True)
def _product(a, b):  # type: ignore[no-untyped-def]
    """a * b rounded, and the error."""
    p = a * b
    c, d = 134217729.0 * a, 134217729.0 * b
    e, f = c - (c - a), d - (d - b)
    g, h = a - e, b - f
    return p, ((e * f - p) + e * h + g * f) + g * h


@njit(cache=True)
def _sum_rows(sums, values, rows, sign):  # type: ignore[no-untyped-def]
    """Count rows in or out: for each number how many there are, their sum and their sum of squares."""
    for j in range(len(values)):
        limbs = sums[j]
        for r in rows:
            v = values[j, r]
            if v == v:
                limbs[0] += sign
                p, e = _product(v, v)
                _add_exactly(limbs, 1, v, sign)
                _add_exactly(limbs, 1 + _LIMBS, p, sign)
                _add_exactly(limbs, 1 + _LIMBS, e, sign)


@njit(cache=True)
def _scales(sums):  # type: ignore[no-untyped-def]
    """1 / spread of each number, from n**2 spread**2 = n (sum of squares) - sum**2; 0 when it does not vary.

    A spread below 1e-13 of the mean is taken for none, and so is one of numbers below 1e-130.
    """
    out = np.zeros(len(sums))
    for j in range(len(sums)):
        n = float(sums[j, 0])
        s, t = _value(sums[j], 1)
        q, r = _value(sums[j], 1 + _LIMBS)
        a, b = _product(n, q)
        c, d = _product(s, s)
        square = (a - c) + ((b + n * r) - (d + 2.0 * s * t))
        if square > 2.0**-86 * a and a > 1e-260:
            out[j] = n / math.sqrt(square)
    return out


@njit(cache=True)
def _search(values, codes, alive, used, queries, query_codes, scale, k):  # type: ignore[no-untyped-def]
    """For each question the k nearest rows (-1 for none), their squared distances, and how many there are."""
    n, block = queries.shape[1] if len(queries) else query_codes.shape[1], 512
    near, square, found = np.full((n, k), -1), np.full((n, k), np.inf), np.zeros(n, np.int64)
    distance = np.empty(block)
    for start in range(0, used, block):
        size = min(block, used - start)
        for q in range(n):
            distance[:size] = 0.0
            for j in range(len(values)):
                _compare(values[j, start : start + size], queries[j, q], scale[j], distance)
            for j in range(len(codes)):
                row, code = codes[j, start : start + size], query_codes[j, q]
                for i in range(size):
                    distance[i] += 1.0 if row[i] != code else 0.0
            last = square[q, k - 1]
            for i in range(size):
                d = distance[i]
                if d < last and alive[start + i]:
                    p = min(found[q], k - 1)
                    while p > 0 and square[q, p - 1] > d:
                        square[q, p], near[q, p] = square[q, p - 1], near[q, p - 1]
                        p -= 1
                    square[q, p], near[q, p] = d, start + i
                    found[q] = min(found[q] + 1, k)
                    last = square[q, k - 1]
    return near, square, found


@njit(cache=True)
def _compare(row, v, scale, distance):  # type: ignore[no-untyped-def]
    """Add to each distance what a number adds to it."""
    if v != v:
        for i in range(len(row)):
            distance[i] += 0.0 if row[i] != row[i] else 1.0
    else:
        for i in range(len(row)):
            d = (row[i] - v) * scale
            d *= d
            distance[i] += 1.0 if d != d else min(d, FAR)


@njit(cache=True)
def _weights(square, found):  # type: ignore[no-untyped-def]
    """The weight of each neighbour by its squared distance; 0 where there is none."""
    out = np.zeros(square.shape)
    for q in range(len(square)):
        for i in range(found[q]):
            far = square[q, found[q] - 1]
            out[q, i] = math.exp(-2.0 * square[q, i] / far) if far > 0.0 else 1.0
    return out


@njit(cache=True)
def _modes(labels, found, weights):  # type: ignore[no-untyped-def]
    """The label of most weight, the least of several."""
    out = np.zeros(len(labels), np.int64)
    for q in range(len(labels)):
        most = -1.0
        for i in range(found[q]):
            total = 0.0
            for j in range(found[q]):
                if labels[q, j] == labels[q, i]:
                    total += weights[q, j]
            if total > most or (total == most and labels[q, i] < out[q]):
                most, out[q] = total, labels[q, i]
    return out


@njit(cache=True)
def _lines(values, rows, found, weights, labels, queries, scale):  # type: ignore[no-untyped-def]
    """The value at each question of the line through its neighbours; a null says nothing of the slope."""
    n, d = len(rows), len(values)
    out = np.empty(n)
    centre, slope, square = np.empty(d), np.empty(d), np.empty((d, d))
    z = np.empty((rows.shape[1], d))
    for q in range(n):
        k = found[q]
        total = mean = 0.0
        for i in range(k):
            total += weights[q, i]
            mean += weights[q, i] * labels[q, i]
        mean /= total
        centre[:] = 0.0
        for i in range(k):
            for j in range(d):
                v = (values[j, rows[q, i]] - queries[j, q]) * scale[j]
                z[i, j] = min(max(v, -1e6), 1e6) if v == v else 0.0
                centre[j] += weights[q, i] * z[i, j] / total
        slope[:] = 0.0
        square[:] = 0.0
        for i in range(k):
            for j in range(d):
                v = weights[q, i] * (z[i, j] - centre[j])
                slope[j] += v * (labels[q, i] - mean)
                for m in range(j + 1):
                    square[j, m] += v * (z[i, m] - centre[m])
        for j in range(d):
            square[j, j] += DAMPING * total
        _solve(square, slope)
        value = mean
        for j in range(d):
            value -= centre[j] * slope[j]
        reach = labels[q, :k].max() - labels[q, :k].min()
        out[q] = value if abs(value - mean) <= reach else mean
    return out


@njit(cache=True)
def _solve(a, b):  # type: ignore[no-untyped-def]
    """Solve a x = b in place, by Cholesky's factors of the lower half of a."""
    d = len(b)
    for j in range(d):
        for m in range(j + 1):
            s = a[j, m]
            for i in range(m):
                s -= a[j, i] * a[m, i]
            a[j, m] = math.sqrt(s) if j == m else s / a[m, m]
    for j in range(d):
        for i in range(j):
            b[j] -= a[j, i] * b[i]
        b[j] /= a[j, j]
    for j in range(d - 1, -1, -1):
        for i in range(j + 1, d):
            b[j] -= a[i, j] * b[i]
        b[j] /= a[j, j]


def _column(values: Collection[Any], dtype: Any) -> Array:
    out = np.empty(len(values), dtype)
    out[:] = list(values)
    return out
