"""When views are due: by when changes became known, and by the present once a followed run has caught up.

Before a change that becomes known in a new turn of `every`, or `lag` or more after the first change that a view lacks,
the view is refreshed; and after the change that fills up `rows`. So a refresh contains the same changes however the
input was cut. While nothing is there to read the present does the same; it only ever adds refreshes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from operators.delta import BEGINNING, Array, Ints


@dataclass(frozen=True)
class Due:
    """When a view is due: any of three conditions.

    sources: those that it is made of. every, lag: microseconds. rows: changes of its sources. above: the views with a
    lag that it stands on.
    """

    view: str
    sources: frozenset[str]
    every: int | None = None
    rows: int | None = None
    lag: int | None = None
    above: frozenset[str] = frozenset()


class Schedule:
    """Keeps when each view is due next.

    dues: views behind those that they stand on. sources: all of them, in the order in which changes number them.

    clock: when the last change became known, or the one before which views were refreshed last; None before the first.
    present: when it was last seen that nothing is there to read. since: for each view with a lag that lacks a change,
    when the first one that it lacks became known, by the clock and by the present.
    """

    def __init__(self, dues: Sequence[Due], sources: Sequence[str], state: Any = None) -> None:
        self.dues = list(dues)
        self._of = [np.array([s in d.sources for s in sources], np.bool_) for d in dues]
        self.clock: int | None = None
        self.present = BEGINNING
        self.since: dict[str, tuple[int, int]] = {}
        if state is not None:
            self.clock, self.present, self.since = state

    def before(self, clock: int) -> list[str]:
        """The views that are refreshed before a change that becomes known at `clock`."""
        last = self.clock
        if last is None:
            return []
        self.clock = max(clock, last)
        return self._refreshed(
            d.view
            for d in self.dues
            if (d.every is not None and clock // d.every > last // d.every)
            or (d.lag is not None and d.view in self.since and clock >= self.since[d.view][0] + d.lag)
        )

    def idle(self, now: int) -> list[str]:
        """The views that are refreshed now that nothing is there to read."""
        if self.clock is None:
            return []
        last = max(self.clock, self.present)
        self.present = max(self.present, now)
        return self._refreshed(
            d.view
            for d in self.dues
            if (d.every is not None and now // d.every > last // d.every)
            or (d.lag is not None and d.view in self.since and now >= max(self.since[d.view]) + d.lag)
        )

    def stop(self, clock: Ints, source: Ints, read: Mapping[str, int]) -> int:
        """How many changes come before a view is due: 1 or more.

        clock: when each becomes known, ascending; what is due before the first has been refreshed. source: the number
        of its source. read: for each source how many came before.
        """
        n = len(clock)
        for d, of in zip(self.dues, self._of, strict=True):
            if d.every is not None:
                n = min(n, int(np.searchsorted(clock, (clock[0] // d.every + 1) * d.every)))
            if d.lag is not None:
                first = self.since[d.view][0] if d.view in self.since else _first(clock, of[source])
                n = n if first is None else min(n, int(np.searchsorted(clock, first + d.lag)))
            if d.rows is not None:
                full = np.flatnonzero(np.cumsum(of[source[:n]]) + _more(d, read) >= d.rows)
                n = int(full[0]) + 1 if len(full) else n
        return n

    def take(self, clock: Ints, source: Ints, read: Mapping[str, int]) -> list[str]:
        """The views that are refreshed after these changes, which `stop` ended."""
        full = []
        for d, of in zip(self.dues, self._of, strict=True):
            mine = of[source]
            if d.lag is not None and d.view not in self.since and (first := _first(clock, mine)) is not None:
                self.since[d.view] = first, self.present
            if d.rows is not None and int(mine.sum()) + _more(d, read) >= d.rows:
                full.append(d.view)
        self.clock = int(clock[-1])
        return self._refreshed(full)

    def _refreshed(self, views: Any) -> list[str]:
        """A view that is refreshed lacks what the views that it stands on lack."""
        names = list(views)
        for d in self.dues:
            if d.view in names and d.lag is not None:
                left = [self.since[a] for a in d.above if a in self.since]
                self.since.pop(d.view, None)
                if left:
                    self.since[d.view] = min(left)
        return names

    def state(self) -> Any:
        return self.clock, self.present, dict(self.since)


def _first(clock: Ints, mine: Array) -> int | None:
    return int(clock[np.argmax(mine)]) if mine.any() else None


def _more(due: Due, read: Mapping[str, int]) -> int:
    """How many of its changes came since `rows` was last full."""
    assert due.rows is not None
    return sum(read[s] for s in due.sources) % due.rows
