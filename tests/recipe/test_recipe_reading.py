"""A YAML file may hold anything: plain values of modest size come out, or a message with file and line, soon."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import InvalidFile, PlaybookError, RecipeError
from agent.plan.playbook import load_playbook
from agent.recipe.files import load_recipe
from agent.recipe.reading import MOST_BYTES, MOST_NODES, read_text, read_yaml
from agent.run.signatures import rules_of

LAUGHS = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MAPS = "a0: &a0 {x: 1, y: 2, z: 3}\n" + "".join(
    f"a{n}: &a{n} {{{', '.join(f'{key}: *a{n - 1}' for key in 'pqrstuvw')}}}\n" for n in range(1, 12)
)
HOSTILE = {
    "python object": ("x: !!python/object/apply:os.system ['touch pwned']", "tag"),
    "python name": ("x: !!python/name:os.system", "tag"),
    "python module": ("x: !!python/module:os", "tag"),
    "python tuple": ("x: !!python/tuple [1]", "tag"),
    "local tag": ("x: !evil {a: 1}", "tag"),
    "binary": ("x: !!binary aGVsbG8=", "tag"),
    "timestamp": ("x: !!timestamp 2001-01-01", "tag"),
    "set": ("x: !!set {a, b}", "tag"),
    "omap": ("x: !!omap [a: 1]", "tag"),
    "merge by its tag": ("b: &b {y: 1}\nx: {!!merge '<<': *b}", "a key must be a plain value"),
    "recursion": ("x: &x [*x]", "part of"),
    "recursion in a mapping": ("x: &x {y: {z: *x}}", "part of"),
    "a billion laughs": (LAUGHS, f"more than {MOST_NODES}"),
    "a billion mappings": (MAPS, f"more than {MOST_NODES}"),
    "deep flow": ("x: " + "[" * 100_000, "deep"),
    "deep and closed": ("x: " + "[" * 200 + "]" * 200, "deep"),
    "deep blocks": ("".join(f"{' ' * n}x:\n" for n in range(400)), "deep"),
    "deep lists": ("- " * 3000 + "x", "deep"),
    "a huge number": ("x: " + "9" * 5000, "5000 digits"),
    "a huge hexadecimal number": ("x: 0x" + "f" * 5000, "5002 digits"),
    "an int that is none": ("x: !!int twelve", "no whole number"),
    "a float that is none": ("x: !!float twelve", "no number"),
    "a bool that is none": ("x: !!bool maybe", "neither true nor false"),
    "a key twice": ("x: 1\ny: 2\nx: 3", "given twice"),
    "a list for a key": ("? [a, b]\n: 1", "plain value"),
    "a mapping for a key": ("? {a: 1}\n: 1", "plain value"),
    "two documents": ("x: 1\n---\ny: 2", "document"),
    "a NUL": ("x: 1\ny: a\0b", "U\\+0000"),
    "an escape": ("x: 1\ny: '\x1b[31m'", "U\\+001B"),
    "an unknown alias": ("x: *nobody", "undefined alias"),
    "a map tag on a scalar": ("x: !!map scalar", "mapping"),
    "a list tag on a scalar": ("x: !!seq scalar", "expected a sequence"),
    "a text tag on a list": ("x: !!str [1]", "expected a scalar"),
}


@pytest.fixture
def soon() -> Iterator[None]:
    """Whatever is in it, in seconds and a few MB."""
    began = time.monotonic()
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - began < 5
    assert peak < 100e6


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("edited", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_with_its_place(name: str, edited: bool) -> None:
    text, said = HOSTILE[name]
    with pytest.raises(RecipeError, match=said) as caught:
        read_yaml(text, where="my.yaml", edited=edited)
    assert str(caught.value).startswith("my.yaml:"), str(caught.value)[:200]
    assert not Path("pwned").exists()


def test_line_and_column_are_those_of_the_mistake() -> None:
    with pytest.raises(RecipeError) as caught:
        read_yaml("a: 1\nb:\n  c: !!python/name:os\n", where="my.yaml")
    assert caught.value.where == "my.yaml:3:6"
    with pytest.raises(RecipeError) as caught:
        read_yaml("a: 1\nb: x\0y\n", where="my.yaml")
    assert caught.value.where == "my.yaml:2:5"


def test_what_is_odd_and_harmless_is_read() -> None:
    assert read_yaml("\ufeffx: 1", where="x") == {"x": 1}
    assert read_yaml("x: &a [1, 2]\ny: *a", where="x") == {"x": [1, 2], "y": [1, 2]}
    assert read_yaml("b: &b {y: 1}\nx: {<<: *b}", where="x")["x"] == {"<<": {"y": 1}}  # no merge: an unknown key
    assert read_yaml("2: a\ntrue: b\nnull: c", where="x") == {2: "a", True: "b", None: "c"}
    assert read_yaml("x: 1e400", where="x")["x"] == float("inf")


def test_the_schema_refuses_keys_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("2: a\ntrue: b\nnull: c\n<<: {}\n")
    with pytest.raises(RecipeError, match=r"unknown key|should be"):
        load_recipe(tmp_path / "r.yaml")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200) | PLAIN.map(lambda value: yaml.safe_dump(value, allow_unicode=True)))
def test_any_text_gives_plain_values_or_a_refusal(text: str) -> None:
    for edited in (True, False):
        try:
            found = read_yaml(text, where="x", edited=edited)
        except RecipeError:
            continue
        pending = [found]
        while pending:
            value = pending.pop()
            assert value is None or type(value) in (bool, int, float, str, list, dict)
            pending += (
                value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else []
            )


# --- files -------------------------------------------------------------------------------------------------


def odd_files(folder: Path) -> dict[str, str]:
    """Name -> what is said."""
    os.mkfifo(folder / "pipe.yaml")
    (folder / "folder.yaml").mkdir()
    (folder / "circle.yaml").symlink_to("circle.yaml")
    (folder / "zero.yaml").symlink_to("/dev/zero")
    with (folder / "large.yaml").open("wb") as file:
        file.truncate(100 << 20)
    (folder / "latin.yaml").write_bytes(b"x: \xe9")
    return {
        "pipe.yaml": "a pipe", "folder.yaml": "is a folder", "zero.yaml": "a pipe, a device", "large.yaml": "larger",
        "circle.yaml": "symbolic links", "latin.yaml": "not UTF-8", "x" * 300 + ".yaml": "too long",
        "no.yaml": "no such", "nul\0.yaml": "no name",
    }  # fmt: skip


@pytest.mark.usefixtures("soon")
def test_a_file_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    for name, said in odd_files(tmp_path).items():
        with pytest.raises(RecipeError, match=said):
            read_text(tmp_path / name)
        with pytest.raises(RecipeError, match=said):
            load_recipe(tmp_path / name)


def test_the_largest_text_that_is_read_takes_seconds(tmp_path: Path) -> None:
    line = "- 'a text of some length, as a prompt has it'\n"
    text = line * (MOST_BYTES // len(line))
    (tmp_path / "r.yaml").write_text(text)
    began = time.monotonic()
    with pytest.raises(RecipeError, match="a mapping of keys"):
        load_recipe(tmp_path / "r.yaml")
    assert time.monotonic() - began < 20
    with pytest.raises(RecipeError, match="larger"):
        read_yaml(text + line * 2, where="x")


@pytest.mark.parametrize(
    "name", ["python object", "a billion laughs", "recursion", "deep flow", "a NUL", "a key twice"]
)
def test_playbooks_and_rules_of_triage_are_read_by_the_same_door(tmp_path: Path, name: str) -> None:
    (tmp_path / "crashes").mkdir()
    (tmp_path / "own.yaml").write_text(HOSTILE[name][0])
    (tmp_path / "crashes" / "own.yaml").write_text(HOSTILE[name][0])
    with pytest.raises(PlaybookError, match=HOSTILE[name][1]) as caught:
        load_playbook(tmp_path)
    assert "own.yaml" in str(caught.value)
    with pytest.raises(InvalidFile, match=HOSTILE[name][1]):
        rules_of(tmp_path)


def test_a_pipe_in_the_playbook_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "own.yaml")
    said: list[str] = []

    def look() -> None:
        with pytest.raises(PlaybookError) as caught:
            load_playbook(tmp_path)
        said.append(str(caught.value))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(10)
    assert said
    assert "a pipe" in said[0]
