"""The folder of an export: built beside its place, whole when it appears there, and replaced only where an export has
made what is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent import __version__
from agent.errors import Busy, InvalidFile, ResourceError, UsageError, WorkspaceError
from agent.files import sync_files, write_atomic
from agent.recipe.yardstick import digest_of_file

MANIFEST = "export.json"
"""What an export has written, by name and digest."""
README = "README.md"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def refuse_target(target: Path, *, force: bool) -> None:
    """Raises UsageError or WorkspaceError where nothing may be put at this place."""
    if target.is_symlink():
        raise UsageError(f"--out {target}: is a link", hint="name the folder that it should be, not a link to one")
    if target.exists() and not target.is_dir():
        raise UsageError(f"--out {target}: is there already, and no folder", hint="name another place")
    if not target.parent.is_dir():
        raise UsageError(f"--out {target}: there is no folder {target.parent}", hint="make it first")
    if not target.exists() or not any(target.iterdir()):
        return
    if not force:
        raise UsageError(
            f"--out {target}: is there already, and not empty",
            hint="name another folder; --force replaces one that an export has made",
        )
    stranger = _not_of_an_export(target)
    if stranger:
        raise WorkspaceError(
            f"{stranger}, so --force does not replace it",
            where=str(target),
            hint="name another folder, or move it away",
        )


def _not_of_an_export(target: Path) -> str | None:
    """What is in the folder that no export has put there, in words."""
    try:
        known = json.loads((target / MANIFEST).read_text())["files"]
        names = {str(name) for name in known} | {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        return f"no export has made this folder (it has no {MANIFEST})"
    for name, path in _files(target).items():
        if name not in names:
            return f"{name} is not of an export"
        if path.is_symlink() or not path.is_file():
            return f"{name} is no plain file"
    changed = [
        name for name in sorted(known) if (target / name).exists() and digest_of_file(target / name) != known[name]
    ]
    return f"{changed[0]} was changed since" if changed else None


def _files(folder: Path) -> dict[str, Path]:
    """Everything in it that is no folder, by its name from there on; a link is one of these, wherever it leads."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    return {path.relative_to(folder).as_posix(): path for path in found}


@contextlib.contextmanager
def building(target: Path, *, force: bool) -> Iterator[Path]:
    """A folder to build in, which takes the target's place at the end of the block. Left by an error, nothing is left.

    Raises Busy where another export builds for the same place.
    """
    refuse_target(target, force=force)
    scratch = target.with_name(f".{target.name}.export")
    with contextlib.ExitStack() as cleanup:
        try:
            cleanup.enter_context(_held(scratch))
            cleanup.callback(shutil.rmtree, scratch, ignore_errors=True)
        except OSError as error:
            raise ResourceError(
                f"cannot be written: {error.strerror or error}", where=str(target.parent), hint="check its permissions"
            ) from None
        yield scratch
        refuse_target(target, force=force)
        _put(scratch, target)


@contextlib.contextmanager
def _held(scratch: Path) -> Iterator[None]:
    """The folder, made anew and locked; what a killed export left in it is removed."""
    if scratch.is_symlink():
        raise WorkspaceError("is a link, and in the way", where=str(scratch), hint="remove it")
    scratch.mkdir(exist_ok=True)
    descriptor = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy("another export writes to this place", where=str(scratch), hint="wait for it") from None
        for path in scratch.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield
    finally:
        os.close(descriptor)


def _put(scratch: Path, target: Path) -> None:
    """By a rename; what was there is moved away first, and back where the rename fails."""
    old = target.with_name(f".{target.name}.replaced")
    replaced = target.exists() and any(target.iterdir())
    if replaced:
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        scratch.rename(target)
    except OSError:
        if replaced:
            old.rename(target)
        raise
    sync_files([target.parent])
    if replaced:
        shutil.rmtree(old, ignore_errors=True)


def close(folder: Path, readme: str, told: Mapping[str, Any]) -> None:
    """The last files: the model card, and what all of them are. InvalidFile where something is among them that is run
    to be read."""
    write_atomic(folder / README, readme)
    files = {name: path for name, path in _files(folder).items() if name != MANIFEST}
    bad = [
        name
        for name, path in files.items()
        if path.suffix in (*PICKLES, ".py") or path.is_symlink() or not path.is_file()
    ]
    if bad:
        raise InvalidFile(f"{bad[0]} has no place in an exported model", where=str(folder))
    digests = {name: digest_of_file(path) for name, path in files.items()}
    write_atomic(folder / MANIFEST, json.dumps({"raft-agent": __version__, **told, "files": digests}, indent=1) + "\n")
    sync_files([*files.values(), folder])
