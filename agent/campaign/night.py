"""A night as people read it in the morning, gathered from the journal: what the report, `watch` and `status` show.

The journal suffices for all but samples and curves, which are in the run folders and are left out where those are
gone. Parts are in files of their own: arms and gains (`night_arms.py`), ideas (`night_steps.py`), near-misses
(`near_misses.py`), time (`night_time.py`), the recipe's words (`night_recipe.py`), the first sentence
(`night_verdict.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from agent.campaign.comparison import RunNoise
from agent.campaign.decided import comparison_from
from agent.campaign.more import hint_for
from agent.campaign.near_misses import near_misses_of
from agent.campaign.night_arms import Yardstick, arms_of, gains_of
from agent.campaign.night_cards import cards_of
from agent.campaign.night_recipe import measuring_of
from agent.campaign.night_runs import MOST_BYTES, RunFolders, curves_of, gone, samples_of
from agent.campaign.night_steps import counts_of, crashes_of, ruled_out_of, steps_of
from agent.campaign.night_time import time_slices
from agent.campaign.night_verdict import verdict_of
from agent.campaign.stairs import key_of, no_more
from agent.campaign.standing import standing_of
from agent.ledger.events import ConstraintLearned, SharedLayerChanged
from agent.ledger.state import CampaignState
from agent.report.night import Next, Night, Noise, Standing
from agent.report.numbers import Numbers
from agent.report.words import counted

if TYPE_CHECKING:
    from agent.campaign.choose import Ranked


MOST_NEXT = 10
NOT_RANKED = "raft-agent plan ranks what it would try next"


def night_of(
    state: CampaignState,
    *,
    name: str,
    running: bool,
    ranking: Ranked | None = None,
    folders: RunFolders | None = None,
    curve_bytes: int = MOST_BYTES,
    warnings: Sequence[str] = (),
    clock: Callable[[], float] = time.time,
) -> Night:
    """All that a journal tells. `running`: a process of the campaign is alive. `ranking`: what it would try next.
    `folders`: where curves and samples are read from, at most `curve_bytes` of them; they are left out without.
    `warnings`: of whoever read the journal."""
    if folders is not None:
        folders.look_anew()
    standing = standing_of(state, running=running)
    measuring = measuring_of(state)
    winner = (state.incumbent.experiment if state.incumbent else None) or 0
    by = Yardstick(measuring.metric, measuring.minimize, measuring.prompts, last_noise(state))
    steps = steps_of(state, minimize=measuring.minimize)
    near = near_misses_of(state)
    following, note, ranked_after = _next(state, name, ranking, standing)
    samples, samples_words = samples_of(state, folders, winner=winner) if folders else ((), "")
    curves, left_out = curves_of(state, folders, winner=winner, near=near, most=curve_bytes) if folders else ((), 0)
    started = state.started
    return Night(
        campaign=name,
        state=standing,
        verdict=verdict_of(state, standing, measuring, winner),
        recipe=started.recipe_path if started else "",
        model=measuring.model,
        task=measuring.task,
        metric=measuring.metric,
        minimize=measuring.minimize,
        machine=_machine(started.machine if started else {}),
        started_at=started.time if started else None,
        renewed_at=clock(),
        budget_s=state.budget_s,
        consumed_s=state.consumed_s,
        stopped=state.stop_reason or "",
        arms=arms_of(state, winner, by),
        gains=gains_of(state, winner),
        noise=noise_of(state, Numbers(measuring.metric)),
        counts=counts_of(state),
        time=time_slices(state),
        steps=steps,
        cards=cards_of(state, near),
        near_misses=near,
        crashes=crashes_of(state),
        limits=tuple(_limit(one) for one in state.constraints),
        shared_layer=tuple(_shared(one) for one in state.shared_changes),
        ruled_out=ruled_out_of(state, steps),
        next=following,
        next_note=note,
        next_after=ranked_after,
        samples=samples,
        samples_of=samples_words,
        curves=curves,
        curves_left_out=left_out,
        reproduce=reproduce(state, name, winner, standing),
        warnings=(*warnings, *_warnings(state, folders)),
    )


# --- what the night could see ------------------------------------------------------------------------------


def last_noise(state: CampaignState) -> RunNoise | None:
    """Run noise as the last verdict that tells it knew it: pooled over all repeated runs until then."""
    for number in reversed(state.judged_order):
        judged = state.experiments[number].judged
        basis = comparison_from(judged.numbers.get("basis")) if judged else None
        if basis is not None and basis.noise is not None:
            return basis.noise
    return None


def noise_of(state: CampaignState, numbers: Numbers) -> Noise:
    told, known = state.calibration, last_noise(state)
    sigma = known.sigma if known else told.get("sigma_run")
    seeds = told.get("seeds")
    df = known.df if known else (seeds - 1 if isinstance(seeds, int) and seeds > 1 else None)
    detectable = told.get("smallest_detectable")
    words = _noise_words(sigma, df, detectable, told.get("run_share"), numbers) if told else "not measured yet"
    return Noise(sigma, df, detectable, words)


def _noise_words(
    sigma: float | None, df: int | None, detectable: float | None, run_share: float | None, numbers: Numbers
) -> str:
    if sigma is None:
        return "one baseline run: the noise between runs is not known"
    words = f"runs of one recipe differ by {numbers.size(sigma)} (one standard deviation, {df} degrees of freedom)"
    if detectable is None:
        return f"{words}; what a confirmation can find is not known"
    words += f"; a confirmation finds gains from about {numbers.size(detectable)}"
    if run_share is None:  # a journal that does not tell
        return words
    if run_share > 0.5:
        return f"{words}, and longer trainings (budget) or more seeds (--seeds) would show smaller ones"
    return f"{words}, and more held-out prompts (evaluation.search_prompts, confirm_prompts) would show smaller ones"


# --- the rest ----------------------------------------------------------------------------------------------


def _machine(told: Mapping[str, object]) -> str:
    if not told:
        return ""
    memory = told.get("accelerator_memory_gb") or told.get("memory_gb")
    parts = [str(told.get("name") or told.get("kind") or "")]
    if isinstance(told.get("cores"), int):
        parts.append(f"{told['cores']} cores")
    if isinstance(memory, int | float):
        parts.append(f"{memory:.0f} GB")
    return ", ".join(part for part in parts if part)


def _limit(event: ConstraintLearned) -> str:
    relation = {"<": "below", "<=": "at most", ">=": "at least", "==": "not"}[event.relation]
    return (
        f"{event.key} {relation} {event.value:g}: {event.why}"
        if isinstance(event.value, int | float)
        else (f"{event.key} {relation} {event.value}: {event.why}")
    )


def _shared(event: SharedLayerChanged) -> str:
    moves = [*(f"{key}: {value}" for key, value in event.values.items()), *(f"{k}={v}" for k, v in event.env.items())]
    return f"{', '.join(moves)} ({event.why})" if moves else event.why


def _next(
    state: CampaignState, name: str, ranked: Ranked | None, standing: Standing
) -> tuple[tuple[Next, ...], str, int | None]:
    """What was ranked since the last verdict, less what runs now; a note; and how many verdicts there were."""
    if ranked is None or ranked.judged != len(state.judged_order):
        return (), "it ranks anew with its next idea" if standing == "running" else NOT_RANKED, None
    ranking = ranked.ranking
    begun = {one.planned.recipe_signature for one in state.experiments.values() if one.planned}
    waiting = [one for one in ranking.proposals if one.recipe.signature() not in begun][:MOST_NEXT]
    told = tuple(
        Next(
            one.subject,
            "; ".join(reason.rstrip(".") for reason in one.why),
            one.score,
            ranked.seconds.get(one.recipe.signature()),
        )
        for one in waiting
    )
    more = f"; {hint_for(state, name)}" if standing == "finished" and told else ""
    return told, f"{ranking.note}{more}", ranked.judged


def reproduce(state: CampaignState, name: str, winner: int, standing: Standing) -> tuple[tuple[str, str], ...]:
    """Commands that go on from here, each with what it does."""
    found: list[tuple[str, str]] = []
    if standing in ("paused", "killed"):
        found.append((f"raft-agent resume {name}", "goes on where it stopped"))
    if winner:
        found += [
            (f"raft-agent show {winner} -c {name}", "all that its verdict rests on"),
            (f"raft-agent diff {winner} 0 -c {name}", "what it has other than the baseline"),
            (f"raft-agent replay {winner} -c {name}", "runs it again, beside what was recorded"),
            (f"raft-agent finalize {name}", "a clean branch with a commit for each kept idea"),
            (f"raft-agent export -c {name} --out winner", "its checkpoint as a folder that other programs load"),
            ("raft-agent train --best --budget 6h", "trains the last campaign's winner for longer"),
        ]
    checkpoint = state.ending.get("checkpoint")
    if checkpoint:
        whose = "winner" if winner else "baseline"
        found.append((f"raft-agent eval {checkpoint}", f"evaluates the {whose}'s checkpoint again"))
    if state.experiments:
        found += [
            (f"raft-agent log -c {name}", "all ideas with their outcomes"),
            (f"git log --notes=raft raft/{name}/best", "the same story in git, with the evidence"),
        ]
    return tuple(found)


def _baselines_without_a_step(state: CampaignState) -> list[str]:
    """Keys of the baseline's runs, where none of them was trained."""
    void = no_more(state)
    steps = {
        str(key_of(run)): run.finished.summary.get("optimizer_steps")
        for run in state.runs.values()
        if run.words and run.words.role == "baseline" and run.words.arm is None and run.id not in void
        and run.finished and run.finished.summary
    }  # fmt: skip
    return list(steps) if steps and all(taken == 0 for taken in steps.values()) else []


def _warnings(state: CampaignState, folders: RunFolders | None) -> tuple[str, ...]:
    found = []
    missing = gone(state, folders) if folders else 0
    if missing:
        what = counted(missing, "run folder is", "run folders are")
        found.append(f"{what} gone: their curves and samples are not in here, what the journal says of them is")
    idle = _baselines_without_a_step(state)
    if idle:
        found.append(
            f"the baseline took no optimizer step: nothing was trained, and its runs are alike for that reason alone; "
            f"raft-agent diagnose {idle[0]} looks for the cause"
        )
    if state.unknown:
        lines = counted(state.unknown, "line is", "lines are")
        found.append(f"of the journal {lines} of a newer version: what it says there is not in here")
    if state.started is None and state.experiments:
        found.append("the journal does not say how the campaign was started: its first lines are missing")
    return tuple(found)
