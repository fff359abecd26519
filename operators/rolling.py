"""Kernels of `window`: the rows of each key with running sums, so that a reduction over any range of them is quick.

Rows of a key lie in one segment, sorted (`operators.segments`), each with the running sums of its key: a window of any
size is a range of rows, its total the difference of two running sums, its extremes a walk over at most 126 rows and
one entry per block of 64. A row that comes in order takes constant time, whatever the sizes (on average; when the
extreme itself leaves in every step, the walk); a late one takes time in proportion to the rows behind it. Nothing is
subtracted when a row leaves a window, so to forget rows is only to manage memory: rows that no window can reach behind
the horizon are forgotten when a segment is full or as a hand goes round the keys, a few in each call; so are keys,
unless a size is "forever".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from operators.delta import BEGINNING, NULL
from operators.exact import add, exact_sum, minus, rounded
from operators.kernel import pointer
from operators.reduction import (
    ALL,
    CHANNEL,
    COUNT,
    EXTREME,
    FLOAT_NULL,
    KIND,
    MASK,
    MAXIMUM,
    MEAN,
    MINIMUM,
    PLACE,
    RESTART,
    ROWS,
    WINDOW,
    rank,
)
from operators.segments import (
    AT,
    END,
    FIELDS,
    HEAD,
    MARK,
    ORIGIN,
    POS,
    START,
    TAIL,
    TOP,
    erase,
    first,
    make_room,
    taller,
    tidy,
)

# The words of a row: at, pos, the number of its columns, and per channel the value, the running sum (hi, mid, lo) and
# the number of values that are not null. The words of a key: its fields; per channel the running sum and number before
# its first row, one more than the number of the last row at which the running sum lost bits, the least and
# greatest of forgotten rows and of all rows; per window the number of the first row that the last row sees and, per
# channel, of its least and its greatest.

ID, VALUES, PER_VALUE = 2, 3, 5
HI, MID, LO, N = 1, 2, 3, 4
LOST, GONE_LEAST, GONE_MOST, LEAST, MOST = range(5, 10)
PER_CHANNEL = 9
ENDLESS = -1
FAR = 2**62


@njit(cache=True, forceinline=True)
def _base(c):  # type: ignore[no-untyped-def]
    """Where a channel's words of a key begin; HI, LO and N count from there as they do in a row."""
    return FIELDS + PER_CHANNEL * c - 1


@njit(cache=True, forceinline=True)
def _seat(channels, w):  # type: ignore[no-untyped-def]
    return FIELDS + PER_CHANNEL * channels + w * (1 + 2 * channels)


@njit(cache=True, forceinline=True)
def _below(at, size):  # type: ignore[no-untyped-def]
    """The greatest `at` that a row does not see."""
    return at - size if at > BEGINNING + size else NULL


class _Table(NamedTuple):
    """All that the results of a line are made of, as pointers: line i begins at i * width, key k at k * key_width."""

    rows: Any
    floats: Any
    width: Any
    keys: Any
    key_floats: Any
    key_width: Any
    blocks: Any
    block_width: Any
    sizes: Any
    windows: Any
    what: Any
    reductions: Any
    channels: Any
    many: Any


@njit(cache=True, forceinline=True)
def _table(rows, keys, blocks, sizes, what, channels):  # type: ignore[no-untyped-def]
    return _Table(
        pointer(rows), pointer(rows.view(np.float64)), rows.shape[1],
        pointer(keys), pointer(keys.view(np.float64)), keys.shape[1],
        pointer(blocks), blocks.shape[1],
        pointer(sizes), sizes.shape[0], pointer(what), what.shape[0], pointer(channels), channels.shape[0],
    )  # fmt: skip


@njit(cache=True, forceinline=True)
def _channel(t, c, word):  # type: ignore[no-untyped-def]
    return t.channels[c * 4 + word]


@njit(cache=True)
def _extreme(t, v, b, mask, sign, s, e):  # type: ignore[no-untyped-def]
    """The line of the greatest (sign 1) or least (-1) value of lines s to e, the latest of equals."""
    best = e
    top = rank(t.rows[e * t.width + v], mask, sign)
    i = e - 1
    while i >= s:
        if (i & 63) == 63 and i - 63 >= s:
            j = t.blocks[(i >> 6) * t.block_width + b]
            i -= 64
        else:
            j = i
            i -= 1
        r = rank(t.rows[j * t.width + v], mask, sign)
        if r > top:
            top = r
            best = j
    return best


