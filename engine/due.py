"""When a deferred model is due to be fitted anew, and why.

`Due` is told what was asked, answered and refitted, in the order of knowledge, and gives a `Reason` or None. It reads
no clock and fits nothing: a replay is due where the live run was.

Debt. Each answer to what the present version predicted adds `loss - reference` to the debt, which never falls below 0
and begins anew with a refit; when it has reached the price of a refit, staying has cost as much as going. What matters
is what is lost by being *old*, so the reference is the loss of a shadow, which learns every answer and takes out what
is hard for any model, plus the *gap*: what a version loses more than the shadow (or less) while it is *fresh*. The gap
is the median of the `RECENT` newest blocks of `BLOCK` answers, each answer among the first `BLOCK` of its version; a
version that is replaced sooner leaves its answers to the block of the next. Before the first block is full there is no
debt.

What it does not see: a version that is bad from the start, as it was fitted on few examples, or on those from before a
sudden change, has a large gap and hence little debt. Where that can be, declare a cadence as well.

Where an older version never loses less than a newer one, and the reference is the loss of the newest, losses plus
prices are at most (2 + o/c) times the least possible, plus c, for a price c and debts that exceed it by at most o.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from engine.policy import LOSS, Deferred

BLOCK, RECENT = 1024, 5
"""Answers in a block, blocks in the reference. A difference of 0/1 losses has a deviation of about 0.4, so a block
tells the gap to 0.013 an answer, and the median of five to 0.007; a longer block takes staleness itself for the gap.
Of 1024 to 8192 answers and 1, 5 or 9 blocks these were within 3 % of the best cadence at every price on the flights of
`benchmarks/debt.py`, and were then left alone."""

FIRST = 200
"""Answers after which a model that waits for drift or debt is fitted for the first time: it has no loss before."""

CLIP = 1e-6
"""The least probability that counts as said: a class ruled out that comes costs 13.8, not infinity."""

Kind = Literal["number", "probability", "class"]


def loss(kind: Kind, y: Any, prediction: Any) -> float | None:
    """What a prediction lost: for a number the absolute error, for P(True) the log loss, else 1 for a wrong class.

    None, which counts as no loss at all, when there is no prediction or no label, or the loss is not finite.

    >>> loss("number", 3, 1.5), loss("class", "a", "b"), loss("probability", False, 1.0), loss("class", "a", None)
    (1.5, 1.0, 13.815510557964274, None)
    """
    if y is None or prediction is None:
        return None
    if kind == "class":
        return float(y != prediction)
    off = abs(float(y) - float(prediction))
    if not math.isfinite(off):
        return None
    return off if kind == "number" else 0.0 - math.log(max(CLIP, 1 - off))


@dataclass(frozen=True)
class Reason:
    """Why a model is due: the condition that holds, and the numbers that say so.

    - every: `every` (microseconds) and `at`, the multiple of it that the clock has passed.
    - target_lag: `target_lag` (microseconds) and `oldest`, when the oldest answer that was not learnt became known.
    - rows, first: `answers` since the last refit, and how many were `expected`.
    - drift: `watched` ("loss" or a feature), the `detector`, and `at`, when it detected.
    - debt: `debt`, `price` and `gap`, and the `answers` since the last refit.
    - forgotten: how many `examples` that the present version was fitted on are to be forgotten.
    """

    kind: Literal["forgotten", "every", "rows", "target_lag", "first", "drift", "debt"]
    numbers: Mapping[str, Any]

    def __str__(self) -> str:
        told = (f"{n}={v:.6g}" if isinstance(v, float) else f"{n}={v}" for n, v in self.numbers.items())
        return f"{self.kind}: {', '.join(told)}"


class Due:
    """The meter of a deferred model. Can be pickled; told the same, it says the same.

    `known`: microseconds, never falling. A detector with a random seed of its own makes a replay due elsewhere.
    """

    def __init__(self, refresh: Deferred) -> None:
        self._every, self._rows, self._owing = refresh.every, refresh.rows, refresh.debt is not None
        self._lag = refresh.target_lag if refresh.target_lag != "downstream" else None
        self._price = refresh.debt.price if refresh.debt else None
        self._per_second = refresh.debt.per_second if refresh.debt else None
        self._pristine = dict(refresh.drift)
        self._gaps: deque[float] = deque(maxlen=RECENT)
        self._block, self._excess = 0, 0.0
        self._gap: float | None = None
        self._reference: float | None = None
        self._turn: int | None = None
        self._fitted = False
        self._begin()

    def _begin(self) -> None:
        self._answers = self._scored = self._forgotten = 0
        self._oldest: int | None = None
        self._debt = 0.0
        self._detectors = {name: detector.clone() for name, detector in self._pristine.items()}
        self._drifted: dict[str, int] = {}

    def asked(self, known: int, x: Mapping[str, Any] | None) -> None:
        """A question came with these features (None, or one that is None or nan: nothing to watch)."""
        for name in self._detectors:
            if name != LOSS and x is not None:
                self._watch(known, name, x.get(name))

    def answered(self, known: int, loss: float | None, shadow: float | None, current: bool = True) -> None:
        """An answer came: what was lost by the prediction that was served, and by the shadow's, both made when asked.

        None: there was no prediction. current: whether the present version made it. An answer to a question asked
        before the last refit is an example more, but says nothing of the present version: let it count, and debt that
        is paid off is owed again.
        """
        self._answers += 1
        self._oldest = known if self._oldest is None else self._oldest
        if not current:
            return
        if LOSS in self._detectors:
            self._watch(known, LOSS, loss)
        if not self._owing or loss is None or shadow is None:
            return
        if self._gap is not None:
            self._reference = shadow + self._gap
            self._debt = max(0.0, self._debt + loss - self._reference)
        if self._scored < BLOCK:
            self._scored += 1
            self._block += 1
            self._excess += loss - shadow
            if self._block == BLOCK:
                self._gaps.append(self._excess / BLOCK)
                self._gap = median(self._gaps)
                self._block, self._excess = 0, 0.0

    def forgotten(self, examples: int) -> None:
        """The present version was fitted on so many examples that are to be forgotten: it is due."""
        self._forgotten += examples

    def taken_back(self, known: int) -> None:
        """An example is none any more, or is to be another one: a change that the present version lacks."""
        self._answers += 1
        self._oldest = known if self._oldest is None else self._oldest

    def reason(self, known: int) -> Reason | None:
        """Why the model is due now, or None. To be asked before each row is processed and after each answer.

        Of several conditions the first of forgotten, every, rows, target_lag, first, drift (as declared), debt. The
        model is due until it is refitted, and never before there is an answer to learn from. `every`: the clock has
        passed a multiple of it since the last refit, or since this was first asked.
        """
        if self._every is not None and self._turn is None:
            self._turn = known // self._every
        if self._forgotten:
            return Reason("forgotten", {"examples": self._forgotten})
        if not self._fitted and not self._answers:
            return None
        if self._every is not None and self._turn is not None and known // self._every > self._turn:
            return Reason("every", {"every": self._every, "at": known // self._every * self._every})
        if self._rows is not None and self._answers >= self._rows:
            return Reason("rows", {"answers": self._answers, "expected": self._rows})
        if self._lag is not None and self._oldest is not None and known >= self._oldest + self._lag:
            return Reason("target_lag", {"target_lag": self._lag, "oldest": self._oldest})
        if not self._fitted and self._answers >= FIRST and (self._owing or self._pristine):
            return Reason("first", {"answers": self._answers, "expected": FIRST})
        for name, detector in self._detectors.items():
            if name in self._drifted:
                numbers = {"watched": name, "detector": type(detector).__name__, "at": self._drifted[name]}
                return Reason("drift", numbers)
        if self._price is not None and 0 < self._debt >= self._price:
            numbers = {"debt": self._debt, "price": self._price, "gap": self._gap, "answers": self._answers}
            return Reason("debt", numbers)
        return None

    def refitted(self, known: int, seconds: float | None) -> None:
        """A refit was started on what is known now: all conditions begin anew.

        seconds: what a fit takes, as last measured, by which a price per second becomes a price; None: not measured
        yet, and the price stays what it is. A fit that `failed` leaves the model without a version, if it had none.
        """
        self._fitted = True
        if self._per_second is not None and seconds is not None:
            self._price = self._per_second * seconds
        self._anew(known)

    def failed(self) -> None:
        """The first fit failed: there is still no version."""
        self._fitted = False

    def _anew(self, known: int) -> None:
        if self._every is not None:
            self._turn = known // self._every
        self._begin()

    def figures(self) -> dict[str, Any]:
        """How things stand now.

        `answers` since the last refit; `debt`, `price` (None: not measured yet), `gap` (None: not known yet) and the
        `reference` of the last answer, all None unless debt is declared; `drift`: {watched: when it was detected}, the
        time in microseconds, None when it was not.
        """
        return {
            "answers": self._answers,
            "debt": self._debt if self._owing else None,
            "price": self._price,
            "gap": self._gap,
            "reference": self._reference,
            "drift": {name: self._drifted.get(name) for name in self._detectors},
        }

    def _watch(self, known: int, name: str, value: Any) -> None:
        if value is None or value != value:
            return
        detector = self._detectors[name]
        detector.update(value)
        if detector.drift_detected:
            self._drifted.setdefault(name, known)
