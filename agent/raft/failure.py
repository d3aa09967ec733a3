"""What an exception of a training means, for `failure.json`."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

from agent.contract import FAILURE, Failure
from agent.errors import AgentError, VerifierError
from agent.files import write_atomic
from agent.raft import confine
from agent.raft.pulse import Pulse
from agent.text import redact

RESOURCE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}

NOT_ALLOWED = f"[Errno {errno.EACCES}]"


def failure_of(error: Exception, pulse: Pulse) -> Failure:
    """What `failure.json` says. `unknown` means that the log has to be read."""
    common: dict[str, Any] = {"exception": type(error).__name__, "phase": pulse.phase}
    if not isinstance(error, AgentError):
        error = confine.refusal(error) or error
    if isinstance(error, AgentError):
        return Failure(
            crash_class=error.crash_class,
            message=error.message,
            where=error.where,
            hint=confine.HINT if _verifier_was_refused(error) else error.hint,
            key=getattr(error, "key", None),
            suggestion=getattr(error, "suggestion", None),
            **common,
        )
    message = str(error).strip() or type(error).__name__
    if cause := _resource_error(error):
        return Failure(crash_class="resource", message=str(cause), where=getattr(cause, "filename", None), **common)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Failure(crash_class="oom", message=message, **common)
    return Failure(crash_class="unknown", message=message, **common)


def _verifier_was_refused(error: AgentError) -> bool:
    """A verifier runs in a process of its own; what it raised is in words, the path too."""
    return (
        isinstance(error, VerifierError) and confine.confined() and f"PermissionError: {NOT_ALLOWED}" in error.message
    )


def _resource_error(error: BaseException) -> BaseException | None:
    """What the operating system refused, in the chain of causes: torch and safetensors wrap it into their own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in RESOURCE_ERRORS:
            return seen
        if os.strerror(errno.ENOSPC) in str(seen):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def report(out: Path, failure: Failure) -> None:
    """A full disk must not hide the failure that it caused."""
    try:
        told = failure.model_copy(
            update={"message": redact(failure.message), "hint": redact(failure.hint or "") or None}
        )
        write_atomic(out / FAILURE, told.model_dump_json(indent=1) + "\n")
    except OSError as error:
        print(f"cannot write {FAILURE}: {error}", file=sys.stderr, flush=True)