@njit(cache=True, forceinline=True)
def _enter_block(t, i, head):  # type: ignore[no-untyped-def]
    """Line i becomes the last of its block."""
    for c in range(t.many):
        if _channel(t, c, EXTREME):
            b, v, mask = (i >> 6) * t.block_width + 2 * c, VALUES + PER_VALUE * c, _channel(t, c, MASK)
            if i == head or (i & 63) == 0:
                t.blocks[b] = i
                t.blocks[b + 1] = i
            else:
                word = t.rows[i * t.width + v]
                if rank(word, mask, -1) >= rank(t.rows[t.blocks[b] * t.width + v], mask, -1):
                    t.blocks[b] = i
                if rank(word, mask, 1) >= rank(t.rows[t.blocks[b + 1] * t.width + v], mask, 1):
                    t.blocks[b + 1] = i


@njit(cache=True, forceinline=True)
def _run_on(t, q, i):  # type: ignore[no-untyped-def]
    """The running sums of line i of the key at q, from those before it."""
    within = i > t.keys[q + HEAD]
    for c in range(t.many):
        v, b = i * t.width + VALUES + PER_VALUE * c, q + _base(c)
        before = v - t.width
        n = t.rows[before + N] if within else t.keys[b + N]
        if _channel(t, c, MASK):
            hi = t.floats[before + HI] if within else t.key_floats[b + HI]
            mid = t.floats[before + MID] if within else t.key_floats[b + MID]
            lo = t.floats[before + LO] if within else t.key_floats[b + LO]
            x = t.floats[v]
            if x == x:
                hi, mid, lo, lost = add(hi, mid, lo, x)
                n += 1
                if lost:
                    t.keys[b + LOST] = i - t.keys[q + ORIGIN] + 1
            t.floats[v + HI] = hi
            t.floats[v + MID] = mid
            t.floats[v + LO] = lo
        else:
            whole = t.rows[before + HI] if within else t.keys[b + HI]
            y = t.rows[v]
            if y != NULL:
                whole += y
                n += 1
            t.rows[v + HI] = whole
        t.rows[v + N] = n


@njit(cache=True)
def _run_from(t, k, start, end):  # type: ignore[no-untyped-def]
    for i in range(start, end):
        _run_on(t, k * t.key_width, i)


@njit(cache=True)
def _forget(rows, keys, k, keep, channels):  # type: ignore[no-untyped-def]
    """Drop rows at or before `keep`; they stay in the sums, and in the extremes of all time."""
    head, tail, origin = keys[k, HEAD], keys[k, TAIL], keys[k, ORIGIN]
    h = head
    while h < tail and rows[h, 0] <= keep:
        for c in range(channels.shape[0]):
            if channels[c, ALL]:
                v, b, mask = VALUES + PER_VALUE * c, _base(c), channels[c, MASK]
                if h == origin or rank(rows[h, v], mask, -1) > rank(keys[k, b + GONE_LEAST], mask, -1):
                    keys[k, b + GONE_LEAST] = rows[h, v]
                if h == origin or rank(rows[h, v], mask, 1) > rank(keys[k, b + GONE_MOST], mask, 1):
                    keys[k, b + GONE_MOST] = rows[h, v]
        h += 1
    if h > head:
        for c in range(channels.shape[0]):
            v, b = VALUES + PER_VALUE * c, _base(c)
            keys[k, b + HI] = rows[h - 1, v + HI]
            keys[k, b + MID] = rows[h - 1, v + MID]
            keys[k, b + LO] = rows[h - 1, v + LO]
            keys[k, b + N] = rows[h - 1, v + N]
        keys[k, HEAD] = h


@njit(cache=True)
def _covering(blocks, rows):  # type: ignore[no-untyped-def]
    """The blocks, with one for each 64 lines."""
    return taller(blocks, (rows.shape[0] >> 6) + 1) if blocks.shape[1] else blocks


