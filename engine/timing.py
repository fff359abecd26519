"""How long the steps of a run take, and when its states were saved: noted where it happens, read by whoever looks.

Every step notes into a `Spent` of its own, which one thread writes. Clocks are arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Spent:
    """How often something was called, and the seconds that it took."""

    __slots__ = ("calls", "seconds")

    def __init__(self) -> None:
        self.calls, self.seconds = 0, 0.0

    def add(self, seconds: float) -> None:
        """It was called once more, and took that long."""
        self.seconds += seconds
        self.calls += 1


class Timing:
    """What the steps took. clock: gives seconds.

    >>> ticks = iter([0.0, 2.0, 5.0, 5.5])
    >>> timing = Timing(lambda: next(ticks))
    >>> timing.measured("double", lambda n: 2 * n)(4)
    8
    >>> timing.saving("double", lambda: b"8")()
    b'8'
    >>> timing.steps()
    {'double': (1, 2.0), 'double: save': (1, 0.5)}
    >>> timing.saved
    0.5
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._spent: list[tuple[str, Spent]] = []
        self._saves: list[Spent] = []

    def of(self, step: str) -> Spent:
        """Where one worker notes what a step takes; steps of the same name are added up."""
        self._spent.append((step, made := Spent()))
        return made

    def measured(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; what it takes is noted, also when it fails."""
        return self._noting(self.of(step), call)

    def saving(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which saves the state of a step; what it takes is noted apart from the step."""
        self._saves.append(spent := self.of(f"{step}: save"))
        return self._noting(spent, call)

    def _noting(self, spent: Spent, call: Callable[..., Any]) -> Callable[..., Any]:
        clock = self.clock

        def noted(*args: Any) -> Any:
            began = clock()
            try:
                return call(*args)
            finally:
                spent.add(clock() - began)

        return noted

    def steps(self) -> dict[str, tuple[int, float]]:
        """For each step how often it was called, and its seconds."""
        found: dict[str, tuple[int, float]] = {}
        for step, spent in list(self._spent):
            calls, seconds = found.get(step, (0, 0.0))
            found[step] = calls + spent.calls, seconds + spent.seconds
        return found

    @property
    def saved(self) -> float:
        """The seconds that steps have spent on saving their states."""
        return sum(s.seconds for s in list(self._saves))


class Checkpoints:
    """What is known of the states that were saved: that one is complete is known when the next is begun.

    count: those that are complete. at: the present when the newest of these was begun; None before there is one.
    seconds: what its steps took to save it.

    >>> kept = Checkpoints()
    >>> kept.begin(100.0, spent=0.0)
    >>> kept.count, kept.at
    (0, None)
    >>> kept.begin(102.0, spent=0.25)
    >>> kept.count, kept.at, kept.seconds
    (1, 100.0, 0.25)
    """

    def __init__(self) -> None:
        self.count, self.at, self.seconds = 0, None, 0.0  # type: int, float | None, float
        self._begun: float | None = None
        self._spent = 0.0

    def begin(self, now: float, spent: float) -> None:
        """States begin to be saved at `now`, seconds since 1970. spent: seconds that all saving has taken so far."""
        self.end(spent)
        self._begun = now

    def end(self, spent: float) -> None:
        """What was begun last is complete."""
        if self._begun is not None:
            self.count, self.at, self.seconds = self.count + 1, self._begun, spent - self._spent
        self._begun, self._spent = None, spent
