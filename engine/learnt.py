"""The bounds of learned expectations as a file beside the pipeline: sorted, readable, to be reviewed like code.

    {"budget": 0.001, "until": "2013-07-01T00:00:00Z", "bounds": {
      "weather: level(temp)": {"asked": "0f3a...", "every other": [-21.5, 20.8], "groups": {"EWR": [-22.9, 21.6]}}}}

`asked` stands for what was computed: bounds do not outlive a change of their expectation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from operators.learned import Range, Ranges, range_of, told
from operators.operator import DefinitionError


@dataclass(frozen=True)
class Learnt:
    """What was learnt for one expectation, and for which statistic."""

    asked: str
    bounds: Ranges


@dataclass(frozen=True)
class Calibrated:
    """What was found for a group of an expectation, or (group None) for all that have no bounds of their own.

    days: check-days seen. beyond: those of them on which something was beyond the bounds.
    """

    relation: str
    expectation: str
    group: str | None
    bounds: Range
    days: int
    beyond: int


def read(path: Path) -> dict[str, Learnt]:
    """By "relation: expectation" what was learnt; nothing when there is no file yet. Raises `DefinitionError`."""
    if not path.exists():
        return {}
    try:
        return {
            name: Learnt(
                one["asked"],
                Ranges(
                    {group: range_of(r, f"{name}, {group}") for group, r in one["groups"].items()},
                    range_of(one["every other"], name),
                ),
            )
            for name, one in json.loads(path.read_text())["bounds"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DefinitionError(
            f"{str(path)!r} is not what was learnt ({error}); expected what freshet calibrate writes: run it again"
        ) from None


def write(path: Path, found: Mapping[str, Learnt], budget: float, until: str | None) -> None:
    """Write what was learnt, whole or not at all."""
    bounds = {
        name: {
            "asked": one.asked,
            "every other": told(one.bounds.rest),
            "groups": {group: told(r) for group, r in sorted(one.bounds.groups.items())},
        }
        for name, one in sorted(found.items())
    }
    part = path.with_name(f".{path.name}.part")
    text = json.dumps({"budget": budget, "until": until, "bounds": bounds}, indent=1)
    part.write_text(_short(text) + "\n")
    part.replace(path)


def _short(text: str) -> str:
    """Ranges on one line."""
    return re.sub(r"\[\s+([^][]*?),\s+([^][]*?)\s+\]", r"[\1, \2]", text)
