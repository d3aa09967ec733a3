"""Reading what a trainer writes, while it writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.contract import EVAL, RUNG, SAMPLES, SELECT, SelectRow
from agent.files import write_atomic
from agent.run import telemetry
from agent.run.telemetry import follow_evals, follow_rung, follow_select, read_run, read_select, texts_in


def select_line(cycle: int, score: float = 1.0) -> str:
    return SelectRow(cycle=cycle, budget_spent=cycle / 8, scores={"a": [score, 0.0]}).model_dump_json() + "\n"


def eval_line(prompt: str, *, digest: str = "00000000") -> str:
    row = {"split": "search", "id": prompt, "sample": 0, "reward": 1.0, "passed": True, "tokens": 3}
    return json.dumps({**row, "finish_reason": "stop", "digest": digest}) + "\n"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_measurements_are_read_once_each_and_what_is_no_row_is_named(tmp_path: Path) -> None:
    assert read_select(tmp_path) == []
    append(tmp_path / SELECT, select_line(1) + select_line(0) + select_line(1, 0.0) + '{"cycle": 2}\n{"cycle": 3, "sc')
    rows = read_select(tmp_path)
    assert [(row.cycle, row.scores) for row in rows] == [(0, {"a": [1.0, 0.0]}), (1, {"a": [0.0, 0.0]})]
    record = read_run(tmp_path)
    assert record.select == rows
    assert record.problems == ("select.jsonl:4: scores: Field required", "select.jsonl:5: torn last line")


def test_texts_are_read_of_the_splits_that_people_may_read(tmp_path: Path) -> None:
    assert texts_in(b"") == read_run(tmp_path).texts == []
    row = {"id": "a", "prompt": "1+1=", "reward": 1.0, "passed": True, "finish_reason": "stop", "tokens": 2}
    said = [("search", "3"), ("search", "2"), ("select", "4"), ("holdout", "5")]
    lines = [json.dumps({**row, "split": split, "completion": text}) + "\n" for split, text in said]
    append(tmp_path / SAMPLES, "".join(lines) + '{"split": "sear')
    record = read_run(tmp_path)
    assert [(text.split, text.completion) for text in record.texts] == [("search", "2"), ("select", "4")]
    assert record.texts == texts_in((tmp_path / SAMPLES).read_bytes())
    assert len(record.problems) == 2
    assert record.problems[1] == "samples.jsonl:5: torn last line"


def test_the_measurement_on_the_way_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert read_run(tmp_path).rung is None
    append(tmp_path / RUNG, select_line(3, 0.25))
    record = read_run(tmp_path)
    assert record.rung is not None
    assert (record.rung.cycle, record.rung.scores) == (3, {"a": [0.25, 0.0]})
    assert follow_rung(tmp_path).read() == [record.rung]


def test_a_tail_gives_each_row_once_and_keeps_a_torn_one_back(tmp_path: Path) -> None:
    tail = follow_select(tmp_path)
    assert tail.read() == []
    path = tmp_path / SELECT
    append(path, select_line(0) + select_line(1) + select_line(2)[:20])
    assert [row.cycle for row in tail.read()] == [0, 1]
    assert tail.read() == []
    append(path, select_line(2)[20:-1])
    assert tail.read() == []
    append(path, "\n" + select_line(3))
    assert [row.cycle for row in tail.read()] == [2, 3]
    append(path, '{"cycle": 4, "scor')  # the trainer was killed, and another one goes on
    assert tail.read() == []
    append(path, "\n\nnot a row\n" + "[" * 5000 + "\n" + select_line(4))
    assert [row.cycle for row in tail.read()] == [4]
    assert list(tail.rows) == [0, 1, 2, 3, 4]


def test_a_tail_does_not_parse_anything_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    row = telemetry._row

    def count(line: bytes, model: type[SelectRow]) -> SelectRow:
        parsed.append(line)
        return row(line, model)

    monkeypatch.setattr(telemetry, "_row", count)
    tail = follow_select(tmp_path)
    for cycle in range(40):
        append(tmp_path / SELECT, select_line(cycle))
        for _ in range(3):
            tail.read()
    assert len(parsed) == len(tail.rows) == 40


@pytest.mark.parametrize("last", [-1, 0, 2])
def test_a_tail_forgets_the_cycles_that_a_resume_takes_out(tmp_path: Path, last: int) -> None:
    tail = follow_select(tmp_path)
    path = tmp_path / SELECT
    append(path, "".join(map(select_line, range(5))))
    tail.read()
    write_atomic(path, "".join(map(select_line, range(last + 1))))
    assert [row.cycle for row in tail.read()] == list(range(last + 1))
    assert list(tail.rows) == list(range(last + 1))
    append(path, select_line(last + 1, 0.5))
    assert [row.scores for row in tail.read()] == [{"a": [0.5, 0.0]}]
    assert list(tail.rows) == list(range(last + 2))


def test_a_tail_survives_an_evaluation_that_puts_its_rows_into_order(tmp_path: Path) -> None:
    """The lines have the same lengths, so neither the size nor the last line tells that it is another file."""
    tail = follow_evals(tmp_path)
    path = tmp_path / EVAL
    append(path, eval_line("c") + eval_line("a"))
    assert [row.id for row in tail.read()] == ["c", "a"]
    append(path, eval_line("b"))
    write_atomic(path, eval_line("b") + eval_line("a") + eval_line("c"))
    assert [row.id for row in tail.read()] == ["b", "a", "c"]
    append(path, eval_line("d"))
    assert [row.id for row in tail.read()] == ["d"]
    assert [key for _, key, _ in tail.rows] == ["b", "a", "c", "d"]


def test_a_tail_knows_another_file_under_the_same_number(tmp_path: Path) -> None:
    """File systems give a number anew once its file is gone: the file is emptied and written anew here."""
    tail = follow_evals(tmp_path)
    path = tmp_path / EVAL
    append(path, eval_line("a", digest="aaaaaaaa") + eval_line("b"))
    tail.read()
    number = path.stat().st_ino
    os.truncate(path, 0)
    append(path, eval_line("x") + eval_line("y") + eval_line("z"))
    assert path.stat().st_ino == number
    assert [row.id for row in tail.read()] == ["x", "y", "z"]
    assert [key for _, key, _ in tail.rows] == ["x", "y", "z"]


def test_a_tail_forgets_a_file_that_is_removed(tmp_path: Path) -> None:
    """A later start of a trainer removes the rows of an evaluation that was cut."""
    tail = follow_evals(tmp_path)
    path = tmp_path / EVAL
    append(path, eval_line("a"))
    assert len(tail.read()) == 1
    path.unlink()
    assert tail.read() == []
    assert not tail.rows
    append(path, eval_line("a"))
    assert len(tail.read()) == 1


def test_a_tail_of_what_is_no_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / SELECT).mkdir()
    assert follow_select(tmp_path).read() == []
