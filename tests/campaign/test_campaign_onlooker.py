"""A campaign seen from outside: a look reads what is new, says what the whole journal says, and survives the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent.campaign.news import news
from agent.campaign.onlooker import Onlooker
from agent.campaign.standing import standing
from agent.cli.main import register, run
from agent.contract import CYCLES, HEARTBEAT, TELEMETRY
from agent.ledger.consumed import NAME
from agent.ledger.follow import JournalTail
from agent.ledger.journal import Journal, fold
from agent.ledger.lock import hold, holder_of
from agent.ledger.workspace import Workspace
from agent.report.snapshot import Arms
from agent.report.status import status_fields, status_lines

register()
RUN = "002-search-s2000"
OUT = f".raft/runs/night/{RUN}"


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    for name in ("recipes", "hypotheses"):
        (tmp_path / name).mkdir()
    made = Workspace(tmp_path)
    made.prepare()
    monkeypatch.chdir(made.root)
    return made


def words(run_id: str, number: int, role: str, out: str = "") -> dict[str, Any]:
    rung = {"holdout": "holdout", "baseline": "calibrate"}.get(role, "full")
    signature = f"sig{number}"
    fixed: dict[str, Any] = {"role": role, "rung": rung, "seed": 1, "recipe_signature": signature}
    return {"run": run_id, "experiment": number, "out": out or run_id, **fixed}


def planned(journal: Journal, number: int) -> None:
    journal.append(
        "experiment_planned", experiment=number, hypothesis=f"h{number}", axis="batch", slug=f"h{number}",
        subject=f"batch: idea {number}" if number else "baseline", files={},
    )  # fmt: skip
    journal.append("experiment_committed", experiment=number, branch=f"b{number}", commit=f"{number:040d}")


def finished(journal: Journal, run_id: str, search: float) -> None:
    summary = {"train_s": 30.0, "evaluate_s": 2.0, "metrics": {"search": search}, "ended_by": "budget"}
    journal.append("run_finished", run=run_id, ended_by="itself", elapsed_s=35.0, summary=summary)


def write_night(journal: Journal, *, until: str = "running") -> None:
    """A baseline, an idea that is kept, and one whose run goes on."""
    journal.append(
        "campaign_started", campaign="night", recipe_path="recipes/main.yaml", recipe="model: {}", base_commit="b" * 40,
        budget_s=600.0, options={"max_experiments": 9, "target": "pass_rate>=0.9"},
    )  # fmt: skip
    journal.append("campaign_branched", commit="c" * 40)
    planned(journal, 0)
    journal.append("run_planned", **words("baseline-s1", 0, "baseline"))
    finished(journal, "baseline-s1", 0.4)
    calibration = {
        "metric": "pass_rate",
        "untrained": 0.2,
        "baseline": 0.4,
        "sigma_run": 0.01,
        "smallest_detectable": 0.03,
    }
    journal.append("calibrated", values=calibration)
    journal.append(
        "experiment_judged", experiment=0, outcome="keep", reason="baseline", numbers={"kind": "baseline"},
        row={"metric_value": 0.4},
    )  # fmt: skip
    planned(journal, 1)
    journal.append("run_planned", **words("001-search-s1000", 1, "experiment"))
    finished(journal, "001-search-s1000", 0.5)
    numbers = {"kind": "gain", "runs": {"search": ["001-search-s1000"]}}
    journal.append(
        "experiment_judged",
        experiment=1,
        outcome="keep",
        reason="gain +10pp",
        numbers=numbers,
        row={"metric_value": 0.48},
    )
    journal.append("experiment_recorded", experiment=1, commit="d" * 40, best=0.49)
    planned(journal, 2)
    journal.append("run_planned", **words(RUN, 2, "experiment", OUT), predicted_s=40.0)
    if until == "running":
        journal.append("run_started", **words(RUN, 2, "experiment", OUT), pid=1, process_started=0.0)


def write_run(root: Path, **heartbeat: Any) -> Path:
    out = root / OUT
    out.mkdir(parents=True, exist_ok=True)
    beat = {"phase": "train", "step": 3, "cycle": 2, "pid": 1, "time": 1.0, "budget_spent": 0.5, **heartbeat}
    (out / HEARTBEAT).write_text(json.dumps(beat))
    cycles = [{"cycle": n, "select_metric": 0.4 + n / 100, "pass_rate": 0.3} for n in range(3)]
    (out / CYCLES).write_text("".join(json.dumps(row) + "\n" for row in cycles))
    samples = [{"n": n, "t": float(n), "resident_gb": 2.0, "available_gb": 9.0, "total_gb": 24.0} for n in range(12)]
    (out / TELEMETRY).write_text("".join(json.dumps(row) + "\n" for row in samples) + '{"n": 99, "t"')
    return out


Made = Callable[[], Journal]


@pytest.fixture
def night(workspace: Workspace) -> Journal:
    journal = Journal(workspace.journal_path("night"), clock=Clock())
    write_night(journal)
    return journal


def test_a_study_that_holds_the_workspace_is_named(workspace: Workspace, night: Journal) -> None:
    with hold(workspace, what="study rates"):
        seen = Onlooker(workspace, "night").look()
    assert (seen.state, seen.process) == ("killed", None)
    assert seen.busy.startswith("study rates, process ")
    assert any("held by study rates" in line for line in status_lines(seen))
    assert status_fields(seen)["busy"] == f"the workspace is held by {seen.busy}"
    assert Onlooker(workspace, "night").look().busy == ""


def test_everything_is_in_the_snapshot(workspace: Workspace, night: Journal) -> None:
    write_run(workspace.root)
    night.path.with_name(NAME).write_text("250.000\n")
    with hold(workspace, what="campaign night"):
        seen = Onlooker(workspace).look()
    assert (seen.campaign, seen.state, seen.budget_s) == ("night", "running", 600.0)
    assert (seen.used_s, seen.left_s) == (250.0, 350.0)
    assert (seen.arms, seen.best_number) == (Arms("confirm", best=0.48), 1), "and not the baseline of another split"
    assert seen.base == 0.4
    assert (seen.sigma_run, seen.detectable, seen.metric) == (0.01, 0.03, "pass_rate")
    assert seen.counts == {"ideas": 2, "keep": 1, "discard": 0, "crash": 0, "open": 1}
    assert [(mark.outcome, mark.value, mark.best) for mark in seen.marks] == [("keep", 0.5, 0.5), ("open", None, None)]
    assert seen.stops == ("after 9 ideas", "at pass_rate>=0.9")
    assert (seen.idea_s, seen.reserve_s) == (35.0, 4 * 35.0 + 5 * 5.0)
    run_now = seen.running
    assert run_now is not None
    assert (run_now.what, run_now.phase, run_now.share, run_now.cycle) == ("#2 batch: idea 2", "train", 0.5, 2)
    assert (run_now.elapsed_s, run_now.predicted_s) == (11.0, 40.0)
    assert run_now.curve == pytest.approx((0.4, 0.41, 0.42))
    assert seen.machine is not None
    assert (seen.machine.available_gb, seen.machine.trainer_gb) == (9.0, 2.0)


def test_looking_line_by_line_says_what_the_whole_journal_says(workspace: Workspace, night: Journal) -> None:
    lines = night.path.read_bytes().splitlines(keepends=True)
    tail, told = JournalTail(night.path), []
    night.path.write_bytes(b"")
    for number in range(len(lines)):
        with night.path.open("ab") as file:
            file.write(lines[number][:20])
            file.flush()
            assert tail.read() == [], "a torn line is kept back"
            file.write(lines[number][20:])
        told += tail.read()
        whole = fold(Journal(night.path).events())
        assert standing(tail.state, name="night", at=0.0, process=1) == standing(whole, name="night", at=0.0, process=1)
    assert len(told) == len(lines)


def test_only_what_is_new_is_read(workspace: Workspace, night: Journal) -> None:
    tail = JournalTail(night.path)
    assert len(tail.read()) == len(night.path.read_bytes().splitlines())
    reads: list[int] = []
    beneath = tail._file._open

    class Counting:
        def __init__(self, path: Path) -> None:
            self.file = beneath(path)

        def __enter__(self) -> Any:
            self.real = self.file.__enter__()
            return self

        def __exit__(self, *ignored: object) -> None:
            self.file.__exit__(None, None, None)

        def read(self, size: int = -1) -> bytes:
            data = self.real.read(size)
            reads.append(len(data))
            return data

        def __iter__(self) -> Iterator[bytes]:
            for line in self.real:
                reads.append(len(line))
                yield line

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    tail._file._open = Counting
    assert tail.read() == []
    assert reads == []
    night.append("note", text="x")
    assert [event.kind for event in tail.read()] == ["note"]
    assert sum(reads) < 5000


def test_a_killed_campaign_is_called_so_and_one_that_goes_on_too(workspace: Workspace, night: Journal) -> None:
    onlooker = Onlooker(workspace)
    seen = onlooker.look()
    assert (seen.state, seen.running, seen.process) == ("killed", None, None)
    assert seen.next == "raft-agent resume night"
    with hold(workspace, what="campaign night") as holder:
        seen = onlooker.look()
        assert (seen.state, seen.process) == ("running", holder.pid)
    night.append("campaign_paused", reason="stopped by Ctrl-C")
    assert onlooker.look().stopped == "stopped by Ctrl-C"


def test_it_waits_for_a_campaign_and_follows_to_the_next(workspace: Workspace) -> None:
    now = [0.0]
    onlooker = Onlooker(workspace, monotonic=lambda: now[0])
    assert onlooker.look().campaign == ""
    first = Journal(workspace.journal_path("night"))
    write_night(first)
    assert onlooker.look().campaign == "night", "one that is waited for is looked for each time"
    second = Journal(workspace.journal_path("later"))
    second.append("campaign_started", campaign="later", recipe_path="r", recipe="", base_commit="b")
    now[0] += 10.0
    assert onlooker.look().campaign == "later"
    assert onlooker.look().marks == ()
    fixed = Onlooker(workspace, "night", monotonic=lambda: now[0])
    now[0] += 10.0
    assert fixed.look().campaign == "night"


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"[1]\n", b'{"phase": "train"', b"\xff\xfe{}\n"])
def test_bad_files_in_a_run_are_unknown(workspace: Workspace, night: Journal, content: bytes) -> None:
    out = write_run(workspace.root)
    for name in (HEARTBEAT, CYCLES, TELEMETRY):
        (out / name).write_bytes(content)
    with hold(workspace, what="campaign night"):
        seen = Onlooker(workspace).look()
        assert seen.running is not None
        assert (seen.running.phase, seen.running.metric) == ("start", None)


def test_what_goes_away_while_somebody_looks(workspace: Workspace, night: Journal) -> None:
    out = write_run(workspace.root)
    with hold(workspace, what="campaign night"):
        onlooker = Onlooker(workspace)
        before = onlooker.look()
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
        after = onlooker.look()
        assert after.running is not None
        assert after.running.phase == "start"
        assert replace(after, at=0, running=None, machine=None) == replace(before, at=0, running=None, machine=None)
        whole = night.path.read_bytes()
        night.path.write_bytes(whole[: len(whole) // 2])  # put back from an older copy
        assert len(onlooker.look().marks) < 2
        night.path.unlink()
        assert onlooker.look().trouble == "the journal is gone"
        night.path.write_bytes(whole)
        assert len(onlooker.look().marks) == 2


def test_what_may_not_be_read_is_said(workspace: Workspace, night: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    onlooker = Onlooker(workspace)
    before = onlooker.look()
    assert onlooker._journal is not None
    onlooker._journal._file._open = closed
    after = onlooker.look()
    assert after.trouble == "the journal cannot be read: Permission denied"
    assert after.marks == before.marks
    monkeypatch.setattr("agent.ledger.workspace.os.access", lambda *ignored: False)
    assert "permission denied" in Onlooker(workspace).look().trouble
    monkeypatch.chdir(workspace.root)
    assert run(["status"]) == 9, "which is not the same as no campaign"


def test_a_clock_that_was_set_back_leaves_no_negative_times(workspace: Workspace, night: Journal) -> None:
    with hold(workspace, what="campaign night"):
        seen = Onlooker(workspace, clock=lambda: 1000.0).look()
        assert seen.running is not None
        assert seen.running.elapsed_s == 0.0
        assert seen.left_s is not None
        assert seen.left_s >= 0


def test_the_nearer_of_budget_and_deadline_counts(workspace: Workspace) -> None:
    journal = Journal(workspace.journal_path("night"))
    journal.append(
        "campaign_started", campaign="night", recipe_path="r", recipe="", base_commit="b", budget_s=600.0,
        options={"deadline": "2027-01-15T08:01:00+00:00"},
    )  # fmt: skip
    journal.path.with_name(NAME).write_text("590.000\n")
    eight = 1_800_000_000.0  # 08:00:00 of that day
    assert Onlooker(workspace, clock=lambda: eight).look().left_s == 10.0
    assert Onlooker(workspace, clock=lambda: eight + 57).look().left_s == 3.0
    journal.append("campaign_resumed", budget_s=None)
    assert Onlooker(workspace, clock=lambda: eight + 99).look().left_s == 0.0


def test_hostile_text_is_clean_in_the_snapshot(workspace: Workspace, night: Journal) -> None:
    evil = "\x1b]0;title\x07 two\nlines \x1b[2J"
    write_run(workspace.root, note=evil)
    night.append("experiment_judged", experiment=2, outcome="discard", reason=evil, numbers={"kind": evil})
    with hold(workspace, what="campaign night"):
        seen = Onlooker(workspace).look()
    assert seen.running is not None
    for text in (seen.running.note, seen.marks[-1].reason, seen.marks[-1].kind):
        assert text == "two lines"


def test_lookers_do_not_take_each_other_for_a_holder(workspace: Workspace, night: Journal) -> None:
    import fcntl
    import os

    with hold(workspace, what="campaign night"):
        pass
    other = os.open(workspace.lock_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_SH)  # as `holder_of` does for an instant
    assert holder_of(workspace) is None
    os.close(other)


def test_the_best_of_an_idea_that_was_just_kept_is_its_own(workspace: Workspace, night: Journal) -> None:
    night.append("experiment_judged", experiment=2, outcome="keep", reason="gain", row={"metric_value": 0.6})
    seen = Onlooker(workspace).look()
    assert (seen.arms, seen.best_number) == (Arms("confirm", best=0.6), 2)


def test_what_is_finished_has_no_time_left(
    workspace: Workspace, night: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    night.path.with_name(NAME).write_text("250.000\n")
    night.append("campaign_paused", reason="stopped by Ctrl-C")
    assert Onlooker(workspace).look().left_s == 350.0, "a resumption has it"
    night.append("campaign_finished", reason="--max-experiments 9 reached", result={"headline": "a gain"})
    assert run(["status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["left_s"], told["used_s"], told["budget_s"]) == ("finished", None, 250.0, 600.0)
    assert run(["watch", "--once"]) == 0
    said = capsys.readouterr().out
    assert "time     4m 10s used of 10m 00s\n" in said
    assert "left" not in said
    night.append("campaign_resumed", reason="", budget_s=900.0)
    assert Onlooker(workspace).look().left_s == 650.0


@pytest.mark.parametrize(
    ("heartbeat", "start", "left"),
    [
        ({}, 1, 0.5 * 11 + 0.5 * 29),
        ({}, 2, 29.0),  # what the first start has spent is not told
        ({"budget_before": 0.5}, 2, 29.0),
        ({"budget_before": 0.4}, 2, 55 / 6 + 29 * 5 / 6),  # a tenth in 11 s, five more to come
        ({"budget_before": 0.0}, 2, 0.5 * 11 + 0.5 * 29),  # it began anew
    ],
)
def test_the_time_left_of_a_run_that_goes_on_is_by_what_this_start_has_gained(
    workspace: Workspace, night: Journal, heartbeat: dict[str, float], start: int, left: float
) -> None:
    out = write_run(workspace.root, **heartbeat)
    (out / TELEMETRY).write_text(json.dumps({"n": 40, "t": 11.0, "start": start}) + "\n")
    with hold(workspace, what="campaign night"):
        seen = Onlooker(workspace).look().running
    assert seen is not None
    assert (seen.share, seen.elapsed_s, seen.predicted_s) == (0.5, 11.0, 40.0)
    assert seen.left_s == pytest.approx(left)


def test_more_time_on_resumption_counts(workspace: Workspace, night: Journal) -> None:
    night.append("campaign_resumed", reason="", budget_s=900.0)
    assert Onlooker(workspace).look().budget_s == 900.0


def test_status_for_programs(workspace: Workspace, night: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(workspace.root, note="half way")
    with hold(workspace, what="campaign night"):
        assert run(["status", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert run(["status"]) == 0
        said = capsys.readouterr().out
    assert (told["format"], told["campaign"], told["state"], told["phase"]) == (2, "night", "running", "train")
    nothing = dict.fromkeys(("untrained", "baseline", "gain", "gain_low", "gain_high"))
    assert told["metrics"] == {**nothing, "split": "confirm", "best": 0.48}
    assert told["incumbent"] == {
        "number": 1, "title": "batch: idea 1", "metric": 0.48, "split": "confirm", "commit": f"{1:040d}",
    }  # fmt: skip
    assert told["last"] == {
        "number": 1, "title": "batch: idea 1", "outcome": "keep", "kind": "gain", "reason": "gain +10pp", "metric": 0.5,
        "split": "search",
    }  # fmt: skip
    assert told["run"]["id"] == RUN
    assert told["run"]["left_s"] == pytest.approx(0.5 * 11 + 0.5 * 29)
    assert (told["lead"], told["next"], told["trouble"]) == (None, None, None)
    assert isinstance(told["process"], int)
    # the words of earlier versions
    assert told["outcomes"] == {"keep": 1, "discard": 0, "crash": 0}
    assert (told["budget"], told["budget_s"]) == ("0s used of 10m 00s", 600.0)
    assert (told["untrained"], told["baseline"], told["gain"]) == (None, None, None)
    assert told["best"] == "48.0% on confirm, #1 batch: idea 1"
    assert told["noise"] == "1.0pp (baseline seeds), gains from about 3.0pp can be confirmed"
    assert told["now"] == f"run {RUN} of #2 batch: idea 2, train 50% (half way)"
    assert said.startswith("campaign night: running\n  recipe    recipes/main.yaml\n")
    assert "  ideas     2: 1 kept, 0 discarded, 0 crashed\n" in said


def test_the_documented_fields_are_all_there_is(workspace: Workspace, night: Journal) -> None:
    page = (Path(__file__).parents[2] / "docs" / "status.md").read_text()
    with hold(workspace, what="campaign night"):
        fields = status_fields(Onlooker(workspace).look())
    missing = [name for name in fields if f"`{name}`" not in page]
    assert missing == []


def test_watch_once_and_in_lines(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["watch", "--once"]) == 2
    assert "raft-agent run" in capsys.readouterr().err
    assert run(["watch", "--campaign", "nowhere"]) == 2
    journal = Journal(workspace.journal_path("night"))
    write_night(journal, until="planned")
    capsys.readouterr()
    assert run(["watch", "--once"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("night killed")
    assert "\x1b" not in said
    steps = iter(
        [
            lambda: journal.append("run_started", **words(RUN, 2, "experiment", OUT), pid=1, process_started=0.0),
            lambda: finished(journal, RUN, 0.45),
            lambda: journal.append("experiment_judged", experiment=2, outcome="discard", reason="regressed \x1b[2J"),
            lambda: journal.append("campaign_finished", reason="the budget is spent", result={"headline": "a gain"}),
        ]
    )
    monkeypatch.setattr("agent.cli.watch.select.select", lambda *ignored: (next(steps)(), [[]])[1])
    assert run(["watch", "--campaign", "night", "--every", "0.2"]) == 0
    lines = [line[9:] for line in capsys.readouterr().out.splitlines()]
    assert "\x1b" not in "".join(lines)
    assert f"  {RUN} measured search 45.0% after 35s" in lines
    assert "discard #2: regressed" in lines
    assert lines[-1] == "finished: the budget is spent; a gain"


def test_every_event_has_words_or_none(night: Journal) -> None:
    state = night.state()
    said = [told for event in night.events() if (told := news(event, state))]
    assert said[0] == "campaign night: recipes/main.yaml, 10m 00s"
    assert f"run {RUN}: #2 batch: idea 2, seed 1" in said
    assert all("\n" not in told for told in said)
    assert "on search: untrained 20.0% -> baseline 40.0%" in said
    assert "  baseline-s1 measured search 40.0% after 35s" in said


def test_a_reward_is_no_percentage_in_the_news(workspace: Workspace) -> None:
    journal = Journal(workspace.journal_path("night"))
    journal.append("calibrated", values={"metric": "mean_reward", "untrained": 1.0, "baseline": 1.25})
    summary = {"metric": "mean_reward", "metrics": {"search": 1.3}}
    journal.append("run_finished", run="001-search-s1", ended_by="itself", elapsed_s=35.0, summary=summary)
    said = [news(event, journal.state()) for event in journal.events()]
    assert said == ["on search: untrained 1.000 -> baseline 1.250", "  001-search-s1 measured search 1.300 after 35s"]
