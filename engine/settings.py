"""Settings: what may differ between a laptop, CI and production while the pipeline file stays the same.

They are read from `freshet.toml` beside the pipeline file; the command line overrides them. Paths in the file are
relative to its folder, paths on the command line to the working directory.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_type_hints

import msgspec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


Format = Literal["rows", "changes", "debezium"]
_KAFKA = "kafka://"
TOKEN = "FRESHET_TOKEN"
"""The environment variable with the token that readers of `/metrics` must bring: no setting, for it is a secret."""
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")


class SettingsError(ValueError):
    """A setting that cannot be used; the text says which, what was found and what was expected."""


class SourceSettings(msgspec.Struct, forbid_unknown_fields=True):
    """Where the changes of a source come from: files, or topics of Kafka."""

    path: str | list[str] | None = None
    """A file, a list of files or a pattern with '*'; each file is one partition, in the order of their names."""
    topic: str | list[str] | None = None
    """A topic or a list of topics; a name that begins with '^' is a regular expression of topics."""
    start: str | dict[str, int] = "earliest"
    """Where a topic is begun: "earliest", "latest", a time such as "2024-01-01T00:00:00Z", or offsets by partition."""
    encoding: Literal["json", "avro"] = "json"
    """How the records of a topic are written; the schemas of Avro are in the `registry`."""
    format: Format = "rows"
    """"rows": each line an insert. "changes": lines with an `op` or `weight`. "debezium": change envelopes."""
    strict_columns: bool = False
    """Whether a record with a column that the schema does not know is a dead letter."""

    @property
    def topics(self) -> list[str]:
        """The topics and expressions that are given."""
        return [self.topic] if isinstance(self.topic, str) else list(self.topic or [])

    @property
    def place(self) -> str:
        """In few words: "orders,returns" are topics, "2 files" are files."""
        return ",".join(self.topics) or f"{len(self.paths)} file{'s' if len(self.paths) != 1 else ''}"

    @property
    def paths(self) -> list[str]:
        """The files and patterns that are given."""
        return [self.path] if isinstance(self.path, str) else list(self.path or [])


class SinkSettings(msgspec.Struct, forbid_unknown_fields=True):
    """Where an output goes that is not a file."""

    topic: str
    """A topic of Kafka."""


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """All settings of a run, with their defaults."""

    sources: dict[str, SourceSettings] = {}
    """By source name: where its changes come from."""
    sinks: dict[str, SinkSettings] = {}
    """By sink name (or `late`, `dead_letters`): where it goes, when not to a file."""
    kafka: dict[str, Any] = {}
    """Settings of the clients of Kafka, by the names of kafka-python; in the environment FRESHET_KAFKA_NAME."""
    registry: str = ""
    """The address of the schema registry, for records in Avro."""
    transactions: str = ""
    """A topic of progress records; if given, what goes to topics becomes visible as each epoch's one transaction."""
    refresh: dict[str, str] = {}
    """By the name of a view or model: its refresh policy, instead of the one it was declared with."""
    epoch: str = "2s"
    """How often the state is saved; after a crash at most this much work is done again."""
    batch_rows: int = 4000
    """The most rows in one batch; fewer when fewer are waiting."""
    shards: int = 1
    """Into how many parts keyed state is cut; fixed while state is kept."""
    workers: int = 1
    """Threads that run the dataflow, in each process."""
    processes: int = 1
    """Processes that run the dataflow."""
    port: int = 9310
    """The port of `/metrics`; 0 for not at all."""
    host: str = "127.0.0.1"
    """The address on which `/metrics` is served; any but a loopback one needs a token (see `token_for`)."""


