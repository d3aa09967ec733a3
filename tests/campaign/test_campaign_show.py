"""`raft-agent show`: one screen with everything that a verdict rests on, from the journal alone."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nights import BETTER_RATE, NO_DEDUP, NOTHING, RECIPE, Night, hypothesis, trick
from rich.console import Console

from agent.campaign.decided import rule_that_decided
from agent.campaign.differing import differing_prompts
from agent.campaign.rules import Rules
from agent.campaign.story import tell
from agent.cli.main import register, run
from agent.ledger.create import create_workspace, shipped_folder
from agent.ledger.journal import Experiment, Journal, fold
from agent.report.evidence import screen
from agent.report.numbers import Numbers

register()
NEW_FIELDS = ("measured_by", "guard_readings", "watches", "comparator")


def night_of(folder: Path) -> Night:
    created = create_workspace(folder / "ws", shipped=shipped_folder(), extra={"recipes/test.yaml": RECIPE})
    return Night(created.workspace)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """#1 is kept, #2 is better and cuts its answers, #3 does nothing, #4 crashes."""
    night = night_of(tmp_path_factory.mktemp("judged"))
    cut = trick("cut", 0.85, selection__dedup=False)
    night.playbook(BETTER_RATE, cut, NOTHING, hypothesis("nan", 0.5, set={"learner.optimizer": "sgd"}))
    night.start(max_experiments=4)
    return night


Show = Callable[..., str]


