"""Killed at any moment, or with a write that fails: nothing is lost, nothing is there twice, and what a campaign leaves
is what it would have left in one go.

Each session is a process of its own with the real launcher, and each training one of the fake trainer's; see
`killed.py`. The clock is injected: it goes twenty times as fast, and rests for a minute between sessions.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from killed import (
    FINISHED,
    IDEAS,
    PAUSED,
    Campaign,
    dies_at,
    differences,
    met,
    new_campaign,
    once_each,
    random_of,
    story,
)
from nights import NOTHING

KILLED = -9
MOST_SESSIONS = 40
"""After which a campaign is let go to its end."""
SHORT = (NOTHING,)
MOST_UNCOUNTED_S = 5.0
"""Of the budget in a session, where it is a quarter of a second on the wall: a busy machine may not let the timekeeper
have its turn. On the average it is below one."""

WHOLE: dict[int, dict[str, Any]] = {}
"""What a campaign of so many ideas leaves in one go."""


@pytest.fixture
def in_one_go(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    def told(ideas: Sequence[dict[str, Any]] = IDEAS) -> dict[str, Any]:
        if len(ideas) not in WHOLE:
            campaign = new_campaign(tmp_path_factory.mktemp("whole"), ideas)
            campaign.to_the_end()
            WHOLE[len(ideas)] = story(campaign)
        return WHOLE[len(ideas)]

    return told


def killed_at_random(folder: Path, seed: int, kinds: Counter[str], ideas: Sequence[dict[str, Any]] = IDEAS) -> Campaign:
    """From its start to its end, with a kill in nearly every session: of the agent, of the trainer, or of both."""
    rng, campaign = random_of(seed), new_campaign(folder, ideas)
    apart = (1, 2, 4)[seed % 3]  # kills that are close together try the beginning thoroughly, others all of it
    code = KILLED
    while code != FINISHED:
        kind = rng.choice(["step", "step", "agent", "trainer", "both"]) if campaign.sessions < MOST_SESSIONS else ""
        before = campaign.kills
        if kind == "step":
            step, how = rng.randrange(1, 20 * apart), rng.choice(["die", "torn", "after"])
            code = campaign.end(campaign.begin(dies_at(campaign, step, how)))
            campaign.kills += code == KILLED
        else:
            agent = campaign.begin()
            if kind:
                time.sleep(rng.uniform(0.02, 0.35 * apart))
            if kind in ("trainer", "both"):
                campaign.kill_trainer()
            if kind == "trainer":  # the agent sees it, and goes on with the run before it is killed itself
                time.sleep(rng.uniform(0.1, 0.8))
            if kind:
                campaign.kill(agent)
            code = campaign.end(agent)
        assert code in (FINISHED, KILLED)
        kinds[kind] += campaign.kills - before
    return campaign


def check(campaign: Campaign, whole: dict[str, Any]) -> None:
    assert list(differences(whole, story(campaign))) == []
    assert campaign.trainers_left() == []
    assert -1.0 <= campaign.uncounted_s <= MOST_UNCOUNTED_S * campaign.sessions


@pytest.mark.slow
@pytest.mark.parametrize("seed", [13, 15])
def test_a_campaign_that_is_killed_again_and_again_leaves_what_it_would_have_left(
    tmp_path: Path, in_one_go: Callable[..., dict[str, Any]], seed: int
) -> None:
    campaign = killed_at_random(tmp_path, seed, Counter(), SHORT)
    assert campaign.kills >= 1
    check(campaign, in_one_go(SHORT))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_hundred_kills(tmp_path: Path, in_one_go: Callable[..., dict[str, Any]]) -> None:
    kinds: Counter[str] = Counter()
    kills, sessions, lost, campaigns = 0, 0, 0.0, 0
    while kills < 300:
        campaign = killed_at_random(tmp_path / str(campaigns), 1000 + campaigns, kinds)
        check(campaign, in_one_go())
        kills, sessions, campaigns = kills + campaign.kills, sessions + campaign.sessions, campaigns + 1
        lost += campaign.uncounted_s
    print(
        f"\n{kills} kills in {campaigns} campaigns and {sessions} sessions ({dict(kinds)}); "
        f"{lost / sessions:.2f} s of the budget not counted for each session"
    )
    assert lost <= 1.0 * sessions


# --- at every state, and every write -----------------------------------------------------------------------


def deaths(what: str) -> Sequence[str]:
    return ("die", "torn", "after") if what == "write" else ("die", "after")


def faults(what: str) -> Sequence[str]:
    return ("ENOSPC", "EIO")


def kind_of_step(label: str) -> str:
    """Steps that differ in their experiment, run or fix alone are of one kind."""
    label = re.sub(r"/runs/night/[^/]+/", "/runs/night/RUN/", label)
    label = re.sub(r"/recipes/[0-9]+[^/]*/", "/recipes/NNN/", label)
    label = re.sub(r"^(write \w+) .*", r"\1", label) if not label.startswith("write /") else label
    return re.sub(r"exp/[^ ]+", "exp/NNN", label)


def every_session(campaign: Campaign, act: Callable[[], Callable[[], None]]) -> Iterator[int]:
    """Exit codes of sessions until one gets to the end."""
    code = None
    while code != FINISHED:
        code = campaign.end(campaign.begin(act()))
        campaign.kills += code == KILLED
        yield code


STATES = {
    f"{fate} write {kind}"
    for fate in ("die", "torn", "after")
    for kind in (
        "campaign_started", "campaign_branched", "calibrated", "experiment_planned", "experiment_committed",
        "run_planned", "run_started", "run_finished", "experiment_judged", "experiment_recorded", "campaign_finished",
    )
}  # fmt: skip
"""What has to be among them, whatever else the agent writes."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_before_in_and_after_every_kind_of_write(
    tmp_path: Path, in_one_go: Callable[..., dict[str, Any]]
) -> None:
    campaign = new_campaign(tmp_path)
    codes = Counter(every_session(campaign, lambda: once_each(campaign, deaths, kind=kind_of_step)))
    assert codes.keys() == {FINISHED, KILLED}
    assert set(met(campaign)) >= STATES
    check(campaign, in_one_go())
    print(f"\n{codes[KILLED]} kills, at {len({line.partition(' ')[2] for line in met(campaign)})} kinds of steps")


