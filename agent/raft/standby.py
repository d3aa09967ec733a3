"""`python -m agent.raft.standby RECIPE`: a worker up to its imports, which then waits to be told its run.

The other end is `agent.run.standby`, over a socket on standard input: `ready` goes out once everything is imported, a
line of JSON comes back (`arguments` of the worker, `log` to write to), or the socket closes and this process ends at
once. `hurry` comes before where the run is waiting already. Until it has a run it writes no file and touches no
accelerator. RECIPE only says what to import; it is not the run's.

The imports should take little from the training that runs meanwhile, and nothing of that may stay when the run is
handed over. Tried without privileges on Linux 6.18 (and as sched(7) has it): a thread cannot leave SCHED_IDLE, nor
lower its niceness again, as long as RLIMIT_NICE is 0, the default; it can leave SCHED_BATCH, which does not help,
because it takes as much of the processor. Two ways remain, and both are needed:

- The imports run in a thread of their own with a niceness, which on Linux is the thread's and ends with it.
- Where the kernel groups processes by session (sched_autogroup_enabled, on by default), niceness and policy count
  within the session only: two busy processes on one core shared it evenly whatever theirs were. The nice value of
  the group counts there, and it may be put back without privileges; with 19 the other got 3% of the core.

The niceness is 10, a tenth of one core where all are busy: with 19 or SCHED_IDLE the imports would never end beside
a training that uses all cores and one more busy process (75 s with 19, 30 s with 10, 4 s with 0, on two cores).
`hurry` puts the group's nice value back; the thread's stays, which matters only where sessions are not grouped.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO

from agent.errors import AgentError
from agent.proc import MOST_NICE, group_nice, set_group_nice

MODULES = (
    "agent.raft.worker",
    "agent.raft.environment",
    "agent.raft.sources",
    "agent.raft.engine",
    "agent.raft.evaluate",
    "agent.raft.model",
    "agent.raft.leaks",
    "agent.raft.used",
    "agent.tasks.tasks",
    "agent.tasks.verifiers",
    "agent.tasks.prompts",
)
"""What a worker imports for every recipe; torch comes with it."""
TRANSFORMERS = (
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "PreTrainedModel",
    "GenerationMixin",
    "PreTrainedTokenizerFast",
)
"""Names that transformers imports only when they are asked for, which is most of its time."""
NICENESS = 10
HURRY = b"hurry\n"


def main() -> int:
    # numpy starts a thread pool when it is imported, which inherits the niceness of the importing thread for good.
    importlib.import_module("numpy")
    recipe = Path(sys.argv[1])
    arguments = stand_by(lambda: import_for(recipe))
    if not environment_is_settled(arguments):
        os.execv(sys.executable, [sys.executable, "-m", "agent.raft.worker", *arguments])
    from agent.raft import worker

    return worker.main(arguments, pristine=True)


# --- what is imported --------------------------------------------------------------------------------------


def import_for(path: Path) -> None:
    """Import what a worker does for the recipe in this file; without a readable one, what every worker does."""
    from agent.recipe.files import load_recipe
    from agent.recipe.yardstick import code_digest

    code_digest()  # of the code that is about to be imported, whatever lies there when the run comes
    for name in MODULES:
        importlib.import_module(name)
    from agent.raft.sources import TINY
    from agent.raft.support import needs_transformers

    try:
        recipe = load_recipe(path, edited=False)
    except (AgentError, OSError):
        return
    if recipe.model.source != TINY or needs_transformers(recipe):
        transformers = importlib.import_module("transformers")
        for name in TRANSFORMERS:
            getattr(transformers, name, None)
    # peft imports bitsandbytes where that is installed, which asks for the accelerator while it is imported.
    if recipe.model.lora is not None and importlib.util.find_spec("bitsandbytes") is None:
        importlib.import_module("peft")


def environment_is_settled(arguments: list[str]) -> bool:
    """Whether the worker will find the environment as it is: torch read it at its import and will not do so again.

    The launcher has set everything that it knows of. A worker adds what it knows of itself, and may look at another
    machine cache. Errors are the worker's to report.
    """
    from agent.raft.environment import apply_environment
    from agent.raft.sources import default_cache
    from agent.raft.worker import parse
    from agent.recipe.files import load_recipe

    before = dict(os.environ)
    options = parse(arguments)
    try:
        recipe = load_recipe(options.recipe, edited=False)
        apply_environment(recipe.backend, cache=options.cache or default_cache())
    except (AgentError, OSError):
        return True
    return dict(os.environ) == before


# --- waiting -----------------------------------------------------------------------------------------------


def stand_by(imports: Callable[[], None]) -> list[str]:
    """Run `imports` at a low priority, say `ready`, wait for the run, and return its arguments.

    Ends the process where the other end has closed, or where `imports` raises. When it returns, standard output and
    error are the run's log, and standard input is empty.
    """
    channel = socket.socket(fileno=os.dup(0))
    nice = group_nice()
    if nice is not None:
        set_group_nice(min(MOST_NICE, nice + NICENESS), most_s=0.3)
    thread = threading.Thread(target=_import, args=(imports, channel, nice), daemon=True)
    thread.start()
    # The main thread only waits: so the end of the agent is noticed in the middle of an import too.
    with channel, channel.makefile("rb") as lines:
        while (line := _next(lines)) == HURRY:
            if nice is not None:
                set_group_nice(nice, most_s=2.0)
        if not line:
            os._exit(0)
        thread.join()
    told = json.loads(line)
    _redirect(Path(told["log"]))
    return [str(argument) for argument in told["arguments"]]


def _import(imports: Callable[[], None], channel: socket.socket, nice: int | None) -> None:
    if sys.platform.startswith("linux"):  # elsewhere it would be the whole process's, for good
        os.setpriority(os.PRIO_PROCESS, 0, min(MOST_NICE, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS))
    try:
        imports()
        if nice is None or set_group_nice(nice, most_s=2.0):
            with contextlib.suppress(OSError):  # the other end has closed: the main thread knows what to do
                channel.sendall(b"ready\n")
            return
        print("the nice value of the session's group cannot be put back", file=sys.stderr, flush=True)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _next(lines: IO[bytes]) -> bytes:
    """One line; empty where the other end has closed before it was whole."""
    try:
        line = lines.readline()
    except OSError:
        return b""
    return line if line.endswith(b"\n") else b""


def _redirect(log: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    written = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    empty = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((empty, 0), (written, 1), (written, 2)):
        os.dup2(source, target)
    os.close(written)
    os.close(empty)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # As the worker does: everything is on disk.
    os._exit(code)
