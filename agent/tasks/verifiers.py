"""Verifiers: the only part of the program that extracts an answer from a response and says whether it is right.

What each kind takes for the answer, and when a response counts as `formatted`:

    kind          answer                                  formatted: an answer could be extracted
    exact         the whole response, stripped            where the right answer is a number, it is one; else not empty
    last_number   the last number in it                   it has a number
    delimited     what the last complete pair encloses    it has such a pair with something in it
    math          what math-verify extracts               math-verify extracts something
    python_tests  the last complete ``` block that        it is Python that compiles
                  defines what is tested, else all of it
    file          the user's function scores it           it scores above 0; at 0 nobody can tell

A response passes at score 1. `near`: it did not pass, but the right answer stands somewhere in it; for
`python_tests`, that other code in the response passes; `file` never says so, because nobody can tell. Rows of
reasoning_gym that are not right as text are put to the scoring rule of their data set by the first three kinds,
because many of its questions have several right answers; the partial credit of those rules is not passed on.

Text that a model wrote is executed by `python_tests`, and by the rules of a few reasoning_gym data sets. Both need
--allow-untrusted-code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.errors import DataError, UsageError
from agent.recipe import schema
from agent.tasks.code_verifier import CodeVerifier
from agent.tasks.example import Example
from agent.tasks.gym import RuleOfDataSet
from agent.tasks.scored_verifiers import MathVerifier, file_verifier
from agent.tasks.text_verifiers import delimited, exact, last_number
from agent.tasks.verdicts import AnswerVerifier, Verdict

__all__ = ["AnswerVerifier", "Verdict", "build_verifier", "refuse_hopeless_data"]

TEXT_KINDS = {"exact": exact, "last_number": last_number, "delimited": delimited}
ROWS_LOOKED_AT = 32


def build_verifier(config: schema.Verifier, *, base: Path, allow_untrusted_code: bool = False) -> AnswerVerifier:
    """The verifier that the recipe asks for; close it, or use it as a context manager.

    `base` is the folder that `verifier.file` is relative to. Raises UsageError where code of the model's would run
    without --allow-untrusted-code, DataError for a verifier file that is missing or does not import, Unavailable
    without math-verify, RecipeError for words that make no verifier.
    """
    match config.kind:
        case "math":
            return MathVerifier(timeout=config.timeout_seconds)
        case "file":
            return file_verifier(config, base=base)
        case "python_tests":
            if not allow_untrusted_code:
                raise UsageError(
                    "task.verifier.kind: python_tests runs code that the model wrote, with your rights",
                    hint="Say --allow-untrusted-code if that is what you want, best on a machine without secrets.",
                )
            return CodeVerifier(config)
        case "exact" | "last_number" | "delimited":
            rule = RuleOfDataSet(timeout=config.timeout_seconds, allow_untrusted_code=allow_untrusted_code)
            return TEXT_KINDS[config.kind](config, rule=rule)


def refuse_hopeless_data(
    verifier: AnswerVerifier, config: schema.Verifier, examples: Sequence[Example], *, dataset: str
) -> None:
    """DataError where the verifier rejects the data's own answers, so that no response could ever be rewarded.

    Only the text kinds tell: what a `file` passes is its own affair, code rows have no answer, and what `math` reads
    depends on how an answer is typeset.
    """
    if config.kind not in TEXT_KINDS:
        return
    before, after = (config.open, config.close) if config.kind == "delimited" else ("", "")
    looked_at = [(f"{before}{example.answer}{after}", example) for example in examples[:ROWS_LOOKED_AT]]
    verdicts = verifier.verify_many(looked_at)
    if any(verdict.passed for verdict in verdicts):
        return
    raise DataError(
        f"the {config.kind} verifier takes none of the first {len(verdicts)} rows' own answers for right: "
        f"of {_shortened(examples[0].answer)!r} it reads {verdicts[0].answer!r}",
        where=dataset,
        hint="task.answer_after names the text that the answer follows (`####` in GSM8K); or take another "
        "task.verifier.kind (`exact` compares texts).",
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:28]} ... {text[-28:]}"
