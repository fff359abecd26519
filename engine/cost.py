"""Which way to refresh a view is cheaper, by measurement. Both ways give the same rows, so the choice never shows.

What a refresh costs is taken to grow with the changes that are fed to the view: incrementally those that are pending,
in full all rows of its inputs. Seconds are measured elsewhere and passed in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from engine.batch import Way
from engine.policy import Mode

WAYS: tuple[Way, Way] = ("incremental", "full")

_MEMORY = 0.5
"""What a measurement counts when the next one is there."""

_TRIALS = 0.1
"""The share of the time that may be spent on seeing what the dearer way costs by now."""


@dataclass
class Measured:
    """What is known of one way.

    refreshes, seconds: all so far. measured, predicted: seconds of the last refresh that went this way, and what was
    foretold for the last refresh of all. rate: (seconds, changes), of which newer ones count more and the first, which
    includes what is only done once (compiling), nothing. spent: seconds of refreshes since it was measured last.
    """

    refreshes: int = 0
    seconds: float = 0.0
    measured: float | None = None
    predicted: float | None = None
    rate: tuple[float, float] = (0.0, 0.0)
    spent: float = 0.0


class Costs:
    """The costs of a view's refreshes. mode: "incremental" and "full" leave no choice, "auto" takes what is cheaper."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.ways: dict[Way, Measured] = {w: Measured() for w in WAYS}
        self.taken: Way | None = None

    def choose(self, changes: dict[Way, int]) -> Way:
        """The way to take when each means to feed so many changes; both costs are foretold.

        A way of which nothing is known is taken to cost as much a change as the other. The dearer one is tried when
        what it should cost more is little beside what was spent since it was measured last.
        """
        rates = {w: m.rate[0] / m.rate[1] for w, m in self.ways.items() if m.rate[1]}
        for w, m in self.ways.items():
            m.predicted = rates[w if w in rates else WAYS[w == WAYS[0]]] * changes[w] if rates else None
        if self.mode != "auto":
            return self.mode
        cost = {w: m.predicted or 0.0 for w, m in self.ways.items()}
        cheap: Way = "full" if cost["full"] < cost["incremental"] else "incremental"
        other: Way = WAYS[cheap == WAYS[0]]
        return other if cost[other] - cost[cheap] < _TRIALS * self.ways[other].spent else cheap

    def record(self, way: Way, changes: int, seconds: float) -> None:
        """A refresh went this way."""
        m = self.ways[way]
        if m.refreshes:
            m.rate = _MEMORY * m.rate[0] + seconds, _MEMORY * m.rate[1] + changes
            for other in self.ways.values():
                other.spent += seconds
            m.spent = 0.0
        m.refreshes, m.seconds, m.measured = m.refreshes + 1, m.seconds + seconds, seconds
        self.taken = way

    def figures(self) -> dict[str, Any]:
        """What was taken last and why, as JSON values."""
        return {
            "mode": self.mode,
            "taken": self.taken,
            "ways": {
                w: {
                    "refreshes": m.refreshes,
                    "seconds": m.seconds,
                    "measured_seconds": m.measured,
                    "predicted_seconds": m.predicted,
                }
                for w, m in self.ways.items()
                if w == self.mode or self.mode == "auto"
            },
        }

    def snapshot(self) -> Any:
        return self.taken, {w: asdict(m) for w, m in self.ways.items()}

    def restore(self, state: Any) -> None:
        self.taken, ways = state
        self.ways = {w: Measured(**m) for w, m in ways.items()}
