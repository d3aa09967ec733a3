"""Whole campaigns against a trainer whose truth is known: real git, real processes, no torch."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from nights import (
    BETTER_RATE,
    NOTHING,
    RATE_UP,
    RECIPE,
    Dies,
    Night,
    dying_at,
    fake_launch,
    forked_launch,
    hypothesis,
    new_night,
    trick,
)

from agent.campaign.choose import rank
from agent.campaign.evidence import Evidence
from agent.campaign.finish import finish
from agent.campaign.loop import Paused, run_campaign
from agent.campaign.replay import again
from agent.campaign.rules import Rules
from agent.campaign.runs import Runner
from agent.campaign.workbench import Workbench
from agent.cli import main
from agent.errors import BudgetError, DataError, ResourceError, TrainingFailed, UsageError
from agent.ledger.table import COLUMNS, read_rows
from agent.recipe.files import load_recipe
from agent.recipe.schema import Recipe

main.register()


def rows(night: Night) -> list[dict[str, str]]:
    return read_rows(night.workspace.results)


def test_a_real_gain_is_kept_and_a_placebo_is_not(night: Night) -> None:
    night.playbook(RATE_UP, NOTHING)
    ending = night.start()
    assert night.session is not None
    table = rows(night)
    assert [(row["index"], row["hypothesis"], row["status"]) for row in table[:2]] == [
        ("0", "baseline", "keep"),
        ("1", "rate-up", "keep"),
    ]
    assert {row["hypothesis"]: row["status"] for row in table}["placebo"] == "discard"
    assert ending.kept[0] == 1
    # the rate x4 is worth 0.30 and the confirmed interval says so
    kept = table[1]
    assert float(kept["ci_low"]) < 0.30 < float(kept["ci_high"])
    assert float(kept["delta"]) == pytest.approx(0.30, abs=0.06)
    assert kept["change"] == "learner.learning_rate 0.0005 -> 0.002"
    assert kept["seeds"] == "2"
    assert "the playbook is exhausted" in ending.reason
    assert ending.holdout["winner - baseline"]["low"] > 0
    assert (night.root / str(ending.checkpoint)).is_dir()
    # rows take megabytes: of what was given up only its scores are kept in memory, also where a session reads it back
    bench = night.bench(night.session)
    bench.gather()
    (given_up,), (stands, *_) = bench.evidence.runs(2, "search"), bench.evidence.search_runs(1)
    whole = bench.runner.read_back(given_up.key)
    assert (given_up.record.evals, given_up.record.select, given_up.record.cycles) == ([], [], [])
    assert whole.record.evals
    assert given_up.scores("search").ids == whole.scores("search").ids  # type: ignore[union-attr]
    assert given_up.summary == whole.summary
    assert stands.record.evals


@pytest.mark.slow
def test_a_baseline_that_learns_nothing_is_diagnosed_and_repaired(night: Night) -> None:
    """With the shipped playbook: a threshold that no reward reaches."""
    recipe = night.root / "recipes" / "test.yaml"
    recipe.write_text(recipe.read_text() + "selection: {reward_threshold: 1.5}\n")
    ending = night.start(max_experiments=1)
    baseline, repair = rows(night)
    assert float(baseline["delta"]) == 0
    assert repair["status"] == "keep"
    assert repair["symptom"] == "nothing_kept"
    assert repair["change"] == "selection.reward_threshold 1.5 -> 1"
    assert ending.kept == (1,)
    assert [text for text in night.observer.warnings if "optimizer steps" in text] == [
        "the baseline took 0 / 0 optimizer steps, fewer than budget.min_optimizer_steps 4: "
        "the diagnosis looks for the reason"
    ]


@pytest.mark.slow
def test_an_idea_that_cannot_train_is_underpowered_and_stays_open(night: Night) -> None:
    night.playbook(hypothesis("impossible", 0.9, set={"selection.reward_threshold": 3}))
    night.start(max_experiments=1)
    assert night.session is not None
    row = rows(night)[1]
    assert row["status"] == "discard"
    assert row["reason"] == (
        "underpowered: 0 optimizer steps, the recipe asks for 4; ended after 5 cycles that gave it none"
    )
    assert row["metric_value"] == ""
    # the short training says nothing about how long one takes
    assert night.session.cost(night.session.recipe_of(0)).train_s == pytest.approx(0.2)


@pytest.mark.slow
def test_a_training_that_passed_its_peak_says_nothing_about_how_long_one_takes(night: Night) -> None:
    night.playbook(hypothesis("stops-early", 0.9, set={"learner.early_stop": {"window": 2}}))
    night.start(max_experiments=1)
    assert night.session is not None
    ended = [run.finished.summary["ended_by"] for run in night.session.state.runs.values() if run.finished]
    assert "decline" in ended
    assert night.session.cost(night.session.recipe_of(0)).train_s == pytest.approx(0.2)


@pytest.mark.slow
def test_a_recipe_costs_what_its_own_runs_did_or_those_of_what_it_changes(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    night.playbook(RATE_UP, NOTHING)
    night.start(max_experiments=2)
    session = night.session
    assert session is not None
    first, other, unknown = session.recipe_of(0), session.recipe_of(1), session.recipe_of(2)

    def ran(recipe: Recipe, elapsed: float, ended_by: str = "budget") -> Any:
        ended = SimpleNamespace(elapsed_s=elapsed)
        return recipe.signature(), ended, {"train_s": 6.0, "evaluate_s": 1.0, "rung_s": 0.5, "ended_by": ended_by}

    told = [*(ran(first, 8.0) for _ in range(3)), ran(other, 14.0)]
    monkeypatch.setattr(session, "_in_one_go", lambda: told)
    assert session.cost(first).total_s == pytest.approx(7.5), "the measurement on the way is not part of it"
    assert session.cost(other).total_s == pytest.approx(13.5)
    assert session.cost(unknown, else_of=[other, first]).total_s == pytest.approx(13.5)
    assert session.cost(unknown).total_s == pytest.approx(7.5), "else of all"
    told.append(ran(unknown, 3.0, "decline"))
    assert session.cost(unknown, else_of=[other]).total_s == pytest.approx(13.5), "one that ended early does not tell"


@pytest.mark.slow
def test_a_training_that_its_time_limit_cut_makes_the_next_limit_no_shorter(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    night.playbook()
    night.start(max_experiments=1)
    session = night.session
    assert session is not None
    recipe = session.recipe_of(0)

    def ran(train_s: float, ended_by: str) -> Any:
        told = {"train_s": train_s, "evaluate_s": 1.0, "ended_by": ended_by}
        return recipe.signature(), SimpleNamespace(elapsed_s=train_s + 1.0), told

    cut = [ran(2.0, "time_limit")] * 3
    monkeypatch.setattr(session, "_in_one_go", lambda: [*cut, ran(6.0, "budget")])
    assert session.cost(recipe).train_s == 6.0
    monkeypatch.setattr(session, "_in_one_go", lambda: cut)
    assert session.cost(recipe).train_s == 2.0, "where it cuts all of them"


@pytest.mark.slow
def test_rows_that_the_table_lost_come_back_on_resume(night: Night) -> None:
    night.playbook(NOTHING, RATE_UP)
    night.start(max_experiments=2)
    table = night.workspace.results
    lines = table.read_text().splitlines(keepends=True)
    edited = lines[2].replace("\tdiscard\t", "\tdiscard\tmy words: ", 1)
    table.write_text(lines[0] + edited)
    night.resume(extra_budget_s=1.0)
    assert table.read_text() == lines[0] + edited + lines[1] + lines[3]


@pytest.mark.slow
def test_git_tells_the_story(night: Night) -> None:
    night.playbook(RATE_UP, NOTHING)
    night.start(max_experiments=2)
    branches = night.git("branch", "--list", "raft/*", "--format=%(refname:short)").split()
    assert "raft/night/best" in branches
    assert any(branch.startswith("raft/night/exp/001-rate-up") for branch in branches)
    assert any(branch.startswith("raft/night/exp/002-rate-up") for branch in branches), branches  # the way on, narrower
    subject = night.git("log", "-1", "--format=%s", "raft/night/exp/001-rate-up-up").strip()
    assert subject == "learning-rate: rate up, 0.0005 -> 0.002"
    message = night.git("log", "-1", "--format=%B", "raft/night/exp/001-rate-up-up")
    for trailer in ("Experiment: 1", "Hypothesis: rate-up/up", "Campaign: night", "Incumbent: 000"):
        assert trailer in message
    story = night.git("log", "--notes=raft", "raft/night/best")
    assert "outcome: keep" in story
    assert "outcome: discard" in story
    # linear, one record an idea beside the start and the baseline; the recipe changed only with the keep
    assert night.git("rev-list", "--merges", "raft/night/best") == ""
    changed = night.git("log", "--format=", "--name-only", "raft/night/best", "^HEAD").split()
    assert changed == ["recipes/test.yaml"]
    best = night.git("show", "raft/night/best:recipes/test.yaml")
    assert "learning_rate: 0.002  # the usual" in best
    assert best.startswith("# a recipe for tests, comments stay\n")


@pytest.mark.slow
def test_nothing_of_the_users_is_touched(night: Night) -> None:
    night.playbook(NOTHING)
    readme = night.root / "notes.txt"
    readme.write_text("mine")
    night.git("-c", "user.name=u", "-c", "user.email=u@x", "stash", "push", "--include-untracked", "--quiet")
    (night.root / "staged.txt").write_text("staged")
    night.git("add", "staged.txt")
    (night.root / "untracked.txt").write_text("untracked")
    test_recipe = night.root / "recipes" / "gsm8k.yaml"
    test_recipe.write_text(test_recipe.read_text() + "# an edit of mine\n")
    before = snapshot(night.root)
    night.start(max_experiments=1)
    after = snapshot(night.root)
    assert after.pop("results.tsv") != before.pop("results.tsv")
    assert after == before


USERS = (".git/index", ".git/HEAD", ".git/config", ".git/refs/stash", ".git/logs/refs/stash", ".git/refs/heads/ma")


def snapshot(root: Path) -> dict[str, str]:
    """Hash of every file of the checkout, the index, HEAD, the stash, the configuration."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            inside = path.relative_to(root).as_posix()
            if inside.startswith(".raft/") or (inside.startswith(".git/") and not inside.startswith(USERS)):
                continue
            found[inside] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_the_row_has_the_designed_columns_and_unknown_is_empty(night: Night) -> None:
    night.playbook(hypothesis("nan", 0.9, set={"learner.optimizer": "sgd"}))
    night.start(max_experiments=1)
    header = night.workspace.results.read_text().splitlines()[0].split("\t")
    assert tuple(header) == COLUMNS
    crash = rows(night)[1]
    assert crash["status"] == "crash"
    assert crash["crash_class"] == "numeric"
    assert crash["metric_value"] == ""
    assert crash["delta"] == ""


