"""Settings: defaults, the file, the command line, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.settings import Settings, SettingsError, load


def test_defaults_without_a_file(tmp_path: Path) -> None:
    assert load(tmp_path, {}) == Settings()


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    (tmp_path / "freshet.toml").write_text(
        'shards = 3\nepoch = "1s"\n[sources.a]\npath = "a.jsonl"\nformat = "debezium"\n'
    )
    got = load(tmp_path, {"epoch": "5s", "workers": None}, ["a=b.jsonl", "c=c.jsonl,changes"])
    assert (got.shards, got.epoch, got.workers) == (3, "5s", 1)
    assert (got.sources["a"].path, got.sources["a"].format) == ("b.jsonl", "debezium")
    assert (got.sources["c"].path, got.sources["c"].format) == ("c.jsonl", "changes")


def test_policies_are_read_from_the_table_and_overridden(tmp_path: Path) -> None:
    (tmp_path / "freshet.toml").write_text('[refresh]\na = "deferred(rows=1)"\nb = "immediate()"\n')
    got = load(tmp_path, {}, refreshes=["a=deferred(every='1h', mode='auto')", "c=deferred(rows=3)"])
    assert got.refresh == {"a": "deferred(every='1h', mode='auto')", "b": "immediate()", "c": "deferred(rows=3)"}
    for wrong in ("a", "=immediate()", "a="):
        with pytest.raises(SettingsError, match='expected name=policy, such as "features=deferred'):
            load(tmp_path, {}, refreshes=[wrong])


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "freshet.toml").write_text('[sources.a]\npath = ["x/*.jsonl", "y.jsonl"]\n')
    assert load(tmp_path, {}).sources["a"].path == [str(tmp_path / "x/*.jsonl"), str(tmp_path / "y.jsonl")]


@pytest.mark.parametrize(
    ("text", "binds", "said"),
    [
        ("shards = ", [], "is not valid TOML"),
        ("shard = 2", [], "unknown field `shard`; expected one of sources, sinks, kafka, registry, "),
        (
            '[sources.a]\npath = "a"\nformatt = "rows"',
            [],
            "sources.a: object contains unknown field `formatt`; expected one of path",
        ),
        ('shards = "two"', [], "expected `int`, got `str` - at `$.shards`"),
        (
            '[sources.a]\npath = "a"\nformat = "csv"',
            [],
            "sources.a: invalid enum value 'csv' - at `$.format`; expected one of 'rows', 'changes', 'debezium'",
        ),
        ("shards = 0", [], "shards is 0; expected 1 or more"),
        ("", ["a"], "--bind is 'a'; expected name=path"),
        ("", ["a=b,csv"], "the format is 'csv'; expected 'rows', 'changes' or 'debezium'"),
        ("", ["a=http://x/y"], "'http://x/y' is no place; expected a path or kafka://HOST:PORT/TOPIC"),
        ("", ["a=kafka://x"], "'kafka://x' is no place; expected a path or kafka://HOST:PORT/TOPIC"),
        ("", ["a=kafka://x/y", "b=kafka://z/y"], "the broker is 'z', but others are at 'x'; expected one cluster"),
        ('[sources.a]\nformat = "rows"', [], "sources.a has neither path nor topic; expected either path or topic"),
        ('[sources.a]\ntopic = "t"\nstart = "noon"', [], "start is 'noon'; expected 'earliest', 'latest', a time"),
        ('[sources.a]\ntopic = "t"\nencoding = "avro"', [], "sources.a is in Avro; expected a topic, and at the top"),
    ],
)
def test_mistakes(text: str, binds: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "freshet.toml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, {}, binds)
    assert said in str(caught.value)
