from __future__ import annotations

import json

from agent.recipe.keys import describe_keys
from agent.recipe.schema import leaf_keys


def test_every_key_is_described_with_its_meaning() -> None:
    keys = describe_keys()
    assert {key.name: key.locked for key in keys} == leaf_keys()
    assert all(len(key.meaning) > 5 for key in keys)


def test_what_a_key_accepts_is_read_off_the_schema() -> None:
    accepts = {key.name: key.accepts for key in describe_keys()}
    assert accepts["learner.learning_rate"] == "number; > 0, <= 1"
    assert accepts["rollout.max_total_sequence_length"] == "whole number; >= 8, <= 1048576"
    assert accepts["budget.tokens"] == "whole number | null; >= 1"
    assert accepts["model.lora.targets"] == "all-linear | list of text"
    assert accepts["task.reward.clip"] == "[number, number] | null"
    assert accepts["task.mix"] == "mapping to number"
    assert accepts["selection.dedup"] == "true | false"


def test_defaults_are_those_of_the_schema() -> None:
    defaults = {key.name: key.default for key in describe_keys()}
    assert defaults["model.source"] == "required"
    assert json.loads(defaults["learner.learning_rate"]) == 5e-5
    assert defaults["prompt.stop"] == "[]"


def test_a_section_is_what_stands_at_and_below_a_path() -> None:
    assert [key.name for key in describe_keys("task.reward.graduated")] == [
        "task.reward.graduated.formatted",
        "task.reward.graduated.near",
        "task.reward.graduated.partial",
    ]
    assert [key.name for key in describe_keys("seed")] == ["seed"]
    assert describe_keys("learn") == []
