"""Write the parts of docs/ that are read off the program: keys of a recipe, commands, fields of a hypothesis and of a
report's summary, facts.

python scripts/make_docs.py            # writes them
python scripts/make_docs.py --check    # says which are not as they should be, and exits with 1
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from typer.models import ArgumentInfo, OptionInfo

from agent.cli.app import EPILOG, app
from agent.cli.main import register
from agent.plan.playbook import load_playbook
from agent.plan.schema import Hypothesis, Requires, Variant
from agent.recipe.files import recipe_from
from agent.recipe.keys import Key, describe_keys
from agent.recipe.reading import read_yaml
from agent.recipe.schema import Recipe, section_of
from agent.report.night import Night

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python scripts/make_docs.py"
WRITTEN = f"<!-- Written by `{COMMAND}`; what you change here is lost. -->"

SECTIONS = {
    "model": "Which model, in which arithmetic, and which of its weights are trained.",
    "task": "Where prompts come from, which of them are drawn, and what a response is worth. Data sets and verifiers: "
    "[verifiers.md](verifiers.md).",
    "rollout": "How many completions of which prompts a cycle samples, and how.",
    "selection": "Which of the sampled completions are trained on. The choice is made prompt by prompt.",
    "learner": "How the kept samples are trained on. Rates across cycles: [learning-rate.md](learning-rate.md).",
    "execution": "In which order and where sampling and training happen. This version runs `sync` on one device and "
    "refuses the rest, with the reason.",
    "backend": "What computes. Presets and what they set: [hardware.md](hardware.md#environment).",
    "evaluation": "How a result is measured. All of it is locked; what it means for a verdict: "
    "[verdicts.md](verdicts.md).",
    "budget": "What one training may spend: exactly one of the first three. A campaign's own budget is an option of "
    "`raft-agent run`, not a key.",
}
"""Where the schema has no words of its own for a section, or these say where to read on."""

EXAMPLE = """\
description: sums of two numbers, with the answer in tags
model:
  source: builtin:tiny
task:
  dataset: builtin:addition
  verifier: {kind: delimited, open: "<answer>", close: "</answer>"}
  reward: {format_bonus: 0.1}
prompt:
  answer_schema: Put the number between <answer> and </answer>.
rollout:
  prompts_per_cycle: 32
  samples_per_prompt: 8
  max_new_tokens: 24
  max_total_sequence_length: 128
selection:
  max_per_prompt: 2
learner:
  learning_rate: 1.0e-4
  lr_schedule: {kind: exponential, by: cycle, decay: 0.85}
evaluation:
  search_prompts: 256
  max_new_tokens: 24
budget:
  cycles: 8
"""


def pages() -> dict[Path, str]:
    """Every page that is written, whole, with the parts of others that are."""
    rates, playbook, report = (ROOT / f"docs/{name}.md" for name in ("learning-rate", "playbook", "report"))
    return {
        ROOT / "docs/recipe.md": recipe_page(),
        ROOT / "docs/commands.md": commands_page(),
        rates: with_block(rates, "known-against-testing", known_table()),
        playbook: with_block(playbook, "hypothesis-fields", hypothesis_fields()),
        report: with_block(report, "summary-fields", summary_fields()),
    }


# --- docs/recipe.md ------------------------------------------------------------------------------------------


def recipe_page() -> str:
    recipe_from(read_yaml(EXAMPLE, where="EXAMPLE"), where="the example of docs/recipe.md")
    keys = describe_keys()
    top = [key for key in keys if "." not in key.name]
    parts = [
        "# The recipe",
        WRITTEN,
        prose(
            f"A recipe is one YAML file in `recipes/` that says everything about a training: {len(keys)} keys, of "
            "which `model.source`, `task.dataset` and one of the budgets are all that must be there. "
            "`raft-agent check` validates every recipe of the workspace, `raft-agent check RECIPE` says how much "
            "memory one needs, and `raft-agent check --keys learner` prints a part of this page."
        ),
        "\n".join(
            [
                "- `extends: other.yaml` takes everything from another recipe; what this one says counts over it, key",
                "  by key. Lists and free mappings (`task.mix`) replace what was there.",
                "- Numbers are YAML 1.2: `5e-5` is one. An unknown key is refused, with the nearest one named.",
                "- A campaign writes its ideas into the file: anchors, and layouts that take none, are refused.",
                "- **locked**: the key decides how a result is measured. No hypothesis may change it; you may, and",
                "  the next campaign goes by it ([verdicts.md](verdicts.md#what-is-locked-and-how)).",
                "- A section that is `null` unless it is written has its defaults as soon as it is: `lora: {}`.",
            ]
        ),
        "## A complete recipe",
        f"```yaml\n{EXAMPLE}```",
        "## Keys of the recipe itself",
        table(top),
    ]
    for name, field in Recipe.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            parts += section_parts(name, section, keys, level=2)
    return "\n\n".join(parts) + "\n"


def section_parts(path: str, section: type[BaseModel], keys: list[Key], *, level: int) -> list[str]:
    own = [key for key in keys if key.name.rpartition(".")[0] == path]
    words = SECTIONS.get(path) or " ".join((section.__doc__ or "").split("\n\n")[0].split())
    parts = [f"{'#' * level} `{path}`", *([prose(words)] if words else []), table(own)]
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is None:
            continue
        below = section_parts(f"{path}.{name}", inner, keys, level=3)
        if type(None) in getattr(field.annotation, "__args__", ()):
            below.insert(
                1, prose(f"`null` unless it is written. {' '.join((field.description or '').split())}".strip())
            )
        parts += below
    return parts


def table(keys: list[Key]) -> str:
    rows = [
        f"| `{key.name}` | {default(key)} | {cell(key.accepts)} | "
        f"{'**locked** ' if key.locked else ''}{cell(key.meaning)} |"
        for key in keys
    ]
    return "\n".join(["| key | default | accepts | meaning |", "|---|---|---|---|", *rows])


def default(key: Key) -> str:
    return "required" if key.default == "required" else f"`{key.default}`"


def cell(text: str) -> str:
    """As it may stand in a table: bars and what looks like HTML outside of code are escaped."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


