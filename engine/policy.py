"""Refresh policies: when a view or model is brought up to date with what changed, and how.

A policy is a value. It is declared with the view or model, and can be overridden by configuration: its text, as `str`
gives it, is what `parse` reads.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, Literal

from river import base, drift

from engine.spec import ModelSpec, describe
from operators.delta import BOOL, FLOAT, INT
from operators.operator import DefinitionError, known, microseconds

Mode = Literal["incremental", "full", "auto"]

LOSS = "loss"
"""The name under which a drift detector watches the loss of a model."""


@dataclass(frozen=True)
class Immediate:
    """Refresh with every change: a view applies each delta, a model learns each answer as it comes."""

    def __str__(self) -> str:
        return "immediate()"

    @property
    def definition(self) -> Any:
        """What must not change while state is kept."""
        return str(self)


def immediate() -> Immediate:
    """The policy that keeps a view or model up to date with every change."""
    return Immediate()


@dataclass(frozen=True, eq=False)
class Debt:
    """When staleness costs more than a retrain. See `debt`."""

    price: float | None
    per_second: float | None
    shadow: Any

    def __str__(self) -> str:
        return f"debt({_given(price=self.price, per_second=self.per_second)})"


def debt(price: float | None = None, *, per_second: float | None = None, shadow: Any = None) -> Debt:
    """The condition that the loss of staying with an old model version has reached the price of a retrain.

    For each answer the debt grows by the loss of the version that served, less a reference: the loss of a `shadow` that
    learns every answer at once, plus the median gap between the two over the first answers after recent retrains. It
    never falls below 0, and is paid off by a retrain.

    price: what a retrain costs, in units of the loss (an absolute error for numbers, for probabilities the log loss,
    otherwise 1 for a wrong class). per_second: instead, the price of one second of fitting, so that the price is
    measured: that of the last fit. shadow: the river learner that learns at once (default: the learner of the model, or
    a linear one for a learner that is not river's).

    Raises `DefinitionError` unless exactly one price is given, and it is more than 0.
    """
    what = price if price is not None else per_second
    if (price is None) == (per_second is None) or not isinstance(what, (int, float)) or not 0 < what < float("inf"):
        raise DefinitionError(
            f"debt: price is {price!r} and per_second is {per_second!r}: expected one of them, a number above 0"
        )
    return Debt(price, per_second, shadow)


_priced = debt


@dataclass(frozen=True, eq=False)
class Deferred:
    """Refresh when due, with all changes since the last refresh at once. See `deferred`.

    every, target_lag, window: microseconds. drift: what each detector watches, and the detector.
    """

    every: int | None = None
    rows: int | None = None
    target_lag: int | Literal["downstream"] | None = None
    drift: tuple[tuple[str, Any], ...] = ()
    debt: Debt | None = None
    mode: Mode | None = None
    window: int | None = None

    def __str__(self) -> str:
        lag = self.target_lag if self.target_lag == "downstream" else duration(self.target_lag)
        told = _given(every=duration(self.every), rows=self.rows, target_lag=lag)
        if self.drift:
            told += ", drift={" + ", ".join(f"{n!r}: {_detector(d)}" for n, d in self.drift) + "}"
        if self.debt:
            told += f", debt={self.debt}"
        rest = _given(mode=self.mode, window=duration(self.window))
        return f"deferred({', '.join(t for t in (told.removeprefix(', '), rest) if t)})"

    @property
    def definition(self) -> Any:
        """What must not change while state is kept."""
        owed = self.debt and [self.debt.price, self.debt.per_second, describe(self.debt.shadow)]
        drifts = [[n, describe(d)] for n, d in self.drift]
        return ["deferred", self.every, self.rows, self.target_lag, drifts, owed, self.mode, self.window]


def deferred(
    *,
    every: str | timedelta | None = None,
    rows: int | None = None,
    target_lag: str | timedelta | None = None,
    drift: Any = None,
    debt: Debt | float | None = None,
    mode: Mode | None = None,
    window: str | timedelta | None = None,
) -> Deferred:
    """The policy that keeps a view or model up to date as of its last refresh.

    When (of several conditions the first that holds):

    - every: a cadence such as "1h", in the time at which changes become known (so that a replay refreshes where the
      live run did): with all that was known before each full hour.
    - rows: for a view every so many changes of the sources that it is made of; for a model every so many examples, new
      or corrected.
    - target_lag: the view contains each change, the model has learnt each example, at most so long after it became
      known. "downstream": at most as long as the views that stand on it ask for (views only).
    - drift: a drift detector of river on the loss of a model, or {feature or "loss": detector}. Models only.
    - debt: the loss of staying with an old version has reached the price of a retrain; see `debt`. A number is its
      price. Models only.

    How:

    - mode: "incremental" applies what is pending; "full" computes from scratch; "auto" does what is cheaper, by
      measured cost. A view is kept incrementally by default; a model is fitted from scratch by default.
    - window: a model is fitted on the examples asked at most so long before the newest. Models only.

    Raises `DefinitionError` when no condition is given, or one can never hold.
    """
    steps = {
        n: None if v is None or v == "downstream" else microseconds(v, f"deferred: {n}")
        for n, v in (("every", every), ("target_lag", target_lag), ("window", window))
    }
    if every is None and rows is None and target_lag is None and drift is None and debt is None:
        raise DefinitionError("deferred: expected every='1h' or rows=1000, target_lag='5m', drift= or debt=")
    for name, n in (*steps.items(), ("rows", rows)):
        if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
            raise DefinitionError(f"deferred: {name} is {n!r}: expected more than 0")
    if mode not in (None, "incremental", "full", "auto"):
        raise DefinitionError(f"deferred: mode is {mode!r}: expected 'incremental', 'full' or 'auto'")
    watched = drift if isinstance(drift, Mapping) else {} if drift is None else {LOSS: drift}
    for name, detector in watched.items():
        if not isinstance(detector, base.DriftDetector):
            raise DefinitionError(
                f"deferred: drift of {name!r} is {detector!r}: expected a detector of river.drift, such as ADWIN()"
            )
    lag = "downstream" if target_lag == "downstream" else steps["target_lag"]
    owed = _priced(debt) if isinstance(debt, (int, float)) else debt
    if owed is not None and not isinstance(owed, Debt):
        raise DefinitionError(f"deferred: debt is {debt!r}: expected a price, or debt(price=...)")
    return Deferred(steps["every"], rows, lag, tuple(watched.items()), owed, mode, steps["window"])  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class OnQuery:
    """Fit a model for each question. See `on_query`. window: microseconds."""

    neighbours: int
    fit: Literal["local", "learner"] = "local"
    index: Literal["exact", "approximate"] = "exact"
    window: int | None = None

    def __str__(self) -> str:
        fit = None if self.fit == "local" else self.fit
        index = None if self.index == "exact" else self.index
        return f"on_query({_given(neighbours=self.neighbours, fit=fit, index=index, window=duration(self.window))})"

    @property
    def definition(self) -> Any:
        """What must not change while state is kept."""
        return str(self)


def on_query(
    neighbours: int,
    *,
    fit: Literal["local", "learner"] = "local",
    index: Literal["exact", "approximate"] = "exact",
    window: str | timedelta | None = None,
) -> OnQuery:
    """The policy that keeps no model: for each question one is fitted to the most similar answered examples.

    neighbours: how many. fit: "local" fits a linear model to them, or class frequencies, weighted by similarity;
    "learner" fits the learner of the model, from scratch. index: "exact" compares with all examples; "approximate" with
    a graph of them (usearch), whose answers depend on the order in which examples came. window: only examples asked at
    most so long before the question.

    Raises `DefinitionError` when one is not possible.
    """
    if not isinstance(neighbours, int) or isinstance(neighbours, bool) or neighbours < 1:
        raise DefinitionError(f"on_query: neighbours is {neighbours!r}: expected 1 or more")
    if fit not in ("local", "learner"):
        raise DefinitionError(f"on_query: fit is {fit!r}: expected 'local' or 'learner'")
    if index not in ("exact", "approximate"):
        raise DefinitionError(f"on_query: index is {index!r}: expected 'exact' or 'approximate'")
    span = None if window is None else microseconds(window, "on_query: window")
    if span == 0:
        raise DefinitionError(f"on_query: window is {window!r}: expected more than 0")
    return OnQuery(neighbours, fit, index, span)


Policy = Immediate | Deferred | OnQuery


def check_view(policy: object, what: str) -> None:
    """Raises `DefinitionError` naming `what` when a view cannot be refreshed so."""
    if not isinstance(policy, (Immediate, Deferred)):
        only = ", which is for models" if isinstance(policy, OnQuery) else ""
        told = str(policy) if only else repr(policy)
        raise DefinitionError(f"{what}: refresh is {told}{only}; expected immediate() or deferred(...)")
    if isinstance(policy, Deferred):
        for name in ("drift", "debt", "window"):
            if getattr(policy, name):
                raise DefinitionError(
                    f"{what}: refresh is {policy}, but {name}= is for models; expected every=, rows= or target_lag="
                )


def check_model(spec: ModelSpec, refresh: object) -> None:
    """Raises `DefinitionError` when a policy cannot keep a model."""
    what = f"model {spec.name!r}"
    if not isinstance(refresh, (Immediate, Deferred, OnQuery)):
        raise DefinitionError(f"{what}: refresh is {refresh!r}; expected immediate(), deferred(...) or on_query(...)")
    if isinstance(refresh, Immediate):
        if not spec.river:
            raise DefinitionError(
                f"{what}: {type(spec.learner).__name__} is fitted as a whole, so it cannot learn each answer as it "
                "comes: declare refresh=deferred(every='1d'), or take a learner of river"
            )
    elif isinstance(refresh, Deferred):
        _check_deferred(spec, refresh, what)
    elif refresh.index == "approximate" and find_spec("usearch") is None:
        raise DefinitionError(f"{what}: index='approximate' needs usearch: pip install 'freshet[approximate]'")


def _check_deferred(spec: ModelSpec, refresh: Deferred, what: str) -> None:
    what = f"{what}: refresh {refresh}"
    if refresh.target_lag == "downstream":
        raise DefinitionError(f"{what}: nothing stands on a model; give its target_lag a duration such as '1h'")
    for name, _ in refresh.drift:
        if name != LOSS:
            known([name], {f: spec.questions[f] for f in spec.features}, f"{what}: drift")
            if spec.questions[name] not in (INT, FLOAT, BOOL):
                raise DefinitionError(f"{what}: drift of {name!r}, a {spec.questions[name]}: expected numbers")
    if refresh.mode in ("incremental", "auto"):
        if not spec.river:
            raise DefinitionError(
                f"{what}: {type(spec.learner).__name__} is fitted as a whole: leave the mode out, or say mode='full'"
            )
        if refresh.window is not None:
            raise DefinitionError(
                f"{what}: a learner that goes on learning does not forget what leaves the window: "
                "leave the window out, or say mode='full'"
            )
    judge = refresh.debt.shadow if refresh.debt else None
    if judge is not None and not issubclass(type(judge), base.Estimator):
        raise DefinitionError(f"{what}: the shadow is {judge!r}: expected a learner of river")


def parse(text: str, what: str = "refresh") -> Policy:
    """The policy that a text such as "deferred(every='1d', drift=ADWIN())" says; detectors are those of `river.drift`.

    Raises `DefinitionError` naming `what` when it says none.
    """
    calls: dict[str, Any] = {"immediate": immediate, "deferred": deferred, "on_query": on_query, "debt": debt}
    detectors = {n: d for n, d in vars(drift).items() if isinstance(d, type) and issubclass(d, base.DriftDetector)}

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
            make = calls.get(node.func.id) or detectors.get(node.func.id)
            if make is not None:
                return make(*map(value, node.args), **{str(k.arg): value(k.value) for k in node.keywords})
            raise ValueError(f"there is no {node.func.id}")
        if isinstance(node, ast.Dict) and all(node.keys):
            return {value(k): value(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
        return ast.literal_eval(node)

    try:
        found = value(ast.parse(text.strip(), mode="eval").body)
    except DefinitionError as error:
        raise DefinitionError(f"{what}: {error}") from None
    except (SyntaxError, ValueError, TypeError) as error:
        raise DefinitionError(
            f'{what} is {text!r}, which cannot be read ({error}): expected text such as "immediate()", '
            "\"deferred(every='1d', mode='full')\" or \"on_query(neighbours=32)\""
        ) from None
    if not isinstance(found, (Immediate, Deferred, OnQuery)):
        raise DefinitionError(f"{what} is {text!r}: expected immediate(), deferred(...) or on_query(...)")
    return found


def _given(**parameters: Any) -> str:
    return ", ".join(f"{n}={v!r}" for n, v in parameters.items() if v is not None)


def _detector(detector: Any) -> str:
    pristine = vars(type(detector)())
    told = {n: v for n in detector._get_params() if (v := getattr(detector, n, None)) != pristine.get(n)}
    return f"{type(detector).__name__}({_given(**told)})"


def duration(us: int | None) -> str | None:
    """Microseconds as text that `microseconds` reads.

    >>> duration(5_400_000_000), duration(86_400_000_000), duration(1)
    ('1h30m', '1d', '1us')
    """
    if us is None:
        return None
    text, left = "", us
    for unit, n in (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("us", 1)):
        text += f"{left // n}{unit}" if left >= n else ""
        left %= n
    return text