@pytest.fixture
def show(judged: Night, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    def shown(number: int, *options: str, root: Path = judged.root) -> str:
        monkeypatch.chdir(root)
        assert run(["show", str(number), *options]) == 0
        return capsys.readouterr().out

    return shown


def test_a_kept_idea_on_one_screen(show: Show) -> None:
    said = show(1)
    evidence, _, diff = said.partition("\ndiff --git")
    assert len(evidence.splitlines()) <= 48
    assert max(map(len, evidence.splitlines())) <= 80
    assert "outcome    keep: gain +27.3pp [+21.0pp, +33.5pp], confirmed on 200 fresh prompts" in said
    assert "decided by look 2 of the confirmation (2+2 seeds): lower bound +18" in said
    assert "in the end holdout (n=200): untrained 19.0% -> baseline 42.0% -> winner 71.0%" in said
    assert "change     learner.learning_rate 0.0005 -> 0.002" in said
    assert "claim      better-rate helps" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["baseline", "1", "37.5%", "20", "500", "1000"] in [row[:6] for row in rows]
    assert ["search", "1000", "69.5%"] in [row[:3] for row in rows]
    assert ["confirm", "1100", "71.0%", "75.0%"] in [row[:4] for row in rows]
    assert ["incumbent", "500", "46.5%"] in [row[:3] for row in rows]
    # 57 of the 200 prompts of the confirm split were better and none worse, 66 of those of search
    assert ["better,", "worse,", "equal", "66,", "0,", "134", "57,", "0,", "143"] in rows
    assert ["seeds,", "prompts", "1+2,", "200", "2+2,", "200"] in rows
    assert "look 1     1+1 seeds: +28.5pp" in said
    assert "level      0.0200 given back, being kept; 0.0500 of the campaign's 0.05 left" in said
    assert ["truncation", "0.0%", "0.0%", "held", "above", "50%", "and", "twice", "the", "incumbent's"] in rows
    assert "raft-agent diagnose 001-search-s1000" in said
    assert "on raft/night/exp/001-better-rate-up" in said
    assert "git log --notes=raft " in said
    assert "+  learning_rate: 0.002  # the usual" in diff


def test_a_broken_guard_a_filtered_idea_and_a_crash_name_their_rule(show: Show) -> None:
    rows = {number: " ".join(show(number).split()) for number in (0, 2, 3, 4)}
    assert "decided by the baseline is kept by definition" in rows[0]
    assert "against untrained model" in rows[0]
    assert "decided by a guard on the search split: truncation; not confirmed, not built on" in rows[2]
    assert "truncation 0.0% 80.0% BROKEN" in rows[2]
    assert "of #1 learning-rate: better rate, 0.0005 -> 0.002" in rows[2]
    assert "decided by the filter on the search split: lower bound" in rows[3]
    assert "level none used: there was no confirmation" in rows[3]
    assert "outcome crash: numeric: loss is nan at step 3 decided by no valid metric after 1 fix" in rows[4]
    assert "fix numeric: learning rate 0.002 -> 0.001" in rows[4]
    assert "search 4000" in rows[4]
    assert "numeric" in rows[4]


def test_a_guard_that_broke_in_the_confirmation_is_told_with_its_look() -> None:
    look = {
        "seeds_candidate": 2,
        "seeds_incumbent": 4,
        "delta": 0.2,
        "bound": 0.1,
        "level": 0.01,
        "bar": 0.0,
        "p_value": 0.0,
    }
    numbers = {"kind": "guard", "guards": {"truncation": "0% -> 80%"}, "looks": [look]}
    said = rule_that_decided(Experiment(1), numbers, write=Numbers("pass_rate"))
    assert said == "a guard at look 1 of the confirmation (2+4 seeds): truncation; no gain outweighs it"


def test_all_of_it_as_json(show: Show) -> None:
    told = json.loads(show(1, "--json", "--prompts"))
    assert (told["number"], told["evidence"]["outcome"], told["judged"]["outcome"]) == (1, "keep", "keep")
    search, confirm = told["evidence"]["paired"]
    assert (search["split"], confirm["split"]) == ("search", "confirm")
    assert confirm["delta"] == pytest.approx(0.2725)
    assert confirm["low"] < confirm["delta"] < confirm["high"]
    assert confirm["error"] == pytest.approx((confirm["pair_error"] ** 2 + confirm["run_error"] ** 2) ** 0.5)
    assert confirm["better"] + confirm["worse"] + confirm["equal"] == confirm["prompts"] == 200
    assert [guard["name"] for guard in told["evidence"]["guards"]] == ["evaluation", "truncation", "length", "unique"]
    assert {run["arm"] for run in told["evidence"]["runs"]} == {"baseline", "search", "confirm", "incumbent"}
    assert len(told["prompts"]["differ"]) == 57
    assert told["prompts"]["gone"] == []


def test_the_prompts_that_differ(show: Show, judged: Night) -> None:
    said = show(1, "--prompts")
    assert "57 prompts of confirm differ; over all runs of each arm:" in said
    row = next(line.split() for line in said.splitlines() if line.startswith("confirm-"))
    assert row[1:] == ["0", "of", "2", "2", "of", "2", "+1.00"]
    assert max(map(len, said.partition("diff --git")[0].splitlines())) <= 80
    assert judged.session is not None
    split, lines, gone = differing_prompts(judged.root, judged.session.state, 3)
    assert (split, gone) == ("search", [])
    assert all(line.incumbent_samples == 2 and line.candidate_samples == 1 for line in lines)


@pytest.mark.slow
def test_the_journal_is_enough_when_the_runs_are_gone(show: Show, judged: Night, tmp_path: Path) -> None:
    root = tmp_path / "ws"
    shutil.copytree(judged.root, root)
    shutil.rmtree(root / ".raft/runs")
    for number in range(5):
        assert show(number, root=root) == show(number)
    said = show(1, "--prompts", root=root)
    assert "no rows of 001-confirm-s1100, 001-confirm-s1101, 000-incumbent-s500" in said


def test_a_journal_of_an_earlier_version_tells_less(show: Show, judged: Night, tmp_path: Path) -> None:
    root = tmp_path / "ws"
    shutil.copytree(judged.root, root)
    path = root / ".raft/campaigns/night/journal.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{json.dumps(as_before(event))}\n" for event in events))
    said = {number: show(number, root=root) for number in range(5)}
    assert "decided by look 2 of the confirmation: 2+2 seeds: +27.3pp" in said[1]
    assert "look 2     2+2 seeds: +27.3pp" in said[1]
    assert "guards" not in said[1]
    assert "95% interval            [+25.8pp, +39.2pp]  [+21.0pp, +33.5pp]" in said[1]
    assert "truncation                        BROKEN  held-out completions that were cut" in said[2]
    assert "decided by the filter on the search split\n" in said[3]


