"""Going on with a campaign whose journal was damaged, came from elsewhere, or lies on a disk that takes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nights import MACHINE, NOTHING, RATE_UP, Dies, Night, dying_at, new_night

from agent.campaign.open import resume, unfinished
from agent.campaign.session import Session
from agent.campaign.settings import Settings
from agent.cli.main import register
from agent.cli.main import run as run_command
from agent.errors import AgentError, ResourceError, UsageError, WorkspaceError
from agent.ledger.consumed import Timekeeper, read_consumed
from agent.ledger.journal import Journal
from agent.ledger.workspace import Workspace


@pytest.fixture
def cut_short(tmp_path: Path) -> Night:
    """Killed at the start of the fifth run: the baseline is recorded, the first idea is being confirmed."""
    night = new_night(tmp_path)
    night.playbook(RATE_UP, NOTHING)
    with pytest.raises(Dies):
        night.start(max_experiments=2, launcher=dying_at(5))
    return night


def journal_of(night: Night) -> Path:
    return night.workspace.journal_path("night")


def lines(night: Night) -> list[str]:
    return journal_of(night).read_text().splitlines(keepends=True)


def with_line(number: int, text: str) -> Callable[[list[str]], list[str]]:
    return lambda known: [*known[:number], text, *known[number:]]


def without_line(number: int) -> Callable[[list[str]], list[str]]:
    return lambda known: [*known[:number], *known[number + 1 :]]


# --- damaged -----------------------------------------------------------------------------------------------

TORN = [
    pytest.param(lambda known: [*known[:-1], known[-1][:40]], id="its last line is torn"),
    pytest.param(
        lambda known: [*known, "\0" * 4096], id="a block of NUL at its end, after a power cut", marks=pytest.mark.slow
    ),
    pytest.param(lambda known: [*known, "\n", "  \n"], id="blank lines at its end", marks=pytest.mark.slow),
    pytest.param(
        lambda known: [line.replace("\n", "\r\n") for line in known], id="Windows line ends", marks=pytest.mark.slow
    ),
    pytest.param(
        with_line(4, '{"kind": "run_star\n'), id="a line that was torn and gone on after", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize("damage", TORN)
def test_what_a_kill_leaves_is_no_damage(cut_short: Night, damage: Callable[[list[str]], list[str]]) -> None:
    journal_of(cut_short).write_text("".join(damage(lines(cut_short))))
    cut_short.resume()
    assert cut_short.observer.warnings == []
    assert [row["status"] for row in cut_short.rows] == ["keep", "keep", "discard"]


def in_place_of(number: int, text: str) -> Callable[[list[str]], list[str]]:
    return lambda known: [*known[:number], text, *known[number + 1 :]]


def another_type(known: list[str]) -> list[str]:
    return in_place_of(-3, json.dumps({**json.loads(known[-3]), "run": 7}) + "\n")(known)


DAMAGED = [
    pytest.param(lambda known: [*known[:-4], *known[-3:]], "is number 21, expected 20", id="a line is missing"),
    pytest.param(in_place_of(-3, "\x01 no JSON \udcff\n"), "line 21 is no event", id="rubbish", marks=pytest.mark.slow),
    pytest.param(
        in_place_of(-3, '{"kind": "run_fin\n'), "line 21 is no event", id="cut in two", marks=pytest.mark.slow
    ),
    pytest.param(
        in_place_of(-3, "[" * 100_000 + "\n"), "line 21 is no event", id="deep nesting", marks=pytest.mark.slow
    ),
    pytest.param(
        another_type,
        "line 21: this is no run_finished that can be understood",
        id="another type",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        lambda known: [*known, *known[-4:]], "is number 20, expected 24", id="lines twice", marks=pytest.mark.slow
    ),
    pytest.param(with_line(18, "[1, 2]\n"), None, id="a foreign line between two", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "words"), DAMAGED)
def test_damage_since_the_last_verdict_is_said_and_what_is_missing_is_done_again(
    cut_short: Night, damage: Callable[[list[str]], list[str]], words: str | None
) -> None:
    journal_of(cut_short).write_text("".join(damage(lines(cut_short))), errors="surrogateescape")
    cut_short.resume()
    said = [warning for warning in cut_short.observer.warnings if "journal.jsonl" in warning]
    assert any(words in warning for warning in said) if words else said == []
    assert [row["status"] for row in cut_short.rows] == ["keep", "keep", "discard"]
    assert len(cut_short.git("branch", "--list", "raft/night/exp/*").splitlines()) == 3


@pytest.mark.one_in(2)
@pytest.mark.parametrize("damage", [without_line(7), in_place_of(7, "rubbish\n")], ids=["missing", "rubbish"])
def test_damage_before_a_verdict_is_refused_because_the_verdict_rests_on_it(
    cut_short: Night, damage: Callable[[list[str]], list[str]]
) -> None:
    """The baseline was judged by what stood there."""
    journal_of(cut_short).write_text("".join(damage(lines(cut_short))))
    with pytest.raises(AgentError, match="the journal was edited: it is not what it was when #0 was judged"):
        cut_short.resume()


# --- not ours ----------------------------------------------------------------------------------------------


def newer_event(known: list[str]) -> list[str]:
    event = {"kind": "experiment_merged", "seq": len(known) + 1, "time": 1.0, "experiment": 1}
    return [*known, json.dumps(event) + "\n"]


def of_format(number: int) -> Callable[[list[str]], list[str]]:
    return lambda known: [json.dumps({**json.loads(known[0]), "format": number}) + "\n", *known[1:]]


FOREIGN = [
    pytest.param(newer_event, "written by a newer raft-agent", id="an event of a newer version"),
    pytest.param(of_format(2), "format 2, and this version reads 1", id="a newer format"),
    pytest.param(lambda known: known[1:], "does not say how it was started", id="without its first line"),
    pytest.param(
        lambda known: [known[0].replace('"campaign": "night"', '"campaign": "day"'), *known[1:]],
        "the journal of campaign day, in the folder of night",
        id="of another campaign",
    ),
]


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("change", "words"), FOREIGN)
def test_a_journal_that_is_not_this_campaigns_is_refused_and_stays_as_it_is(
    cut_short: Night, change: Callable[[list[str]], list[str]], words: str
) -> None:
    text = "".join(change(lines(cut_short)))
    journal_of(cut_short).write_text(text)
    with pytest.raises(WorkspaceError, match=words) as refused:
        cut_short.resume()
    assert refused.value.hint
    assert journal_of(cut_short).read_text() == text


@pytest.mark.slow
def test_a_journal_of_another_repository_is_refused(cut_short: Night, tmp_path: Path) -> None:
    other = new_night(tmp_path / "other")
    shutil.copytree(cut_short.root / ".raft", other.root / ".raft", dirs_exist_ok=True)
    # Two workspaces that are made within a second may have the same first commit.
    other.git("-c", "user.name=User", "-c", "user.email=user@example.org", "commit", "--amend", "-q", "-m", "other")
    other.git("reflog", "expire", "--expire=now", "--all")
    other.git("gc", "--quiet", "--prune=now")
    with pytest.raises(WorkspaceError, match="which this repository does not have"):
        other.resume()


BEST = "refs/heads/raft/night/best"


def test_a_best_that_is_gone_is_put_back_where_it_stood(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    night = Night(Workspace(copy))
    monkeypatch.chdir(copy)
    register()
    tip = night.git("rev-parse", BEST)
    night.git("update-ref", "-d", BEST)
    assert run_command(["finalize"]) == 0
    assert "branch raft/night/final: 1 commit" in capsys.readouterr().out
    night.git("update-ref", "-d", BEST)
    session = reopened(night)
    assert session.branches is not None
    assert session.branches.best == tip.strip()
    assert session.incumbent == 1


def test_a_best_that_the_repository_lacks_is_not_made_anew(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--single-branch", copy.as_uri(), str(clone)], check=True)
    shutil.copytree(copy / ".raft", clone / ".raft")
    night = Night(Workspace(clone))
    with pytest.raises(WorkspaceError, match="is not in this repository") as gone:
        reopened(night)
    monkeypatch.chdir(clone)
    register()
    assert run_command(["finalize"]) == gone.value.exit_code
    assert "fetch it from the repository in which the campaign ran" in capsys.readouterr().err
    assert "raft/night" not in night.git("branch", "--list")
    night.git("fetch", "-q", str(copy), "refs/heads/raft/night/*:refs/heads/raft/night/*")
    assert reopened(night).incumbent == 1


def reopened(night: Night) -> Session:
    session = resume(
        night.workspace, None, observer=night.observer, machine=MACHINE, model_cache=night.models,
        stop_request=lambda: None, max_experiments=9,
    )  # fmt: skip
    session.close()
    return session


# --- what to go on with ------------------------------------------------------------------------------------


def asked_for(night: Night, **options: Any) -> Settings:
    """The options of the campaign that was cut short, or others."""
    told = {"recipe_path": "recipes/test.yaml", "budget_s": 600.0, "baseline_seeds": 2, "max_experiments": 2, **options}
    return Settings(campaign="any", **told)


@pytest.mark.slow
def test_run_goes_on_with_what_was_cut_short_and_with_a_named_one_that_was_paused(cut_short: Night) -> None:
    workspace, same = cut_short.workspace, asked_for(cut_short)
    assert unfinished(workspace, same) == "night"
    assert unfinished(workspace, asked_for(cut_short, recipe_path="recipes/tiny-addition.yaml")) is None
    assert unfinished(workspace, same, name="another") is None
    cut_short.stop_request = lambda: "stopped by Ctrl-C"
    with pytest.raises(AgentError, match="paused"):
        cut_short.resume()
    assert unfinished(workspace, same) is None, "a person may have other plans"
    assert unfinished(workspace, same, name="night") == "night"
    cut_short.stop_request = lambda: None
    cut_short.resume()
    assert unfinished(workspace, same, name="night") is None
    with pytest.raises(UsageError, match="is finished"):
        cut_short.resume()


@pytest.mark.slow
def test_run_goes_on_after_a_shutdown_and_after_a_full_disk(cut_short: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_short.stop_request = lambda: "stopped by SIGTERM"
    with pytest.raises(AgentError, match="paused"):
        cut_short.resume()
    assert unfinished(cut_short.workspace, asked_for(cut_short)) == "night"
    cut_short.stop_request = lambda: None
    with monkeypatch.context() as full:
        full.setattr("agent.campaign.workbench.Workbench.settle", _no_space)
        with pytest.raises(ResourceError):
            cut_short.resume()
    assert cut_short.session is not None
    assert cut_short.session.journal.state().status == "paused"
    assert unfinished(cut_short.workspace, asked_for(cut_short)) == "night"


def _no_space(bench: Any) -> None:
    raise ResourceError("no space left", where=str(bench.session.folder), hint="make room")


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "night"])
def test_what_was_started_otherwise_is_for_a_person_to_decide(cut_short: Night, name: str | None) -> None:
    workspace = cut_short.workspace
    with pytest.raises(UsageError, match=r"was started with max_experiments 2 instead of 5") as refused:
        unfinished(workspace, asked_for(cut_short, max_experiments=5), name=name)
    assert refused.value.hint == "raft-agent resume night goes on with it as it was; --new starts another one"
    recipe = cut_short.root / "recipes" / "test.yaml"
    recipe.write_text(recipe.read_text().replace("5.0e-4", "6.0e-4"))
    with pytest.raises(UsageError, match=r"another text of recipes/test.yaml"):
        unfinished(workspace, asked_for(cut_short), name=name)


@pytest.mark.slow
def test_a_campaign_whose_first_line_was_torn_was_never_started(cut_short: Night) -> None:
    path = journal_of(cut_short)
    path.write_text(lines(cut_short)[0][:50])
    assert cut_short.workspace.campaign_names() == []
    assert unfinished(cut_short.workspace, asked_for(cut_short), name="night") is None
    with pytest.raises(UsageError, match="no campaign to resume"):
        cut_short.resume()


# --- seconds consumed --------------------------------------------------------------------------------------


def test_the_seconds_since_the_last_line_are_not_lost(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", consumed=lambda: 10.0)
    journal.append("note", text="the last line")
    seconds = iter([11.5, 12.5, 13.5] + [14.0] * 1000)
    with Timekeeper(journal.path, lambda: next(seconds), every_s=0.005):
        while read_consumed(journal.path) < 13.5:
            pass
        assert journal.state().consumed_s >= 13.5
    assert read_consumed(journal.path) == 14.0


@pytest.mark.parametrize("text", ["", "12", "nan", "inf", "-5", "seven\n", "\0" * 19, "1" * 400])
def test_a_file_of_seconds_that_says_nothing_is_passed_over(tmp_path: Path, text: str) -> None:
    journal = Journal(tmp_path / "journal.jsonl", consumed=lambda: 10.0)
    journal.append("note", text="the last line")
    (tmp_path / "consumed").write_text(text)
    assert journal.state().consumed_s == (12.0 if text == "12" else 10.0)


def test_a_disk_that_takes_nothing_does_not_end_the_timekeeper(tmp_path: Path) -> None:
    """Its folder is not there yet."""
    path = tmp_path / "night" / "journal.jsonl"
    with Timekeeper(path, lambda: 7.0, every_s=0.005):
        path.parent.mkdir()
        while read_consumed(path) != 7.0:
            pass


# --- a disk that takes nothing, for real -------------------------------------------------------------------


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A file system of memory at `folder`, as root alone may have."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0 or subprocess.run(["mount", *options, str(folder)], check=False).returncode != 0:
        pytest.skip("only root can mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@pytest.mark.slow
def test_a_full_disk_pauses_the_campaign_and_room_lets_it_go_on(tmp_path: Path) -> None:
    night = new_night(tmp_path)
    night.playbook(NOTHING)
    with mounted(night.root / ".raft", "-t", "tmpfs", "-o", "size=160k", "tmpfs"):
        with pytest.raises(ResourceError, match="No space left"):
            night.start(max_experiments=1)
        subprocess.run(["mount", "-o", "remount,size=64m", str(night.root / ".raft")], check=True)
        night.resume() if night.workspace.campaign_names() else night.start(max_experiments=1)
        assert [row["status"] for row in night.rows] == ["keep", "discard"]


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_pauses_the_campaign(tmp_path: Path) -> None:
    """As a kernel does with a file system that has errors."""
    night = new_night(tmp_path)
    night.playbook(NOTHING)
    raft = str(night.root / ".raft")
    started = 0

    def remounts(*arguments: Any, **keys: Any) -> Any:
        nonlocal started
        started += 1
        if started == 3:
            subprocess.run(["mount", "-o", "remount,ro", raft], check=True)
        return forked(*arguments, **keys)

    from nights import forked_launch as forked

    with mounted(night.root / ".raft", "-t", "tmpfs", "-o", "size=64m", "tmpfs"):
        with pytest.raises(ResourceError, match="Read-only file system"):
            night.start(max_experiments=1, launcher=remounts)
        with pytest.raises(ResourceError, match="Read-only file system"):
            night.resume()
        subprocess.run(["mount", "-o", "remount,rw", raft], check=True)
        night.resume()
        assert [row["status"] for row in night.rows] == ["keep", "discard"]
