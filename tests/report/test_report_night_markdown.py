"""`report.md` and `summary.json`: nothing in a night's texts becomes markup, and what is written is read back."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import made_nights
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from agent.errors import InvalidFile
from agent.report.look import counts
from agent.report.markdown import code, fenced, prose, table
from agent.report.night import DISCARDED, FORMAT, Crash, Estimate, Gain, NearMiss, Next, Night, Shown
from agent.report.night_markdown import cell, markdown
from agent.report.summary import night_from, read_summary, summary_of, summary_text
from agent.text import clean, one_line

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
PIECES = (
    "|", "||", "\\|", "`", "``", "```", "\n", "\n\n", "# ", "- ", "1. ", "> ", "---", "===", "<b>", "<script>", "<!--",
    "&lt;", "&#60;", "[a](javascript:x)", "![a](http://x)", "[a]: http://x", "[a][b]", "http://x.y", "www.x.y",
    "a@b.cd", "<http://x>", "*", "**", "__", "_a_", "~~", "~", "\\", "\u202e", "\x1b[31m", "\t", " ", "    ", "a", "1",
    "é", ":-", "+", "$x$",
)  # fmt: skip
HOSTILE = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
ALLOWED_INLINE = {"text", "code_inline", "strong_open", "strong_close", "softbreak"}


def inline(text: str) -> list[Any]:
    return [child for token in PARSER.parse(text) for child in token.children or ()]


@given(HOSTILE)
@example("a] (b)")
@example("[x](y)")
@settings(max_examples=200, deadline=None)
def test_a_text_from_outside_is_shown_as_it_is(text: str) -> None:
    for shown in (prose(text), f"- {prose(text)}", f"**{prose(text)}**" if one_line(text) else ""):
        tokens = PARSER.parse(shown)
        assert {token.type for token in inline(shown)} <= ALLOWED_INLINE
        blocks = {token.type for token in tokens}
        assert blocks <= {"paragraph_open", "paragraph_close", "inline", "bullet_list_open", "bullet_list_close",
                          "list_item_open", "list_item_close"}  # fmt: skip
    words = "".join(token.content for token in inline(prose(text)))
    assert words.replace("¦", "|") == one_line(text).replace("¦", "|")


@given(st.lists(st.tuples(HOSTILE, HOSTILE), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_no_text_breaks_a_table(rows: list[tuple[str, str]]) -> None:
    shown = "\n".join(table(["one", "two"], [[cell(one), code(two)] for one, two in rows]))
    tokens = PARSER.parse(shown)
    assert [token.type for token in tokens if token.type in ("table_open", "tr_open", "th_open", "td_open")] == [
        "table_open", "tr_open", "th_open", "th_open", *["tr_open", "td_open", "td_open"] * len(rows),
    ]  # fmt: skip
    assert {token.type for token in inline(shown)} <= ALLOWED_INLINE
    assert not {token.type for token in tokens} & {"html_block", "heading_open", "fence"}


@given(HOSTILE)
@settings(max_examples=100, deadline=None)
def test_no_text_ends_a_block_of_code(text: str) -> None:
    tokens = PARSER.parse(f"{fenced(text)}\n\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content == f"{clean(text)}\n"


def nights() -> list[Night]:
    made = [getattr(made_nights, name) for name in ("good", "no_keeps", "only_crashes", "interrupted")]
    return [one() for one in made]


@given(text=HOSTILE)
@settings(max_examples=25, deadline=None)
def test_a_hostile_night_has_the_parts_of_any_other(text: str) -> None:
    parts = [token.type for token in PARSER.parse(markdown(night(""))) if not token.type.endswith("_close")]
    found = [token.type for token in PARSER.parse(markdown(night(text))) if not token.type.endswith("_close")]
    assert found == parts
    assert {token.type for token in inline(markdown(night(text)))} <= ALLOWED_INLINE


def night(text: str) -> Night:
    text = f"a{text}"
    return dataclasses.replace(
        made_nights.no_keeps(),
        campaign=text, verdict=text, stopped=text, warnings=(text, text), machine=text, metric="pass_rate",
        near_misses=(NearMiss(1, text, Estimate(0.1, 0.0, 0.2), 3, 60.0, text),),
        crashes=(Crash(2, text, text, text, (text,), text),),
        next=(Next(text, text, 0.5),), next_note=text, limits=(text,), shared_layer=(text,),
        samples=(Shown(text, text, True, text, None),), samples_of=text, reproduce=((text, text),),
    )  # fmt: skip


def test_the_first_screen_comes_first() -> None:
    for one in nights():
        lines = markdown(one).splitlines()
        assert lines[0] == f"# {one.campaign}"
        assert lines[2].startswith("**")
        assert max((len(line) for line in lines if line.startswith("|")), default=0) < 400


def test_a_metric_that_is_no_rate_has_no_percent() -> None:
    gain = Gain("baseline", "untrained", "search", Estimate(0.25, 0.1, 0.4))
    shown = markdown(dataclasses.replace(made_nights.good(), metric="mean_reward", gains=(gain,)))
    assert "| baseline - untrained | +0.25 (+0.1 to +0.4)" in shown


# --- summary.json ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", nights(), ids=lambda one: one.campaign)
def test_a_summary_is_the_night(one: Night) -> None:
    text = summary_text(one)
    assert text.startswith('{"format":1,')
    assert summary_of(night_from(json.loads(text))) == summary_of(one)


def test_what_is_not_finite_is_unknown() -> None:
    estimate = Estimate(0.5, math.nan, math.inf)
    one = dataclasses.replace(made_nights.good(), gains=(Gain("a", "b", "search", estimate),))
    read = night_from(json.loads(summary_text(one)))
    assert read.gains[0].delta == Estimate(0.5, None, None)


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    told = summary_of(made_nights.good())
    told["later"] = {"a": 1}
    told["steps"][0]["later"] = 1
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(told))
    assert summary_of(read_summary(path)) == summary_of(made_nights.good())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "is no JSON"),
        ("[]", "is no summary of a campaign"),
        ('{"campaign": "x"}', "is no summary of a campaign"),
        (f'{{"format": {FORMAT + 1}}}', "was written by a newer raft-agent"),
        ('{"format": 1, "campaign": "x"}', "Field required"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_what_is_no_summary_is_refused_with_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(text)
    with pytest.raises(InvalidFile) as error:
        read_summary(path)
    assert words in error.value.message
    assert error.value.where == str(path)


def test_secrets_of_a_sample_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "sesame-open-1234")
    shown = (Shown("what is the key?", "sesame-open-1234", None, "x", None),)
    one = dataclasses.replace(made_nights.good(), samples=shown)
    assert "sesame-open-1234" not in summary_text(one)
    assert "sesame-open-1234" not in markdown(one)


def test_page_and_text_break_the_discarded_down_alike() -> None:
    """A real night's page left 7 promising ones of 46 out."""
    made = dataclasses.replace(
        made_nights.no_keeps(), counts={"ideas": 45, "keep": 0, "discard": 45} | dict.fromkeys(DISCARDED, 5)
    )
    (row,) = (row for row in counts(made) if row[0] == "discard")
    assert row == ("discard", 45, ", ".join(f"5 {kind}" for kind in DISCARDED))
    assert f"(discarded: {row[2]})" in markdown(made)
