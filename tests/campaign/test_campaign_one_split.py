"""Untrained, baseline and best are of one split wherever they are shown: `status`, `watch`, the end of `run`."""

from __future__ import annotations

import dataclasses
import json
import statistics
from typing import Any

import pytest
from made_journals import MadeJournal
from nights import BETTER_RATE, Dies, Night, dying_at, forked_launch
from test_campaign_notices import Listening

from agent.campaign.finish import Ending
from agent.campaign.one_split import on_one_split
from agent.campaign.standing import standing
from agent.cli.looking import closing_words
from agent.cli.main import register, run
from agent.contract import CYCLES
from agent.ledger.state import CampaignState
from agent.report.arms import gain_words, path_words
from agent.report.night import Estimate
from agent.report.numbers import Numbers
from agent.report.snapshot import Arms, Snapshot
from agent.report.status import status_fields, status_lines

register()
RATES = Numbers("pass_rate")
HOLDOUT = {
    "untrained": 0.19, "baseline": 0.42, "winner": 0.71, "prompts": 200,
    "winner - baseline": {"delta": 0.29, "low": 0.2, "high": 0.38},
}  # fmt: skip


def seen(state: CampaignState) -> Snapshot:
    return standing(state, name="night", at=0.0, process=1)


def confirmed(state: CampaignState, number: int) -> Any:
    judged = state.experiments[number].judged
    assert judged is not None
    return judged.numbers["basis"]


# --- which split -------------------------------------------------------------------------------------------


def test_before_anything_is_kept_all_are_of_the_search_split() -> None:
    made = MadeJournal().started()
    assert seen(made.state()).arms == Arms("search")
    made.baseline().idea("inconclusive", effect=0.01)
    state = made.state()
    baseline = state.calibration["baseline"]
    assert seen(state).arms == Arms("search", 0.2, baseline, baseline)
    lines = status_lines(seen(state))
    assert "  untrained 20.0% on search" in lines
    assert "  best      the baseline" in lines


@pytest.mark.parametrize("minimize", [False, True])
def test_what_is_kept_is_compared_with_the_baseline_on_the_confirm_split(minimize: bool) -> None:
    made = MadeJournal(minimize=minimize).started().baseline()
    made.idea("gain", effect=0.1)
    state = made.state()
    arms, basis = seen(state).arms, confirmed(state, 1)
    assert (arms.split, arms.untrained) == ("confirm", None), "the untrained model is not asked these prompts"
    measured = {
        arm: statistics.fmean(
            one.finished.summary["metrics"]["confirm"]
            for one in state.runs.values()
            if one.words and one.words.arm == arm and one.words.role == "confirm" and one.finished
        )
        for arm in ("incumbent", "candidate")
    }
    assert (arms.baseline, arms.best) == (pytest.approx(measured["incumbent"]), pytest.approx(measured["candidate"]))
    assert arms.baseline != pytest.approx(state.calibration["baseline"], abs=1e-4), "which is of the search split"
    assert arms.gain is not None
    assert arms.gain.value == basis["delta"] > 0
    assert abs(arms.best - arms.baseline) == pytest.approx(arms.gain.value)  # type: ignore[operator]
    assert arms.gain.low < arms.gain.value < arms.gain.high  # type: ignore[operator]
    made.idea("regressed", effect=-0.1)
    assert seen(made.state()).arms == arms, "what came since is another's"


def test_the_gain_of_a_later_keep_is_over_the_baseline_and_not_over_the_one_before() -> None:
    made = MadeJournal().started().baseline()
    made.idea("gain", effect=0.1)
    made.idea("gain", effect=0.05)
    line = next(one for one in made.lines if one["kind"] == "experiment_judged" and one["experiment"] == 2)
    line["row"]["metric_value"] = 0.65
    assert seen(made.state()).arms == Arms("confirm", best=0.65), "an old journal does not tell the baseline there"
    over = {**line["numbers"]["basis"], "delta": 0.15, "candidate": 0.65, "incumbent": 0.5}
    line["numbers"]["over_baseline"] = {"confirm": over}
    arms = seen(made.state()).arms
    assert (arms.baseline, arms.best) == (0.5, 0.65)
    assert arms.gain is not None
    assert arms.gain.value == 0.15