def test_an_out_of_memory_is_shrunk_on_the_branch_and_remembered(night: Night) -> None:
    night.playbook(hypothesis("pack", 0.9, set={"learner.epochs_per_cycle": 2, "learner.microbatch_tokens": 8192}))
    night.start(max_experiments=1)
    assert night.session is not None
    table = rows(night)
    assert table[1]["status"] in ("discard", "keep")
    assert "fix oom" in table[1]["fixes"]
    log = night.git("log", "--format=%s", "raft/night/exp/001-pack-up", "^raft/night/best")
    assert log.count("fix oom") == len(night.session.state.experiments[1].fixes) >= 1
    learned = {(limit.key, limit.relation) for limit in night.session.state.constraints}
    assert ("learner.microbatch_tokens", "<") in learned


def crash_rules(night: Night, **fixes: int) -> None:
    rules = [
        {"id": f"rule-{name}", "crash_class": name, "says": "x", "first": "Mend it.", "fixes": number}
        for name, number in fixes.items()
    ]
    (night.workspace.hypotheses / "crash-rules.yaml").write_text(yaml.safe_dump({"crashes": rules}))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_the_playbook_says_how_many_fixes_an_idea_has(
    night: Night, number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two would have done. What the last crash has taught is known all the same."""
    night.playbook(hypothesis("pack", 0.9, set={"learner.epochs_per_cycle": 2, "learner.microbatch_tokens": 8192}))
    crash_rules(night, oom=number, any=2)
    night.start(max_experiments=1)
    assert night.session is not None
    assert (night.rows[1]["status"], night.rows[1]["crash_class"]) == ("crash", "oom")
    assert len(night.session.state.experiments[1].fixes) == number
    learned = [limit.value for limit in night.session.state.constraints]
    assert min(learned) == 8192 >> number
    monkeypatch.chdir(night.root)
    main.register()
    assert main.run(["diagnose", "001-search-s1000"]) == 0
    assert f"in a campaign: Mend it. (At most {number} fixes and repeats of an idea.)" in capsys.readouterr().out


def test_missing_data_ends_the_campaign_also_where_nothing_is_to_be_fixed(night: Night) -> None:
    night.playbook(NOTHING)
    crash_rules(night, any=0)
    (night.root / "data-is-missing").touch()
    with pytest.raises(DataError, match="no such data"):
        night.start(max_experiments=1)


@pytest.mark.slow
def test_a_broken_layer_is_changed_for_all_once_a_small_training_and_a_run_show_that_it_helps(night: Night) -> None:
    (night.root / "kernel-is-broken").write_text("eager")
    night.playbook(RATE_UP, hypothesis("attention", 0.01, set={"backend.attention": "sdpa"}))
    night.start(max_experiments=1)
    assert night.session is not None
    assert [row["status"] for row in rows(night)] == ["keep", "keep"]
    (changed,) = night.session.state.shared_changes
    assert changed.values == {"backend.attention": "eager"}
    folders = {path.parent.name: load_recipe(path) for path in night.root.glob(".raft/runs/night/*/recipe.yaml")}
    trials = {name: recipe for name, recipe in folders.items() if "-trial-" in name}
    assert sorted(name.rpartition("-trial-")[2] for name in trials) == ["as-it-is", "step-1"]
    assert all(recipe.budget.cycles == 1 and recipe.rollout.prompts_per_cycle == 2 for recipe in trials.values())
    said = " ".join(night.observer.said)
    assert "a small training without a change fails too" in said
    assert "shared layer changed for all later runs: attention auto -> eager" in said
    later = [recipe for name, recipe in folders.items() if name.startswith("001-search")]
    assert later
    assert all(recipe.backend.attention == "eager" for recipe in later)
    assert "fix" not in night.git("log", "--format=%s", "raft/night/exp/000-baseline")  # it is of no single recipe
    skipped = {one.hypothesis: one.reason for one in rank(night.session, None).skipped}
    assert "'sdpa' is ruled out: all runs have 'eager', attention auto -> eager" in skipped["attention"]
    replayed = again(night.root, night.session.journal, 0)  # of the run that showed that it helps
    assert replayed.recorded is not None
    assert replayed.recorded.signature == replayed.recipe.signature()
    assert replayed.recipe.backend.attention == "eager"


@pytest.mark.slow
def test_a_campaign_that_has_changed_the_layer_goes_on_with_it_however_often_it_is_resumed(night: Night) -> None:
    """A resumption looks the baseline's runs up again, and the first of them died of the layer as it was."""
    (night.root / "kernel-is-broken").write_text("eager")
    night.playbook(RATE_UP)
    night.start(max_experiments=1)
    assert night.session is not None
    ran = [run for run in night.session.state.runs if run.startswith("baseline")]
    (changed,) = night.session.state.shared_changes
    assert changed.run == next(run for run in ran if run.endswith("-r1"))
    for experiments in (2, 3):
        night.resume(max_experiments=experiments)
        assert len(night.session.state.shared_changes) == 1
        assert [run for run in night.session.state.runs if run.startswith("baseline")] == ran
        assert [row["status"] for row in rows(night)][:2] == ["keep", "keep"]


@pytest.mark.slow
def test_a_fault_that_a_small_training_does_not_have_is_repeated_and_changes_nothing(night: Night) -> None:
    (night.root / "kernel-breaks-once").touch()
    night.playbook(RATE_UP)
    night.start(max_experiments=1)
    assert night.session is not None
    assert [row["status"] for row in rows(night)] == ["keep", "keep"]
    assert not night.session.state.shared_changes
    said = " ".join(night.observer.said)
    assert "a small training without a change runs" in said
    assert "once more, unchanged" in said
    assert [row["fixes"] for row in rows(night)] == ["", ""]


@pytest.mark.slow
def test_a_campaign_that_was_killed_between_fixes_goes_on_with_the_next_step(tmp_path: Path) -> None:
    large = hypothesis("pack", 0.9, set={"learner.epochs_per_cycle": 2, "learner.microbatch_tokens": 32768})
    fixes = []
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
        night = new_night(tmp_path / folder)
        night.playbook(large)
        if folder == "killed":
            with pytest.raises(Dies):
                night.start(max_experiments=1, launcher=dying_at(6))
            night.resume()
        else:
            night.start(max_experiments=1)
        assert night.session is not None
        fixes.append([fix.subject for _, fix in sorted(night.session.state.experiments[1].fixes.items())])
    assert len(fixes[0]) == 3
    assert fixes[0] == fixes[1]


@pytest.mark.slow
def test_steps_that_do_not_help_cost_a_small_training_each_and_no_run(night: Night) -> None:
    (night.root / "kernel-is-broken").write_text("none-works")
    night.playbook(RATE_UP)
    with pytest.raises(TrainingFailed, match="no attention kernel fits"):
        night.start(max_experiments=1)
    names = sorted(path.parent.name for path in night.root.glob(".raft/runs/night/*/starts"))
    whole = [name for name in names if name.startswith("baseline") and "trial" not in name]
    assert len(whole) == 1
    assert len([name for name in names if "trial" in name]) == 3  # as it is, eager, without the preset
    assert night.session is not None
    assert not night.session.state.shared_changes


@pytest.mark.slow
def test_a_run_that_kills_itself_is_a_crash_with_its_class(night: Night) -> None:
    night.playbook(hypothesis("dies", 0.9, set={"rollout.top_k": 3}))
    night.start(max_experiments=1)
    crash = rows(night)[1]
    assert crash["status"] == "crash"
    assert crash["crash_class"] in ("oom", "unknown")


@pytest.mark.slow
def test_a_killed_campaign_goes_on_and_loses_and_doubles_nothing(night: Night) -> None:
    """The agent dies at the start of its sixth run; what was measured before is not measured again."""
    night.playbook(RATE_UP, NOTHING)
    started = 0

    class Dies(BaseException):
        pass

    def dying(*arguments: Any, **keys: Any) -> Any:
        nonlocal started
        started += 1
        if started == 6:
            raise Dies
        return forked_launch(*arguments, **keys)

    with pytest.raises(Dies):
        night.start(launcher=dying)
    before = {path.parent.name: path.read_text() for path in night.root.glob(".raft/runs/night/*/starts")}
    ending = night.resume()
    assert ending.kept == (1,) or 1 in ending.kept
    for name, starts in before.items():
        assert (night.root / ".raft/runs/night" / name / "starts").read_text() == starts, f"{name} ran twice"
    indices = [row["index"] for row in rows(night)]
    assert indices == sorted(set(indices), key=int)
    records = night.git("log", "--format=%s", "raft/night/best", "^HEAD").splitlines()
    assert len(records) == len(set(records)) == len(indices) + 1


def test_a_stopped_campaign_is_paused_and_resumed_with_its_clock(night: Night) -> None:
    night.playbook(hypothesis("hangs", 0.9, toggle=["selection.drop_solved"]))
    asked: list[str] = []

    def stop() -> str | None:
        running = list(night.root.glob(".raft/runs/night/001-search*/heartbeat"))
        if running:
            asked.append("stopped by a test")
        return asked[0] if asked else None

    night.stop_request = stop
    with pytest.raises(Paused, match="stopped by a test") as caught:
        night.start(launcher=fake_launch())
    assert caught.value.exit_code == 130
    assert night.session is not None
    assert night.session.state.status == "paused"
    assert [row["index"] for row in rows(night)] == ["0"]  # the idea that was cut short has no row
    consumed = night.session.state.consumed_s
    asked.clear()
    with pytest.raises(Paused):
        night.resume(launcher=fake_launch())
    assert night.session.clock.consumed_s >= consumed


@pytest.mark.slow
def test_the_end_of_the_budget_ends_a_run_and_the_campaign(night: Night) -> None:
    night.playbook(hypothesis("hangs", 0.9, toggle=["selection.drop_solved"]))
    path = night.root / "recipes" / "test.yaml"
    path.write_text(path.read_text())
    ending = night.start(budget_s=200.0, launcher=after_calibration_the_clock_jumps(night))
    assert "budget is spent" in ending.reason
    assert [row["index"] for row in rows(night)] == ["0"]
    assert "skipped" in ending.holdout


def after_calibration_the_clock_jumps(night: Night) -> Any:
    """A launcher under which a hanging run sees the budget used up after a moment."""

    def launcher(request: Any, **keys: Any) -> Any:
        session = night.session
        if session is None or "search" not in request.out.name or request.out.name.startswith("untrained"):
            return forked_launch(request, **keys)
        session.clock.budget_s = session.clock.consumed_s + 0.5
        return fake_launch()(request, **keys)

    return launcher


def test_a_name_that_is_taken_and_a_budget_too_small_are_refused_before_anything_is_written(night: Night) -> None:
    night.playbook(NOTHING)
    with pytest.raises(BudgetError, match="affords no idea"):
        night.start(budget_s=20.0)
    assert not night.workspace.campaign_names()
    night.start(max_experiments=1)
    with pytest.raises(UsageError, match="night already"):
        night.start(max_experiments=1)


def test_only_names_the_nearest(night: Night) -> None:
    night.playbook(NOTHING)
    with pytest.raises(UsageError, match="placebo"):
        night.start(only="placbo")


@pytest.mark.slow
def test_a_target_stops_the_search(night: Night) -> None:
    night.playbook(RATE_UP, NOTHING)
    ending = night.start(target="pass_rate>=0.6")
    assert ending.reason == "--target pass_rate>=0.6 reached"
    assert ending.ideas == 1


@pytest.mark.slow
def test_results_of_earlier_campaigns_are_known_to_the_next(night: Night) -> None:
    night.playbook(RATE_UP, NOTHING)
    night.start(max_experiments=2)
    from agent.campaign.choose import earlier_attempts

    night.start(campaign="second", max_experiments=1)
    assert night.session is not None
    first = earlier_attempts(night.session)[0]
    assert (first.hypothesis, first.outcome, first.campaign) == ("rate-up", "keep", "night")
    assert first.values == {"learner.learning_rate": (0.0005, 0.002)}


@pytest.mark.slow
def test_who_stands_on_best_to_look_at_it_is_warned_once_and_the_night_goes_on(night: Night) -> None:
    night.playbook(RATE_UP, NOTHING)

    def looked_at(request: Any, **keys: Any) -> Any:
        if request.out.name.startswith("001-search"):
            night.git("switch", "--quiet", "raft/night/best")
        return forked_launch(request, **keys)

    assert night.start(launcher=looked_at, max_experiments=2).kept == (1,)
    assert sum("raft/night/best is checked out" in words for words in night.observer.warnings) == 1
    assert (night.root / "recipes/test.yaml").read_text() == RECIPE, "files of the user's stay as they are"
    assert "learning_rate: 0.002" in night.git("show", "raft/night/best:recipes/test.yaml")


@pytest.mark.slow
def test_the_incumbent_is_what_best_holds(night: Night) -> None:
    night.playbook(RATE_UP)
    night.start()
    assert night.session is not None
    text = night.git("show", "raft/night/best:recipes/test.yaml")
    path = night.root / "winner.yaml"
    path.write_text(text)
    assert load_recipe(path) == night.session.recipe_of(night.session.incumbent)


@pytest.mark.slow
def test_the_journal_alone_rebuilds_the_table(night: Night) -> None:
    from agent.ledger.table import rebuild

    night.playbook(RATE_UP, NOTHING)
    night.start()
    assert night.session is not None
    written = night.workspace.results.read_bytes()
    night.workspace.results.unlink()
    rebuild(night.workspace.results, night.session.state.rows())
    assert night.workspace.results.read_bytes() == written
    lines = (night.root / ".raft/campaigns/night/journal.jsonl").read_text().splitlines()
    assert all(json.loads(line)["seq"] == place for place, line in enumerate(lines, start=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "line", "fixed"),
    [
        ("learner.learning_rat", 0.002, "  learning_rat: 0.002", "learning_rate: 0.002"),
        pytest.param(
            "learner.learning_rate",
            "0.002",
            '  learning_rate: "0.002"',
            "learning_rate: 0.002",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "selection.keep_top_percent",
            250,
            "  keep_top_percent: 250",
            "keep_top_percent: 100",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["unknown key", "wrong type", "out of range"],
)
def test_a_typo_is_fixed_by_a_commit_on_the_branch(
    night: Night, key: str, value: object, line: str, fixed: str
) -> None:
    """An idea whose committed recipe does not validate, as a person or a later planner may write one."""
    night.playbook(NOTHING)
    session = night.open(max_experiments=1)
    section = key.split(".")[0]
    text = session.start_files()["recipes/test.yaml"]
    broken = text.replace("  learning_rate: 5.0e-4  # the usual\n", f"{line}\n") if section == "learner" else ""
    session.tell(
        "experiment_planned",
        experiment=1,
        hypothesis="typo",
        axis="learning-rate",
        slug="typo",
        subject=f"test: {key}, ? -> {value}",
        files={"recipes/test.yaml": broken or text + f"{section}:\n{line}\nrollout: {{prompts_per_cycle: 32}}\n"},
        changes={key: [None, value], "rollout.prompts_per_cycle": [64, 32]},
    )
    run_campaign(Workbench(session, Runner(session, launcher=forked_launch)))
    row = rows(night)[1]
    assert row["status"] in ("keep", "discard"), row["reason"]
    assert "fix typo" in row["fixes"]
    commits = night.git("log", "--format=%s", "raft/night/exp/001-typo", "^raft/night/best").splitlines()
    assert [subject.startswith("fix typo") for subject in commits] == [True, False]
    assert fixed in night.git("show", "raft/night/exp/001-typo:recipes/test.yaml")
    assert "# a recipe for tests" in night.git("show", "raft/night/exp/001-typo:recipes/test.yaml")


@pytest.mark.slow
def test_ctrl_c_during_the_holdout_leaves_it_for_the_resumption(night: Night) -> None:
    night.playbook(NOTHING)
    asked: list[str] = []

    def stopping(request: Any, **keys: Any) -> Any:
        result = forked_launch(request, **keys)
        if request.out.name.startswith("holdout"):
            asked.append("stopped by a test")
        return result

    night.stop_request = lambda: asked[0] if asked else None
    with pytest.raises(Paused):
        night.start(launcher=stopping, max_experiments=1)
    asked.clear()
    ending = night.resume()
    assert ending.holdout["baseline"] > ending.holdout["untrained"]


@pytest.mark.slow
def test_watches_are_reported_with_the_outcome_and_probes_are_run(night: Night) -> None:
    """The gain stays under the probe, because the fake's checkpoint passes the same prompts however they are worded."""
    night.playbook({**RATE_UP, "watch": ["cut", "wordings"]})
    probe = {
        "id": "wordings",
        "read": "other words",
        "probe": [{"name": "polite", "set": {"prompt.system": "Please."}}],
    }
    cut = {"id": "cut", "read": "cut completions", "signals": ["truncation_rate"]}
    (night.workspace.hypotheses / "watches.yaml").write_text(yaml.safe_dump({"watches": [cut, probe]}))
    night.start(max_experiments=1)
    assert night.session is not None
    probed = [run for run in night.session.state.runs if "probe-wordings-polite" in run]
    assert len(probed) == 2  # the candidate's checkpoint and the incumbent's
    note = night.git("log", "-1", "--notes=raft", "raft/night/exp/001-rate-up-up")
    assert "watch cut: truncation_rate 0.01 -> 0.01" in note
    assert "watch wordings: polite:" in note
    assert "(!)" not in note


@pytest.mark.slow
def test_missing_data_stops_with_its_own_error_and_resumes_once_it_is_there(night: Night) -> None:
    night.playbook(NOTHING)
    missing = night.root / "data-is-missing"
    missing.touch()
    with pytest.raises(DataError, match="no such data"):
        night.start(max_experiments=1)
    assert night.session is not None
    assert (night.session.state.status, night.session.state.stop_reason) == ("paused", "no such data")
    missing.unlink()
    assert night.resume().ideas == 1


@pytest.mark.slow
def test_a_full_disk_pauses_the_campaign_and_it_goes_on_once_there_is_room(night: Night) -> None:
    night.playbook(NOTHING)
    full = night.root / "disk-is-full"
    full.touch()
    with pytest.raises(ResourceError, match="no space left") as caught:
        night.start(max_experiments=1)
    assert "raft-agent resume" in str(caught.value)
    assert night.session is not None
    assert night.session.state.status == "paused"
    full.unlink()
    assert night.resume().ideas == 1


@pytest.mark.slow
@pytest.mark.parametrize("run", ["-again", "holdout-winner"])
def test_a_disk_that_is_full_while_a_checkpoint_is_evaluated_pauses_the_campaign(night: Night, run: str) -> None:
    """It would have been a gain that cannot be evaluated again, or a campaign that ends without its holdout."""
    night.playbook(trick("great", 0.9))
    full = night.root / "disk-is-full"

    def launcher(request: Any, **keys: Any) -> Any:
        if run in request.out.name:
            full.touch()
        return forked_launch(request, **keys)

    with pytest.raises(ResourceError, match="no space left"):
        night.start(launcher=launcher, max_experiments=1)
    assert night.session is not None
    assert night.session.state.status == "paused"
    full.unlink()
    ending = night.resume()
    assert "suspect" not in night.judged(1).reason
    assert "winner" in ending.holdout


@pytest.mark.slow
def test_a_second_look_at_the_holdout_is_said(night: Night) -> None:
    night.playbook(RATE_UP)
    night.start(max_experiments=1)
    session = night.session
    assert session is not None
    assert session.state.result["winner"] == 1
    assert not night.observer.warnings
    session.state.result["winner"] = 5  # as if another one had been measured there
    finish(session, night.bench(session).runner, Evidence(), reason="a test")
    assert night.observer.warnings == [
        "the holdout was looked at before, for #5: it decides nothing here, but whoever goes by it and gives the "
        "campaign more time again searches on it"
    ]


@pytest.mark.slow
def test_a_run_is_as_old_as_the_wall_clock_says_where_the_campaign_has_rested(night: Night) -> None:
    night.playbook(RATE_UP)
    night.start(max_experiments=1)
    assert night.session is not None
    bench = night.bench(night.session)
    bench.gather()
    (fresh, *_) = bench.evidence.fresh_incumbent(0)
    assert (bench.age_s(fresh) or 0.0) < 60
    night.session.journal.clock = lambda: time.time() + 5 * 3600
    assert bench.age_s(fresh) == pytest.approx(5 * 3600, abs=60)


@pytest.mark.slow
def test_a_target_is_met_by_the_runs_that_the_incumbent_was_not_kept_for(night: Night) -> None:
    """#1 is kept, and runs afresh beside #2, which does nothing and is looked at to the end."""
    night.playbook(BETTER_RATE, NOTHING)
    night.start(rules=Rules(filter_alpha=0.99, hold_p=1.0, go_on_p=1.0), max_experiments=2)
    assert night.outcomes()[1:] == [("better-rate", "keep"), ("placebo", "discard")]
    assert night.session is not None
    measured = [
        run.finished.summary["metrics"]["confirm"]
        for run in night.session.state.runs.values()
        if run.id.startswith("001-incumbent-") and run.finished and run.finished.summary
    ]
    mean = sum(measured) / len(measured)
    assert len(measured) >= 2
    assert f"{mean:.1%}" != f"{float(night.rows[1]['metric_value']):.1%}"
    recorded = night.session.state.experiments[2].recorded
    assert recorded is not None
    assert recorded.best == pytest.approx(mean)


@pytest.mark.slow
def test_rows_that_are_not_trained_on_are_said(night: Night) -> None:
    night.playbook(RATE_UP)
    (night.root / "near-duplicates").write_text("7")
    night.start(max_experiments=0)
    assert (
        night.observer.said.count("7 training rows are near-duplicates of held-out ones, and are not trained on") == 1
    )
