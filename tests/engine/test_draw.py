"""A pipeline is drawn from left to right, without one thing on another, and the same each time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import linear_model

import operators as op
from engine import Pipeline, deferred
from engine.draw import HIGH, MARKS, Drawing, as_json, drawing, parts, svg, text
from engine.layers import Place, columns_of, crossings, layers
from tests.flow.running import HERE, cards, freshet, project


def chain(n: int) -> Pipeline:
    """A pipeline of so many parts: one source, and views each of which stands on two before it."""
    p = Pipeline("chain")
    schema = {"id": int, "at": pl.Datetime, "n": int}
    made: list = [p.source("s", key="id", at="at", schema=schema)]
    for i in range(n - 1):
        other = made[(i * 7) // 11]
        steps = [op.join_asof(other, on="id", columns={f"n{i}": "n"})] if i and other.name != made[-1].name else []
        made.append(p.view(f"v{i}", made[-1 if i % 3 else i // 2], *steps, op.where(pl.col("n") > i)))
    return p


def two() -> Pipeline:
    """The pipeline of the tests of the flow."""
    return cards(HERE / "cards")


def points(path: str) -> list[tuple[float, float]]:
    """Where an arrow comes by, bends included."""
    x, y, found = 0.0, 0.0, []
    for command, numbers in re.findall(r"([MHC])([-\d. ]+)", path):
        n = [float(v) for v in numbers.split()]
        for x, y in [(n[0], y)] if command == "H" else zip(n[::2], n[1::2], strict=True):  # noqa: B020
            found.append((x, y))
    return found


def check(drawn: Drawing) -> None:
    """No box on another, each arrow from left to right, within the picture, and through no box."""
    boxes = {b.part.id: b for b in drawn.boxes}
    for a, b in combinations(drawn.boxes, 2):
        apart = a.x + a.wide < b.x or b.x + b.wide < a.x or a.y + a.high < b.y or b.y + b.high < a.y
        assert apart, (a, b)
    for b in drawn.boxes:
        assert b.x > 0
        assert b.y > 0
        assert b.x + b.wide < drawn.wide
        assert b.y + b.high < drawn.high
    for arrow in drawn.arrows:
        start, end, by = boxes[arrow.start], boxes[arrow.end], points(arrow.path)
        assert by[0] == pytest.approx((start.x + start.wide, start.y + HIGH / 2), abs=0.06)
        assert by[-1] == pytest.approx((end.x - 8, end.y + HIGH / 2), abs=0.06)
        assert sorted(x for x, _ in by) == [x for x, _ in by]
        for x, y in by[1:-1]:
            assert 0 <= y <= drawn.high
            for b in drawn.boxes:
                assert not (b.x + 0.1 < x < b.x + b.wide - 0.1 and b.y < y < b.y + b.high), (arrow, b)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_boxes_do_not_overlap_and_arrows_go_from_left_to_right(n: int) -> None:
    drawn = drawing(chain(n))
    assert len(drawn.boxes) == n
    assert len(drawn.arrows) >= n - 1
    check(drawn)


def test_a_pipeline_with_nothing_in_it_is_drawn() -> None:
    drawn = drawing(Pipeline("nothing"))
    assert (drawn.boxes, drawn.arrows) == ((), ())
    ElementTree.fromstring(svg(drawn))
    assert text(Pipeline("nothing")).strip() == ""


def test_the_parts_of_a_pipeline_and_what_each_is_made_of() -> None:
    p = two()
    drawn = drawing(p)
    check(drawn)
    assert {(a.start, a.end) for a in drawn.arrows} >= {
        ("source payments", "view features"),
        ("table shops", "view features"),
        ("source payments", "view cards"),
        ("view cards", "view known_cards"),
        ("view features", "model fraud"),
        ("source chargebacks", "model fraud"),
        ("source chargebacks", "view labelled"),
        ("model fraud", "training fraud"),
        ("predictions fraud", "sink predictions"),
    }
    at = {b.part.id: b.x for b in drawn.boxes}
    assert at["source payments"] == at["table shops"] < at["view features"] < at["model fraud"]
    assert at["model fraud"] < at["predictions fraud"] == at["training fraud"] < at["sink predictions"]
    found = {n["id"]: n for n in as_json(drawn)["nodes"]}
    assert found["table shops"]["facts"]["key"] == "shop"
    assert found["source payments"]["facts"]["lateness"] == "1m"
    assert found["view cards"]["facts"]["refresh"] == "deferred(every='2m', rows=40)"
    assert found["view features"]["steps"][0] == "dedupe <- payments"
    assert found["view by_country"]["schema"] == {"country": "string", "payments": "int64", "turnover": "float64"}


def test_a_drawing_is_the_same_each_time() -> None:
    assert drawing(chain(50)) == drawing(chain(50))
    assert svg(drawing(two())) == svg(drawing(two()))
    assert text(two()) == text(two())


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], list[tuple[str, str]]]:
    names = [f"n{i}" for i in range(draw(st.integers(1, 12)))]
    pairs = st.tuples(st.integers(0, len(names) - 1), st.integers(0, len(names) - 1))
    return names, [(names[a], names[b]) for a, b in draw(st.lists(pairs, max_size=24)) if a < b]


@given(graphs())
def test_any_graph_is_laid_out(given: tuple[list[str], list[tuple[str, str]]]) -> None:
    names, arrows = given
    laid = layers(names, arrows, 10.0, 4.0, 3.0)
    where: dict[Place, float] = {p: y for places in laid.columns for p, y in places.items()}
    assert {p[0] for p in where if laid.column[p[0]] == p[1]} == set(names)
    assert laid.column == longest(names, arrows)
    for places in laid.columns:
        size = {p: 10.0 if laid.column[p[0]] == p[1] else 4.0 for p in places}
        for (p, y), (q, z) in zip(list(places.items()), list(places.items())[1:], strict=False):
            assert z - y >= (size[p] + size[q]) / 2 + 3.0 - 1e-6
    for (a, b), route in laid.routes.items():
        assert (route[0][0], route[-1][0]) == (a, b)
        assert [c for _, c in route] == list(range(laid.column[a], laid.column[b] + 1))
        assert set(route) <= where.keys()


def longest(names: Sequence[str], arrows: Sequence[tuple[str, str]]) -> Mapping[str, int]:
    """The slow and obvious twin of `columns_of`."""

    def column(name: str) -> int:
        return max((column(a) + 1 for a, b in arrows if b == name), default=0)

    return {n: column(n) for n in names}


def test_crossings_are_counted_and_avoided() -> None:
    crossed = [[("a", 0), ("b", 0)], [("x", 1), ("y", 1)]]
    assert crossings(crossed, [(("a", 0), ("y", 1)), (("b", 0), ("x", 1))]) == 1
    assert crossings(crossed, [(("a", 0), ("y", 1)), (("a", 0), ("x", 1))]) == 0
    laid = layers("abxyuv", [("a", "y"), ("b", "x"), ("y", "v"), ("x", "u")], 1.0, 1.0, 0.0)
    assert crossings([list(c) for c in laid.columns], laid.hops) == 0


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="boxes point at one another in a circle: a, b"):
        columns_of("abc", [("a", "b"), ("b", "a"), ("b", "c")])


def test_names_are_escaped_and_long_ones_clipped() -> None:
    p, evil = Pipeline("p"), '<script>alert("x")</script>&'
    s = p.source("s", key="id", at="at", schema={"id": int, "at": pl.Datetime, evil: str})
    v = p.view("v" * 60, s, op.aggregate(by=evil, n=op.count()), refresh=deferred(every="1h"))
    p.name = evil
    p.sources["s"] = replace(s, key=(evil,))
    for made in (svg(drawing(p)), p._repr_html_()):
        assert evil not in made
        assert "<script" not in made
        root = ElementTree.fromstring(made)
        shown = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
        assert "v" * 24 + "…" in shown
        assert evil in root.attrib["aria-label"]
    for one in (s, v):
        assert "<script" not in one._repr_html_()
    assert "&lt;script&gt;" in v._repr_html_()


def test_what_a_notebook_shows_of_a_source_a_view_and_a_model() -> None:
    p = two()
    shown = p.sources["payments"]._repr_html_()
    assert "<caption>source payments</caption>" in shown
    assert '<tr><th scope="row">key</th><td>tx</td></tr>' in shown
    assert "amount float64" in shown
    assert "deferred(every=&#x27;2m&#x27;, rows=40)" in p.views["cards"]._repr_html_()
    model = p.models["fraud"]._repr_html_()
    assert "<caption>model fraud</caption>" in model
    assert '<tr><th scope="row">predicts</th><td>fraud</td></tr>' in model
    for one in (shown, model):
        ElementTree.fromstring(one)


SHOWN = """
● asked ─╮                                                  ╭─▶ ▷ out
         ╰─┰─▶ □ questions ─╮          ╭─▶ ◇ m.predictions ─╯