def test_the_gain_is_told_anew_with_what_was_kept_having_run_beside_later_ideas() -> None:
    """The runs that it was kept for favour it; those since do not, and the rows above have them too."""
    made = MadeJournal().started().baseline()
    made.idea("gain", effect=0.1)
    made.idea("regressed", effect=-0.1)
    kept, later = (one for one in made.lines if one["kind"] == "experiment_judged" and one["experiment"])
    basis = kept["numbers"]["basis"]
    kept["numbers"]["over_baseline"] = {"confirm": basis}
    later["numbers"]["over_baseline"] = {"confirm": {**basis, "delta": 0.06, "candidate": 0.57, "incumbent": 0.51}}
    later["numbers"]["over_baseline_of"] = 1
    arms = seen(made.state()).arms
    assert (arms.baseline, arms.best) == (0.51, 0.57)
    assert arms.gain is not None
    assert arms.gain.value == 0.06
    later["numbers"]["over_baseline_of"] = 0
    assert seen(made.state()).arms.gain.value == basis["delta"], "of another recipe"  # type: ignore[union-attr]


def test_the_holdout_counts_once_it_is_evaluated_and_for_its_own_winner() -> None:
    made = MadeJournal().started().baseline()
    made.idea("gain", effect=0.1)
    made.finished(holdout=HOLDOUT)
    told = Arms("holdout", 0.19, 0.42, 0.71, Estimate(0.29, 0.2, 0.38))
    assert seen(made.state()).arms == told
    made.tell("campaign_resumed", reason="", budget_s=1e6)
    assert seen(made.state()).arms == told
    made.idea("gain", effect=0.1)
    assert seen(made.state()).arms.split == "confirm", "it says nothing of the new one"


def test_a_night_without_a_keep_ends_on_the_holdout_too() -> None:
    made = MadeJournal().started().baseline()
    made.finished(holdout={"untrained": 0.19, "baseline": 0.42, "prompts": 200})
    assert seen(made.state()).arms == Arms("holdout", 0.19, 0.42, 0.42)


def test_a_mean_reward_below_zero_keeps_its_sign() -> None:
    made = MadeJournal().started().baseline()
    arms = {"baseline": {"value": -0.42, "low": -0.5, "high": -0.3, "runs": 2}}
    made.finished(holdout={"baseline": 0.42, "arms": arms, "prompts": 200})
    assert seen(made.state()).arms == Arms("holdout", None, -0.42, -0.42)


@pytest.mark.parametrize(
    "holdout",
    [
        {"skipped": "the holdout was not evaluated: the budget is spent"},
        {key: value for key, value in HOLDOUT.items() if not key.startswith("winner")},
        {key: value for key, value in HOLDOUT.items() if key not in ("baseline", "winner - baseline")},
        {},
    ],
)
def test_a_holdout_without_both_is_not_shown_in_part(holdout: dict[str, Any]) -> None:
    made = MadeJournal().started().baseline()
    made.idea("gain", effect=0.1)
    before = seen(made.state()).arms
    assert (before.split, before.baseline is None, before.best is None) == ("confirm", False, False)
    made.finished(holdout=holdout)
    assert seen(made.state()).arms == before


def test_numbers_that_are_none_are_unknown() -> None:
    state = MadeJournal().started().baseline().state()
    state.calibration.update(untrained="many", baseline=float("nan"))
    assert on_one_split(state, 0, minimize=False) == Arms("search")


# --- words -------------------------------------------------------------------------------------------------


def test_words() -> None:
    arms = Arms("confirm", None, 0.47, 0.7425, Estimate(0.2725, 0.2098, 0.3352))
    assert gain_words(arms, RATES) == "+27.3pp [+21.0, +33.5]"
    assert path_words(arms, RATES, number=1) == "on confirm: baseline 47.0% -> #1 74.2% (+27.3pp [+21.0, +33.5])"
    assert path_words(Arms("search", 0.2, 0.4, 0.4), RATES, number=0) == "on search: untrained 20.0% -> baseline 40.0%"
    assert path_words(Arms("confirm", best=1.3), Numbers("mean_reward"), number=7) == "on confirm: #7 1.300"
    assert path_words(Arms("confirm"), RATES, number=7) == ""


