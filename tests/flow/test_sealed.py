"""State that was damaged, moved or planted is refused by name and cure: nothing of it runs or starts empty."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from engine.cli import app
from engine.recovery import KEY, KEY_FILE
from tests.flow.running import freshet

PIPELINE = """
import polars as pl
from river import linear_model
import operators as op
from engine import Pipeline, deferred

p = Pipeline("orders")
orders = p.source("orders", key="id", at="at", schema={"id": int, "at": pl.Datetime, "shop": str, "price": float})
paid = p.source("paid", key="id", at="at", schema={"id": int, "at": pl.Datetime, "cost": float})
seen = p.view("seen", orders, op.window(by="shop", size="10m", n=op.count()), op.project("id", "price", "n"))
costs = p.view("costs", paid, op.project("id", "cost"))
cost = p.model("cost", seen, answers=costs, label="cost", key="id", features=["price", "n"],
    learner=linear_model.LinearRegression(), refresh=deferred(rows=8), wait="1h")
p.sink("seen", seen)
p.sink("cost", cost.predictions)
"""

SETTINGS = 'port = 0\n[sources.orders]\npath = "orders.jsonl"\n[sources.paid]\npath = "paid.jsonl"\n'


def write(folder: Path, first: int, last: int) -> None:
    """Orders, each paid a second later."""
    for name, what, later in (("orders", '"shop": "a", "price": 1.5', 0), ("paid", '"cost": 2.5', 1)):
        with (folder / f"{name}.jsonl").open("a") as file:
            for i in range(first, last):
                file.write(f'{{"id": {i}, "at": "2024-01-01T00:{i:02d}:0{later}Z", {what}}}\n')


@dataclass
class Kept:
    """A project whose run was saved twice. others: rows that bytewax kept of the first time, and another state."""

    folder: Path
    others: dict[str, bytes]

    @property
    def state(self) -> Path:
        return self.folder / "state/orders"

    def outputs(self) -> dict[str, bytes]:
        return {f.name: f.read_bytes() for f in sorted((self.folder / "out/orders").glob("*.jsonl"))}

    def store(self) -> sqlite3.Connection:
        return sqlite3.connect(self.state / "recovery/part-0.sqlite3", isolation_level=None)

    def rows(self) -> dict[str, bytes]:
        return dict(self.store().execute("SELECT step_id, ser_change FROM snaps ORDER BY snap_epoch").fetchall())

    def put(self, step: str, value: bytes) -> None:
        done = self.store().execute("UPDATE snaps SET ser_change = ? WHERE step_id = ?", (value, step))
        assert done.rowcount

    def large(self, step: str) -> Path:
        """The newest file of a step."""
        found = (self.state / "large").glob(f"{step}.*.state")
        return max(found, key=lambda f: int(f.name.split(".")[-2]))

    def version(self) -> Path:
        """The folder of the version that serves."""
        return self._served()[-1]

    def version_before(self) -> Path:
        """The folder of the version that served before."""
        return self._served()[-2]

    def _served(self) -> list[Path]:
        told = (self.state / "models/cost/served.jsonl").read_text().splitlines()
        return [self.state / "models/cost" / json.loads(line)["value"]["version"] for line in told]


def command(*args: object) -> tuple[int, str, str]:
    """The command in this process: its exit code, and what it said on both streams."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        done = CliRunner().invoke(app, list(map(str, args)), env={"COLUMNS": "2000"}, catch_exceptions=False)
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Kept, Path]:
    base = tmp_path_factory.mktemp("sealed")
    folder, backup = base / "orders", base / "backup"
    folder.mkdir()
    (folder / "pipeline.py").write_text(PIPELINE)
    (folder / "freshet.toml").write_text(SETTINGS)
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        m.setattr("engine.large.SMALL", 0)  # every state in a file of its own
        write(folder, 0, 20)
        assert command("run", folder, "--quiet")[0] == 0
        there = Kept(folder, {})
        there.others.update(there.rows())
        assert command("run", folder, "--quiet", "--state", "other", "--out", "other-out")[0] == 0
        write(folder, 20, 40)
        assert command("run", folder, "--quiet")[0] == 0
    write(folder, 40, 41)
    shutil.copytree(folder, backup)
    return there, backup


