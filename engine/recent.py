"""The newest changes of each relation and the newest dead letters, for whoever looks at a run.

Cheap while nobody asks: deltas are kept as they came, at most the last rows of each, and become text when they are
asked for. They are in memory only, and gone with the run. What is kept is replaced, never changed, so that another
thread can read it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from engine.encode import encode
from operators.delta import AT, Delta, Schema

MOST = 20
"""Of each relation, and of dead letters."""
_LONG, _LINE = 200, 65_536
"""Letters of a value that are shown; bytes of a line beyond which it is not kept."""


class Recent:
    """The newest changes by relation, and the newest lines by output.

    >>> from operators.delta import INT
    >>> recent = Recent()
    >>> recent.take("v", Delta({"n": np.arange(30)}, *(np.ones(30, int) for _ in range(4))))
    >>> recent.changes("v", {"n": INT})[0]
    {'weight': 1, 'at': '1970-01-01T00:00:00.000001Z', 'values': ['29']}
    >>> len(recent.changes("v", {"n": INT})), recent.changes("w", {"n": INT})
    (20, [])
    """

    def __init__(self) -> None:
        self._deltas: dict[str, tuple[Delta, ...]] = {}
        self._lines: dict[str, tuple[bytes, ...]] = {}

    def take(self, name: str, delta: Delta) -> None:
        """Keep the last changes of a relation."""
        if not (n := len(delta)):
            return
        kept = (*self._deltas.get(name, ()), delta.take(np.arange(n - MOST, n)) if n > MOST else delta)
        rows = sum(map(len, kept))
        while rows - len(kept[0]) >= MOST:
            rows -= len(kept[0])
            kept = kept[1:]
        self._deltas[name] = kept

    def take_lines(self, name: str, lines: list[bytes]) -> None:
        """Keep the last lines of an output, but for very long ones."""
        kept = (*self._lines.get(name, ()), *(line for line in lines[-MOST:] if len(line) <= _LINE))
        self._lines[name] = kept[-MOST:]

    def changes(self, name: str, schema: Schema) -> list[dict[str, Any]]:
        """The newest changes, the last one first: `weight`, `at`, and `values` as text (None: null) in their order."""
        found = []
        for delta in reversed(self._deltas.get(name, ())):
            lines = encode(delta, schema, at=AT).splitlines()
            for line, weight in zip(reversed(lines), reversed(delta.weight.tolist()), strict=True):
                row = orjson.loads(line)
                at = row.pop(AT)
                found.append({"weight": weight, "at": at, "values": [_shown(v) for v in row.values()]})
        return found[:MOST]

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The newest lines of an output, the last one first, with values as text."""
        return [{k: _shown(v) for k, v in orjson.loads(line).items()} for line in reversed(self._lines.get(name, ()))]


def _shown(value: Any) -> str | None:
    """A value as text: a number has all its digits, also where those who read JSON would round it."""
    if value is None:
        return None
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= _LONG else text[:_LONG] + "…"
