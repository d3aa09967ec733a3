"""Where the metric is a reward, whatever is said of it is said in its own unit: no percent, no percentage points."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nights import BETTER_RATE, NO_DEDUP, NOTHING, Night, Recorder, hypothesis, new_night, trick
from rich.console import Console

from agent.campaign.replay_result import OnSplit, Result
from agent.campaign.rules import Rules
from agent.cli.main import register, run
from agent.cli.replays import _table

register()
SLOW = hypothesis("slow", 0.5, set={"learner.learning_rate": 1e-4})
SHARES = re.compile(
    r"held-out completions that were cut: \d+% -> \d+%|\d+% of (the|its|their) budget|\d+% of it in training"
    r"|^(truncation|unique) .*|(above|below) 50% (and twice|of) the incumbent's|^%$|\[95%\]|95% interval"
)
"""What is a share under any metric: of completions, of the budget, of the time, readings of guards; and how sure an
interval is."""


@dataclass
class Listener(Recorder):
    """What came of each run, too."""

    def ended(self, text: str) -> None:
        self.said.append(text)


def rewarded(folder: Path) -> Night:
    night = new_night(folder)
    night.observer = Listener()
    path = night.root / "recipes/test.yaml"
    path.write_text(path.read_text().replace("temperature: 0}", "temperature: 0, metric: mean_reward}"))
    return night


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """#1 is kept, #2 is better and cuts its answers, #3 does nothing."""
    night = rewarded(tmp_path_factory.mktemp("rewarded"))
    night.playbook(BETTER_RATE, trick("cut", 0.85, selection__dedup=False), NOTHING)
    night.start(max_experiments=3)
    return night


def in_rates(texts: Iterable[str]) -> list[str]:
    """Lines in which something is left in percent or in percentage points, shares aside."""
    lines = [line for text in texts for line in text.splitlines()]
    return [line for line in lines if re.search(r"\dpp\b|%", SHARES.sub("", line))]


def told(night: Night) -> Iterator[str]:
    """Everything that the night said or wrote for people."""
    yield from night.observer.said
    yield from night.observer.warnings
    for line in (night.root / ".raft/campaigns/night/journal.jsonl").read_text().splitlines():
        yield from strings(json.loads(line))
    for row in night.rows:
        yield from row.values()
    yield night.git("log", "--all", "--notes=raft", "--format=%B%n%N")


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from strings(one)


