"""Variables of the user's that a recipe names: it has their names, the shell has their values."""

from __future__ import annotations

import os

from agent.errors import UsageError
from agent.recipe.schema import Verifier


def refuse_unset(verifier: Verifier) -> None:
    """UsageError where a variable that the verifier is to get is not set, or empty."""
    unset = [name for name in verifier.environment if not os.environ.get(name)]
    if unset:
        raise UsageError(
            f"{', '.join(unset)} is not set, and the verifier is to get it",
            where="task.verifier.environment",
            hint="export it in the shell that raft-agent is started from, or take it out of the list",
        )
