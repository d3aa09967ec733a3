"""What keeps untrusted code in on this machine, as `agent.tasks.layers` finds out in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.hardware.findings import Finding
from agent.hardware.probe import ask_child

LIMIT_S = 60.0


@dataclass(frozen=True)
class Isolation:
    enough: bool
    """For untrusted code to run without being told to (`--allow-untrusted-code`)."""
    words: str
    """The layers in force, and what is missing."""


def isolation(command: Sequence[str] | None = None) -> Isolation:
    """The layers that the sandbox has here; takes a third of a second."""
    answer, problem = ask_child(command or [sys.executable, "-m", "agent.tasks.layers"], timeout_s=LIMIT_S)
    if problem is not None or "words" not in answer:
        return Isolation(False, f"nothing that could be found out: {problem or 'no answer'}")
    return Isolation(answer.get("enough") is True, str(answer["words"]))


def isolation_findings(found: Isolation | None) -> Iterator[Finding]:
    if found is None:
        return
    if found.enough:
        yield Finding("sandbox", "night", "ok", "untrusted code is kept in", found.words)
        return
    yield Finding(
        "sandbox",
        "night",
        "note",
        "there is too little to keep untrusted code in",
        found.words,
        "Recipes that run what a model wrote (python_tests, untrusted verifiers) need --allow-untrusted-code here.",
        "one of these is enough: bubblewrap, where the system lets it have namespaces; namespaces for every user, as "
        "by the command below on Ubuntu; a kernel with Landlock and seccomp, 5.13 or newer\n"
        "$ sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        "docs/verifiers.md",
    )
