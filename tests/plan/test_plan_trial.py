"""The planner on real telemetry: recorded runs of the built-in model with one planted fault each (faults.py).

The fast tests replay the recordings; the slow ones train again. FAULTS, HEALTHY and SICK were at hand when
thresholds and fits were set; FRESH (other sizes, seeds and kinds of fault) was not looked at until they stood.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faults import FAULTS, FRESH, HEALTHY, RECORDED, RUNS, SICK, Run, execute, judge, observe, replay, table
from plan_fixtures import BOOK

from agent.plan.symptoms import diagnose

NOT_SAMPLED = "the recorded trainings have no samples of the machine that they ran on"
NEEDS_OTHER_MEANS = {
    "idle_waiting": "in lockstep no side waits for another; needs the asynchronous engine",
    "low_utilization": NOT_SAMPLED,
    "compute_bound": NOT_SAMPLED,
    "idle_generation": NOT_SAMPLED,
    "idle_verification": NOT_SAMPLED,
    "idle_optimizer": NOT_SAMPLED,
}
"""Symptoms without a real run of their own; test_plan_symptoms.py has made-up rows for them."""


@pytest.mark.parametrize("run", HEALTHY, ids=lambda run: run.name)
def test_a_healthy_run_has_no_symptom(run: Run) -> None:
    assert [str(finding) for finding in diagnose(replay(run), BOOK)] == []


@pytest.mark.parametrize("run", [*FAULTS, *SICK], ids=lambda run: run.name)
def test_a_run_shows_the_symptoms_it_has(run: Run) -> None:
    assert run.symptoms
    assert set(run.symptoms) <= {finding.symptom for finding in diagnose(replay(run), BOOK)}


def test_every_symptom_has_a_real_run_or_a_reason_why_there_is_none() -> None:
    shown = {symptom for run in RUNS.values() for symptom in run.symptoms}
    also = {f.symptom for run in [*FAULTS, *SICK] for f in diagnose(replay(run), BOOK)}
    assert set(BOOK.symptoms) == shown | also | set(NEEDS_OTHER_MEANS)


@pytest.mark.parametrize("run", FAULTS, ids=lambda run: run.name)
def test_the_planted_cause_leads_the_findings(run: Run) -> None:
    worst = diagnose(replay(run), BOOK)[0]
    assert worst.explained_by is None
    assert worst.symptom in run.symptoms


@pytest.mark.slow
def test_a_repair_is_among_the_first_three_ideas_far_more_often_than_by_chance() -> None:
    rows = [judge(fault, replay(fault)) for fault in FAULTS]
    print(table(rows))
    assert len(rows) >= 8
    in_three = sum(row.rank is not None and row.rank <= 3 for row in rows)
    assert in_three >= 7 / 8 * len(rows)
    assert in_three > 3 * sum(row.random_in_three for row in rows)


@pytest.mark.slow
def test_the_same_holds_for_faults_that_the_playbook_was_not_made_with() -> None:
    rows = [judge(fault, replay(fault)) for fault in FRESH]
    print(table(rows))
    in_three = sum(row.rank is not None and row.rank <= 3 for row in rows)
    assert in_three >= 7 / 8 * len(rows)


def test_recordings_are_small() -> None:
    for path in RECORDED.glob("*.jsonl"):
        assert path.stat().st_size < 20_000
        assert path.stem in RUNS


# --- once more, for real -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bootstrap of the built-in model for all runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("run", HEALTHY, ids=lambda run: run.name)
def test_a_healthy_training_has_no_symptom(run: Run, tmp_path: Path, cache: Path) -> None:
    execute(run, tmp_path / "run", cache=cache, timeout_s=840)
    assert [str(finding) for finding in diagnose(observe(run, tmp_path / "run"), BOOK)] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("run", SICK, ids=lambda run: run.name)
def test_a_training_shows_the_symptoms_it_has(run: Run, tmp_path: Path, cache: Path) -> None:
    usual = None
    if run.usual:  # here and now, not on the machine of the recording
        execute(RUNS[run.usual], tmp_path / "usual", cache=cache, timeout_s=400)
        usual = json.loads((tmp_path / "usual" / "summary.json").read_text())["tokens_per_s"]
    execute(run, tmp_path / "run", cache=cache, timeout_s=400)
    observation = observe(run, tmp_path / "run", usual_tokens_per_s=usual)
    assert set(run.again or run.symptoms) <= {finding.symptom for finding in diagnose(observation, BOOK)}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_planted_faults_are_repaired_among_the_first_three_ideas(tmp_path: Path, cache: Path) -> None:
    rows = []
    for fault in FAULTS:
        out = tmp_path / fault.name
        execute(fault, out, cache=cache, timeout_s=600)
        rows.append(judge(fault, observe(fault, out)))
    print(table(rows))
    assert sum(row.rank is not None and row.rank <= 3 for row in rows) >= 7 / 8 * len(rows)
