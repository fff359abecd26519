"""A pipeline drawn from left to right: as values, as text for a terminal, and as SVG.

Sources and tables, then the views made of them, models, what they predict and learn from, and sinks. `drawing` says
where each box and arrow goes (`engine.layers`), and what there is to say of the box; the rest only renders that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from html import escape
from math import floor
from operator import or_
from typing import Any, Literal

from engine.card import columns
from engine.graph import Graph, View
from engine.layers import Layers, Place, layers

Kind = Literal["source", "table", "view", "model", "predictions", "training", "sink"]

MARKS: dict[str, str] = {
    "source": "●",
    "table": "▤",
    "view": "□",
    "model": "◆",
    "predictions": "◇",
    "training": "◫",
    "sink": "▷",
}
"""The sign of each kind in a terminal."""

HIGH, _WAY, _GAP, _BETWEEN, _EDGE = 72, 18, 22, 60, 8
_LEAST, _MOST, _PAD, _LETTER, _SMALL, _HEAD = 164, 236, 18, 7.8, 6.6, 8
"""Pixels: of a box the height, of what passes a column the height; between boxes and between columns; the margin; of a
box the least and the greatest width, and what it keeps free within; a letter, a small one; the head of an arrow."""


@dataclass(frozen=True)
class Part:
    """A box of the graph: what it is, and what there is to say of it.

    id: unlike the name its own in the pipeline. facts: by name. schema: column to type. steps: what a view is made by.
    """

    id: str
    kind: Kind
    name: str
    facts: dict[str, str]
    schema: dict[str, str]
    steps: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """What it is."""
        return "training set" if self.kind == "training" else self.kind

    @property
    def more(self) -> str:
        """The fact that is worth a line."""
        return self.facts.get("refresh") or (f"key {self.facts['key']}" if "key" in self.facts else "")


@dataclass(frozen=True)
class Box:
    """A part with its place: the corner at the upper left, and the size, in pixels."""

    part: Part
    x: float
    y: float
    wide: float
    high: float


@dataclass(frozen=True)
class Arrow:
    """From one part to another; path: how it goes, as SVG."""

    start: str
    end: str
    path: str


@dataclass(frozen=True)
class Drawing:
    """A pipeline by its name, with all boxes and arrows; wide, high: in pixels."""

    name: str
    wide: float
    high: float
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


def parts(graph: Graph) -> tuple[list[Part], list[tuple[str, str]]]:
    """The boxes of a graph, and the arrows between them by their ids."""
    ids = {name: f"{s.kind} {name}" for name, s in graph.sources.items()}
    found = [Part(ids[s.name], s.kind, s.name, s.facts, columns(s.columns)) for s in graph.sources.values()]
    arrows: list[tuple[str, str]] = []

    def join(given: Iterable[str], end: str) -> None:
        # the rows of a keyed source come from a step of its own, which is not drawn
        arrows.extend((ids[i if i in ids else i.partition(".")[0]], end) for i in given)

    for name in dict.fromkeys(n.view for n in graph.declared.values() if n.view in graph.views):
        view, steps = graph.views[name], [n for n in graph.declared.values() if n.view == name]
        mine = {n.name for n in steps}
        told = tuple(f"{n.operator.name} <- {', '.join('…' if i in mine else i for i in n.inputs)}" for n in steps)
        ids[name] = f"view {name}"
        found.append(Part(ids[name], "view", name, view.facts, columns(view.schema), told))
        join((i for n in steps for i in n.inputs if i not in mine and i not in graph.clocks), ids[name])
    for model in graph.models.values():
        found.append(Part(f"model {model.name}", "model", model.name, model.facts, {}))
        join((model.questions, model.answers), f"model {model.name}")
        kinds: dict[Kind, View] = {"predictions": model.predictions, "training": model.training}
        for kind, made in kinds.items():
            facts = {"key": made.facts["key"], "of model": model.name}
            ids[made.name] = f"{kind} {model.name}"
            found.append(Part(ids[made.name], kind, made.name, facts, columns(made.schema)))
            arrows.append((f"model {model.name}", ids[made.name]))
    for sink in graph.sinks.values():
        facts = {"writes": ", ".join(sink.relations)}
        found.append(Part(f"sink {sink.name}", "sink", sink.name, facts, columns(sink.schema)))
        join(sink.relations, f"sink {sink.name}")
    return found, list(dict.fromkeys(arrows))


def drawing(graph: Graph) -> Drawing:
    """Where everything goes."""
    found, arrows = parts(graph)
    laid = layers([p.id for p in found], arrows, HIGH, _WAY, _GAP)
    wide = [0.0] * len(laid.columns)
    for part in found:
        wanted = min(_MOST, max(_LEAST, 2 * _PAD + _LETTER * len(part.name)))
        wide[laid.column[part.id]] = max(wide[laid.column[part.id]], wanted)
    left = [_EDGE + sum(wide[:i]) + _BETWEEN * i for i in range(len(wide))]
    boxes = []
    for part in found:
        c = laid.column[part.id]
        boxes.append(Box(part, left[c], _EDGE + laid.columns[c][part.id, c] - HIGH / 2, wide[c], HIGH))
    lowest = max((y for places in laid.columns for y in places.values()), default=0.0)
    made = tuple(Arrow(*ends, _path(route, laid, left, wide)) for ends, route in laid.routes.items())
    right = left[-1] + wide[-1] if wide else _EDGE
    return Drawing(graph.name, right + _EDGE, lowest + HIGH / 2 + 2 * _EDGE, tuple(boxes), made)


def _path(route: Sequence[Place], laid: Layers, left: Sequence[float], wide: Sequence[float]) -> str:
    """Level through a column, a curve between two; up to where the head of the arrow begins."""
    at = [_EDGE + laid.columns[p[1]][p] for p in route]
    said = f"M{left[route[0][1]] + wide[route[0][1]]:.1f} {at[0]:.1f}"
    for (_, i), place, a, b in zip(route, route[1:], at, at[1:], strict=False):
        begin, end = left[i] + wide[i], left[place[1]] - (_HEAD if place == route[-1] else 0)
        middle = (begin + end) / 2
        said += f"H{begin:.1f}C{middle:.1f} {a:.1f} {middle:.1f} {b:.1f} {end:.1f} {b:.1f}"
    return said


_STYLE = """
.freshet { font: 13px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; --paper: #fff; --ink: #17202b;
  --soft: #5b6775; --line: #d5dbe2; --arrow: #9aa6b4; --source: #2463b4; --table: #0e7490; --view: #0f766e;
  --model: #8b3fa8; --predictions: #a3357f; --training: #6d5bd0; --sink: #64748b; }
@media (prefers-color-scheme: dark) { .freshet { --paper: #14181d; --ink: #e7ebf0; --soft: #9aa6b4; --line: #333c46;
  --arrow: #66727f; --source: #7db1f5; --table: #5fc7de; --view: #5ec9bd; --model: #cf9be6; --predictions: #ee95cc;
  --training: #a99df0; --sink: #94a3b8; } }
.freshet .paper { fill: var(--paper); } .freshet .box { fill: var(--paper); stroke: var(--line); }
.freshet text { fill: var(--soft); font-size: 11px; }
.freshet .name { fill: var(--ink); font-size: 13px; font-weight: 600; }
.freshet .arrow { fill: none; stroke: var(--arrow); stroke-width: 1.5; } .freshet .head { fill: var(--arrow); }
"""
_STYLE += "".join(f".freshet .{k} {{ fill: var(--{k}); }}\n" for k in MARKS)


def svg(drawn: Drawing) -> str:
    """A picture of its own: nothing to load, for light and dark, all text escaped."""
    shapes = [f'<rect class="paper" width="{drawn.wide:.0f}" height="{drawn.high:.0f}"/>\n']
    ends = {b.part.id: b for b in drawn.boxes}
    for arrow in drawn.arrows:
        shapes.append(f'<path class="arrow" d="{arrow.path}"/><path class="head" d="{_head(ends[arrow.end])}"/>\n')
    for b in drawn.boxes:
        x, y, part = b.x + _PAD, b.y, b.part
        facts = "\n".join(f"{name}: {value}" for name, value in part.facts.items())
        shapes.append(
            f"<g><title>{escape(f'{part.kind} {part.name}')}\n{escape(facts)}</title>"
            f'<rect class="box" x="{b.x:.1f}" y="{y:.1f}" width="{b.wide:.1f}" height="{b.high:.1f}" rx="8"/>'
            f'<rect class="{part.kind}" x="{b.x:.1f}" y="{y + 12:.1f}" width="4" height="{b.high - 24:.1f}" rx="2"/>'
            f'<text class="name" x="{x:.1f}" y="{y + 24:.1f}">{escape(clipped(part.name, b.wide, _LETTER))}</text>'
            f'<text class="{part.kind}" x="{x:.1f}" y="{y + 41:.1f}">{escape(part.word)}</text>'
            f'<text x="{x:.1f}" y="{y + 58:.1f}">{escape(clipped(part.more, b.wide, _SMALL))}</text></g>\n'
        )
    said = ", ".join(f"{p.part.name} ({p.part.word})" for p in drawn.boxes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="freshet" role="img" width="{drawn.wide:.0f}" '
        f'height="{drawn.high:.0f}" viewBox="0 0 {drawn.wide:.0f} {drawn.high:.0f}" '
        f'aria-label="{escape(f"Pipeline {drawn.name}: {said}")}">\n<style>{_STYLE}</style>\n{"".join(shapes)}</svg>\n'
    )


def _head(end: Box) -> str:
    """The head of the arrows that come to a box."""
    y = end.y + end.high / 2
    return f"M{end.x - _HEAD:.1f} {y - 4:.1f}L{end.x:.1f} {y:.1f}L{end.x - _HEAD:.1f} {y + 4:.1f}Z"


def clipped(text: str, wide: float, letter: float) -> str:
    """As much of a text as goes into a box.

    >>> clipped("departures", 100, 10)
    'depar…'
    """
    most = int((wide - 2 * _PAD) / letter + 1e-6)
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"


def as_json(drawn: Drawing) -> dict[str, Any]:
    """The drawing as JSON values."""
    return {
        "pipeline": drawn.name,
        "wide": drawn.wide,
        "high": drawn.high,
        "nodes": [
            {
                **asdict(b.part),
                "word": b.part.word,
                **{n: round(getattr(b, n), 1) for n in ("x", "y", "wide", "high")},
                "label": clipped(b.part.name, b.wide, _LETTER),
                "more": clipped(b.part.more, b.wide, _SMALL),
                "head": _head(b) if any(a.end == b.part.id for a in drawn.arrows) else None,
            }
            for b in drawn.boxes
        ],
        "arrows": [asdict(a) for a in drawn.arrows],
    }


_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_LINES = " ╵╷│╴╯╮┤╶╰╭├─┴┬┼"
"""What joins these sides, by their sum."""
_JOINED = "─┸┰╂"
"""One arrow that goes level, and another that comes to it from above, from below, or from both or to go on."""


def text(graph: Graph) -> str:
    """The graph for a terminal, and below it what the signs mean.

    Arrows run level through columns and upright between them. Boxes of neighbouring columns stand on lines of different
    parity, so what leaves a box never lies on the line on which something comes to another. A level line that crosses
    another is broken by it; where one goes on together with it, the upright stroke is heavy.
    """
    found, arrows = parts(graph)
    laid = layers([p.id for p in found], arrows, 1.0, 1.0, 0.0)
    said = {p.id: f"{MARKS[p.kind]} {p.name}" for p in found}
    line = {p: 2 * floor(y) + c % 2 for c, places in enumerate(laid.columns) for p, y in places.items()}
    wide = [
        max((len(said[n]) for n, at in laid.column.items() if at == c), default=0) for c in range(len(laid.columns))
    ]
    cells: dict[tuple[int, int], dict[str, int]] = {}
    letters: dict[tuple[int, int], str] = {}

    def draw(net: str, y: int, x: int, sides: int) -> None:
        one = cells.setdefault((y, x), {})
        one[net] = one.get(net, 0) | sides

    def level(net: str, y: int, begin: int, end: int) -> None:
        for x in range(begin, end):
            draw(net, y, x, _LEFT | _RIGHT)

    left = 0
    for c in range(len(wide)):
        for place in laid.columns[c]:
            if laid.column[place[0]] == c:
                letters |= {(line[place], left + i): letter for i, letter in enumerate(said[place[0]])}
            else:
                level(place[0], line[place], left, left + wide[c] + 1)
        right = left + wide[c] + 1
        ends = {a: [b for start, b in laid.hops if start == a] for a in laid.columns[c]}
        tracks = _tracks({a: [line[p] for p in (a, *bs)] for a, bs in ends.items() if bs})
        left = right + 2 * max(tracks.values(), default=-1) + 5
        for start, track in tracks.items():
            x, begin = right + 2 * track + 1, right
            if laid.column[start[0]] == c:
                begin -= wide[c] - len(said[start[0]])
            level(start[0], line[start], begin, x)
            draw(start[0], line[start], x, _LEFT)
            for end in ends[start]:
                y, to = sorted((line[start], line[end]))
                for between in range(y, to + 1):
                    draw(start[0], between, x, (_UP if between > y else 0) | (_DOWN if between < to else 0))
                draw(start[0], line[end], x, _RIGHT)
                level(start[0], line[end], x + 1, left)
                if laid.column[end[0]] == end[1]:
                    letters[line[end], left - 2], letters[line[end], left - 1] = "▶", " "
    letters = {at: _joined(list(one.values())) for at, one in cells.items()} | letters
    rows = [
        "".join(letters.get((y, x), " ") for x in range(left)).rstrip()
        for y in range(max((y for y, _ in letters), default=-1) + 1)
    ]
    while rows and not rows[0]:
        del rows[0]
    legend = "   ".join(f"{MARKS[k]} {w}" for k, w in dict.fromkeys((p.kind, p.word) for p in found))
    joined = "   ┸ ┰ ╂ a line goes on with another" if any(set(row) & set(_JOINED[1:]) for row in rows) else ""
    return "\n".join([*rows, "", legend + joined])


def _tracks(lines: Mapping[Place, Sequence[int]]) -> dict[Place, int]:
    """Between two columns, upright from the first to the last of these lines: which go beside one another."""
    ends: list[int] = []
    found = {}
    for start, mine in sorted(lines.items(), key=lambda item: min(item[1])):
        track = next((t for t, end in enumerate(ends) if end < min(mine)), len(ends))
        ends[track:] = [max(mine), *ends[track + 1 :]]
        found[start] = track
    return found


def _joined(nets: Sequence[int]) -> str:
    """What a place looks like through which several arrows go, each on these sides."""
    if len(nets) == 1:
        return _LINES[nets[0]]
    upright = reduce(or_, nets) & (_UP | _DOWN)
    return "│" if _UP | _DOWN in nets else _JOINED[upright]
