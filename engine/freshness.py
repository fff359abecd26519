"""How fresh each view is: from what its sources have reached and what it contains, never from when a job ran.

Pure: all times are event times in microseconds UTC, and the present is an argument.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from operators.delta import BEGINNING, Ints

State = Literal["unknown", "backfill", "idle", "fresh", "behind", "warn", "error"]
"""How a view stands; behind its target, past what it warns at, past what it is not to be trusted at."""
Standing = Literal["backfill", "current", "idle", "reading", "partition silent", "refused", "dead"]
"""Why a source gives what it gives, or does not."""

REFUSED = 10
"""After so many records in a row of which none became a change the source is held to have another schema."""


@dataclass(frozen=True)
class Freshness:
    """How fresh a view is.

    frontier: every change below it that its sources gave is contained (late ones within `lateness` still correct it);
    None before the first. local_lag: behind its direct inputs, global_lag: behind what its root sources have read, both
    microseconds, the worst over inputs. age: the present minus the frontier. lag: by what it is judged in the present,
    the age without the sources that are idle, and no less than the global lag; None when there is no present. pending:
    changes read that it does not contain yet.
    """

    frontier: int | None
    local_lag: int
    global_lag: int
    age: int | None
    lag: int | None
    pending: int


@dataclass(frozen=True)
class Bounds:
    """What is declared of the lag of a view, in microseconds; None: nothing. It aims at `target`.

    unread: without a target, how far it may be behind what was read, as its policy and those of what it stands on have
    it; None when they let it wait for any time.
    """

    target: int | None = None
    warn: int | None = None
    error: int | None = None
    unread: int | None = None

    def state(self, lag: int | None, live: bool, idle: bool, behind: int = 0, begun: bool = True) -> State:
        """How a view of that lag stands. live: whether it follows the present; idle: whether all its sources are idle.

        behind: its lag behind what was read. begun: whether every source of it has given something.

        >>> Bounds(target=5, error=60).state(lag=7, live=True, idle=False)
        'behind'
        """
        if not live:
            return "backfill"
        if lag is None:
            return "unknown"
        for bound, state in ((self.error, "error"), (self.warn, "warn"), (self.target, "behind")):
            if bound is not None and lag > bound:
                return cast(State, state)
        if self.target is None and self.unread is not None and behind > self.unread:
            return "behind"
        return "idle" if idle else "fresh" if begun else "unknown"


@dataclass(frozen=True)
class Heard:
    """What has been heard of a source; in the present, in microseconds.

    change: when a change last came. anything: when a record of any kind did, a heartbeat too. refused: how many came
    since of which none became a change, though it should. unread: how much is there that has not been read.
    partitions: when a change last came from each.
    """

    change: int
    anything: int
    refused: int
    unread: int
    partitions: Sequence[int] = ()


def standing(heard: Heard, now: int, idle_after: int | None, heartbeat: int | None, live: bool) -> Standing:
    """How a source stands, the worst first. heartbeat: within what some record must come.

    >>> standing(Heard(change=0, anything=50, refused=0, unread=0), now=60, idle_after=30, heartbeat=20, live=True)
    'idle'
    >>> standing(Heard(change=0, anything=0, refused=0, unread=0), now=60, idle_after=30, heartbeat=20, live=True)
    'dead'
    """
    if not live:
        return "backfill"
    if heard.refused >= REFUSED:
        return "refused"
    if heard.unread:
        return "reading"
    if heartbeat is not None and now - heard.anything > heartbeat:
        return "dead"
    if idle_after is not None:
        if now - heard.change > idle_after:
            return "idle"
        if any(now - at > idle_after for at in heard.partitions):
            return "partition silent"
    return "current"


class OnTime:
    """For how long each view was seen, and for how long of that it was within its target; in seconds.

    Between two looks it is taken to have been as at the second.
    """

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}
        self.within: dict[str, float] = {}
        self._before: int | None = None

    def look(self, now: int, views: Mapping[str, tuple[Bounds, int | None]]) -> None:
        """Take in the lag of views, with what is declared of it."""
        passed = 0.0 if self._before is None else (now - self._before) / 1e6
        self._before = now
        for name, (bounds, lag) in views.items():
            if bounds.target is not None:
                self.seen[name] = self.seen.get(name, 0.0) + passed
                met = lag is not None and lag <= bounds.target
                self.within[name] = self.within.get(name, 0.0) + (passed if met else 0.0)


def least(marks: Mapping[str, int], names: Collection[str]) -> int:
    """The least mark of these sources."""
    return min((marks[n] for n in names), default=BEGINNING)


def contained(
    roots: Collection[str],
    passed: Collection[str],
    watermark: Mapping[str, int],
    held: Mapping[str, tuple[Mapping[str, int], int]],
) -> dict[str, int]:
    """The watermark of each root source that a relation contains: no more than the deferred views that it stands on.

    passed: these views. held: for each deferred view the watermarks that it contains, and how much it waits with.
    """
    there = [held[h][0] for h in passed if h in held]
    return {r: min([watermark[r], *(t[r] for t in there if r in t)]) for r in roots}


def contained_after_each(
    roots: Collection[str],
    passed: Collection[str],
    marks: Mapping[str, Ints],
    held: Mapping[str, Mapping[str, Ints]],
) -> dict[str, Ints]:
    """The same after each change of a batch. marks: of each source; held: for each deferred view what it contains."""
    there = [held[h] for h in passed if h in held]
    return {r: np.minimum.reduce([marks[r], *(t[r] for t in there if r in t)]) for r in roots}


def freshness(
    roots: Collection[str],
    inputs: Mapping[str, int],
    contained: Mapping[str, int],
    read: Mapping[str, int],
    pending: int,
    now: int | None,
    idle: Collection[str] = (),
    since: int = 0,
) -> Freshness:
    """The freshness of a view.

    roots: its root sources. inputs: the frontier of each direct input. contained: for each source the watermark that
    the view contains; read: the watermark that was read. now: the present, None when there is none (a replay, or
    history is still being read). idle: sources that give nothing for now, and need not. since: from when on the present
    is followed; before its first change a view is as old as that.
    """
    mine = least(contained, roots)
    behind_inputs = max((max(0, f - mine) for f in inputs.values() if f > BEGINNING), default=0)
    behind_roots = max(0, *(read[r] - contained[r] for r in roots if contained[r] > BEGINNING), 0)
    known = mine > BEGINNING
    awake = [r for r in roots if r not in idle]
    lag = None
    if now is not None:
        lag = max([behind_roots, *(now - (contained[r] if contained[r] > BEGINNING else since) for r in awake)])
    return Freshness(
        mine if known else None,
        behind_inputs if known else 0,
        behind_roots,
        now - mine if known and now is not None else None,
        lag,
        pending,
    )
