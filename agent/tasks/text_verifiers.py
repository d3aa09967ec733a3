"""`exact`, `last_number`, `delimited`: one extraction from the text, then a comparison. No child process, except for
rows of reasoning_gym that are not right as text: those go to the scoring rule of their data set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from agent.errors import RecipeError
from agent.recipe import schema
from agent.tasks.example import Example
from agent.tasks.gym import RuleOfDataSet
from agent.tasks.numbers import as_number, numbers_in, same_number
from agent.tasks.verdicts import Closing, OnEach, Pair, Verdict, collect

Extract = Callable[[str, Example, schema.Verifier], str | None]
Same = Callable[[str, str, schema.Verifier], bool]


class TextVerifier(Closing):
    """One way to find the answer in a response, and one to compare it with the row's.

    Given a response and a row with an answer. Returns score 1 where what was found is the answer, else 0; `formatted`
    where something was found; `near` where the right answer stands elsewhere in the response.
    """

    def __init__(self, config: schema.Verifier, extract: Extract, same: Same, *, rule: RuleOfDataSet):
        self._config = config
        self._extract = extract
        self._same = same
        self._rule = rule

    def verify(self, response: str, example: Example) -> Verdict:
        answer = self._extract(response, example, self._config)
        passed = answer is not None and self._is_right(answer, example)
        near = not passed and contains_answer(response, example.answer, self._config)
        return Verdict(float(passed), passed, answer is not None, near, answer)

    def verify_many(self, pairs: Sequence[Pair], *, on_each: OnEach | None = None) -> list[Verdict]:
        return collect((self.verify(response, example) for response, example in pairs), on_each)

    def close(self) -> None:
        self._rule.close()

    def _is_right(self, answer: str, example: Example) -> bool:
        if self._same(answer, example.answer, self._config):
            return True
        return self._rule.accepts(answer, example)


def exact(config: schema.Verifier, *, rule: RuleOfDataSet) -> TextVerifier:
    """The stripped response is the answer, character by character; with a tolerance, also as a number."""
    return TextVerifier(config, _whole, _same_text, rule=rule)


def last_number(config: schema.Verifier, *, rule: RuleOfDataSet) -> TextVerifier:
    """The last number of the response has the value of the answer."""
    return TextVerifier(config, _last_number, same_answer, rule=rule)


def delimited(config: schema.Verifier, *, rule: RuleOfDataSet) -> TextVerifier:
    """What the last complete pair of delimiters encloses is the answer, as a number or as text."""
    refuse_empty_delimiters(config)
    return TextVerifier(config, lambda response, _, config: between(response, config), same_answer, rule=rule)


def refuse_empty_delimiters(config: schema.Verifier) -> None:
    for key in ("open", "close"):
        if not getattr(config, key).strip():
            raise RecipeError(
                f"task.verifier.{key} is empty, so no answer could be found by it",
                key=f"task.verifier.{key}",
                hint="Give both delimiters, for example <answer> and </answer>.",
            )


# Extraction -------------------------------------------------------------------------------------------------


def _whole(response: str, example: Example, _: schema.Verifier) -> str | None:
    text = response.strip()
    if as_number(example.answer) is not None and as_number(text) is None:
        return None
    return text or None


def _last_number(response: str, _: Example, __: schema.Verifier) -> str | None:
    found = numbers_in(response)
    return found[-1][0] if found else None


def between(response: str, config: schema.Verifier) -> str | None:
    """What the last complete pair of delimiters encloses, stripped; None without a pair, or with nothing in it."""
    if config.open == config.close:
        parts = response.split(config.open)
        pairs = (len(parts) - 1) // 2
        found = [parts[2 * pairs - 1]] if pairs else []
    else:
        pattern = re.escape(config.open) + r"(.*?)" + re.escape(config.close)
        # `<answer> is where <answer>5</answer>` encloses `5`: an opening that is opened again begins anew.
        found = [text.rpartition(config.open)[2] for text in re.findall(pattern, response, re.DOTALL)]
    return (found[-1].strip() or None) if found else None


# Comparison -------------------------------------------------------------------------------------------------


def _same_text(answer: str, right: str, config: schema.Verifier) -> bool:
    tolerant = config.tolerance > 0 or config.relative_tolerance > 0
    return answer == right.strip() or (tolerant and same_answer(answer, right, config))


def same_answer(answer: str, right: str, config: schema.Verifier) -> bool:
    """Equal as numbers, within the tolerances, where both are numbers, else as stripped text."""
    value, right_value = as_number(answer), as_number(right)
    if value is None or right_value is None:
        return answer.strip() == right.strip()
    return same_number(value, right_value, tolerance=config.tolerance, relative=config.relative_tolerance)


def contains_answer(response: str, right: str, config: schema.Verifier) -> bool:
    """Whether the right answer stands anywhere in the response: as a number, or as whole words."""
    right = right.strip()
    if not right:
        return False
    value = as_number(right)
    if value is not None:
        absolute, relative = config.tolerance, config.relative_tolerance
        found = (number for _, number in numbers_in(response))
        return any(same_number(number, value, tolerance=absolute, relative=relative) for number in found)
    # In lower case, the letter of a multiple choice is a word of its own: `a`.
    flags = re.IGNORECASE if len(right) > 2 else re.NOFLAG
    return re.search(rf"(?<!\w){re.escape(right)}(?!\w)", response, flags) is not None
