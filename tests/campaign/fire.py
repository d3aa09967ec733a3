"""`raft-agent run` as it is, with another trainer, a shorter grace and a wall clock that is set. Two programs in one:

`fire.py run BEHAVIOUR WHERE CLOCK ARGUMENTS...` is the agent's command; ARGUMENTS are those of `raft-agent`.
`fire.py train BEHAVIOUR WHERE ...` is the trainer: in runs whose name begins with WHERE it is a hostile one
(`tests/run/hostile.py`), else the fake one that keeps the contract. CLOCK is `right`, or `SECONDS@AFTER`: so long after
the start of the budget the wall clock is set by so many seconds. An argument `+SECONDS` is the time of day so far from
now. When the budget begins, by the clock that all processes share, is written to the file FIRE_BEGAN.
"""

from __future__ import annotations

import datetime
import functools
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOSTILE = HERE.parent / "run" / "hostile.py"
GRACE_S = 1.0
"""Instead of the 20 s of the contract."""


def train(behaviour: str, where: str, arguments: list[str]) -> None:
    out = Path(arguments[arguments.index("--out") + 1])
    if out.name.startswith(where):
        os.execv(sys.executable, [sys.executable, "-I", "-S", str(HOSTILE), behaviour, *arguments])
    os.execv(sys.executable, [sys.executable, str(HERE / "fake_raft.py"), *arguments])


def run(behaviour: str, where: str, clock: str, arguments: list[str]) -> int:
    from nights import MACHINE

    from agent.campaign import budget, open, runs, session
    from agent.cli import doctor
    from agent.cli.main import main
    from agent.run.launcher import launch

    command = (sys.executable, "-S", str(HERE / "fire.py"), "train", behaviour, where)
    launcher = functools.partial(launch, command=command, grace_s=GRACE_S, poll_s=0.05, most_log_gb=0.05)
    runs.Runner.__init__.__kwdefaults__["launcher"] = launcher  # type: ignore[index]  # it has some
    open.machine_of = lambda workspace: MACHINE
    doctor.complaints = list  # what is wrong with the machine of the tests takes seconds to find out
    session.FIRST_OVERHEAD_S["builtin:tiny"] = 0.05  # so that a budget of seconds is not refused before the first run
    session.GUESSED_TOKENS_PER_S["tiny"] = 1e9
    began = Beginning(Path(os.environ["FIRE_BEGAN"]))
    defaults = budget.BudgetClock.__init__.__kwdefaults__
    assert defaults is not None
    defaults["monotonic"] = began.monotonic
    if clock != "right":
        by, _, after = clock.partition("@")

        def wall() -> datetime.datetime:
            moved = float(by) if began.ago() >= float(after) else 0.0
            return datetime.datetime.now().astimezone() + datetime.timedelta(seconds=moved)

        defaults["wall"] = wall
        time.time = lambda: wall().timestamp()
    return main([at(argument) for argument in arguments]) or 0


def at(argument: str) -> str:
    """`+SECONDS` as the time of day so far from now."""
    if not argument.startswith("+"):
        return argument
    return (datetime.datetime.now() + datetime.timedelta(seconds=float(argument))).isoformat()


class Beginning:
    """Of the budget: when its clock was first looked at. It is in the file from then on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at: float | None = None

    def monotonic(self) -> float:
        now = time.monotonic()
        if self.at is None:
            self.at = now
            self.path.write_text(str(now))
        return now

    def ago(self) -> float:
        return 0.0 if self.at is None else time.monotonic() - self.at


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(sys.argv[2], sys.argv[3], sys.argv[4:])
    sys.exit(run(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:]))