@njit(cache=True)
def _moved(rows, keys, blocks, k, sizes, what, channels):  # type: ignore[no-untyped-def]
    """After the rows of a key moved: mark their blocks, and start running sums again that lost bits; returns blocks."""
    blocks = _covering(blocks, rows)
    t = _table(rows, keys, blocks, sizes, what, channels)
    head, tail = keys[k, HEAD], keys[k, TAIL]
    if blocks.shape[1] and keys[k, END] - head >= 64:
        for i in range(head, tail):
            _enter_block(t, i, head)
    again = False
    for c in range(channels.shape[0]):
        b = _base(c)
        if channels[c, RESTART] and keys[k, b + LOST] > 0:
            keys[k, b + HI] = keys[k, b + MID] = keys[k, b + LO] = keys[k, b + LOST] = 0
            again = True
    if again:
        _run_from(t, k, head, tail)
    return blocks


@njit(cache=True)
def _reseat(t, rows, keys, k, e):  # type: ignore[no-untyped-def]
    """Make a key ready to be asked for the results of line e, which may be its tail, and those after it."""
    C, head, origin = t.many, keys[k, HEAD], keys[k, ORIGIN]
    last = e if e < keys[k, TAIL] else e - 1
    for w in range(t.windows):
        seat = _seat(C, w)
        left = head
        if t.sizes[w] != ENDLESS and last >= head:
            left = first(rows, head, last, _below(rows[last, 0], t.sizes[w]) + 1, NULL)
        keys[k, seat] = left - origin
        for x in range(2 * C):
            keys[k, seat + 1 + x] = -1
    for c in range(C):
        if _channel(t, c, ALL):
            v, b, mask = VALUES + PER_VALUE * c, _base(c), _channel(t, c, MASK)
            for side in range(2):
                sign = 2 * side - 1
                word = keys[k, b + GONE_LEAST + side]
                if e > head:
                    found = rows[_extreme(t, v, 2 * c + side, mask, sign, head, e - 1), v]
                    if head == origin or rank(found, mask, sign) > rank(word, mask, sign):
                        word = found
                keys[k, b + LEAST + side] = word


@njit(cache=True, forceinline=True)
def _results(t, q, e, out, out_floats, o):  # type: ignore[no-untyped-def]
    """The results of line e of the key at q to out[o] and on; this was last done for the line before, or `_reseat`."""
    keys, head, origin, line = t.keys, t.keys[q + HEAD], t.keys[q + ORIGIN], e * t.width
    for c in range(t.many):
        if _channel(t, c, ALL):
            b, mask = q + _base(c), _channel(t, c, MASK)
            word = t.rows[line + VALUES + PER_VALUE * c]
            if e == origin or rank(word, mask, -1) > rank(keys[b + LEAST], mask, -1):
                keys[b + LEAST] = word
            if e == origin or rank(word, mask, 1) > rank(keys[b + MOST], mask, 1):
                keys[b + MOST] = word
    w, c, s, seat, n, v, b, before = -1, -1, head, q, 0, 0, 0, 0
    endless, summed = False, False
    x = 0.0
    for r in range(t.reductions):
        kind, place = t.what[4 * r + KIND], o + t.what[4 * r + PLACE]
        if t.what[4 * r + WINDOW] != w:
            w, c = t.what[4 * r + WINDOW], -1
            seat = q + _seat(t.many, w)
            endless = t.sizes[w] == ENDLESS
            s = head
            if not endless:
                s = max(keys[seat] + origin, head)
                below = _below(t.rows[line], t.sizes[w])
                while t.rows[s * t.width] <= below:
                    s += 1
                keys[seat] = s - origin
        if kind == ROWS:
            out[place] = e - (origin if endless else s) + 1
            continue
        if t.what[4 * r + CHANNEL] != c:
            c = t.what[4 * r + CHANNEL]
            v, b, summed = VALUES + PER_VALUE * c, q + _base(c), False
            before = (s - 1) * t.width + v
            n = t.rows[line + v + N]
            if not endless:
                n -= t.rows[before + N] if s > head else keys[b + N]
        if kind == COUNT:
            out[place] = n
        elif kind in (MINIMUM, MAXIMUM):
            side = 0 if kind == MINIMUM else 1
            if endless:
                out[place] = keys[b + LEAST + side]
            else:
                sign, mask, here = 2 * side - 1, _channel(t, c, MASK), seat + 1 + 2 * c + side
                best = keys[here] + origin
                if best < s:
                    best = _extreme(t, v, 2 * c + side, mask, sign, s, e)
                    keys[here] = best - origin
                elif rank(t.rows[line + v], mask, sign) >= rank(t.rows[best * t.width + v], mask, sign):
                    best = e
                    keys[here] = e - origin
                out[place] = t.rows[best * t.width + v]
        elif _channel(t, c, MASK) == 0:
            whole = t.rows[line + v + HI]
            if not endless:
                whole -= t.rows[before + HI] if s > head else keys[b + HI]
            out[place] = whole if n > 0 else NULL
        else:
            if not summed:
                summed = True
                hi, mid, lo = t.floats[line + v + HI], t.floats[line + v + MID], t.floats[line + v + LO]
                if endless:
                    x = rounded(hi, mid, lo)
                elif keys[b + LOST] > s - origin:
                    x = exact_sum(t.floats, t.width, v, s, e + 1, 0.0, 0.0, 0.0)
                elif s > head:
                    x = minus(hi, mid, lo, t.floats[before + HI], t.floats[before + MID], t.floats[before + LO])
                else:
                    x = minus(hi, mid, lo, t.key_floats[b + HI], t.key_floats[b + MID], t.key_floats[b + LO])
            y = x / n if kind == MEAN and n > 0 else x
            if n > 0 and y == y:
                out_floats[place] = y
            else:
                out[place] = FLOAT_NULL