def printed(night: Night, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the commands that look at it print."""
    monkeypatch.chdir(night.root)
    found = {}
    commands = [
        "status",
        "log",
        "plan --skipped",
        "diagnose 001-search-s1000",
        *(f"show {row['index']}" for row in night.rows),
    ]
    for command in commands:
        assert run(command.split()) == 0
        found[command] = capsys.readouterr().out
    return found


def test_rates_are_found() -> None:
    assert in_rates(
        ["gain +3.1pp [+0.9pp, +5.3pp]; level 0.020", "one\nsearch 51.3%", "after 60% of the budget, +0.1"]
    ) == [
        "gain +3.1pp [+0.9pp, +5.3pp]; level 0.020",
        "search 51.3%",
    ]


@pytest.mark.slow
def test_a_night_is_told_in_the_rewards_unit(judged: Night) -> None:
    assert judged.outcomes()[1:] == [("better-rate", "keep"), ("cut", "discard"), ("placebo", "discard")]
    assert in_rates(told(judged)) == []
    reasons = [row["reason"] for row in judged.rows]
    assert reasons[0] == "baseline: 2 seeds at 0.375, 0.365; beside it the untrained model"
    assert reasons[1].startswith("gain +0.273 [+0.210, +0.335], confirmed on 200 fresh prompts")
    assert reasons[2] == "guard: held-out completions that were cut: 0% -> 80%"
    assert reasons[3] == "inconclusive: -0.003 [-0.045, +0.040] on search, not worth a confirmation"
    said = judged.observer.said
    assert "untrained 0.225 -> baseline 0.370 (mean_reward, +0.145 [+0.096, +0.194]), run noise sigma 0.005" in "".join(
        said
    )
    assert "  search +0.325, lower bound at level 0.25 +0.302 above 0" in said
    assert any(line.startswith("5 cycles, 20 steps, search 0.695 in ") for line in said)


@pytest.mark.slow
def test_so_do_the_commands_that_look_at_it(
    judged: Night, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = printed(judged, capsys, monkeypatch)
    assert in_rates(found.values()) == []
    assert "tried as #2 cut/up: discard, +0.102; " in found["plan --skipped"]
    assert "5 cycles, 20 steps, search 0.695\n" in found["diagnose 001-search-s1000"]
    assert "look 1     1+1 seeds: +0.285 [+0.220, +0.350], p 0.011, worth another" in found["show 1"]
    assert "look 2     2+2 seeds: +0.273 [+0.210, +0.335], lower bound +0.18" in found["show 1"]


@pytest.mark.slow
def test_a_mean_below_zero_keeps_its_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    night = rewarded(tmp_path)
    path = night.root / "recipes/test.yaml"
    path.write_text(path.read_text().replace('"builtin:addition"', '"builtin:addition", reward: {length_penalty: 1}'))
    night.playbook(BETTER_RATE)
    night.start(max_experiments=1)
    baseline, kept = night.rows
    assert baseline["reason"] == "baseline: 2 seeds at -0.625, -0.635; beside it the untrained model"
    assert kept["reason"].startswith("gain +0.273 [+0.210, +0.335], confirmed on 200 fresh prompts")
    assert (float(baseline["metric_value"]), float(kept["incumbent_value"])) < (-0.5, -0.5)
    assert float(kept["metric_value"]) == pytest.approx(float(kept["incumbent_value"]) + 0.273, abs=1e-3)
    assert "untrained -0.775 -> baseline -0.630 (mean_reward, +0.145" in "".join(night.observer.said)
    assert night.session is not None
    holdout = night.session.state.result["holdout"]
    assert all(holdout[arm] == pytest.approx(holdout["arms"][arm]["value"]) for arm in holdout["arms"])
    assert holdout["untrained"] < holdout["baseline"] < holdout["winner"] < 0
    compared = next(
        line for line in printed(night, capsys, monkeypatch)["show 1"].splitlines() if "candidate, inc" in line
    )
    assert [float(word.strip(",")) < 0 for word in compared.split()[-2:]] == [True, True]


def test_a_replay_is_shown_in_the_rewards_unit() -> None:
    split = OnSplit("search", recorded=1.25, replayed=1.2, difference=-0.05, allowed=None)
    out = io.StringIO()
    Console(file=out, width=80).print(_table(Result((split,), (), (), "unknown", "", ()), metric="mean_reward"))
    assert out.getvalue().splitlines()[1].split() == ["mean_reward", "on", "search", "1.250", "1.200", "-0.050"]


@pytest.mark.slow
def test_a_night_that_builds_on_leads_and_leaves_out_what_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    night = rewarded(tmp_path)
    night.playbook(BETTER_RATE, NO_DEDUP, NOTHING, SLOW)
    rules = Rules(alone_runs=1e9, clear_p=0.0, round=3, lead_alpha=0.97, lead_left=0.0, batch=0)
    night.start(rules=rules, baseline_seeds=3)
    reasons = [row["reason"] for row in night.rows]
    assert {night.judged(number).numbers["kind"] for number in range(1, len(reasons))} >= {"promising", "lead", "gain"}
    assert "ablation" in {row["hypothesis"] for row in night.rows}
    assert in_rates(told(night)) == []
    assert in_rates(printed(night, capsys, monkeypatch).values()) == []


@pytest.mark.slow
def test_a_night_that_screens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PACE", "0.08")
    night = rewarded(tmp_path)
    night.playbook(BETTER_RATE, NO_DEDUP, NOTHING, SLOW)
    rules = Rules(batch=4, survivors=0.5, screen_share=0.6, most_part=9.0, scarce=1e9, alone_runs=0)
    night.start(rules=rules, max_experiments=4)
    screened = [row["reason"] for row in night.rows if row["reason"].startswith("screened: place ")]
    assert len(screened) == 2
    assert all(re.search(r" after 60% of the budget, [-+]0\.\d{3} on search$", reason) for reason in screened)
    assert in_rates(told(night)) == []
    assert in_rates(printed(night, capsys, monkeypatch).values()) == []
