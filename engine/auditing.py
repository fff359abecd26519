"""Audits beside the stream, again and again: see `engine/audit.py`.

An audit is the command `freshet audit` in a process of its own that gives way to the stream, one at a time, of what the
training set told since the last one. What it found is added up here, and its report is kept. That one fails, or never
ends, changes nothing of the run; it is counted, and the time at which one last ended grows old.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

ABSENT, LATER = "(absent)", "(later)"
"""What is wrong with a question as a whole: its row is not there; it has what became known later."""


@dataclass
class _Audited:
    """What the audits of a model found so far. at: when the last one ended, or the first began to be waited for."""

    every: int
    at: int | None = None
    since: int = -1
    audits: int = 0
    failed: int = 0
    checked: int = 0
    mismatches: dict[str, int] = field(default_factory=dict)
    why: str | None = None


class Audits:
    """The audits of a run.

    every: by model how often it is audited, in microseconds, and its features. command: the command line of an audit of
    a model, of what its training set told after that `seq`. folder: where reports are kept.
    """

    def __init__(
        self,
        every: Mapping[str, tuple[int, tuple[str, ...]]],
        command: Callable[[str, int], list[str]],
        folder: Path,
    ) -> None:
        self._command, self._folder = command, folder
        self._models = {
            name: _Audited(us, mismatches=dict.fromkeys((ABSENT, LATER, *features), 0))
            for name, (us, features) in every.items()
        }
        self._running: tuple[str, subprocess.Popen[bytes]] | None = None

    def look(self, now: int) -> None:
        """Take in the audit that ended, and begin one that is due: called again and again."""
        if self._running is not None:
            model, process = self._running
            if process.poll() is None:
                return
            self._running = None
            self._ended(model, process.returncode, now)
        for one in self._models.values():
            one.at = now if one.at is None else one.at
        due = [(one.at + one.every, name) for name, one in self._models.items() if one.at is not None]
        when, name = min(due, default=(now + 1, ""))
        if when <= now:
            try:
                self._begin(name)
            except OSError as error:
                self._failed(name, now, str(error))

    def _begin(self, model: str) -> None:
        self._folder.mkdir(exist_ok=True)
        with (
            self._report(model).open("wb") as out,
            self._report(model).with_suffix(".errors").open("wb") as errors,
        ):
            env = {**os.environ, "POLARS_MAX_THREADS": "1"}
            line = self._command(model, self._models[model].since)
            process = subprocess.Popen(line, stdout=out, stderr=errors, stdin=subprocess.DEVNULL, env=env)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, 10)
        self._running = model, process

    def _report(self, model: str) -> Path:
        return self._folder / f"{model}.json"

    def _ended(self, model: str, code: int, now: int) -> None:
        one = self._models[model]
        one.at, one.why = now, None
        try:
            if code not in (0, 1):
                raise ValueError(f"it ended with {code}")
            (found,) = orjson.loads(self._report(model).read_bytes())
            one.since, one.checked = found["to"], one.checked + found["checked"]
            told = {ABSENT: found["absent"], LATER: found["later"]}
            told |= {name: sum(kinds.values()) for name, kinds in found["features"].items()}
            for name, n in told.items():
                one.mismatches[name] = one.mismatches.get(name, 0) + n
            one.audits += 1
        except (OSError, ValueError, KeyError) as error:
            said = self._report(model).with_suffix(".errors").read_text(errors="replace").strip()
            self._failed(model, now, said.splitlines()[-1] if said else str(error))

    def _failed(self, model: str, now: int, why: str) -> None:
        one = self._models[model]
        one.at, one.audits, one.failed, one.why = now, one.audits + 1, one.failed + 1, why

    def figures(self, model: str) -> dict[str, Any] | None:
        """What the audits of a model found so far, as JSON values; None when there are none.

        `every_seconds`; how many `audits` ended, `failed` of them, the last one for the reason `why`; questions
        `checked`; `mismatches` by feature, and of questions as a whole; `at`: seconds since 1970 when one last ended,
        or the first began to be waited for, None before.
        """
        if (one := self._models.get(model)) is None:
            return None
        told = {n: getattr(one, n) for n in ("audits", "failed", "checked", "why")}
        at = None if one.at is None else one.at / 1e6
        return {"every_seconds": one.every / 1e6, "at": at, **told, "mismatches": dict(one.mismatches)}

    def close(self) -> None:
        """Leave nothing running."""
        if self._running is not None:
            _, process = self._running
            process.kill()
            process.wait()
            self._running = None
