"""What the documentation says of the program is so: commands, links, paths, keys, and what is written from the code."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from agent.campaign.verdict import Kind
from agent.cli.app import EPILOG, app
from agent.cli.main import register, run
from agent.cli.watch import TERMINATED
from agent.errors import INTERRUPTED_EXIT_CODE, AgentError, PlaybookError
from agent.ledger.create import create_workspace, shipped_folder
from agent.ledger.events import KINDS
from agent.ledger.journal import Journal
from agent.ledger.lock import hold
from agent.ledger.messages import TRAILERS
from agent.ledger.table import COLUMNS
from agent.ledger.workspace import Workspace
from agent.plan.planner import plan
from agent.plan.playbook import load_playbook
from agent.recipe.files import field_at, load_recipe
from agent.recipe.schema import Recipe, leaf_keys, section_of
from agent.report import night, story

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
register()
PROGRAM: Any = typer.main.get_command(app)

FENCE = re.compile(r"^ *(?P<fence>```+)[^\n]*\n(?P<body>.*?)^ *(?P=fence)`*\s*$", re.M | re.S)
INLINE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
PLACEHOLDERS = {"N": "1", "STEPS": "1", "SHARE": "0.5", "NUMBER": "1"}
"""Words that stand for a number where the program wants one."""


def fenced(text: str) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, with lines that a backslash continues put together."""
    bodies = [found["body"] for found in FENCE.finditer(text)]
    bodies.append("\n".join(line[4:] for line in FENCE.sub("", text).splitlines() if line.startswith("    ")))
    for body in bodies:
        yield from body.replace("\\\n", " ").splitlines()


def inline(text: str) -> Iterator[str]:
    for found in INLINE.finditer(FENCE.sub("", text)):
        yield " ".join(found.group(2).replace("\\|", "|").split())


def calls(text: str) -> Iterator[list[str]]:
    """Arguments of every `raft-agent ...`, in blocks and in the middle of a line, without what a shell does with it."""
    yield from mentions(text)
    for line in [*fenced(text), *inline(text)]:
        for found in re.finditer(r"(?<![\w/.-])raft-agent (?=[a-z-])", line):
            yield arguments_of(line[found.end() :])


def mentions(text: str) -> Iterator[list[str]]:
    """`init --data`: a command and its option, without the program's name and not always whole."""
    for words in inline(text):
        if words.split(" ")[0] in PROGRAM.commands and " -" in words:
            name, *rest = arguments_of(words)
            lacking = [
                one for one in PROGRAM.commands[name].params if one.param_type_name == "argument" and one.required
            ]
            yield [name, *(["X"] * len(lacking) if rest[0].startswith("-") else []), *rest]


def arguments_of(line: str) -> list[str]:
    line = line.replace("...", "").replace("[", "").replace("]", "")
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[str] = []
    for word in lexer:
        if set(word) <= set("();<>|&"):
            break
        if word != "OPTIONS":
            found.append(PLACEHOLDERS.get(word, word))
    return found


def problem_of(arguments: list[str]) -> str | None:
    """None where the program takes these arguments: the command exists, and so do its options, with values it reads."""
    name, *rest = arguments
    if name.startswith("-"):
        return None if name in ("--help", "-h", "--version") else f"no option {name}"
    if name not in PROGRAM.commands:
        return f"no command {name}"
    if {"--help", "-h"} & set(rest):
        return None
    try:
        PROGRAM.commands[name].make_context(name, list(rest) + (["1"] if wants_a_value(name, rest) else []))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def wants_a_value(name: str, rest: list[str]) -> bool:
    """The last word is an option that a text only mentions, without its value."""
    return any(rest[-1:] == [one] and not option.is_flag for option in options_of(name) for one in option.opts)