def test_status_in_a_reward_has_no_percentage() -> None:
    arms = Arms("confirm", None, 1.25, 1.3, Estimate(0.05, 0.01, 0.09))
    told = Snapshot(
        0.0, "night", "running", metric="mean_reward", arms=arms, best_number=2, best_title="a change", lead=1.4,
        lead_number=3, lead_title="another", sigma_run=0.012, detectable=0.028,
    )  # fmt: skip
    lines = status_lines(told)
    for line in (
        "  baseline  1.250 on confirm",
        "  best      1.300 on confirm, #2 a change",
        "  gain      +0.050 [+0.010, +0.090] over the baseline, on confirm",
        "  leads     1.400 on search, #3 another; unconfirmed, the next ideas build on it",
        "  noise     0.012 (baseline seeds), gains from about 0.028 can be confirmed",
    ):
        assert line in lines
    assert "%" not in "".join(lines)
    assert "pp" not in "".join(lines)
    assert status_fields(told)["lead"] == {"number": 3, "title": "another", "metric": 1.4, "split": "search"}


@pytest.mark.parametrize("width", [1, 40, 80, 500])
def test_status_breaks_its_lines_between_words_as_wide_as_the_terminal_is(width: int) -> None:
    title = "together: what led, #26, samples_per_prompt 8 -> 2, learning_rate 0.0001 -> 0.0002"
    told = Snapshot(
        0.0, "2026-11-28-tiny-addition", "finished", arms=Arms("holdout", best=0.605), best_number=28, best_title=title,
        next="raft-agent finalize 2026-11-28-tiny-addition", trouble="/somewhere/.raft/campaigns/night/journal.jsonl",
    )  # fmt: skip
    whole, broken = status_lines(told), status_lines(told, width=width)
    assert " ".join(" ".join(broken).split()) == " ".join(" ".join(whole).split())
    assert {"  next      raft-agent finalize 2026-11-28-tiny-addition", f"  trouble   {told.trouble}"} <= set(broken)
    first, after = (
        next(n for n, line in enumerate(broken) if line.startswith(f"  {name}")) for name in ("best", "ideas")
    )
    assert all(len(line) <= max(width, 35) for line in broken[first:after])
    assert (broken == whole) == (width == 500)


@pytest.mark.parametrize(
    ("budget_s", "left_s", "words"),
    [
        (3600.0, 3000.0, "10m 00s used of 1h 00m"),
        (3600.0, 1200.0, "10m 00s used of 1h 00m, 20m 00s left until the deadline"),
        (None, 1200.0, "10m 00s used, 20m 00s left until the deadline"),
        (3600.0, None, "10m 00s used of 1h 00m"),
    ],
)
def test_status_tells_the_time_left_where_the_budget_does_not(
    budget_s: float | None, left_s: float | None, words: str
) -> None:
    told = Snapshot(0.0, "night", "running", used_s=600.0, budget_s=budget_s, left_s=left_s)
    assert f"  budget    {words}" in status_lines(told)


# --- a night -----------------------------------------------------------------------------------------------


@pytest.fixture
def at_home(judged: Night, monkeypatch: pytest.MonkeyPatch) -> Night:
    monkeypatch.chdir(judged.root)
    return judged


def said_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(list(arguments)) == 0
    return capsys.readouterr().out


def ending_of(night: Night) -> Ending:
    assert night.session is not None
    told = night.session.state.result
    return Ending(reason="over", **{**told, "kept": tuple(told["kept"]), "lines": tuple(told["lines"])})


