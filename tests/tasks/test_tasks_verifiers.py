"""Text verifiers: what is extracted, what passes, what is near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import DataError, RecipeError, UsageError
from agent.recipe.schema import Verifier
from agent.tasks.example import Example
from agent.tasks.layers import Layers
from agent.tasks.verifiers import Verdict, build_verifier, refuse_hopeless_data


def check(kind: str, response: str, answer: str, **settings: Any) -> Verdict:
    config = Verifier.model_validate({"kind": kind} | settings)
    with build_verifier(config, base=Path()) as verifier:
        verdict = verifier.verify(response, Example("row", "question", answer))
        assert verifier.verify_many([(response, Example("row", "question", answer))]) == [verdict]
    assert verdict.score == float(verdict.passed)
    assert not (verdict.passed and verdict.near)
    return verdict


def outcome(verdict: Verdict) -> str:
    """Letters for passed, formatted, near."""
    return "".join(
        letter for letter, flag in zip("PFN", (verdict.passed, verdict.formatted, verdict.near), strict=True) if flag
    )


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("46", "46", "PF"),
        (" 46\n", "46", "PF"),
        ("46.0", "46", "FN"),
        ("046", "46", "FN"),
        ("47", "46", "F"),
        ("146", "46", "F"),
        ("=46", "46", "N"),
        ("it is 46.", "46", "N"),
        ("", "46", ""),
        ("Paris", "Paris", "PF"),
        ("paris", "Paris", "FN"),
        ("It is Paris.", "Paris", "FN"),
        ("Parisian", "Paris", "F"),
        ("A", "A", "PF"),
        ("a cat", "A", "F"),
    ],
)
def test_exact(response: str, answer: str, expected: str) -> None:
    assert outcome(check("exact", response, answer)) == expected


@pytest.mark.parametrize(
    ("response", "answer", "expected", "extracted"),
    [
        ("7 * 8 = 56", "56", "PF", "56"),
        ("7 * 8 = 56.", "56", "PF", "56"),
        ("It costs $1,000.00.", "1000", "PF", "$1,000.00"),
        ("so x = -3", "-3", "PF", "-3"),
        ("so x = 3", "-3", "F", "3"),
        ("56 is 7 times 8", "56", "FN", "8"),
        ("fifty-six", "56", "", None),
        ("156", "56", "F", "156"),
        ("0.50", ".5", "PF", "0.50"),
        ("The answer is 72", "1,072", "F", "72"),
    ],
)
def test_last_number(response: str, answer: str, expected: str, extracted: str | None) -> None:
    verdict = check("last_number", response, answer)
    assert (outcome(verdict), verdict.answer) == (expected, extracted)


def test_tolerance_is_inclusive_and_for_numbers_only() -> None:
    assert check("last_number", "about 3.14", "3.15", tolerance=0.01).passed
    assert not check("last_number", "about 3.139", "3.15", tolerance=0.01).passed
    assert check("exact", "46.0", "46", tolerance=0.001).passed
    assert not check("delimited", "<answer>Pari</answer>", "Paris", tolerance=1.0).passed


def test_relative_tolerance() -> None:
    assert check("last_number", "about 98", "100", relative_tolerance=0.02).passed
    assert not check("last_number", "about 97", "100", relative_tolerance=0.02).passed
    assert check("exact", "98", "100", relative_tolerance=0.02).passed
    assert check("delimited", "98, so <answer>7</answer>", "100", relative_tolerance=0.02).near


@pytest.mark.parametrize(
    ("response", "answer", "expected", "extracted"),
    [
        ("<answer>56</answer>", "56", "PF", "56"),
        ("So <answer> 56.0 </answer>.", "56", "PF", "56.0"),
        ("<answer>1,056</answer>", "1056", "PF", "1,056"),
        ("<answer>Paris</answer>", "Paris", "PF", "Paris"),
        ("<answer>paris</answer>", "Paris", "FN", "paris"),
        ("<answer>7 * 8 = 56</answer>", "56", "FN", "7 * 8 = 56"),
        ("<answer>1</answer> no, <answer>56</answer>", "56", "PF", "56"),
        ("<answer>56</answer> no, <answer>1</answer>", "56", "FN", "1"),
        ("<answer>1</answer> <answer>56", "56", "FN", "1"),
        ("<answer> is where <answer>56</answer>", "56", "PF", "56"),
        ("<answer>56</answer></answer>", "56", "PF", "56"),
        ("<answer>\n56\n</answer>", "56", "PF", "56"),
        ("The answer is 56", "56", "N", None),
        ("<answer>56", "56", "N", None),
        ("56</answer>", "56", "N", None),
        ("</answer>56<answer>", "56", "N", None),
        ("<answer></answer> 56", "56", "N", None),
        ("<ANSWER>56</ANSWER>", "56", "N", None),
    ],
)
def test_delimited(response: str, answer: str, expected: str, extracted: str | None) -> None:
    verdict = check("delimited", response, answer)
    assert (outcome(verdict), verdict.answer) == (expected, extracted)


@pytest.mark.parametrize(
    ("response", "extracted"),
    [("$5$ or $6$", "6"), ("$5$ costs $6", "5"), ("$5", None), ("$$", None), ("5", None)],
)
def test_equal_delimiters_pair_up_from_the_left(response: str, extracted: str | None) -> None:
    assert check("delimited", response, "7", open="$", close="$").answer == extracted


def test_delimiters_are_not_patterns() -> None:
    assert check("delimited", "(a.b) \\boxed{56}", "56", open="\\boxed{", close="}").passed


@given(
    st.integers(-(10**9), 10**9), st.text(alphabet="ab <>/\n", max_size=20), st.text(alphabet="ab </\n", max_size=20)
)
def test_a_delimited_answer_is_found_amid_anything_without_a_later_pair(value: int, before: str, after: str) -> None:
    assert check("delimited", f"{before}<answer>{value}</answer>{after}", str(value)).passed


@pytest.mark.parametrize("key", ["open", "close"])
def test_an_empty_delimiter_is_refused(key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_verifier(Verifier.model_validate({"kind": "delimited", key: " "}), base=Path())
    assert caught.value.key == f"task.verifier.{key}"


def test_code_needs_the_flag_by_name_where_there_are_no_walls(bare: Layers) -> None:
    with pytest.raises(UsageError, match="--allow-untrusted-code") as caught:
        build_verifier(Verifier(kind="python_tests"), base=Path(), allow_untrusted_code=False)
    assert "rlimits; no namespaces (unshare: not here), no Landlock, no seccomp" in str(caught.value)
    with build_verifier(Verifier(kind="python_tests"), base=Path(), allow_untrusted_code=True) as verifier:
        assert verifier.kept_in_by() == str(bare)


def test_code_needs_no_flag_where_there_are_walls(walls: Layers) -> None:
    with build_verifier(Verifier(kind="python_tests"), base=Path()) as verifier:
        assert "rlimits" in (verifier.kept_in_by() or "")
    assert build_verifier(Verifier(kind="exact"), base=Path()).kept_in_by() is None


def hopeless(config: dict[str, Any], *answers: str) -> str | None:
    """What is said against the data, or None."""
    settings = Verifier.model_validate(config)
    rows = [Example(str(n), "question", answer) for n, answer in enumerate(answers)]
    with build_verifier(settings, base=Path()) as verifier:
        try:
            refuse_hopeless_data(verifier, settings, rows, dataset="jsonl:my.jsonl")
        except DataError as error:
            return str(error)
    return None


def test_data_whose_own_answers_never_pass_is_refused() -> None:
    said = hopeless({"kind": "last_number"}, "3 + 4 is 7.\n#### 7", "so 8\n#### 8")
    assert said is not None
    assert "none of the first 2 rows' own answers" in said
    assert "reads '7'" in said
    assert "task.answer_after" in said
    assert hopeless({"kind": "last_number"}, "yes", "no") is not None


@pytest.mark.parametrize(
    ("config", "answers"),
    [
        ({"kind": "last_number"}, ["7", "a word"]),
        ({"kind": "exact"}, ["a word"]),
        ({"kind": "delimited", "open": "[", "close": "]"}, ["7"]),
        ({"kind": "delimited", "open": "{}", "close": "{}"}, ["7"]),
    ],
)
def test_data_of_which_one_answer_passes_is_not(config: dict[str, Any], answers: list[str]) -> None:
    assert hopeless(config, *answers) is None


def test_rows_whose_own_answers_fail_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    assert hopeless({"kind": "last_number"}, "7", "a word", "8", "none") is None
    assert "rejects the own answers of 2 of the first 4 rows, 1 ('a word') among them" in caplog.text
    assert hopeless({"kind": "last_number"}, "7", "8") is None
    assert len(caplog.records) == 1


@pytest.mark.one_in(3)
@pytest.mark.parametrize("response", ["", " \n", "\x00", "\ud800", "a" * 20_000])
@pytest.mark.parametrize(
    "config",
    [
        {"kind": "exact"},
        {"kind": "last_number"},
        {"kind": "delimited"},
        {"kind": "regex", "pattern": "= (.*)"},
        {"kind": "python_tests"},
        {"kind": "python:same.py:same"},
    ],
    ids=lambda config: config["kind"],
)
def test_odd_responses_are_wrong_and_nothing_worse(config: dict[str, Any], response: str, tmp_path: Path) -> None:
    (tmp_path / "same.py").write_text("def same(response, row):\n    return response == row['answer']\n")
    row = Example("row", "question", "56", tests="assert add(1, 2) == 3")
    with build_verifier(Verifier.model_validate(config), base=tmp_path, allow_untrusted_code=True) as verifier:
        verdict = verifier.verify(response, row)
    assert (verdict.score, verdict.passed, verdict.near, verdict.fault) == (0.0, False, False, False)


@pytest.mark.parametrize("response", ["", " ", "<answer></answer>"])
@pytest.mark.parametrize("kind", ["exact", "last_number", "delimited"])
def test_an_empty_right_answer_is_never_found(kind: str, response: str) -> None:
    assert not check(kind, response, "").passed
    assert not check(kind, response, "").near
