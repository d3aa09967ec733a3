"""Campaigns whose processes are killed, or whose writes fail, and what is left of them to compare.

The agent is a process of its own (forked, so that a session begins in milliseconds), and so is each trainer, which the
real launcher starts, watches and ends. A session's time goes SPEED times as fast as the wall, so that a second of the
budget is something that a short campaign can lose.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_raft
from nights import FAKE, MACHINE, NO_DEDUP, NOTHING, Night, Recorder, hypothesis, new_night

import agent.campaign.open
import agent.campaign.session
import agent.files
import agent.run.start
from agent.campaign.budget import BudgetClock
from agent.campaign.loop import Paused, run_campaign
from agent.campaign.runs import Runner
from agent.campaign.workbench import Workbench
from agent.errors import ResourceError
from agent.ledger.commands import GitCommands
from agent.ledger.consumed import Timekeeper
from agent.ledger.disk import disk_errors
from agent.ledger.journal import Journal
from agent.ledger.workspace import Workspace
from agent.run.launcher import launch
from agent.run.processes import MARK, ProcessIdentity, identify, is_alive
from agent.run.start import TRAINER

SPEED = 20.0
"""Seconds of the budget in a second of the wall."""
EVERY_S = 0.025
"""The timekeeper's, on the wall: half a second of the budget."""
PACE_S = 0.008
"""Of a cycle of the trainer."""
DOWNTIME_S = 60.0
"""Between two sessions, on the journal's clock: less than makes an incumbent's runs too old to compare with."""
FINISHED, PAUSED, BROKEN = 0, 3, 4
"""Exit codes of a session."""
BUDGET_S = 40_000.0

OOM = hypothesis("pack", 0.9, set={"learner.epochs_per_cycle": 2, "learner.microbatch_tokens": 8192})
NAN = hypothesis("nan", 0.7, set={"learner.optimizer": "sgd"})
RATE = hypothesis("rate-up", 0.95, set={"learner.learning_rate": 0.002})
IDEAS = (RATE, OOM, NO_DEDUP, NOTHING, NAN)
"""A keep, one that runs out of memory and is shrunk twice, a keep on top of it, one that does nothing, a crash."""


@dataclass
class Campaign:
    """One campaign in a workspace of its own, session by session."""

    night: Night
    ideas: int
    real: bool = False
    """The trainer is ours, and the clock goes as fast as the wall."""
    active_s: float = 0.0
    """Seconds of the budget in which an agent was there, by the harness's own clock."""
    kills: int = 0
    sessions: int = 0
    words: list[str] = field(default_factory=list)
    killed_trainers: set[str] = field(default_factory=set)

    @property
    def root(self) -> Path:
        return self.night.root

    @property
    def notes(self) -> Path:
        """What sessions tell the harness, beside the workspace."""
        return self.root.parent / "told"

    # --- a session ------------------------------------------------------------------------------------------

    def begin(self, act: Callable[[], None] = lambda: None, **settings: Any) -> int:
        """Fork an agent that starts the campaign, or resumes it where it was started; `act` is called in it first."""
        self.sessions += 1
        self.notes.mkdir(exist_ok=True)
        for name in ("began", "died"):
            (self.notes / name).unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _become_agent(self, act, settings)
        return pid

    def end(self, pid: int) -> int:
        """Wait for it: its exit code, or minus the signal. Counts the time in which it worked."""
        _, status = os.waitpid(pid, 0)
        self._count_time()
        code = os.waitstatus_to_exitcode(status)
        if code == BROKEN:
            raise AssertionError((self.notes / "log").read_text()[-6000:])
        return code

    def kill(self, pid: int) -> None:
        """SIGKILL for an agent, unless it has just ended."""
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            _note_time(self.notes / "died")
            os.kill(pid, signal.SIGKILL)
            self.kills += 1

    def kill_trainer(self) -> bool:
        """SIGKILL for the training that runs now; each run once."""
        for path in self.root.glob(".raft/runs/night/*/process.json"):
            with contextlib.suppress(OSError, ValueError):
                identity = ProcessIdentity.from_json(json.loads(path.read_text()))
                if path.parent.name not in self.killed_trainers and is_alive(identity):
                    self.killed_trainers.add(path.parent.name)
                    os.kill(identity.pid, signal.SIGKILL)
                    self.kills += 1
                    return True
        return False

    def to_the_end(self, **settings: Any) -> None:
        code = self.end(self.begin(**settings))
        assert code == FINISHED, (self.notes / "log").read_text()[-3000:]

    def _count_time(self) -> None:
        began, died = _noted_time(self.notes / "began"), _noted_time(self.notes / "died")
        if began is not None:
            self.active_s += self.speed * ((died or time.monotonic()) - began)

    @property
    def speed(self) -> float:
        return 1.0 if self.real else SPEED

    # --- what is left ---------------------------------------------------------------------------------------

    @property
    def journal(self) -> Journal:
        return Journal(self.night.workspace.journal_path("night"))

    @property
    def uncounted_s(self) -> float:
        """Of the budget: seconds in which an agent worked and that the next one does not know of."""
        return self.active_s - self.journal.state().consumed_s

    def trainers_left(self) -> list[int]:
        told = [json.loads(line) for line in fake_raft.lines(self.notes / "trainers")]
        return [one["pid"] for one in told if is_alive(ProcessIdentity(**one))]


