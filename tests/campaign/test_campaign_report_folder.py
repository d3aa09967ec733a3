"""When a report stays as it is: exactly where one that is made now would say the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nights import Night
from reports import NoCharts, Reports, copied

from agent.campaign import night_runs
from agent.campaign import report as reports
from agent.campaign.night_runs import RunFolders
from agent.campaign.report import Reporter
from agent.campaign.report_folder import MADE_FROM, MARKDOWN, PAGE, SUMMARY, program
from agent.cli.main import register
from agent.cli.report import night_now
from agent.ledger.journal import Journal
from agent.ledger.lock import CAMPAIGN, hold
from agent.ledger.workspace import Workspace
from agent.report.summary import read_summary, summary_of

register()
pytestmark = pytest.mark.usefixtures("no_charts")
STAYS = "nothing has changed since it was made, 2"
UNREAD = "holdout-untrained-untrained"
FOLDER, RUNS, JOURNAL = ".raft/report/night", ".raft/runs/night", ".raft/campaigns/night/journal.jsonl"


@pytest.fixture(autouse=True)
def as_at_the_start() -> Iterator[None]:
    yield
    program.cache_clear()


@pytest.fixture
def lasting(reported: Night, report: Reports, tmp_path: Path) -> Path:
    """A workspace whose report was made a moment ago."""
    root = copied(reported, tmp_path)
    assert STAYS not in report(root)[1], "a copy's files are others"
    return root


def made_at(root: Path) -> float:
    return read_summary(root / FOLDER / SUMMARY).renewed_at


def as_of_now(root: Path) -> dict[str, Any]:
    """What a report would say, and when the one that is there was made."""
    return {**summary_of(night_now(Workspace(root), "night")), "renewed_at": made_at(root)}


def told(root: Path) -> Any:
    return json.loads((root / FOLDER / SUMMARY).read_text())


# --- it stays ----------------------------------------------------------------------------------------------


def test_the_report_that_a_campaign_left_stays(reported: Night, report: Reports) -> None:
    folder = reported.workspace.report_folder("night")
    before = {path: path.stat() for path in folder.iterdir()}
    code, said = report(reported.root)
    assert code == 0
    assert said.startswith("1 confirmed gain, +")
    assert "the page has no charts: these tests make none" in said
    assert STAYS in said
    assert said.endswith(f"report: {folder / PAGE}\n")
    assert {path: path.stat() for path in folder.iterdir()} == before
    assert told(reported.root) == as_of_now(reported.root)


def test_a_report_that_was_made_stays_until_the_journal_goes_on(lasting: Path, report: Reports) -> None:
    before = made_at(lasting)
    assert STAYS in report(lasting)[1]
    assert made_at(lasting) == before
    assert STAYS not in report(lasting, "--out", "elsewhere")[1], "another folder's is not this one's"
    assert not (lasting / "elsewhere" / MADE_FROM).exists(), "that folder may be sent"
    Journal(lasting / JOURNAL).append("note", text="a word")
    assert STAYS not in report(lasting)[1]
    assert made_at(lasting) > before
    assert STAYS in report(lasting)[1]


def test_as_json_it_is_what_lies_there_and_asks_for_no_charts(
    lasting: Path, report: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.report.vega.bundle", lambda *_, **__: pytest.fail("JSON has no charts"))
    assert json.loads(report(lasting, "--json")[1]) == told(lasting)
    Journal(lasting / JOURNAL).append("note", text="a word")
    assert json.loads(report(lasting, "--json")[1])["renewed_at"] > made_at(lasting)


# --- it does not -------------------------------------------------------------------------------------------


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("a", "bb", 1))


def forge(root: Path, files: dict[str, Any]) -> None:
    """A record that says as little, and is of this program."""
    path = root / FOLDER / MADE_FROM
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": files}))


def known_to(root: Path) -> dict[str, Any]:
    files: dict[str, Any] = json.loads((root / FOLDER / MADE_FROM).read_text())["files"]
    return files


def without(files: dict[str, Any], name: str) -> dict[str, Any]:
    return {path: stamp for path, stamp in files.items() if not path.endswith(name)}


CHANGES: dict[str, Callable[[Path, pytest.MonkeyPatch], Any]] = {
    "a run is removed": lambda root, _: shutil.rmtree(root / RUNS / "002-search-s2000"),
    "a run that is not looked into is removed": lambda root, _: shutil.rmtree(root / RUNS / UNREAD),
    "all runs are removed": lambda root, _: shutil.rmtree(root / ".raft/runs"),
    "curves are removed": lambda root, _: (root / RUNS / "001-search-s1000/cycles.jsonl").unlink(),
    "samples have come": lambda root, _: (root / RUNS / "untrained-search/samples.jsonl").write_text("{}"),
    "the page is edited": lambda root, _: edit(root / FOLDER / PAGE),
    "report.md is removed": lambda root, _: (root / FOLDER / MARKDOWN).unlink(),
    "the summary is removed": lambda root, _: (root / FOLDER / SUMMARY).unlink(),
    "more seconds": lambda root, _: (root / JOURNAL).with_name("consumed").write_text("000000000009999.9\n"),
    "the journal is edited": lambda root, _: edit(root / JOURNAL),
    "another program": lambda root, patch: patch.setattr("agent.__file__", str(root / "results.tsv")),
    "another library": lambda _, patch: patch.setattr("importlib.metadata.version", lambda name: "99"),
    "another time zone": lambda _, patch: patch.setenv("TZ", "Africa/Cairo"),
    "another place": lambda root, patch: patch.setattr("agent.campaign.report_folder.LOCAL_TIME", root / "results.tsv"),
    "what it tells is a secret": lambda _, patch: patch.setenv("SOME_TOKEN", "better rate"),
    "charts can be had": lambda _, patch: patch.setattr("agent.report.vega.bundle", lambda *_, **__: "draw()"),
    "no record": lambda root, _: (root / FOLDER / MADE_FROM).unlink(),
    "a record that is no JSON": lambda root, _: (root / FOLDER / MADE_FROM).write_text("{torn"),
    "a record of no file": lambda root, _: forge(root, {}),
    "a record of files that were not there": lambda root, _: forge(root, dict.fromkeys(known_to(root))),
    "a record of another page": lambda root, _: forge(root, without(known_to(root), PAGE)),
    "a record of a file that cannot be": lambda root, _: forge(root, {**known_to(root), "a\0b": None}),
}  # fmt: skip


@pytest.mark.one_in(4)
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_report_was_made_from_has_changed(
    lasting: Path, report: Reports, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    before = made_at(lasting)
    CHANGES[change](lasting, monkeypatch)
    program.cache_clear()  # as for another process
    code, said = report(lasting)
    assert (code, STAYS in said) == (0, False)
    assert made_at(lasting) > before
    assert told(lasting) == as_of_now(lasting)
    assert STAYS in report(lasting)[1]


def test_runs_that_lie_elsewhere(reported: Night, report: Reports, tmp_path: Path) -> None:
    """Moved to a larger disk, with links in their place."""
    root = copied(reported, tmp_path)
    for run in list((root / RUNS).iterdir()):
        shutil.move(run, tmp_path / "disk" / run.name)
        run.symlink_to(tmp_path / "disk" / run.name)
    report(root)
    assert STAYS in report(root)[1]
    shutil.rmtree(tmp_path / "disk" / UNREAD)
    assert "1 run folder is gone" in report(root)[1]


def test_the_report_of_a_campaign_that_runs_is_always_made(lasting: Path, report: Reports) -> None:
    with hold(Workspace(lasting), what=f"{CAMPAIGN}night"):
        assert STAYS not in report(lasting)[1]
        assert STAYS not in report(lasting)[1]
    assert STAYS not in report(lasting)[1], "it says that the campaign runs"
    assert STAYS in report(lasting)[1]


# --- what is not remembered --------------------------------------------------------------------------------


def renewed(root: Path, *, on_the_way: bool = False, at_the_end: bool = True) -> list[str]:
    """As the campaign itself does it: the warnings."""
    warnings: list[str] = []
    reporter = Reporter(
        root / JOURNAL, name="night", root=root, folder=root / FOLDER, charts=NoCharts(root), warn=warnings.append,
        least_pause_s=0.0,
    )  # fmt: skip
    if on_the_way:
        reporter._renew(last=False)
    if at_the_end:
        reporter.request()
        reporter.close()
    return warnings


def test_a_report_on_the_way_is_not_the_last(lasting: Path, report: Reports) -> None:
    """The machine dies after it."""
    lines = (lasting / JOURNAL).read_text().splitlines(keepends=True)
    (lasting / JOURNAL).write_text("".join(lines[:25]))
    renewed(lasting, on_the_way=True, at_the_end=False)
    assert told(lasting)["state"] == "running"
    assert STAYS not in report(lasting)[1]
    assert told(lasting)["state"] == "killed"


def test_the_last_one_warns_of_damage_and_stays(lasting: Path, report: Reports) -> None:
    lines = (lasting / JOURNAL).read_text().splitlines()
    (lasting / JOURNAL).write_text("\n".join([*lines[:20], "no json", *lines[21:], ""]))
    assert renewed(lasting) == []
    said = report(lasting)[1]
    assert STAYS in said
    assert f"warning: {JOURNAL}: line 21 is no event" in said
    assert told(lasting) == as_of_now(lasting)


@pytest.mark.parametrize("last", [False, True])
def test_a_journal_that_could_not_be_read(
    lasting: Path, report: Reports, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """Once, on the way or at the end."""
    truth = told(lasting)
    real, asked = Path.open, 0

    def refused(path: Path, *given: Any, **named: Any) -> Any:
        nonlocal asked
        asked += path.name == "journal.jsonl"
        if path.name == "journal.jsonl" and (last or asked == 1):
            raise OSError(24, "Too many open files", str(path))
        return real(path, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        assert any("Too many open files" in words for words in renewed(lasting, on_the_way=not last)) == last
    report(lasting)
    after = told(lasting)
    for name in ("state", "verdict", "counts", "arms", "curves", "warnings"):
        assert after[name] == truth[name]


@pytest.mark.parametrize("by", ["a line", "seconds"])
def test_a_campaign_that_goes_on_while_the_report_is_written(
    lasting: Path, report: Reports, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    real, seconds = reports.write_report, iter(range(5000, 6000))

    def overtaken(*given: Any, **named: Any) -> Any:
        if by == "a line":
            Journal(lasting / JOURNAL).append("note", text="while it writes")
        else:
            (lasting / JOURNAL).with_name("consumed").write_text(f"{next(seconds)}\n")
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(reports, "write_report", overtaken)
        renewed(lasting)
        assert STAYS not in report(lasting)[1]
    assert STAYS not in report(lasting)[1]
    assert STAYS in report(lasting)[1]


@pytest.mark.parametrize("name", [PAGE, MARKDOWN, SUMMARY])
def test_another_writer_in_the_same_folder(
    lasting: Path, report: Reports, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`raft-agent report` that began while the campaign ran, and is done a moment after it."""
    real = reports.write_report

    def overtaken(*given: Any, **named: Any) -> Any:
        written = real(*given, **named)
        edit(lasting / FOLDER / name)
        return written

    with monkeypatch.context() as patch:
        patch.setattr(reports, "write_report", overtaken)
        renewed(lasting)
    assert STAYS not in report(lasting)[1]