@njit(cache=True)
def _results_from(t, rows, keys, k, start, n, out):  # type: ignore[no-untyped-def]
    """The results of n lines from `start` on into out[:n], from nothing but the rows."""
    if n:
        to, to_floats = pointer(out), pointer(out.view(np.float64))
        _reseat(t, rows, keys, k, start)
        for i in range(n):
            _results(t, k * t.key_width, start + i, to, to_floats, i * t.reductions)


@njit(cache=True)
def set_aside(keys, slot, at, pos, weight, a, b, stamp, slow):  # type: ignore[no-untyped-def]
    """Mark keys that get, in rows a to b, one that is not an insert behind their last; returns how many those get."""
    some = False
    for i in range(a, b):
        k = slot[i]
        mark = keys[k, MARK]
        if mark == stamp:
            continue
        after = mark == 0 or at[i] > keys[k, AT] or (at[i] == keys[k, AT] and pos[i] > keys[k, POS])
        if weight[i] > 0 and after:
            keys[k, AT] = at[i]
            keys[k, POS] = pos[i]
            if mark == 0:
                keys[k, MARK] = 1
        else:
            keys[k, MARK] = stamp
            some = True
    n = 0
    if some:
        for i in range(a, b):
            if keys[slot[i], MARK] == stamp:
                slow[n] = i
                n += 1
    return n


@njit(cache=True)
def _append_some(  # type: ignore[no-untyped-def]
    rows, keys, blocks, free, slot, at, pos, seq, ids, words, sizes, what, channels, keep, stamp, out, about, i, b, o
):  # fmt: skip
    """Rows i to b that come in order, except those of marked keys; their results go to out[o] and on.

    Returns the next row and result; the row is not b when there must be `_spare` lines more.
    """
    t = _table(rows, keys, blocks, sizes, what, channels)
    to, to_floats, told = pointer(out), pointer(out.view(np.float64)), pointer(about)
    slots, ats, poss, seqs, numbers, given = (
        pointer(slot), pointer(at), pointer(pos), pointer(seq), pointer(ids), pointer(words)
    )  # fmt: skip
    blocked, lines = blocks.shape[1] > 0, rows.shape[0]
    while i < b:
        k = slots[i]
        q = k * t.key_width
        if t.keys[q + MARK] == stamp:
            i += 1
            continue
        if t.keys[q + TAIL] == t.keys[q + END]:
            if free[TOP] + _spare(t.keys[q + END] - t.keys[q + START]) > lines:
                return i, o
            _forget(rows, keys, k, keep, channels)
            make_room(rows, keys, free, k, np.int64(1))
            _moved(rows, keys, blocks, k, sizes, what, channels)
        e = t.keys[q + TAIL]
        line = e * t.width
        t.rows[line], t.rows[line + 1], t.rows[line + ID] = ats[i], poss[i], numbers[i]
        for c in range(t.many):
            t.rows[line + VALUES + PER_VALUE * c] = given[i * t.many + c]
        _run_on(t, q, e)
        t.keys[q + TAIL] = e + 1
        if blocked and t.keys[q + END] - t.keys[q + HEAD] >= 64:
            _enter_block(t, e, t.keys[q + HEAD])
        _results(t, q, e, to, to_floats, o * t.reductions)
        told[4 * o + SOURCE], told[4 * o + WEIGHT], told[4 * o + SEQ] = i, 1, seqs[i]
        o += 1
        i += 1
    return i, o


