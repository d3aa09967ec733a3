"""Dealing rows into splits, and reading them from JSON lines."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import AgentError, DataError, RecipeError, Unavailable
from agent.recipe.schema import Evaluation, Task, Verifier
from agent.tasks.tasks import DEALING_ORDER, Splits, load_rows, load_splits

SMALL = Evaluation(select_prompts=5, search_prompts=7, confirm_prompts=6, holdout_prompts=4)
PRODUCTS: dict[str, Any] = {
    "dataset": "builtin:arithmetic",
    "parameters": {"operations": ["mul"], "low": 2, "high": 12},
}


def deal(evaluation: Evaluation = SMALL, base: Path = Path(), **task: Any) -> Splits:
    return load_splits(Task.model_validate(PRODUCTS | task), evaluation, base=base)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load_file(path: Path, evaluation: Evaluation = SMALL, **task: Any) -> Splits:
    return load_splits(Task(dataset=f"jsonl:{path.name}", **task), evaluation, base=path.parent)


# Dealing ----------------------------------------------------------------------------------------------------


def test_every_row_is_in_exactly_one_split_of_the_right_size() -> None:
    splits = deal()
    sizes = [len(getattr(splits, name)) for name in ("select", "search", "confirm", "holdout", "train")]
    assert sizes == [5, 7, 6, 4, 121 - 22]
    ids = [row.id for name in (*DEALING_ORDER, "train") for row in getattr(splits, name)]
    assert len(ids) == len(set(ids)) == 121


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 5),
    st.one_of(st.none(), st.integers(1, 200)),
    st.dictionaries(st.sampled_from(["mul", "mul/1", "mul/3"]), st.floats(0.1, 10), max_size=3),
)
def test_held_out_rows_depend_on_neither_train_prompts_nor_mix(
    seed: int, train_prompts: int | None, mix: dict[str, float]
) -> None:
    plain = deal(split_seed=seed)
    other = deal(split_seed=seed, train_prompts=train_prompts, mix=mix)
    for name in DEALING_ORDER:
        assert getattr(plain, name) == getattr(other, name)
    assert plain.digest == other.digest
    assert other.train == plain.train[:train_prompts]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(2, 20), st.integers(2, 20), st.integers(2, 20), st.integers(0, 3))
def test_a_larger_split_keeps_its_prompts_and_leaves_those_dealt_before_it(
    select: int, search: int, confirm: int, holdout: int, more: int
) -> None:
    sizes = {"holdout": holdout, "confirm": confirm, "search": search, "select": select}
    first = deal(Evaluation(**{f"{name}_prompts": size for name, size in sizes.items()}))
    grown_split = DEALING_ORDER[more]
    sizes[grown_split] += 5
    second = deal(Evaluation(**{f"{name}_prompts": size for name, size in sizes.items()}))
    for name in DEALING_ORDER[:more]:
        assert getattr(first, name) == getattr(second, name)
    before = getattr(first, grown_split)
    assert getattr(second, grown_split)[: len(before)] == before


def test_the_split_seed_deals_anew_and_nothing_else_does() -> None:
    assert deal() == deal()
    assert deal(split_seed=1).digest != deal().digest
    assert deal(split_seed=1).holdout != deal().holdout


def test_the_order_of_the_rows_in_the_file_does_not_matter(tmp_path: Path) -> None:
    rows = [{"id": f"r{number}", "question": f"q {number}", "answer": number} for number in range(60)]
    first = load_file(write_rows(tmp_path / "a.jsonl", rows), fields={"id": "id"})
    random.Random(3).shuffle(rows)
    second = load_file(write_rows(tmp_path / "b.jsonl", rows), fields={"id": "id"})
    assert [row.id for row in first.holdout] == [row.id for row in second.holdout]
    assert first.digest == second.digest


def test_the_digest_changes_with_a_held_out_answer_and_not_with_a_training_answer(tmp_path: Path) -> None:
    rows = [{"question": f"q {number}", "answer": number} for number in range(40)]
    splits = load_file(write_rows(tmp_path / "rows.jsonl", rows))
    for row, changes in ((splits.holdout[0], True), (splits.select[0], True), (splits.train[0], False)):
        altered = [dict(one, answer=99) if one["question"] == row.question else one for one in rows]
        digest = load_file(write_rows(tmp_path / "altered.jsonl", altered)).digest
        assert (digest != splits.digest) == changes


def test_a_repeated_question_never_lies_in_two_splits(tmp_path: Path) -> None:
    # Every question three times, in other words as far as white space and case go.
    rows = [
        {"question": question, "answer": number}
        for number in range(30)
        for question in (f"What is {number}?", f" what  is {number}?", f"WHAT IS {number}?")
    ]
    splits = load_file(write_rows(tmp_path / "rows.jsonl", rows))
    where: dict[str, set[str]] = {}
    for name in (*DEALING_ORDER, "train"):
        for row in getattr(splits, name):
            where.setdefault(row.answer, set()).add(name)
    assert len(where) == 30
    assert all(len(names) == 1 for names in where.values())
    assert len(splits.holdout) == 4
    assert len(splits.train) == 3 * (30 - 22)


def test_too_few_rows_say_how_many_there_are_and_what_to_lower(tmp_path: Path) -> None:
    rows = [{"question": f"q {number % 22}", "answer": "1"} for number in range(30)]
    with pytest.raises(DataError) as caught:
        load_file(write_rows(tmp_path / "rows.jsonl", rows))
    message = str(caught.value)
    assert "30 rows with 22 different questions" in message
    assert "take 22" in message
    for name in DEALING_ORDER:
        assert f"evaluation.{name}_prompts" in message


# Reading ----------------------------------------------------------------------------------------------------


def test_fields_answers_tags_and_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '\ufeff{"q": "one", "a": "so 5 #### 1,000", "kind": "easy"}\r\n\r\n'
        '{"q": "two", "a": "#### 1 #### 2", "kind": "hard"}\n',
        encoding="utf-8",
    )
    task = Task(
        dataset="jsonl:rows.jsonl",
        fields={"question": "q", "answer": "a", "tag": "kind"},
        answer_after="####",
    )
    rows = load_rows(task, base=tmp_path)
    assert [(row.id, row.question, row.answer, row.tag) for row in rows] == [
        ("line:1", "one", "1,000", "easy"),
        ("line:3", "two", "2", "hard"),
    ]
    assert rows[1].row["a"] == "#### 1 #### 2"


def test_numbers_in_a_row_are_read_as_json_writes_them(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"question": 12, "answer": 0.5}, {"question": "b", "answer": -3}])
    rows = load_rows(Task(dataset="jsonl:rows.jsonl"), base=path.parent)
    assert [(row.question, row.answer) for row in rows] == [("12", "0.5"), ("b", "-3")]


def test_rows_of_code_in_the_forms_of_mbpp_and_human_eval(tmp_path: Path) -> None:
    mbpp = {
        "text": "Round up.",
        "code": "def up(x): return math.ceil(x)",
        "test_setup_code": "import math",
        "test_imports": ["import json", "import re"],
        "test_list": ["assert up(1.5) == math.ceil(1.5)", "assert up(2) == 2"],
    }
    human_eval = {"task_id": "HumanEval/0", "prompt": "def up(x):", "entry_point": "up"}
    human_eval["test"] = "def check(candidate):\n    assert candidate(1.5) == 2\n"
    (first,) = load_rows(
        code_task({"question": "text", "tests": "test_list"}), base=write_rows(tmp_path / "a", [mbpp]).parent
    )
    assert first.tests == "import math\nimport json\nimport re\n" + "\n".join(mbpp["test_list"])
    fields = {"question": "prompt", "tests": "test", "id": "task_id"}
    (second,) = load_rows(code_task(fields), base=write_rows(tmp_path / "a", [human_eval]).parent)
    assert (second.id, second.question, second.tests) == ("HumanEval/0", "def up(x):", human_eval["test"])


def code_task(fields: dict[str, str]) -> Task:
    return Task(dataset="jsonl:a", fields=fields, verifier=Verifier(kind="python_tests"))


GOOD = '{"question": "q", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("content", "task", "words"),
    [
        (GOOD + '{"question": "q2", "anser": "1"}\n', {}, ["line 2", "'answer'", "'anser'", "task.fields.answer"]),
        (GOOD + "{question: 1}\n", {}, ["line 2", "not JSON"]),
        (GOOD + GOOD[:20] + "\n", {}, ["line 2", "not JSON"]),
        (GOOD + "[1, 2]\n", {}, ["line 2", "list", "not an object"]),
        (GOOD + "[" * 100_000 + "\n", {}, ["line 2", "not JSON"]),
        (
            GOOD + '{"question": "nice \\ud83d", "answer": "1"}\n',
            {},
            ["line 2", "'question'", "half a character", "ud83d"],
        ),
        ("", {}, ["no rows"]),
        ("\n \n", {}, ["no rows"]),
        (GOOD + '{"question": " ", "answer": "1"}\n', {}, ["line 2", "'question'", "empty"]),
        (GOOD + '{"question": "q2", "answer": null}\n', {}, ["line 2", "'answer'", "null"]),
        (GOOD + '{"question": "q2", "answer": ["1"]}\n', {}, ["line 2", "'answer'", "text or a number"]),
        (GOOD, {"answer_after": "####"}, ["line 1", "'answer'", "'####'"]),
        (GOOD, {"fields": {"tag": "level"}}, ["line 1", "'level'", "task.fields.tag"]),
        (
            '{"n": 7, "question": "a", "answer": 1}\n{"n": 7, "question": "b", "answer": 1}\n',
            {"fields": {"id": "n"}},
            ["line 2", "'7'", "line 1", "'n'"],
        ),
        (
            GOOD,
            {"verifier": Verifier(kind="python_tests")},
            ["line 1", "'tests'", "task.fields.tests"],
        ),
        (
            '{"question": "q", "tests": "assert f(1) =="}\n',
            {"verifier": Verifier(kind="python_tests")},
            ["line 1", "'tests'", "not Python"],
        ),
        (
            '{"question": "q", "tests": "def check(f):\\n    assert f(1)"}\n',
            {"verifier": Verifier(kind="python_tests")},
            ["line 1", "'tests'", "would run nothing"],
        ),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(
    tmp_path: Path, content: str, task: dict[str, Any], words: list[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_rows(Task(dataset="jsonl:rows.jsonl", **task), base=tmp_path)
    for word in ["rows.jsonl", *words]:
        assert word in str(caught.value)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(GOOD.encode() + b'{"question": "\xff\xfe", "answer": "1"}\n')
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        load_rows(Task(dataset="jsonl:rows.jsonl"), base=tmp_path)


@pytest.mark.parametrize("dataset", ["jsonl:nowhere.jsonl", "jsonl:."])
def test_a_file_that_is_not_there(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(Unavailable) as caught:
        load_rows(Task(dataset=dataset), base=tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("task", "error", "suggestion"),
    [
        ({"dataset": "builtin:adition"}, RecipeError, "builtin:addition"),
        ({"dataset": "gsm8k"}, RecipeError, None),
        ({"dataset": "builtin:addition", "fields": {"question": "q"}}, RecipeError, None),
        ({"dataset": "jsonl:x.jsonl", "parameters": {"low": 1}}, RecipeError, None),
        ({"dataset": "jsonl:x.jsonl", "fields": {"anwser": "a"}}, RecipeError, "answer"),
        ({"dataset": "jsonl:x.jsonl", "answer_after": "#", "verifier": {"kind": "python_tests"}}, RecipeError, None),
    ],
)
def test_words_that_make_no_data_set(
    tmp_path: Path, task: dict[str, Any], error: type[AgentError], suggestion: str | None
) -> None:
    write_rows(tmp_path / "x.jsonl", [{"question": "q", "answer": "1"}])
    with pytest.raises(error) as caught:
        load_rows(Task.model_validate(task), base=tmp_path)
    assert isinstance(caught.value, RecipeError)
    assert caught.value.key is not None
    if suggestion is not None:
        assert caught.value.suggestion == suggestion
