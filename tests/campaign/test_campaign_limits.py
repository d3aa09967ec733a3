"""What ran out of memory is remembered for the machine: planner, `check` and the loop respect it."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from nights import MACHINE, NOTHING, Night, forked_launch, hypothesis

from agent.campaign.capacity import check_memory, refuse_too_large
from agent.campaign.limits import KnownLimit, Limits
from agent.recipe.files import load_recipe, with_keys
from agent.recipe.schema import Recipe
from agent.run.diagnosis import Diagnosis
from agent.run.remedies import Limit, respond
from agent.run.request import RunResult

LARGE = hypothesis("large", 0.9, set={"learner.epochs_per_cycle": 2, "learner.microbatch_tokens": 16384})


def holding_all(*arguments: Any, **keys: Any) -> RunResult:
    """Runs that held all memory there was."""
    return dataclasses.replace(forked_launch(*arguments, **keys), peak_rss_gb=1e6)


def out_of_memory(recipe: Recipe) -> Limit:
    diagnosis = Diagnosis("oom", "r", "HIP out of memory", "traceback", "oom-device", phase="train")
    limit = respond(diagnosis, recipe=recipe, parent=recipe).limit
    assert limit is not None
    return limit


@pytest.mark.slow
def test_a_later_campaign_never_starts_what_is_known_not_to_fit(night: Night) -> None:
    night.playbook(LARGE, NOTHING)
    night.start(max_experiments=1, launcher=holding_all)
    limits = Limits.read(night.root / "models", MACHINE)
    assert [one.limit.key for one in limits.known] == ["learner.microbatch_tokens"] * len(limits.known)
    assert limits.known[0].limit.below == 16384
    (night.root / "results.tsv").unlink()  # else the planner would not try it again anyway
    night.git("commit", "-qam", "results gone")
    night.start(campaign="later", max_experiments=1)
    assert night.session is not None
    planned = [one.planned for number, one in night.session.state.experiments.items() if number and one.planned]
    assert planned[0].hypothesis == "placebo"  # the large one is ruled out before it is planned
    assert any("16384" in limit.why for limit in night.session.state.constraints)
    for path in night.root.glob(".raft/runs/later/*/recipe.yaml"):
        assert load_recipe(path).learner.microbatch_tokens < 16384


@pytest.mark.slow
def test_a_recipe_that_is_known_not_to_fit_is_made_smaller_before_it_is_started(night: Night) -> None:
    """The baseline itself: the fake trainer would die of it, and is never started with it."""
    path = night.root / "recipes" / "test.yaml"
    text = path.read_text().replace("learner:\n", "learner:\n  epochs_per_cycle: 2\n  microbatch_tokens: 4096\n")
    path.write_text(text)
    night.git("commit", "-qam", "two epochs")
    recipe = load_recipe(path)
    Limits.read(night.root / "models", MACHINE).learn(
        KnownLimit(out_of_memory(recipe), "train", None, "before", "then")
    )
    night.playbook(NOTHING)
    night.start(max_experiments=1)
    row = night.rows[0]
    assert row["status"] == "keep"
    assert "microbatch 4096 -> 2048 tokens, accumulation 1 -> 2 (the same step)" in row["fixes"]
    for folder in (night.root / ".raft" / "runs" / "night").iterdir():
        assert load_recipe(folder / "recipe.yaml").learner.microbatch_tokens == 2048 or "untrained" in folder.name
    said = night.git("log", "--format=%B", "raft/night/exp/000-baseline")
    assert "known not to fit on this machine" in said


@pytest.mark.slow
def test_a_limit_that_a_recipe_which_runs_contradicts_is_not_believed(night: Night) -> None:
    recipe = load_recipe(night.root / "recipes" / "test.yaml")
    session = night.open(max_experiments=1)
    limit = out_of_memory(recipe)
    session.limits.known.append(KnownLimit(limit, "train", None))
    assert session.limit_against(recipe, free_gb=None) is not None
    night.playbook(NOTHING)
    session.limits.known.clear()
    night.resume()
    assert night.session is not None
    night.session.limits.known.append(KnownLimit(limit, "train", None))
    assert night.session.limit_against(recipe, free_gb=None) is None


def test_limits_are_of_one_machine_and_of_the_memory_that_was_free(night: Night, tmp_path: Path) -> None:
    recipe = load_recipe(night.root / "recipes" / "test.yaml")
    limit = out_of_memory(recipe)
    limits = Limits.read(tmp_path, MACHINE)
    assert limits.learn(KnownLimit(limit, "train", 4.0, "c"))
    assert not limits.learn(KnownLimit(limit, "train", 4.0, "d"))
    again = Limits.read(tmp_path, MACHINE)
    assert again.binding(recipe, free_gb=4.2) is not None
    assert again.binding(recipe, free_gb=5.0) is None  # something else had the memory then
    assert again.binding(recipe, free_gb=None) is not None
    assert again.binding(with_keys(recipe, {"learner.microbatch_tokens": 1024}), free_gb=4.0) is None
    other = dataclasses.replace(MACHINE, memory_gb=64.0)
    assert Limits.read(tmp_path, other).known == []


@pytest.mark.slow
def test_an_idea_that_cannot_fit_is_made_of_smaller_pieces_before_it_is_started(night: Night) -> None:
    """By arithmetic alone; the step stays the same."""
    night.playbook(hypothesis("huge", 0.9, set={"learner.microbatch_tokens": 1_000_000}))
    night.start(max_experiments=1)
    row = night.rows[1]
    assert row["status"] in ("keep", "discard")
    assert "does not fit" in night.git("log", "--format=%B", "raft/night/exp/001-huge-up")
    ran = [load_recipe(path) for path in night.root.glob(".raft/runs/night/001-*/recipe.yaml")]
    assert ran
    for recipe in ran:
        assert recipe.learner.microbatch_tokens < 1_000_000
        assert recipe.learner.microbatch_tokens * recipe.learner.gradient_accumulation == 1_000_000


@pytest.mark.slow
def test_memory_that_something_else_held_teaches_nothing(night: Night) -> None:
    """Runs that die of memory and have hardly held any: it was another program's doing."""
    night.playbook(LARGE)
    night.start(max_experiments=1)
    assert night.session is not None
    assert night.session.state.constraints  # for this night the planner keeps away from it
    assert Limits.read(night.root / "models", MACHINE).known == []


