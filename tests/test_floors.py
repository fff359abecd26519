"""Imports only go down. The floors are one table; every module of the two packages must be in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS: tuple[tuple[str, ...], ...] = (
    ("engine.__main__",),
    ("engine.cli",),
    ("engine.worker",),
    ("engine.answer", "engine.status"),
    ("engine.report", "engine.erase", "engine.cluster"),
    ("engine.flow",),
    ("engine.forget",),
    ("engine.outbox",),
    ("engine.bind", "engine.publish", "engine.recovery", "engine.sending"),
    ("engine.topics",),
    ("engine.files", "engine.brokers", "engine.messages", "engine.recent"),
    ("engine.store",),
    ("engine",),
    ("engine.pipeline", "engine.compare", "engine.calibrate"),
    ("engine.replay", "engine.page", "engine.draw"),
    ("engine.expect",),
    ("engine.decode", "engine.lookup", "engine.merge", "engine.clock"),
    ("engine.view", "engine.hold", "engine.encode", "engine.sink"),
    ("engine.plan", "engine.show", "engine.openapi", "engine.metrics", "engine.logs"),
    ("engine.server",),
    ("engine.graph", "engine.cost", "engine.settings"),
    ("engine.model", "engine.lines", "engine.batch"),
    ("engine.freshness",),
    ("engine.refit", "engine.query", "engine.naive"),
    ("engine.fit", "engine.keeper"),
    ("engine.versions", "engine.training"),
    ("engine.log", "engine.export", "engine.student", "engine.due"),
    ("engine.schedule", "engine.intake"),
    ("engine.policy", "engine.examples"),
    ("engine.learners", "engine.neighbours"),
    ("engine.unpack", "engine.pack", "engine.avro"),
    ("engine.scan", "engine.compiled", "engine.spec", "engine.large"),
    ("engine.disk", "engine.skew", "engine.timing", "engine.card", "engine.learnt", "engine.layers", "engine.ask"),
    ("engine.guard", "engine.seal", "engine.taint"),
    ("operators",),
    ("operators.before", "operators.learned"),
    ("operators.<each>",),
    ("operators.<shared>",),
    ("operators.operator",),
    ("operators.delta",),
)
"""From the top; a module imports modules of lower floors only. `<each>`: modules that define an operator.
`<shared>`: what several of them stand on; these may import one another, but not in a circle."""

STAGES = {"decode", "lines", "merge", "view", "model", "encode", "sink"}
"""Modules of the engine that never import one another, on whatever floor they are."""

RUNTIME = {"engine.flow", "engine.store"}
"""The modules that may import bytewax."""

IMPURE = {"bytewax", "confluent_kafka", "kafka", "logging", "time", "prometheus_client", "typer", "rich"}
"""What operators never import."""

CLOCKS = {"now", "utcnow", "today", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
"""Functions that read a clock; operators never call one of these names."""


def sources() -> dict[str, str]:
    """Every module of the two packages with its text."""
    found = {}
    for package in ("engine", "operators"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imports(module: str, tree: ast.Module, known: Mapping[str, object]) -> Iterator[str]:
    """The modules that a module names in its imports, wherever they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (
                {
                    f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else f"{node.module}"
                    for a in node.names
                }
            )


def is_operator_file(tree: ast.Module) -> bool:
    """Whether a module defines an operator: it has samples for the laws."""
    return any(isinstance(f, ast.FunctionDef) and f.name == "samples" for f in ast.walk(tree))