def prose(text: str) -> str:
    return textwrap.fill(text, width=110, break_long_words=False, break_on_hyphens=False)


# --- docs/commands.md ----------------------------------------------------------------------------------------


def commands_page() -> str:
    register()
    commands = {command.name or command.callback.__name__: command.callback for command in app.registered_commands}
    ordered = readme_order(list(commands))
    parts = [
        "# Commands",
        WRITTEN,
        prose(
            "What `raft-agent COMMAND --help` prints, in the order of the README's table. `RECIPE` is a path, a file "
            f"name in `recipes/`, or its stem; a command finds its workspace from the current folder upward. {EPILOG}"
        ),
        ", ".join(f"[{name}](#{name})" for name in ordered),
    ]
    for name in ordered:
        parts += command_parts(name, commands[name])
    return "\n\n".join(parts) + "\n"


def readme_order(names: list[str]) -> list[str]:
    """As the command table of the README first names them; what it lacks comes last."""
    rows = (ROOT / "README.md").read_text(encoding="utf-8").split("| command | does |")[1].split("\n\n")[0]
    places = {name: rows.find(f"`{name}") for name in names}
    return sorted(names, key=lambda name: (places[name] < 0, places[name], name))


def command_parts(name: str, function: Any) -> list[str]:
    types = typing.get_type_hints(function)
    given = {one.name: one.default for one in inspect.signature(function).parameters.values()}
    arguments = {one: info for one, info in given.items() if isinstance(info, ArgumentInfo)}
    options = {one: info for one, info in given.items() if isinstance(info, OptionInfo) and not info.hidden}
    shown = {one: (info.metavar or one).upper() for one, info in arguments.items()}
    words = [shown[one] if info.default is ... else f"[{shown[one]}]" for one, info in arguments.items()]
    rows = [f"| `{shown[one]}` | {help_of(info)} |" for one, info in arguments.items()]
    rows += [f"| {option_words(one, info, types[one])} | {help_of(info)} |" for one, info in options.items()]
    paragraphs = [prose(" ".join(part.split())) for part in (function.__doc__ or "").split("\n\n")]
    needed = [option_words(one, info, types[one]).strip("`") for one, info in options.items() if info.default is ...]
    usage = " ".join(["raft-agent", name, *words, *needed, *(["[OPTIONS]"] if options else [])])
    return [f"## {name}", f"`{usage}`", *paragraphs, "\n".join(["| | |", "|---|---|", *rows])]


def option_words(name: str, option: OptionInfo, kind: Any) -> str:
    plain = "--" + name.replace("_", "-")
    names = list(option.param_decls or [plain] + ([f"--no-{plain[2:]}"] if kind is bool else []))
    if kind is bool:
        return ", ".join(f"`{one}`" for part in names for one in part.split("/"))
    return f"`{names[0]} {value_words(option, kind)}`"


def value_words(option: OptionInfo, kind: Any) -> str:
    if option.metavar:
        return option.metavar.replace("|", "\\|")
    words = {float: "NUMBER", int: "N", Path: "PATH"}
    kinds = {kind, *typing.get_args(kind)}
    return next((word for one, word in words.items() if one in kinds), "TEXT")


