"""Sums of floats that do not drift: rounded once, as if by exact arithmetic.

A running sum is three floats (hi, mid, lo) of falling size; hi + mid + lo, rounded once by `rounded`, is its value.
That holds 159 bits, so adding ordinary data loses nothing (lo stays 0 as long as 106 bits suffice): the sum of a range
of rows is the difference of two running sums, and depends on the rows only, never on what came and went before. `add`
tells when bits were lost (values that span more than 159 bits, such as 1e300 and 0.1, or an infinity); a range with
such a row is summed by `exact_sum`, row by row. Both give the correctly rounded sum, so it does not show which was
used.

Only where a sum comes near the greatest float (above 2**1000) or an infinity is among the values is the result that of
plain additions in the order of the rows.
"""

from __future__ import annotations

import numpy as np
from numba import njit

LARGE = 2.0**1000


@njit(cache=True, forceinline=True)
def two(a, b):  # type: ignore[no-untyped-def]
    """a + b rounded, and the error."""
    s = a + b
    c = s - a
    return s, (a - (s - c)) + (b - c)


@njit(cache=True, forceinline=True)
def add(hi, mid, lo, v):  # type: ignore[no-untyped-def]
    """(hi, mid, lo) + v, and whether bits were lost."""
    s, e = two(hi, v)
    if not abs(s) <= LARGE:
        return s, 0.0, 0.0, True
    c, f = two(mid, e)
    if lo == 0.0 and f == 0.0:
        h, m = two(s, c)
        return h, m, 0.0, False
    d, lost = two(lo, f)
    m, d = two(c, d)
    h, m = two(s, m)
    m, d = two(m, d)
    h, m = two(h, m)
    return h, m, d, lost != 0.0


@njit(cache=True)
def _grow(parts, n, v):  # type: ignore[no-untyped-def]
    """Add v to n parts that do not overlap, least first; returns how many there are now."""
    k = 0
    for i in range(n):
        p = parts[i]
        if abs(v) < abs(p):
            v, p = p, v
        hi = v + p
        lo = p - (hi - v)
        if lo != 0.0:
            parts[k] = lo
            k += 1
        v = hi
    parts[k] = v
    return k + 1


@njit(cache=True)
def _rounded(parts, n):  # type: ignore[no-untyped-def]
    """The sum of n parts that do not overlap, rounded once (half to even)."""
    n -= 1
    hi, lo = parts[n], 0.0
    while n > 0:
        n -= 1
        x, y = hi, parts[n]
        hi = x + y
        lo = y - (hi - x)
        if lo != 0.0:
            break
    if n > 0 and ((lo < 0.0 and parts[n - 1] < 0.0) or (lo > 0.0 and parts[n - 1] > 0.0)):
        y = lo * 2.0
        x = hi + y
        if y == x - hi:
            hi = x
    return hi


@njit(cache=True)
def _sum_of(a, b, c, d, e, f):  # type: ignore[no-untyped-def]
    parts = np.empty(8, np.float64)
    n = 0
    for v in (a, b, c, d, e, f):
        n = _grow(parts, n, v)
    return _rounded(parts, n)


@njit(cache=True, forceinline=True)
def rounded(hi, mid, lo):  # type: ignore[no-untyped-def]
    """hi + mid + lo, rounded once (half to even)."""
    if lo == 0.0:
        return hi
    return _sum_of(hi, mid, lo, 0.0, 0.0, 0.0)


@njit(cache=True, forceinline=True)
def minus(ahi, amid, alo, bhi, bmid, blo):  # type: ignore[no-untyped-def]
    """(ahi, amid, alo) - (bhi, bmid, blo), rounded once."""
    s, e = two(ahi, -bhi)
    t, f = two(amid, -bmid)
    c, d = two(e, t)
    if d == 0.0 and f == 0.0 and alo == 0.0 and blo == 0.0:
        return s + c
    return _sum_of(ahi, amid, alo, -bhi, -bmid, -blo)


@njit(cache=True)
def exact_sum(values, width, column, start, end, hi, mid, lo):  # type: ignore[no-untyped-def]
    """The sum of (hi, mid, lo) and a column of lines start to end without the nans, rounded once.

    Line i begins at values[i * width].
    """
    h, m, low, lost = hi, mid, lo, False
    for i in range(start, end):
        v = values[i * width + column]
        if v == v:
            h, m, low, lost = add(h, m, low, v)
            if lost:
                break
    if not lost:
        return rounded(h, m, low)
    parts = np.empty(64, np.float64)
    plain = hi
    n = 0
    for v in (lo, mid, hi):
        n = _grow(parts, n, v)
    for i in range(start, end):
        v = values[i * width + column]
        if v == v:
            plain += v
            n = _grow(parts, n, v)
            if not abs(parts[n - 1]) <= 8.0 * LARGE:
                n = 0
                break
    if n == 0:
        plain = hi
        for i in range(start, end):
            if values[i * width + column] == values[i * width + column]:
                plain += values[i * width + column]
        return plain
    return _rounded(parts, n)
