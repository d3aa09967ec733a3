"""The screen of one verdict: it fits, whatever the numbers, and cuts what is long with a word on how to see it."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from agent.report.evidence import DIFF_LINES, diff_lines, prompts_table, screen
from agent.report.story import GuardLine, Paired, PromptLine, RunLine, Story

RUN = RunLine("001-search-s1000", "comparator", 999_999, {"search": 1.0, "confirm": 1.0}, 99_999, 9_999_999, 123_456.0,
              123.45, 35_999.0, "resource")  # fmt: skip
PAIRED = Paired("confirm", "untrained model", 100_000, 99_999, 99_999, 99_999, 10, 10, 1.0, 1.0, -1.0, -12.3456,
                12.3456, 0.9999, 1.0, 1.0, 1.0, 99_999.9, 1.0, 99)  # fmt: skip
GUARD = GuardLine("mean_reward", 1.0, 1.0, "%", "below the incumbent's by more than 0.0123456, beyond noise", "")
STORY = Story(
    number=123, campaign="night", title="learning-rate: " + "a long title " * 20, outcome="discard", kind="guard",
    reason="guard: " + "many words " * 60, rule="a rule " * 30, metric="pass_rate", why=(("claim", "words " * 200),),
    runs=(RUN, RUN), paired=(PAIRED, PAIRED), level=0.0123, level_left=0.0377, alpha=0.05, looks=("seeds " * 30,),
    guards=(GUARD,), flags=("a flag " * 30,), watches=("a watch " * 30,), fixes=("a fix " * 30,), holdout="",
        crash=(("died of", "a line " * 40),),
    commit="a" * 40, branch="raft/night/exp/123-" + "slug-" * 8,
)  # fmt: skip


def lines(renderable: object, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(renderable)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100])
def test_the_largest_numbers_and_the_longest_words_fit(width: int) -> None:
    shown = lines(screen(STORY, width=width), width)
    assert max(map(len, shown)) <= width
    assert not [line for line in shown if "…" in line]
    assert any(line.endswith(" ...") for line in shown), "prose is cut, and says so"


def test_what_is_not_known_is_left_empty() -> None:
    bare = Story(
        number=1, campaign="", title="", outcome="open", kind="", reason="planned", rule="", metric="metric", why=(),
        runs=(RunLine("r", "search", None, {}, None, None, None, None, None, "running"),), paired=(), level=None,
        level_left=None, alpha=0.05, looks=(), guards=(), flags=(), watches=(), fixes=(), crash=(), holdout="",
        commit=None, branch=None,
    )  # fmt: skip
    shown = " ".join(lines(screen(bare, width=80), 80))
    assert "None" not in shown
    assert "nan" not in shown
    assert "level" not in shown


def test_a_long_diff_is_cut_and_says_how_to_see_all_of_it() -> None:
    diff = "\n".join(f"+line {n}" for n in range(DIFF_LINES + 5))
    cut = diff_lines(diff, number=7, whole=False)
    assert cut[-1] == "... 5 more lines: raft-agent show 7 --diff"
    assert len(cut) == DIFF_LINES + 1
    assert diff_lines(diff, number=7, whole=True) == diff.splitlines()


def test_the_prompts_that_differ_most() -> None:
    found = [PromptLine(f"confirm-{n}", 0, 4, 4, 4, 1.0) for n in range(50)]
    shown = lines(prompts_table(found, most=3), 80)
    assert len(shown) == 4
    assert shown[1].split() == ["confirm-0", "0", "of", "4", "4", "of", "4", "+1.00"]


def test_a_reward_is_no_percentage() -> None:
    paired = Paired("confirm", "incumbent", 200, 70, 20, 110, 2, 2, 1.3, 1.25, 0.05, 0.01, 0.09, 0.02, 0.02, 0.015,
                    0.012, 9.0, 0.01, 3)  # fmt: skip
    run = RunLine("001-search-s1000", "search", 1000, {"search": 1.3}, 20, 500, 1000.0, 1.5, 60.0, "done")
    story = dataclasses.replace(
        STORY,
        metric="mean_reward",
        title="",
        reason="",
        rule="",
        why=(),
        runs=(run,),
        paired=(paired,),
        looks=(),
        guards=(),
        flags=(),
        watches=(),
        fixes=(),
        crash=(),
    )
    shown = "\n".join(" ".join(line.split()) for line in lines(screen(story, width=80), 80))
    for row in (
        "search 1000 1.300",
        "candidate, incumbent 1.300, 1.250",
        "difference +0.050",
        "95% interval [+0.010, +0.090]",
        "error 0.020, 9.0 df",
        "from prompts, runs 0.015, 0.012",
        "run noise sigma 0.010, 3 df",
    ):
        assert row in shown, row
    assert "%" not in shown.replace("95% interval", "")
    assert "pp" not in shown
