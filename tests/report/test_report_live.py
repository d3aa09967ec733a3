"""The live view: it fits whatever room there is, with and without colours, and hostile text does nothing."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from agent.report.glyphs import ASCII, UNICODE, Glyphs, bar, cut, flow, glyphs_for, sparkline, width_of, wrap
from agent.report.live import View, live_lines
from agent.report.night import Estimate
from agent.report.numbers import Numbers
from agent.report.screen import ENTER, LEAVE, Screen, plain
from agent.report.snapshot import Arms, CardNow, MachineNow, Mark, Running, Snapshot, waiting
from agent.report.stairs import stairs
from agent.report.terminal import PlainConsole

OUTCOMES = [("discard", "regressed", 0.38), ("keep", "gain", 0.46), ("crash", "oom", None), ("discard", "lead", 0.47)]
MARKS = tuple(
    Mark(number, f"batch: idea {number}", outcome, kind, f"why {number}", value, 0.4 if number < 2 else 0.46)
    for number, (outcome, kind, value) in enumerate([*OUTCOMES, ("open", "", None)], start=1)
)
RUNNING = Running(
    "005-search-s1", "#5 batch: idea 5", 5000, 5, "train", 10.0, 40.0, share=0.25, cycle=3, metric=0.44,
    curve=(0.2, 0.3, 0.44), pass_rate=0.31,
)  # fmt: skip
SNAPSHOT = Snapshot(
    at=1_800_000_000.0, campaign="2026-01-02-main", state="running", budget_s=240.0, used_s=130.0, left_s=110.0,
    arms=Arms("confirm", None, 0.4, 0.46, Estimate(0.06, 0.01, 0.11)), best_number=2, best_title="batch: idea 2",
    lead=0.47, lead_number=4, base=0.4,
    sigma_run=0.012, detectable=0.028, counts={"ideas": 5, "keep": 1, "discard": 2, "crash": 1, "open": 1},
    marks=MARKS, judged=(1, 2, 3, 4), running=RUNNING,
    machine=MachineNow(21.2, 24.0, 2.1, 1.9, 2, (CardNow("card1", 98.0, 12.0, 16.0, 85.0, 61.0),), 55.0),
    idea_s=12.0, reserve_s=42.0, stops=("after 20 ideas",),
)  # fmt: skip


RATES = Numbers("pass_rate")


def shown(snapshot: Snapshot, width: int, height: int, glyphs: Glyphs = UNICODE, *, outcomes: bool = True) -> list[str]:
    return [plain(line) for line in live_lines(snapshot, View(width, height, glyphs, outcomes))]


def test_all_of_it_at_the_usual_size() -> None:
    text = "\n".join(lines := shown(SNAPSHOT, 80, 24))
    assert len(lines) <= 24
    assert lines[0].startswith("2026-01-02-main running")
    for piece in (
        "1m 50s left │ 2m 10s used of 4m 00s",
        "on confirm: baseline 40.0% → best 46.0% (#2) │ +6.0pp [+1.0, +11.0]",
        "#4 leads with 47.0% on search, unconfirmed",
        "search     46.0%│",
        "1.2pp between baseline seeds │ gains from about 2.8pp can be confirmed",
        "#5 batch: idea 5, seed 5000",
        "train 25% │ about 30s left │ 10s of about 40s │ cycle 3",
        "44.0% ▁▄█ │ samples passed 31.0%",
        "21.2 of 24 GiB free │ trainer 2.1 GiB │ 1.9 of 2 cores",
        "card1 98% busy 12.0 GiB 85 W 61 C │ 55 C",
        "5 ideas │ ● 1 kept │ · 2 discarded │ × 1 crashed │ ○ 1 open",
        "about 5 more ideas of 12s 42s kept for the last confirmation and the holdout",
        "ends after 20 ideas",
        "#4 discard batch: idea 4: why 4",
    ):
        assert piece in text or piece in " ".join(text.split()), piece


def test_what_matters_most_is_left_in_five_lines_of_twenty_columns() -> None:
    lines = shown(SNAPSHOT, 20, 5)
    assert lines == ["2026-01-02-… running", "1m 50s left", "best 46.0% confirm …", "#5 batch: idea 5,", "train 25%"]
    assert shown(SNAPSHOT, 20, 1) == ["2026-01-02-… running"]


texts = st.text(max_size=60)
numbers = st.none() | st.floats(-1.0, 2.0, allow_nan=False)
marks = st.builds(
    Mark, st.integers(1, 400), texts, st.sampled_from(["keep", "discard", "crash", "open"]),
    st.sampled_from(["", "lead", "gain"]), texts, numbers, numbers,
)  # fmt: skip
estimates = st.builds(Estimate, st.floats(-1.0, 1.0), numbers, numbers)
arms = st.builds(Arms, st.sampled_from(["search", "holdout"]), numbers, numbers, numbers, st.none() | estimates)
runs = st.builds(
    Running,
    texts,
    texts,
    st.none() | st.integers(0, 9),
    st.none(),
    st.sampled_from(["load", "train"]),
    st.none() | st.floats(0, 1e6),
    st.none() | st.floats(0, 1e6),
    st.none() | st.floats(0, 1),
    st.none(),
    texts,
    numbers,
    st.lists(st.floats(0, 1), max_size=90).map(tuple),
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    ideas = tuple(replace(mark, number=n) for n, mark in enumerate(draw(st.lists(marks, max_size=60)), start=1))
    return replace(
        SNAPSHOT,
        campaign=draw(texts),
        marks=ideas,
        judged=tuple(mark.number for mark in ideas if mark.outcome != "open"),
        arms=draw(arms),
        base=draw(numbers),
        running=draw(st.none() | runs),
        minimize=draw(st.booleans()),
        state=draw(st.sampled_from(["running", "killed", "finished", "paused"])),
        stopped=draw(texts),
        left_s=draw(st.none() | st.floats(0, 1e6)),
        trouble=draw(texts),
        headline=draw(texts),
    )


@settings(max_examples=60, deadline=None)
@given(snapshots(), st.integers(1, 130), st.integers(1, 50), st.sampled_from([UNICODE, ASCII]))
def test_it_fits_any_room(snapshot: Snapshot, width: int, height: int, glyphs: Glyphs) -> None:
    lines = live_lines(snapshot, View(width, height, glyphs))
    assert 1 <= len(lines) <= height
    assert all(width_of(line) <= width for line in lines)


def test_in_ascii_there_is_nothing_else_and_outcomes_differ_without_colour() -> None:
    for line in shown(SNAPSHOT, 100, 40, ASCII):
        assert line.isascii()
    for glyphs in (UNICODE, ASCII):
        assert len({glyphs.keep, glyphs.discard, glyphs.crash, glyphs.open, glyphs.lead, glyphs.best, glyphs.up}) == 7
    assert glyphs_for("utf-8") is UNICODE
    assert all(glyphs_for(name) is ASCII for name in ("ascii", "latin-1", "no-such-encoding", None))


def test_the_staircase_shows_every_idea_where_it_measured_and_the_best_line() -> None:
    lines = [plain(line) for line in stairs(MARKS, 0.4, 30, 6, UNICODE, numbers=RATES)]
    assert lines == [
        "  46.0%│       ●━━━━━━━◆━━━━",  # 47% and 46% are less than a row apart
        "       │       ┃",
        "       │       ┃",
        "  40.0%│━━━━━━━",
        "  38.0%│   ·",
        "   none│           ×       ○",
    ]
    upside_down = [plain(line) for line in stairs(MARKS, 0.4, 30, 6, UNICODE, numbers=RATES, minimize=True)]
    assert "·" in upside_down[0]
    assert [plain(line) for line in stairs(MARKS, 0.4, 30, 3, ASCII, numbers=RATES)] == [".KxLo"]


def test_more_ideas_than_columns_share_them_and_a_kept_one_is_never_hidden() -> None:
    many = [Mark(n, "", "keep" if n == 77 else "discard", "", "", 0.4 + n / 1000, 0.4) for n in range(1, 201)]
    text = "\n".join(plain(line) for line in stairs(many, 0.4, 40, 8, UNICODE, numbers=RATES))
    assert text.count("●") == 1
    assert max(map(len, text.splitlines())) <= 40


def test_one_ruined_training_does_not_flatten_the_others() -> None:
    ruined = (*MARKS, Mark(6, "", "discard", "", "", 0.0, 0.46))
    lines = [plain(line) for line in stairs(ruined, 0.4, 60, 9, UNICODE, numbers=RATES)]
    assert lines[1].count("◆") + lines[0].count("◆") == 1
    assert sum("━" in line for line in lines) >= 2


def test_pieces() -> None:
    assert sparkline([0, 1, 2, 3], 3, UNICODE) == "▁▅█"
    assert sparkline([0.5, 0.5], 8, ASCII) == ":" * 0 + ASCII.spark[3] * 2
    assert sparkline([], 8, ASCII) == ""
    assert "".join(text for text, _ in bar(0.5, 4, ASCII)) == "[##--]"
    assert "".join(text for text, _ in bar(7.0, 2, ASCII)) == "[##]"
    assert wrap("one two three four", 9, ASCII, most=2) == ["one two", "three fo~"]
    assert plain(cut([("世界世界", "")], 5, UNICODE)) == "世界…"
    assert [plain(line) for line in flow([[("aaa", "")], [], [("bb", "")], [("c" * 9, "")]], 8, ASCII)] == [
        "aaa | bb",
        "ccccccc~",
    ]


@pytest.mark.parametrize(
    ("elapsed", "share", "left"), [(10.0, None, 30.0), (50.0, None, -10.0), (10.0, 0.25, 30.0), (60.0, 0.5, 30.0)]
)
def test_the_time_left_is_predicted_and_corrected_by_the_pace(elapsed: float, share: float | None, left: float) -> None:
    assert replace(RUNNING, elapsed_s=elapsed, share=share).left_s == pytest.approx(left)


@pytest.mark.parametrize(
    ("elapsed", "share", "before", "left"),
    [
        (10.0, 0.8, 0.8, 30.0),  # nothing gained yet: as predicted, not 2.5 s by the share of the first start
        (10.0, 0.85, 0.8, 0.25 * 30.0 + 0.75 * 30.0),
        (12.0, 0.9, 0.8, 0.5 * 12.0 + 0.5 * 28.0),
        (12.0, 0.9, None, 28.0),  # a trainer that does not tell, in a later start
        (12.0, 1.0, 1.0, 28.0),
        (12.0, 0.2, 0.8, 28.0),
    ],
)
def test_the_pace_of_a_run_that_goes_on_is_of_what_this_start_has_gained(
    elapsed: float, share: float, before: float | None, left: float
) -> None:
    run = replace(RUNNING, elapsed_s=elapsed, share=share, share_before=before)
    assert run.left_s == pytest.approx(left)


def test_what_is_finished_has_no_time_left_and_no_bar() -> None:
    done = replace(SNAPSHOT, state="finished", running=None, left_s=None)
    line = next(line for line in shown(done, 80, 24) if line.startswith("time"))
    assert line == "time     2m 10s used of 4m 00s"
    assert "left" not in "\n".join(shown(done, 80, 24))
    assert shown(done, 14, 2)[1] == "2m 10s used o…"


def test_numbers_of_a_holdout_are_not_said_twice() -> None:
    done = replace(SNAPSHOT, state="finished", running=None, headline="holdout: 40.0% -> 46.0%", lead_number=None)
    seen = replace(done, arms=replace(SNAPSHOT.arms, split="holdout"))
    assert "verdict  holdout: 40.0% -> 46.0%" in shown(seen, 80, 24)
    assert not any("on holdout" in line for line in shown(seen, 80, 24))
    assert any("on confirm: baseline 40.0%" in line for line in shown(done, 80, 24)), "the holdout was not evaluated"
    assert any("on holdout: baseline 40.0%" in line for line in shown(replace(seen, headline=""), 80, 24))


def test_one_arm_a_line_where_the_path_does_not_fit() -> None:
    whole = replace(SNAPSHOT, arms=replace(SNAPSHOT.arms, split="holdout", untrained=0.2))
    lines = shown(whole, 50, 40)
    at = lines.index("best 46.0% holdout (#2)")
    assert lines[at : at + 4] == [
        "best 46.0% holdout (#2)", "+6.0pp [+1.0, +11.0]", "baseline 40.0% holdout", "untrained 20.0% holdout",
    ]  # fmt: skip
    assert "on confirm: baseline 40.0% → best 46.0% (#2)" in shown(SNAPSHOT, 50, 40)


def test_a_reward_is_no_percentage() -> None:
    arms = Arms("confirm", None, 1.25, 1.3, Estimate(0.05, 0.01, 0.09))
    marks = tuple(replace(mark, value=mark.value and mark.value + 1, best=(mark.best or 0) + 1) for mark in MARKS)
    run = replace(RUNNING, metric=1.44)
    rewarded = replace(SNAPSHOT, metric="mean_reward", arms=arms, lead=1.47, marks=marks, base=1.4, running=run)
    text = "\n".join(shown(rewarded, 80, 40))
    for piece in (
        "on confirm: baseline 1.250 → best 1.300 (#2) │ +0.050 [+0.010, +0.090]",
        "#4 leads with 1.470 on search, unconfirmed",
        "0.012 between baseline seeds │ gains from about 0.028 can be confirmed",
        "select   1.440 ▁▄█ │ samples passed 31.0%",
        "search     1.4",
    ):
        assert piece in text, piece
    assert re.findall(r"\d+\.?\d*(?:%|pp)", text) == ["25%", "31.0%", "98%"], "of the budget, of samples, of a card"


def test_a_campaign_that_stands_still_says_why_and_how_it_goes_on() -> None:
    killed = replace(SNAPSHOT, state="killed", running=None, next="raft-agent resume night")
    text = "\n".join(shown(killed, 80, 24))
    assert "its process is gone" in text
    assert "raft-agent resume night" in text
    done = replace(SNAPSHOT, state="finished", running=None, headline="an improvement", report=".raft/report/x.html")
    assert "an improvement" in (text := "\n".join(shown(done, 80, 24)))
    assert "report: .raft/report/x.html" in text
    assert "waiting for one" in " ".join(shown(waiting(0.0), 30, 10))
    assert shown(waiting(0.0, "permission denied"), 30, 10) == ["permission denied"]


# --- the terminal ------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def screen_on(terminal: Terminal, size: list[int], **keys: object) -> Screen:
    return Screen(PlainConsole(file=terminal, force_terminal=True, **keys), size=lambda: (size[0], size[1]))


def test_the_screen_writes_only_what_has_changed_and_everything_after_a_resize() -> None:
    terminal, size = Terminal(), [30, 4]
    screen = screen_on(terminal, size)
    screen.enter()
    screen.show([[("one", "bold")], [("two", "")], [("x" * 30, "")]])
    assert "\n" not in terminal.getvalue()
    assert "\x1b[3;1H" + "x" * 30 + "\x1b[4;1H" in terminal.getvalue(), "no clearing behind a full row"
    terminal.truncate(0)
    screen.show([[("one", "bold")], [("2", "")], [("x" * 30, "")]])
    assert terminal.getvalue().strip("\0") == "\x1b[2;1H2\x1b[K"
    terminal.truncate(0)
    screen.show([[("one", "bold")], [("2", "")]])
    assert terminal.getvalue().strip("\0") == "\x1b[3;1H\x1b[K", "what is no longer there is cleared"
    size[0] = 20
    screen.show([[("one", "bold")], [("2", "")]])
    assert "\x1b[2J\x1b[1;1H" in terminal.getvalue()
    screen.leave()
    assert terminal.getvalue().endswith(LEAVE)
    assert "\x1b[?1049l" in LEAVE
    assert "\x1b[?25l" in ENTER


def test_a_terminal_that_is_in_the_middle_of_a_write_is_given_back_too() -> None:
    """Ctrl-Z on a slow line: a stream refuses to be written by the handler of a signal that came in its own write."""

    class Busy(Terminal):
        def write(self, text: str) -> int:
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

        def fileno(self) -> int:
            return written

    read, written = os.pipe()
    screen_on(Busy(), [30, 4]).leave()
    assert os.read(read, 1000) == LEAVE.encode()
    for descriptor in (read, written):
        os.close(descriptor)


def test_without_colours_there_are_none() -> None:
    terminal = Terminal()
    screen_on(terminal, [80, 24], no_color=True).show(live_lines(SNAPSHOT, View(80, 24, UNICODE)))
    assert re.findall(r"\x1b\[(?:3[0-7]|9[0-7]|38|48)[;m]", terminal.getvalue()) == []
    assert "●" in terminal.getvalue()
    coloured = Terminal()
    screen_on(coloured, [80, 24], color_system="standard").show(live_lines(SNAPSHOT, View(80, 24, UNICODE)))
    assert "\x1b[1;32m" in coloured.getvalue()


def test_hostile_text_steers_no_terminal_and_a_narrow_encoding_takes_everything() -> None:
    evil = "\x1b]52;c;aGk=\x07\x1b[2J\x9b31m\r\nsecond\u202eline 世界 \x00"
    snapshot = replace(
        SNAPSHOT, running=replace(RUNNING, note=evil, what=evil), marks=(replace(MARKS[0], reason=evil, title=evil),)
    )
    for encoding in ("utf-8", "latin-1", "ascii"):
        terminal = Terminal()
        terminal.encoding = encoding
        screen_on(terminal, [80, 24]).show(live_lines(snapshot, View(80, 24, glyphs_for(encoding))))
        text = terminal.getvalue()
        text.encode(encoding)
        assert not re.search(r"\x1b\]|\x9b|\x07|\x00|\r|\n|\u202e", text)
        assert text.count("\x1b[2J") == 1


def test_a_console_of_rich_is_not_needed_for_a_size() -> None:
    assert Screen(Console(file=io.StringIO())).size == (80, 24)