def options_of(name: str) -> list[Any]:
    return [one for one in PROGRAM.commands[name].params if one.param_type_name == "option"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_is_one_that_the_program_takes(page: Path) -> None:
    wrong = {" ".join(one): problem for one in calls(page.read_text("utf-8")) if (problem := problem_of(one))}
    assert not wrong


def test_the_search_for_command_lines_finds_what_is_wrong() -> None:
    block = "```\nX=1 raft-agent frob | head   # raft-agent lr\n$ raft-agent show 1 2\n```\n"
    text = f"`raft-agent lr --nope` and\n\n{block}`plan --wrong`"
    found = [" ".join(one) for one in calls(text) if problem_of(one)]
    assert sorted(found) == ["frob", "lr --nope", "plan --wrong", "show 1 2"]


# --- exit codes ----------------------------------------------------------------------------------------------


def kinds_of(error: type[AgentError]) -> Iterator[type[AgentError]]:
    yield error
    for kind in error.__subclasses__():
        if kind.__module__.startswith("agent."):
            yield from kinds_of(kind)


def test_the_help_has_every_exit_code() -> None:
    listed = [int(code) for code in re.findall(r"(?:: |, )(\d+) ", EPILOG)]
    assert listed == sorted(set(listed))
    assert set(listed) == {0, TERMINATED, INTERRUPTED_EXIT_CODE, *(kind.exit_code for kind in kinds_of(AgentError))}


def held(workspace: Workspace) -> AbstractContextManager[object]:
    """A campaign runs in it."""
    workspace.prepare()
    journal = Journal(workspace.journal_path("night"))
    journal.append("campaign_started", campaign="night", recipe_path="x", recipe="", base_commit="0" * 40)
    return hold(workspace, what="campaign night")


def nothing(workspace: Workspace) -> AbstractContextManager[object]:
    return nullcontext()


CODES = [
    ("controls.md", "Exit codes of `pause`: 0 asked", "pause", held, 0),
    ("controls.md", "2 no such campaign runs.", "pause", nothing, 2),
    ("controls.md", "2 no such campaign runs.", "pause another", held, 2),
    ("status.md", "(2 where there is no campaign)", "watch --once", nothing, 2),
]
"""Page, what it says, a command, what goes on in the workspace, the code that the command ends with."""


@pytest.mark.parametrize(("page", "words", "command", "setting", "code"), CODES)
def test_a_command_ends_with_the_code_that_the_page_names(
    page: str, words: str, command: str, setting: Any, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert words in " ".join((ROOT / "docs" / page).read_text("utf-8").split())
    workspace = create_workspace(tmp_path / "ws", shipped=shipped_folder()).workspace
    monkeypatch.chdir(workspace.root)
    with setting(workspace):
        assert run(command.split()) == code


# --- links, paths, keys --------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", FENCE.sub("", path.read_text("utf-8")), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page.name} links to {target}, which has no such heading"


PATHS = re.compile(r"(?<![\w/.-])(?:agent|tests|scripts|docs|recipes|hypotheses)/[\w./*-]*\w")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_of_this_repository_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    for words in [*inline(text), *fenced(text)]:
        for name in PATHS.findall(words):
            made = "RECIPE" in name or name in OF_A_WORKSPACE
            assert made or any(ROOT.glob(name)), f"{page.name} names {name}"


OF_A_WORKSPACE = {"recipes/main.yaml", "hypotheses/my-ideas.yaml"}
"""Files that a reader makes."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_recipe_key_is_one(page: Path) -> None:
    sections = {name for name, field in Recipe.model_fields.items() if section_of(field.annotation)}
    files = {"py", "md", "yaml", "jsonl", "json", "txt", "tsv"}
    for words in inline(page.read_text("utf-8")):
        found = re.match(r"([a-z]+)((?:\.[a-z_0-9]+)+)(?![\w/(])", words)
        if found and found[1] in sections and words.rpartition(".")[2] not in files:
            key = found[0]
            known = field_at(key) is not None or any(name.startswith(f"{key}.") for name in leaf_keys())
            assert known, f"{page.name} names the key {key}"


# --- what is written from the code ---------------------------------------------------------------------------


def test_the_pages_that_are_written_from_the_code_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/make_docs.py", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_the_journal_page_describes_every_column_event_and_trailer() -> None:
    text = (ROOT / "docs/journal.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w-]+)`", text, re.M)
    assert [row for row in rows if row in COLUMNS] == list(COLUMNS), "every column, in order"
    assert not KINDS - set(rows), "every kind of event"
    assert not set(TRAILERS) - set(rows), "every trailer"


def test_the_report_page_describes_every_field_of_the_summary() -> None:
    page = (ROOT / "docs/report.md").read_text("utf-8")
    sections = dict(re.findall(r"^### (\w[\w ]*)\n(.*?)(?=^### |\Z)", page, re.M | re.S))
    told = {title: re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", text, re.M) for title, text in sections.items()}
    kinds = [one for module in (night, story) for one in vars(module).values() if dataclasses.is_dataclass(one)]
    wanted = {one.__name__: [field.name for field in dataclasses.fields(one)] for one in kinds}  # type: ignore[union-attr]
    del wanted["PromptLine"]  # for `show --prompts`; no summary has it
    whole = wanted.pop("Night")
    wanted["The whole"] = ["format", *(name for name in whole if name != "format")]
    assert told == wanted


@dataclasses.dataclass
class Unexplained:
    known: int
    """Is explained;
    None of it is lost."""
    unknown: int
    other: str = ""
    """Is explained."""


@dataclasses.dataclass
class Explained:
    many: tuple[tuple[str, str], ...]
    """Pairs."""
    one: float | None = None
    """Seconds; None where it is not known."""


def test_a_field_of_the_summary_that_says_nothing_of_itself_is_no_page() -> None:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts/make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    make_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_docs)
    assert make_docs.field_words(Explained) == {"many": "Pairs.", "one": "Seconds; null where it is not known."}
    assert make_docs.shape(tuple[tuple[str, str], ...]) == "list of pairs of texts"
    assert make_docs.shape(float | None) == "number or null"
    with pytest.raises(SystemExit, match=r"Unexplained\.unknown says nothing of itself"):
        make_docs.field_words(Unexplained)


def test_the_example_of_the_playbook_does_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/playbook.md").read_text("utf-8")
    example = textwrap.dedent(re.findall(r"^   ```yaml\n(.*?)^   ```", page, re.M | re.S)[0])
    folder = shutil.copytree(ROOT / "hypotheses", tmp_path / "ws/hypotheses")
    (folder / "my-ideas.yaml").write_text(example)
    recipe = load_recipe(ROOT / "recipes/tiny-addition.yaml")
    ranking = plan(load_playbook(folder), recipe=recipe, only="my-broader")
    (proposal,) = ranking.proposals
    assert f"1. {proposal.score:.3f}  {proposal.subject}" in page
    assert ranking.note in page
    (folder / "my-ideas.yaml").write_text(example.replace("entropy_collapse", "entropy_colapse"))
    with pytest.raises(PlaybookError) as wrong:
        load_playbook(folder)
    assert f"hypotheses.0 (my-broader).answers: {wrong.value.message}" in page


def test_every_kind_of_verdict_is_explained() -> None:
    rows = re.findall(
        r"^\| `([a-z]+)` \| (?:keep|discard|crash) \|", (ROOT / "docs/verdicts.md").read_text("utf-8"), re.M
    )
    assert set(rows) == set(get_args(Kind))


@pytest.mark.parametrize("name", ["cost_of_reporting.py", "report_pages.py"])
def test_a_script_that_is_asked_for_help_explains_itself_and_does_nothing(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/benchmarks" / name), "--help"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python tests/benchmarks/{name}" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_script_is_explained_and_takes_the_options_that_are_named() -> None:
    scripts = sorted((ROOT / "tests/benchmarks").glob("*.py"))
    table = (ROOT / "docs/benchmarks.md").read_text("utf-8").split("## Scripts")[1].split("\n## ")[0]
    assert [path.name for path in scripts if f"`{path.name}" not in table] == []
    for page in PAGES:
        text = page.read_text("utf-8")
        for line in [*fenced(text), *inline(text)]:
            for name, rest in re.findall(r"python (tests/benchmarks/\w+\.py)([^#|]*)", line):
                for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
                    assert f'"{option}"' in (ROOT / name).read_text("utf-8"), f"{page.name}: {name} has no {option}"
