"""`make` keeps the GPU build of torch that the Python in front of it has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TORCH = "class version:\n    hip = '7.0'\n    cuda = None\n\n\n__version__ = '2.13+rocm'\n"
CALL = """
import subprocess, sys
sys.path.insert(0, {scripts!r})
import setup_venv
setup_venv.run = lambda *words: subprocess.run([*words, *(["--without-pip"] if "venv" in words else [])], check=True)
setup_venv.main(setup_venv.Path({folder!r}), "torch==0")
"""


def test_a_torch_in_a_virtual_environment_is_seen_in_the_new_one(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "theirs")], check=True)
    python = tmp_path / "theirs/bin/python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip())
    (site / "torch").mkdir()
    (site / "torch/__init__.py").write_text(TORCH)
    call = CALL.format(scripts=str(ROOT / "scripts"), folder=str(tmp_path / "ours"))
    done = subprocess.run([python, "-c", call], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "torch is there already: 2.13+rocm\n"
