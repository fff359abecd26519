"""From a graph to stages: what is computed together, and where rows must be brought together by key first.

Pure: a plan is a value. A stage is a run of nodes, in order. A keyed stage brings rows together by one set of key
columns and then applies its nodes shard by shard; a stage without key works on whole deltas. Nodes are put into the
present stage as long as their rows already lie together: same key columns, not renamed or recomputed since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import TypeVar

from engine.freshness import Bounds
from engine.graph import Graph, Hold, Model, Node
from engine.policy import duration
from engine.schedule import Due
from operators.delta import BEGINNING
from operators.operator import DefinitionError


@dataclass(frozen=True)
class Stage:
    """Nodes that are applied together.

    split: for each input that comes from outside, the columns that say in which shard a row belongs; empty for a stage
    without key. gives: the nodes whose output is needed outside.
    """

    name: str
    nodes: tuple[Node, ...]
    split: Mapping[str, tuple[str, ...]]
    gives: tuple[str, ...]


@dataclass
class _Draft:
    key: tuple[str, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    split: dict[str, tuple[str, ...]] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Settle:
    """Where what comes out of a deferred view is put in order."""

    hold: Hold


@dataclass(frozen=True)
class Tick:
    """Where a clock is read."""

    clock: str


Step = Tick | Hold | Stage | Settle


def steps(graph: Graph) -> list[Step]:
    """The stages in the order in which they run, each between the holds of deferred views that begin in it and the
    settling of those that end in it; before what asks for a clock it is read."""
    left, clocks, found = dict(graph.holds), dict(graph.clocks), list[Step]()
    ends = {h.end: h for h in graph.holds.values()}
    for stage in stages(graph):
        asked = {i for n in stage.nodes for i in n.inputs}
        now = [h for h in left.values() if asked & {held for held, _ in h.inputs}]
        asked |= {given for h in now for _, given in h.inputs}
        read = [c for c in clocks if c in asked]
        found += [*map(Tick, read), *now, stage, *(Settle(ends[n.name]) for n in stage.nodes if n.name in ends)]
        for h in now:
            del left[h.view]
        for c in read:
            del clocks[c]
    return found


def stages(graph: Graph) -> list[Stage]:
    """The stages of the graph's nodes, in the order in which they run."""
    drafts: list[_Draft] = []
    held = {name: {given for _, given in h.inputs} for h in graph.holds.values() for name, _ in h.inputs}
    ends = {h.end for h in graph.holds.values()}
    for node in graph.nodes.values():
        waits_for = set[str]().union(*(held.get(i, ()) for i in node.inputs))
        inside = {n.name for n in drafts[-1].nodes} if drafts else set[str]()
        settled = ends.intersection(node.inputs)
        if not drafts or (waits_for | settled) & inside or not _joins(node, drafts[-1]):
            drafts.append(_Draft(node.operator.keys[0] if node.operator.keys else ()))
        _add(node, drafts[-1])
    wanted = set(graph.views) | {name for e in graph.expected.values() for name in (e.rows, e.judged)}
    wanted |= {name for m in graph.models.values() for name in (m.answers, m.questions)}
    done = []
    for i, draft in enumerate(drafts):
        later = {name for d in drafts[i + 1 :] for n in d.nodes for name in n.inputs}
        later = later.union(*(held.get(name, ()) for name in later))
        gives = tuple(n.name for n in draft.nodes if n.name in later | wanted)
        done.append(Stage(f"stage-{i + 1}", tuple(draft.nodes), dict(draft.split), gives))
    return done


def _joins(node: Node, draft: _Draft) -> bool:
    """Whether the node can be computed in this stage."""
    inside = {n.name for n in draft.nodes}
    keys = node.operator.keys
    if not keys:
        return not draft.key or inside.issuperset(node.inputs)
    if keys[0] != draft.key:
        return False
    for name, key in zip(node.inputs, keys, strict=True):
        if name in inside:
            if name in draft.moved or key != draft.key:
                return False
        elif draft.split.get(name, key) != key:
            return False
    return True


