"""The operators that a view can be made of: `import operators as op`.

Each name is a function that declares one step, or what is expected of rows; its module says what it means.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from operators.aggregate import aggregate
from operators.before import increasing, step, unique
from operators.dedupe import dedupe
from operators.expectation import between, check, fresh, matches, not_null, one_of, release
from operators.join import join
from operators.join_asof import join_asof
from operators.join_label import join_label, unanswered
from operators.latest import latest
from operators.learned import (
    categories,
    default_ratio,
    distinct_ratio,
    jump,
    level,
    new_ratio,
    null_ratio,
    shape,
    stuck,
    usual,
)
from operators.operator import Operator
from operators.previous import previous
from operators.project import project
from operators.reduction import count, maximum, mean, minimum, total
from operators.runs import runs
from operators.silence import silence
from operators.union import union
from operators.where import where
from operators.window import window

__all__ = [
    "aggregate",
    "between",
    "catalogue",
    "categories",
    "check",
    "count",
    "dedupe",
    "default_ratio",
    "distinct_ratio",
    "fresh",
    "increasing",
    "join",
    "join_asof",
    "join_label",
    "jump",
    "latest",
    "level",
    "matches",
    "maximum",
    "mean",
    "minimum",
    "new_ratio",
    "not_null",
    "null_ratio",
    "one_of",
    "previous",
    "project",
    "release",
    "runs",
    "shape",
    "silence",
    "step",
    "stuck",
    "total",
    "unanswered",
    "union",
    "unique",
    "usual",
    "where",
    "window",
]


def catalogue() -> list[type[Operator]]:
    """All operators, found in the modules of this package: whatever is defined here is under the laws."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    made_here = [
        value
        for m in sorted(modules, key=lambda m: m.__name__)
        for value in vars(m).values()
        if getattr(value, "__module__", None) == m.__name__ and inspect.isclass(value)
    ]
    return [c for c in made_here if issubclass(c, Operator) and not inspect.isabstract(c)]
