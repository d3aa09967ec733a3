"""What decides a measurement, by name and digest: locked keys, files, this program's own code, libraries.

The agent writes these digests down before anything is measured and the trainer tells them of what it really used; who
compares them is `agent.campaign.lockbox`. Digests are SHA-256, cut to 128 bits. Nothing here imports what it hashes.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agent.files import Stamp, stamp_of
from agent.recipe.schema import Recipe, Verifier, leaf_keys

JSONL = "jsonl:"
CODE = "raft-agent's code"
HELD_OUT_ROWS = "held-out rows"
LOCKED = "locked keys of the recipe"
FOLDER = Path(__file__).parents[1]
MEASURING = ("raft", "tasks", "recipe")
"""Rooms whose code runs in a trainer."""
LEAVES = ("contract.py", "files.py", "text.py")
"""What a run's files are called, what tells that one was written to, and which variables a verifier gets."""
JUDGING = (
    "campaign/calibration.py", "campaign/comparison.py", "campaign/confirmation.py", "campaign/direction.py",
    "campaign/done.py", "campaign/evidence.py", "campaign/experiment.py", "campaign/guards.py", "campaign/health.py",
    "campaign/levels.py", "campaign/lockbox.py",
    "campaign/record.py", "campaign/rules.py", "campaign/scores.py", "campaign/taint.py", "campaign/verdict.py",
    "run/telemetry.py",
)  # fmt: skip
"""What reads the rows of a run and says what they prove."""
LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "safetensors", "numpy", "bitsandbytes")
"""Another version of one of these draws other tokens, or rounds otherwise."""
OF_DATASET = {"reasoning_gym:": "reasoning-gym"}
OF_VERIFIER = {"math": ("math-verify", "latex2sympy2_extended", "sympy"), "reasoning_gym": ("reasoning-gym",)}
PACKAGES_HASHED = {"math-verify": "math_verify", "reasoning-gym": "reasoning_gym"}
"""Distributions that extract or score answers, and the folder of their code: small enough to be read whole."""
BLOCK = 1 << 20


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def digest_of_value(value: Any) -> str:
    return digest_of(json.dumps(value, sort_keys=True, default=str).encode())


def digest_of_file(path: Path) -> str:
    """Of its content. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()[:32]


class Digests:
    """Contents by stamp: a file that nobody has written to since is not read again."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Stamp, str]] = {}

    def of(self, path: Path) -> str:
        """`missing`, or `unreadable`, where there is nothing to hash."""
        try:
            stamp = stamp_of(path)
            known = self._known.get(path)
            if known is None or known[0] != stamp:
                self._known[path] = known = stamp, digest_of_file(path)
            return known[1]
        except FileNotFoundError:
            return "missing"
        except OSError:
            return "unreadable"


_CODE = Digests()


# --- locked keys -------------------------------------------------------------------------------------------


def locked_values(recipe: Recipe) -> dict[str, Any]:
    """Value by dotted key of everything in a recipe that no idea may move. Where the reward is what is measured, its
    shaping is among it."""
    content = recipe.model_dump(mode="json")
    shaped = "mean_reward" in {recipe.evaluation.metric, *(guard.metric for guard in recipe.evaluation.guards)}
    return {
        key: _at(content, key)
        for key, locked in leaf_keys().items()
        if locked or (shaped and key.startswith("task.reward."))
    }


def moved_locks(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """Locked key -> (before, after) where they differ. What is locked is the former recipe's to say."""
    theirs = after.model_dump(mode="json")
    found = {key: (value, _at(theirs, key)) for key, value in locked_values(before).items()}
    return {key: (old, new) for key, (old, new) in found.items() if old != new}


def _at(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


# --- code and libraries ------------------------------------------------------------------------------------


def code_files(folder: Path = FOLDER) -> dict[str, Path]:
    """By name from the package's folder on: what measures and what judges."""
    rooms = [
        path
        for room in MEASURING
        for path in sorted((folder / room).rglob("*.py"))
        if not path.name.startswith(("bench", "export"))  # neither is a part of a run
    ]
    files = [*rooms, *(folder / name for name in (*LEAVES, *JUDGING))]
    return {path.relative_to(folder).as_posix(): path for path in files if path.exists()}


@functools.cache
def code_digest() -> str:
    """Of the code of this process, as it was when this was asked first: ask early."""
    return present_code_digest()


def present_code_digest() -> str:
    """Of what lies there now."""
    return digest_of_value({name: _CODE.of(path) for name, path in code_files().items()})


@functools.lru_cache(maxsize=64)
def _version(name: str, installed: tuple[int, ...]) -> str | None:
    """Of the package as it is installed; asked again where `installed` says that something was installed since."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _installed() -> tuple[int, ...]:
    """Changes with every package that comes or goes: its folder is then written to."""
    return tuple(Path(path).stat().st_mtime_ns for path in sys.path if Path(path).is_dir())


def libraries(recipe: Recipe) -> dict[str, str]:
    """`library NAME` -> its version; of those that score answers, their code too."""
    installed = _installed()
    scoring = [name for prefix, name in OF_DATASET.items() if recipe.task.dataset.startswith(prefix)]
    scoring += OF_VERIFIER.get(recipe.task.verifier.kind, ())
    found = {}
    for name in dict.fromkeys([*LIBRARIES, *scoring]):
        told = _version(name, installed)
        if told is None:
            continue
        if name in PACKAGES_HASHED and (code := _package_digest(PACKAGES_HASHED[name])) is not None:
            told += f" {code}"
        found[f"library {name}"] = told
    return found


def _package_digest(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return digest_of_value({path.relative_to(folder).as_posix(): digest_of_file(path) for path in files})


# --- the workspace's files ---------------------------------------------------------------------------------


def data_file(recipe: Recipe) -> str | None:
    """The data set's file as the recipe names it; None for one that is made by a program."""
    dataset = recipe.task.dataset
    return dataset.removeprefix(JSONL) if dataset.startswith(JSONL) else None


def verifier_files(verifier: Verifier, *, base: Path) -> list[str]:
    """The user's verifier file and the modules beside it that it imports, as far as its text tells; paths from `base`
    on, in the order in which they are found. Empty for a named kind. What else it reads, the trainer tells."""
    own = verifier.own_function()
    if own is None:
        return []
    first = base / own[0]
    found = {first: own[0]}
    waiting = [first]
    while waiting:
        path = waiting.pop()
        for other in _imported(path, beside=first.parent):
            if other not in found:
                found[other] = (Path(own[0]).parent / other.relative_to(first.parent)).as_posix()
                waiting.append(other)
    return list(found.values())


def _imported(path: Path, *, beside: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _modules(beside, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            folder = path.parents[node.level - 1] if 0 < node.level <= len(path.parents) else beside
            if folder.is_relative_to(beside):
                module = node.module.split(".") if node.module else []
                for alias in node.names:
                    yield from _modules(folder, [*module, alias.name])


def _modules(folder: Path, parts: Iterable[str]) -> Iterator[Path]:
    """Every file that importing `a.b.c` from this folder may load."""
    for part in parts:
        for candidate in (folder / f"{part}.py", folder / part / "__init__.py"):
            if candidate.is_file():
                yield candidate
        folder = folder / part


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Names that both have, with other digests."""
    return [name for name, digest in found.items() if name in wanted and wanted[name] != digest]