def test_curves_that_could_not_be_read(lasting: Path, report: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    (lasting / FOLDER / MADE_FROM).unlink()

    def refused(path: Path, *, most: int) -> bytes:
        raise OSError(24, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(night_runs, "read_plain", refused)
        report(lasting)
        assert told(lasting)["curves"] == []
    assert STAYS not in report(lasting)[1]
    assert len(told(lasting)["curves"]) > 3


def test_what_could_not_be_read_once_is_read_the_next_time(lasting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, out = RunFolders(lasting), lasting / RUNS / "baseline-s1"
    with monkeypatch.context() as patch:
        patch.setattr(night_runs, "read_plain", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "I/O error")))
        assert folders.cycles(out) == {}
    assert not folders.has_read_all
    folders.look_anew()
    assert folders.cycles(out)["cycle"]
    assert folders.has_read_all


def test_a_folder_that_is_listed_twice_counts_as_it_was_first(tmp_path: Path) -> None:
    (tmp_path / "runs/one").mkdir(parents=True)
    folders = RunFolders(tmp_path)
    assert folders.there(["runs/one"]) == {"runs/one"}
    before = dict(folders.seen)
    (tmp_path / "runs/two").mkdir()
    folders.there(["runs/one"])
    assert folders.seen == before
    folders.look_anew()
    folders.there(["runs/one"])
    assert folders.seen != before


def test_the_program_is_that_of_the_whole_night(
    lasting: Path, report: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is installed meanwhile is not what it was made with."""
    program.cache_clear()
    reporter = Reporter(
        lasting / JOURNAL, name="night", root=lasting, folder=lasting / FOLDER, charts=NoCharts(lasting),
        warn=pytest.fail,
    )  # fmt: skip
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99")
    reporter.request()
    reporter.close()
    program.cache_clear()
    assert STAYS not in report(lasting)[1]
    assert STAYS in report(lasting)[1]


def test_seconds_that_could_not_be_read(lasting: Path, report: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal has fewer."""
    consumed = (lasting / JOURNAL).with_name("consumed")
    consumed.write_text("9999.9\n")
    with monkeypatch.context() as patch:
        patch.setattr("agent.ledger.journal.read_consumed", lambda _: 0.0)
        renewed(lasting)
        assert told(lasting)["consumed_s"] < 9999
    assert STAYS not in report(lasting)[1]
    assert told(lasting)["consumed_s"] == 9999.9


def test_what_is_no_file_is_none_the_next_time_either(lasting: Path, report: Reports) -> None:
    curves = lasting / RUNS / "baseline-s1/cycles.jsonl"
    curves.unlink()
    curves.mkdir()
    assert STAYS not in report(lasting)[1]
    assert STAYS in report(lasting)[1]


def test_what_a_killed_program_left_half_written_is_removed(lasting: Path) -> None:
    left = lasting / FOLDER / f".{MADE_FROM}.abcdefgh"
    left.write_text("{")
    renewed(lasting)
    assert not left.exists()


def test_no_secret_is_remembered(lasting: Path, report: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_" + "a1B2" * 8
    lines = (lasting / JOURNAL).read_text()
    future = json.dumps({"kind": secret, "seq": len(lines.splitlines()) + 1, "time": 1e9})
    (lasting / JOURNAL).write_text(f"{lines}{future}\n")
    for said in (report(lasting)[1], report(lasting)[1]):
        assert "this is no [redacted token] that can be understood" in said
    monkeypatch.setenv("FIRST_TOKEN", "1 confirmed gain")
    monkeypatch.setenv("SECOND_TOKEN", "these tests make none")
    assert "[redacted FIRST_TOKEN]" in report(lasting)[1]
    assert STAYS in report(lasting)[1]
    for one in (secret, "1 confirmed gain", "these tests make none"):
        assert all(one not in path.read_text() for path in (lasting / FOLDER).iterdir())


def test_a_disk_that_is_full(lasting: Path, report: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files are written, what they were made from is not."""
    (lasting / FOLDER / MADE_FROM).unlink()

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("agent.campaign.report_folder.write_atomic", full)
        assert report(lasting)[0] == 0
    assert not (lasting / FOLDER / MADE_FROM).exists()
    assert STAYS not in report(lasting)[1]