@pytest.mark.slow
def test_a_short_campaign_is_killed_before_in_and_after_every_kind_of_line_of_its_journal(
    tmp_path: Path, in_one_go: Callable[..., dict[str, Any]]
) -> None:
    def journal_alone(what: str) -> Sequence[str]:
        return deaths(what) if what == "write" else ()

    campaign = new_campaign(tmp_path, SHORT)
    codes = Counter(every_session(campaign, lambda: once_each(campaign, journal_alone, kind=kind_of_step)))
    assert set(met(campaign)) >= STATES
    assert codes[KILLED] >= len(STATES)
    check(campaign, in_one_go(SHORT))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_write_fails_once_of_a_full_and_of_a_broken_disk(
    tmp_path: Path, in_one_go: Callable[..., dict[str, Any]]
) -> None:
    campaign = new_campaign(tmp_path)
    codes = Counter(every_session(campaign, lambda: once_each(campaign, faults)))
    assert codes.keys() <= {FINISHED, PAUSED}
    check(campaign, in_one_go())
    print(f"\n{len(met(campaign))} failed writes, of which {codes[PAUSED]} stopped the campaign in good order")


@pytest.mark.slow
def test_every_kind_of_write_of_a_short_campaign_fails_once(
    tmp_path: Path, in_one_go: Callable[..., dict[str, Any]]
) -> None:
    def full(what: str) -> Sequence[str]:
        return ("ENOSPC",)

    campaign = new_campaign(tmp_path, SHORT)
    codes = Counter(every_session(campaign, lambda: once_each(campaign, full, kind=kind_of_step)))
    assert codes.keys() <= {FINISHED, PAUSED}
    assert {f"ENOSPC {state.partition(' ')[2]}" for state in STATES} <= set(met(campaign))
    check(campaign, in_one_go(SHORT))