@pytest.fixture
def there(made: tuple[Kept, Path], monkeypatch: pytest.MonkeyPatch) -> Kept:
    """The project as it was, with an order that waits to be read."""
    kept, backup = made
    shutil.rmtree(kept.folder)
    shutil.copytree(backup, kept.folder)
    monkeypatch.chdir(kept.folder)
    return kept


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def bomb() -> bytes:
    return pickle.dumps(Bomb(Path("exploded").absolute()))


def flip(path: Path, at: float = 0.5) -> None:
    whole = bytearray(path.read_bytes())
    whole[int(len(whole) * at)] ^= 1
    path.write_bytes(whole)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_row(there: Kept) -> None:
    value = bytearray(there.rows()["orders.model-cost"])
    value[len(value) // 2] ^= 1
    there.put("orders.model-cost", bytes(value))


def move_row(there: Kept) -> None:
    there.put("orders.publish", there.rows()["orders.model-cost"])


def drop_row(there: Kept) -> None:
    there.store().execute("DELETE FROM snaps WHERE step_id = 'orders.publish'")


def drop_shard(there: Kept) -> None:
    there.store().execute("DELETE FROM snaps WHERE step_id LIKE 'orders.stage-%-shard'")


def drop_source(there: Kept) -> None:
    there.store().execute("DELETE FROM snaps WHERE step_id = 'orders.read'")


def discard_row(there: Kept) -> None:
    there.store().execute("UPDATE snaps SET ser_change = NULL WHERE step_id = 'orders.publish'")


def older_row(there: Kept) -> None:
    there.put("orders.publish", there.others["orders.publish"])


def another_store(there: Kept) -> None:
    shutil.rmtree(there.state / "recovery")
    shutil.copytree("other/recovery", there.state / "recovery")


def empty_store(there: Kept) -> None:
    for table in ("snaps", "fronts", "exs", "commits"):
        there.store().execute(f"DELETE FROM {table}")


def lost_fronts(there: Kept) -> None:
    there.store().execute("DELETE FROM fronts")
    there.store().execute("DELETE FROM exs WHERE ex_num > 0")


def bomb_in_row(there: Kept) -> None:
    there.put("orders.publish", bomb())


def bomb_behind_row(there: Kept) -> None:
    """A pickle of two things: the bytes that it should be, and a bomb before them."""
    sealed = pickle.loads(there.rows()["orders.publish"])
    there.put("orders.publish", pickle.dumps([Bomb(Path("exploded").absolute()), sealed]))


def view_of_rows(there: Kept) -> None:
    there.store().execute("ALTER TABLE snaps RENAME TO hidden")
    there.store().execute("CREATE VIEW snaps AS SELECT * FROM hidden")


def trigger(there: Kept) -> None:
    there.store().execute("CREATE TRIGGER t AFTER INSERT ON exs BEGIN DELETE FROM snaps; END")


def bomb_in_large(there: Kept) -> None:
    path, value = there.large("model-cost.all"), bomb()
    path.write_bytes(b"freshet state 3\n" + np.array([1, len(value)], np.int64).tobytes() + value)


def older_large(there: Kept) -> None:
    path = there.large("model-cost.all")
    number = int(path.name.split(".")[-2])
    path.write_bytes(path.with_name(f"model-cost.all.{number - 1}.state").read_bytes())


def bomb_in_learner(there: Kept) -> None:
    (there.version() / "learner").write_bytes(bomb())


def another_learner(there: Kept) -> None:
    (there.version() / "learner").write_bytes((there.version_before() / "learner").read_bytes())


def drop_line(there: Kept) -> None:
    path = there.state / "models/cost/served.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def no_definition(there: Kept) -> None:
    (there.state / "definition.json").unlink()
    shutil.rmtree(there.state / "recovery")


def edit(there: Kept, old: str, new: str) -> None:
    path = there.state / "definition.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def another_key(there: Kept) -> None:
    shutil.copy("other/key", there.state / "key")


BACKUP = "restore it from a backup, or start again without state and outputs"
OTHER = "let another serve with freshet rollback"

DAMAGE: list[tuple[Callable[[Kept], object], str, str, str]] = [
    (flip_row, "the saved state of 'model-cost.all'", "its seal is broken", BACKUP),
    (move_row, "the saved state of 'publish.all'", "is not in its place", BACKUP),
    (drop_row, "the saved state of 'publish.all'", "is missing", BACKUP),
    (drop_shard, "-shard.0'", "is missing", BACKUP),
    (drop_source, "the saved state of 'read.all'", "is missing", BACKUP),
    (discard_row, "the saved state of 'publish.all'", "is damaged", BACKUP),
    (older_row, "the saved state of 'publish.all'", "is of another moment than that of 'read.all'", BACKUP),
    (another_store, "the saved state of '", "was sealed with another key", BACKUP),
    (empty_store, "recovery'", "is empty, but state was saved", BACKUP),
    (lost_fronts, "recovery'", "is empty, but state was saved", BACKUP),
    (bomb_in_row, "the saved state of 'publish.all'", "it has no seal", BACKUP),
    (bomb_behind_row, "the saved state of 'publish.all'", "it has no seal", BACKUP),
    (view_of_rows, "recovery'", "has tables that are not bytewax's", BACKUP),
    (trigger, "recovery'", "has tables that are not bytewax's", BACKUP),
    (lambda t: flip(t.large("model-cost.all")), "model-cost.all.", "its seal is broken", "from a backup"),
    (lambda t: shorten(t.large("read.all")), "read.all.", "it ends early", "from a backup"),
    (lambda t: t.large("publish.all").unlink(), "publish.all.", "is missing", "from a backup"),
    (bomb_in_large, "model-cost.all.", "its seal is broken", "from a backup"),
    (older_large, "model-cost.all.", "its seal is broken", "from a backup"),
    (lambda t: flip(t.version() / "learner"), "the version ", "its seal is broken", OTHER),
    (lambda t: shorten(t.version() / "learner"), "the version ", "its seal is broken", OTHER),
    (lambda t: (t.version() / "learner").unlink(), "the version ", "No such file", OTHER),
    (lambda t: flip(t.version_before() / "learner"), "the version ", "its seal is broken", OTHER),
    (bomb_in_learner, "the version ", "it has no seal", OTHER),
    (another_learner, "the version ", "is not in its place", OTHER),
    (lambda t: flip(t.version() / "about.json"), "the version ", "is damaged", OTHER),
    (lambda t: flip(t.state / "models/cost/served.jsonl", 0.2), "served.jsonl", "is damaged", BACKUP),
    (drop_line, "served.jsonl", "its seal is broken", BACKUP),
    (no_definition, "definition.json", "cannot be told what it belongs to", "restore that file"),
    (lambda t: edit(t, '"id": "', '"id": "0'), "definition.json", "is damaged", "restore it"),
    (lambda t: edit(t, '"pipeline": "orders"', '"pipeline": "x"'), "orders'", "made with pipeline 'x'", "--state"),
    (lambda t: edit(t, '"format": 6', '"format": 5'), "orders'", "was made with format 5", "choose another --state"),
    (another_key, "orders'", "was made with another key than that in 'state/orders/key'", f"set {KEY}"),
    (lambda t: (t.state / "key").unlink(), "state/orders/key", "is missing", "restore the file from a backup, or set"),
    (lambda t: (t.state / "key").write_bytes(b""), "state/orders/key", "is empty", "restore it from a backup"),
]


@pytest.mark.parametrize(("damage", "named", "wrong", "cure"), DAMAGE)
def test_it_is_refused(damage: Callable[[Kept], object], named: str, wrong: str, cure: str, there: Kept) -> None:
    before = there.outputs()
    damage(there)
    code, _, said = command("run", there.folder, "--quiet")
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 3, said
    assert len(lines) == 1
    for part in (named, wrong, cure):
        assert part in lines[0]
    assert not Path("exploded").exists()
    assert there.outputs() == before


def test_what_is_refused_is_left_as_it_was(there: Kept) -> None:
    before = there.rows()
    lost_fronts(there)
    assert command("run", there.folder, "--quiet")[0] == 3
    assert there.rows() == before


def test_what_is_whole_goes_on(there: Kept) -> None:
    before = there.outputs()["cost.jsonl"]
    assert command("run", there.folder, "--quiet")[0] == 0
    after = there.outputs()["cost.jsonl"]
    assert after.startswith(before)
    last = json.loads(after.splitlines()[-1])
    assert (last["id"], last["model_version"]) == (40, there.version().name)


def test_a_draft_is_removed_and_does_not_run(there: Kept) -> None:
    for name, file in (("x.9.new", "learner"), ("y.9", "learner")):
        (there.state / "models/cost" / name).mkdir()
        (there.state / "models/cost" / name / file).write_bytes(bomb())
    assert command("run", there.folder, "--quiet")[0] == 0
    assert not Path("exploded").exists()
    assert not (there.state / "models/cost/x.9.new").exists()


def test_a_bomb_is_refused_by_the_real_command(there: Kept) -> None:
    bomb_in_row(there)
    done = freshet("run", there.folder, cwd=there.folder)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert not Path("exploded").exists()


@pytest.mark.parametrize("name", ["models", "rollback"])
@pytest.mark.parametrize("damage", ["about", "key", "served"])
def test_versions_that_were_changed_are_neither_listed_nor_gone_back_to(name: str, damage: str, there: Kept) -> None:
    if damage == "about":
        path = there.version() / "about.json"
        path.write_text(path.read_text().replace('"verdict":"published"', '"verdict":"refused"'))
    elif damage == "key":
        (there.state / "key").unlink()
    else:
        flip(there.state / "models/cost/served.jsonl", 0.3)
    code, _, said = command(name, there.folder, *(["cost"] if name == "rollback" else []))
    assert code == 3
    assert ("state/orders/key" if damage == "key" else str(Path("models/cost"))) in said


def test_another_version_serves_instead_of_one_that_is_damaged(there: Kept) -> None:
    damaged = there.version()
    flip(damaged / "learner")
    assert command("run", there.folder, "--quiet")[0] == 3
    assert command("rollback", there.folder, "cost")[0] == 0
    assert command("run", there.folder, "--quiet")[0] == 0
    assert there.version() != damaged


def test_keys_that_the_environment_gives(there: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(*args: object) -> tuple[int, str]:
        code, _, said = command("run", there.folder, "--quiet", *args)
        return code, said

    mine = ("--state", "mine", "--out", "mine-out")
    monkeypatch.setenv(KEY, "a long text")
    code, said = run()
    assert code == 3
    assert f"was made with another key than that in {KEY}; set" in said
    assert "leave both unset if that is in 'state/orders/key'" in said
    assert run(*mine)[0] == run(*mine)[0] == 0
    assert not Path("mine/key").exists()
    monkeypatch.setenv(KEY, "another text")
    code, said = run(*mine)
    assert code == 3
    assert "another text" not in said
    monkeypatch.delenv(KEY)
    code, said = run(*mine)
    assert code == 3
    assert f"neither {KEY} nor {KEY_FILE} is set" in said
    (tmp_path / "key").write_text("a long text\n")
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "key"))
    assert run(*mine)[0] == 0
    monkeypatch.setenv(KEY, "a long text")
    assert "both FRESHET_STATE_KEY and FRESHET_STATE_KEY_FILE are set" in run(*mine)[1]
    monkeypatch.delenv(KEY)
    (tmp_path / "key").write_text("\n")
    assert f"{KEY_FILE} gives an empty key" in run(*mine)[1]
    (tmp_path / "key").unlink()
    assert "which cannot be read (No such file or directory)" in run(*mine)[1]


def test_a_store_of_another_state_under_the_same_key(there: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "a long text")
    for name in ("one", "two"):
        assert command("run", there.folder, "--quiet", "--state", name, "--out", f"{name}-out")[0] == 0
    shutil.rmtree("two/recovery")
    shutil.copytree("one/recovery", "two/recovery")
    code, _, said = command("run", there.folder, "--quiet", "--state", "two", "--out", "two-out")
    assert code == 3
    assert "is not in its place: it is " in said


def test_the_key_is_for_its_owner_only_and_nowhere_else(there: Kept) -> None:
    file = there.state / "key"
    assert file.stat().st_mode & 0o777 == 0o600
    key = file.read_bytes().strip()
    assert len(key) == 64
    others = [p for p in there.folder.rglob("*") if p.is_file() and p.name != "key"]
    assert not [p for p in others if key in p.read_bytes() or bytes.fromhex(key.decode()) in p.read_bytes()]
    assert not (there.state / "key.new").exists()