● told ────┤                ╰─┰─▶ ◆ m ─┤
           ╰──────────────────╯        ╰─▶ ◫ m.training

● source   □ view   ◆ model   ◇ predictions   ◫ training set   ▷ sink   ┸ ┰ ╂ a line goes on with another
"""


def small() -> Pipeline:
    p = Pipeline("p")
    asked = p.source("asked", key="id", at="at", schema={"id": int, "at": pl.Datetime, "a": float})
    told = p.source("told", key="id", at="at", schema={"id": int, "at": pl.Datetime, "y": float})
    questions = p.view("questions", asked, op.join_asof(told, on="id", columns={"before": "y"}), op.project("id", "a"))
    m = p.model("m", questions, answers=told, label="y", key="id", learner=linear_model.LinearRegression())
    p.sink("out", m.predictions)
    return p


def test_the_text_for_a_terminal() -> None:
    assert text(small()) == SHOWN.strip("\n")


def test_every_arrow_can_be_followed_in_the_text() -> None:
    for p in (small(), two(), chain(50)):
        assert followed(text(p)) == named(p)


def named(p: Pipeline) -> set[tuple[str, str]]:
    """The arrows by the names that the text shows."""
    found, arrows = parts(p)
    name = {one.id: f"{MARKS[one.kind]} {one.name}" for one in found}
    return {(name[a], name[b]) for a, b in arrows}


OPENS = {"╵": "u", "╷": "d", "│": "ud", "╴": "l", "╯": "ul", "╮": "dl", "┤": "udl", "╶": "r", "╰": "ur", "╭": "dr",
         "├": "udr", "─": "lr", "┴": "ulr", "┬": "dlr", "┼": "udlr"}  # fmt: skip


def followed(drawn: str) -> set[tuple[str, str]]:
    """From each box along the lines to where they lead: right, up or down, never back."""
    rows = drawn.split("\n\n●")[0].split("\n")
    boxes = {(y, m.start()): m.group() for y, row in enumerate(rows) for m in re.finditer(r"[●▤□◆◇◫▷] \S+", row)}
    found = set()
    for (y, x), name in boxes.items():
        begin = x + len(name) + 1
        reached, ways = set(), [(y, begin, "r")] if rows[y][begin : begin + 1].strip() else []
        while ways:
            way = ways.pop()
            line, at, going = way
            if way in reached or not (0 <= line < len(rows) and at < len(rows[line])):
                continue
            reached.add(way)
            sign = rows[line][at]
            if sign == "▶":
                found.add((name, boxes[line, at + 2]))
            elif going == "r" and sign in "│┸┰╂":  # it is crossed, or another goes on with it
                ways.append((line, at + 1, "r"))
            else:
                assert sign in OPENS or sign in "┸┰╂", drawn
                sides = OPENS.get(sign) or {"┸": "ur", "┰": "dr", "╂": "udr"}[sign]
                for to, (dy, dx) in {"r": (0, 1), "u": (-1, 0), "d": (1, 0)}.items():
                    if to in sides and {to, going} != {"u", "d"}:
                        ways.append((line + dy, at + dx, to))
    return found


def test_the_command_draws(tmp_path: Path) -> None:
    folder = project(tmp_path / "cards")
    done = freshet("graph", folder, cwd=tmp_path)
    assert (done.returncode, done.stdout.rstrip("\n")) == (0, text(cards(folder)))
    done = freshet("graph", folder, "--svg", "cards.svg", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "cards.svg").read_text() == svg(drawing(cards(folder)))
    done = freshet("graph", folder, "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == json.loads(json.dumps(as_json(drawing(cards(folder)))))
    done = freshet("graph", folder, "--svg", "no/cards.svg", cwd=tmp_path)
    assert (done.returncode, "cannot write 'no/cards.svg': No such file" in done.stderr) == (1, True)
