"""Verifiers: the only part of the program that extracts an answer from a response and says whether it is right.

What each kind takes for the answer, and when a response counts as `formatted`:

    kind           answer                                  formatted: an answer could be extracted
    exact          the whole response, stripped            where the right answer is a number, it is one; else not empty
    last_number    the last number in it                   it has a number
    delimited      what the last complete pair encloses    it has such a pair with something in it
    regex          the group of the pattern's last match   it matches, with something in the group
    math           what math-verify extracts               math-verify extracts something
    reasoning_gym  what the last complete pair encloses    it has such a pair with something in it
    python_tests   the last complete ``` block that        it is Python that compiles
                   defines what is tested, else all of it
                   (see `agent.tasks.code_verifier`)
    python:F:f     the user's function scores it           it scores above 0; at 0 nobody can tell

A response passes at score 1. Scores between 0 and 1 come from `reasoning_gym` and from a user's function; the others
say 0 or 1, and `python_tests` says besides, where it is asked to, which share of the assertions holds. `near`: it did
not pass, but the right answer stands somewhere in it; for `python_tests`, that other code in the response passes; a
user's function never says so, because nobody can tell. Rows of `reasoning_gym:` data sets that are not right as text
are put to the scoring rule of their data set by the text kinds and `regex`, because many of its questions have
several right answers; the partial credit of those rules is passed on by `reasoning_gym` only.

Tolerances make numbers equal at |found - right| <= max(tolerance, relative_tolerance * |right|).

Text that a model wrote is executed by `python_tests`, and by the rules of a few reasoning_gym data sets. Both run in
the sandbox, and so does a user's function with `untrusted: true`; where a system has too little to make one of
(`agent.tasks.layers`), they need --allow-untrusted-code.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.errors import DataError, VerifierError
from agent.recipe import schema
from agent.tasks.code_verifier import CodeVerifier
from agent.tasks.example import Example
from agent.tasks.gym import RuleOfDataSet
from agent.tasks.layers import refuse_without_walls
from agent.tasks.scored_verifiers import GymVerifier, MathVerifier, RegexVerifier, function_verifier
from agent.tasks.text_verifiers import delimited, exact, last_number
from agent.tasks.verdicts import AnswerVerifier, Verdict

__all__ = ["AnswerVerifier", "Verdict", "build_verifier", "refuse_hopeless_data"]

RULED_KINDS: dict[str, Callable[..., AnswerVerifier]] = {
    "exact": exact,
    "last_number": last_number,
    "delimited": delimited,
    "regex": RegexVerifier,
    "reasoning_gym": GymVerifier,
}
"""Kinds that may ask the rule of a reasoning_gym data set."""
OWN_ANSWER = {
    "exact": "{answer}",
    "last_number": "{answer}",
    "delimited": "{open}{answer}{close}",
    "reasoning_gym": "{open}{answer}{close}",
    "math": "${answer}$",
    "python_tests": "{answer}",
}
"""A response that holds the row's own answer as the kind wants it; of other kinds nobody can tell."""
ROWS_LOOKED_AT = 32
SLOW_ROWS_LOOKED_AT = 4
"""Of the kinds that need a process for each row, or a child that takes a moment to start."""

LOG = logging.getLogger(__name__)


def build_verifier(
    config: schema.Verifier, *, base: Path, allow_untrusted_code: bool = False, count_assertions: bool = False
) -> AnswerVerifier:
    """The verifier that the recipe asks for; close it, or use it as a context manager.

    `base` is the folder that the file of `python:FILE.py:FUNCTION` is relative to. `count_assertions` lets
    `python_tests` work out which share of the assertions holds, for `task.reward.graduated.partial`. Raises
    UsageError where untrusted code would run with too little around it and without --allow-untrusted-code, DataError
    for a verifier file that is missing or does not import, Unavailable without math-verify, RecipeError for words that
    make no verifier.
    """
    if config.own_function() is not None:
        return function_verifier(config, base=base, allow_untrusted_code=allow_untrusted_code)
    if config.kind == "math":
        return MathVerifier(config)
    if config.kind == "python_tests":
        return _kept_in(CodeVerifier(config, count_assertions=count_assertions), allowed=allow_untrusted_code)
    rule = RuleOfDataSet(timeout=config.timeout_seconds, allow_untrusted_code=allow_untrusted_code)
    return RULED_KINDS[config.kind](config, rule=rule)


def _kept_in(verifier: CodeVerifier, *, allowed: bool) -> CodeVerifier:
    """The verifier, where what keeps its code in is enough, or the user has said that it may run all the same."""
    try:
        what = "task.verifier.kind: python_tests runs code that a model wrote"
        refuse_without_walls(verifier.layers(), what=what, allowed=allowed)
    except BaseException:
        verifier.close()
        raise
    return verifier


def refuse_hopeless_data(
    verifier: AnswerVerifier, config: schema.Verifier, examples: Sequence[Example], *, dataset: str
) -> None:
    """DataError where no response could ever be rewarded: the verifier fails on every row's own answer (a user's own:
    VerifierError), or rejects it.

    Looked at are the first rows. Where only some of them fail, the log says which: whatever a response to them says,
    it is wrong. Whether an own answer passes is not asked of `regex` and of a user's function, which may want any
    form, nor of rows that have no answer.
    """
    text_kind = config.kind in ("exact", "last_number", "delimited")
    rows = examples[: ROWS_LOOKED_AT if text_kind else SLOW_ROWS_LOOKED_AT]
    if config.kind in OWN_ANSWER:
        rows = [example for example in rows if example.answer]
    if not rows:
        return
    verdicts = verifier.verify_many([(_own_answer(config, example), example) for example in rows])
    if all(verdict.fault for verdict in verdicts):
        raise (VerifierError if config.own_function() is not None else DataError)(
            f"the verifier {config.kind} fails on the own answers of all of the first {len(rows)} rows; "
            f"{rows[0].id}: {verdicts[0].note}",
            where=dataset,
            hint="Mend the verifier, or the rows that it is given.",
        )
    failing = [place for place, verdict in enumerate(verdicts) if not verdict.passed]
    if not failing or config.kind not in OWN_ANSWER:
        return
    if len(failing) == len(rows):
        raise DataError(
            f"the {config.kind} verifier takes none of the first {len(rows)} rows' own answers for right: "
            f"of {_shortened(rows[0].answer)!r} it reads {verdicts[0].answer!r}",
            where=dataset,
            hint="task.answer_after names the text that the answer follows (`####` in GSM8K); or take another "
            "task.verifier.kind (`exact` compares texts).",
        )
    first = rows[failing[0]]
    LOG.warning(
        "%s: the %s verifier rejects the own answers of %d of the first %d rows, %s (%r) among them; "
        "no response to these can pass",
        *(dataset, config.kind, len(failing), len(rows), first.id, _shortened(first.answer)),
    )


def _own_answer(config: schema.Verifier, example: Example) -> str:
    words = {"{answer}": example.answer, "{open}": config.open, "{close}": config.close}
    # In one pass, so that braces in an answer stay what they are.
    form = OWN_ANSWER.get(config.kind, "{answer}")
    return re.sub(r"\{(?:answer|open|close)\}", lambda found: words[found.group()], form)


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:28]} ... {text[-28:]}"
