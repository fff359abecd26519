"""What goes from stage to stage: the deltas of one step of the whole pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from operators.delta import Delta, Ints

Way = Literal["incremental", "full"]


@dataclass(slots=True)
class Refresh:
    """A refresh of a deferred view. changes: how many are fed to it. seconds: what its steps took so far."""

    way: Way
    changes: int
    seconds: float = 0.0


@dataclass(slots=True)
class Batch:
    """Changes that were waiting, in order of knowledge, with what they lead to in each view so far.

    number: counts batches from 1. deltas: by source or node name. watermark: for each source the event time below
    which no change is expected any more, after this batch. horizon: for each source the event time below which no
    change is accepted any more, from this batch on. Both also for what deferred views wait with. watermarks: for
    each source the watermark after each change, by `seq`; contained: for each deferred view the watermarks of its
    sources that it contains then. These two only where somebody needs them: see `engine.plan.watermarks_needed`.

    read: for each source how many changes have been read, this batch included; counts: how many records were late,
    dead or skipped. first, last: the `seq` of its first and its last change; without changes of the one that comes
    next. clock: when the first became known; without changes the time at which views are due. known: when each
    change became known, by `seq`. live: whether the present is being followed. due: the views that are refreshed
    with what is known after this batch.
    refreshed: those of them for which anything was pending.
    held: for each deferred view the watermarks of its sources that it contains, and how many changes it waits with.
    dead, late: lines for these outputs. failures: by relation for each of its expectations how many rows that do not
    meet it came, and how many left. forgotten: positions of source rows that are to be forgotten; None when nothing
    is.
    """

    number: int
    deltas: dict[str, Delta]
    watermark: dict[str, int]
    horizon: dict[str, int]
    read: dict[str, int]
    first: int = 0
    last: int = 0
    clock: int | None = None
    known: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    live: bool = False
    due: frozenset[str] = frozenset()
    refreshed: dict[str, Refresh] = field(default_factory=dict)
    held: dict[str, tuple[dict[str, int], int]] = field(default_factory=dict)
    watermarks: dict[str, Ints] = field(default_factory=dict)
    contained: dict[str, dict[str, Ints]] = field(default_factory=dict)
    dead: list[bytes] = field(default_factory=list)
    late: list[bytes] = field(default_factory=list)
    failures: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    forgotten: Ints | None = None
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def full(self) -> frozenset[str]:
        """The views that are computed from scratch."""
        return frozenset(view for view, r in self.refreshed.items() if r.way == "full")
