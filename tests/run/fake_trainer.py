"""A trainer that keeps the process contract and trains nothing; the variable FAKE, or a file `fake` in the current
folder, says what it does.

It takes the arguments of agent.contract, writes the same files in the same order, and obeys SIGTERM, unless
it is told to be one of the trainers that do not.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

AT_START: dict[str, object] = {}
AUTOGROUP = Path("/proc/self/autogroup")
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--split", action="append", default=[])
    parser.add_argument("--evaluate")
    parser.add_argument("--rung", type=float)
    parser.add_argument("--time-limit", type=float)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--allow-untrusted-code", action="store_true")
    arguments = parser.parse_args()
    AT_START.update(as_the_system_sees_it())
    told = Path("fake")
    return FAKES[os.environ.get("FAKE") or (told.read_text() if told.exists() else "good")](arguments)


def beat(out: Path, phase: str, step: int, **more: object) -> None:
    row = {"phase": phase, "step": step, "cycle": 1, "pid": os.getpid(), "time": time.time()} | more
    temporary = out / ".heartbeat.tmp"
    temporary.write_text(json.dumps(row))
    temporary.replace(out / "heartbeat")


def as_the_system_sees_it() -> dict[str, object]:
    """What could differ between a process that was started for its run and one that was handed it."""
    autogroup = Path("/proc/self/autogroup")
    return {
        "policy": os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None,
        "group nice": autogroup.read_text().split()[-1] if autogroup.exists() else None,
        "leads its session": os.getsid(0) == os.getpid() == os.getpgid(0),
        "standard input": os.read(0, 10).decode(),
        "terminated by": str(signal.getsignal(signal.SIGTERM)),
        "threads": len(list(Path("/proc/self/task").glob("*"))),
        "open files": len(list(Path("/proc/self/fd").glob("*"))),
        "offered to the memory killer": Path("/proc/self/oom_score_adj").read_text().strip()
        if Path("/proc/self/oom_score_adj").exists()
        else None,
        "core limit": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "variables": sorted(name for name in os.environ if name != "RAFT_AGENT_RUN"),
    }


def line(path: Path, **row: object) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def finish(arguments: argparse.Namespace, *, cycles: int, stopped: bool) -> int:
    for split in [name for name in arguments.split if name != "none"]:
        for number in range(4):
            line(
                arguments.out / "eval.jsonl",
                split=split, id=f"{split}-{number}", sample=0, reward=1.0, passed=number % 2 == 0,
                formatted=True, tokens=5, finish_reason="stop",
            )  # fmt: skip
    summary = {
        "stopped": stopped,
        "seed": arguments.seed,
        "recipe_signature": "fake",
        "cycles": cycles,
        "metric": "pass_rate",
        "metrics": {"search": 0.5},
        "arguments": vars(arguments) | {"recipe": str(arguments.recipe), "out": str(arguments.out), "cache": None},
        "variables": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "FROM_RECIPE", "FROM_REQUEST")},
        "niceness": os.nice(0),
        "group_nice": int(AUTOGROUP.read_text().split()[-1]) if AUTOGROUP.exists() else None,
        "pid": os.getpid(),
        "process": AT_START,
        "folder": str(Path.cwd()),
    }
    temporary = arguments.out / ".summary.tmp"
    temporary.write_text(json.dumps(summary, default=str))
    temporary.replace(arguments.out / "summary.json")
    return 0


def good(arguments: argparse.Namespace) -> int:
    """Three cycles, going on after those that are already there."""
    path = arguments.out / "cycles.jsonl"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    print(f"starting at cycle {done}")
    for cycle in range(done, 3):
        beat(arguments.out, "train", cycle, budget_spent=cycle / 3, note="hello")
        line(arguments.out / "select.jsonl", cycle=cycle, budget_spent=cycle / 3, scores={"a": [1.0, 0.0], "b": [0.0]})
        line(path, cycle=cycle, loss=1.0 / (cycle + 1), samples=8, kept=4)
        time.sleep(0.05)
    return finish(arguments, cycles=3, stopped=False)


def tells(arguments: argparse.Namespace) -> int:
    """Prints a secret that it was given."""
    print("it was given", os.environ.get("SOME_TOKEN"), flush=True)
    return good(arguments)


def steady(arguments: argparse.Namespace) -> int:
    """Goes on for ever, and stops in good order on SIGTERM."""
    asked: list[int] = []
    print("going on until it is stopped", flush=True)
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    step = 0
    while not asked:
        step += 1
        beat(arguments.out, "generate", step)
        time.sleep(0.02)
    return finish(arguments, cycles=step, stopped=True)


def says_one_thing(arguments: argparse.Namespace) -> int:
    """A long evaluation in which every prompt gets the same answer; stops in good order on SIGTERM."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    step = 0
    while not asked:
        step += 1
        beat(arguments.out, "evaluate", step)
        line(
            arguments.out / "eval.jsonl",
            split="search", id=f"search-{step}", sample=0, reward=1.0, passed=True, tokens=5, finish_reason="stop",
            digest="0011aabb",
        )  # fmt: skip
        time.sleep(0.02)
    arguments.split = []
    return finish(arguments, cycles=3, stopped=True)


