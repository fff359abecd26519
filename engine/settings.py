"""Settings: what may differ between a laptop, CI and production while the pipeline file stays the same.

They are read from `freshet.toml` beside the pipeline file; the command line overrides them. Paths in the file are
relative to its folder, paths on the command line to the working directory.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class SettingsError(ValueError):
    """A setting that cannot be used; the text says which, what was found and what was expected."""


class SourceSettings(msgspec.Struct, forbid_unknown_fields=True):
    """Where the changes of a source come from."""

    path: str | list[str]
    """A file, a list of files or a pattern with '*'; each file is one partition, in the order of their names."""
    format: Literal["rows", "changes", "debezium"] = "rows"
    """"rows": each line an insert. "changes": lines with an `op` or `weight`. "debezium": change envelopes."""
    strict_columns: bool = False
    """Whether a record with a column that the schema does not know is a dead letter."""


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """All settings of a run, with their defaults."""

    sources: dict[str, SourceSettings] = {}
    """By source name: where its changes come from."""
    refresh: dict[str, str] = {}
    """By the name of a view or model: its refresh policy, instead of the one it was declared with."""
    epoch: str = "2s"
    """How often the state is saved; after a crash at most this much work is done again."""
    batch_rows: int = 4000
    """The most rows in one batch; fewer when fewer are waiting."""
    shards: int = 1
    """Into how many parts keyed state is cut; fixed while state is kept."""
    workers: int = 1
    """Threads that run the dataflow."""
    port: int = 9310
    """Where `/metrics` is served on the loopback address; 0 for not at all."""


def load(
    folder: Path, overrides: Mapping[str, Any], binds: Sequence[str] = (), refreshes: Sequence[str] = ()
) -> Settings:
    """The settings in `folder`/freshet.toml, overridden by those given that are not None.

    binds: further sources as "name=path" or "name=path,format". refreshes: further policies as "name=policy". Raises
    `SettingsError`.
    """
    path = folder / "freshet.toml"
    try:
        given = tomllib.loads(path.read_text()) if path.exists() else {}
        settings = msgspec.convert(given, Settings)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {str(error)[:1].lower()}{str(error)[1:]}") from None
    for one in settings.sources.values():
        paths = [one.path] if isinstance(one.path, str) else one.path
        one.path = [str(folder / p) for p in paths]
    for name, value in overrides.items():
        if value is not None:
            setattr(settings, name, value)
    for bind in binds:
        name, equals, where = bind.partition("=")
        file, _, form = where.partition(",")
        if not equals or not name or not file:
            raise SettingsError(f"--bind is {bind!r}; expected name=path or name=path,format")
        if "://" in file:
            raise SettingsError(f"--bind {name}: {file!r} is not a file; only files can be bound in this version")
        form = form or (settings.sources[name].format if name in settings.sources else "rows")
        if form not in ("rows", "changes", "debezium"):
            raise SettingsError(f"--bind {name}: the format is {form!r}; expected 'rows', 'changes' or 'debezium'")
        settings.sources[name] = SourceSettings(path=file, format=form)  # type: ignore[arg-type]
    for given_refresh in refreshes:
        name, equals, policy = given_refresh.partition("=")
        if not equals or not name or not policy:
            raise SettingsError(
                f"--refresh is {given_refresh!r}; expected name=policy, such as \"features=deferred(every='1h')\""
            )
        settings.refresh[name] = policy
    for name, least in (("batch_rows", 1), ("shards", 1), ("workers", 1), ("port", 0)):
        if getattr(settings, name) < least:
            raise SettingsError(f"{name} is {getattr(settings, name)}; expected {least} or more")
    return settings
