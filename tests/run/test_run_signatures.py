"""The rules of triage as data: ours are whole, a workspace's own come first, and what is wrong with a file is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.contract import CRASH_CLASSES
from agent.errors import InvalidFile
from agent.run.diagnosis import Evidence
from agent.run.signatures import FILES, OURS, Rank, Signature, our_rules, rules_of
from agent.run.triage import triage

RULE = """\
class: data
rules:
  - name: shard-gone
    says: a shard of our store is gone
    patterns: ['shardstore: E\\d+ ']
    example: 'shardstore: E17 no replica of shard 4'
    remedy: ask the storage people
"""


def own(folder: Path, text: str, name: str = "own.yaml") -> Path:
    path = folder / "crashes" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


def test_every_file_is_read_and_every_class_has_rules() -> None:
    assert sorted(path.stem for path in OURS.glob("*.yaml")) == sorted(FILES)
    assert {rule.crash_class for rule in our_rules()} == set(CRASH_CLASSES)


def judged_by_pattern() -> list[Signature]:
    return [rule for rule in our_rules() if rule.patterns]


@pytest.mark.parametrize("rule", judged_by_pattern(), ids=lambda rule: rule.name)
def test_the_example_of_a_rule_is_what_that_rule_says_of_a_log(rule: Signature) -> None:
    found = our_rules().match(rule.example)
    assert found is rule, found
    diagnosis = triage(Evidence(log=f"step 3\n{rule.example}\n", exit_code=1))
    assert diagnosis.crash_class == rule.crash_class, diagnosis
    assert diagnosis.remedy


def test_a_workspaces_own_rules_come_first_and_replace_ours_of_the_same_name(tmp_path: Path) -> None:
    log = "shardstore: E17 no replica of shard 4\n"
    assert triage(Evidence(log=log)).crash_class == "unknown"
    rules = rules_of(own(tmp_path, RULE))
    diagnosis = triage(Evidence(log=log), rules=rules)
    assert (diagnosis.crash_class, diagnosis.signature, diagnosis.remedy) == (
        "data", "shard-gone", "ask the storage people",
    )  # fmt: skip
    own(tmp_path, RULE.replace("shard-gone", "oom-device").replace("rules:", "rules:"), "more.yaml")
    assert [rule.name for rule in rules_of(tmp_path)].count("oom-device") == 1
    assert rules_of(None) is our_rules()
    assert rules_of(tmp_path / "nothing here") is our_rules()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RULE.replace("says:", "sys:"), r"rules\.0\.says: Field required"),
        (RULE.replace("class: data", "class: disk"), "class: Input should be"),
        (RULE.replace("E\\d+ ", "(E"), "shard-gone: a pattern is no regular expression"),
        (RULE.replace("E17", "X17"), "shard-gone: does not match its own example"),
        (RULE.replace("shardstore: E\\d+ ", ".*"), "shard-gone: a pattern matches every line"),
        (RULE.replace("    patterns: ['shardstore: E\\d+ ']\n", ""), "shard-gone: has no pattern"),
        (RULE + RULE.split("rules:\n")[1], "two rules have the name shard-gone"),
        ("class: data\nrules: [", "not valid YAML"),
        ("- a\n", "the file: Input should be"),
    ],
)
def test_what_is_wrong_with_a_file_of_rules_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidFile, match=message) as caught:
        rules_of(own(tmp_path, text))
    assert caught.value.where is not None
    assert "crashes/own.yaml" in caught.value.where


def test_an_empty_file_is_no_rule(tmp_path: Path) -> None:
    assert rules_of(own(tmp_path, "# nothing yet\n")) is our_rules()


def test_ranks_order_causes_before_what_follows_from_them() -> None:
    assert Rank.CAUSE < Rank.SPECIFIC < Rank.GENERIC < Rank.CASCADE
    assert our_rules()["oom-device"].rank == Rank.CAUSE
    assert our_rules()["collective"].rank == Rank.CASCADE
