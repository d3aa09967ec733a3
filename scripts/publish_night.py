"""Put a night of another workspace into this repository: its rows, its report, and its git history as a bundle.

python scripts/publish_night.py WORKSPACE CAMPAIGN     # may be run again: the same night takes its own place

Writes results.tsv (rows of other nights stay) and docs/night/: report.html, report.md, summary.json, night.bundle, and
first-screen.png and phone.png where there is a Chromium. Refused while the campaign is not finished, where the bundle
lacks a commit that a row names, and where a text that would be published has the workspace's path in it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agent.ledger.journal import Journal
from agent.ledger.state import CampaignState
from agent.ledger.table import rebuild
from agent.ledger.workspace import Workspace
from tests.report.browser import CHROMIUM, DESKTOP, PHONE, chromium

ROOT = Path(__file__).resolve().parent.parent
NIGHT = ROOT / "docs" / "night"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    workspace, name = Workspace(Path(sys.argv[1]).resolve()), sys.argv[2]
    state = Journal(workspace.journal_path(name)).state()
    if state.status != "finished":
        sys.exit(f"campaign {name} is not finished")
    NIGHT.mkdir(parents=True, exist_ok=True)
    write_report(workspace, name)
    write_bundle(workspace, name, state)
    refuse_paths(workspace, state)
    rebuild(ROOT / "results.tsv", state.rows())
    if CHROMIUM is not None:
        take_pictures()
    for path in sorted(NIGHT.iterdir()):
        print(f"{path.stat().st_size:>9} {path.relative_to(ROOT)}")


def write_report(workspace: Workspace, name: str) -> None:
    command = [sys.executable, "-m", "agent.cli", "report", "--campaign", name, "--out", str(NIGHT)]
    subprocess.run(command, cwd=workspace.root, check=True)


def write_bundle(workspace: Workspace, name: str, state: CampaignState) -> None:
    """All branches and notes of the campaign with their whole history, so that a clone of the bundle has every commit
    that a row names."""
    bundle = NIGHT / "night.bundle"
    told = git(workspace.root, "for-each-ref", "--format=%(refname)", f"refs/heads/raft/{name}", "refs/notes/raft")
    git(workspace.root, "bundle", "create", str(bundle), *told.split())
    with tempfile.TemporaryDirectory() as folder:
        git(Path(folder), "init", "--quiet")
        git(Path(folder), "fetch", "--quiet", str(bundle), "refs/*:refs/*")
        for row in state.rows():
            for column in ("commit", "parent_commit"):
                if row.get(column):
                    git(Path(folder), "cat-file", "-e", f"{row[column]}^{{commit}}")


def refuse_paths(workspace: Workspace, state: CampaignState) -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in NIGHT.glob("*.[hmj]*")}
    texts |= {f"row {row['index']}": " ".join(map(str, row.values())) for row in state.rows()}
    for where, text in texts.items():
        if str(workspace.root) in text or str(ROOT) in text:
            sys.exit(f"{where} has a path of this machine in it")


def take_pictures() -> None:
    with chromium() as browser:
        for name, size in (("first-screen", (DESKTOP[0], 1000)), ("phone", PHONE)):
            browser.look(size)
            browser.open(NIGHT / "report.html")
            browser.wait("document.documentElement.dataset.drawn")
            browser.picture(NIGHT / f"{name}.png")


def git(folder: Path, *arguments: str) -> str:
    git = shutil.which("git") or "git"
    return subprocess.run([git, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
