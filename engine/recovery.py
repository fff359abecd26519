"""The state directory: whose it is, who uses it, and that it can be resumed.

bytewax saves and restores the state, but it starts from zero without a word when the flow has another name, resumes
half of it when a step was renamed, lets two runs share one store, can load what an epoch left that never completed, and
runs what a damaged store says. So before each start: one run at a time (a lock), only for the same definition and with
the key that sealed it, never on outputs that are not its own, and all of it checked (`engine/store.py`).

The key is the text in the environment variable `KEY`, or in the file that `KEY_FILE` names; without either a random one
in the file `key` of the state directory.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from engine import store
from engine.large import make_durable
from engine.seal import CURE, Seal, SealError

FORMAT = 6
FORGET = "forget.json"
"""What is being forgotten: left behind by a crash."""
SAVED = "saved"
"""A file that is there once state was saved: from then on an empty store is none that may be started from."""
ABOUT, OWN_KEY = "definition.json", "key"
KEY, KEY_FILE = "FRESHET_STATE_KEY", "FRESHET_STATE_KEY_FILE"

_CURE_ALL = "start again without state and outputs"


class StateError(SealError):
    """A state directory that cannot be used for this run; the text says why and what to do."""


class State:
    """A state directory held by this process until `release`."""

    def __init__(self, folder: Path, lock: IO[str], seal: Seal) -> None:
        self.folder = folder
        self.recovery = folder / "recovery"
        self.seal = seal
        self._lock = lock

    @classmethod
    def shared(cls, folder: Path, pipeline: str) -> State:
        """The directory that another process of the same run holds, once it is made."""
        while not (folder / ABOUT).exists():
            time.sleep(0.1)
        return cls(folder, (folder / "lock").open("a"), sealed(folder, pipeline))

    @property
    def fresh(self) -> bool:
        """Whether nothing was saved yet."""
        return not (self.folder / SAVED).exists()

    def saved(self) -> None:
        """An epoch is complete: state was saved."""
        if not (mark := self.folder / SAVED).exists():
            mark.touch()
            make_durable(self.folder)

    def forgotten(self) -> None:
        """What was to be forgotten is."""
        (self.folder / FORGET).unlink(missing_ok=True)

    def release(self) -> None:
        """Let another run have the directory."""
        self._lock.close()


def claim(
    folder: Path,
    pipeline: str,
    definition: Mapping[str, str],
    shards: int,
    out: Path,
    outputs: Sequence[str],
    forget: Mapping[str, str] | None = None,
) -> State:
    """Take the state directory for this pipeline, made if it is not there, ready to start or resume.

    forget: what is to be forgotten in this run; nothing else can be done with the state until `State.forgotten`.

    Raises `SealError` when another run holds it (a `StateError`), when something else is still to be forgotten, when it
    belongs to another pipeline, definition, output folder or key, when any of it is missing, damaged or was changed, or
    when outputs are there that it did not write.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StateError(
            f"another run uses the state in {str(folder)!r}; wait for it, stop it, or choose another --state"
        ) from None
    try:
        _forget_first(folder / FORGET, forget)
        state = _claimed(folder, lock, pipeline, definition, shards, out, outputs)
        if forget is not None:
            write_durably(folder / FORGET, dict(forget))
        return state
    except BaseException:
        lock.close()
        raise


def _forget_first(pending: Path, forget: Mapping[str, str] | None) -> None:
    try:
        left = json.loads(pending.read_text())
        left.items()
    except FileNotFoundError:
        return
    except (ValueError, AttributeError):
        raise StateError(f"{str(pending)!r} is damaged; {CURE}") from None
    if left != forget:
        what = shlex.join(f"{column}={value}" for column, value in left.items())
        raise StateError(
            f"forgetting {what} was cut off, and half of it may be done; finish it before anything else: "
            f"freshet forget PIPELINE {what}"
        )


def _claimed(
    folder: Path,
    lock: IO[str],
    pipeline: str,
    definition: Mapping[str, str],
    shards: int,
    out: Path,
    outputs: Sequence[str],
) -> State:
    mine = {
        "format": FORMAT,
        "pipeline": pipeline,
        "shards": shards,
        "out": str(out.resolve()),
        "definition": dict(definition),
    }
    recovery, made = folder / "recovery", folder / "recovery.new"
    if not (folder / ABOUT).exists():
        for left in (recovery, folder / SAVED):
            if left.exists():
                raise StateError(
                    f"{str(folder)!r} holds saved state but no {ABOUT}, so it cannot be told what it belongs to; "
                    "restore that file, or remove the directory to start again"
                )
        for name in outputs:
            path = out / f"{name}.jsonl"
            if path.exists() and path.stat().st_size:
                raise StateError(
                    f"the output {str(path)!r} is there already, but {str(folder)!r} holds no state that wrote it; "
                    "move it away, choose another --out, or point --state to the state that belongs to it"
                )
        if (key := _given()) is None:
            key = _make_key(folder)
        mine["id"] = secrets.token_hex(8)
        seal = _seal(key, mine)
        mine |= {"key": seal.mark.hex(), "store": store.make(made)}
        write_durably(folder / ABOUT, {**mine, "seal": seal.tag(_canonical(mine), ABOUT).hex()})
        made.rename(recovery)
        make_durable(folder)
        return State(folder, lock, seal)
    theirs, seal = _opened(folder, pipeline)
    _same(theirs, mine, folder)
    if not recovery.exists() and made.exists() and not (folder / SAVED).exists():
        made.rename(recovery)
    state = State(folder, lock, seal)
    if store.check(recovery, theirs["store"], seal, pipeline, (folder / SAVED).exists()):
        state.saved()
    return state


