"""A source, view or model as a small HTML table, for notebooks: what is said of it, and its columns."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from operators.delta import Schema


def columns(schema: Schema) -> dict[str, str]:
    """The columns with their types in a word.

    >>> from operators.delta import INT, TIME
    >>> columns({"n": INT, "at": TIME})
    {'n': 'int64', 'at': 'datetime'}
    """
    return {name: str(dtype).partition("(")[0].lower() for name, dtype in schema.items()}


def card(title: str, facts: Mapping[str, str], schema: Schema) -> str:
    """HTML of its own: nothing to load, all text escaped.

    >>> card("view a<b", {"key": "x"}, {})
    '<table><caption>view a&lt;b</caption><tbody><tr><th scope="row">key</th><td>x</td></tr></tbody></table>'
    """
    rows = {**facts, **({"columns": ", ".join(f"{n} {t}" for n, t in columns(schema).items())} if schema else {})}
    body = "".join(f'<tr><th scope="row">{escape(n)}</th><td>{escape(v)}</td></tr>' for n, v in rows.items())
    return f"<table><caption>{escape(title)}</caption><tbody>{body}</tbody></table>"
