"""The docs are true: the README's example runs, and every operator, setting, metric and command is in it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

import operators
from engine.cli import app
from engine.metrics import reference
from engine.settings import Settings, SourceSettings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_runs_and_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    exec("\n".join(blocks("python")), {})
    assert capsys.readouterr().out == blocks("text")[0]


@pytest.mark.parametrize("name", sorted(set(operators.__all__) - {"catalogue"}))
def test_every_operator_is_documented(name: str) -> None:
    assert re.search(rf"`{name}[(`]", README), f"{name} is not in the README"


@pytest.mark.parametrize("name", [f.name for f in msgspec.structs.fields(Settings)])
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    if name == "sources":
        assert all(f"`sources.NAME.{f.name}`" in README for f in msgspec.structs.fields(SourceSettings))
        return
    default = getattr(Settings(), name)
    shown = f'`"{default}"`' if isinstance(default, str) else f"`{default}`"
    assert re.search(rf"\| `{name}` \| {re.escape(shown)} \|", README), f"{name} with {shown} is not in the README"


def test_the_reference_of_metrics_is_made_from_the_code() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == reference() + "\n", (
        "it is not current; run: python -m engine.metrics > docs/metrics.md"
    )
    assert "(docs/metrics.md)" in README


@pytest.mark.parametrize("name", [c.name or c.callback.__name__ for c in app.registered_commands if c.callback])
def test_every_command_is_documented(name: str) -> None:
    assert f"freshet {name}" in README


def test_architecture_names_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`((?:engine|operators|tests)/[a-z_/]+(?:\.py)?)`", text)
    assert named
    assert [n for n in named if not (ROOT / n).exists()] == []


def test_help_has_an_example() -> None:
    assert all(c.epilog and "freshet" in c.epilog for c in app.registered_commands)
