"""Trainers that do not want to be ended, to be seen or to be read: `hostile.py BEHAVIOUR --out DIR ...`.

Each behaviour is a function below. Whatever it starts has the name MARK (prctl(2), PR_SET_NAME; at most 15 letters),
which a fork inherits and no clearing of the environment removes, and tells its id in DIR/pids. Forks only, standard
library only (`python -I -S`), so that fifty of them take seconds. Everything ends by itself after LIFETIME_S.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

LIFETIME_S = 90.0
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER, PR_SET_PTRACER = 1, 15, 36, 0x59616D61
PTRACE_ATTACH, SYS_EXIT = 16, 60
MARK = os.environ.get("HOSTILE_NAME", "raft-hostile")
LIBC = ctypes.CDLL(None, use_errno=True)
GIB = 1024**3


def main() -> int:
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    LIBC.prctl(PR_SET_NAME, MARK.encode(), 0, 0, 0)
    born(out)
    beat(out, 0)
    return BEHAVIOURS[sys.argv[1]](out) or 0


def born(out: Path) -> None:
    with (out / "pids").open("a") as file:
        file.write(f"{os.getpid()}\n")


def beat(out: Path, step: int, **more: object) -> None:
    told = {"phase": "train", "step": step, "cycle": 1, "pid": os.getpid(), "time": time.time(), **more}
    temporary = out / f".beat.{os.getpid()}"
    temporary.write_text(json.dumps(told))
    temporary.replace(out / "heartbeat")


def deaf() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT):
        signal.signal(number, signal.SIG_IGN)


def go_on(out: Path, *, seconds: float = LIFETIME_S) -> None:
    """Beats with a step each time."""
    until, step = time.monotonic() + seconds, 10
    while time.monotonic() < until:
        step += 1
        beat(out, step)
        time.sleep(0.05)


def wait() -> None:
    time.sleep(LIFETIME_S)


def child(do: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            do()
        finally:
            os._exit(0)
    return pid


def daemon(out: Path) -> None:
    """Forked twice, in a session of its own, with nothing in its environment, deaf: what nothing links to us."""

    def first() -> None:
        os.setsid()
        child(second)

    def second() -> None:
        os.setsid()
        deaf()
        born(out)
        code = f"import ctypes, time; ctypes.CDLL(None).prctl({PR_SET_NAME}, {MARK.encode()!r}, 0, 0, 0); time.sleep({LIFETIME_S})"  # noqa: E501 one program on one line
        os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", code], {})

    os.waitpid(child(first), 0)


def summary(out: Path, **more: object) -> None:
    told = {"stopped": False, "seed": 1, "recipe_signature": "x", "cycles": 1, "metric": "pass_rate"}
    (out / ".summary").write_text(json.dumps({**told, "metrics": {"search": 0.5}, **more}))
    (out / ".summary").replace(out / "summary.json")


# --- that do not want to end -------------------------------------------------------------------------------


def ignores(out: Path) -> None:
    deaf()
    go_on(out)


def daemonizes(out: Path) -> None:
    deaf()
    daemon(out)
    daemon(out)
    go_on(out)


def leaves_daemons(out: Path) -> None:
    """Ends well; what it left has lost its mark, its parent, its group and its session."""
    for _ in range(3):
        daemon(out)
    summary(out)


def hydra(out: Path) -> None:
    """Forks and leaves, again and again, each time in a session of its own."""
    deaf()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if os.fork() == 0:
        until = time.monotonic() + LIFETIME_S
        while time.monotonic() < until:
            os.setsid()
            if os.fork() != 0:
                os._exit(0)
    go_on(out)


def bomb(out: Path) -> None:
    """Thirty processes that start another one for each that is killed."""
    deaf()

    def keep_up(depth: int) -> None:
        born(out)
        until = time.monotonic() + LIFETIME_S
        while time.monotonic() < until:
            pid = os.fork()
            if pid == 0:
                if depth:
                    keep_up(depth - 1)
                time.sleep(LIFETIME_S)
                os._exit(0)
            os.waitpid(pid, 0)

    for number in range(10):
        child(lambda number=number: keep_up(number % 4))
    go_on(out)


def moves(out: Path) -> None:
    """Goes on as another process, with another parent, group and session, and the first one leaves."""
    if os.fork() != 0:
        return
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    deaf()
    born(out)
    go_on(out)


def adopts(out: Path) -> None:
    """Adopts orphans itself, so that they are none of the leash's at first."""
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    deaf()
    daemon(out)
    go_on(out)


def stops_itself(out: Path) -> None:
    deaf()
    os.kill(os.getpid(), signal.SIGSTOP)
    go_on(out)


def stops_its_leash(out: Path) -> None:
    deaf()
    os.kill(os.getppid(), signal.SIGSTOP)
    daemon(out)
    go_on(out)


def kills_its_leash(out: Path) -> None:
    """And would not go with it."""
    deaf()
    LIBC.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    daemon(out)
    os.kill(os.getppid(), signal.SIGKILL)
    daemon(out)
    go_on(out)


def waits_in_vfork(out: Path) -> None:
    """In state D until its child ends (vfork(2)): as uninterruptible as can be had without a broken disk."""
    deaf()
    if LIBC.vfork() == 0:
        born(out)
        time.sleep(LIFETIME_S)
        os._exit(0)
    wait()


