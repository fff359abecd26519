"""A comparison of refresh policies as one HTML file: nothing to load, nothing to run, readable in light and dark.

What is said comes first, then the table, then the pictures; each picture has a text beside it, and all its numbers are
in a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from html import escape
from math import ceil, floor, log10, sqrt
from typing import Any

from engine.show import marked, number, times, verdicts

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 340, 66, 24, 20, 46

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #5d6673; --line: #dfe3e8; --tint: #f3f6f9;
  --good: #0b6e4f; --c0: #2463b4; --c1: #c2410c; --c2: #0f766e; --c3: #8b3fa8; --c4: #946200; --c5: #b4234f;
  --c6: #4b5563; --c7: #4d7c0f; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed; --soft: #9aa4b1; --line: #2d343c;
  --tint: #1c2127; --good: #5fd0a3; --c0: #7db1f5; --c1: #f59a66; --c2: #5ec9bd; --c3: #cf9be6; --c4: #e0b34d;
  --c5: #f28aa9; --c6: #b3bcc8; --c7: #a5cf63; } }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p { max-width: 46rem; } .soft, figcaption, caption { color: var(--soft); }
.advice { border-left: 4px solid var(--good); padding: .6rem 1rem; background: var(--tint); }
.wide { overflow-x: auto; } figure { margin: 0; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; width: 100%; }
caption { text-align: left; padding-bottom: .4rem; } th { font-weight: 600; vertical-align: bottom; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td.text, th.text { text-align: left; white-space: normal; min-width: 9rem; }
thead th { color: var(--soft); font-weight: 500; } tr.advised { background: var(--tint); }
td.best { font-weight: 700; color: var(--good); } code { font: .95em ui-monospace, monospace; }
.badge { display: inline-block; min-width: 1.35em; border-radius: 1em; text-align: center; font-size: .8em;
  font-weight: 700; color: var(--paper); margin-right: .5em; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; } svg text.in { fill: var(--paper); font-weight: 700; }
svg .grid { stroke: var(--line); } svg .front { stroke: var(--soft); stroke-dasharray: 5 4; fill: none; }
details { margin: 1rem 0; } summary { cursor: pointer; }
"""


def page(comparisons: Sequence[Mapping[str, Any]], about: Mapping[str, str]) -> str:
    """The report on what `engine.compare.compare` found. about: what else was noted of the run, by name."""
    name = escape(str(comparisons[0]["pipeline"]))
    bodies = "".join(map(_model, comparisons))
    noted = "".join(
        f'<tr><th scope="row">{escape(n)}</th><td class="text">{escape(v)}</td></tr>' for n, v in about.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Freshet: refresh policies of {name}</title><style>{_STYLE}</style></head>\n<body>\n"
        f'<header><p class="soft">Freshet, pipeline {name}</p></header>\n<main>\n{bodies}'
        f'<section><h2>What was measured where</h2><div class="wide"><table><tbody>{noted}'
        "</tbody></table></div></section>\n"
        "</main>\n</body>\n</html>\n"
    )


def _model(found: Mapping[str, Any]) -> str:
    rows = found["policies"]
    advised = found["advised"]
    head = f"Refresh policies of the model {escape(found['model'])}"
    parts = [f'<h1>{head}</h1>\n<p class="advice">{escape(found["advice"])}</p>\n']
    if advised is not None:
        parts.append(
            f'<p class="soft">{found["common"]:,} questions asked from {_minute(found["since"])} to '
            f"{_minute(found['until'])} UTC. All policies saw the same {found['changes']:,} changes in one pass.</p>\n"
        )
    parts.append(_table(found))
    if advised is not None:
        parts += [_frontier(found), _course(found)]
    parts += [_refreshes(rows), _how(found)]
    return f"<section>{''.join(parts)}</section>\n"


def _badge(i: int) -> str:
    return f'<span class="badge" style="background: var(--c{i % 8})">{i + 1}</span>'