def findings(texts: Mapping[str, str]) -> list[str]:
    """What is against the rules in these modules."""
    trees = {m: ast.parse(t) for m, t in texts.items()}
    floors = {name: i for i, names in enumerate(FLOORS) for name in names}

    def floor_name(module: str) -> str:
        if module.startswith("operators.") and module not in floors:
            return "operators.<each>" if is_operator_file(trees[module]) else "operators.<shared>"
        return module

    found = []
    for module, tree in trees.items():
        if floor_name(module) not in floors:
            found.append(f"{module} is on no floor; give it a place in the table of tests/test_floors.py")
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                found.append(f"{module}, line {node.lineno}: a relative import; expected an absolute one")
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in CLOCKS and module.startswith("operators"):
                found.append(f"{module}, line {called.lineno}: reads a clock ({called.attr}); time is an argument")
        for name in sorted(set(imports(module, tree, trees))):
            top = name.partition(".")[0]
            if top == "bytewax" and module not in RUNTIME:
                found.append(f"{module} imports {name}; only {', '.join(sorted(RUNTIME))} may")
            elif top in IMPURE and module.startswith("operators"):
                found.append(f"{module} imports {name}; operators are pure")
            elif top in ("tests", "examples", "benchmarks"):
                found.append(f"{module} imports {name}, which is not part of the package")
            if name not in trees or floor_name(name) not in floors or name == module:
                continue
            mine, its = floors[floor_name(module)], floors[floor_name(name)]
            if module.removeprefix("engine.") in STAGES and name.removeprefix("engine.") in STAGES:
                found.append(f"{module} imports {name}; stages never import one another")
            elif its < mine:
                found.append(f"{module} imports {name}, which is on a higher floor")
            elif its == mine and floor_name(module) != "operators.<shared>":
                found.append(f"{module} imports {name}, which is on the same floor")
    return found + circles({m: set(imports(m, t, trees)) & set(trees) for m, t in trees.items()})


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import themselves by way of others."""
    reach = {m: set(g) for m, g in graph.items()}
    for _ in graph:
        reach = {m: r.union(*(reach[n] for n in r)) for m, r in reach.items()}
    return [f"{m} imports itself by way of {', '.join(sorted(graph[m]))}" for m in sorted(graph) if m in reach[m]]


def test_imports_only_go_down() -> None:
    assert findings(sources()) == []


def test_there_is_something_to_check() -> None:
    found = sources()
    assert {"operators.where", "operators.delta", "engine.graph"} <= set(found)
    each = [m for m, t in found.items() if is_operator_file(ast.parse(t))]
    assert {"operators.where", "operators.project"} <= set(each)
    assert "operators.operator" not in each


OPERATOR = "from operators.operator import Operator\nclass A(Operator):\n    def samples(cls): ...\n"
WRONG = [
    (
        {"operators.a": "from engine.graph import Graph", "engine.graph": ""},
        "operators.a imports engine.graph, which is on a higher",
    ),
    (
        {"operators.a": OPERATOR, "operators.b": OPERATOR + "import operators.a"},
        "operators.b imports operators.a, which is on the same",
    ),
    ({"operators.a": OPERATOR, "operators.b": OPERATOR + "from operators import a"}, "operators.b imports operators.a"),
    ({"operators.a": OPERATOR, "operators.state": "from operators.a import A"}, "which is on a higher floor"),
    (
        {"operators.x": "from operators.y import a", "operators.y": "from operators.x import b"},
        "operators.x imports itself by way of",
    ),
    ({"operators.delta": "import operators.state", "operators.state": ""}, "which is on a higher floor"),
    ({"operators.a": "import logging"}, "operators are pure"),
    ({"operators.a": "def f():\n    import time"}, "operators are pure"),
    ({"operators.a": "from datetime import datetime\nx = datetime.now()"}, "reads a clock (now)"),
    ({"operators.a": "from .delta import Delta"}, "a relative import"),
    ({"engine.view": "from bytewax.dataflow import Dataflow"}, "only engine.flow, engine.store may"),
    ({"engine.view": "import engine.model", "engine.model": ""}, "stages never import one another"),
    ({"engine.sink": "from engine import decode", "engine.decode": ""}, "stages never import one another"),
    ({"engine.view": "import engine.flow", "engine.flow": ""}, "engine.view imports engine.flow, which is on a higher"),
    ({"engine.flow": "import engine.cli", "engine.cli": ""}, "which is on a higher floor"),
    ({"engine.view": "import tests.laws"}, "not part of the package"),
    ({"engine.utilities": ""}, "engine.utilities is on no floor"),
]


@pytest.mark.parametrize(("texts", "expected"), WRONG, ids=[w for _, w in WRONG])
def test_a_wrong_import_is_found(texts: dict[str, str], expected: str) -> None:
    found = findings({"operators": "", "operators.operator": "class Operator: ...", **texts})
    assert any(expected in f for f in found), found


def test_right_imports_are_not_found() -> None:
    right = {
        "engine.flow": "import bytewax.operators\nfrom engine.view import Shard\nfrom engine import model",
        "engine.view": "import time\nfrom engine.graph import Graph",
        "engine.model": "import operators",
        "engine.graph": "from engine.model import ModelSpec",
        "operators": "from operators.a import a",
        "operators.a": OPERATOR + "from operators.kept import x\nfrom operators.delta import Delta",
        "operators.kept": "import operators.other",
        "operators.other": "import operators.operator",
        "operators.operator": "from operators.delta import Delta",
        "operators.delta": "import numpy",
    }
    assert findings(right) == []