def load(
    folder: Path,
    overrides: Mapping[str, Any],
    binds: Sequence[str] = (),
    refreshes: Sequence[str] = (),
    sinks: Sequence[str] = (),
) -> Settings:
    """The settings in `folder`/freshet.toml, overridden by those given that are not None.

    binds: further sources as "name=path" or "name=path,format"; a path can be kafka://HOST:PORT/TOPIC. refreshes:
    further policies as "name=policy". sinks: further sinks as "name=kafka://HOST:PORT/TOPIC". Raises `SettingsError`.
    """
    path = folder / "freshet.toml"
    try:
        given = tomllib.loads(path.read_text()) if path.exists() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    if isinstance(given.get("sources"), dict):
        for name, one in given["sources"].items():
            _converted(one, SourceSettings, f"{path}: sources.{name}")
    settings = _converted(given, Settings, str(path))
    for name, one in settings.sources.items():
        if (one.path is None) == (one.topic is None):
            raise SettingsError(f"{path}: sources.{name} has {_both(one)}; expected either path or topic")
        _check_start(f"{path}: sources.{name}", one.start)
        if one.encoding == "avro" and not (one.topic and settings.registry):
            raise SettingsError(
                f'{path}: sources.{name} is in Avro; expected a topic, and at the top registry = "http://HOST:PORT"'
            )
        one.path = [str(folder / p) for p in one.paths] or None
    for name, value in overrides.items():
        if value is not None:
            setattr(settings, name, value)
    for bind in binds:
        name, equals, where = bind.partition("=")
        place, form = _split(where)
        if not equals or not name or not place:
            raise SettingsError(
                f"--bind is {bind!r}; expected name=path or name=kafka://HOST:PORT/TOPIC, or with ,format"
            )
        before = settings.sources.get(name)
        form = form or (before.format if before is not None else "rows")
        if form not in get_args(Format):
            raise SettingsError(f"--bind {name}: the format is {form!r}; expected 'rows', 'changes' or 'debezium'")
        settings.sources[name] = SourceSettings(format=cast(Format, form), **_place(settings, place, f"--bind {name}"))
    for sink in sinks:
        name, equals, where = sink.partition("=")
        if not equals or not name or not where.startswith(_KAFKA):
            raise SettingsError(f"--sink is {sink!r}; expected name=kafka://HOST:PORT/TOPIC")
        settings.sinks[name] = SinkSettings(**_place(settings, where, f"--sink {name}"))
    for given_refresh in refreshes:
        name, equals, policy = given_refresh.partition("=")
        if not equals or not name or not policy:
            raise SettingsError(
                f"--refresh is {given_refresh!r}; expected name=policy, such as \"features=deferred(every='1h')\""
            )
        settings.refresh[name] = policy
    for name, least in (("batch_rows", 1), ("shards", 1), ("workers", 1), ("processes", 1), ("port", 0)):
        if getattr(settings, name) < least:
            raise SettingsError(f"{name} is {getattr(settings, name)}; expected {least} or more")
    return settings


def is_loopback(host: str) -> bool:
    """Whether an address is reached from its own machine only.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_for(settings: Settings) -> str:
    """The token that the environment gives for `/metrics`; empty for none, which will do on the loopback address.

    Raises `SettingsError`, which never shows the token.
    """
    token = os.environ.get(TOKEN, "")
    if token and not _TOKEN.fullmatch(token):
        raise SettingsError(
            f"the token in {TOKEN} cannot be used; expected 16 to 512 letters, digits and . _ ~ + / = -, "
            "such as openssl rand -hex 32 gives"
        )
    if settings.port and not token and not is_loopback(settings.host):
        raise SettingsError(
            f"host is {settings.host!r}, where others can read /metrics, and there is no token; set {TOKEN} "
            "(openssl rand -hex 32 gives one), or host to '127.0.0.1', or port to 0"
        )
    return token


def instant(text: str) -> datetime:
    """A time such as "2024-01-01T00:00:00Z"; UTC unless it says. Raises `ValueError`."""
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return found.replace(tzinfo=found.tzinfo or timezone.utc).astimezone(timezone.utc)


def _check_start(what: str, start: str | dict[str, int]) -> None:
    if isinstance(start, str) and start not in ("earliest", "latest"):
        try:
            instant(start)
        except ValueError:
            raise SettingsError(
                f"{what}: start is {start!r}; expected 'earliest', 'latest', a time such as '2024-01-01T00:00:00Z', or "
                "an offset for each partition, such as { 0 = 120, 1 = 7 }"
            ) from None


def _both(one: SourceSettings) -> str:
    return "neither path nor topic" if one.path is None else "both path and topic"


def _split(where: str) -> tuple[str, str]:
    """A place and a format; commas are also between the brokers and topics of a place."""
    place, comma, form = where.rpartition(",")
    if not comma or (place.startswith(_KAFKA) and form not in get_args(Format)):
        return where, ""
    return place, form


def _place(settings: Settings, place: str, what: str) -> dict[str, Any]:
    """The settings that a place on the command line stands for."""
    if "://" not in place:
        return {"path": place}
    brokers, _, topic = place.removeprefix(_KAFKA).partition("/")
    if not place.startswith(_KAFKA) or not topic:
        raise SettingsError(f"{what}: {place!r} is no place; expected a path or kafka://HOST:PORT/TOPIC")
    if brokers:
        other = settings.kafka.get("bootstrap_servers", brokers)
        if other != brokers and other != brokers.split(","):
            raise SettingsError(f"{what}: the broker is {brokers!r}, but others are at {other!r}; expected one cluster")
        settings.kafka["bootstrap_servers"] = brokers
    return {"topic": topic.split(",") if what.startswith("--bind") else topic}


_Kind = TypeVar("_Kind", SourceSettings, Settings)


def _converted(given: object, kind: type[_Kind], what: str) -> _Kind:
    """What was given as settings of a kind. Raises `SettingsError` with what could have been given instead."""
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        said, more = str(error), ""
        if said.startswith("Object contains unknown field") and " - at " not in said:
            more = f"; expected one of {', '.join(kind.__struct_fields__)}"
        for name, hint in get_type_hints(kind).items():
            if said.startswith("Invalid enum value") and said.endswith(f"`$.{name}`"):
                more = f"; expected one of {', '.join(map(repr, get_args(hint)))}"
        raise SettingsError(f"{what}: {said[:1].lower()}{said[1:]}{more}") from None
