"""The versions of a deferred model: what each was fitted on and why, what it was worth, and which one serves.

<folder>/<version>/about.json, learner        one folder a version, whole or not there
<folder>/served.jsonl                         when which version began to serve: written before it does
<folder>/wanted                               the version that a user asks for (`freshet rollback`)

All but the last are sealed. A learner is a pickle, and is unpickled only after its seal was opened.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import polars as pl

from engine.large import make_durable
from engine.log import SEQ, WEIGHT, as_of
from engine.seal import Seal, SealError
from operators.delta import AT, INT, POS


class VersionError(RuntimeError):
    """A version that is not there; the text says which are."""


def place(model: str, version: str) -> str:
    """The name under which the learner of a version is sealed."""
    return f"models/{model}/{version}"


class Version(msgspec.Struct, kw_only=True):
    """What is known of a version. Times are microseconds UTC.

    definition: fingerprint of the model. parent: the version that served when it was fitted. reason, numbers: why it
    was due. mode: how it was fitted, `told`: why so. seq: it saw the changes of the training set up to this one;
    known: when that became known; checksum: of these changes. examples: how many it knows, asked from `first` to
    `last`, fitted: on how many of them it was fitted now; newest: when the newest of them became known. verdict: what
    became of it, `why`: and why. checks: what it was judged by. seconds: what the fit took. alone: whether it must be
    asked row by row. forgotten: how many examples it saw that were erased since.
    """

    name: str
    model: str
    definition: str
    parent: str | None
    reason: str
    numbers: dict[str, Any]
    mode: Literal["full", "incremental"]
    told: str
    seq: int
    known: int
    checksum: int
    examples: int = 0
    fitted: int = 0
    first: int | None = None
    last: int | None = None
    newest: int | None = None
    verdict: Literal["published", "refused", "failed", "removed"] = "published"
    why: str = ""
    checks: dict[str, Any] = {}
    seconds: float = 0.0
    alone: bool = False
    forgotten: int = 0


class Served(msgspec.Struct):
    """A version began to serve. live: at a moment that the present decided, which a run that goes back must keep to."""

    version: str
    seq: int
    known: int
    live: bool
    why: str


class Versions:
    """The versions of one model, in a folder under a seal or, for a replay, in memory.

    Raises `SealError`, as what reads the folder does, when something in it is missing, damaged or was changed.
    """

    def __init__(self, folder: Path | None = None, seal: Seal | None = None) -> None:
        self.folder = folder
        self._seal = seal
        self._models: dict[str, tuple[Version, Any]] = {}
        self._served: list[Served] = []
        self._torn = 0
        self._last = b""
        if folder is not None and (log := folder / "served.jsonl").exists():
            *lines, torn = log.read_bytes().split(b"\n")  # what a torn line told of did not happen
            self._torn = len(torn)
            for line in lines:
                told = self._sealed.hear(line, self._after(), repr(str(log)))
                self._served.append(msgspec.json.decode(told, type=Served))
                self._last = line

    @property
    def _sealed(self) -> Seal:
        assert self._seal is not None, "what is in a folder is under a seal"
        return self._seal

    def _after(self) -> str:
        """The name of the next line of those that served: none can be left out."""
        assert self.folder is not None
        return f"models/{self.folder.name}/served after {self._last.decode()}"

    def claim(self) -> Versions:
        """Make ready to keep versions: remove what a crash left half written. Only one process may."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in self.folder.glob("*.new"):
                shutil.rmtree(left)
            if self._torn:
                log = self.folder / "served.jsonl"
                os.truncate(log, log.stat().st_size - self._torn)
        return self

    def __contains__(self, name: str) -> bool:
        return name in self._models or (self.folder is not None and (self.folder / name / "about.json").exists())

    def about(self, name: str) -> Version:
        """What is known of a version. Raises `VersionError` or `SealError`."""
        return self._load(name)[0] if self.folder is None else self._about(name)

    def model(self, name: str) -> Any:
        """The fitted learner of a version. Raises `VersionError` or `SealError`."""
        return self._load(name)[1]

    def check(self, name: str) -> None:
        """Raises `SealError` when the learner of a version is not there as it was saved."""
        if self.folder is not None:
            self._pickled(name)

    def opens(self, name: str) -> bool:
        """Whether the learner of a version is there as it was saved."""
        try:
            self.check(name)
            return True
        except SealError:
            return False

    def all(self) -> list[Version]:
        """All versions, in the order in which they were fitted."""
        if self.folder is None:
            return sorted((v for v, _ in self._models.values()), key=lambda v: v.seq)
        names = (p.parent.name for p in self.folder.glob("*/about.json") if p.parent.suffix != ".new")
        return sorted(map(self._about, names), key=lambda v: v.seq)

    def save(self, version: Version, model: Any) -> None:
        """Keep a version. model: the learner, or in a folder its sealed pickle; None when there is none."""
        if self.folder is None:
            self._models[version.name] = version, model
            return
        there = self.folder / version.name
        draft = self.folder / f"{version.name}.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        for name, data in (("about.json", self._told(version)), ("learner", model or b"")):
            (draft / name).write_bytes(data)
            make_durable(draft / name)
        shutil.rmtree(there, ignore_errors=True)
        draft.rename(there)
        make_durable(self.folder)
        self._models.pop(version.name, None)

    def forgot(self, name: str, examples: int, remove: bool) -> None:
        """Note how many examples that a version saw were erased until now. remove: its learner, for good."""
        assert self.folder is not None
        about = self._about(name)
        about.forgotten = examples
        model = self.folder / name / "learner"
        if remove:
            about.verdict = "removed"
            about.why = f"it had seen {about.forgotten:,} examples that were to be forgotten"
        draft = self.folder / name / "about.draft"
        draft.write_bytes(self._told(about))
        make_durable(draft)
        draft.rename(self.folder / name / "about.json")
        if remove:
            model.unlink(missing_ok=True)
        make_durable(self.folder / name)

    def cut(self, seq: int, serving: str | None) -> None:
        """Remove what a run that was killed did at this change or later, which another one takes the place of.

        serving: the version that serves before it.
        """
        assert self.folder is not None
        for v in self.all():
            if v.seq >= seq:
                gone = (self.folder / v.name).rename(self.folder / f"{v.name}.new")
                shutil.rmtree(gone)
                self._models.pop(v.name, None)
        kept = [s for s in self._served if s.seq <= seq]
        while kept and kept[-1].version != serving:
            kept.pop()
        if kept != self._served:
            self._note_served(kept)
        make_durable(self.folder)

    def _note_served(self, served: Sequence[Served]) -> None:
        """Note that these served, and no others."""
        assert self.folder is not None
        self._served, self._last = list(served), b""
        draft = self.folder / "served.draft"
        with draft.open("wb") as file:
            for one in served:
                self._last = self._sealed.told(one, self._after())
                file.write(self._last + b"\n")
        make_durable(draft)
        draft.rename(self.folder / "served.jsonl")

    @property
    def served(self) -> list[Served]:
        """When which version began to serve, in the order in which it was decided."""
        return list(self._served)

    @property
    def serving(self) -> str | None:
        """The version that began to serve last, if any did."""
        return self._served[-1].version if self._served else None

    @property
    def before(self) -> str | None:
        """The version that served before that one, if any did."""
        return next((s.version for s in reversed(self._served) if s.version != self.serving), None)

    def ahead(self, seq: int) -> list[Served]:
        """What the present decided at or after this change: a run that has gone back comes there again."""
        return [s for s in self._served if s.live and s.seq >= seq]

    def serve(self, served: Served) -> None:
        """A version is about to serve."""
        if served in self._served:
            return
        self._served.append(served)
        if self.folder is not None:
            log = self.folder / "served.jsonl"
            self._last = self._sealed.told(served, self._after())
            with log.open("ab") as file:
                file.write(self._last + b"\n")
            make_durable(log)

    def wanted(self) -> str | None:
        """The version that a user asks for, if any."""
        try:
            return (self.folder / "wanted").read_text().strip() if self.folder is not None else None
        except FileNotFoundError:
            return None

    def want(self, name: str) -> None:
        """Ask for a version: the run that keeps the model takes it up with its next batch. Raises `VersionError`."""
        if self.folder is None or name not in self or self._about(name).verdict != "published":
            known = ", ".join(v.name for v in self.all() if v.verdict == "published") or "none"
            raise VersionError(f"there is no published version {name!r}; there are: {known}")
        draft = self.folder / "wanted.draft"
        draft.write_text(name)
        draft.rename(self.folder / "wanted")

    def took(self) -> None:
        """The version that a user asked for serves."""
        if self.folder is not None:
            (self.folder / "wanted").unlink(missing_ok=True)
            make_durable(self.folder)

    def _told(self, version: Version) -> bytes:
        return self._sealed.told(version, f"{place(version.model, version.name)}/about")

    def _about(self, name: str) -> Version:
        assert self.folder is not None
        told = self._sealed.hear(
            self._bytes(name, "about.json"), f"{place(self.folder.name, name)}/about", *self._of(name)
        )
        return msgspec.json.decode(told, type=Version)

    def _bytes(self, name: str, file: str) -> bytes:
        assert self.folder is not None
        try:
            return (self.folder / name / file).read_bytes()
        except OSError as error:
            what, cure = self._of(name)
            raise SealError(f"{what} cannot be read: {file}: {error.strerror}; {cure}") from None

    def _pickled(self, name: str) -> bytes:
        """The pickle of a learner, after its seal."""
        assert self.folder is not None
        return self._sealed.open(self._bytes(name, "learner"), place(self.folder.name, name), *self._of(name))

    def _of(self, name: str) -> tuple[str, str]:
        """How errors name a version, and the cure."""
        assert self.folder is not None
        return (
            f"the version {str(self.folder / name)!r}",
            "restore it from a backup, or let another serve with freshet rollback",
        )

    def _load(self, name: str) -> tuple[Version, Any]:
        if name not in self._models:
            if self.folder is None:
                raise VersionError(f"there is no version {name!r}")
            about, pickled = self._about(name), self._pickled(name)
            try:
                self._models[name] = about, pickle.loads(pickled)
            except Exception as error:  # a pickle raises whatever it likes
                what, cure = self._of(name)
                raise SealError(
                    f"the learner of {what.removeprefix('the ')} cannot be loaded ({type(error).__name__}: {error}): "
                    f"go back to the libraries and the code with which it was fitted, or {cure}"
                ) from None
            for old in list(self._models)[:-3]:
                del self._models[old]
        return self._models[name]