def _add(node: Node, draft: _Draft) -> None:
    inside = {n.name for n in draft.nodes}
    keys = node.operator.keys
    if keys:
        draft.split.update((name, key) for name, key in zip(node.inputs, keys, strict=True) if name not in inside)
    if not keys or node.inputs[0] in draft.moved or not set(draft.key) <= set(node.schema):
        draft.moved.add(node.name)
    draft.nodes.append(node)


T = TypeVar("T")


class _Of(dict[str, T]):
    """What is found of each relation; of a clock what `join` makes of that of the relations whose clock it is."""

    def __init__(self, graph: Graph, known: Mapping[str, T], join: Callable[[Iterable[T]], T]) -> None:
        super().__init__(known)
        self._clocks, self._join = graph.clocks, join

    def __missing__(self, clock: str) -> T:
        self[clock] = found = self._join([self[name] for name in self._clocks[clock]])
        return found

    def all(self) -> dict[str, T]:
        """Of every relation, clocks included."""
        return dict(self) | {clock: self[clock] for clock in self._clocks}


def _union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*sets)


def roots(graph: Graph, held: bool = False, rows: bool = False) -> dict[str, frozenset[str]]:
    """For each source, node, clock and view the sources that it is made of.

    held: a deferred view, which its changes pass late, is named instead of the sources it is made of. rows: only those
    sources on which it depends which rows there are, not those of which columns are added to them.
    """
    found = _Of(graph, {name: frozenset([name]) for name in graph.sources}, _union)
    waiting = {name: (h.view, given) for h in graph.holds.values() for name, given in h.inputs}
    for node in graph.nodes.values():
        for name in node.inputs:
            if name in waiting:
                view, given = waiting[name]
                found[name] = frozenset([view]) if held else found[given]
        found[node.name] = _union(found[i] for i in node.inputs[: 1 if rows and node.operator.outer else None])
    for model in graph.models.values():
        found[model.predictions.name] = found[model.questions] | found[model.answers]
        found[model.training.name] = found[model.predictions.name]
    return found.all()


def watermarks_needed(graph: Graph) -> bool:
    """Whether it is needed what the watermarks are after each change: predictions tell it, and deferred views."""
    return bool(graph.models or graph.holds)


def horizons(graph: Graph, sources: Mapping[str, int], inserts: bool = False) -> dict[str, int]:
    """For each source, node and clock the event time below which no change of its rows will come any more.

    sources: the same for each source, and for what deferred views wait with. inserts: below which no row is added,
    whatever is taken back.
    """
    waiting = {held: BEGINNING for h in graph.holds.values() for held, _ in h.inputs}
    found = _Of(graph, waiting | dict(sources), min)
    for node in graph.nodes.values():
        found[node.name] = node.operator.horizon(min(found[i] for i in node.inputs), inserts)
    return found.all()


def watermark(graph: Graph, model: Model, sources: Mapping[str, int]) -> int:
    """Below which event time no question of a model comes or changes any more, and no answer comes.

    sources: the watermark of each source, and the horizon of what deferred views wait with.
    """
    lateness = {s.name: s.lateness for s in graph.sources.values()}
    below = {n: max(at - lateness.get(n, 0), BEGINNING) for n, at in sources.items()}
    questions, answers = horizons(graph, below), horizons(graph, below, inserts=True)
    return min(questions[model.questions], answers[model.answers])


def due(graph: Graph) -> list[Due]:
    """When each deferred view is refreshed. Raises `DefinitionError`, see `lags`."""
    made_of, on, found = roots(graph), above(graph), lags(graph)
    return [
        Due(
            h.view,
            made_of[h.view],
            h.refresh.every,
            h.refresh.rows,
            found.get(h.view),
            frozenset(found) & on[h.view] if h.view in found else frozenset(),
        )
        for h in graph.holds.values()
    ]


