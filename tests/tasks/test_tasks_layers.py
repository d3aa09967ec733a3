"""Which layers are in force is said truthfully, and what there is too little of is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ResourceError
from agent.tasks.layers import Layers, start_host

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = """
import json
from dataclasses import asdict
from pathlib import Path
from agent.errors import UsageError
from agent.recipe.schema import Verifier
from agent.tasks.sandbox import Limits, Sandbox
from agent.tasks.verifiers import build_verifier

CODES = {
    "right": "def f(x): return x + 1",
    "wrong": "def f(x): return x",
    "read": "print(open(HOME).read())",
    "write": "open('/tmp/raft-left', 'w').write('x')",
    "connect": "import socket; socket.socket().connect(('127.0.0.1', 1))",
    # Its name is what it is looked for by from outside.
    "fork": "import ctypes, os, time\\nif os.fork() == 0:\\n    os.setsid()\\n    ctypes.CDLL(None)"
    ".prctl(15, b'raft-left')\\n    time.sleep(98765)\\ntime.sleep(0.2)\\ndef f(x): return x + 1",
}
with Sandbox(slots=1) as sandbox:
    layers = sandbox.layers()
    said = {
        name: [outcome.status, outcome.detail, outcome.output]
        for name, code in CODES.items()
        for outcome in [sandbox.run(code.replace("HOME", repr(HOME)), "assert f(1) == 2", limits=Limits(4.0))]
    }
try:
    build_verifier(Verifier(kind="python_tests"), base=Path()).close()
    refusal = None
except UsageError as error:
    refusal = str(error)
build_verifier(Verifier(kind="python_tests"), base=Path(), allow_untrusted_code=True).close()
found = {"layers": asdict(layers), "enough": layers.enough, "words": str(layers), "said": said, "refusal": refusal}
print(json.dumps(found))
"""


def told(*refused: str, home: Path, before: list[str] | None = None) -> dict[str, Any]:
    """What the sandbox says and does where these system calls are refused."""
    script = f"HOME = {str(home)!r}\n{SCRIPT}"
    program = str(Path(__file__).with_name("refusing.py"))
    done = subprocess.run(
        [*(before or []), sys.executable, program, ",".join(refused), script],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["said"]["right"] == ["passed", "", ""]
    assert found["said"]["wrong"][0] == "failed"
    return found


@pytest.fixture
def home(tmp_path: Path, walls: Layers) -> Path:
    """Where what is refused can be refused, by a filter."""
    if not (walls.landlock and walls.seccomp):
        pytest.skip(f"this system lacks Landlock or seccomp: {walls}")
    (tmp_path / "secret").write_text("canary-88")
    return tmp_path / "secret"


def closed(found: dict[str, Any]) -> None:
    """No file, no network, no process."""
    assert found["enough"]
    assert found["refusal"] is None
    said = found["said"]
    assert "canary-88" not in json.dumps(said)
    assert (said["read"][0], said["connect"][0]) == ("error", "error")
    assert not Path("/tmp/raft-left").exists()


@pytest.mark.slow
def test_where_namespaces_are_refused_bubblewrap_is_taken(home: Path) -> None:
    try:
        start_host(["bwrap"]).kill()
    except ResourceError as error:
        pytest.skip(str(error))
    found = told("unshare", home=home)
    closed(found)
    assert (found["layers"]["way"], found["layers"]["walls"]) == ("bwrap", "bubblewrap")
    # There is no second namespace to be had, so there is no folder that could be emptied for each program.
    assert found["words"].endswith("; no file can be written") == (not found["layers"]["temporary"])
    assert found["said"]["write"][0] == "error"


@pytest.mark.slow
def test_without_namespaces_landlock_and_seccomp_are_enough(home: Path) -> None:
    found = told("unshare", "mount", home=home)
    closed(found)
    layers = found["layers"]
    assert (layers["way"], layers["walls"], layers["seccomp"]) == ("none", "", True)
    assert layers["landlock"] >= 1
    assert "no namespaces (direct: [Errno 1] unshare" in found["words"]
    assert "no file can be written" in found["words"]
    assert "Operation not permitted" in found["said"]["fork"][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (["unshare", "mount", "landlock_create_ruleset"], "no Landlock, files can be written"),
        (["unshare", "mount", "seccomp"], "no seccomp, so memory is limited for each process and not in sum"),
        (["unshare", "mount", "landlock_create_ruleset", "seccomp"], "no Landlock, no seccomp"),
    ],
)
def test_with_less_than_enough_the_refusal_says_what_is_missing(home: Path, refused: list[str], words: str) -> None:
    found = told(*refused, home=home)
    assert not found["enough"]
    assert words in found["words"]
    assert found["refusal"].startswith("task.verifier.kind: python_tests runs code that a model wrote, and this system")
    assert found["words"] in found["refusal"]
    assert "--allow-untrusted-code" in found["refusal"]
    Path("/tmp/raft-left").unlink(missing_ok=True)


@pytest.mark.slow
def test_with_rlimits_alone_the_tree_is_killed_all_the_same(home: Path) -> None:
    found = told("unshare", "mount", "landlock_create_ruleset", "seccomp", home=home)
    assert found["said"]["fork"][0] == "passed"
    assert not [path for path in Path("/proc").glob("[0-9]*/comm") if _read(path) == b"raft-left\n"]
    Path("/tmp/raft-left").unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another user; as a user every other test is this one"
)


def told_as_user(script: str) -> list[str]:
    """Lines that a script prints when a user without rights runs it.

    With the system's Python, where there is one, because the environment of these tests may lie in a root's home.
    """
    python = shutil.which("python3", path="/usr/bin")
    if python is None or sys.version_info[:2] > _version(python):
        pytest.skip("there is no other Python that a user could run")
    folder = Path("/tmp") / f"raft-user-{os.getpid()}"
    try:
        shutil.copytree(REPOSITORY / "agent", folder / "agent", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(Path(__file__).with_name("refusing.py"), folder)
        script = (
            "import os, sys\nos.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
            f"sys.path.insert(0, {str(folder)!r})\nfrom agent.tasks.sandbox import Sandbox\n{script}"
        )
        done = subprocess.run([python, "-B", "-c", script], capture_output=True, text=True, timeout=60, cwd="/")
    finally:
        shutil.rmtree(folder)
    if "line 2, in <module>\nPermissionError" in done.stderr:
        pytest.skip("this root may not become another user")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_root
def test_a_user_without_rights_has_namespaces_of_their_own(walls: Layers) -> None:
    layers, outcome = told_as_user(
        "with Sandbox(slots=1) as sandbox:\n"
        "    print(sandbox.layers(), '|', sandbox.layers().enough)\n"
        '    code = \'import os; open("a", "w"); print(os.getuid(), os.getpid())\\ndef f(x): return x + 1\'\n'
        "    print(sandbox.run(code, 'assert f(1) == 2'))\n"
    )
    assert layers.endswith("| True")
    if "user namespace" in layers:
        assert "status='passed'" in outcome
        assert "output='65534 1\\n'" in outcome


REACHING = """
import ctypes, glob

