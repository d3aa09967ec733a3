"""The journal: what is written comes back, and any part of it folds to a state."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import ResourceError
from agent.ledger.journal import CampaignState, Journal, fold

RECIPE_PATH = "recipes/tiny.yaml"
STATUSES = ["planned", "committed", "running", "finished", "judged", "recorded"]


class Told:
    """A journal with a clock that advances one second a line, and the words of a campaign."""

    def __init__(self, path: Path):
        ticks = itertools.count(1000.0)
        self.journal = Journal(path, clock=lambda: next(ticks))

    def begin(self) -> None:
        self.journal.append(
            "campaign_started", campaign="night", recipe_path=RECIPE_PATH, recipe="lr: 1\n", base_commit="b" * 40
        )
        self.journal.append("campaign_branched", commit="c" * 40)

    def plan(self, number: int, text: str = "lr: 2\n") -> None:
        self.journal.append(
            "experiment_planned",
            experiment=number,
            hypothesis="raise-lr",
            axis="learner",
            slug="raise-lr",
            subject="learner: learning_rate, 1 -> 2",
            files={RECIPE_PATH: text},
            recipe_signature=f"sig{number}",
        )

    def commit(self, number: int) -> None:
        self.journal.append("experiment_committed", experiment=number, branch=f"exp/{number}", commit=f"e{number}")

    def run(
        self, run: str, number: int | None, *, role: str = "experiment", rung: str = "full", end: bool = True
    ) -> None:
        words: dict[str, Any] = {
            "run": run, "experiment": number, "role": role, "rung": rung, "seed": 1, "recipe_signature": "s", "out": run
        }  # fmt: skip
        self.journal.append("run_planned", **words)
        self.journal.append("run_started", **words, pid=7, process_started=1.5, boot_id="boot")
        if end:
            self.journal.append(
                "run_finished", run=run, ended_by="itself", exit_code=0, elapsed_s=3.0, summary={"m": 0.5}
            )

    def judge(self, number: int, outcome: str) -> None:
        self.journal.append(
            "experiment_judged",
            experiment=number,
            outcome=outcome,
            reason="why",
            row={"campaign": "night", "index": number, "status": outcome},
        )

    def record(self, number: int) -> None:
        self.journal.append("experiment_recorded", experiment=number, commit=f"r{number}")


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path / "campaigns" / "night" / "journal.jsonl")


def test_an_experiment_goes_through_its_states_in_order(told: Told) -> None:
    told.begin()
    seen = []
    steps = [
        lambda: told.plan(1),
        lambda: told.commit(1),
        lambda: told.run("r1", 1, end=False),
        lambda: told.journal.append("run_finished", run="r1", ended_by="itself"),
        lambda: told.judge(1, "discard"),
        lambda: told.record(1),
    ]
    for step in steps:
        step()
        seen.append(told.journal.state().experiments[1].status)
    assert seen == STATUSES


def test_what_is_left_to_do_at_every_point(told: Told) -> None:
    """After each line: the steps that `pending` names, in words `kind:what`."""

    def pending() -> list[str]:
        steps = told.journal.state().pending()
        return [f"{step.kind}:{step.run or step.fix or step.experiment}" for step in steps]

    assert pending() == []
    told.journal.append(
        "campaign_started", campaign="night", recipe_path=RECIPE_PATH, recipe="x", base_commit="b", files={}
    )
    assert pending() == ["start_campaign:None"]
    told.journal.append("campaign_branched", commit="c")
    told.run("base", None, role="baseline", rung="calibrate", end=False)
    assert pending() == ["settle_run:base"]
    told.journal.append("run_finished", run="base", ended_by="lost")
    assert pending() == []
    told.plan(1)
    assert pending() == ["commit_experiment:1", "continue_experiment:1"]
    told.commit(1)
    told.run("r1", 1, end=False)
    assert pending() == ["settle_run:r1", "continue_experiment:1"]
    told.journal.append("run_finished", run="r1", ended_by="itself", exit_code=1)
    told.journal.append("experiment_fixed", experiment=1, fix=1, subject="fix", files={RECIPE_PATH: "lr: 3\n"})
    assert pending() == ["commit_fix:1", "continue_experiment:1"]
    told.journal.append("experiment_fixed", experiment=1, fix=1, commit="f1")
    assert pending() == ["continue_experiment:1"]
    told.judge(1, "keep")
    assert pending() == ["record_experiment:1"]
    told.record(1)
    assert pending() == []


def test_the_incumbent_is_the_last_keep_with_its_fixes(told: Told) -> None:
    told.begin()
    baseline = told.journal.state().incumbent
    assert baseline is not None
    assert (baseline.experiment, baseline.commit, baseline.recipe) == (None, "c" * 40, "lr: 1\n")
    for number, outcome in ((1, "keep"), (2, "discard"), (3, "crash")):
        told.plan(number, f"lr: {number + 1}\n")
        told.commit(number)
        if number == 1:
            told.journal.append(
                "experiment_fixed",
                experiment=1,
                fix=1,
                files={RECIPE_PATH: "lr: 9\n"},
                commit="f1",
                recipe_signature="fx",
            )
        told.judge(number, outcome)
        told.record(number)
    state = told.journal.state()
    assert state.incumbent is not None
    assert (state.incumbent.experiment, state.incumbent.commit) == (1, "f1")
    assert (state.incumbent.recipe, state.incumbent.recipe_signature) == ("lr: 9\n", "fx")
    assert state.best_commit == "r3"
    assert state.next_number == 4
    assert [row["status"] for row in state.rows()] == ["keep", "discard", "crash"]


def test_an_interrupted_idea_is_open_again_and_has_no_row(told: Told) -> None:
    told.begin()
    told.plan(1)
    told.commit(1)
    told.run("r1", 1)
    told.judge(1, "interrupted")
    state = told.journal.state()
    assert state.experiments[1].status == "committed"
    assert state.experiments[1].attempt == []
    assert state.rows() == []
    assert [step.kind for step in state.pending()] == ["continue_experiment"]
    told.run("r1-again", 1)
    told.judge(1, "keep")
    experiment = told.journal.state().experiments[1]
    assert [run.id for run in experiment.attempt] == ["r1-again"]
    assert experiment.outcome == "keep"


def test_consumed_seconds_do_not_count_downtime(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    used = 0.0
    first = Journal(path, clock=lambda: 100.0, consumed=lambda: used)
    first.append("campaign_started", campaign="n", recipe_path="r", recipe="", base_commit="b")
    used = 60.0
    first.append("budget_tick", consumed_s=60.0)
    second = Journal(path, clock=lambda: 90_000.0, consumed=lambda: 61.5)
    second.append("campaign_resumed")
    state = second.state()
    assert (state.consumed_s, state.sessions) == (61.5, 2)


def test_confirmations_are_counted_once_per_idea_in_their_order(told: Told) -> None:
    told.begin()
    for number in (1, 2, 3):
        told.plan(number)
    for run, number in (("a", 3), ("b", 3), ("c", 1)):
        told.run(run, number, role="confirm", rung="confirm")
    told.run("d", 2)
    state = told.journal.state()
    assert state.confirm_order == [3, 1]
    assert state.confirmations == 2


def test_shared_layer_constraints_and_status(told: Told) -> None:
    told.begin()
    for value in (4096, 4096, 2048):
        told.journal.append(
            "constraint_learned", key="learner.microbatch_tokens", relation="<=", value=value, why="oom"
        )
    told.journal.append("shared_layer_changed", values={"backend.attention": "eager"}, env={"A": "1"}, why="fault")
    told.journal.append("shared_layer_changed", values={"backend.attention": "sdpa"}, why="better")
    told.journal.append("campaign_paused", reason="Ctrl-C")
    state = told.journal.state()
    assert [limit.value for limit in state.constraints] == [4096, 2048]
    assert state.shared_values == {"backend.attention": "sdpa"}
    assert state.shared_env == {"A": "1"}
    assert (state.status, state.stop_reason) == ("paused", "Ctrl-C")
    told.journal.append("campaign_resumed")
    assert told.journal.state().status == "running"
    told.journal.append("campaign_finished", reason="budget", result={"kept": 0})
    assert (told.journal.state().status, told.journal.state().result) == ("finished", {"kept": 0})


def test_numbers_come_back_as_numbers_and_unknown_as_unknown(told: Told) -> None:
    told.journal.append(
        "calibrated",
        values={
            "a": np.float32(0.5),
            "b": np.int64(3),
            "c": math.nan,
            "d": math.inf,
            "e": np.bool_(True),
            "p": Path("x/y"),
        },
        note="bytes that are no text: \udcff, a break\r\n and \u2028",
    )
    event = next(told.journal.events())
    assert told.journal.state().calibration == {"a": 0.5, "b": 3, "c": None, "d": None, "e": True, "p": "x/y"}
    assert event.model_extra == {"note": "bytes that are no text: ?, a break\r\n and \u2028"}
    assert len(told.journal.path.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("run_finishd", {}), ("run_finished", {}), ("note", {"text": object()}), ("budget_tick", {"consumed_s": -1})],
)
def test_a_mistake_of_the_caller_is_refused_before_it_is_on_disk(told: Told, kind: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"journal"):
        told.journal.append(kind, **fields)
    assert not told.journal.exists()


def test_a_full_disk_is_a_resource_error_and_numbers_go_on(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    told.begin()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="No space left on device"):
            told.journal.append("note", text="may or may not be there")
    told.journal.append("note", text="there is space again")
    seqs = [event.seq for event in told.journal.events()]
    assert seqs == list(range(1, len(seqs) + 1))
    assert told.journal.state().notes[-1].text == "there is space again"


def test_lines_of_a_newer_version_and_rubbish_are_passed_over(told: Told) -> None:
    told.begin()
    with told.journal.path.open("a") as file:
        file.write('{"kind": "dream", "seq": 3, "time": 1.0}\n[1, 2]\n{"seq": "x"}\n{"kind": "no')
    again = Journal(told.journal.path)
    event = again.append("note", text="after")
    assert event.seq == 4  # the event of the newer version has number 3
    assert [entry.kind for entry in again.events()] == ["campaign_started", "campaign_branched", "dream", "note"]
    assert again.state().unknown == 1


def test_sequence_numbers_go_on_after_a_restart(told: Told) -> None:
    told.begin()
    again = Journal(told.journal.path)
    assert again.append("note", text="x").seq == 3
    assert [event.seq for event in again.events()] == [1, 2, 3]


# ---- any part of a journal

outcomes = st.sampled_from(["keep", "discard", "crash", "interrupted"])
ideas = st.lists(st.tuples(outcomes, st.integers(0, 2), st.booleans(), st.booleans()), max_size=5)


def tell(path: Path, story: list[tuple[str, int, bool, bool]]) -> None:
    """A whole campaign: per idea its outcome, number of fixes, whether it was confirmed, whether a note was made."""
    told = Told(path)
    told.begin()
    for seed in range(2):
        told.run(f"base-{seed}", None, role="baseline", rung="calibrate")
    for number, (outcome, fixes, confirmed, noted) in enumerate(story, start=1):
        told.plan(number, f"lr: {number}\n")
        told.commit(number)
        told.run(f"r{number}", number)
        for fix in range(1, fixes + 1):
            told.journal.append("experiment_fixed", experiment=number, fix=fix, files={RECIPE_PATH: f"fix {fix}\n"})
            told.journal.append("experiment_fixed", experiment=number, fix=fix, commit=f"f{number}.{fix}")
            told.run(f"r{number}.{fix}", number)
        if confirmed:
            told.run(f"c{number}", number, role="confirm", rung="confirm")
        told.judge(number, outcome)
        if outcome != "interrupted":
            told.record(number)
        if noted:
            told.journal.append("note", text=f"ü after {number}")
        told.journal.append("budget_tick", consumed_s=float(number * 10))
    told.journal.append("campaign_finished", reason="budget")


fast = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def check(state: CampaignState) -> None:
    """What holds of every state, whole or partial."""
    for number, experiment in state.experiments.items():
        assert experiment.number == number
        assert experiment.status in STATUSES
        assert isinstance(experiment.files, dict)
    if state.incumbent and state.incumbent.experiment is not None:
        assert state.experiments[state.incumbent.experiment].outcome == "keep"
    assert state.confirmations <= len(state.experiments)
    state.pending()
    state.rows()


@fast
@given(story=ideas, data=st.data())
def test_any_prefix_and_a_torn_line_fold(tmp_path_factory: pytest.TempPathFactory, story, data) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    tell(path, story)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    journal = Journal(path)
    state = journal.state()
    check(state)
    complete = whole[:cut].count(b"\n") + (whole[cut : cut + 1] == b"\n")
    assert state.last_seq == complete
    assert journal.append("note", text="after the cut").seq == complete + 1
    assert journal.state().notes[-1].text == "after the cut"
    assert [event.seq for event in journal.events()] == list(range(1, complete + 2))


@fast
@given(story=ideas, data=st.data())
def test_a_line_that_stands_twice_changes_nothing(tmp_path_factory: pytest.TempPathFactory, story, data) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    tell(path, story)
    lines = path.read_text().splitlines(keepends=True)
    expected = Journal(path).state()
    for _ in range(data.draw(st.integers(1, 5))):
        taken = data.draw(st.integers(0, len(lines) - 1))
        lines.insert(data.draw(st.integers(taken + 1, len(lines))), lines[taken])
    path.write_text("".join(lines))
    assert Journal(path).state() == expected


@fast
@given(story=ideas, data=st.data())
def test_an_effect_reported_again_changes_nothing(tmp_path_factory: pytest.TempPathFactory, story, data) -> None:
    """After a kill the campaign may do an effect again and write its line a second time, with a new number."""
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    tell(path, story)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    facts = ("experiment_", "run_", "campaign_started", "campaign_branched", "budget_tick")
    again = [line for line in lines if line["kind"].startswith(facts) and line.get("outcome") != "interrupted"]
    before = Journal(path).state()
    journal = Journal(path, clock=lambda: 0.0)
    for line in data.draw(st.lists(st.sampled_from(again), max_size=5)):
        journal.append(
            line["kind"], **{key: value for key, value in line.items() if key not in ("kind", "seq", "time")}
        )
    after = journal.state()
    assert {number: idea.status for number, idea in after.experiments.items()} == {
        number: idea.status for number, idea in before.experiments.items()
    }
    assert after.pending() == before.pending()
    assert after.incumbent == before.incumbent
    assert after.rows() == before.rows()
    for name in ("consumed_s", "confirm_order", "recorded_order", "judged_order", "best_commit", "sessions", "status"):
        assert getattr(after, name) == getattr(before, name)


@fast
@given(story=ideas, rng=st.randoms(use_true_random=False), share=st.floats(0, 1))
def test_lines_lost_or_out_of_order_still_fold(tmp_path_factory: pytest.TempPathFactory, story, rng, share) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    tell(path, story)
    events = [event for event in Journal(path).events() if rng.random() < share]
    rng.shuffle(events)
    check(fold(events))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@fast
@given(
    lines=st.lists(
        st.dictionaries(st.sampled_from(["kind", "seq", "time", "experiment", "run", "fix"]), json_values), max_size=8
    )
)
def test_lines_that_somebody_else_wrote_fold(tmp_path_factory: pytest.TempPathFactory, lines) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    check(Journal(path).state())
