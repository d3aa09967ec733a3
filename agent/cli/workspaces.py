"""`init`, `check`, `finalize`: the workspace itself."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from agent.cli.app import app
from agent.cli.own_recipe import own_recipe, warning_of_few
from agent.cli.shared import here, model_cache, print_json, recipe_path
from agent.errors import AgentError, UsageError
from agent.text import one_line

if TYPE_CHECKING:
    from agent.campaign.capacity import MemoryCheck
    from agent.hardware.isolation import Isolation
    from agent.ledger.journal import CampaignState
    from agent.ledger.workspace import Workspace
    from agent.recipe.schema import Recipe


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

    extra = own_recipe(data, model, cache=model_cache()) if data is not None or model is not None else {}
    created = create_workspace(folder, extra=extra)
    root = created.workspace.root
    print(f"workspace {root}: {len(created.written)} files written, {len(created.kept)} kept as they were")
    if created.commit:
        print(f"  a git repository with one commit, {created.commit[:12]}")
    if data is not None and (few := warning_of_few(data)):
        print(f"warning: {few}", file=sys.stderr)
    if created.next_step:
        print(f"  next: {created.next_step}")
    name = "main" if extra else "tiny-addition"
    budget = "8h" if extra else "10m"
    print(f"  next: cd {shlex.quote(str(folder))} && raft-agent check && raft-agent run {name} --budget {budget}")


@app.command()
def check(
    recipe: str | None = typer.Argument(None, help="One recipe, with the memory that it needs. Default: all files."),
    keys: str | None = typer.Option(
        None, "--keys", metavar="SECTION", help="Explain the recipe's keys instead: `learner`, `task.reward`, or `all`."
    ),
    trust_remote_code: bool = typer.Option(
        False,
        "--trust-remote-code",
        help="Confirm that the Python files of the recipe's model may run with your rights. Read them first.",
    ),
    json_output: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """Validate recipes and hypotheses.

    Every file, and each hypothesis applied to each recipe that it fits. With a recipe: that one, and whether this
    machine has the memory for it, before anything is loaded.
    """
    if keys is not None:
        _explain_keys(keys, json_output=json_output)
        return
    from agent.campaign.capacity import too_large
    from agent.campaign.open import machine_of
    from agent.cli.memory_words import memory_json, print_memory
    from agent.hardware.isolation import isolation

    workspace = here()
    if trust_remote_code:
        _trust_remote_code(workspace, recipe)
    named = recipe is not None
    chosen = [workspace.root / recipe_path(workspace, recipe)] if named else sorted(workspace.recipes.glob("*.yaml"))
    recipes, counts, problems = _validated(workspace, chosen)
    memory = _memory_of(workspace, recipes)
    untrusted = [name for name, one in recipes.items() if one.task.verifier.runs_untrusted_code]
    kept_in = isolation() if untrusted else None
    if json_output:
        told = {name: memory_json(checked) for name, checked in memory.items()}
        sandbox = {"sandbox": dataclasses.asdict(kept_in)} if kept_in else {}
        print_json({**counts, "problems": problems, **sandbox, **({"memory": told} if named else {})})
    else:
        _print_check(workspace, counts, problems)
        if kept_in:
            _print_kept_in(kept_in, untrusted)
        if named:
            for checked in memory.values():
                print_memory(checked, machine_of(workspace))
        else:
            _print_too_large(memory)
    if problems:
        raise typer.Exit(3)
    if named:
        for name, checked in memory.items():
            if checked.fits is False:
                raise too_large(checked, where=name)


def _trust_remote_code(workspace: Workspace, recipe: str | None) -> None:
    """Remember that the user trusts the code of one recipe's model, and say what that means."""
    from agent.recipe.files import load_recipe
    from agent.recipe.trust import FLAG, code_of, confirm

    if recipe is None:
        raise UsageError(f"{FLAG}: of which recipe?", hint=f"raft-agent check RECIPE {FLAG}")
    path = recipe_path(workspace, recipe)
    code = code_of(load_recipe(workspace.root / path).model, base=workspace.root)
    if code is None:
        raise UsageError(f"{path} asks for no code of its model", hint="model.trust_remote_code: true would")
    kept = confirm(code)
    print(f"confirmed: trainings may run {code.words}, with your rights", file=sys.stderr)
    print(f"  remembered in {kept} until the code changes; take it back by deleting the entry there", file=sys.stderr)


