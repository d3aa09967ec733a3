"""Near-duplicates: what is one question, what is not, and that the fast way finds exactly that."""

from __future__ import annotations

import itertools
import json
import math
import random
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DataError
from agent.recipe.schema import Evaluation, Task, Verifier
from agent.tasks import duplicates
from agent.tasks.duplicates import group_numbers
from agent.tasks.example import Example
from agent.tasks.tasks import DEALING_ORDER, Splits, load_rows, load_splits, refuse_shared_groups

TOM = (
    "Tom has 3 red apples and 4 green pears in his basket. On the way home some of it falls into a river, and of "
    "what is left he gives 2 to each neighbour who asks. How many pieces of fruit are there?"
)
WORDY = "A bakery sells twice as many rolls as loaves each morning, and its owner wants to know the ratio."
WORDS = ["".join(letters) for letters in itertools.product("bdfgklmn", "aeou", "rstv")]
SMALL = Evaluation(select_prompts=2, search_prompts=2, confirm_prompts=2, holdout_prompts=3)


def other_questions(count: int = 30) -> list[str]:
    """Questions of words of their own, so that what is compared stands among others, as in a data set."""
    words = random.Random(0)
    return [" ".join(["how many", *words.sample(WORDS, 10)]) for _ in range(count)]


def together(left: str, right: str) -> bool:
    groups = group_numbers([*other_questions(), left, right])
    return groups[-1] == groups[-2]


def partition(texts: Sequence[str], groups: Sequence[int]) -> set[frozenset[str]]:
    members: dict[int, set[str]] = {}
    for text, group in zip(texts, groups, strict=True):
        members.setdefault(group, set()).add(text)
    return set(map(frozenset, members.values()))


# What is one question ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        TOM.upper(),
        TOM.replace(" ", "\n  "),
        TOM.replace(".", ""),
        TOM.replace("Tom", "Anna"),
        TOM.replace("Tom", "Anna").replace("his", "her"),
        TOM.replace("pieces of fruit", "fruits"),
        "So: " + TOM,
        TOM.replace("apples and", "apples, and"),
    ],
)
def test_the_same_question_in_other_words(other: str) -> None:
    assert together(TOM, other)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Don't count Tom’s “good” well-known pears", 'Dont count Toms "good" well known pears'),
        ("ｗｈａｔ is the ﬁrst ﬂower of May", "what is the first flower of May"),
        ("What is the capital of France?", "what is the capital of france"),
        ("Sum (a list).", "Sum (a list)"),
        ("Really?! No way!", "Really No way"),
    ],
)
def test_the_same_tokens(left: str, right: str) -> None:
    assert together(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (TOM, TOM.replace("3", "5")),
        (TOM, TOM.replace("3", "three")),
        (TOM, TOM.replace("3 red apples and 4", "4 red apples and 3")),
        (TOM, TOM.replace("4 green pears", "4.5 green pears")),
        (WORDY, WORDY.replace("twice", "half")),
        (WORDY, WORDY.replace("A bakery sells twice as many", "Both of them know that a bakery sells many")),
        ("12+34=", "12-34="),
        ("What is 7 - 3?", "What is 3 - 7?"),
        ("What is 7 * 3?", "What is 7 + 3?"),
        ("What is 5! / 3?", "What is 5 / 3?"),
        ("What is 10² + 1 in words?", "What is 102 + 1 in words?"),
        ("What is 1½ of a pound in words?", "What is 11⁄2 of a pound in words?"),
        ("What is the value of x + y * z for them?", "What is the value of x * y + z for them?"),
        ("Tell me now whether (P and Q) or R holds", "Tell me now whether P and (Q or R) holds"),
        ("Which word is this picture of: #### ##", "Which word is this picture of: ## ####"),
        ("Play white on the board: X . O", "Play white on the board: X O ."),
        ("Spell this word backward: ruder", "Spell this word backward: noten"),
        ("", "?"),
    ],
)
def test_another_question(left: str, right: str) -> None:
    assert not together(left, right)


def test_a_near_duplicate_of_a_near_duplicate_is_in_the_group() -> None:
    first = WORDS[:20]
    chain = [[*WORDS[40 : 40 + step], *first[step:]] for step in (0, 2, 4, 6)]
    texts = [" ".join(words) for words in chain]
    assert not together(texts[0], texts[-1])
    groups = group_numbers([*other_questions(80), *texts])
    assert groups[80:] == [80] * 4


def test_rows_of_a_template_are_questions_of_their_own() -> None:
    template = "You are given a word. Swap its first letter and its second one, and answer with nothing else: {}"
    texts = [template.format(word) for word in WORDS]
    assert group_numbers(texts) == list(range(len(texts)))
    mixed = texts + ["Now do another thing. Write the word without its vowels, in capitals: " + word for word in WORDS]
    assert group_numbers(mixed) == list(range(len(mixed)))


