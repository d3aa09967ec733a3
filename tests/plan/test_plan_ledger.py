"""What the planner gets to know of earlier tries: from the journal of this campaign, from results.tsv of others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plan_fixtures import BOOK, ROOT, named, tiny

from agent.campaign import choose
from agent.ledger.events import ConstraintLearned
from agent.ledger.journal import Journal
from agent.ledger.table import append_row, create_table
from agent.ledger.workspace import Workspace
from agent.plan.memory import Attempt, Moves, same_idea
from agent.plan.planner import plan
from agent.plan.proposal import Proposal
from agent.recipe.change import describe_moves
from agent.recipe.files import load_recipe, resolved_text, with_keys
from agent.recipe.schema import Recipe
from agent.run.remedies import moved_keys

RECIPE = "recipes/main.yaml"


class Campaign(SimpleNamespace):
    """As much of a session as the memory of earlier campaigns asks for."""

    def recipe_of(self, experiment: int) -> Recipe:
        return tiny()

    def base_of(self, experiment: int) -> int:
        return 0

    def moves_between(self, before: int, after: int) -> Moves:
        return moved_keys(self.recipe_of(before), self.recipe_of(after))

    def recipe_from(self, files: dict[str, str], *, label: str) -> Recipe:
        path = self.folder / f"{label}.yaml"
        path.write_text(files[self.recipe_path], encoding="utf-8")
        return load_recipe(path)


@pytest.fixture
def session(tmp_path: Path) -> Any:
    folder = Workspace(tmp_path).campaign_folder("now")
    folder.mkdir(parents=True)
    create_table(tmp_path / "results.tsv")
    return Campaign(
        workspace=tmp_path, table=tmp_path / "results.tsv", folder=folder, playbook=BOOK, recipe_path=RECIPE,
        settings=SimpleNamespace(campaign="now"),
    )  # fmt: skip


def row(session: Any, index: int, hypothesis: str, moves: dict[str, Any], **cells: Any) -> None:
    base = {
        "index": index, "campaign": "before", "recipe": RECIPE, "hypothesis": hypothesis, "status": "discard",
        "change": describe_moves(moves), "delta": -0.0123, "reason": "inconclusive: -1.2pp on search",
    }  # fmt: skip
    append_row(session.table, base | cells)


def journal(session: Any, recipe: Recipe) -> None:
    Journal(session.folder.parent / "before" / "journal.jsonl").append(
        "campaign_started", campaign="before", recipe_path=RECIPE, recipe=resolved_text(recipe), base_commit="0" * 40
    )


def test_every_proposal_is_known_again_from_its_row(session: Any) -> None:
    """Numbers lose digits and long texts their ends on the way; an idea stays the same idea."""
    strict = load_recipe(ROOT / "recipes/smollm2-strict.yaml")
    facts = with_keys(strict, {"model.lora": {"rank": 8}, "prompt.stop": ["x"], "rollout.temperature": 0.7})
    proposals: list[Proposal] = [p for recipe in (tiny(), strict, facts) for p in plan(BOOK, recipe=recipe).proposals]
    for index, proposal in enumerate(proposals, start=1):
        row(session, index, proposal.hypothesis, proposal.values)
    known = choose.earlier_attempts(session)
    assert [attempt.number for attempt in known] == list(range(1, len(proposals) + 1))
    for attempt, proposal in zip(known, proposals, strict=True):
        assert same_idea(attempt.values, proposal.values), (attempt.values, proposal.values)


def test_a_dead_end_of_an_earlier_campaign_is_one_here(session: Any) -> None:
    up = named(plan(BOOK, recipe=tiny()), "lr-peak", "up")
    row(session, 3, "lr-peak", up.values, symptom="learning_too_slow")
    (known,) = choose.earlier_attempts(session)
    assert (known.number, known.delta, known.symptom, known.campaign) == (3, -0.0123, "learning_too_slow", "before")
    after = plan(BOOK, recipe=tiny(), history=[known], campaign="now")
    reason = next(skip.reason for skip in after.skipped if skip.hypothesis == "lr-peak/up")
    assert reason.startswith("tried as #3 lr-peak in before: discard, -1.2pp; returns when one of ")


def test_what_an_earlier_campaign_gained_in_reward_is_told_in_its_unit(session: Any) -> None:
    up = named(plan(BOOK, recipe=tiny()), "lr-peak", "up")
    row(session, 3, "lr-peak", up.values, metric_name="mean_reward")
    (known,) = choose.earlier_attempts(session)
    assert (known.metric, known.result) == ("mean_reward", "discard, -0.012")


def test_rows_of_refinements_are_read_and_rows_of_unknown_hypotheses_are_not(session: Any) -> None:
    moves = {"learner.learning_rate": (2e-4, 3.1e-4), "learner.max_grad_norm": (1.0, 1.4)}
    row(session, 1, "refine-learning-rate", moves)
    row(session, 2, "refine-nothing", moves)
    row(session, 3, "baseline", {})
    (known,) = choose.earlier_attempts(session)
    assert (known.hypothesis, known.axis, known.values) == ("refine-learning-rate", "learning-rate", moves)


def test_another_recipe_file_another_model_or_another_task_is_another_story(session: Any) -> None:
    moves = {"learner.learning_rate": (2e-4, 4e-4)}
    row(session, 1, "lr-peak", moves)
    row(session, 2, "lr-peak", moves, recipe="recipes/other.yaml")
    assert [attempt.number for attempt in choose.earlier_attempts(session)] == [1]
    journal(session, tiny(learner__learning_rate=1e-3))
    assert [attempt.number for attempt in choose.earlier_attempts(session)] == [1]


@pytest.mark.parametrize("values", [{"model.source": "some/model"}, {"task.dataset": "builtin:arithmetic"}], ids=str)
def test_what_failed_with_another_model_or_task_says_nothing(session: Any, values: dict[str, Any]) -> None:
    row(session, 1, "lr-peak", {"learner.learning_rate": (2e-4, 4e-4)})
    journal(session, with_keys(tiny(), values))
    assert choose.earlier_attempts(session) == []
    session.folder = session.workspace / ".raft" / "scratch"  # of who only looks, as `plan` and `steer` do
    session.folder.mkdir()
    assert choose.earlier_attempts(session) == []


def test_a_limit_keeps_what_it_was_learned_with() -> None:
    event = ConstraintLearned.model_validate(
        {
            "kind": "constraint_learned", "seq": 1, "time": 0.0, "key": "rollout.slots", "relation": "<", "value": 64.0,
            "why": "out of memory", "experiment": 4, "context": {"model.dtype": "auto"},
        }
    )  # fmt: skip
    limit = choose._constraint(event)
    assert (limit.experiment, limit.context) == (4, {"model.dtype": "auto"})
    assert limit.broken_by(64)
    assert not limit.broken_by(63)


def test_an_attempt_of_this_campaign_has_number_form_symptom_and_what_ran(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = "learner.learning_rate"
    planned = SimpleNamespace(
        hypothesis="lr-peak", axis="learning-rate", changes={rate: [2e-4, 2e-3]}, recipe_signature="s",
        symptom="learning_too_slow", incumbent=None, model_extra={"variant": "far-up"},
    )  # fmt: skip
    judged = SimpleNamespace(outcome="discard", reason="regressed", numbers={"delta": -0.02}, crash_class=None)
    known = {"planned": planned, "judged": judged, "outcome": "discard", "fixes": {1: object()}}
    experiments = {number: SimpleNamespace(number=number, **known) for number in (0, 5)}
    session.state = SimpleNamespace(judged_order=[0, 5], experiments=experiments)
    session.evaluation = tiny().evaluation
    recipes = {0: tiny(), 5: tiny(learner__learning_rate=1e-3)}
    monkeypatch.setattr(Campaign, "recipe_of", lambda self, experiment: recipes[experiment])
    (attempt,) = choose.attempts(session)
    assert attempt == Attempt(
        hypothesis="lr-peak", axis="learning-rate", values={rate: (2e-4, 2e-3)}, signature="s", outcome="discard",
        reason="regressed", delta=-0.02, metric="pass_rate", campaign="now", number=5, variant="far-up",
        symptom="learning_too_slow", ran={rate: (2e-4, 1e-3)},
    )  # fmt: skip