def is_traced(out: Path) -> None:
    """Stopped by a debugger, its own child."""
    deaf()
    LIBC.prctl(PR_SET_PTRACER, -1, 0, 0, 0)
    parent = os.getpid()

    def trace() -> None:
        deaf()
        born(out)
        LIBC.ptrace(PTRACE_ATTACH, parent, 0, 0)
        wait()

    child(trace)
    go_on(out)


def without_first_thread(out: Path) -> None:
    """Its first thread leaves: the system shows a zombie from then on, and another thread trains on."""
    deaf()
    thread = threading.Thread(target=go_on, args=(out,))
    thread.start()
    LIBC.syscall(SYS_EXIT, 0)


def stays_after_its_summary(out: Path) -> None:
    deaf()
    daemon(out)
    summary(out)
    go_on(out)


def holds_its_log_open(out: Path) -> None:
    """It leaves, and a child goes on writing to the log."""

    def write() -> None:
        deaf()
        born(out)
        until = time.monotonic() + LIFETIME_S
        while time.monotonic() < until:
            print("still here", flush=True)
            time.sleep(0.01)

    child(write)
    summary(out)


# --- that do not answer, or lie ----------------------------------------------------------------------------


def freezes(out: Path) -> None:
    deaf()
    for step in range(10):
        beat(out, step)
        time.sleep(0.02)
    wait()


def lies(out: Path) -> None:
    """A thread renews the heartbeat, and nothing happens."""
    deaf()
    for step in range(10):
        beat(out, step)
        time.sleep(0.02)

    def renew() -> None:
        share = 0.0
        while True:
            share += 0.001
            beat(out, 9, budget_spent=share)
            time.sleep(0.02)

    threading.Thread(target=renew, daemon=True).start()
    wait()


def is_of_the_future(out: Path) -> None:
    """Steps of thirty years, by its own stamps, and then nothing."""
    deaf()
    for step in range(20):
        beat(out, step, time=1e9 * step)
        time.sleep(0.02)
    wait()


def heartbeat_is(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def behave(out: Path) -> None:
        deaf()
        (out / "heartbeat").unlink()
        make(out / "heartbeat")
        wait()

    return behave


def sparse(path: Path, size: int = 10 * GIB) -> None:
    with path.open("wb") as file:
        file.truncate(size)


# --- that write what nobody can read -----------------------------------------------------------------------


def floods_its_log(out: Path) -> None:
    deaf()
    block = b"nothing to see here, and a lot of it\n" * 30000
    until, step = time.monotonic() + LIFETIME_S, 10
    while time.monotonic() < until:
        os.write(1, block)
        step += 1
        beat(out, step)
        time.sleep(0.002)


def floods_its_rows(out: Path) -> None:
    """Files of 10 GB, and leaves well."""
    for name in ("cycles.jsonl", "select.jsonl", "eval.jsonl", "rung.jsonl", "plan.json"):
        sparse(out / name)
    summary(out)


def puts_pipes_in_the_way(out: Path) -> int:
    """Whoever opens them waits for ever."""
    for name in ("cycles.jsonl", "eval.jsonl", "plan.json", "summary.json", "failure.json", "select.jsonl"):
        os.mkfifo(out / name)
    (out / "heartbeat").unlink()
    os.mkfifo(out / "heartbeat")
    return 1


def puts_folders_in_the_way(out: Path) -> int:
    (out / "heartbeat").unlink()
    for name in ("heartbeat", "summary.json", "failure.json", "cycles.jsonl"):
        (out / name / "full").mkdir(parents=True)
    return 1


def links_its_log(out: Path) -> None:
    """To a file that it has no business with."""
    (out / "log.txt").unlink()
    (out / "log.txt").symlink_to(out.parent / "precious")
    (out / "telemetry.jsonl").unlink(missing_ok=True)
    (out / "telemetry.jsonl").symlink_to(out.parent / "precious")
    summary(out)


def writes_garbage(out: Path) -> None:
    for name in ("summary.json", "heartbeat", "plan.json", "cycles.jsonl"):
        (out / name).write_bytes(b"[" * 100_000 + b"\xff\x00")


def removes_its_folder(out: Path) -> None:
    deaf()
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    out.symlink_to("/dev/null")
    wait()


def fills_memory_slowly(out: Path) -> None:
    deaf()
    blocks: list[bytearray] = []
    for step in range(120):
        blocks.append(bytearray(b"x") * (24 * 1024 * 1024))
        beat(out, step)
        time.sleep(0.05)
    wait()


BEHAVIOURS: dict[str, Callable[[Path], int | None]] = {
    one.__name__: one
    for one in (
        ignores, daemonizes, leaves_daemons, hydra, bomb, moves, adopts, stops_itself, stops_its_leash,
        kills_its_leash, waits_in_vfork, is_traced, without_first_thread, stays_after_its_summary, holds_its_log_open,
        freezes, lies, is_of_the_future, floods_its_log, floods_its_rows, puts_pipes_in_the_way,
        puts_folders_in_the_way, links_its_log, writes_garbage, removes_its_folder, fills_memory_slowly,
    )
}  # fmt: skip
BEHAVIOURS |= {
    "heartbeat_is_a_folder": heartbeat_is(Path.mkdir),
    "heartbeat_is_a_pipe": heartbeat_is(lambda path: os.mkfifo(path)),
    "heartbeat_is_endless": heartbeat_is(lambda path: path.symlink_to("/dev/zero")),
    "heartbeat_is_huge": heartbeat_is(sparse),
}

if __name__ == "__main__":
    sys.exit(main())