def help_of(info: Any) -> str:
    text = cell(" ".join((info.help or "").split()))
    plain = isinstance(info.default, int | float | str) and not isinstance(info.default, bool)
    return (
        f"{text} [default: {info.default}]" if isinstance(info, OptionInfo) and plain and info.default != "" else text
    )


# --- docs/learning-rate.md -----------------------------------------------------------------------------------


def known_table() -> str:
    """What the playbook knows and supposes: its facts."""
    rows = []
    for fact in load_playbook(ROOT / "hypotheses").facts.values():
        tests = ", ".join(f"`{name}`" for name in fact.tested_by)
        rows.append(f"| {cell(fact.says)} | {fact.status} | {cell(fact.source)} | {tests} |")
    return "\n".join(["| aspect | state | source | put to the test by |", "|---|---|---|---|", *rows])


def with_block(page: Path, name: str, block: str) -> str:
    """The page with `block` between its lines `<!-- NAME begin -->` and `<!-- NAME end -->`."""
    begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"{page} lacks the lines {begin} and {end}")
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


# --- docs/playbook.md ----------------------------------------------------------------------------------------


def hypothesis_fields() -> str:
    """Every field of a hypothesis, of its forms and of what they require."""
    rows = ["| field | default | means |", "|---|---|---|"]
    for prefix, model in (("", Hypothesis), ("variants[].", Variant), ("requires.", Requires)):
        for name, field in model.model_fields.items():
            value = "required" if field.is_required() else f"`{shown_default(field.get_default())}`"
            rows.append(f"| `{prefix}{name}` | {value} | {cell(' '.join((field.description or '').split()))} |")
    return "\n".join(rows)


def shown_default(value: Any) -> str:
    return "{}" if isinstance(value, BaseModel) else json.dumps(value)


# --- docs/report.md ------------------------------------------------------------------------------------------

TYPES = {
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
    int: ("whole number", "whole numbers"),
    float: ("number", "numbers"),
    typing.Any: ("anything", "anything"),
}
"""One of it, and several."""


def summary_fields() -> str:
    """Every field of `summary.json`: of the whole, then of each kind of object in it, as they first occur."""
    parts = []
    for kind in objects_in(Night):
        hints, words = typing.get_type_hints(kind), field_words(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        if kind is Night:
            names = ["format", *(name for name in names if name != "format")]
        rows = [f"| `{name}` | {shape(hints[name])} | {cell(words[name])} |" for name in names]
        title = "The whole" if kind is Night else kind.__name__
        parts += [f"### {title}", prose(as_json_has_it(kind.__doc__ or ""))]
        parts.append("\n".join(["| field | type | is |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def objects_in(kind: type, known: dict[type, None] | None = None) -> list[type]:
    """The dataclass and those that its fields hold, however deep."""
    known = {} if known is None else known
    known.setdefault(kind)
    inner = [one for hint in typing.get_type_hints(kind).values() for one in dataclasses_in(hint)]
    for one in inner:
        if one not in known:
            objects_in(one, known)
    return list(known)


def dataclasses_in(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint):
        yield typing.cast(type, hint)
    for inner in typing.get_args(hint):
        yield from dataclasses_in(inner)


def shape(hint: Any, *, several: bool = False) -> str:
    """A type as a reader of JSON has it."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in TYPES:
        return TYPES[hint][several]
    if dataclasses.is_dataclass(hint):
        name = typing.cast(type, hint).__name__
        return f"[{name}](#{name.lower()})"
    if kind is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if kind is types.UnionType and type(None) in inner:
        return " or ".join([*(shape(one, several=several) for one in inner if one is not type(None)), "null"])
    if kind is Mapping or kind is dict:
        return f"by name: {shape(inner[1])}"
    if kind is tuple and Ellipsis not in inner:
        return f"{'pairs' if several else 'pair'} of {shape(inner[0], several=True)}"
    if kind in (tuple, list):
        return f"list of {shape(inner[0], several=True)}"
    raise SystemExit(f"no words for the type {hint}")


def field_words(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    found = {}
    for field, below in zip(body, [*body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        text = below.value if isinstance(below, ast.Expr) else None
        if not isinstance(text, ast.Constant):
            raise SystemExit(f"{kind.__module__}: {kind.__name__}.{field.target.id} says nothing of itself")
        found[field.target.id] = as_json_has_it(str(text.value))
    return found


def as_json_has_it(text: str) -> str:
    """On one line."""
    return " ".join(text.split()).replace("None", "null")


def main(arguments: list[str]) -> int:
    wanted = pages()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if arguments == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not up to date; run: {COMMAND}", file=sys.stderr)
        return 1 if stale else 0
    if arguments:
        print(__doc__)
        return 2
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
