"""What the journal says about the machine rather than about ideas: GPU faults in a row, and recipes that took it down.

Only counts; whoever starts runs acts on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agent.campaign.lab import CutShort
from agent.ledger.events import CampaignResumed, Event, RunFinished, RunPlanned, RunStarted
from agent.ledger.journal import Journal, Run, fold
from agent.run.diagnosis import Diagnosis
from agent.run.stall import LOST_QUEUE

GPU_FAULTS = frozenset({"gpu-fault", "amdgpu-kernel", "hsa-status", "nvidia-xid"})
"""Signatures after which the GPU, not the recipe, is the first suspect."""
FAULTS_IN_A_ROW = 2
TIMES_DOWN = 2
"""A recipe during which the machine went down so often is never started again."""
POISON = "machine-down"
"""Signature of the diagnosis of a recipe that is not started."""


class MachineUnwell(CutShort):
    """The machine needs a person. The campaign ends in good order, with what it has."""


# --- GPU faults --------------------------------------------------------------------------------------------


def is_gpu_fault(diagnosis: dict[str, Any] | None, ended_by: str, *, accelerators: int) -> bool:
    """By the diagnosis that the journal holds; a hang counts where the GPU looked as if its queue were lost."""
    told = diagnosis or {}
    if ended_by == "hang":
        return accelerators > 0 and LOST_QUEUE in str(told.get("reason", ""))
    of_the_run = accelerators > 0 or told.get("source") != "kernel"  # a display's driver complains in the kernel's log
    return of_the_run and told.get("crash_class") == "backend" and told.get("signature") in GPU_FAULTS


def faults_in_a_row(events: Iterable[Event], *, accelerators: int) -> list[RunFinished]:
    """The GPU faults at the end of a journal with no good run between, oldest first. A campaign that is resumed counts
    anew, since somebody has looked; a run that ended in another way without a summary, and a trial in a small process,
    prove nothing either way."""
    row: list[RunFinished] = []
    trials: set[str] = set()
    for event in events:
        if isinstance(event, CampaignResumed):
            row = []
        if isinstance(event, RunPlanned | RunStarted) and event.arm == "probe":
            trials.add(event.run)
        if isinstance(event, RunFinished) and event.run in trials:
            continue
        if not isinstance(event, RunFinished):
            continue
        if is_gpu_fault((event.model_extra or {}).get("diagnosis"), event.ended_by, accelerators=accelerators):
            row.append(event)
        elif event.summary is not None:
            row = []
    return row


def refuse_faults(events: Iterable[Event], *, accelerators: int) -> None:
    """Raises MachineUnwell where the last runs were GPU faults, one directly after the other."""
    row = faults_in_a_row(events, accelerators=accelerators)
    if len(row) < FAULTS_IN_A_ROW:
        return
    last = (row[-1].model_extra or {}).get("diagnosis") or {}
    raise MachineUnwell(
        f"{len(row)} GPU faults in a row ({', '.join(event.run for event in row)}; last: "
        f"{last.get('reason') or row[-1].reason}): the machine needs a look, and most likely a reboot "
        "(raft-agent doctor), before anything is trained on it"
    )


# --- a recipe that took the machine down -------------------------------------------------------------------


def went_down(run: Run, *, boot_id: str) -> bool:
    """The machine was started anew while this run was going, and the run left no end of its own.

    `boot_id` is the present one; a run that a later session closed as `lost` names the boot in which it did.
    """
    began = run.started.boot_id if run.started else None
    if began is None:
        return False
    if run.finished is None:
        return began != boot_id
    found_in = (run.finished.model_extra or {}).get("boot_id")
    return run.finished.ended_by == "lost" and found_in is not None and found_in != began


def runs_of_other_campaigns(folder: Path) -> list[Run]:
    """Runs in the journals of the campaigns beside the one in `folder`. A journal that cannot be read has none."""
    found: list[Run] = []
    for path in sorted(folder.parent.glob("*/journal.jsonl")):
        if path.parent == folder:
            continue
        try:
            about_runs = [
                event for event in Journal(path).events() if isinstance(event, RunPlanned | RunStarted | RunFinished)
            ]
        except OSError:
            continue
        found += fold(about_runs).runs.values()
    return found


def poison(signature: str, runs: Sequence[Run], *, boot_id: str) -> Diagnosis | None:
    """Why a recipe must not be started again, or None."""
    down = [run for run in runs if run.words is not None and run.words.recipe_signature == signature]
    down = [run for run in down if went_down(run, boot_id=boot_id)]
    if len(down) < TIMES_DOWN:
        return None
    names = ", ".join(run.id for run in down)
    return Diagnosis(
        "unknown",
        f"the machine went down {len(down)} times while this recipe ran ({names}): it is not started again; if these "
        "were power cuts, give it another `seed`, which makes it another recipe",
        "the journal: started in one boot, no end before the next",
        "the agent",
        POISON,
    )