def test_after_a_night_every_view_has_the_holdout(at_home: Night, capsys: pytest.CaptureFixture[str]) -> None:
    status = said_by(capsys, "status")
    for line in (
        "  untrained 19.0% on holdout\n",
        "  baseline  42.0% on holdout\n",
        "  best      71.0% on holdout, #1 learning-rate: better rate, 0.0005 -> 0.002\n",
        "  gain      +29.0pp [+22.6, +35.4] over the baseline, on holdout\n",
    ):
        assert line in status
    assert max(map(len, status.splitlines())) <= 80
    told = json.loads(said_by(capsys, "status", "--json"))
    assert (told["metrics"]["split"], told["metrics"]["untrained"]) == ("holdout", 0.19)
    assert told["incumbent"]["metric"] == told["metrics"]["best"] == pytest.approx(0.71)
    assert told["metrics"]["gain"] == pytest.approx(told["metrics"]["best"] - told["metrics"]["baseline"])
    watched = said_by(capsys, "watch", "--once")
    verdict = "verdict 1 confirmed gain, +27.3pp [+21.0pp, +33.5pp] on fresh prompts; holdout (n=200): untrained 19.0% "
    assert f"{verdict}-> baseline 42.0% -> winner 71.0%" in " ".join(watched.split())
    last = "\n".join(closing_words(at_home.session, ending_of(at_home)))  # type: ignore[arg-type]
    for shown in (status, watched, last):
        assert "22.5%" not in shown, "the untrained model on search"
        assert "74.2%" not in shown, "the winner on confirm"
    assert last.count("71.0%") == 1, "by the headline"


def test_without_a_holdout_every_view_has_the_confirm_split(
    at_home: Night, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """47.0% -> 74.2% on confirm; the baseline's 37.0% on search would make 37 points of its 27."""
    session = at_home.session
    assert session is not None
    monkeypatch.setitem(session.state.result, "holdout", {"skipped": "not evaluated"})
    told = session.snapshot()
    assert "  baseline  47.0% on confirm" in status_lines(told)
    assert "  gain      +27.3pp [+21.0, +33.5] over the baseline, on confirm" in status_lines(told)
    last = closing_words(session, dataclasses.replace(ending_of(at_home), lines=("over",)))
    assert "on confirm: baseline 47.0% -> #1 74.2% (+27.3pp [+21.0, +33.5])" in last
    assert not [line for line in last if "37.0%" in line]


@pytest.mark.slow
def test_the_last_message_says_its_split_and_no_time_that_is_left(night: Night) -> None:
    night.playbook(BETTER_RATE)
    night.observer = Listening()
    night.start(max_experiments=1)
    numbers = night.observer.closings[0].numbers
    assert (numbers["split"], numbers["baseline"], numbers["best"]) == ("holdout", 0.42, pytest.approx(0.71))
    assert numbers["gain"] == pytest.approx(0.29)
    assert numbers["left_s"] is None
    assert night.session is not None
    assert night.session.snapshot().left_s is None


@pytest.mark.slow
def test_a_run_that_goes_on_is_predicted_to_take_what_is_left_of_it(night: Night) -> None:
    """Its first start is lost with the agent once six tenths of the budget are spent; a limit is not set by that."""
    with pytest.raises(Dies):
        night.start(max_experiments=1, launcher=dying_at(3))
    folder = night.folder("baseline-s2")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CYCLES).write_text(json.dumps({"cycle": 3, "budget_spent": 0.6}) + "\n")
    limits: dict[str, float] = {}

    def launcher(request: Any, **keys: Any) -> Any:
        limits.setdefault(request.out.name, request.time_limit_s)
        if request.out.name != "baseline-s2":
            raise Dies
        return forked_launch(request, **keys)

    with pytest.raises(Dies):
        night.resume(launcher=launcher)
    assert night.session is not None
    planned = [one.planned for one in night.session.state.runs.values() if "baseline-s2" in one.id and one.planned]
    first, second = ((one.model_extra or {})["predicted_s"] for one in planned)
    before = next(one.finished for one in night.session.state.runs.values() if "baseline-s1" in one.id)
    assert before is not None
    assert before.summary is not None
    assert second == pytest.approx(first - 0.6 * before.summary["train_s"])
    assert limits["baseline-s2"] == pytest.approx(2 * first + 60.0)