def test_a_limit_expires(night: Night, tmp_path: Path) -> None:
    limit = out_of_memory(load_recipe(night.root / "recipes" / "test.yaml"))
    long_ago = (datetime.date.today() - datetime.timedelta(days=40)).isoformat()
    Limits.read(tmp_path, MACHINE).learn(KnownLimit(limit, "train", None, "c", long_ago))
    assert Limits.read(tmp_path, MACHINE).known == []


def test_lines_that_cannot_be_understood_are_passed_over(night: Night, tmp_path: Path) -> None:
    recipe = load_recipe(night.root / "recipes" / "test.yaml")
    Limits.read(tmp_path, MACHINE).learn(KnownLimit(out_of_memory(recipe), None, None))
    path = tmp_path / "limits.jsonl"
    good = json.loads(path.read_text())
    odd = [{**good, "key": "learner.no_such_key"}, {**good, "context": {"no.such": 1}}, {**good, "free_gb": "12x"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in odd) + path.read_text())
    path.write_text('{"torn\n[1]\n{}\n{"machine": 1, "key": 2, "below": "x", "context": []}\n' + path.read_text() + "{")
    assert len(Limits.read(tmp_path, MACHINE).known) == 1


def test_check_knows_it_and_run_does_not_refuse(night: Night, tmp_path: Path) -> None:
    recipe = load_recipe(night.root / "recipes" / "test.yaml")
    Limits.read(tmp_path, MACHINE).learn(KnownLimit(out_of_memory(recipe), "train", None, "monday", "2026-11-23"))
    checked = check_memory(recipe, MACHINE, cache=tmp_path, base=night.root)
    assert checked.fits is False
    assert checked.learned is not None
    assert "monday, 2026-11-23" in checked.learned
    assert checked.remedy == {"learner.microbatch_tokens": 2048, "learner.gradient_accumulation": 2}
    assert "limits.jsonl" in checked.advice
    refuse_too_large(recipe, MACHINE, cache=tmp_path, base=night.root)
