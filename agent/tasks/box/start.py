"""Entry of the sandbox's processes: raise walls, say what is in force, and serve.

Started by path in a Python without `site`, with one JSON object as its argument:

    way       `direct`: namespaces of our own; `bwrap`: bubblewrap's; `none`: neither
    readable  folders and files that are visible besides what Python needs
    packages  folders to import from besides the standard library
    serve     `programs` (see `host.py`), or a kind of scorer: `python` confines itself before it loads the function,
              `reasoning_gym` a fork for each answer (see `agent.tasks.scorer_child`)

A host says what is in force as its first message; where its way is barred, that is `{"refused": why}`.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path.insert(0, ROOT)

from agent.tasks.box import confine, host, walls  # noqa: E402

sys.path.remove(ROOT)

INSIDE = "inside bwrap"
SCORER_BYTES = 4 << 30
MOST_ANSWER_BYTES = 1 << 16
_OWN_FILES = ("agent/__init__.py", "agent/tasks/__init__.py", "agent/tasks/box", "agent/tasks/scorer_child.py")


def main() -> None:
    spec = json.loads(sys.argv[1])
    programs = spec["serve"] == "programs"
    control = socket.socket(fileno=os.dup(0)) if programs else None
    packages = [os.path.realpath(path) for path in spec["packages"]]
    readable = walls.outermost([*walls.what_python_needs(), *packages, *spec["readable"]])
    sys.path.extend(packages)
    if programs:
        host.warm_up()
    else:
        from agent.tasks import scorer_child
    try:
        how, temporary = _go_behind_walls(spec, readable)
    except OSError as error:
        if control is not None:
            control.send(json.dumps({"refused": str(error)}).encode())
        os._exit(3)
    # Nobody's variables: what PATH and HOME lead to is not here. Those for numeric libraries stay.
    for name in [name for name in os.environ if not name.endswith("_NUM_THREADS")]:
        del os.environ[name]
    if control is None:
        layers = confine.probe(read_only_root=bool(how), readable=readable)
        confined = functools.partial(_confine, layers, readable, temporary=temporary)
        if spec["serve"] == "python":
            confined()
            scorer_child.main()
        else:
            scorer_child.main(functools.partial(_in_a_fork, confined, temporary))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (host.DESCRIPTORS, host.DESCRIPTORS))
    serving = host.Host(readable=readable, walls_by=how, temporary=temporary)
    gc.collect()
    gc.disable()
    gc.freeze()
    control.send(json.dumps({"walls": how, **serving.layers()}).encode())
    serving.serve(control)


def _go_behind_walls(spec: dict[str, Any], readable: list[str]) -> tuple[str, str | None]:
    """How (empty for not at all), and the temporary folder, where there is one that can be made anew."""
    way, temporary = spec["way"], walls.temporary_beside(readable)
    if way == "direct":
        return walls.raise_walls(readable), temporary
    if way == "bwrap":
        _enter_bubblewrap(spec, readable)
    if way == INSIDE:
        try:
            walls.raise_inner_walls(temporary)
            return "bubblewrap", temporary
        except OSError:
            pass
        walls.become_first_process()
        return "bubblewrap", None
    walls.become_first_process()
    return "", None


def _enter_bubblewrap(spec: dict[str, Any], readable: list[str]) -> None:
    """Start this program again inside bubblewrap; OSError where it is not installed."""
    program = shutil.which("bwrap")
    if program is None:
        raise OSError("bwrap is not installed")
    binary = os.path.realpath(sys.executable)
    own = [os.path.join(ROOT, name) for name in _OWN_FILES]
    # As the first process, because bubblewrap's own would be one that a program of the same user may reach into.
    arguments = [program, "--unshare-all", "--as-pid-1", "--chdir", "/", "--proc", "/proc"]
    for path in [*readable, *(path for path in (binary, *own) if not _below(path, readable))]:
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        else:
            arguments += ["--ro-bind", path, path]
    for path in walls.DEVICES:
        arguments += ["--dev-bind", path, path]
    arguments += ["--dir", walls.temporary_beside(readable), "--remount-ro", "/", "--"]
    inner = json.dumps({**spec, "way": INSIDE})
    os.execv(program, [*arguments, binary, "-P", "-s", "-S", "-B", os.path.abspath(__file__), inner])


def _below(path: str, folders: list[str]) -> bool:
    return any(path.startswith(folder.rstrip("/") + "/") and not os.path.islink(folder) for folder in folders)


def _in_a_fork(
    confined: Callable[[], None], temporary: str | None, work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `work` returns in a child behind all layers, which leaves nothing behind for the next."""
    before = None if temporary is None else walls.state_of_temporary(temporary)
    answers, answer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # Out of the reach of what it will run: the requests, and what is said to others than us.
            os.dup2(answer, 3)
            os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            confined()
            os.write(3, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(answer)
    with os.fdopen(answers, "rb") as pipe:
        said = pipe.read(MOST_ANSWER_BYTES)
    # Its number is still its own; it may have closed the pipe and gone on.
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if temporary is not None and walls.state_of_temporary(temporary) != before:
        walls.mount_temporary(temporary, again=True)
    try:
        return dict(json.loads(said))
    except (ValueError, TypeError):
        return {"error": f"the rule's process ended by {os.waitstatus_to_exitcode(status)}", "at": None}


def _confine(layers: confine.Confinement, readable: list[str], *, temporary: str | None) -> None:
    writable = [] if temporary is None else [temporary]
    rules = confine.landlock_rules(readable, writable=writable, abi=layers.landlock) if layers.landlock else None
    limits = {"AS": SCORER_BYTES, "FSIZE": 16 << 20, "NOFILE": 256, "NPROC": 4096}
    confine.confine(layers, limits=limits, rules=rules)
    os.chdir(temporary or "/")


if __name__ == "__main__":
    main()
