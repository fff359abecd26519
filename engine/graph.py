"""The graph of a pipeline: what was declared, as plain values; the other modules of the engine read it.

Nodes are in an order in which each comes after its inputs.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from engine.card import card
from engine.freshness import Bounds
from engine.policy import Deferred, Immediate, Policy, check_model, check_view, duration
from engine.spec import ModelSpec
from engine.spec import definition as model_definition
from operators.delta import BOOL, Schema
from operators.expectation import Expectation
from operators.operator import CLOCK, DefinitionError, Operator

DELETED = "deleted"
"""The column by which a message says that its key is gone."""

AS_OF = "as_of"
"""What asks, in a lookup, for what was known at a time."""

DEAD_LETTERS, LATE = EXTRA = "dead_letters", "late"
"""The outputs that every pipeline has beside its sinks."""

IMMEDIATE = Immediate()
NOTHING_DECLARED = Bounds()


@dataclass(frozen=True, eq=False)
class Source:
    """A stream of changes by its logical name; where they come from is configuration, not definition."""

    name: str
    key: tuple[str, ...]
    at: str | None
    columns: Schema
    lateness: int = 0
    idle_after: int | None = None
    append_only: bool = True
    table: bool = False
    epoch: Mapping[str, Literal["s", "ms", "us"]] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    earliest: int = 0
    latest: int = 0
    erasable: bool = False
    heartbeat: int | None = None
    log: bool = False

    @property
    def schema(self) -> Schema:
        """The columns of its rows."""
        return self.columns

    @property
    def messages(self) -> Schema:
        """The columns of its changes as they are read: those of a keyed source also say whether the key is gone."""
        return self.columns if self.append_only else {**self.columns, DELETED: BOOL}

    @property
    def definition(self) -> dict[str, Any]:
        """What must not change while state is kept."""
        return {
            "key": list(self.key),
            "at": self.at,
            "schema": {n: str(t) for n, t in self.columns.items()},
            "lateness": self.lateness,
            "idle_after": self.idle_after,
            "append_only": self.append_only,
            "table": self.table,
            **({"erasable": True} if self.erasable else {}),
        }

    @property
    def kind(self) -> Literal["source", "table"]:
        """What it is, in a word."""
        return "table" if self.table else "source"

    @property
    def facts(self) -> dict[str, str]:
        """What is to be said of it, but for its columns."""
        return {
            "key": ", ".join(self.key),
            "event time": self.at or "when known",
            "takes": "inserts" if self.append_only else "inserts, updates and deletes",
            "lateness": duration(self.lateness) or "none",
            **({"idle after": duration(self.idle_after) or ""} if self.idle_after is not None else {}),
            **({"change log": "yes"} if self.log else {}),
        }

    def _repr_html_(self) -> str:
        return card(f"{self.kind} {self.name}", self.facts, self.columns)


@dataclass(frozen=True, eq=False)
class Node:
    """One step of the graph: an operator over named inputs."""

    name: str
    operator: Operator
    inputs: tuple[str, ...]
    schema: Schema

    @property
    def view(self) -> str:
        """The view that it is a step of; the source, for the step that keeps its newest messages."""
        return self.name.partition(".")[0]


@dataclass(eq=False)
class View:
    """A named relation that the engine keeps. `Graph.refresh` says when it takes in changes.

    declared: what is declared of its lag, beside the target lag that a policy may have. lookup: the columns by which
    its rows can be looked up; none when they cannot. log: whether its changes are kept in a change log.
    """

    name: str
    schema: Schema
    key: tuple[str, ...]
    refresh: Policy = IMMEDIATE
    declared: Bounds = NOTHING_DECLARED
    lookup: tuple[str, ...] = ()
    log: bool = False

    @property
    def facts(self) -> dict[str, str]:
        """What is to be said of it, but for its columns."""
        more = {"change log": "yes"} if self.log else {}
        return {"key": ", ".join(self.key) or "none", "refresh": str(self.refresh), **more}

    def _repr_html_(self) -> str:
        return card(f"view {self.name}", self.facts, self.schema)


@dataclass(frozen=True, eq=False)
class Hold:
    """What a deferred view waits with: its inputs, each under the name by which its steps read it.

    steps: the nodes of the view, before rows are put aside; behind the last what comes out is settled.
    """

    view: str
    refresh: Deferred
    inputs: tuple[tuple[str, str], ...]
    steps: tuple[str, ...]

    @property
    def end(self) -> str:
        """The node whose output is settled."""
        return self.steps[-1]


@dataclass(frozen=True, eq=False)
class Expected:
    """What is expected of a relation.

    rows: the node of its rows, before any is put aside. judged: the node whose changes are judged: the same rows with
    hidden columns beside theirs; schema: all of these.
    """

    what: str
    rows: str
    judged: str
    schema: Schema
    expectations: tuple[Expectation, ...]


@dataclass(frozen=True, eq=False)
class Model:
    """A model kept by a learner over questions and answers; its predictions and its training set are relations.

    audit: how often what it was served is audited, in microseconds; None: never.
    """

    name: str
    spec: ModelSpec
    questions: str
    answers: str
    refresh: Policy
    predictions: View
    training: View
    declared: Bounds = NOTHING_DECLARED
    audit: int | None = None

    @property
    def facts(self) -> dict[str, str]:
        """What is to be said of it."""
        return {
            "questions": self.questions,
            "answers": self.answers.removesuffix(".latest"),
            "key": ", ".join(self.spec.key),
            "predicts": self.spec.label,
            "from": ", ".join(self.spec.features),
            "refresh": str(self.refresh),
            "waits": duration(self.spec.wait) or "not at all",
            **({"audited every": duration(self.audit) or ""} if self.audit is not None else {}),
            **({"guards": ", ".join(g.name for g in self.spec.guards)} if self.spec.guards else {}),
        }

    def _repr_html_(self) -> str:
        return card(f"model {self.name}", self.facts, self.predictions.schema)


@dataclass(frozen=True, eq=False)
class Sink:
    """An output: the changes of one relation or several of the same columns."""

    name: str
    relations: tuple[str, ...]
    schema: Schema


class Graph:
    """All that a pipeline declares, by name.

    declared: the steps as they were declared. clocks: by name the relations whose clock it is. nodes, holds: what
    follows when views are refreshed as their policies say: the steps of a deferred view read what it waits with.
    expected: by relation what is expected of its rows. ends: by view the node that its last step gives, before rows
    are judged and put aside. marks: of each marked relation, by the node of its rows, the node of its whole; see
    `engine.taint`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.sources: dict[str, Source] = {}
        self.declared: dict[str, Node] = {}
        self.clocks: dict[str, tuple[str, ...]] = {}
        self.nodes: dict[str, Node] = {}
        self.holds: dict[str, Hold] = {}
        self.views: dict[str, View] = {}
        self.models: dict[str, Model] = {}
        self.sinks: dict[str, Sink] = {}
        self.expected: dict[str, Expected] = {}
        self.ends: dict[str, str] = {}
        self.marks: dict[str, str] = {}

    def refresh(self, name: str, policy: Policy) -> None:
        """Give a view or model another policy; the same as declaring it with that one.

        Raises `DefinitionError` when there is none of that name, or it cannot be refreshed so.
        """
        if (model := self.models.get(name)) is not None:
            check_model(model.spec, policy)
            self.models[name] = replace(model, refresh=policy)
            return
        kept = [v for v in self.views if v in self.declared and self.declared[v].view == v]
        if name not in kept:
            names = [*kept, *self.models]
            close = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise DefinitionError(
                f"refresh: no view or model {name!r} in pipeline {self.name!r}{hint} Known: {', '.join(names)}"
            )
        self._check(name, policy, [n for n in self.declared.values() if n.view == name])
        self.views[name].refresh = policy
        self._hold()

    def _check(self, view: str, policy: object, nodes: Iterable[Node]) -> None:
        """Raises `DefinitionError` when a view of these steps cannot be refreshed so."""
        check_view(policy, f"view {view!r}")
        if isinstance(policy, Deferred) and policy.mode in ("full", "auto"):
            for n in nodes:
                if n.operator.forgets:
                    raise DefinitionError(
                        f"view {view!r}: refresh is {policy}, but {n.operator.name} forgets keys (keep=), so that a "
                        "view that starts anew would be another; expected mode='incremental', or no keep="
                    )

    def steps(self, view: str) -> list[Node]:
        """The steps that a view was declared with; behind them rows are judged and put aside."""
        mine = [n for n in self.declared.values() if n.view == view]
        return mine[: [n.name for n in mine].index(self.ends[view]) + 1]

    def _hold(self) -> None:
        """Let nodes and holds follow from what is declared."""
        self.holds = {}
        for view in self.views.values():
            if isinstance(view.refresh, Deferred):
                steps = {n.name: n for n in self.steps(view.name)}
                given = dict.fromkeys(i for n in steps.values() for i in n.inputs if i not in steps)
                inputs = tuple((f"{view.name} waits with {i}", i) for i in given)
                self.holds[view.name] = Hold(view.name, view.refresh, inputs, tuple(steps))
        self.nodes = {}
        for name, n in self.declared.items():
            hold = self.holds.get(n.view)
            held = {i: h for h, i in hold.inputs} if hold is not None and name in hold.steps else {}
            self.nodes[name] = replace(n, inputs=tuple(held.get(i, i) for i in n.inputs))

    @property
    def marked(self) -> set[str]:
        """The names of the views that say which of their rows are suspect."""
        asked = [m for m in self.models.values() if m.questions in self.marks]
        return self.marks.keys() & self.views.keys() | {v.name for m in asked for v in (m.predictions, m.training)}

    @property
    def of_models(self) -> set[str]:
        """The names of the relations that models make: predictions and training sets."""
        return {view.name for m in self.models.values() for view in (m.predictions, m.training)}

    @property
    def schemas(self) -> dict[str, Schema]:
        """The columns of the changes of every source, node and clock, and of what deferred views wait with."""
        found = {s.name: s.messages for s in self.sources.values()} | dict.fromkeys(self.clocks, CLOCK)
        for n in self.nodes.values():
            found[n.name] = n.schema
        found.update((held, found[given]) for h in self.holds.values() for held, given in h.inputs)
        return found

    @property
    def logged(self) -> dict[str, Schema]:
        """The columns of the changes of the sources and views that are declared with a change log."""
        sources = {s.name: s.messages for s in self.sources.values() if s.log}
        return sources | {v.name: v.schema for v in self.views.values() if v.log}

    @property
    def lookups(self) -> dict[str, View]:
        """The views whose newest rows can be looked up; training sets, which have logs, are looked up there."""
        logged = {m.training.name for m in self.models.values()}
        return {v.name: v for v in self.views.values() if v.lookup and v.name not in logged}

    def definition(self) -> dict[str, str]:
        """A fingerprint for each part of the definition: what kept state belongs to."""
        parts: dict[str, Any] = {f"source {s.name}": s.definition for s in self.sources.values()}
        for n in self.nodes.values():
            parts[f"step {n.name} ({n.operator.name})"] = [
                n.operator.definition,
                n.inputs,
                {c: str(t) for c, t in n.schema.items()},
            ]
        for h in self.holds.values():
            parts[f"refresh of view {h.view}"] = [h.refresh.definition, h.inputs]
        for m in self.models.values():
            parts[f"model {m.name}"] = [model_definition(m.spec), m.questions, m.answers, m.refresh.definition]
        for v in self.lookups.values():
            parts[f"lookup of {v.name}"] = v.lookup
        for name in self.logged:
            parts[f"change log of {name}"] = True
        for s in self.sinks.values():
            parts[f"sink {s.name}"] = s.relations
        return {k: hashlib.sha256(json.dumps(v, sort_keys=True).encode()).hexdigest()[:16] for k, v in parts.items()}
