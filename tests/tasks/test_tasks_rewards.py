"""Reward shaping against values computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from agent.recipe.schema import Graduated, Reward
from agent.tasks.rewards import shape
from agent.tasks.verifiers import Verdict

PASS = Verdict(1.0, True, True, False, "5")
FORMATTED = Verdict(0.0, False, True, False, "6")
NEAR = Verdict(0.0, False, False, True, None)
BOTH = Verdict(0.0, False, True, True, "6")
NOTHING = Verdict(0.0, False, False, False, None)
PARTIAL = Verdict(0.4, False, True, False, None)
HALF_TESTED = Verdict(0.0, False, True, False, "def f(): ...", share=0.5)
LEVELS = Graduated(formatted=0.25, near=0.5)


def reward_of(verdict: Verdict, tokens: int = 16, **settings: Any) -> float:
    return shape(Reward.model_validate(settings), verdict, tokens=tokens, max_new_tokens=64)


@pytest.mark.parametrize(
    ("verdict", "settings", "expected"),
    [
        # By default binary, whatever the format and the length.
        (PASS, {}, 1.0),
        (BOTH, {}, 0.0),
        (NOTHING, {}, 0.0),
        # A verifier's own partial score counts without any graduated level.
        (PARTIAL, {}, 0.4),
        # Levels: the highest that is reached; a pass is its score.
        (PASS, {"graduated": LEVELS}, 1.0),
        (FORMATTED, {"graduated": LEVELS}, 0.25),
        (NEAR, {"graduated": LEVELS}, 0.5),
        (BOTH, {"graduated": LEVELS}, 0.5),
        (PARTIAL, {"graduated": LEVELS}, 0.4),
        (NOTHING, {"graduated": LEVELS}, 0.0),
        # Code: 0.8 * 0.5 of its tests; it may be worth less than being in the format.
        (HALF_TESTED, {}, 0.0),
        (HALF_TESTED, {"graduated": {"partial": 0.8}}, 0.4),
        (HALF_TESTED, {"graduated": {"partial": 0.4, "formatted": 0.3}}, 0.3),
        (HALF_TESTED, {"graduated": {"partial": 0.8}, "scale": 2.0, "format_bonus": 0.1}, 0.9),
        (PASS, {"graduated": {"partial": 0.8}}, 1.0),
        # scale * level + bonus: 2 * 0.25 + 0.1 = 0.6; the bonus is not scaled and goes to passes too.
        (FORMATTED, {"graduated": LEVELS, "scale": 2.0, "format_bonus": 0.1}, 0.6),
        (PASS, {"format_bonus": 0.1}, 1.1),
        (NEAR, {"format_bonus": 0.1}, 0.0),
        # Length: 0.5 * 16 / 64 = 0.125.
        (PASS, {"length_penalty": 0.5}, 0.875),
        (NOTHING, {"length_penalty": 0.5}, -0.125),
        # Clipped last: 3 * 1 + 0.1 - 0.125 = 2.975 -> 2; -0.125 -> 0.
        (PASS, {"scale": 3.0, "format_bonus": 0.1, "length_penalty": 0.5, "clip": (0.0, 2.0)}, 2.0),
        (NOTHING, {"length_penalty": 0.5, "clip": (0.0, 2.0)}, 0.0),
    ],
)
def test_shape(verdict: Verdict, settings: dict[str, Any], expected: float) -> None:
    assert reward_of(verdict, **settings) == pytest.approx(expected, abs=1e-12)


def test_the_length_penalty_is_full_at_the_limit() -> None:
    assert reward_of(PASS, tokens=64, length_penalty=0.5) == pytest.approx(0.5)
    assert reward_of(PASS, tokens=0, length_penalty=0.5) == pytest.approx(1.0)
