"""Put a night of another workspace into this repository: its rows, its report, and its git history as a bundle.

python scripts/publish_night.py WORKSPACE CAMPAIGN

Writes results.tsv (rows of other nights stay, earlier rows of this one go) and docs/night/: report.html, report.md,
summary.json, night.bundle, and first-screen.png and phone.png where there is a Chromium. All of it is made beside that
folder first. Nothing is written where the campaign is not finished, where the bundle lacks a commit that a row names,
or where a report, a row or anything in the bundle has a path of this machine in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.ledger.journal import Journal  # noqa: E402  (from this checkout)
from agent.ledger.table import COLUMNS, rebuild  # noqa: E402
from agent.ledger.workspace import Workspace  # noqa: E402
from tests.report.browser import CHROMIUM, DESKTOP, PHONE, chromium  # noqa: E402

BUNDLE = "night.bundle"
SCREEN = (DESKTOP[0], 1000)


def main(arguments: list[str], *, root: Path = ROOT) -> None:
    if len(arguments) != 2:
        sys.exit(__doc__)
    workspace, name = Workspace(Path(arguments[0]).resolve()), arguments[1]
    rows = rows_of(workspace, name)
    with tempfile.TemporaryDirectory(dir=root, prefix=".night-") as folder:
        made, cloned = Path(folder, "night"), Path(folder, "clone")
        write_report(workspace, name, made)
        write_bundle(workspace, name, made / BUNDLE)
        texts = [path.read_bytes() for path in made.glob("[rs]*.*[lmn]")]
        texts += [" ".join(map(str, row.values())).encode() for row in rows]
        refuse_paths([*texts, *contents(made / BUNDLE, rows, cloned)], [workspace.root, ROOT, Path.home()])
        if CHROMIUM is not None:
            take_pictures(made)
        night = root / "docs" / "night"
        shutil.rmtree(night, ignore_errors=True)
        made.rename(night)
    forget_rows(root / "results.tsv", name)
    rebuild(root / "results.tsv", rows)
    for path in sorted(night.iterdir()):
        print(f"{path.stat().st_size:>9} {path.relative_to(root)}")


def rows_of(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    if name not in workspace.campaign_names():
        known = ", ".join(workspace.campaign_names()) or "none"
        sys.exit(f"{workspace.root} has no campaign {name}; it has: {known}")
    state = Journal(workspace.journal_path(name)).state()
    if state.status != "finished":
        sys.exit(f"campaign {name} is {state.status}, and only a finished one is published")
    return state.rows()


def write_report(workspace: Workspace, name: str, folder: Path) -> None:
    command = [sys.executable, "-m", "agent.cli", "report", "--campaign", name, "--out", str(folder)]
    subprocess.run(command, cwd=workspace.root, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def write_bundle(workspace: Workspace, name: str, bundle: Path) -> None:
    """All branches of the campaign and the notes, with their whole history."""
    wanted = (f"refs/heads/raft/{name}", "refs/notes/raft")
    found = git(workspace.root, "for-each-ref", "--format=%(refname)", *wanted).decode().split()
    git(workspace.root, "bundle", "create", str(bundle), *found)


def contents(bundle: Path, rows: list[dict[str, Any]], clone: Path) -> Iterator[bytes]:
    """Every object in the bundle; ends the program where one that a row names is missing."""
    clone.mkdir()
    git(clone, "init", "--quiet")
    git(clone, "fetch", "--quiet", str(bundle), "refs/*:refs/*")
    named = {row[column] for row in rows for column in ("commit", "parent_commit") if row.get(column)}
    for commit in sorted(named):
        if git(clone, "cat-file", "-t", commit, check=False).strip() != b"commit":
            sys.exit(f"a row names the commit {commit}, which no branch of the campaign has")
    yield git(clone, "cat-file", "--batch-all-objects", "--batch", "--unordered")


def refuse_paths(texts: list[bytes], paths: list[Path]) -> None:
    for path in paths:
        place = str(path).encode()
        if len(place) > 1 and any(place + b"/" in text or place + b'"' in text for text in texts):
            sys.exit(f"something that would be published has the path {path} in it")


def forget_rows(table: Path, name: str) -> None:
    column = COLUMNS.index("campaign")
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if [*line.split("\t"), *COLUMNS][column] != name]
    table.write_text("".join(kept), encoding="utf-8")


def take_pictures(folder: Path) -> None:
    with chromium() as browser:
        for name, size in (("first-screen", SCREEN), ("phone", PHONE)):
            browser.look(size)
            browser.open(folder / "report.html")
            browser.wait("document.documentElement.dataset.drawn")
            browser.picture(folder / f"{name}.png")


def git(folder: Path, *arguments: str, check: bool = True) -> bytes:
    command = [shutil.which("git") or "git", *arguments]
    return subprocess.run(command, cwd=folder, check=check, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


if __name__ == "__main__":
    main(sys.argv[1:])