# What it is called by, because it may know itself by another number.
ctypes.CDLL(None).prctl(15, b"myself")
def f(x):
    for path in glob.glob("/proc/[0-9]*"):
        if open(path + "/comm").read() == "myself\\n": continue
        for name in ("environ", "maps", "mem"):
            try: print(open(f"{path}/{name}", "rb"))
            except OSError: pass
    return len(glob.glob("/proc/[0-9]*/stat")) > 1
"""


@needs_root
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
@pytest.mark.parametrize("refused", [["landlock_create_ruleset"], ["landlock_create_ruleset", "unshare"]])
def test_a_program_of_the_same_user_reaches_no_host_by_proc(home: Path, refused: list[str]) -> None:
    layers, outcome = told_as_user(
        f"import refusing\nrefusing.refuse({refused})\n"
        "with Sandbox(slots=1, ways=['bwrap']) as sandbox:\n"
        "    print(sandbox.layers())\n"
        f"    print(sandbox.run({REACHING!r}, 'assert f(1)'))\n"
    )
    assert "no Landlock" in layers
    assert "status='passed'" in outcome
    assert "output=''" in outcome


def _version(python: str) -> tuple[int, int]:
    program = "import sys; print(*sys.version_info[:2])"
    said = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout
    major, minor = said.split()
    return int(major), int(minor)


@pytest.mark.parametrize(
    ("settings", "enough"),
    [
        ({"walls": "root", "processes": True}, True),
        ({"walls": "bubblewrap"}, False),
        ({"walls": "bubblewrap", "seccomp": True}, True),
        ({"landlock": 7}, False),
        ({"seccomp": True}, False),
        ({"landlock": 1, "seccomp": True}, True),
        ({"landlock": 7, "processes": True}, False),
        ({}, False),
    ],
)
def test_what_is_enough(settings: dict[str, Any], enough: bool) -> None:
    nothing = {"way": "none", "walls": "", "processes": False, "temporary": False, "landlock": 0, "seccomp": False}
    assert Layers(**{**nothing, **settings}).enough == enough