@pytest.mark.parametrize(
    ("dataset", "parameters"),
    [
        ("builtin:addition", {}),
        ("builtin:arithmetic", {}),
        ("builtin:arithmetic", {"style": "words"}),
        ("builtin:arithmetic", {"style": "words", "terms": 4, "low": 0, "high": 2}),
        ("builtin:arithmetic", {"style": "words", "terms": 8, "count": 3000, "low": 1, "high": 2}),
        (
            "builtin:arithmetic",
            {"terms": 3, "low": 0, "high": 4, "question": "Please work out with care for me: {expression}"},
        ),
        (
            "builtin:arithmetic",
            {"style": "words", "terms": 3, "count": 30, "question": "Please work out with care for me: {expression}"},
        ),
    ],
)
def test_no_built_in_row_is_lost(dataset: str, parameters: dict[str, Any]) -> None:
    rows = load_rows(Task(dataset=dataset, parameters=parameters), base=Path())
    assert group_numbers([row.question for row in rows]) == list(range(len(rows)))


def test_below_six_words_only_the_same_tokens_are_the_same_question() -> None:
    assert together("delete odd numbers from that list", "from that list delete odd numbers")
    assert not together("delete odd numbers from lists", "from lists delete odd numbers")


# The fast way finds what the definition says ----------------------------------------------------------------

FIGURES = ["3", "17", "+", "x", "twice"]
few_words = st.lists(st.sampled_from(WORDS[:9]), min_size=4, max_size=9)
texts_of_few_words = st.lists(
    st.builds(lambda words, figures: [*words, *figures], few_words, st.lists(st.sampled_from(FIGURES), max_size=1)),
    min_size=2,
    max_size=40,
)


@st.composite
def questions_in_other_words(draw: st.DrawFn) -> list[list[str]]:
    """Some questions of twelve to twenty words, each a few times with a few words dropped, changed or added."""
    texts: list[list[str]] = []
    for _ in range(draw(st.integers(1, 6))):
        words = draw(st.lists(st.sampled_from(WORDS), min_size=12, max_size=20))
        for _ in range(draw(st.integers(1, 6))):
            edited = list(words)
            for _ in range(draw(st.integers(0, 4))):
                place = draw(st.integers(0, len(edited) - 1))
                edited[place : place + draw(st.integers(0, 1))] = draw(
                    st.lists(st.sampled_from([*WORDS, *FIGURES]), max_size=1)
                )
            texts.append(edited)
    return draw(st.permutations(texts))


def near(left: Sequence[str], right: Sequence[str], telling: set[str]) -> bool:
    """The definition, word for word, for questions of these words and figures only."""
    if [word for word in left if word in FIGURES] != [word for word in right if word in FIGURES]:
        return False
    one, two = set(left) - set(FIGURES), set(right) - set(FIGURES)
    if min(len(one), len(two)) < 6 or min(len(one & telling), len(two & telling)) < 2:
        return False
    alike, telling_alike = len(one & two) / len(one | two), len(one & two & telling) / len((one | two) & telling)
    return alike >= 0.8 and telling_alike >= 0.5


def slow_partition(questions: Sequence[Sequence[str]]) -> set[frozenset[str]]:
    """Every pair compared, and groups grown until nothing more is near them."""
    left = {tuple(question) for question in questions}
    frequency = Counter(word for question in left for word in set(question))
    telling = {word for word, count in frequency.items() if count <= math.isqrt(len(left))} - set(FIGURES)
    found = set()
    while left:
        group = [left.pop()]
        for member in group:
            close = {other for other in left if near(member, other, telling)}
            left -= close
            group += close
        found.add(frozenset(map(" ".join, group)))
    return found


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.one_of(texts_of_few_words, questions_in_other_words()))
def test_every_pair_compared_finds_the_same_groups(questions: list[list[str]]) -> None:
    texts = [" ".join(question) for question in questions if set(question) - set(FIGURES[:3])]
    assert partition(texts, group_numbers(texts)) == slow_partition([text.split() for text in texts])


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(questions_in_other_words(), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order(questions: list[list[str]], shuffle: random.Random) -> None:
    texts = [" ".join(question) for question in questions]
    groups = group_numbers(texts)
    assert all(groups[group] == group <= number for number, group in enumerate(groups))
    again = list(texts)
    shuffle.shuffle(again)
    assert partition(again, group_numbers(again)) == partition(texts, groups)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters() | st.sampled_from(string.printable + "²½’…①")), max_size=6))
def test_any_text_at_all(texts: list[str]) -> None:
    groups = group_numbers([*texts, *texts])
    assert groups[len(texts) :] == groups[: len(texts)]


@pytest.mark.slow
def test_few_pairs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    similar = duplicates._similar

    def counted(*arguments: Any) -> bool:
        nonlocal compared
        compared += 1
        return similar(*arguments)

    monkeypatch.setattr(duplicates, "_similar", counted)
    source = random.Random(1)
    words = [a + b for a in WORDS for b in WORDS]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    texts = [" ".join(source.choices(words, weights, k=30)) for _ in range(2000)]
    texts += [
        "The next word has to be read from its end to its beginning, letter by letter: " + w for w in words[:2000]
    ]
    assert group_numbers(texts) == list(range(len(texts)))
    assert compared < len(texts)


