"""The folder of a run, before a trainer gets it: made, this recipe's, and nobody else's who still runs.

Also who runs in it, by a file that the launcher writes: an agent that was killed leaves a training behind.
"""

from __future__ import annotations

import json
from pathlib import Path

from agent.contract import (
    CHECKPOINT,
    CYCLES,
    EVAL,
    FAILURE,
    HEARTBEAT,
    LOG,
    PLAN,
    RECIPE,
    RUNG,
    SAMPLES,
    SELECT,
    SUMMARY,
    TELEMETRY,
)
from agent.errors import AgentError, Busy, ResourceError, WorkspaceError
from agent.files import write_atomic
from agent.hardware.sensors import disk_free
from agent.recipe.files import load_recipe, resolved_text
from agent.run.plain import clear_the_way, open_plain, read_plain
from agent.run.processes import ProcessIdentity, is_alive
from agent.run.request import RunRequest
from agent.run.telemetry import MOST_OBJECT, read_summary

STATE = Path("state/training.safetensors")
"""Where our trainer keeps what a killed training goes on from (`agent.raft.state`)."""
PROCESS = "process.json"
"""Who runs in this folder: written at the start, so that a second start can refuse."""

OF_TRAINER = (PLAN, CYCLES, SELECT, RUNG, EVAL, SAMPLES, HEARTBEAT, FAILURE, SUMMARY)
"""What a trainer writes as plain files."""


def prepare(request: RunRequest, *, min_free_disk_gb: float) -> None:
    """Make the folder, see that nobody runs in it and that it is this recipe's, and put the recipe there."""
    out = request.out
    if not request.workspace.is_dir():
        raise WorkspaceError("no such folder for the trainer to run in", where=str(request.workspace))
    try:
        free = disk_free(out)
        if free < min_free_disk_gb:
            raise ResourceError(
                f"only {free:.2f} GiB free, a run needs at least {min_free_disk_gb:g}",
                where=str(out),
                hint="free some space; checkpoints of old campaigns under .raft/ are the largest files",
            )
        if out.exists() and not out.is_dir():
            raise WorkspaceError("is a file, not a folder for a run", where=str(out))
        out.mkdir(parents=True, exist_ok=True)
        _refuse_if_running(out)
        _refuse_other_recipe(request)
        _refuse_other_seed(request)
        _refuse_finished_without(request)
        for name in (RECIPE, PROCESS, LOG, TELEMETRY, *OF_TRAINER):
            clear_the_way(out / name)
        write_atomic(out / RECIPE, resolved_text(request.recipe))
        for stale in (HEARTBEAT, FAILURE):  # of an earlier start: they would be taken for this one's
            (out / stale).unlink(missing_ok=True)
    except OSError as error:
        raise resource_error(error, where=out) from error


def resource_error(error: OSError, *, where: Path) -> ResourceError:
    return ResourceError(
        f"cannot be written: {error.strerror or error}",
        where=str(error.filename or where),
        hint="check free space, quota and permissions there",
    )


def _refuse_if_running(out: Path) -> None:
    identity = running_in(out)
    if identity is not None:
        raise Busy(
            f"a training (process {identity.pid}) is still running in this folder",
            where=str(out),
            hint="let it finish, or end it first (raft-agent resume does)",
        )


def running_in(out: Path) -> ProcessIdentity | None:
    """The training that runs in this folder now, left by an agent that was killed; None where there is none."""
    try:
        identity = ProcessIdentity.from_json(json.loads(read_plain(out / PROCESS, most=MOST_OBJECT)))
    except (OSError, ValueError, TypeError):
        return None
    return identity if is_alive(identity) else None


def _refuse_other_recipe(request: RunRequest) -> None:
    """Going on with another recipe's cycles would mix two trainings."""
    written = request.out / RECIPE
    begun = (request.out / CYCLES).exists() or (request.out / SUMMARY).exists()
    if not begun or not written.exists():
        return
    try:
        same = load_recipe(written, edited=False).signature() == request.recipe.signature()
    except AgentError:
        same = False
    if not same:
        raise WorkspaceError(
            "holds the run of another recipe",
            where=str(request.out),
            hint="give this run a folder of its own",
        )


def _refuse_other_seed(request: RunRequest) -> None:
    """A finished run would be taken for one of this seed; one that was stopped would begin anew, and be lost."""
    summary = read_summary(request.out)
    seed = summary.seed if summary is not None else seed_of_state(request.out)
    if seed is not None and seed != request.seed:
        raise WorkspaceError(
            f"holds the run of seed {seed}, not of {request.seed}",
            where=str(request.out),
            hint="give this run a folder of its own",
        )


def seed_of_state(out: Path) -> int | None:
    """Of a training that has left no summary, by its saved state; None where it has none that can be read."""
    try:
        with open_plain(out / STATE) as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MOST_OBJECT:
                return None
            words = json.loads(file.read(size))["__metadata__"]["state"]
        return int(dict(json.loads(words)["pairs"])["made_by"].rpartition("/")[2])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _refuse_finished_without(request: RunRequest) -> None:
    """A finished run is not evaluated any more: its trainer leaves at once, and its summary would be taken for an
    evaluation on the splits asked for."""
    summary = read_summary(request.out)
    if summary is None or summary.stopped:
        return
    lacking = [split for split in request.splits if split not in summary.metrics]
    if lacking:
        raise WorkspaceError(
            f"holds a finished run that was evaluated on {', '.join(summary.metrics) or 'no split'}, not on "
            f"{', '.join(lacking)}",
            where=str(request.out),
            hint=f"give this run a folder of its own; `raft-agent eval {request.out / CHECKPOINT} --split "
            f"{lacking[0]}` evaluates what it has trained",
        )


def write_identity(out: Path, identity: ProcessIdentity) -> None:
    write_atomic(out / PROCESS, json.dumps(identity.__dict__) + "\n")
