"""Everything that is shipped works: recipes load, the playbook applies, the README's tree and commands are real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.campaign.budget import RunCost, plan_night
from agent.campaign.session import FIRST_EVALUATION_SHARE, OTHER_OVERHEAD_S
from agent.cli.app import app
from agent.cli.main import register
from agent.ledger.table import HEADER
from agent.plan.playbook import check_playbook, load_playbook
from agent.recipe.files import load_recipe, recipe_from, resolved_text
from agent.recipe.schema import leaf_keys

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_says_what_it_is(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.description
    import yaml

    assert recipe_from(yaml.safe_load(resolved_text(recipe)), where="again").signature() == recipe.signature()


def test_the_playbook_fits_the_recipes() -> None:
    playbook = load_playbook(ROOT / "hypotheses")
    assert check_playbook(playbook, {path.name: load_recipe(path) for path in RECIPES}) == []


def test_the_results_table_begins_with_its_header() -> None:
    assert (ROOT / "results.tsv").read_text().splitlines()[0] == HEADER


def test_the_readme_names_real_rooms_files_and_commands() -> None:
    text = (ROOT / "README.md").read_text()
    for room in re.findall(r"^(agent/\w+/|recipes/|hypotheses/|studies/|docs/) ", text, flags=re.M):
        assert (ROOT / room).is_dir(), room
    for target in re.findall(r"\]\(([\w/.-]+)\)", text):
        assert (ROOT / target).exists(), target
    register()
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    table = text.split("| command | does |")[1].split("\n\n")[0]
    for word in re.findall(r"`([a-z]+)", "".join(line.split("|")[1] for line in table.splitlines()[2:])):
        assert word in known, f"the README names a command {word}"
    assert known <= set(re.findall(r"[a-z]+", table)), "a command is missing in the README"


def ideas_a_night(name: str) -> int:
    """In eight hours, by the plan of before the first run."""
    train_s = load_recipe(ROOT / f"recipes/{name}.yaml").budget.train_seconds
    assert train_s is not None
    guess = RunCost(OTHER_OVERHEAD_S, train_s, FIRST_EVALUATION_SHARE * train_s)
    return plan_night(8 * 3600.0, guess, baseline_seeds=3, allow_fewer_seeds=True).ideas


def test_recipes_and_pages_promise_as_many_ideas_as_the_plan_does() -> None:
    table = (ROOT / "docs/hardware.md").read_text()
    told = dict(re.findall(r"^\| (qwen2\.5-\S+-gsm8k) \|.*\| (\d+) \|$", table, re.M))
    assert len(told) == 4
    assert {name: int(ideas) for name, ideas in told.items()} == {name: ideas_a_night(name) for name in told}
    found = {path.stem: re.findall(r"a night of about\s+(\d+) ideas", path.read_text()) for path in RECIPES}
    promised = {name: int(numbers[0]) for name, numbers in found.items() if numbers}
    assert promised == {name: ideas_a_night(name) for name in promised}
    assert "qwen2.5-0.5b-gsm8k" in promised


def test_the_recipe_keys_are_frozen() -> None:
    """A key that comes or goes is a decision: change the number here with it."""
    assert len(leaf_keys()) == 119
