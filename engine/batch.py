"""What goes from stage to stage: the deltas of one step of the whole pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from operators.delta import Delta, Ints


@dataclass(slots=True)
class Batch:
    """Changes that were waiting, in order of knowledge, with what they lead to in each view so far.

    number: counts batches from 1. deltas: by source or node name. watermark: for each source the event time below which
    no change is expected any more, after this batch. horizon: for each source the event time below which no change is
    accepted any more, from this batch on. Both also for what deferred views wait with. read: for each source how many
    changes have been read, this batch included. first, last: the `seq` of its first and its last change. clock: when
    the first became known; known: when each did, by `seq`. live: whether the present is being followed. held: for each
    deferred view the watermarks of its sources that it contains, how many changes it waits with, and how often it was
    refreshed. dead, late: lines for these outputs.
    """

    number: int
    deltas: dict[str, Delta]
    watermark: dict[str, int]
    horizon: dict[str, int]
    read: dict[str, int]
    first: int = 0
    last: int = 0
    clock: int | None = None
    live: bool = False
    known: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    held: dict[str, tuple[dict[str, int], int, int]] = field(default_factory=dict)
    dead: list[bytes] = field(default_factory=list)
    late: list[bytes] = field(default_factory=list)