# Dealing ----------------------------------------------------------------------------------------------------


def load(rows: Sequence[dict[str, Any]], evaluation: Evaluation = SMALL, **task: Any) -> Splits:
    with TemporaryDirectory() as folder:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (Path(folder) / "rows.jsonl").write_text(lines, encoding="utf-8")
        return load_splits(Task(dataset="jsonl:rows.jsonl", **task), evaluation, base=Path(folder))


def rows_of(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": f"r{number}", "question": text, "answer": 1} for number, text in enumerate(texts)]


def in_two_wordings(count: int) -> list[str]:
    """Questions of other words each, and each again with one of its 12 words changed."""
    source = random.Random(2)
    texts = [source.sample(WORDS, 12) for _ in range(count)]
    return [" ".join(words) for text in texts for words in (text, ["please", *text[1:]])]


def test_near_duplicates_of_held_out_rows_are_refused_and_said() -> None:
    texts = in_two_wordings(40)
    splits = load(rows_of(texts), fields={"id": "id"})
    held_out = [row for name in DEALING_ORDER for row in getattr(splits, name)]
    assert len(held_out) == 9
    assert len(splits.train) == 80 - 2 * 9
    assert splits.refused == 9
    twins = {(one.id, f"r{int(one.id[1:]) ^ 1}") for one in held_out}
    assert set(splits.refused_pairs) <= twins
    assert len(splits.refused_pairs) == 3
    refusal = splits.refusal()
    assert refusal is not None
    assert "held-out ones: 9," in refusal
    assert all(name in refusal for pair in splits.refused_pairs for name in pair)


def test_exact_repeats_are_not_counted_as_refused() -> None:
    texts = [" ".join(random.Random(number).sample(WORDS, 12)) for number in range(30)]
    splits = load(rows_of([*texts, *map(str.upper, texts)]))
    assert splits.refused == 0
    assert splits.refusal() is None
    assert len(splits.train) == 2 * (30 - 9)


@settings(max_examples=40, deadline=None)
@given(questions_in_other_words(), questions_in_other_words(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_no_two_splits_ask_the_same(
    first: list[list[str]], second: list[list[str]], seed: int, shuffle: random.Random
) -> None:
    texts = list(dict.fromkeys(" ".join(question) for question in [*first, *second])) + other_questions(20)
    rows = rows_of(texts)
    splits = load(rows, split_seed=seed, fields={"id": "id"})
    group_of = dict(zip(texts, group_numbers(texts), strict=True))
    asked = {name: {group_of[row.question] for row in getattr(splits, name)} for name in (*DEALING_ORDER, "train")}
    for one, two in itertools.combinations(asked.values(), 2):
        assert not one & two
    assert set().union(*asked.values()) == set(group_of.values())
    assert sum(len(asked[name]) for name in DEALING_ORDER) == 9
    shuffle.shuffle(rows)
    assert load(rows, split_seed=seed, fields={"id": "id"}) == splits


@pytest.mark.parametrize("name", DEALING_ORDER)
def test_a_larger_split_keeps_its_prompts_where_there_are_near_duplicates(name: str) -> None:
    rows = rows_of(in_two_wordings(40))
    before = load(rows)
    after = load(rows, SMALL.model_copy(update={f"{name}_prompts": 7}))
    for other in DEALING_ORDER[: DEALING_ORDER.index(name)]:
        assert getattr(before, other) == getattr(after, other)
    kept = getattr(before, name)
    assert getattr(after, name)[: len(kept)] == kept


def test_too_few_questions_count_near_duplicates_once() -> None:
    with pytest.raises(DataError) as caught:
        load(rows_of(in_two_wordings(9)))
    assert "18 rows with 9 different questions (near-duplicates are one)" in str(caught.value)


def test_a_group_in_two_splits_is_refused_by_the_names_of_both_rows() -> None:
    rows = [Example(id=name, question=f"question {name}", answer="1") for name in "abcd"]
    splits = {"search": rows[:2], "train": rows[2:]}
    refuse_shared_groups(splits, {"a": 0, "b": 1, "c": 2, "d": 2})
    with pytest.raises(DataError, match="row b of search and row d of train ask the same: 'question b'"):
        refuse_shared_groups(splits, {"a": 0, "b": 1, "c": 2, "d": 1})


def test_a_data_set_without_near_duplicates_is_dealt_as_if_nobody_looked_for_them() -> None:
    task = Task(dataset="builtin:arithmetic", parameters={"style": "words"}, verifier=Verifier(kind="last_number"))
    splits = load_splits(task, SMALL, base=Path())
    assert splits.refused == 0
    assert len(splits.train) + 9 == len(load_rows(task, base=Path()))
