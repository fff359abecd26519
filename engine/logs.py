"""What a long run says on standard error, one line for each event: as text, or as JSON for those who collect logs.

Only names, counts, times and reasons are said; never values of rows, settings or secrets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Literal, TextIO

import orjson

Form = Literal["text", "json", "none"]


class Log:
    """Writes events.

    form: "text", "json", or "none" for silence. clock: gives the present; microseconds since 1970.

    >>> Log("json", lambda: 0, sys.stdout).say("caught up", changes=7)
    {"time":"1970-01-01T00:00:00Z","level":"info","event":"caught up","changes":7}
    >>> Log("text", lambda: 0, sys.stdout).say("no answer", "warning", broker="kafka:9092")
    1970-01-01T00:00:00Z warning: no answer: broker=kafka:9092
    """

    def __init__(self, form: Form, clock: Callable[[], int], to: TextIO | None = None) -> None:
        self.form, self._clock, self._to = form, clock, to

    def say(self, event: str, level: Literal["info", "warning", "error"] = "info", **told: Any) -> None:
        """Write one event, and what is told of it."""
        if self.form == "none":
            return
        now = datetime.fromtimestamp(self._clock() // 1_000_000, timezone.utc).isoformat().replace("+00:00", "Z")
        if self.form == "json":
            line = orjson.dumps({"time": now, "level": level, "event": event, **told}, default=str).decode()
        else:
            more = " ".join(f"{name}={value}" for name, value in told.items())
            line = f"{now} {level + ': ' if level != 'info' else ''}{event}{': ' + more if more else ''}"
        print(line, file=self._to or sys.stderr, flush=True)


class Watch:
    """Tells a log what changed in a run since it last looked.

    >>> watch = Watch(Log("text", lambda: 0, sys.stdout))
    >>> watch.look({"live": False, "silent": 0.0, "dead": {"orders": 0}, "versions": {}})
    >>> watch.look({"live": True, "silent": 0.0, "dead": {"orders": 2}, "versions": {}})
    1970-01-01T00:00:00Z caught up with all there was
    1970-01-01T00:00:00Z warning: dead letters: source=orders more=2 total=2
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._before: dict[str, Any] | None = None

    def look(self, now: dict[str, Any]) -> None:
        """Take in how a run stands.

        live: whether it has caught up. silent: for how many seconds no broker answered. dead: dead letters by source.
        versions: for each model with versions the serving one, and how many were published, refused and failed.
        """
        before, self._before = self._before, now
        if before is None:
            return
        if now["live"] and not before["live"]:
            self._log.say("caught up with all there was")
        if now["silent"] >= SILENT > before["silent"]:
            self._log.say("no broker answers: waiting", "warning")
        if now["silent"] < SILENT <= before["silent"]:
            self._log.say("a broker answers again")
        for source, total in now["dead"].items():
            if more := total - before["dead"].get(source, 0):
                self._log.say("dead letters", "warning", source=source, more=more, total=total)
        for model, told in now["versions"].items():
            if told != before["versions"].get(model):
                self._log.say("versions", model=model, **told)


SILENT = 5.0
"""Seconds without an answer after which a run is degraded."""