@njit(cache=True, forceinline=True)
def _spare(segment):  # type: ignore[no-untyped-def]
    """At most so many lines are taken when a segment of this size is full."""
    return 2 * segment + 128


@njit(cache=True)
def append(  # type: ignore[no-untyped-def]
    rows, keys, blocks, free, slot, at, pos, seq, ids, words, sizes, what, channels, keep, stamp, out, about, a, b, o
):  # fmt: skip
    """Rows a to b that come in order, except those of marked keys; their results go to `out` from o on.

    Returns lines, blocks, results, what each is about, and how many there are.
    """
    out, about = taller(out, o + b - a), taller(about, o + b - a)
    while True:
        a, o = _append_some(
            rows, keys, blocks, free, slot, at, pos, seq, ids, words, sizes, what, channels, keep, stamp, out, about,
            a, b, o,
        )  # fmt: skip
        if a == b:
            return rows, blocks, out, about, o
        k = slot[a]
        rows = taller(rows, free[TOP] + _spare(keys[k, END] - keys[k, START]))
        blocks = _covering(blocks, rows)


@njit(cache=True)
def _differ(a, i, b, j):  # type: ignore[no-untyped-def]
    w = 0
    while w < a.shape[1] and a[i, w] == b[j, w]:
        w += 1
    return w < a.shape[1]


SOURCE, WHOSE, WEIGHT, SEQ = range(4)
"""Of an output: the row of the delta, or -1; the number of its columns otherwise; weight; seq."""


@njit(cache=True)
def _emit(out, about, o, results, i, source, whose, weight, seq):  # type: ignore[no-untyped-def]
    out, about = taller(out, o + 1), taller(about, o + 1)
    for w in range(out.shape[1]):
        out[o, w] = results[i, w]
    about[o, SOURCE], about[o, WHOSE], about[o, WEIGHT], about[o, SEQ] = source, whose, weight, seq
    return out, about, o + 1


