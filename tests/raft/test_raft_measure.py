"""What a batch of samples says."""

from __future__ import annotations

import math

from agent.raft.measure import Batch, batch_row
from agent.raft.rollout import Completion
from agent.tasks.tasks import Example
from agent.tasks.verdicts import Verdict


def batch(*formatted: bool | None) -> Batch:
    """One prompt with a sample for each; the first sample passed."""
    completions = [Completion([number, 0], [-0.5, -0.1], [0.7, 0.3], "stop") for number in range(len(formatted))]
    verdicts = [Verdict(float(not n), not n, form, False, None) for n, form in enumerate(formatted)]
    rewards = [verdict.score for verdict in verdicts]
    return Batch([Example("a", "1+1=", "2")], [[1, 2, 3]], [completions], verdicts=[verdicts], rewards=[rewards])


def test_shares_of_a_batch_by_hand() -> None:
    row = batch_row(batch(True, True, False, False))
    assert (row["samples"], row["pass_rate"], row["format_rate"]) == (4, 0.25, 0.5)
    assert (row["all_solved_share"], row["all_failed_share"], row["zero_variance_share"]) == (0.0, 0.0, 0.0)
    assert (row["reward_mean"], row["completion_tokens_mean"], row["prompt_tokens_mean"]) == (0.25, 2.0, 3.0)
    assert math.isclose(row["reward_std"], math.sqrt(0.25 * 0.75))
    assert math.isclose(row["entropy"], 0.5)


def test_where_the_verifier_cannot_tell_the_format_its_rate_is_unknown() -> None:
    """A function of the user's that says 0 has not said whether it found an answer."""
    assert batch_row(batch(True, None, None))["format_rate"] is None
