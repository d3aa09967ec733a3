"""The subject of an idea's commit: what changes, from what to what, on one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.plan.proposal import SUBJECT_LENGTH, subject_of

words = st.text("abc ", min_size=1, max_size=120).map(str.strip).filter(bool)


@given(old=words, new=words)
def test_it_fits_its_line_and_nothing_is_cut_that_has_room(old: str, new: str) -> None:
    subject = subject_of("prompt", "instruction", {"prompt.system": (old, new)}, ["prompt.system"])
    whole = f"prompt: instruction, {old} -> {new}"
    assert len(subject) <= SUBJECT_LENGTH
    if len(whole) <= SUBJECT_LENGTH and len(old) <= 38 >= len(new):  # the values of a subject are short ones
        assert subject == whole
    assert ("..." in subject) == (subject != whole)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"kind": "linear", "end": 1.3}, "none -> linear, end 1.3"),
        ({}, "none -> none"),
        ([1e-5, 2e-5], "none -> [1e-05, 2e-05]"),
        (None, "none -> none"),
    ],
)
def test_a_section_is_told_as_a_person_would(value: object, told: str) -> None:
    moves = {"rollout.temperature_schedule": (None, value)}
    subject = subject_of("exploration", "temperature across the training", moves, moves)
    assert subject == f"exploration: temperature across the training, {told}"
