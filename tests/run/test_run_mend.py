"""Which slips of a user's file are mended, and which are left to a person."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.run.mend import mend, one_off

VERIFIER = '''"""A verifier."""
from __future__ import annotations

import json
import re


def score(response, row):
    found = re.findall(r"-?[0-9]+", response.strip())
    expected = json.loads(row["answer"])
    return float(bool(found) and int(found[-1]) == expected)
'''


@pytest.mark.parametrize(
    ("good", "bad", "exception", "message", "line"),
    [
        ("response.strip", "respnse.strip", "NameError", "name 'respnse' is not defined", 9),
        ("bool(found)", "bool(fuond)", "NameError", "name 'fuond' is not defined", 11),
        ("float(bool", "flaot(bool", "NameError", "name 'flaot' is not defined", 11),
        (".strip()", ".stirp()", "AttributeError", "'str' object has no attribute 'stirp'", 9),
        ("re.findall", "re.fidnall", "AttributeError", "module 're' has no attribute 'fidnall'", 9),
        ("import json\n", "import jsn\n", "ModuleNotFoundError", "No module named 'jsn'", 4),
        ("row):", "row)", "SyntaxError", "expected ':'", 8),
    ],
)
def test_a_slip_with_one_mending_is_mended(good: str, bad: str, exception: str, message: str, line: int) -> None:
    broken = VERIFIER.replace(good, bad, 1)
    mended = mend(broken, exception=exception, message=message, line=line)
    assert mended is not None
    if exception == "ModuleNotFoundError":
        assert "import json\n" in mended.text
    else:
        assert mended.text == VERIFIER
    assert mended.why


def test_a_module_that_was_not_imported_is() -> None:
    broken = VERIFIER.replace("import re\n", "")
    mended = mend(broken, exception="NameError", message="name 're' is not defined", line=8)
    assert mended is not None
    assert mended.text.startswith('"""A verifier."""\nfrom __future__ import annotations\nimport re\n')
    names: dict[str, object] = {}
    exec(mended.text, names)
    assert names["score"]("it is 4", {"answer": "4"}) == 1.0  # type: ignore[operator]  # the function of the text


def test_mixed_tabs() -> None:
    broken = "def score(response, row):\n\tif response:\n        return 1.0\n\treturn 0.0\n"
    with pytest.raises(TabError):
        ast.parse(broken)
    mended = mend(broken, exception="TabError", message="inconsistent use of tabs", line=3)
    assert mended is not None
    ast.parse(mended.text)


@pytest.mark.parametrize(
    ("text", "exception", "message", "line"),
    [
        (VERIFIER.replace("row[", "wor["), "NameError", "name 'wor' is not defined", 10),  # two letters off
        ("def f(rowa, rowb):\n    return rowc\n", "NameError", "name 'rowc' is not defined", 2),  # two candidates
        ("def f(a):\n    return expected(a)\n", "NameError", "name 'expected' is not defined", 2),
        (VERIFIER, "ValueError", "operands could not be broadcast", 9),
        (VERIFIER, "ModuleNotFoundError", "No module named 'numpyy'", 4),
        (VERIFIER, "TypeError", "score() takes 1 positional argument", 8),
        # two things that differ by a letter or a digit, and what a builtin of nearly that name would make of it
        (
            "def f(r, row):\n    gold = row['a']\n    return float(golds == gold)\n",
            "NameError",
            "name 'golds' is not defined",
            3,
        ),
        (
            "def f(r, row):\n    answer2 = r\n    return answer1 == answer2\n",
            "NameError",
            "name 'answer1' is not defined",
            3,
        ),
        ("def f(r, row):\n    return float(evel == row['a'])\n", "NameError", "name 'evel' is not defined", 2),
        ("def f(r, row):\n    return float(num == row['a'])\n", "NameError", "name 'num' is not defined", 2),
        ("def f(:\n", "SyntaxError", "invalid syntax", 1),
        ("x = maht.foo(1)\n", "NameError", "name 'maht' is not defined", 1),  # not imported, so not a name there
        ("x = math.no_such(1)\n", "NameError", "name 'math' is not defined", 1),
        (VERIFIER, "NameError", "name 'respnse' is not defined", 999),
    ],
)
def test_what_is_not_certain_is_left_alone(text: str, exception: str, message: str, line: int) -> None:
    assert mend(text, exception=exception, message=message, line=line) is None


def test_a_name_that_is_assigned_somewhere_is_no_slip() -> None:
    text = "def f(total):\n    if total:\n        totl = 1\n    return totl\n"
    assert mend(text, exception="UnboundLocalError", message="name 'totl' is not defined", line=4) is None


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300), st.text(max_size=60), st.integers(-3, 40))
def test_nothing_that_a_person_writes_makes_it_fail(text: str, name: str, line: int) -> None:
    for exception in ("NameError", "AttributeError", "ModuleNotFoundError", "SyntaxError", "TabError"):
        for message in (f"name '{name}' is not defined", "expected ':'", name):
            found = mend(text, exception=exception, message=message, line=line)
            assert found is None or ast.parse(found.text)


@given(st.text(alphabet="abcd", min_size=1, max_size=6), st.text(alphabet="abcd", min_size=1, max_size=6))
def test_one_off_is_symmetric_and_never_holds_for_the_same(left: str, right: str) -> None:
    assert one_off(left, right) == one_off(right, left)
    assert not one_off(left, left)