def stubborn(arguments: argparse.Namespace) -> int:
    """Ignores SIGTERM, and so do a child, a grandchild, and a child of its own session that has lost its parent."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pids = [subprocess.Popen([sys.executable, "-c", CHILD]).pid]
    code = f"import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', {CHILD!r}]).pid, flush=True); time.sleep(120)"  # noqa: E501 one program on one line
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids += [parent.pid, int(parent.stdout.readline())]
        # A daemon: its parent ends at once, so nothing in the process table links it to us any more.
        daemon = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {CHILD!r}], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"  # noqa: E501 one program on one line
        printed = subprocess.run([sys.executable, "-c", daemon], capture_output=True, text=True, check=True)
        pids.append(int(printed.stdout))
        (arguments.out / "pids.json").write_text(json.dumps([os.getpid(), *pids]))
        step = 0
        while True:
            step += 1
            beat(arguments.out, "generate", step)
            time.sleep(0.05)


def leaves_children(arguments: argparse.Namespace) -> int:
    """Ends well but leaves a child behind."""
    pid = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid
    (arguments.out / "pids.json").write_text(json.dumps([pid]))
    return finish(arguments, cycles=0, stopped=False)


def killed(arguments: argparse.Namespace) -> int:
    beat(arguments.out, "train", 1)
    print("step 1 loss 0.5", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def hung(arguments: argparse.Namespace) -> int:
    for step in range(12):
        beat(arguments.out, "generate", step)
        time.sleep(0.1)
    waits_for_ever()
    return 0


def waits_for_ever() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(120)


def eats(arguments: argparse.Namespace) -> int:
    """Takes 3 GiB in a second and a half, and keeps it."""
    blocks = []
    for step in range(30):
        blocks.append(b"x" * (100 * 1024 * 1024))
        beat(arguments.out, "train", step)
        time.sleep(0.05)
    time.sleep(60)
    return len(blocks)


def silent_but_working(arguments: argparse.Namespace) -> int:
    """Beats a dozen times and then computes for a minute without a sign of life: its memory moves all the time."""
    for step in range(12):
        beat(arguments.out, "generate", step)
        time.sleep(0.1)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        block = bytearray(64 * 1024 * 1024)
        time.sleep(0.7)
        del block
        time.sleep(0.7)
    return 0


def crawls(arguments: argparse.Namespace) -> int:
    """Steps of 10 ms, then of 20 s, as its own stamps say; it obeys SIGTERM."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    step, stamp = 0, time.time()
    while not asked:
        step += 1
        stamp += 0.01 if step < 40 else 20.0
        beat(arguments.out, "train", step, time=stamp)
        time.sleep(0.06)
    return finish(arguments, cycles=1, stopped=True)


def garbage(arguments: argparse.Namespace) -> int:
    """Writes what no contract has, and leaves with an error."""
    out = arguments.out
    (out / "heartbeat").write_bytes(b"\x00\xff{not json")
    (out / "plan.json").write_text("[1, 2]")
    (out / "cycles.jsonl").write_bytes(
        b'{"cycle": 0, "loss": NaN}\n\xff\xfe\x00garbage\n[1,2,3]\n{"cycle": "many"}\n'
        b'{"cycle": 1, "loss": 0.5}\n{"cycle": 1, "loss": 0.25}\n{"cycle": 2, "lo'
    )
    (out / "eval.jsonl").write_text('{"split": "moon", "id": "a"}\n' + "[" * 5000 + "\n")
    (out / "summary.json").write_text('{"seed": ')
    time.sleep(0.3)
    print("\x1b[31mTraceback (most recent call last):\x1b[0m")
    print('  File "train.py", line 3, in main')
    print("NameError: name 'lerning_rate' is not defined")
    return 1


def named_failure(arguments: argparse.Namespace) -> int:
    failure = {"crash_class": "data", "message": "row 3 has no answer", "exception": "DataError", "phase": "load"}
    (arguments.out / "failure.json").write_text(json.dumps(failure))
    return 3


def hungry(arguments: argparse.Namespace) -> int:
    block = bytearray(200 * 1024 * 1024)
    for step in range(40):
        beat(arguments.out, "train", step)
        time.sleep(0.05)
    return len(block) * 0


def forgets_its_summary(arguments: argparse.Namespace) -> int:
    """Says that all went well, and leaves nothing that would show it."""
    good(arguments)
    (arguments.out / "summary.json").unlink()
    return 0


def cuts_its_summary(arguments: argparse.Namespace) -> int:
    """The same with half of one, as a disk that fills up at the last moment leaves it."""
    good(arguments)
    path = arguments.out / "summary.json"
    path.write_text(path.read_text()[:100])
    return 0


FAKES = {
    "forgets_its_summary": forgets_its_summary,
    "cuts_its_summary": cuts_its_summary,
    "good": good,
    "tells its environment": tells, "steady": steady, "says_one_thing": says_one_thing, "stubborn": stubborn,
    "leaves_children": leaves_children, "killed": killed, "hung": hung, "garbage": garbage,
    "named_failure": named_failure, "hungry": hungry, "silent_but_working": silent_but_working, "crawls": crawls,
    "eats": eats,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