@njit(cache=True)
def rewrite(  # type: ignore[no-untyped-def]
    rows, keys, blocks, free, slot, at, pos, seq, ids, words, sizes, what, channels, keep, out, about, o, weight, order,
    reach,
):  # fmt: skip
    """Rows that come late, leave or change: `order`, sorted by key, at, pos and weight.

    reach: the largest size, or ENDLESS. Returns lines, blocks, results, what each is about, how many there are, the
    numbers of columns nobody needs any more, the slots of which nothing is left, and a row of the delta that takes
    back what is not there, or -1.
    """
    R, C, width = what.shape[0], channels.shape[0], rows.shape[1]
    old, new = np.empty((16, R), np.int64), np.empty((16, R), np.int64)
    stash, origin_of = np.empty((16, width), np.int64), np.empty((16, 2), np.int64)
    gone, gone_n = np.empty(order.shape[0], np.int64), 0
    cleared, cleared_n = np.empty(order.shape[0], np.int64), 0
    missing = -1
    none, off, on = np.int64(0), np.int64(-1), np.int64(1)  # literals would be compiled one by one
    g = 0
    while g < order.shape[0]:
        f, z = order[g], g
        k = slot[f]
        while z < order.shape[0] and slot[order[z]] == k:
            z += 1
        last = order[z - 1]
        if keys[k, END] - keys[k, TAIL] < z - g:
            _forget(rows, keys, k, keep, channels)
            rows = make_room(rows, keys, free, k, z - g)
            blocks = _moved(rows, keys, blocks, k, sizes, what, channels)
        t = _table(rows, keys, blocks, sizes, what, channels)
        head, tail = keys[k, HEAD], keys[k, TAIL]
        j = first(rows, head, tail, at[f], pos[f])
        m = tail - j
        # Rows from `stop` on lie out of reach of every change.
        stop = tail
        if reach != ENDLESS and at[last] < FAR - reach:
            stop = first(rows, j, tail, at[last] + reach, NULL)
        seen = stop - j
        old = taller(old, seen)
        _results_from(t, rows, keys, k, j, seen, old)
        stash, origin_of = taller(stash, m), taller(origin_of, m + z - g)
        for i in range(m):
            for w in range(width):
                stash[i, w] = rows[j + i, w]
        # Merge: old rows as they are, less those taken back, and new ones among them.
        x, u, latest = 0, j, seq[f]
        while g < z or x < m:
            if g < z and (
                x == m or at[order[g]] < stash[x, 0] or (at[order[g]] == stash[x, 0] and pos[order[g]] <= stash[x, 1])
            ):
                i = order[g]
                leave, enter = -1, -1
                while g < z and at[order[g]] == at[i] and pos[order[g]] == pos[i]:
                    if weight[order[g]] < 0:
                        leave = order[g]
                    else:
                        enter = order[g]
                    latest = seq[order[g]]
                    g += 1
                there = x < m and stash[x, 0] == at[i] and stash[x, 1] == pos[i]
                if leave >= 0 and there:
                    out, about, o = _emit(out, about, o, old, x, leave, none, off, seq[leave])
                    gone[gone_n] = stash[x, ID]
                    gone_n += 1
                    x += 1
                elif leave >= 0 and enter >= 0:
                    gone[gone_n] = ids[enter]
                    gone_n += 1
                    enter = -1
                elif leave >= 0 or there:
                    missing = i
                    enter = -1
                if enter >= 0:
                    rows[u, 0], rows[u, 1], rows[u, ID] = at[enter], pos[enter], ids[enter]
                    for c in range(C):
                        rows[u, VALUES + PER_VALUE * c] = words[enter, c]
                    origin_of[u - j, 0], origin_of[u - j, 1] = -1 - enter, seq[enter]
                    u += 1
            else:
                for w in range(width):
                    rows[u, w] = stash[x, w]
                origin_of[u - j, 0], origin_of[u - j, 1] = x, latest
                x += 1
                u += 1
        keys[k, TAIL] = tail = u
        origin = keys[k, ORIGIN]
        if tail == head and (head == origin or reach != ENDLESS):
            erase(rows, keys, free, k)
            cleared[cleared_n] = k
            cleared_n += 1
            continue
        keys[k, MARK] = 1 if tail > head else 0
        if tail > head:
            keys[k, AT], keys[k, POS] = rows[tail - 1, 0], rows[tail - 1, 1]
        for c in range(C):
            b = _base(c)
            keys[k, b + LOST] = min(keys[k, b + LOST], j - origin)
        _run_from(t, k, j, tail)
        if blocks.shape[1] and keys[k, END] - head >= 64:
            for i in range(max(head, j & ~63), tail):
                _enter_block(t, i, head)
        stop = tail
        if reach != ENDLESS and at[last] < FAR - reach:
            stop = first(rows, j, tail, at[last] + reach, NULL)
        seen = stop - j
        new = taller(new, seen)
        _results_from(t, rows, keys, k, j, seen, new)
        if stop < tail or not seen:
            _reseat(t, rows, keys, k, tail)
        for i in range(seen):
            x, known = origin_of[i, 0], origin_of[i, 1]
            if x < 0:
                out, about, o = _emit(out, about, o, new, i, -1 - x, none, on, known)
            elif _differ(old, x, new, i):
                out, about, o = _emit(out, about, o, old, x, off, stash[x, ID], off, known)
                out, about, o = _emit(out, about, o, new, i, off, stash[x, ID], on, known)
    return rows, blocks, out, about, o, gone[:gone_n], cleared[:cleared_n], missing


@njit(cache=True)
def sweep(rows, keys, blocks, free, slots, hand, n, keep, endless, sizes, what, channels):  # type: ignore[no-untyped-def]
    """Let n keys of all slots, from `hand` on, forget; returns lines, blocks, and slots of which nothing is left."""
    cleared, found = np.empty(n, np.int64), 0
    for i in range(hand, hand + n):
        k = i if i < slots else i - slots
        if keys[k, TAIL] == keys[k, HEAD] and (endless or keys[k, TAIL] == keys[k, ORIGIN]):
            continue
        _forget(rows, keys, k, keep, channels)
        if keys[k, TAIL] == keys[k, HEAD] and not endless:
            erase(rows, keys, free, k)
            cleared[found] = k
            found += 1
        else:
            rows, moved = tidy(rows, keys, free, k)
            if moved:
                blocks = _moved(rows, keys, blocks, k, sizes, what, channels)
    return rows, blocks, cleared[:found]
