"""The rooms and their arrows, held by walking every import of the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

AGENT = Path(__file__).parent.parent / "agent"
LEAVES = {"collector", "errors", "files", "contract", "package", "proc", "text"}
ARROWS = {
    "cli": {"simulate", "study", "campaign", "plan", "run", "ledger", "report", "recipe", "hardware"},
    "campaign": {"plan", "run", "ledger", "report", "recipe", "hardware"},
    "simulate": {"campaign", "recipe", "report"},
    "study": {"run", "recipe", "report", "hardware"},
    "plan": {"recipe", "hardware"},
    "run": {"recipe", "hardware"},
    "ledger": {"recipe"},
    "report": {"recipe"},
    "recipe": set(),
    "hardware": set(),
    "tasks": {"recipe"},
    "raft": {"recipe", "tasks", "hardware"},
}
LIBRARIES = {
    "torch": {"raft", "tasks"},
    "transformers": {"raft", "tasks"},
    "peft": {"raft"},
    "git": {"ledger"},
    "psutil": {"run", "hardware"},
    "rich": {"cli", "report"},
    "typer": {"cli"},
    "vl_convert": {"report"},
    "jinja2": {"report", "tasks"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(AGENT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(AGENT)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    inside = path.relative_to(AGENT).parts
    room = inside[0] if len(inside) > 1 else None
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "agent" and len(parts) > 1 and parts[1] not in LEAVES and parts[1] != "__version__":
            assert room is not None, f"the leaf {path.name} imports {name}"
            assert parts[1] == room or parts[1] in ARROWS[room], f"{room} may not import {name}"
        if parts[0] in LIBRARIES:
            assert room in LIBRARIES[parts[0]], f"{room} may not import {parts[0]}"


def test_every_room_is_known() -> None:
    rooms = {path.name for path in AGENT.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert rooms == set(ARROWS)


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from agent.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'scipy', 'numpy', 'git', 'yaml', 'pydantic', 'psutil', 'jinja2'}\n"
        "heavy &= set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "HEAVY []" in done.stdout
