"""The model card: what comes from outside cannot end a table, a fence or the front matter, nor become markup."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.report.card import Card, Example, Kept, Measured, card_text, snippet
from agent.report.markdown import code, fenced, prose

CARD = Card(
    name="night-winner",
    headline="holdout (n=200): untrained 19.0% -> baseline 42.0% -> winner 71.0%",
    provisional="",
    base="org/model",
    base_revision="0" * 40,
    license=None,
    how="adapters",
    metric="pass_rate",
    score=0.715,
    score_on="holdout",
    dataset="builtin:addition",
    measured=(Measured("winner", "holdout", "71.0%", "65.0% to 77.0%", 200),),
    gains=("winner against baseline on the holdout: +29.0pp [+22.6pp, +35.4pp]",),
    kept=(Kept(1, "raise the rate", "rate-up", "+27.3pp", "keep, gain", "244a9c3"),),
    unchanged="Nothing.",
    judged=("look 2",),
    limits=("not elsewhere",),
    data=(("data set", "builtin:addition"),),
    recipe="seed: 0\n",
    origin=(("campaign", "night"),),
    versions=(("torch", "2.6.0"),),
    machine="trained on a processor",
    checks=("4 of 4",),
    example=Example("12+34=", [1, 2], 6, "46"),
    commands=("raft-agent replay 1",),
)
NASTY = (
    "x\n---\nlicense: mit\n```\n| a | b |\n# head\n<script>alert(1)</script> [l](http://e) ![i](x) \x1b[31m {{ 7*7 }}"
)


def front_of(text: str) -> dict[str, object]:
    begin, front, _ = re.split(r"^---\n", text, maxsplit=2, flags=re.M)
    assert not begin
    found = yaml.safe_load(front)
    assert isinstance(found, dict)
    return found


def test_a_card_says_what_was_measured() -> None:
    text = card_text(CARD)
    front = front_of(text)
    assert (front["base_model"], front["license"], front["library_name"]) == ("org/model", "unknown", "transformers")
    result = front["model-index"][0]["results"][0]  # type: ignore[index]
    assert result["metrics"] == [{"type": "pass_rate", "name": "pass_rate on holdout", "value": 0.715}]
    assert "| winner | holdout | 71.0% | 65.0% to 77.0% | 200 |" in text
    assert "| 1 | raise the rate (rate-up) | +27.3pp | keep, gain | `244a9c3` |" in text
    assert "- winner against baseline on the holdout: +29.0pp [+22.6pp, +35.4pp]" in text
    assert "**Provisional:**" not in text
    assert "**Provisional:** not finished" in card_text(dataclasses.replace(CARD, provisional="not finished"))
    empty = card_text(dataclasses.replace(CARD, kept=(), measured=(), score=None))
    assert "Nothing." in empty
    assert front_of(empty)["model-index"] == [{"name": "night-winner", "results": []}]


def everywhere(text: str) -> Card:
    """The text wherever one from outside may come."""
    return dataclasses.replace(
        CARD,
        name=text,
        headline=text,
        provisional=text or "x",
        base=text,
        base_revision=text or "x",
        license=text or None,
        how=text,
        score_on=text,
        dataset=text,
        measured=(Measured(text, text, text, text, None),),
        gains=(text,),
        kept=(Kept(1, text, text, text, text, text),),
        judged=(text,),
        limits=(text,),
        data=((text, text),),
        recipe=text,
        origin=((text, text),),
        versions=((text, text),),
        machine=text,
        checks=(text,),
        example=Example(text, [1], 6, text),
        commands=(text,),
    )


def outside_of_fences(text: str) -> list[str]:
    """Lines that Markdown reads, without those of fenced blocks. Every block that is opened has to be closed."""
    lines, fence = [], ""
    for line in text.split("\n"):
        opens = re.match(r"`{3,}(?=[^`]*$)|~{3,}", line)
        if not fence and opens:
            fence = opens.group()
        elif fence and line.startswith(fence) and not line.strip("`"):
            fence = ""
        elif not fence:
            lines.append(line)
    assert not fence
    return lines


@pytest.mark.parametrize("text", [NASTY, "```\n", "---", "</details>", "a|b`c``d", "- x", "1. x", "# x", "| - | - |"])
def test_hostile_text_stays_text(text: str) -> None:
    check(text)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=40) | st.text("`~|-#<>[]()!\\\n {}%_*&:.1=+", max_size=30))
def test_any_text_stays_text(text: str) -> None:
    check(text)


def check(text: str) -> None:
    made, plain = card_text(everywhere(text)), card_text(everywhere("plain"))
    assert set(front_of(made)) == set(front_of(plain))
    lines, expected = outside_of_fences(made), outside_of_fences(plain)
    assert len(lines) == len(expected)
    for line, one in zip(lines, expected, strict=True):
        assert cells(line) == cells(one), line
    body = re.sub(r"(?<![`\\])(`+)(?!`).*?(?<!`)\1(?!`)", "", "\n".join(lines).split("\n---\n", 1)[1])
    assert re.search(r"(?<!\\)<script", body) is None
    assert len(re.findall(r"(?<!\\)</details>", body)) == 1
    assert [line for line in lines if re.match(r"#+\s", line)][1:] == [
        line for line in expected if re.match(r"#+\s", line)
    ][1:]
    compile(snippet(Example(text, [1], 6, text)), "card", "exec")


def cells(line: str) -> int:
    """Of a table's row, by the bars that are not escaped."""
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) if line.startswith("|") else 0


def test_the_filters() -> None:
    assert prose("a|b\n`c` <d>") == "a\\|b \\`c\\` \\<d>"
    assert [prose(text) for text in ("# a", "- a", "1. a", "+3.1pp", "0.0%", "-")] == [
        "\\# a", "\\- a", "1\\. a", "+3.1pp", "0.0%", "\\-",
    ]  # fmt: skip
    assert code("a``b") == "```a``b```"
    assert fenced("```\nx\n````", "yaml") == "`````yaml\n```\nx\n````\n`````"
    assert snippet(Example(None, [1, 2], 6, "")).startswith("import torch\n")


def test_a_secret_is_no_part_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "very-secret-value")
    assert "very-secret-value" not in card_text(everywhere("with very-secret-value inside"))