def _table(found: Mapping[str, Any]) -> str:
    heads = [
        *(
            found["loss"],
            "difference to best",
            "best in resamples",
            *found["metrics"],
            "without prediction",
            "own loss",
        ),
        *("staleness p50", "p95", "serving s", "refresh s", "total s", "refreshes"),
        *(["total cost"] if found["second_costs"] is not None else []),
    ]
    marks, lines = marked(found), []
    for i, r in enumerate(found["policies"]):
        head = f'<th scope="row">{_badge(i)}<code>{escape(r["policy"])}</code></th>'
        if r["failed"] is not None:
            lines.append(f'<tr>{head}<td class="text" colspan="{len(heads)}">failed: {escape(r["failed"])}</td></tr>\n')
            continue
        differs = r.get("error") is not None
        cells = [
            ("loss", number(r["loss"])),
            ("", f"{r['difference']:+.4f} ± {r['error']:.4f}" if differs else "-"),
            ("", f"{r['best']:.0%}" if differs else "-"),
            *((m, number(r["metrics"][m])) for m in found["metrics"]),
            ("", f"{found['judged'] - r['own']:,}"),
            ("", number(r["own_loss"])),
            ("stale", times(r["stale"]["p50"])),
            ("", times(r["stale"]["p95"])),
            ("", f"{r['seconds']['serving']:,.1f}"),
            ("", f"{r['seconds']['refresh']:,.1f}"),
            ("seconds", f"{r['seconds']['total']:,.1f}"),
            ("", verdicts(r["refreshes"])),
            *([("", f"{r['total']:,.1f}" if "total" in r else "-")] if found["second_costs"] is not None else []),
        ]
        shown = "".join(
            f'<td class="best">{escape(text)}</td>' if (r["policy"], what) in marks else f"<td>{escape(text)}</td>"
            for what, text in cells
        )
        mine = ' class="advised"' if r["policy"] == found["advised"] else ""
        lines.append(f"<tr{mine}>{head}{shown}</tr>\n")
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    return (
        '<div class="wide"><table><caption>Quality, staleness and cost of each policy; the best of a column is bold. '
        f"Differences with one standard error.</caption><thead><tr>"
        f'<th scope="col">policy</th>{top}</tr></thead>\n<tbody>{"".join(lines)}</tbody></table></div>\n'
    )


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points (cost, loss) are beaten by no other, from the cheapest on.

    >>> frontier([(1.0, 3.0), (2.0, 2.0), (3.0, 2.5), (2.0, 4.0)])
    [0, 1]
    """
    out: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not out or points[i][1] < points[out[-1]][1]:
            out.append(i)
    return out


def _frontier(found: Mapping[str, Any]) -> str:
    some = [(i, r) for i, r in enumerate(found["policies"]) if r["loss"] is not None]
    spent = [max(r["seconds"]["total"], 1e-3) for _, r in some]
    low, high = floor(log10(min(spent)) * 2 - 0.2) / 2, ceil(log10(max(spent)) * 2 + 0.2) / 2
    losses = _Scale([r["loss"] for _, r in some], _HIGH - _BOTTOM, _TOP)

    def across(seconds: float) -> float:
        return _LEFT + (log10(max(seconds, 1e-3)) - low) / (high - low) * (_WIDE - _LEFT - _RIGHT)

    ticks = [
        d * 10.0**e for e in range(floor(low), ceil(high) + 1) for d in (1, 2, 5) if low <= log10(d * 10.0**e) <= high
    ]
    shapes = [
        losses.grid(),
        *(_tick(across(t), f"{t:g}") for t in ticks),
        _axes("seconds of the processor", found["loss"]),
    ]
    places = [(across(s), losses(r["loss"])) for s, (_, r) in zip(spent, some, strict=True)]
    best = frontier([(s, r["loss"]) for s, (_, r) in zip(spent, some, strict=True)])
    path = " ".join(f"{places[i][0]:.1f},{places[i][1]:.1f}" for i in best)
    shapes.append(f'<polyline class="front" points="{path}"/>')
    most = max((r["stale"]["p50"] or 0 for _, r in some), default=0) or 1
    for (i, r), (x, y) in sorted(zip(some, places, strict=True), key=lambda p: -(p[0][1]["stale"]["p50"] or 0)):
        size = 9 + 15 * sqrt((r["stale"]["p50"] or 0) / most)
        stale, cost = times(r["stale"]["p50"]), f"{r['seconds']['total']:,.1f} s"
        told = f"{r['policy']}: {found['loss']} {number(r['loss'])}, {cost}, stale {stale}"
        shapes.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="var(--c{i % 8})" fill-opacity="0.85">'
            f"<title>{escape(told)}</title></circle>"
            f'<text class="in" x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{i + 1}</text>'
        )
    named = ", ".join(str(some[i][0] + 1) for i in best)
    text = (
        "Left is cheaper, low is better; a larger circle is staler at the median. No policy is both cheaper and "
        f"better than one on the dashed line ({named})."
    )
    return _figure("Quality, cost and staleness", text, "".join(shapes))


def _course(found: Mapping[str, Any]) -> str:
    rows, bins = found["policies"], found["course"]
    losses = _Scale([v for r in rows for v in r["course"] if v is not None], _HIGH - _BOTTOM, _TOP)
    step = (_WIDE - _LEFT - _RIGHT) / len(bins)
    width = (found["until"] - found["since"]) / len(bins)
    shapes = [losses.grid(), _axes("when the question was asked (UTC)", found["loss"])]
    shapes += [
        _tick(_LEFT + step * b, _minute(bins[b])[: 10 if width > 3.6e9 else 16]) for b in range(0, len(bins), 10)
    ]
    for i, r in enumerate(rows):
        there = [(_LEFT + step * (b + 0.5), losses(v)) for b, v in enumerate(r["course"]) if v is not None]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in there)
        shapes.append(
            f'<polyline fill="none" stroke="var(--c{i % 8})" stroke-width="1.6" points="{points}">'
            f"<title>{escape(r['policy'])}</title></polyline>"
        )
    heads = "".join(f'<th scope="col">{_badge(i)}</th>' for i in range(len(rows)))
    lines = ""
    for j, b in enumerate(bins):
        cells = "".join(f"<td>{number(r['course'][j])}</td>" for r in rows)
        lines += f'<tr><th scope="row">{_minute(b)}</th>{cells}</tr>\n'
    table = (
        f'<details><summary>The same as a table</summary><div class="wide"><table><thead><tr><th scope="col">from</th>'
        f"{heads}</tr></thead><tbody>{lines}</tbody></table></div></details>\n"
    )
    text = "Colours as in the table above. Each point is the mean of one fiftieth of the period."
    return _figure("Loss over time", text, "".join(shapes)) + table


def _figure(title: str, text: str, shapes: str) -> str:
    return (
        f'<h2>{escape(title)}</h2>\n<figure><svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" '
        f'aria-label="{escape(title)}. {escape(text)}">{shapes}</svg><figcaption>{escape(text)}</figcaption></figure>\n'
    )


class _Scale:
    """Losses up the picture, with some room at both ends."""

    def __init__(self, values: Sequence[float], bottom: int, top: int) -> None:
        low, high = min(values), max(values)
        room = (high - low or abs(high) or 1.0) * 0.12
        self._low, self._high, self._bottom, self._top = low - room, high + room, bottom, top

    def __call__(self, value: float) -> float:
        return self._bottom - (value - self._low) / (self._high - self._low) * (self._bottom - self._top)

    def grid(self) -> str:
        raw = (self._high - self._low) / 5
        power = 10.0 ** floor(log10(raw))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw)
        digits = max(0, -floor(log10(step)))
        ticks = [n * step for n in range(ceil(self._low / step), floor(self._high / step) + 1)]
        return "".join(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{self(t):.1f}" y2="{self(t):.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{self(t) + 4:.1f}" text-anchor="end">{t:.{digits}f}</text>'
            for t in ticks
        )


def _tick(x: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{_HIGH - _BOTTOM + 18}" text-anchor="middle">{escape(text)}</text>'


def _axes(across: str, up: str) -> str:
    return (
        f'<text x="{(_LEFT + _WIDE - _RIGHT) / 2:.0f}" y="{_HIGH - 6}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="4" y="12">{escape(up)}</text>'
    )


def _refreshes(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    plain = "".join(f'<th scope="col">{h}</th>' for h in ("mode", "examples", "fitted", "seconds", "verdict"))
    text = '<th scope="col" class="text">'
    top = f'<th scope="col">known</th>{text}reason</th>{plain}{text}why</th>'
    for i, r in enumerate(rows):
        if r["versions"] is None:
            continue
        lines = "".join(
            f'<tr><th scope="row">{_minute(v["known"])}</th><td class="text">{escape(v["reason"])}</td>'
            f"<td>{v['mode']}</td><td>{v['examples']:,}</td><td>{v['fitted']:,}</td><td>{v['seconds']:.2f}</td>"
            f'<td>{v["verdict"]}</td><td class="text">{escape(v["why"])}</td></tr>\n'
            for v in r["versions"]
        )
        parts.append(
            f"<details><summary>{_badge(i)}<code>{escape(r['policy'])}</code>: {verdicts(r['refreshes'])}</summary>"
            f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div></details>\n'
        )
    return f"<h2>Refreshes</h2>\n{''.join(parts)}" if parts else ""


def _how(found: Mapping[str, Any]) -> str:
    text = (
        f"Of {found['questions']:,} questions {found['judged']:,} are judged: those that were answered, while every "
        "question asked before was answered or closed, so that labels that come quickly are not favoured. Each "
        "prediction was made when its question came, by what was known then. Compared are the "
        f"{found['common']:,} of which every policy said something; own loss is over all of which a policy did. "
        "Staleness is the time from the newest example that what answered had learnt until the question. Seconds are "
        "those of the processor: serving is asking, refresh is learning, fitting and judging."
    )
    if found["advised"] is not None:
        text += (
            f" Standard errors are of a circular block bootstrap over {found['cells']} cells of "
            f"{times(found['cell'] / 1e6)}, drawn in blocks of {times(found['block'] / 1e6)}."
        )
    if found["second_costs"] is not None:
        text += f" A second is priced {found['second_costs']:g} in units of the loss, for the total cost."
    return f'<h2>How it was judged</h2>\n<p class="soft">{escape(text)}</p>\n'


def _minute(us: int) -> str:
    return (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%d %H:%M")
