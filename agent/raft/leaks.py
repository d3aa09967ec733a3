"""A request whose wording holds a held-out question measures memory of the answer that stands beside it: refused.

Worked examples (`prompt.examples`) come from the training rows and so cannot; words that a person or a program wrote
can. What this does not find: the same problem in other words, or in the training data of the model.
"""

from __future__ import annotations

import re

from agent.errors import RecipeError
from agent.recipe.schema import Prompt
from agent.tasks.tasks import Splits

WORDINGS = ("system", "template", "answer_schema", "example_answer", "response_prefix")
SHORTEST = 4
"""Characters of a question that can be told from any other text."""


def refuse_leaked_questions(prompt: Prompt, splits: Splits) -> None:
    """RecipeError where a part of the prompt's wording contains the question of a held-out row as a whole."""
    wordings = {name: _plain(getattr(prompt, name) or "") for name in WORDINGS}
    wordings = {name: text for name, text in wordings.items() if len(text) >= SHORTEST}
    if not wordings:
        return
    for split in ("select", "search", "confirm", "holdout"):
        for example in getattr(splits, split):
            question = _plain(example.question)
            if len(question) < SHORTEST:
                continue
            for name, text in wordings.items():
                if question in text and re.search(rf"(?<!\w){re.escape(question)}", text):
                    raise RecipeError(
                        f"prompt.{name} contains the question of the held-out row {example.id} ({split}): its answer "
                        "would be told beforehand",
                        hint="Take it out of the prompt; prompt.examples shows rows of the training split instead.",
                        key=f"prompt.{name}",
                    )


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
