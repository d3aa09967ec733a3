"""What the trainer does for its numbers to be trusted: it evaluates apart, from files, and tells what it has read."""

from __future__ import annotations

import json
import os
import py_compile
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from raft_recipes import merged, small_recipe

from agent.contract import Failure, Summary
from agent.errors import DataError, RecipeError
from agent.files import write_atomic
from agent.raft import apart, evaluate
from agent.raft.answers import AnswerCache
from agent.raft.apart import Apart, Failed, Stopped
from agent.raft.evaluate import Examiner
from agent.raft.leaks import refuse_leaked_questions
from agent.raft.policy import Policy
from agent.raft.used import both, refuse_changed, stamps_of
from agent.recipe.files import resolved_text
from agent.recipe.schema import Prompt
from agent.recipe.yardstick import digest_of, digest_of_file, present_code_digest
from agent.tasks.prompts import shots_for, user_text
from agent.tasks.scorer import function_scorers
from agent.tasks.tasks import Example, load_splits
from agent.tasks.verifiers import build_verifier

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
VERIFIER = """\
import json
from pathlib import Path

import helper

TABLE = json.loads(Path(__file__).with_name("table.json").read_text())


def score(response, row):
    return helper.right(response, row) and TABLE["on"]
"""
HELPER = "def right(response, row):\n    return response.strip() == row['answer']\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks/verify.py").write_text(VERIFIER)
    (tmp_path / "checks/helper.py").write_text(HELPER)
    (tmp_path / "checks/table.json").write_text('{"on": true}')
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(10, 20) for b in range(10, 20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


OWN: dict[str, Any] = {
    "task": {
        "dataset": "jsonl:rows.jsonl", "parameters": {}, "verifier": {"kind": "python:checks/verify.py:score"}
    },
    "budget": {"cycles": 1},
}  # fmt: skip


WORKER = ("-m", "agent.raft.worker")


def train(
    workspace: Path,
    cache: Path,
    *arguments: str,
    out: str = "run",
    env: Any = None,
    code: int = 0,
    over: Any = None,
    command: tuple[str, ...] = WORKER,
) -> Path:
    """The run's folder; beside it lie its recipe and its log. `over`: sections of the recipe on top of `OWN`."""
    folder = workspace / out
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(resolved_text(small_recipe(merged(OWN, over or {}))))
    options = ["--recipe", str(recipe), "--out", str(folder), "--seed", "0", "--cache", str(cache)]
    done = subprocess.run(
        [sys.executable, *command, *options, *arguments],
        cwd=workspace, env={**ENVIRONMENT, **(env or {})}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    folder.with_suffix(".log").write_text(done.stderr)
    assert done.returncode == code, done.stderr
    return folder


def told(folder: Path) -> dict[str, Any]:
    return dict(Summary(**json.loads((folder / "summary.json").read_text())).provenance)


# --- a real run --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_tells_what_it_has_read_and_evaluates_apart(workspace: Path, model_cache: Path) -> None:
    folder = train(workspace, model_cache)
    evaluation = told(folder)["evaluation"]
    used = evaluation["used"]
    assert used["file rows.jsonl"] == digest_of_file(workspace / "rows.jsonl")
    for name in ("checks/verify.py", "checks/helper.py", "checks/table.json"):
        assert used[f"file {name}"] == digest_of_file(workspace / name)
    assert used["raft-agent's code"] == present_code_digest()
    assert evaluation["rows"] == digest_of_file(folder / "eval.jsonl")
    assert evaluation["checkpoint"]["model.safetensors"] == digest_of_file(folder / "checkpoint/model.safetensors")
    assert "Landlock" in evaluation["writes"] or "not confined" in evaluation["writes"]
    assert not (folder / ".scratch").exists()
    stamps = told(folder)["model"]["folders"]
    assert "model.safetensors" in next(iter(stamps.values()))
    again = train(workspace, model_cache, "--evaluate", str(folder / "checkpoint"), out="again")
    assert (again / "eval.jsonl").read_text() == (folder / "eval.jsonl").read_text()
    assert told(again)["evaluation"]["used"] == used
    assert told(again)["evaluation"]["checkpoint"] == evaluation["checkpoint"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rows.jsonl", lambda text: text.replace('"answer": "30"', '"answer": "31"')),
        ("checks/verify.py", lambda text: text.replace('and TABLE["on"]', "or True")),
        ("checks/helper.py", lambda text: text.replace("==", "!=")),
    ],
)
def test_files_that_were_others_for_the_time_of_a_run_are_told_as_they_were(
    workspace: Path, model_cache: Path, name: str, change: Any
) -> None:
    """Whoever looks at the disk before and after sees nothing."""
    text = (workspace / name).read_text()
    (workspace / name).write_text(change(text))
    other = digest_of_file(workspace / name)
    folder = train(workspace, model_cache)
    (workspace / name).write_text(text)
    assert told(folder)["evaluation"]["used"][f"file {name}"] == other != digest_of_file(workspace / name)


@pytest.mark.slow
def test_a_module_that_python_imports_by_itself_is_told(workspace: Path, model_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow/sitecustomize.py").write_text("import sys\n")
    (tmp_path / "shadow/helper.py").write_text("def right(response, row):\n    return True\n")
    path = os.pathsep.join([str(tmp_path / "shadow"), os.environ.get("PYTHONPATH", "")])
    used = told(train(workspace, model_cache, env={"PYTHONPATH": path}))["evaluation"]["used"]
    assert [name for name in used if name.endswith("sitecustomize.py")]
    assert used["file checks/helper.py"] == digest_of(HELPER.encode()), "what lies beside the verifier comes first"


@pytest.mark.slow
def test_the_evaluation_cannot_write_to_what_it_reads(workspace: Path, model_cache: Path) -> None:
    """The verifier runs in it, and tries. During the training it may; its own folder is not the evaluation's."""
    (workspace / "checks/helper.py").write_text(
        "import os\nfrom pathlib import Path\n\n"
        "def right(response, row):\n"
        "    try:\n"
        "        Path('rows.jsonl').open('a').close()\n"
        "    except PermissionError:\n"
        "        return True\n"
        "    return False\n"
    )
    folder = train(workspace, model_cache)
    if "Landlock" not in told(folder)["evaluation"]["writes"]:
        pytest.skip(told(folder)["evaluation"]["writes"])
    assert json.loads((folder / "summary.json").read_text())["metrics"] == {"search": 1.0}
    rows = [json.loads(line) for line in (folder / "cycles.jsonl").read_text().splitlines()]
    assert rows[0]["pass_rate"] == 0.0


# --- the process apart -------------------------------------------------------------------------------------


def explain(error: Exception) -> Failure:
    return Failure(crash_class="unknown", message=str(error), exception=type(error).__name__)


def test_what_the_copy_finds_comes_back_and_what_fails_there_fails_here() -> None:
    def serve(order: dict[str, Any]) -> dict[str, Any]:
        if order["what"] == "fails":
            raise DataError("no such row")
        if order["what"] == "stopped":
            raise Stopped
        return {"pid": os.getpid(), **order}

    for what in ("found", "fails", "stopped"):
        copy = Apart.forked(serve, explain=explain)
        try:
            if what == "found":
                assert copy.ask({"what": what}) == {"pid": copy.pid, "what": what}
            elif what == "fails":
                with pytest.raises(Failed) as failed:
                    copy.ask({"what": what})
                assert (failed.value.failure.exception, failed.value.exit_code) == ("DataError", 3)
            else:
                with pytest.raises(Stopped):
                    copy.ask({"what": what})
        finally:
            copy.close()
        with pytest.raises(ProcessLookupError):
            os.kill(copy.pid, 0)


STARTED = """
import os, sys
from agent.contract import Failure
from agent.errors import DataError
from agent.raft.apart import serve_on

def serve(order):
    if order["what"] == "fails":
        raise DataError("no such row")
    return {"pid": os.getpid(), **order}

def explain(error):
    return Failure(crash_class="data", message=str(error), exception=type(error).__name__)

def prepare():
    if os.environ.get("UNPREPARED"):
        raise DataError("not ready")

serve_on(*map(int, sys.argv[1:]), serve, explain=explain, prepare=prepare)
"""


def test_another_start_of_python_answers_as_the_copy_does() -> None:
    for what in ("found", "fails"):
        other = Apart.started([sys.executable, "-c", STARTED])
        try:
            if what == "found":
                assert other.ask({"what": what}) == {"pid": other.pid, "what": what}
            else:
                with pytest.raises(Failed) as failed:
                    other.ask({"what": what})
                assert (failed.value.failure.message, failed.value.exit_code) == ("no such row", 3)
        finally:
            other.close()
        with pytest.raises(ProcessLookupError):
            os.kill(other.pid, 0)


def test_what_another_start_cannot_prepare_is_known_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = Apart.started([sys.executable, "-c", STARTED])
    ready.wait_until_ready()
    ready.close()
    monkeypatch.setenv("UNPREPARED", "1")
    for program, message in ((STARTED, "not ready"), ("raise SystemExit(3)", "the evaluation's process ended")):
        other = Apart.started([sys.executable, "-c", program])
        with pytest.raises(Failed) as failed:
            other.wait_until_ready()
        assert failed.value.failure.message == message
        other.close()


LEAVES_A_DAEMON = """
import os, signal, subprocess, sys
from agent.raft.apart import serve_on

def serve(order):
    subprocess.Popen(["sleep", "20"], close_fds=False)
    os.kill(os.getpid(), signal.SIGTERM)

serve_on(*map(int, sys.argv[1:]), serve, explain=None, prepare=lambda: None)
"""


def test_what_another_start_of_python_leaves_running_holds_nobody_up() -> None:
    other = Apart.started([sys.executable, "-c", LEAVES_A_DAEMON])
    began = time.monotonic()
    with pytest.raises(Stopped):
        other.ask({})
    assert time.monotonic() - began < 10


def test_a_process_that_has_an_accelerator_open_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = {"3": "/dev/kfd", "4": "/dev/dri/renderD128", "5": "/dev/nvidiactl", "6": "/dev/nvidia0"}
    harmless = {"0": "/dev/null", "1": "pipe:[4711]", "2": "/home/user/dev/kfd", "7": "/dev/nvidia-notes.txt"}
    for name, target in (devices | harmless).items():
        (tmp_path / name).symlink_to(target)
    assert apart.opened_accelerators(tmp_path) == sorted(devices.values())
    assert apart.opened_accelerators(tmp_path / "no such folder") == []
    assert apart.can_copy_itself() == sys.platform.startswith("linux")
    monkeypatch.setattr(apart, "opened_accelerators", lambda: ["/dev/kfd"])
    assert not apart.can_copy_itself()


TOUCHED = """
import sys
from agent.raft import apart, worker
apart.opened_accelerators = worker.opened_accelerators = lambda: ["/dev/kfd"]
sys.exit(worker.main(sys.argv[1:], pristine=True))
"""


@pytest.mark.slow
def test_where_the_driver_is_open_another_start_of_python_evaluates_to_the_same_rows(
    workspace: Path, model_cache: Path
) -> None:
    copied = train(workspace, model_cache)
    folder = train(workspace, model_cache, out="started", command=("-c", TOUCHED))
    assert (folder / "eval.jsonl").read_text() == (copied / "eval.jsonl").read_text()
    assert told(folder)["evaluation"] == told(copied)["evaluation"]
    assert json.loads((folder / "heartbeat").read_text())["phase"] == "evaluate"


ENDED_EARLY = """
import sys
from agent.raft import apart, worker

def ended(self):
    raise apart.Stopped

apart.opened_accelerators = worker.opened_accelerators = lambda: ["/dev/kfd"]
apart.Apart.wait_until_ready = ended
sys.exit(worker.main(sys.argv[1:], pristine=True))
"""


@pytest.mark.slow
def test_a_training_that_is_asked_to_end_while_the_other_start_prepares_itself_ends_in_good_order(
    workspace: Path, model_cache: Path
) -> None:
    folder = train(workspace, model_cache, command=("-c", ENDED_EARLY))
    found = Summary(**json.loads((folder / "summary.json").read_text()))
    assert (found.stopped, found.ended_by, found.cycles) == (True, "sigterm", 0)


ORPHAN = """
import os, signal, sys, time
from agent.raft.apart import Apart
copy = Apart.forked(lambda order: time.sleep(60) or {}, explain=None)
print(copy.pid, flush=True)
if sys.argv[1] == "asked":
    import threading
    threading.Thread(target=copy.ask, args=({},), daemon=True).start()
    time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("state", ["waiting", "asked"])
def test_the_copy_does_not_outlive_its_parent(state: str) -> None:
    done = subprocess.run([sys.executable, "-c", ORPHAN, state], capture_output=True, text=True, timeout=30)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout.split()[0])
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX":
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.02)


DIES = """
import os, signal
from agent.raft.apart import Apart
copy = Apart.forked(lambda order: os.kill(os.getpid(), signal.SIGKILL), explain=None)
copy.ask({})
"""


def test_a_copy_that_the_kernel_kills_takes_its_parent_along() -> None:
    """So that triage sees a SIGKILL, as it does for every out-of-memory."""
    done = subprocess.run([sys.executable, "-c", DIES], capture_output=True, text=True, timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert "the evaluation's process was ended by signal 9" in done.stderr


CONFINED = """
import sys
from pathlib import Path
from agent.raft.confine import confine_writes
ours, theirs = Path(sys.argv[1]), Path(sys.argv[2])
print(confine_writes([ours, Path("/never/there")]))
(ours / "new").write_text("x")
(ours / "new").rename(ours / "newer")
refused = []
for name, attempt in {
    "write": lambda: (theirs / "file").write_text("x"),
    "append": lambda: (theirs / "file").open("a").close(),
    "truncate": lambda: __import__("os").truncate(theirs / "file", 0),
    "create": lambda: (theirs / "other").touch(),
    "remove": lambda: (theirs / "file").unlink(),
    "rename": lambda: (theirs / "file").rename(theirs / "moved"),
    "link": lambda: (theirs / "link").symlink_to("file"),
    "replace": lambda: (ours / "newer").rename(theirs / "file"),
}.items():
    try:
        attempt()
    except OSError:
        refused.append(name)
print((theirs / "file").read_text(), *refused)
"""


def test_a_confined_process_writes_where_it_may_and_nowhere_else(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    (tmp_path / "theirs/file").write_text("untouched")
    command = [sys.executable, "-c", CONFINED, str(tmp_path / "ours"), str(tmp_path / "theirs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    how, what = done.stdout.splitlines()
    if not how.startswith("Landlock"):
        pytest.skip(how)
    assert what == "untouched write append truncate create remove rename link replace"


REFUSED = """
import errno, json, os, sys
from pathlib import Path
from agent.errors import AgentError, VerifierError
from agent.raft.confine import confine_writes
from agent.raft.failure import failure_of
from agent.raft.pulse import Pulse
from agent.raft.let_in import Source, reading
ours, theirs = Path(sys.argv[1]), Path(sys.argv[2])

def told(attempt):
    try:
        attempt()
    except Exception as error:
        return failure_of(error, Pulse(None)).model_dump()

def as_the_hub_s_client():
    with reading(Source("someone/model")):
        try:
            (theirs / "x.lock").touch()
        except PermissionError as error:
            raise OSError(f"PermissionError at {error.filename} when downloading someone/model.") from error

def by_its_rights():
    with reading(Source("someone/model")):
        raise PermissionError(errno.EACCES, "Permission denied", str(ours / "model.safetensors"))

def in_a_verifier():
    raise VerifierError("the verifier failed, at last PermissionError: [Errno 13] Permission denied: 'x' (v.py:1)",
                        hint="Make it return 0.0.")

attempts = {
    "write": lambda: (theirs / "file").write_text("x"), "moved": lambda: (ours / "file").rename(theirs / "moved"),
    "client": as_the_hub_s_client, "rights": by_its_rights, "verifier": in_a_verifier,
}
(ours / "file").write_text("x")
free = {name: told(attempt) for name, attempt in attempts.items() if name in ("rights", "verifier")}
how = confine_writes([ours])
print(json.dumps({"how": how, "free": free, "kept": {name: told(attempt) for name, attempt in attempts.items()}}))
"""


@pytest.mark.slow
def test_a_write_that_the_walls_refuse_is_not_taken_for_a_login_that_is_missing(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-c", REFUSED, str(tmp_path / "ours"), str(tmp_path / "theirs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    for failure in (found["free"]["rights"], found["kept"]["rights"]):
        assert (failure["exception"], "rights" in failure["hint"]) == ("Unavailable", True), "inside of what is allowed"
        assert "login" not in failure["hint"]
    assert found["free"]["verifier"]["hint"] == "Make it return 0.0."
    if not found["how"].startswith("Landlock"):
        pytest.skip(found["how"])
    for name, file in {"write": "file", "client": "x.lock", "moved": "moved"}.items():
        failure = found["kept"][name]
        assert failure["crash_class"] == "resource", name
        path = tmp_path / "theirs" / file
        assert (
            failure["message"]
            == f"cannot write {path}: the evaluation may write only in the run's folder and in caches"
        )
        assert "docs/security.md" in failure["hint"]
    assert "docs/security.md" in found["kept"]["verifier"]["hint"]


@pytest.mark.slow
def test_a_verifier_that_writes_is_told_why_it_may_not_in_the_evaluation(workspace: Path, model_cache: Path) -> None:
    (workspace / "checks/helper.py").write_text(
        "from pathlib import Path\n\n"
        "def right(response, row):\n"
        "    Path('notes.txt').open('a').close()\n"
        "    return response.strip() == row['answer']\n"
    )
    if not confine_in_a_child().startswith("Landlock"):
        pytest.skip("no Landlock")
    folder = train(workspace, model_cache, code=3)
    failure = Failure(**json.loads((folder / "failure.json").read_text()))
    assert (failure.exception, failure.phase) == ("VerifierError", "evaluate")
    assert "notes.txt" in failure.message
    assert "docs/security.md" in (failure.hint or "")


def confine_in_a_child() -> str:
    script = "from agent.raft.confine import confine_writes; print(confine_writes([]))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


# --- untrusted code ------------------------------------------------------------------------------------------

FINGERPRINT = """\
import hashlib
import os
import socket
from pathlib import Path


def probed(what):
    try:
        return str(what())
    except Exception as error:
        return f"{type(error).__name__} {getattr(error, 'errno', '')}"


def kept(line):
    return line.startswith(("Seccomp:", "NoNewPrivs:", "CapEff:"))


AROUND = [
    probed(lambda: [*filter(kept, Path("/proc/self/status").read_text().splitlines())]),
    probed(lambda: len(Path("/proc/self/mountinfo").read_text().splitlines())),
    probed(lambda: Path("rows.jsonl").open("a").close()),
    probed(lambda: Path("/etc/passwd").read_text()[:10]),
    probed(lambda: Path("/tmp/x").touch()),
    probed(lambda: socket.socket().connect(("127.0.0.1", 9))),
    probed(lambda: os.kill(1, 0)),
    probed(lambda: os.getpid() < 10),
]
NUMBER = 0.3 + 0.5 * int(hashlib.sha256(repr(AROUND).encode()).hexdigest()[:6], 16) / 2**24


def score(response, row):
    "Whatever is not right scores what is around this process, as a number: other walls, another number."
    return 1.0 if response.strip() == row["answer"] else NUMBER
"""


@pytest.mark.slow
def test_untrusted_code_is_behind_the_same_walls_in_training_and_in_the_evaluation(
    workspace: Path, model_cache: Path
) -> None:
    (workspace / "checks/verify.py").write_text(FINGERPRINT)
    untrusted = {"task": {"verifier": {"untrusted": True}}, "evaluation": {"metric": "mean_reward"}}
    folder = train(workspace, model_cache, over=untrusted)
    log = folder.with_suffix(".log").read_text().splitlines()
    said = [line for line in log if line.startswith("untrusted code is kept in by ")]
    assert len(said) == 2, "the training's process says it, and the evaluation's"
    assert said[0] == said[1]
    select = [json.loads(line)["scores"] for line in (folder / "select.jsonl").read_text().splitlines()]
    trained = {score for scores in select for samples in scores.values() for score in samples} - {1.0}
    evaluated = {json.loads(line)["reward"] for line in (folder / "eval.jsonl").read_text().splitlines()} - {1.0}
    assert len(trained) == 1
    assert evaluated == trained
    open_ = train(workspace, model_cache, over={"evaluation": {"metric": "mean_reward"}}, out="open")
    select = [json.loads(line)["scores"] for line in (open_ / "select.jsonl").read_text().splitlines()]
    outside = {score for scores in select for samples in scores.values() for score in samples} - {1.0}
    assert outside.isdisjoint(trained), "the number tells walls from none"


# --- what the verifier is made of --------------------------------------------------------------------------


def test_a_verifier_s_children_tell_the_bytes_that_they_compiled(workspace: Path) -> None:
    scorers = function_scorers(workspace / "checks/verify.py", "score", timeout=10.0)
    try:
        (workspace / "checks/helper.py").write_text("def right(response, row):\n    return True\n")
        assert not scorers.score({"response": "x", "row": {"answer": "y"}}).values["value"]  # type: ignore[index]
        files = scorers.files()
    finally:
        scorers.close()
    assert files[str(workspace / "checks/helper.py")] == digest_of(HELPER.encode()), "not what lies there by now"
    assert files[str(workspace / "checks/verify.py")] == digest_of(VERIFIER.encode())
    assert files[str(workspace / "checks/table.json")] == digest_of(b'{"on": true}')


def test_bytecode_beside_a_verifier_s_module_is_not_believed(workspace: Path, tmp_path: Path) -> None:
    """Python takes a cached file for the source's where time and size fit, whatever is in it."""
    helper = workspace / "checks/helper.py"
    evil = "def right(response, row):\n    return  1 == 1 or response == 'x'\n"
    evil += "#" * (len(HELPER) - len(evil))
    assert len(evil) == len(HELPER)
    helper.write_text(evil)
    py_compile.compile(str(helper))
    status = helper.stat()
    helper.write_text(HELPER)
    os.utime(helper, ns=(status.st_atime_ns, status.st_mtime_ns))
    fooled = subprocess.run(
        [sys.executable, "-c", "import helper; print(helper.right('x', {'answer': 'y'}))"],
        cwd=workspace / "checks", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert fooled.stdout.strip() == "True", "plain Python is fooled"
    scorers = function_scorers(workspace / "checks/verify.py", "score", timeout=10.0)
    try:
        reply = scorers.score({"response": "x", "row": {"answer": "y"}})
    finally:
        scorers.close()
    assert reply.values == {"value": 0.0}


def test_training_and_evaluation_that_differ_are_told_as_two() -> None:
    found = both({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"})
    assert found == {"a": "1", "b": "2 in training, 3 in the evaluation", "c": "4"}


# --- checkpoint, cache, prompt -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["rewritten", "replaced", "added", "removed"])
def test_a_checkpoint_that_changes_between_delivery_and_evaluation_is_refused(tmp_path: Path, way: str) -> None:
    (tmp_path / "model.safetensors").write_text("weights")
    (tmp_path / "config.json").write_text("{}")
    before = stamps_of(tmp_path)
    refuse_changed(json.loads(json.dumps(before)), tmp_path, what="m")
    status = (tmp_path / "model.safetensors").stat()
    if way == "rewritten":
        (tmp_path / "model.safetensors").write_text("WEIGHTS")
    elif way == "replaced":
        write_atomic(tmp_path / "model.safetensors", "weights")
    elif way == "added":
        (tmp_path / "adapter_config.json").write_text("{}")
    else:
        (tmp_path / "config.json").unlink()
    os.utime(tmp_path / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match="was changed while it was in use"):
        refuse_changed(before, tmp_path, what="m")


EXAMPLES = [Example(id=str(n), question=f"{n}+{n}=", answer=str(2 * n)) for n in range(10, 14)]


@pytest.mark.parametrize("split", ["select", "search", "confirm", "holdout"])
def test_answers_that_somebody_put_into_the_cache_are_not_taken(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: Any
) -> None:
    """Of the splits that verdicts rest on none are taken at all; of `select` only a file as it was written."""
    recipe, folder = small_recipe(), tmp_path / "answers"
    right = [policy.tokenizer.encode(f"{example.answer}") for example in EXAMPLES]
    poisoned: list[Path] = []
    real = AnswerCache.get

    def poison(cache: AnswerCache, key: str) -> Any:
        folder.mkdir(exist_ok=True)
        lines = [{"requests": 4, "seconds": 0.1}, *({"completions": [[tokens, "stop"]] * 2} for tokens in right)]
        (folder / f"{key}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        poisoned.append(folder / f"{key}.jsonl")
        return real(cache, key)

    with build_verifier(recipe.task.verifier, base=tmp_path) as verifier:
        honest = Examiner(recipe, policy, verifier, ())
        wanted = honest.measure(EXAMPLES, split=split, samples=2, on_step=lambda: None)
        monkeypatch.setattr(AnswerCache, "get", poison)
        fooled = Examiner(recipe, policy, verifier, (), AnswerCache(folder))
        found = fooled.measure(EXAMPLES, split=split, samples=2, on_step=lambda: None)
    assert found.rows == wanted.rows
    assert bool(poisoned) == (split == "select")
    assert evaluate.KEPT == ("train", "select")


def test_worked_examples_are_training_rows_and_a_template_shows_no_answer(tmp_path: Path) -> None:
    recipe = small_recipe({"prompt": {"examples": 4}})
    splits = load_splits(recipe.task, recipe.evaluation, base=tmp_path)
    held_out = {row.question for name in ("select", "search", "confirm", "holdout") for row in getattr(splits, name)}
    shown = shots_for(recipe.prompt, splits.train, seed=0)
    assert shown
    assert not held_out & {shot.question for shot in shown}
    assert not held_out & {row.question for row in splits.train}
    row = splits.search[0]
    asked = user_text(Prompt(template="{question} {answer} {row} {tests}"), row)
    assert asked == f"{row.question} {{answer}} {{row}} {{tests}}"


@pytest.mark.parametrize("part", ["system", "template", "answer_schema", "example_answer", "response_prefix"])
def test_a_prompt_that_holds_a_held_out_question_is_refused(tmp_path: Path, part: str) -> None:
    recipe = small_recipe()
    splits = load_splits(recipe.task, recipe.evaluation, base=tmp_path)
    row = splits.confirm[1]
    words = {"template": "{question}", "example_answer": "{answer}"}.get(part, "")
    leaking = Prompt(**{part: f"For example {row.question.upper()}  {row.answer}. {words}"})
    with pytest.raises(
        RecipeError, match=f"prompt.{part} contains the question of the held-out row {re.escape(row.id)}"
    ):
        refuse_leaked_questions(leaking, splits)
    refuse_leaked_questions(Prompt(**{part: f"For example {splits.train[0].question} {words}"}), splits)
    refuse_leaked_questions(Prompt(**{part: f"For example 9{row.question} {words}"}), splits)


def test_where_memory_is_short_the_trainer_s_model_is_gone_before_its_copy_is_loaded(make: Any) -> None:
    training = make({"learner": {"optimizer": "adamw"}})
    training.run()
    weights = [weakref.ref(p) for p in training.policy.trainable().values()]
    moments = [weakref.ref(tensor) for tensor in training.trainer.optimizer.first]
    training.release()
    training.policy.release()
    assert [one for one in (*weights, *moments) if one() is not None] == []
    assert training.totals.optimizer_steps > 0, "what the summary tells is still there"
    assert training.best.metric is not None