def saw(version: Version, log: pl.DataFrame) -> int:
    """On how many of the examples of which a log tells a version was fitted, or its parents were."""
    rows = as_of(log.lazy(), seq=version.seq).collect()
    return len(rows) if version.first is None else int((rows[AT].cast(INT) >= version.first).sum())


def erased(version: Version, log: pl.LazyFrame) -> int:
    """How many of the examples that a version knew its log does not tell of any more."""
    if version.first is None:
        return 0
    then = log.filter(pl.col(SEQ) <= version.seq, pl.col(AT).cast(INT) >= version.first)
    return version.examples - int(then.select(pl.col(WEIGHT).sum()).collect().item())


def taken_back(version: Version, log: pl.LazyFrame) -> int:
    """How many of the examples on which a version was fitted are none any more, or have another label; erased ones,
    of which the log does not tell, included."""
    same = [AT, POS, "label", "answer_pos"]
    ever = log.filter(pl.col(WEIGHT) < 0).select(AT, POS).unique()
    mine = log.join(ever, on=[AT, POS], how="semi", nulls_equal=True)
    then, now = as_of(mine, seq=version.seq), as_of(mine)
    gone = then.join(now, on=same, how="anti", nulls_equal=True).select(pl.col(AT).cast(INT)).collect()[AT]
    return version.forgotten + (len(gone) if version.first is None else int((gone >= version.first).sum()))


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same figures, as JSON can hold them."""
    return {n: v if isinstance(v, (bool, int, float, str)) or v is None else str(v) for n, v in values.items()}
