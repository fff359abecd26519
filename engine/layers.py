"""Boxes and arrows put into columns, from left to right: which column, which place in it, at what height.

Pure, and the same for the same graph. A box stands one column right of the last of those that point to it (the longest
path); an arrow that passes columns has a *way* through each, so that it crosses no box. Arrows from one box share their
ways. The order within a column is that of the barycentres, swept to and fro, with the fewest crossings that were found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Place = tuple[str, int]
"""A box, or the way of its arrows through a column: the name of the box, and the column."""

_SWEEPS = 12


@dataclass(frozen=True)
class Layers:
    """column: where each box stands. columns: the places of each column from the top, each with its middle.

    hops: the arrows cut at each column. routes: for each arrow the places that it passes, both ends included.
    """

    column: Mapping[str, int]
    columns: tuple[dict[Place, float], ...]
    hops: tuple[tuple[Place, Place], ...]
    routes: Mapping[tuple[str, str], tuple[Place, ...]]


def columns_of(names: Collection[str], arrows: Collection[tuple[str, str]]) -> dict[str, int]:
    """The column of each box, from 0: the number of arrows on the longest path to it. Raises `ValueError` for a circle.

    >>> columns_of("abc", [("a", "b"), ("b", "c"), ("a", "c")])
    {'a': 0, 'b': 1, 'c': 2}
    """
    waits = {n: sum(b == n for _, b in arrows) for n in names}
    ready, found = [n for n in names if not waits[n]], dict.fromkeys(names, 0)
    for name in ready:
        for a, b in arrows:
            if a == name:
                found[b] = max(found[b], found[a] + 1)
                waits[b] -= 1
                if not waits[b]:
                    ready.append(b)
    if len(ready) < len(found):
        raise ValueError(f"boxes point at one another in a circle: {', '.join(sorted(set(names) - set(ready)))}")
    return found


def layers(names: Sequence[str], arrows: Sequence[tuple[str, str]], high: float, way: float, gap: float) -> Layers:
    """Boxes of one height, and the arrows between them.

    high, way: the height of a box, and of an arrow that passes a column. gap: what is kept free between two of them.
    """
    arrows = list(dict.fromkeys(arrows))
    column = columns_of(names, arrows)
    routes = {
        (a, b): ((a, column[a]), *((a, c) for c in range(column[a] + 1, column[b])), (b, column[b])) for a, b in arrows
    }
    hops = list(dict.fromkeys(hop for r in routes.values() for hop in pairwise(r)))
    order: list[list[Place]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for place in dict.fromkeys([*column.items(), *(p for r in routes.values() for p in r)]):
        order[place[1]].append(place)
    order = _ordered(order, hops)
    size = {p: high if column[p[0]] == p[1] else way for places in order for p in places}
    return Layers(column, tuple(_heights(order, hops, size, gap)), tuple(hops), routes)


def _ordered(order: list[list[Place]], hops: Sequence[tuple[Place, Place]]) -> list[list[Place]]:
    """The columns with their places in the order that has the fewest crossings."""
    best, fewest = order, crossings(order, hops)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        back = sweep % 2
        order = list(order)
        for i in range(len(order) - 2, -1, -1) if back else range(1, len(order)):
            beside = {p: n for n, p in enumerate(order[i + 1 if back else i - 1])}
            ends: dict[Place, list[int]] = {p: [] for p in order[i]}
            for a, b in hops:
                here, there = (a, b) if back else (b, a)
                if here in ends and there in beside:
                    ends[here].append(beside[there])
            rank = {p: sum(e) / len(e) if e else n for n, (p, e) in enumerate(ends.items())}
            order[i] = sorted(order[i], key=rank.__getitem__)
        if (now := crossings(order, hops)) < fewest:
            best, fewest = order, now
    return best


def crossings(order: Sequence[Sequence[Place]], hops: Sequence[tuple[Place, Place]]) -> int:
    """How often two arrows cross."""
    rank = {p: n for places in order for n, p in enumerate(places)}
    total = 0
    for i in range(len(order) - 1):
        ends = np.array([(rank[a], rank[b]) for a, b in hops if a[1] == i]).reshape(-1, 2)
        left, right = (e[:, None] - e[None, :] for e in ends.T)
        total += int(((left > 0) & (right < 0)).sum())
    return total


def _heights(
    order: Sequence[Sequence[Place]], hops: Sequence[tuple[Place, Place]], size: Mapping[Place, float], gap: float
) -> list[dict[Place, float]]:
    """The middle of each place: near the mean of those that it is joined to, without touching the next one."""
    middle: dict[Place, float] = {}
    apart = {
        p: (size[p] + size[places[n - 1]]) / 2 + gap if n else 0.0 for places in order for n, p in enumerate(places)
    }
    for places in order:
        y = 0.0
        for p in places:
            middle[p] = y = y + apart[p]
    joined: dict[Place, list[Place]] = {p: [] for p in middle}
    for a, b in hops:
        joined[a].append(b)
        joined[b].append(a)
    for sweep in range(_SWEEPS):
        for places in reversed(order) if sweep % 2 else order:
            wanted = [sum(middle[o] for o in joined[p]) / len(joined[p]) if joined[p] else middle[p] for p in places]
            middle.update(zip(places, spread(wanted, [apart[p] for p in places]), strict=True))
    top = min((middle[p] - size[p] / 2 for p in middle), default=0.0)
    return [{p: middle[p] - top for p in places} for places in order]


def spread(wanted: Sequence[float], apart: Sequence[float]) -> list[float]:
    """The values nearest to those wanted (least squares) of which each is at least so far beyond the one before.

    >>> spread([0.0, 0.0, 9.0], [0.0, 2.0, 2.0])
    [-1.0, 1.0, 9.0]
    """
    offsets = np.cumsum(apart)
    pools: list[tuple[float, int]] = []
    for want, offset in zip(wanted, offsets.tolist(), strict=True):
        total, n = want - offset, 1
        while pools and pools[-1][0] / pools[-1][1] > total / n:
            more, m = pools.pop()
            total, n = total + more, n + m
        pools.append((total, n))
    means = [total / n for total, n in pools for _ in range(n)]
    return [float(m + o) for m, o in zip(means, offsets, strict=True)]