def _validated(workspace: Workspace, paths: list[Path]) -> tuple[dict[str, Recipe], dict[str, int], list[str]]:
    """(valid recipes by name, what was counted, every problem of recipes, playbook, git and results table)."""
    from agent.campaign.open import machine_of, refuse_closed_doors
    from agent.ledger.git import Repository
    from agent.ledger.table import read_rows
    from agent.plan.playbook import check_playbook, load_playbook
    from agent.recipe.editing import refuse_uneditable
    from agent.recipe.files import extended_by, load_recipe
    from agent.recipe.reading import read_text
    from agent.run.signatures import rules_of

    problems: list[str] = []
    recipes: dict[str, Recipe] = {}
    # ideas are written into the recipe that is run: what others extend is only read, unless it is run itself
    extended = {extended_by(path) for path in paths} if len(paths) > 1 else set()
    for path in paths:
        try:
            found = load_recipe(path)
            recipes[workspace.relative(path)] = found
            if path.resolve() not in extended:
                refuse_uneditable(read_text(path), where=workspace.relative(path))
            refuse_closed_doors(found, base=workspace.root, name=workspace.relative(path))
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
        lambda: rules_of(workspace.hypotheses),
        lambda: Repository(workspace.root),
        lambda: read_rows(workspace.results) if workspace.results.exists() else [],
    ):
        try:
            look()
        except AgentError as error:
            problems.append(str(error))
    return recipes, counts, problems


def _memory_of(workspace: Workspace, recipes: dict[str, Recipe]) -> dict[str, MemoryCheck]:
    from agent.campaign.capacity import check_memory
    from agent.campaign.open import machine_of

    machine, cache = machine_of(workspace), model_cache()
    return {name: check_memory(one, machine, cache=cache, base=workspace.root) for name, one in recipes.items()}


def _print_too_large(memory: dict[str, MemoryCheck]) -> None:
    """Recipes for a larger machine are no problem of the files."""
    names = [Path(name).stem for name, checked in memory.items() if checked.fits is False]
    if names:
        print(f"too large for this machine, raft-agent check RECIPE says by how much: {', '.join(names)}")


def _explain_keys(section: str, *, json_output: bool) -> None:
    """Default, accepted values and meaning of each key."""
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


def _print_kept_in(kept_in: Isolation, names: list[str]) -> None:
    which = f"{names[0]} runs" if len(names) == 1 else f"{len(names)} recipes ({names[0]} is one) run"
    if kept_in.enough:
        print(f"{which} untrusted code, which is kept in by {kept_in.words}")
    else:
        print(f"{which} untrusted code and will need --allow-untrusted-code: there is only {kept_in.words}")


@app.command()
def finalize(
    name: str | None = typer.Argument(None, help="Campaign. Default: the last one."),
    json_output: bool = typer.Option(False, "--json", help="Print the branch as JSON."),
) -> None:
    """Branch with the kept ideas.

    One clean branch, one commit a kept idea, recipes only, ready for review and merge. Made again, it gets what was
    kept since; nothing of yours on it is rewritten.
    """
    from agent.ledger.git import NothingKept, Repository
    from agent.ledger.journal import Journal

    workspace = here()
    chosen = campaign_name(workspace, name)
    state = Journal(workspace.journal_path(chosen)).state()
    repository = Repository(workspace.root)
    try:
        final = repository.open_campaign(chosen, last_known_best=state.best_commit).finalize()
    except NothingKept as error:
        error.hint = _what_else_there_is(state) or error.hint
        raise
    followed = repository.contains("HEAD", final.base)
    span = f"{final.base[:12]}..{final.branch}"
    take = f"git merge {final.branch}" if followed else f"git cherry-pick {span}"
    if json_output:
        print_json(
            {**dataclasses.asdict(final), "campaign": chosen, "finished": state.status == "finished", "take": take}
        )
        return
    count = f"{len(final.commits)} commit{'s' if len(final.commits) != 1 else ''}"
    news = (
        f", {final.added} of them new" if 0 < final.added < len(final.commits) else "" if final.added else ", as before"
    )
    print(f"branch {final.branch}: {count}{news}, on {final.base[:12]}, {', '.join(final.files)}")
    for subject in final.subjects:
        print(f"  - {one_line(subject)}")
    if not final.kept:
        print("  no idea was kept: this is what made the recipe run")
    if final.beyond:
        print(f"  on top of it {final.beyond} of your own, which stay")
    if state.status != "finished":
        print("  the campaign is not finished: what it keeps later comes on top when this is made again")
    print(f"  look:  git log -p {span}")
    print(f"  take:  {take}{'' if followed else '  (your branch no longer has the commit that it started from)'}")


def _what_else_there_is(state: CampaignState) -> str | None:
    """Where nothing was kept, but something leads unconfirmed."""
    from agent.campaign.past import lead_of, past_of

    lead = lead_of(past_of(state), 0)
    return f"#{lead} leads without a verdict: raft-agent diff lead start shows it" if lead else None


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


def campaign_run(workspace: Workspace, folder: Path) -> tuple[str, str] | None:
    """(campaign, key) of the run that has this folder; None for one of no campaign."""
    real = folder.resolve()
    for name in workspace.campaign_names():
        if real.parent == workspace.runs_folder(name).resolve():
            return name, real.name
    return None