def new_campaign(folder: Path, ideas: Sequence[dict[str, Any]] = IDEAS) -> Campaign:
    folder.mkdir(parents=True, exist_ok=True)
    night = new_night(folder)
    night.playbook(*ideas)
    return Campaign(night, len(ideas))


# --- in the agent's process --------------------------------------------------------------------------------


def _become_agent(campaign: Campaign, act: Callable[[], None], settings: Mapping[str, Any]) -> None:
    code = BROKEN
    try:
        os.setsid()
        _print_to(os.open(campaign.notes / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ["FAKE_PACE"] = str(PACE_S)
        os.environ["FAKE_PACE_ALL"] = "1"
        _take_clocks(campaign)
        if not campaign.real:
            agent.run.start.Start.process = functools.partialmethod(_forked_trainer, told=campaign.notes / "trainers")  # type: ignore[assignment]
        act()
        with disk_errors(campaign.root):  # as the command does
            code = _session(campaign, settings)
    except ResourceError as stopped:
        print(f"paused: {stopped}")
        code = PAUSED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _take_clocks(campaign: Campaign) -> None:
    began = time.monotonic()
    wall = 1_700_000_000.0 + campaign.sessions * DOWNTIME_S

    def now() -> float:
        return campaign.speed * (time.monotonic() - began)

    def clock(*arguments: Any, **keys: Any) -> BudgetClock:
        _note_time(campaign.notes / "began")
        return BudgetClock(*arguments, monotonic=now, **keys)

    agent.campaign.open.BudgetClock = clock  # type: ignore[assignment,misc]
    agent.campaign.open.Journal = functools.partial(Journal, clock=lambda: wall + now())  # type: ignore[assignment,misc]
    agent.campaign.session.Timekeeper = functools.partial(Timekeeper, every_s=EVERY_S * SPEED / campaign.speed)  # type: ignore[assignment,misc]


def _session(campaign: Campaign, settings: Mapping[str, Any]) -> int:
    night = campaign.night
    night.observer = Recorder()
    workspace = Workspace(night.root)
    try:
        state = Journal(workspace.journal_path("night")).state()
        if state.status == "finished":
            return FINISHED
        if state.started is None:
            session = night.open(budget_s=BUDGET_S, max_experiments=campaign.ideas, **settings)
        else:
            session = agent.campaign.open.resume(
                workspace, "night", observer=night.observer, machine=MACHINE, model_cache=night.models,
                stop_request=night.stop_request,
            )  # fmt: skip
        launcher = functools.partial(launch, command=FAKE, grace_s=1.0, idle_wait_s=0.0, poll_s=0.004)
        if campaign.real:
            launcher = functools.partial(launch, command=(*TRAINER, "--save-seconds", "0.3"), idle_wait_s=0.0)
        run_campaign(Workbench(session, Runner(session, launcher=launcher)))
    except Paused as stopped:
        print(f"paused: {stopped}")
        return PAUSED
    finally:
        _note_time(campaign.notes / "died")
        print("\n".join(["", *night.observer.said, *night.observer.warnings]))
    return FINISHED


class _Forked:
    """As much of a `TrainerProcess` as the launcher uses; without a leash."""

    def __init__(self, identity: ProcessIdentity) -> None:
        self.identity = identity
        self.pid = identity.pid
        self.returncode: int | None = None

    def close(self) -> None:
        pass

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (timeout or 60.0)
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("trainer", timeout or 60.0)
            time.sleep(0.002)
        assert self.returncode is not None
        return self.returncode


def _forked_trainer(self: Any, command: Sequence[str], *, mark: str, stdin: Any, output: Any, told: Path) -> _Forked:
    """The fake trainer on the leash, without a second of imports for each run."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(127)
            agent.files.write_all, agent.files.sync, agent.files.put_in_place = REAL
            _print_to(output.fileno())
            os.environ[MARK] = mark
            code = fake_raft.main(list(command[len(FAKE) :]))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    identity = identify(pid, mark=mark)
    fake_raft.note(told, json.dumps(identity.__dict__) + "\n")
    return _Forked(identity)


def _print_to(descriptor: int) -> None:
    """What this process prints, whatever pytest captures."""
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)


REAL = (agent.files.write_all, agent.files.sync, agent.files.put_in_place)


def _note_time(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.pwrite(descriptor, repr(time.monotonic()).encode(), 0)
    os.close(descriptor)


def _noted_time(path: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return float(path.read_text())
    return None


# --- the boundary at which a session dies or a write fails -------------------------------------------------


class Boundary:
    """Every write that the agent keeps, and every git command that writes, one after the other."""

    def __init__(self, died: Path, on_step: Callable[[int, str, str], str | None]) -> None:
        """`died` is where the time of a death is noted. `on_step(step, what, where)` is asked before each: None to let
        it be, else `die` before it, `torn` in the middle of it (a write: half), `after` it; or `ENOSPC`, `EIO`."""
        self.died, self.on_step = died, on_step
        self.step = 0

    def install(self) -> None:
        write, flush, place = REAL

        def write_all(descriptor: int, data: bytes) -> None:
            fate = self._fate("write", _named(_path_of(descriptor), data))
            self._before(fate)
            if fate == "torn":
                write(descriptor, data[: len(data) // 2])
                self._die()
            if fate in ("ENOSPC", "EIO"):
                write(descriptor, data[: len(data) // 3])
                self._fail(fate)
            write(descriptor, data)
            self._after(fate)

        def synced(descriptor: int) -> None:
            fate = self._fate("sync", _path_of(descriptor))
            self._before(fate)
            self._fail(fate)
            flush(descriptor)
            self._after(fate)

        def put_in_place(temporary: str | Path, path: Path) -> None:
            fate = self._fate("rename", str(path))
            self._before(fate)
            self._fail(fate)
            place(temporary, path)
            self._after(fate)

        attempt = GitCommands.attempt

        def attempted(commands: GitCommands, *arguments: str, **keys: Any) -> tuple[int, bytes, str]:
            if arguments[0] not in WRITING and arguments[:3] != ("notes", "--ref=refs/notes/raft", "add"):
                return attempt(commands, *arguments, **keys)
            fate = self._fate("git", _command(arguments))
            self._before(fate)
            if fate in ("ENOSPC", "EIO"):
                words = os.strerror(getattr(errno, fate))
                return 128, b"", f"error: unable to write loose object file: {words}\nfatal: failed to write: {words}"
            result = attempt(commands, *arguments, **keys)
            self._after(fate)
            return result

        agent.files.write_all, agent.files.sync, agent.files.put_in_place = write_all, synced, put_in_place
        GitCommands.attempt = attempted  # type: ignore[method-assign]

    def _fate(self, what: str, where: str) -> str | None:
        self.step += 1
        return self.on_step(self.step, what, where)

    def _before(self, fate: str | None) -> None:
        if fate == "die":
            self._die()

    def _after(self, fate: str | None) -> None:
        if fate in ("after", "torn"):
            self._die()

    def _fail(self, fate: str | None) -> None:
        if fate in ("ENOSPC", "EIO"):
            number = getattr(errno, fate)
            raise OSError(number, os.strerror(number))

    def _die(self) -> None:
        _note_time(self.died)
        os.kill(os.getpid(), signal.SIGKILL)


WRITING = ("hash-object", "mktree", "commit-tree", "update-ref")


def _path_of(descriptor: int) -> str:
    """Of the file that is written; temporary names without their random part."""
    return _without_random(str(Path(f"/proc/self/fd/{descriptor}").readlink()))


def _without_random(path: str) -> str:
    return re.sub(r"/\.([^/]+)\.[^/.]{8}$", r"/\1", path)


def _named(path: str, data: bytes) -> str:
    """A line of the journal by what it says."""
    if not path.endswith("journal.jsonl"):
        return path
    told = json.loads(data)
    about = str(told["run"]).partition(".")[0] if "run" in told else told.get("experiment")  # without its attempt
    return " ".join(str(part) for part in (told["kind"], about, told.get("fix")) if part is not None)


def _command(arguments: Sequence[str]) -> str:
    words = [word for word in arguments if not word.startswith("-")]
    return " ".join(word for word in words[:2] if not re.fullmatch(r"[0-9a-f]{40}", word))


def dies_at(campaign: Campaign, step: int, how: str) -> Callable[[], None]:
    """For `Campaign.begin`: the agent dies at its step number `step`."""

    boundary = Boundary(campaign.notes / "died", lambda at, what, where: how if at == step else None)
    return boundary.install


def once_each(
    campaign: Campaign, fates: Callable[[str], Sequence[str]], *, kind: Callable[[str], str] = lambda label: label
) -> Callable[[], None]:
    """For `Campaign.begin`: at each step the first of its fates that it has not met yet.

    `fates(what)` are those of a step of a kind (`write`, `sync`, `rename`, `git`); steps of one `kind(label)` count as
    one and the same. What was met is in the campaign's `notes`.
    """
    path = campaign.notes / "met"

    def on_step(step: int, what: str, where: str) -> str | None:
        label = kind(f"{what} {where.replace(str(campaign.root), '')}")
        known = set(fake_raft.lines(path))
        fate = next((fate for fate in fates(what) if f"{fate} {label}\n" not in known), None)
        if fate is not None:
            fake_raft.note(path, f"{fate} {label}\n")
        return fate

    return Boundary(campaign.notes / "died", on_step).install


def met(campaign: Campaign) -> list[str]:
    return [line.rstrip("\n") for line in fake_raft.lines(campaign.notes / "met")]


# --- what two campaigns have in common ---------------------------------------------------------------------

VOLATILE = {"elapsed_min", "started_at", "commit", "parent_commit", "tokens_per_s", "memory_gb"}
SESSION = ("campaign_resumed", "campaign_paused", "budget_tick")


def story(campaign: Campaign) -> dict[str, Any]:
    """All that a campaign has left, without times, process numbers and hashes that follow from times."""
    return {
        "rows": [{key: value for key, value in row.items() if key not in VOLATILE} for row in campaign.night.rows],
        "branches": branches(campaign.night),
        "events": events(campaign.journal),
        "runs": runs(campaign.journal),
        "checkout": campaign.night.git("status", "--porcelain", "--untracked-files=all"),
        "fsck": campaign.night.git("fsck", "--strict", "--no-dangling", "--no-progress"),
    }


def branches(night: Night) -> dict[str, list[tuple[str, str, str]]]:
    """By reference, its commits after the user's own: tree, message, note."""
    found = {}
    for ref in night.git("for-each-ref", "--format=%(refname)", "refs/heads/raft").split():
        form = "%T%x00%B%x00%N%x01"
        log = night.git("log", "--reverse", "--notes=refs/notes/raft", f"--format={form}", ref, "^main", "--")
        parts = [entry.strip("\n").split("\0") for entry in log.split("\1") if entry.strip()]
        # a number with a digit more breaks the lines of a message elsewhere
        found[ref] = [(tree, " ".join(_timeless(message).split()), _timeless(note)) for tree, message, note in parts]
    return found


def _timeless(text: str) -> str:
    text = re.sub(r"(?m)^(elapsed_min|tokens_per_s|memory_gb): .*\n?", "", text)
    text = re.sub(r"\b\d+h \d\dm\b|\b\d+m \d\ds\b|\b\d+s\b", "TIME", text)
    text = re.sub(r"\d+% of it in training", "SHARE of it in training", text)
    text = re.sub(r"line\s+\d+\s+of\s+its\s+log", "line N of its log", text)  # where earlier starts wrote before it
    return re.sub(r"\b[0-9a-f]{12,40}\b", "HASH", text).strip()


def events(journal: Journal) -> list[dict[str, Any]]:
    """In their order, without those of runs and sessions."""
    told = [event.model_dump(mode="json") for event in journal.events()]
    told = [event for event in told if event["kind"] not in SESSION and not event["kind"].startswith("run_")]
    for event in told:
        for name in ("seq", "time", "consumed_s"):
            event.pop(name, None)
    return [_plain(event) for event in told]


def runs(journal: Journal) -> list[dict[str, Any]]:
    """The runs that count, in the order in which they ended: those that the campaign lost or went on with are not."""
    state = journal.state()
    found = []
    for run in state.runs.values():
        end = run.finished
        if end is None or end.ended_by == "lost" or run.words is None:
            continue
        told = (end.model_extra or {}).get("diagnosis") or {}
        if told.get("signature") == "outside-kill":
            continue
        words = run.words
        found.append(
            {
                "key": Path(words.out).name, "experiment": words.experiment, "role": words.role, "rung": words.rung,
                "arm": words.arm, "seed": words.seed, "signature": words.recipe_signature, "ended_by": end.ended_by,
                "summary": _plain(end.summary or {}), "diagnosis": told.get("signature"), "seq": end.seq,
            }
        )  # fmt: skip
    found.sort(key=lambda one: one.pop("seq"))
    return found


TIMES = re.compile(r"(_s|_at|_min|_gb|_per_s|pid|time|elapsed|overhead|_share)$")
HASHES = {"ideas_affordable", "commit", "parent_commit", "base_commit", "machine"}
OF_KILLS = {"starts"}
"""How often a training was started: what a kill changes, and all that it may."""
LEFT_OUT = HASHES | OF_KILLS


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _plain(inner) for key, inner in value.items() if key not in LEFT_OUT and not TIMES.search(str(key))
        }
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return _timeless(value) if isinstance(value, str) else value


def differences(one: Any, other: Any, at: str = "") -> Iterator[str]:
    """Where two stories differ, in words."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}, key=str):
            yield from differences(one.get(key), other.get(key), f"{at}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            yield f"{at}: {len(one)} and {len(other)} entries"
        for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
            yield from differences(mine, theirs, f"{at}[{place}]")
    elif one != other:
        yield f"{at}: {str(one)[:300]!r} != {str(other)[:300]!r}"


def random_of(seed: int) -> random.Random:
    return random.Random(f"kills {seed}")
