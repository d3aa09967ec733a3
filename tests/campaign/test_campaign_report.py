"""The report on the disk: what a campaign leaves after every idea, what `raft-agent report` makes of any journal."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nights import BETTER_RATE, NOTHING, Dies, Night, dying_at, hypothesis, new_night
from reports import NoCharts, Reports, copied, reporter_of

from agent.campaign import report as reports
from agent.campaign.loop import run_campaign
from agent.campaign.night_runs import MOST_CYCLES, RunFolders
from agent.campaign.report import MARKDOWN, PAGE, SUMMARY, Reporter
from agent.campaign.report_folder import MADE_FROM
from agent.cli.main import register
from agent.ledger.journal import Journal
from agent.ledger.workspace import Workspace
from agent.report.night import Night as Told
from agent.report.summary import read_summary

register()
pytestmark = pytest.mark.usefixtures("no_charts")


def summary(night: Night) -> Told:
    return read_summary(night.workspace.report_folder("night") / SUMMARY)


def test_a_campaign_leaves_its_report(reported: Night) -> None:
    folder = reported.workspace.report_folder("night")
    assert sorted(path.name for path in folder.iterdir()) == sorted([PAGE, MARKDOWN, SUMMARY, MADE_FROM])
    night = summary(reported)
    assert night.state == "finished"
    assert night.verdict.startswith("1 confirmed gain, +")
    assert night.verdict == Journal(reported.workspace.journal_path("night")).state().result["headline"], (
        "and so the last words of `run`, `status`, messages"
    )
    assert [step.outcome for step in night.steps] == ["keep", "keep", "discard", "crash"]
    assert [one.number for one in night.crashes] == [3]
    assert (folder / MARKDOWN).read_text().startswith(f"# night\n\n**{night.verdict}")
    assert night.verdict.split(";")[0] in (folder / PAGE).read_text()
    assert reported.observer.warnings == [] or all("report" not in words for words in reported.observer.warnings)
    seconds = sum(one.seconds for one in night.time)
    assert seconds == pytest.approx(night.consumed_s)
    assert [one.number for one in night.arms] == [None, 0, 1]
    over = [(one.split, one.delta.value > 0) for one in night.gains if one.of == "winner"]
    assert over == [("search", True), ("confirm", True), ("holdout", True)]


def test_what_it_would_try_next_is_the_loops_own_ranking(reported: Night) -> None:
    (one,) = summary(reported).next
    assert one.subject == "learning-rate: no dedup, True -> False"
    assert one.seconds is not None
    assert 0 < one.seconds < 60, "as its runs took"


@pytest.mark.slow
def test_what_comes_next_is_a_change_of_what_was_kept_last(tmp_path: Path, report: Reports) -> None:
    night = new_night(tmp_path)
    night.playbook(BETTER_RATE, hypothesis("triple", 0.3, scale={"learner.learning_rate": 3.0}))
    bench = night.bench(night.open(max_experiments=1))
    reporter = reporter_of(night, bench)
    run_campaign(bench)
    reporter.close()
    before = summary(night)
    assert [(step.number, step.outcome) for step in before.steps] == [(0, "keep"), (1, "keep")]
    assert [one.subject for one in before.next] == ["learning-rate: triple, 0.002 -> 0.006"]
    assert before.next_note.startswith("1 hypothesis can be tried, 1 is skipped")
    assert report(night.root)[0] == 0
    after = summary(night)
    assert (after.next, after.next_note, after.next_after) == (before.next, before.next_note, 2)


@pytest.mark.slow
def test_why_nothing_comes_next_is_still_known_in_the_morning(tmp_path: Path, report: Reports) -> None:
    night = new_night(tmp_path)
    night.playbook(NOTHING)
    bench = night.bench(night.open())
    reporter = reporter_of(night, bench)
    run_campaign(bench)
    reporter.close()
    assert report(night.root)[0] == 0
    told = summary(night)
    assert told.next == ()
    assert told.next_note.startswith("no idea is left")


def test_curves_are_of_the_runs_that_matter_first(reported: Night) -> None:
    night = summary(reported)
    assert night.curves_left_out == 0
    assert [one.experiment for one in night.curves][:2] == [1, 1]
    for one in night.curves:
        lengths = {len(values) for values in one.cycles.values()}
        assert len(lengths) == 1
        assert lengths.pop() <= MOST_CYCLES
        assert one.cycles["cycle"] == sorted(one.cycles["cycle"])  # type: ignore[type-var]


def test_long_curves_are_thinned_and_starts_follow_each_other(tmp_path: Path) -> None:
    rows = [{"cycle": n, "select_metric": n / 7, "loss": None} for n in range(1000)]
    (tmp_path / "cycles.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"torn')
    samples = [
        {
            "n": n,
            "start": 1 + n // 3000,
            "t": n % 3000,
            "resident_gb": n / 1000,
            "cards": [{"card": "0", "power_w": 9.0}],
        }
        for n in range(6000)
    ]
    (tmp_path / "telemetry.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in samples))
    folders = RunFolders(tmp_path)
    cycles, seconds = folders.cycles(tmp_path), folders.seconds(tmp_path)
    assert (len(cycles["cycle"]), cycles["cycle"][0], cycles["cycle"][-1]) == (60, 0.0, 999.0)
    assert cycles["select"][-1] == 142.7
    assert "loss" not in cycles
    assert len(seconds["t"]) == 120
    assert seconds["t"] == sorted(seconds["t"])  # type: ignore[type-var]
    assert seconds["t"][-1] == 5998.0
    assert seconds["resident_gb"][-1] == 5.999
    assert set(seconds["power_w"]) == {9.0}
    assert folders.cycles(tmp_path / "gone") == {}


def test_a_folder_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import agent.campaign.night_runs as night_runs

    read: list[Path] = []
    before = night_runs.read_plain
    monkeypatch.setattr(night_runs, "read_plain", lambda path, most: read.append(path) or before(path, most=most))
    path = tmp_path / "cycles.jsonl"
    path.write_text('{"cycle": 0, "pass_rate": 0.1}\n')
    folders = RunFolders(tmp_path)
    for _ in range(3):
        assert folders.cycles(tmp_path)["pass_rate"] == [0.1]
    assert len(read) == 1
    path.write_text('{"cycle": 0, "pass_rate": 0.1}\n{"cycle": 1, "pass_rate": 0.2}\n')
    assert folders.cycles(tmp_path)["pass_rate"] == [0.1, 0.2]


def test_samples_before_and_after_are_of_the_same_prompts(reported: Night, tmp_path: Path) -> None:
    root = copied(reported, tmp_path)
    for run_name, completion, passed in (("untrained-search", "7", False), ("001-confirm-s1100", "8", True)):
        rows = [
            {
                "split": "search",
                "id": f"search-{n}",
                "prompt": f"{n}+1",
                "completion": completion,
                "reward": float(passed),
                "passed": passed,
                "finish_reason": "stop",
                "tokens": 1,
            }
            for n in range(20)
        ]
        path = root / ".raft/runs/night" / run_name / "samples.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "[1]\nno json\n")
    night = told(root)
    assert len(night["samples"]) == 12
    assert night["samples"][0] == {
        "prompt": "0+1", "before": "7", "before_passed": False, "after": "8", "after_passed": True,
    }  # fmt: skip
    assert (
        night["samples_of"]
        == "before: the untrained model (untrained-search); after: the winner #1 (001-confirm-s1100)"
    )


# --- while it runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_machine_that_dies_leaves_a_report_of_what_was(tmp_path: Path) -> None:
    night = new_night(tmp_path)
    night.playbook(BETTER_RATE, NOTHING)
    bench = night.bench(night.open(), launcher=dying_at(5))
    reporter_of(night, bench)
    with pytest.raises(Dies):
        run_campaign(bench)
    page = night.workspace.report_folder("night") / PAGE
    until(lambda: page.exists() and summary(night).steps[0].outcome == "keep")
    assert summary(night).state == "running"


@pytest.mark.slow
def test_a_report_that_cannot_be_written_is_said_once_and_holds_nothing_up(tmp_path: Path) -> None:
    night = new_night(tmp_path)
    night.playbook(NOTHING)
    bench = night.bench(night.open(max_experiments=1))
    (night.root / ".raft/report").write_text("in the way")
    reporter = reporter_of(night, bench)
    assert run_campaign(bench).ideas == 1
    reporter.close()
    said = [words for words in night.observer.warnings if "report" in words]
    assert len(said) == 1
    assert "raft-agent report --out DIR writes it elsewhere" in said[0]


def test_a_disk_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, asked = threading.Event(), threading.Event()

    def stuck(*_: Any, **__: Any) -> dict[str, str]:
        asked.set()
        answers.wait(20)
        return {}

    monkeypatch.setattr(reports, "write_report", stuck)
    warnings: list[str] = []
    reporter = Reporter(
        tmp_path / "journal.jsonl", name="night", root=tmp_path, folder=tmp_path / "report", charts=NoCharts(tmp_path),
        warn=warnings.append,
    )  # fmt: skip
    began = time.monotonic()
    for _ in range(1000):
        reporter.request()
    assert time.monotonic() - began < 0.5
    assert asked.wait(10)
    reporter.close(patience_s=0.1)
    answers.set()
    assert warnings == ["the report is not written after 0.1 s; raft-agent report writes it"]


def test_requests_while_it_writes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(reports, "write_report", lambda *_, **__: written.append(time.sleep(0.02)) or {})
    reporter = Reporter(
        tmp_path / "journal.jsonl", name="night", root=tmp_path, folder=tmp_path / "report", charts=NoCharts(tmp_path),
        warn=pytest.fail, least_pause_s=0.01,
    )  # fmt: skip
    for _ in range(100):
        reporter.request()
        time.sleep(0.001)
    reporter.close()
    assert 2 <= len(written) <= 12


def until(true: Callable[[], bool], *, within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- the command -------------------------------------------------------------------------------------------


def told(root: Path) -> dict[str, Any]:
    from agent.cli.report import night_now
    from agent.report.summary import summary_of

    return summary_of(night_now(Workspace(root), "night"))


def test_the_command_says_where_it_is_and_what_came_of_it(reported: Night, report: Reports, tmp_path: Path) -> None:
    root = copied(reported, tmp_path)
    shutil.rmtree(root / ".raft/report")
    code, said = report(root)
    page = root / ".raft/report/night" / PAGE
    assert code == 0
    assert said.startswith("1 confirmed gain, +")
    assert "the page has no charts: these tests make none" in said
    assert said.endswith(f"report: {page}\n")
    assert page.exists()
    code, said = report(root, "--out", "elsewhere", "--campaign", "night")
    assert (code, (root / "elsewhere" / SUMMARY).exists()) == (0, True)


def test_the_summary_as_json(reported: Night, report: Reports) -> None:
    before = (reported.workspace.report_folder("night") / SUMMARY).stat()
    code, said = report(reported.root, "--json")
    night = json.loads(said)
    assert code == 0
    assert list(night)[:2] == ["format", "campaign"]
    assert [one["subject"] for one in night["next"]] == ["learning-rate: no dedup, True -> False"]
    assert (reported.workspace.report_folder("night") / SUMMARY).stat() == before


def test_where_it_cannot_be_written_it_points_elsewhere(reported: Night, report: Reports, tmp_path: Path) -> None:
    root = copied(reported, tmp_path)
    shutil.rmtree(root / ".raft/report")
    (root / ".raft/report").write_text("in the way")
    code, said = report(root)
    assert code == 9
    assert "raft-agent report --out DIR writes it elsewhere" in said
    (root / "file").write_text("")
    assert report(root, "--out", "file")[0] == 2
    assert report(root, "--out", "elsewhere")[0] == 0


def test_what_is_no_report_and_what_is_a_newer_one_is_not_written_over(
    reported: Night, report: Reports, tmp_path: Path
) -> None:
    root = copied(reported, tmp_path)
    record = root / ".raft/runs/night/001-search-s1000/summary.json"
    before = record.read_text()
    code, said = report(root, "--out", str(record.parent))
    assert (code, "summary.json in it is no summary of a campaign" in said) == (2, True)
    assert record.read_text() == before
    path = root / ".raft/report/night/summary.json"
    newer = path.read_text().replace('{"format":1', '{ "format": 99')
    path.write_text(newer)
    refused = (
        f"error: the report in {path.parent} was written by a newer raft-agent (format 99, this version reads 1), and "
        "is not written over\n  raft-agent report --out DIR writes one into another folder\n"
    )
    assert report(root, "--out", str(path.parent)) == (2, refused)
    assert report(root) == (2, refused)
    assert path.read_text() == newer
    code, said = report(root, "--out", "elsewhere")
    assert (code, "the report before was written by a newer raft-agent (format 99" in said) == (0, True)
    assert read_summary(root / "elsewhere" / SUMMARY).campaign == "night"
    assert report(root, "--json")[0] == 0


def test_a_campaign_that_runs_leaves_a_newer_report_and_says_so_once(tmp_path: Path) -> None:
    folder, warnings = tmp_path / "report", list[str]()
    folder.mkdir()
    (folder / SUMMARY).write_text('{"format":2}')
    reporter = Reporter(
        tmp_path / "journal.jsonl", name="night", root=tmp_path, folder=folder, charts=NoCharts(tmp_path),
        warn=warnings.append, least_pause_s=0.0,
    )  # fmt: skip
    Journal(tmp_path / "journal.jsonl").append(
        "campaign_started", campaign="night", recipe_path="x", recipe="", base_commit="0" * 40
    )
    reporter.request()
    until(lambda: not reporter._troubles.empty())
    reporter.request()
    assert len(warnings) == 1
    reporter.close()  # writes once more
    assert len(warnings) == 1
    assert "was written by a newer raft-agent (format 2, this version reads 1), and is not written over" in warnings[0]
    assert [path.name for path in folder.iterdir()] == [SUMMARY]
    assert (folder / SUMMARY).read_text() == '{"format":2}'


def test_before_any_campaign(tmp_path: Path, report: Reports) -> None:
    code, said = report(new_night(tmp_path).root)
    assert (code, said.splitlines()[0]) == (2, "error: there is no campaign in this workspace yet")


def test_a_journal_that_is_torn_or_newer_and_folders_that_are_gone(
    reported: Night, report: Reports, tmp_path: Path
) -> None:
    root = copied(reported, tmp_path)
    shutil.rmtree(root / ".raft/runs")
    journal = root / ".raft/campaigns/night/journal.jsonl"
    lines = journal.read_text().splitlines()
    future = json.dumps({"kind": "dream", "seq": len(lines) + 1, "time": 1e9, "seen": "sheep"})
    journal.write_text("\n".join([*lines[:20], "no json", *lines[21:], future, '{"kind": "no']))
    code, said = report(root)
    assert code == 0
    assert "warning: .raft/campaigns/night/journal.jsonl: line 21 is no event" in said
    assert "of a newer version" in said
    assert "run folders are gone" in said
    assert told(root)["curves"] == []


@pytest.mark.parametrize("lines", [2, 4, 12, 16, 25])
def test_the_first_lines_of_a_journal(reported: Night, report: Reports, tmp_path: Path, lines: int) -> None:
    """Killed before the baseline was measured, in mid-run, in the first idea."""
    root = copied(reported, tmp_path)
    journal = root / ".raft/campaigns/night/journal.jsonl"
    journal.write_text("".join(f"{line}\n" for line in journal.read_text().splitlines()[:lines]))
    code, said = report(root)
    assert code == 0
    begin = "the baseline is not measured yet; killed" if lines < 15 else "no confirmed improvement: no idea was judged"
    assert said.startswith(begin)


def test_intervals_are_over_prompts_and_runs_as_the_campaign_told_them(reported: Night) -> None:
    """They contain what a run measured, and are as wide as 200 prompts allow."""
    night = summary(reported)
    for arm in night.arms:
        for split, one in arm.metrics.items():
            assert one.low is not None, (arm.name, split)
            assert one.high is not None
            assert one.low < one.value < one.high
            assert 0.05 < one.high - one.low < 0.25
    assert reported.session is not None
    told = reported.session.state.result["holdout"]["arms"]
    assert set(told) == {"untrained", "baseline", "winner"}
    assert told["winner"]["value"] == pytest.approx(reported.session.state.result["holdout"]["winner"])


@pytest.mark.slow
def test_a_metric_that_is_no_rate_has_intervals_too(tmp_path: Path) -> None:
    night = new_night(tmp_path)
    path = night.root / "recipes/test.yaml"
    path.write_text(path.read_text().replace("temperature: 0}", "temperature: 0, metric: mean_reward}"))
    night.playbook(BETTER_RATE)
    bench = night.bench(night.open(max_experiments=1))
    reporter = reporter_of(night, bench)
    run_campaign(bench)
    reporter.close()
    arms = {arm.name: arm.metrics for arm in summary(night).arms}
    assert summary(night).metric == "mean_reward"
    for split in ("search", "confirm", "holdout"):
        one = arms["winner"][split]
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high