def above(graph: Graph) -> dict[str, frozenset[str]]:
    """For each source, node, clock and view the views that it stands on, however many steps up."""
    found = _Of(graph, {name: frozenset[str]() for name in graph.sources}, _union)
    for node in graph.declared.values():
        made_by = {graph.declared[i].view for i in node.inputs if i in graph.declared} - {node.view}
        found[node.name] = frozenset(made_by & graph.views.keys()).union(*(found[i] for i in node.inputs))
    return found.all()


def lags(graph: Graph) -> dict[str, int]:
    """The target lag of each view that has one, in microseconds; "downstream" is the least of those that stand on it.

    Raises `DefinitionError` when none of them has one, or a view stands on one that may be further behind.
    """
    on, found = above(graph), dict[str, int]()
    for h in reversed(graph.holds.values()):
        lag = h.refresh.target_lag
        if lag == "downstream":
            below = [found[v] for v in found if h.view in on[v]]
            if not below:
                raise DefinitionError(
                    f"view {h.view!r}: its target_lag is 'downstream', but no view that stands on it has a target_lag; "
                    "expected a duration such as '5m' here or there"
                )
            found[h.view] = min(below)
        elif lag is not None:
            found[h.view] = lag
    for view, lag in found.items():
        for h in graph.holds.values():
            if h.view in on[view] and found.get(h.view, lag + 1) > lag:
                raise DefinitionError(
                    f"view {view!r}: its target_lag is {duration(lag)}, but it stands on view {h.view!r}, which may be "
                    f"further behind with {h.refresh}; expected target_lag='downstream' there"
                )
    return found


def waits(graph: Graph) -> dict[str, float]:
    """How far each source, step and prediction may be behind what was read, as refresh policies have it.

    In microseconds; infinite where nothing that depends on time makes a view due. Raises `DefinitionError`, see `lags`.
    """
    found, target = _Of(graph, dict.fromkeys(graph.sources, 0.0), max), lags(graph)
    for node in graph.declared.values():
        found[node.name] = max(found[i] for i in node.inputs)
        hold = graph.holds.get(node.view)
        inside = set() if hold is None else {*hold.steps, f"{hold.view}.clock"}
        if hold is not None and node.name in hold.steps and not inside.issuperset(node.inputs):
            given = (hold.refresh.every, target.get(node.view))
            found[node.name] += min((us for us in given if us is not None), default=inf)
    for model in graph.models.values():
        for view in (model.predictions, model.training):
            found[view.name] = max(found[model.questions], found[model.answers])
    return found


def bounds(graph: Graph, epoch: int) -> dict[str, Bounds]:
    """What is declared of the lag of each view and model. epoch: how long a change may be under way, in microseconds.

    Raises `DefinitionError`, see `lags`.
    """
    wait = {name: None if us == inf else int(us) + epoch for name, us in waits(graph).items()}
    found = {name: replace(view.declared, unread=wait[name]) for name, view in graph.views.items()}
    for name, lag in lags(graph).items():
        found[name] = replace(found[name], target=lag)
    for name, model in graph.models.items():
        target = getattr(model.refresh, "target_lag", None)
        found[name] = model.declared if target is None else replace(model.declared, target=target)
    return found


def rank(graph: Graph) -> list[str]:
    """Sources in the order in which ties of time are broken: what is looked up comes before what looks it up.

    So an answer due at the instant of a question is learnt before it, and an observation of that instant is seen.
    """
    made_of = roots(graph)
    before: dict[str, set[str]] = {name: set() for name in graph.sources}
    pairs = [(n.inputs[0], other) for n in graph.nodes.values() for other in n.inputs[1:]]
    pairs += [(m.questions, m.answers) for m in graph.models.values()]
    for asks, told in pairs:
        for source in made_of[asks]:
            before[source] |= made_of[told] - made_of[asks]
    order: list[str] = []

    def visit(name: str, path: frozenset[str]) -> None:
        for other in sorted(before[name] - path):
            visit(other, path | {name})
        if name not in order:
            order.append(name)

    for name in graph.sources:
        visit(name, frozenset([name]))
    return order