def as_before(event: dict[str, Any]) -> dict[str, Any]:
    """What a judged event did not have, or had in words, before it was told for `show`."""
    numbers = event.get("numbers")
    if event["kind"] == "experiment_judged" and numbers:
        for name in NEW_FIELDS:
            numbers.pop(name)
        numbers["looks"] = [
            f"{look['seeds_candidate']}+{look['seeds_incumbent']} seeds: {100 * look['delta']:+.1f}pp: {look['said']}"
            for look in numbers["looks"]
        ]
    return event


def test_any_part_of_a_journal_can_be_shown(judged: Night) -> None:
    """A campaign under way, killed, or with a torn journal: less is known, and nothing breaks."""
    events = list(Journal(judged.workspace.journal_path("night")).events())
    outcomes = set()
    for end in range(1, len(events) + 1):
        state = fold(events[:end])
        for number in sorted(state.experiments)[-1:]:
            story = tell(state, number)
            outcomes.add(story.outcome)
            Console(file=io.StringIO(), width=80).print(screen(story, width=80))
    assert outcomes == {"open", "keep", "discard", "crash"}
    only_judged = fold([event for event in events if event.kind == "experiment_judged"])
    assert "keep: gain" in text_of(only_judged, 1)
    planned = next(place for place, event in enumerate(events) if getattr(event, "run", "") == "001-search-s1000")
    under_way = fold(events[: planned + 2])
    assert "outcome    open: running, without an outcome so far" in text_of(under_way, 1)


def text_of(state: Any, number: int) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(screen(tell(state, number), width=80))
    return out.getvalue()


@pytest.mark.slow
def test_a_screened_and_a_superseded_idea(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PACE", "0.06")
    night = night_of(tmp_path)
    night.playbook(BETTER_RATE, NO_DEDUP, NOTHING)
    rules = Rules(batch=3, least_batch=3, survivors=0.67, screen_share=0.6, most_part=9.0, scarce=1e9, alone_runs=0)
    night.start(rules=rules, max_experiments=3)
    assert night.session is not None
    kept, superseded, screened = (text_of(night.session.state, number) for number in (1, 2, 3))
    started, went_on = (line.split() for line in kept.splitlines() if line.startswith(("screen ", "search ")))
    assert (started[:2], started[-1]) == (["screen", "1000"], "paused")
    assert (went_on[:2], went_on[-1]) == (["search", "1000"], "done")
    assert "decided by the incumbent that it changes was replaced before its turn" in superseded
    assert "decided by the screening of its batch" in screened
    assert "incumbent so far" in screened


@pytest.mark.slow
def test_a_metric_that_is_to_fall_is_shown_in_its_own_direction(night: Night) -> None:
    path = night.root / "recipes/test.yaml"
    path.write_text(RECIPE.replace("temperature: 0}", "temperature: 0, direction: minimize}"))
    night.playbook(hypothesis("rate-down", 0.9, set={"learner.learning_rate": 2.5e-4}))
    night.start(max_experiments=1)
    assert night.session is not None
    said = text_of(night.session.state, 1)
    assert "smaller is better: a positive difference is a fall of pass_rate" in said
    rows = [line.split() for line in said.splitlines()]
    compared = next(row for row in rows if row[:2] == ["candidate,", "incumbent"])
    assert compared[-2:] == ["29.8%,", "47.0%"]
    assert next(row for row in rows if row[:1] == ["difference"])[-1] == "+17.2pp"
