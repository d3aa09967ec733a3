"""Every error that a user can cause or mend, as one tree; only `agent/cli` prints them.

    AgentError                 1   something failed that has no better name
    |- UsageError              2   a command-line argument is wrong
    |- InvalidFile             3   a file the user wrote does not say what it must
    |  |- RecipeError          3   a recipe (file and key path are in the message)
    |  |- PlaybookError        3   a hypothesis or symptom file
    |  |- DataError            3   a data set row
    |     |- VerifierError     3   a user's verifier file
    |- Unavailable             4   a model, data set or package cannot be had (offline, missing, not a GGUF)
    |- WorkspaceError          5   not a workspace, or git is in a state we will not work in
    |- BudgetError             6   the budget affords nothing useful
    |- Busy                    7   another run holds this workspace
    |- TrainingFailed          8   a training crashed; the triage says why
    |- ResourceError           9   disk full, no permission, too many open files
    |- NumericError           10   loss or gradients are not finite
    |- Unsupported            11   this recipe asks for what this machine or version does not have

The number is the exit code of `raft-agent`. 0 is success, 130 a campaign or a training that Ctrl-C or
SIGTERM ended in good order.
"""

from __future__ import annotations


class AgentError(Exception):
    """A failure with a message for a person: what was wrong, where, and what to do.

    `crash_class` is what triage calls the failure when it happens inside a training
    (see `agent.contract.CRASH_CLASSES`).
    """

    exit_code = 1
    crash_class = "unknown"
    label = "error: "
    """What the message begins with on a terminal."""

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  {self.hint}" if self.hint else text


class UsageError(AgentError):
    exit_code = 2
    crash_class = "typo"


class InvalidFile(AgentError):
    exit_code = 3
    crash_class = "typo"


class RecipeError(InvalidFile):
    """A recipe that cannot be read or does not validate.

    `key` is the dotted path of the first offending key, `suggestion` a value or key that would be
    valid, where one can be named; the repair of a `typo` uses both.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        key: str | None = None,
        problem: str = "invalid",
        suggestion: object = None,
    ):
        super().__init__(message, where=where, hint=hint)
        self.key = key
        self.problem = problem
        self.suggestion = suggestion


class PlaybookError(InvalidFile):
    pass


class DataError(InvalidFile):
    crash_class = "data"


class VerifierError(DataError):
    """A user's verifier does not import, or fails on the responses that it is given. Its message ends in the exception
    line and, in brackets, `FILE.py:LINE`; what class of crash it is depends on that exception."""


class Unavailable(AgentError):
    exit_code = 4
    crash_class = "data"


class WorkspaceError(AgentError):
    exit_code = 5


class BudgetError(AgentError):
    exit_code = 6


class Busy(AgentError):
    exit_code = 7


class TrainingFailed(AgentError):
    exit_code = 8


class ResourceError(AgentError):
    exit_code = 9
    crash_class = "resource"


class NumericError(AgentError):
    exit_code = 10
    crash_class = "numeric"


class Unsupported(AgentError):
    exit_code = 11
    crash_class = "backend"


INTERRUPTED_EXIT_CODE = 130


def error_named(name: str, message: str, *, where: str | None, hint: str | None) -> AgentError | None:
    """The error of this tree that a trainer named in `failure.json`; None where the name is none of ours."""
    kind = globals().get(name)
    if isinstance(kind, type) and issubclass(kind, AgentError):
        error: AgentError = kind(message, where=where, hint=hint)
        return error
    return None
