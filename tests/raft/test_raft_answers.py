"""Completions of earlier evaluations: found for the same weights and questions only, with what drawing them cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from raft_recipes import small_recipe

from agent.raft import evaluate
from agent.raft.answers import AnswerCache
from agent.raft.evaluate import Examiner
from agent.raft.policy import Policy
from agent.raft.rollout import Request, generate
from agent.raft.sampling import Sampling
from agent.tasks.example import Example
from agent.tasks.verifiers import build_verifier

SAMPLING = Sampling(temperature=1.0, max_new_tokens=6, max_total=32)
EXAMPLES = [Example(id=str(n), question=f"{n}+{n}=", answer=str(2 * n)) for n in range(10, 14)]


def test_known_answers_are_not_drawn_again_and_cost_what_they_did(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe()
    with build_verifier(recipe.task.verifier, base=tmp_path) as verifier:
        examiner = Examiner(recipe, policy, verifier, (), AnswerCache(tmp_path / "answers"))
        first = examiner.measure(EXAMPLES, split="select", samples=3, on_step=lambda: None)

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("drawn again")

        monkeypatch.setattr(evaluate, "generate", refuse)
        again = examiner.measure(EXAMPLES, split="select", samples=3, on_step=lambda: None)
        assert again.rows == first.rows
        assert all(row.digest for row in again.rows)
        assert again.seconds > 0
        file = next((tmp_path / "answers").glob("*.jsonl"))
        known = AnswerCache(tmp_path / "answers").get(file.stem)
        assert known is not None
        AnswerCache(tmp_path / "answers").put(file.stem, known[0], seconds=40.0)
        assert examiner.measure(EXAMPLES, split="select", samples=3, on_step=lambda: None).seconds >= 40
        with torch.no_grad():
            next(iter(policy.trainable().values()))[0, 0] += 1e-3
        with pytest.raises(AssertionError, match="drawn again"):
            examiner.measure(EXAMPLES, split="select", samples=3, on_step=lambda: None)


def test_weights_in_passing_leave_nothing_behind(policy: Policy, tmp_path: Path) -> None:
    recipe = small_recipe()
    with build_verifier(recipe.task.verifier, base=tmp_path) as verifier:
        examiner = Examiner(recipe, policy, verifier, (), AnswerCache(tmp_path / "answers"))
        passing = examiner.measure(EXAMPLES, split="select", samples=3, on_step=lambda: None, passing=True)
        assert not (tmp_path / "answers").exists()
        assert examiner.measure(EXAMPLES, split="select", samples=3, on_step=lambda: None).rows == passing.rows
        assert len(list((tmp_path / "answers").iterdir())) == 1


def test_whatever_decides_a_completion_is_in_the_key_and_the_number_of_slots_is_not(
    policy: Policy, tmp_path: Path
) -> None:
    cache = AnswerCache(tmp_path)
    asked = [Request([1, 2, 3], 2, 7)]
    key = cache.key(policy, asked, SAMPLING)
    ends_elsewhere = replace(policy)
    vars(ends_elsewhere)["stop_ids"] = frozenset({3})
    assert cache.key(policy, asked, replace(SAMPLING, slots=3)) == key
    for other in (
        cache.key(policy, asked, replace(SAMPLING, temperature=0.5)),
        cache.key(policy, asked, replace(SAMPLING, stop=("7",))),
        cache.key(policy, [replace(asked[0], seed=8)], SAMPLING),
        cache.key(ends_elsewhere, asked, SAMPLING),
        cache.key(policy, [replace(asked[0], samples=3)], SAMPLING),
        cache.key(policy, [replace(asked[0], prompt=[1, 2])], SAMPLING),
    ):
        assert other != key


def test_a_torn_file_is_drawn_anew(policy: Policy, tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    asked = [Request([1, 2, 3], 2, 7), Request([4, 5], 1, 8)]
    groups = generate(policy, asked, SAMPLING)
    cache.put("k", groups, seconds=1.5)
    found = cache.get("k")
    assert found is not None
    assert [[c.tokens for c in group] for group in found[0]] == [[c.tokens for c in group] for group in groups]
    assert found[1] == 1.5
    text = (tmp_path / "k.jsonl").read_text()
    for length in (0, 5, len(text) - 10):
        (tmp_path / "k.jsonl").write_text(text[:length])
        assert cache.get("k") is None
    assert cache.get("other") is None
