"""How fresh each view is: from what its sources have reached and what it contains, never from when a job ran.

Pure: all times are event times in microseconds UTC, and the present is an argument.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from operators.delta import BEGINNING


@dataclass(frozen=True)
class Freshness:
    """How fresh a view is.

    frontier: every change below it that its sources gave is contained (late ones within `lateness` still correct it);
    None before the first. local_lag: behind its direct inputs, global_lag: behind what its root sources have read, both
    microseconds, the worst over inputs. age: the present minus the frontier. pending: changes read that it does not
    contain yet.
    """

    frontier: int | None
    local_lag: int
    global_lag: int
    age: int | None
    pending: int


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


def freshness(
    roots: Collection[str],
    inputs: Mapping[str, int],
    contained: Mapping[str, int],
    read: Mapping[str, int],
    pending: int,
    now: int | None,
) -> Freshness:
    """The freshness of a view.

    roots: its root sources. inputs: the frontier of each direct input. contained: for each source the watermark that
    the view contains; read: the watermark that was read. now: the present, None when there is none (a replay).
    """
    mine = least(contained, roots)
    behind_inputs = max((max(0, f - mine) for f in inputs.values() if f > BEGINNING), default=0)
    behind_roots = max((read[r] - contained[r] for r in roots if contained[r] > BEGINNING), default=0)
    known = mine > BEGINNING
    return Freshness(
        mine if known else None,
        behind_inputs if known else 0,
        max(0, behind_roots),
        now - mine if known and now is not None else None,
        pending,
    )
