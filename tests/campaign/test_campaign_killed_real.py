"""The real trainer on budgets of cycles: killed while it samples, updates or evaluates, alone or with the agent.

What is measured and delivered is what one go would have measured and delivered, to the last byte of the weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from killed import FINISHED, Campaign, differences, new_campaign, random_of, story
from nights import hypothesis

from agent.campaign import experiment
from agent.contract import TIMING_FIELDS
from agent.files import read_jsonl

KILLS = 20
RECIPE = """\
model: {source: builtin:tiny}
task: {dataset: "builtin:addition"}
rollout: {prompts_per_cycle: 48, samples_per_prompt: 8, max_new_tokens: 5, max_total_sequence_length: 32, slots: 64}
learner: {learning_rate: 3.0e-5, microbatch_tokens: 1024}
evaluation:
  {select_prompts: 64, search_prompts: 256, confirm_prompts: 256, holdout_prompts: 256, samples_per_prompt: 1,
   temperature: 0, max_new_tokens: 5}
budget: {cycles: 6}
"""
IDEAS = (
    hypothesis("faster", 0.9, set={"learner.learning_rate": 2.0e-4}),
    hypothesis("no-dedup", 0.85, set={"selection.dedup": False}),
    hypothesis("placebo", 0.8, set={"execution.placebo": 1}),
)
OF_THE_SAMPLER = ("entropy", "logprob_gap", "logprob_drift")
TIMES = {*TIMING_FIELDS, "seconds"}


def campaign_in(folder: Path, cache: Path) -> Campaign:
    campaign = new_campaign(folder, IDEAS)
    campaign.real, campaign.night.cache = True, cache
    (campaign.root / "recipes" / "test.yaml").write_text(RECIPE)
    return campaign


def measured(campaign: Campaign) -> dict[str, Any]:
    """By run: its cycles, its measurements, and the weights that it delivered."""
    found = {}
    for out in sorted(campaign.root.glob(".raft/runs/night/*")):
        weights = out / "checkpoint" / "model.safetensors"
        found[out.name] = {
            **{name: [_untimed(row) for row in read_jsonl(out / name)] for name in ("cycles.jsonl", "select.jsonl")},
            "eval.jsonl": list(read_jsonl(out / "eval.jsonl")),
            "weights": hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else None,
        }
    return found


def _untimed(row: dict[str, Any]) -> dict[str, Any]:
    """Without times. A generation that goes on multiplies fewer rows at a time; where the processor rounds those in
    another way, what the sampler says of its own probabilities is told to five decimals, and nothing else."""
    told = {name: value for name, value in row.items() if name not in TIMES}
    if not _rows_change_last_bits():
        return told
    return told | {name: round(told[name], 5) for name in OF_THE_SAMPLER if told.get(name) is not None}


@functools.cache
def _rows_change_last_bits() -> bool:
    """As tests/raft/test_raft_worker.py asks it, in a process of its own: campaigns are forks of this one."""
    code = (
        "import torch; from torch.nn.functional import linear\n"
        "x = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))\n"
        "weight = torch.ones(128, 128).cumsum(0) / 3\n"
        "whole = linear(x, weight)\n"
        "print(any(not torch.equal(linear(x[:rows], weight), whole[:rows]) for rows in range(1, 8)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def phase_of(campaign: Campaign) -> str:
    """Of the training that runs now."""
    for path in campaign.root.glob(".raft/runs/night/*/process.json"):
        try:
            return str(json.loads((path.parent / "heartbeat").read_text())["phase"])
        except (OSError, ValueError):
            return "starting"
    return "none"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_of_real_trainings_change_no_number(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delitem(experiment.COSTS, "train_s")  # hangs on how busy the machine is
    cache, rng = tmp_path_factory.mktemp("models"), random_of(1)
    whole = campaign_in(tmp_path / "whole", cache)
    whole.to_the_end()
    campaign = campaign_in(tmp_path / "killed", cache)
    phases: Counter[str] = Counter()
    code = None
    while code != FINISHED:
        agent = campaign.begin()
        if campaign.kills < KILLS:
            time.sleep(rng.uniform(1.0, 3.2))
            kind, before, phase = rng.choice(["agent", "trainer", "both"]), campaign.kills, phase_of(campaign)
            if kind in ("trainer", "both"):
                campaign.kill_trainer()
            if kind in ("agent", "both"):
                campaign.kill(agent)
            phases[phase] += campaign.kills - before
            if kind == "trainer":
                time.sleep(rng.uniform(0.3, 1.5))
                campaign.kill(agent)
        code = campaign.end(agent)
    assert campaign.kills >= KILLS
    lost = campaign.uncounted_s
    print(f"\n{campaign.kills} kills in {campaign.sessions} sessions: {dict(phases)}; {lost:.1f} s not counted")
    assert list(differences(measured(whole), measured(campaign))) == []
    assert list(differences(story(whole), story(campaign))) == []
    assert lost <= 1.0 * campaign.sessions
    assert campaign.trainers_left() == []
