"""steer.md: every line is prose, an instruction or a problem, and what is barred or asked for is so in the ranking."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_fixtures import BOOK, attempt, tiny

from agent.plan.asked import asked_for
from agent.plan.memory import Attempt
from agent.plan.planner import plan
from agent.plan.proposal import Proposal
from agent.plan.steer import EXAMPLE, FREE, Instruction, Steering, read_steering
from agent.recipe.schema import leaf_keys


def read(text: str, *, only: str | None = None) -> Steering:
    return read_steering(text, BOOK, only=only)


def one(text: str) -> Instruction:
    steering = read(f"- {text}")
    assert not steering.problems, steering.problems
    return steering.instructions[0]


def problem(text: str, *, only: str | None = None) -> str:
    steering = read(f"- {text}", only=only)
    assert not steering.instructions
    return steering.problems[0].words


# --- forms -------------------------------------------------------------------------------------------------


def test_every_form_is_read() -> None:
    assert (one("pin axis prompt").kind, one("pin axis prompt").name) == ("pin", "prompt")
    assert one("ban hypothesis refine-learning-rate").of == "hypothesis"
    assert one("ban key learner.lr_schedule").name == "learner.lr_schedule"
    assert one("try hypothesis lr-exponential").name == "lr-exponential"
    assert one("try lr-exponential/standard").variant == "standard"
    assert one("try learner.learning_rate 2e-4").values == {"learner.learning_rate": 2e-4}
    several = one("try learner.learning_rate: 2e-4, learner.warmup: 0.1").values
    assert several == {"learner.learning_rate": 2e-4, "learner.warmup": 0.1}
    assert one('try prompt.system: "Think, then answer: briefly"').values == {
        "prompt.system": "Think, then answer: briefly"
    }
    assert one("try learner.lr_schedule: {kind: linear}").values == {"learner.lr_schedule": {"kind": "linear"}}
    assert one("stop after this one").kind == "stop"
    assert one("`PAUSE  after this one`").text == "pause after this one"


def test_prose_is_passed_over_and_the_example_holds() -> None:
    text = "# pin axis prompt\n\npin axis prompt\n> - ban axis batch\n```\n- ban axis batch\n```\n*ban* nothing\n"
    assert read(f"{text}<!-- - ban axis batch\n- ban axis batch\n--> \n---\n- \n") == FREE
    example = read(EXAMPLE)
    assert not example.problems
    assert {one.kind for one in example.instructions} == {"pin", "ban", "try"}
    assert read("\ufeff- pin axis prompt\r\n* ban axis batch <!-- why -->\r+ stop after this one").problems == ()


@pytest.mark.parametrize(
    "line",
    ["1. ban axis batch", "12) ban axis batch", "    - ban axis batch", "\t* ban axis batch", "  \t3.  ban axis batch",
     "            + ban axis batch"],
)  # fmt: skip
def test_a_list_may_be_numbered_and_indented(line: str) -> None:
    steering = read(f"Tonight:\n{line}\n")
    assert [(one.line, one.kind, one.name) for one in steering.instructions] == [(2, "ban", "batch")]
    assert not steering.problems


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("             - ban axis batch", "13 columns to the right"),
        ("\t\t\t\t1. ban axis batch", "16 columns to the right"),
        ("-ban axis batch", "is no list item: write - ban ..., with a space"),
        ("1.ban axis batch", "is no list item: write - ban ..., with a space"),
        ("\u2022 Ban axis batch", "is no list item: write - ban ..., with a space"),
        ("\u2013 ban axis batch", "is no list item: write - ban ..., with a space"),
    ],
)
def test_what_looks_like_an_item_and_is_none_is_a_problem(line: str, words: str) -> None:
    steering = read(f"{line}\n- pin axis prompt\n")
    assert [one.text for one in steering.instructions] == ["pin axis prompt"]
    assert [(problem.line, words in problem.text) for problem in steering.problems] == [(1, True)]


def test_fenced_code_is_passed_over_also_in_a_list() -> None:
    text = "- pin axis prompt\n\t```\n\t- ban axis batch\n\t1. ban axis batch\n\t```\n"
    assert read(text) == read("- pin axis prompt\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pinn axis prompt", "did you mean pin?"),
        ("buy milk", "prose is not in a list"),
        ("pin axis promt", "did you mean prompt?"),
        ("pin hypothesis lr-exponental", "did you mean lr-exponential?"),
        ("pin key learner.warmup", "pin axis NAME, or pin hypothesis NAME"),
        ("ban key learner.learning_rat", "did you mean learner.learning_rate?"),
        ("ban", "ban what?"),
        ("try learner.learning_rate", "needs a value"),
        ("try learner.learning_rate:", "needs a value"),
        ("try learner.learning_rte 2e-4", "did you mean learner.learning_rate?"),
        ("try lr-exponential/standrd", "did you mean standard?"),
        ("try learner: {learning_rate: 1}", "is a whole section"),
        ("try learner.warmup: [1", "cannot be read"),
        ("try prompt.system: one, two: three", "no key 'two'"),
        ("stop", "write stop after this one"),
        ("pause after tomorrow", "write pause after this one"),
    ],
)
def test_what_is_wrong_is_said_with_the_nearest_right_name(text: str, words: str) -> None:
    told = problem(text)
    assert told.startswith("steer.md:1: ")
    assert words in told


def test_what_is_wrong_leaves_the_rest_in_force() -> None:
    steering = read("- nonsense\n- pin axis prompt\n- pin axis prompt\n<!-- open\n- ban axis batch\n")
    assert [one.text for one in steering.instructions] == ["pin axis prompt"]
    assert [problem.line for problem in steering.problems] == [1, 3, 4]


def test_a_pin_stays_inside_of_a_directed_campaign() -> None:
    assert "--only batch" in problem("pin axis prompt", only="batch")
    assert "--only lr-peak" in problem("pin hypothesis lr-exponential", only="lr-peak")
    assert not read("- pin axis learning-rate\n- pin hypothesis lr-peak", only="lr-peak").problems
    assert not read("- pin hypothesis lr-peak\n- pin hypothesis refine-learning-rate", only="learning-rate").problems


WORDS = st.sampled_from(
    ["pin", "ban", "try", "stop", "after this one", "axis", "hypothesis", "key", "prompt", "lr-peak", "lr-peak/up", ":",
     "learner.learning_rate", "learner", "seed", "2e-4", "[", "{", "}", "'", '"', ",", "<!--", "-->", "```", "&a", "*a",
     "!!python/x", "\x00", "\u2028", "null", "~", "9" * 50, "/", "`", "%"]
)  # fmt: skip
MARKS = st.sampled_from(["- ", "* ", "1. ", "23) ", "    - ", "\t+ ", f"{' ' * 40}- "])
ITEM = st.tuples(MARKS, st.lists(WORDS, max_size=7)).map(lambda item: item[0] + " ".join(item[1]))
TEXT = st.lists(st.one_of(ITEM, st.text(max_size=40)), max_size=8).map("\n".join)


MARKED = re.compile(r"[ \t]*(?:[-*+]|1\.|23\))[ \t]+\S")


@given(TEXT)
def test_any_text_is_read_and_every_item_is_an_instruction_or_a_problem(text: str) -> None:
    steering = read(text)
    lines = [one.line for one in [*steering.instructions, *steering.problems]]
    hides = any("has no end" in problem.text for problem in steering.problems)
    assert len(lines) - len(set(lines)) <= hides  # an item may begin a comment
    if "<!--" not in text and "```" not in text and "~~~" not in text and "\r" not in text:
        items = [n for n, line in enumerate(text.split("\n"), 1) if MARKED.match(line)]
        assert set(items) <= set(lines)
        assert not hides
    assert read(text) == steering


# --- in the ranking ----------------------------------------------------------------------------------------


def test_a_pin_leaves_only_what_it_names_and_a_ban_takes_out() -> None:
    pinned = plan(BOOK, recipe=tiny(), steering=read("- pin axis learning-rate\n- pin hypothesis batch-packing"))
    assert {proposal.axis for proposal in pinned.proposals} <= {"learning-rate", "batch"}
    assert {p.hypothesis for p in pinned.proposals if p.axis == "batch"} <= {"batch-packing"}
    reasons = {skip.hypothesis: skip.reason for skip in pinned.skipped}
    assert "pinned by steer.md:1 (pin axis learning-rate)" in reasons["batch-prompts"]
    banned = plan(BOOK, recipe=tiny(), steering=read("- ban axis batch\n- ban key learner.learning_rate"))
    assert "batch" not in {proposal.axis for proposal in banned.proposals}
    assert all("learner.learning_rate" not in proposal.values for proposal in banned.proposals)
    reasons = {skip.hypothesis: skip.reason for skip in banned.skipped}
    assert reasons["batch-prompts"] == "banned by steer.md:1 (ban axis batch)"
    assert "learner.learning_rate, which is banned by steer.md:2" in reasons["lr-peak"]


def test_a_banned_section_bars_all_below_it_and_a_ban_counts_more_than_a_pin() -> None:
    steering = read("- ban key learner.lr_schedule\n- pin axis learning-rate\n- ban hypothesis lr-peak")
    ranking = plan(BOOK, recipe=tiny(), steering=steering)
    assert all("lr_schedule" not in key for proposal in ranking.proposals for key in proposal.values)
    assert "lr-peak" not in {proposal.hypothesis for proposal in ranking.proposals}


def test_without_a_file_nothing_changes() -> None:
    assert plan(BOOK, recipe=tiny(), steering=FREE) == plan(BOOK, recipe=tiny())


def test_a_pin_that_leaves_nothing_is_named_as_the_reason() -> None:
    steering = read("- pin hypothesis lr-peak\n- ban key learner.learning_rate")
    ranking = plan(BOOK, recipe=tiny(), steering=steering)
    assert not ranking.proposals
    assert "barred by steer.md" in ranking.note


# --- asked for ---------------------------------------------------------------------------------------------


def ask(text: str, *, history: tuple[Attempt, ...] = (), others: str = "") -> tuple[Proposal | None, str]:
    return asked_for(one(text), BOOK, recipe=tiny(), steering=read(others), history=history)


def test_a_form_that_is_asked_for_is_the_planners_own_proposal_whatever_is_pinned() -> None:
    found, _ = asked_for(one("try lr-peak/down"), BOOK, recipe=tiny(), steering=read("- pin axis prompt"))
    assert found is not None
    assert (found.hypothesis, found.variant) == ("lr-peak", "down")
    usual = next(p for p in plan(BOOK, recipe=tiny()).proposals if (p.hypothesis, p.variant) == ("lr-peak", "down"))
    assert found.recipe == usual.recipe
    assert found.why[0] == "asked for by steer.md:1 (try lr-peak/down)"


def test_an_own_idea_moves_what_it_says() -> None:
    found, _ = asked_for(one("try learner.warmup: 0.1, learner.packing: false"), BOOK, recipe=tiny(), steering=FREE)
    assert found is not None
    assert found.hypothesis == "steer"
    assert {key: new for key, (_, new) in found.values.items()} == {"learner.warmup": 0.1, "learner.packing": False}
    assert found.subject.startswith("steer: warmup and packing, ")
    assert found.comparator is None


def test_an_own_schedule_has_to_beat_a_constant_rate_too() -> None:
    text = "try learner.lr_schedule: {kind: linear}, learner.learning_rate: 1e-3"
    found, _ = asked_for(one(text), BOOK, recipe=tiny(), steering=FREE)
    assert found is not None
    assert found.comparator is not None
    assert found.comparator.learner.lr_schedule.kind == "constant"
    assert found.comparator.learner.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("try seed 3", "seed is locked"),
        ("try evaluation.search_prompts 10", "is locked"),
        ("try backend.env: {LD_PRELOAD: x}", "must not set LD_PRELOAD"),
        ("try learner.learning_rate: 1e-3, rollout.temperature: 0.5", "may not change together"),
        ("try learner.learning_rate -1", "does not make a valid recipe"),
        ("try learner.learning_rate much", "does not make a valid recipe"),
        ("try learner.learning_rate 2e-4", "the recipe has it already"),
    ],
)
def test_what_an_experiment_may_not_do_is_refused_by_the_same_code(text: str, words: str) -> None:
    found, why = ask(text)
    assert found is None
    assert words in why


@pytest.mark.parametrize("key", [key for key, locked in leaf_keys().items() if locked])
def test_no_locked_key_can_be_asked_for(key: str) -> None:
    found, why = ask(f"try {key} 7")
    assert found is None
    assert why


def test_what_was_tried_or_is_banned_is_said() -> None:
    proposal, _ = ask("try learner.learning_rate 4e-4")
    assert proposal is not None
    tried = attempt(proposal)
    found, why = ask("try learner.learning_rate 4e-4", history=(tried,))
    assert (found, "tried as" in why) == (None, True)
    assert "banned by" in ask("try lr-peak/up", others="- ban hypothesis lr-peak")[1]
    assert "banned by" in ask("try learner.warmup 0.2", others="- ban key learner.warmup")[1]
