"""What a run has really used, for the campaign to compare with what it began with: by name, a digest of the bytes that
were read (`agent.recipe.yardstick`), not of what lies on the disk afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.contract import FILES_VARIABLE
from agent.errors import DataError
from agent.files import Stamp, stamp_of
from agent.raft.let_in import Source
from agent.recipe.schema import Recipe
from agent.recipe.yardstick import (
    CODE,
    HELD_OUT_ROWS,
    LOCKED,
    code_digest,
    data_file,
    digest_of,
    digest_of_file,
    digest_of_value,
    libraries,
    locked_values,
    present_code_digest,
)
from agent.tasks.tasks import Splits
from agent.tasks.verifiers import AnswerVerifier


def used_by(recipe: Recipe, splits: Splits, verifier: AnswerVerifier, *, base: Path) -> dict[str, str]:
    """Ask at the end, when everything is loaded that will be."""
    code, now = code_digest(), present_code_digest()
    data = data_file(recipe)
    files: dict[str, str] = getattr(verifier, "files", dict)()
    return {
        CODE: code if code == now else f"{code}, then {now}",
        **libraries(recipe),
        LOCKED: digest_of_value(locked_values(recipe)),
        HELD_OUT_ROWS: splits.digest[:32],
        **({} if data is None else {f"file {data}": splits.source[:32]}),
        **{f"file {_name(path, base)}": digest for path, digest in files.items()},
        **{f"file {path}": digest_of_file(Path(path)) for path in _customized()},
        **{f"variable {name}": _trace_of(name) for name in recipe.task.verifier.environment},
    }


def _trace_of(name: str) -> str:
    """Enough of a digest to see another value, too little to try values against."""
    return digest_of(f"{name}={os.environ.get(name, '')}".encode())[:4]


def both(trained: Mapping[str, str], evaluated: Mapping[str, str]) -> dict[str, str]:
    """Of training and evaluation. Where they differ, both digests stand there, and so no comparison holds."""
    found = dict(trained)
    for name, digest in evaluated.items():
        before = found.get(name, digest)
        found[name] = digest if before == digest else f"{before} in training, {digest} in the evaluation"
    return found


def _name(path: str, base: Path) -> str:
    """From the workspace on; a file that stands for one of it (`FILES_VARIABLE`) goes by that one's name."""
    folders = [base.resolve()]
    if instead := os.environ.get(FILES_VARIABLE):
        folders.insert(0, Path(instead).resolve())
    for folder in folders:
        if Path(path).is_relative_to(folder):
            return Path(path).relative_to(folder).as_posix()
    return path


def _customized() -> list[str]:
    """Modules that Python has imported by itself at the start of this process."""
    modules = [sys.modules.get(name) for name in ("sitecustomize", "usercustomize")]
    return [path for module in modules if (path := getattr(module, "__file__", None)) is not None]


# --- files of a model --------------------------------------------------------------------------------------


def stamps_of(folder: Path) -> dict[str, Stamp]:
    """Of every file of a model's folder, by name."""
    return {path.name: stamp_of(path) for path in sorted(folder.iterdir()) if path.is_file()}


def refuse_changed(before: Mapping[str, Any], folder: Path, *, what: str) -> None:
    """DataError where a file of the folder has been written, replaced or removed since. One that has come since was not
    there to be read, or is what loading itself has fetched from the hub."""
    now = stamps_of(folder)
    for name in sorted(before):
        if tuple(before.get(name) or ()) != tuple(now.get(name) or ()):
            raise DataError(
                f"{name} of {what} was changed while it was in use",
                where=str(folder),
                hint="Something else writes there; nothing that this run has measured counts.",
            )


def folder_of(source: Source) -> Path | None:
    """Where a model's files are; None where that cannot be told."""
    if Path(source.place).is_dir():
        return Path(source.place)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.name, "config.json", revision=source.revision)
    return Path(found).parent if isinstance(found, str) else None