def sealed(folder: Path, pipeline: str) -> Seal:
    """The seal of a state directory that is there, to look at what is in it. Raises `SealError`."""
    if not (folder / ABOUT).exists():
        raise StateError(
            f"{str(folder)!r} holds no {ABOUT}, so it cannot be told what it belongs to; restore that file, "
            "or remove the directory to start again"
        )
    return _opened(folder, pipeline)[1]


def _opened(folder: Path, pipeline: str) -> tuple[dict[str, Any], Seal]:
    """What the state directory of a pipeline says of itself, once its seal has told that it is so, and the seal."""
    about = folder / ABOUT
    damaged = StateError(f"{str(about)!r} is damaged; restore it, or remove {str(folder)!r} to start again")
    try:
        theirs = json.loads(about.read_text())
    except (ValueError, UnicodeDecodeError):
        raise damaged from None
    if not isinstance(theirs, dict):
        raise damaged
    _same(theirs, {"format": FORMAT, "pipeline": pipeline}, folder)
    tag = theirs.pop("seal", None)
    seal = _seal(_key(folder), theirs)
    if theirs.get("key") != seal.mark.hex():
        raise StateError(
            f"the state in {str(folder)!r} was made with another key than that in {_where(folder)}; set {KEY} or "
            f"{KEY_FILE} to the key it was made with, or leave both unset if that is in {str(folder / OWN_KEY)!r}; "
            f"or {_CURE_ALL}"
        )
    if tag != seal.tag(_canonical(theirs), ABOUT).hex():
        raise damaged
    return theirs, seal


def _canonical(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, sort_keys=True).encode()


def _seal(key: bytes, about: Mapping[str, Any]) -> Seal:
    return Seal(key, f"{about['pipeline']} {about.get('id')}")


def _key(folder: Path) -> bytes:
    """The key of a state directory that was made before."""
    if (key := _given()) is not None:
        return key
    try:
        key = (folder / OWN_KEY).read_bytes().strip()
    except FileNotFoundError:
        raise StateError(
            f"the key of the state in {str(folder)!r} is missing: there is no file {str(folder / OWN_KEY)!r}, and "
            f"neither {KEY} nor {KEY_FILE} is set; restore the file from a backup, or set the key it was made with; "
            f"or {_CURE_ALL}"
        ) from None
    if not key:
        raise StateError(f"the key {str(folder / OWN_KEY)!r} is empty; restore it from a backup, or {_CURE_ALL}")
    return key


def _given() -> bytes | None:
    """The key that the environment gives, if it does."""
    text, path = os.environ.get(KEY), os.environ.get(KEY_FILE)
    if text is not None and path is not None:
        raise StateError(f"both {KEY} and {KEY_FILE} are set; set one of them")
    try:
        key = Path(path).read_bytes() if path is not None else None if text is None else text.encode()
    except OSError as error:
        raise StateError(f"{KEY_FILE} is {path!r}, which cannot be read ({error.strerror}); name a file") from None
    if key is not None and not key.strip():
        raise StateError(
            f"{KEY if path is None else KEY_FILE} gives an empty key; give a long random text, or unset it"
        )
    return key and key.strip()


def _where(folder: Path) -> str:
    return next((name for name in (KEY, KEY_FILE) if name in os.environ), repr(str(folder / OWN_KEY)))


def _make_key(folder: Path) -> bytes:
    """Make a random key in the folder, which only its owner may read; one that a crash left is taken."""
    own, draft = folder / OWN_KEY, folder / f"{OWN_KEY}.new"
    if not own.exists():
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.rename(own)
        make_durable(folder)
    return own.read_bytes().strip()


def _same(theirs: Mapping[str, Any], mine: Mapping[str, Any], folder: Path) -> None:
    cure = f"choose another --state and --out, or remove {str(folder)!r} and the outputs to start again"
    for what in mine:
        if what != "definition" and theirs.get(what) != mine[what]:
            raise StateError(
                f"the state in {str(folder)!r} was made with {what} {theirs.get(what)!r}, this run has {mine[what]!r}; "
                + (f"go on with {theirs.get(what)!r}, or " if what in ("shards", "out") else "")
                + cure
            )
    new = mine.get("definition", {})
    old = theirs["definition"] if new else {}
    changes = [f"{n} changed" for n in old if n in new and old[n] != new[n]]
    changes += [f"{n} is gone" for n in old if n not in new] + [f"{n} is new" for n in new if n not in old]
    if changes:
        raise StateError(
            f"the pipeline is not the one that the state in {str(folder)!r} belongs to: {'; '.join(changes[:5])}"
            + (f" and {len(changes) - 5} more" if len(changes) > 5 else "")
            + f"; go back to the earlier definition, {cure}"
        )


def write_durably(path: Path, value: Any) -> None:
    """Write JSON to a file so that after a crash there is the old file or the whole new one."""
    draft = path.with_name(path.name + ".new")
    with draft.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
