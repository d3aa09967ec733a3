"""Shaping: from a verdict and a length to the training reward. It decides nothing about right or wrong."""

from __future__ import annotations

from agent.recipe.schema import Reward
from agent.tasks.verifiers import Verdict


def shape(reward: Reward, verdict: Verdict, *, tokens: int, max_new_tokens: int) -> float:
    """reward = clip(scale * level + format_bonus [formatted] - length_penalty * tokens / max_new_tokens).

    `tokens` is the length of the completion, at most `max_new_tokens`; both count tokens.
    """
    shaped = reward.scale * _level(reward, verdict)
    if verdict.formatted:
        shaped += reward.format_bonus
    shaped -= reward.length_penalty * min(tokens / max_new_tokens, 1.0)
    if reward.clip is not None:
        low, high = reward.clip
        shaped = min(max(shaped, low), high)
    return float(shaped)


def _level(reward: Reward, verdict: Verdict) -> float:
    """The verifier's score, or for a response that did not pass the highest graduated level it reaches."""
    if verdict.passed:
        return verdict.score
    near = reward.graduated.near if verdict.near else 0.0
    formatted = reward.graduated.formatted if verdict.formatted else 0.0
    return max(verdict.score, near, formatted, reward.graduated.partial * verdict.share)
