"""Verifications that fail as such: the function raises, hangs, ends its process, returns NaN or None.

A single one must not end a night: among thousands of texts that a model wrote, one meets the `int()` that nobody
guarded. So it scores 0, which is never learned from as a success, and the first one is written to the log. But a
verifier that fails often is broken, and a training would only learn what it happens not to fail on: then it is an
error that names file, function, row and reason, within the first cycle.
"""

from __future__ import annotations

import logging
import threading

from agent.errors import VerifierError
from agent.tasks.example import Example
from agent.tasks.verdicts import Verdict

TOLERATED = 8
"""Faults that are borne whatever their share."""
TOLERATED_SHARE = 0.05
"""Share of the verifications so far up to which more are borne."""

LOG = logging.getLogger(__name__)


class Faults:
    """Counts the verifications of one verifier and how many failed as such."""

    def __init__(self, source: str, *, hint: str):
        """`source` names the verifier for people (`check.py:score`), `hint` what they can do about it."""
        self._source = source
        self._hint = hint
        self._checked = 0
        self._failed = 0
        self._lock = threading.Lock()

    def checked(self, verdict: Verdict, response: str, example: Example) -> Verdict:
        """The verdict, counted. Raises VerifierError where it is one fault too many."""
        with self._lock:
            self._checked += 1
            self._failed += verdict.fault
            checked, failed = self._checked, self._failed
        if not verdict.fault:
            return verdict
        case = f"on the response {response[:60]!r} to {example.id}: {verdict.note}"
        if failed > TOLERATED and failed > TOLERATED_SHARE * checked:
            raise VerifierError(
                f"the verifier failed on {failed} of {checked} responses, at last {case}",
                where=self._source,
                hint=self._hint,
            )
        if failed == 1:
            LOG.warning(
                "the verifier %s failed %s; this scores 0, and so will others, if they are few", self._source, case
            )
        return verdict
