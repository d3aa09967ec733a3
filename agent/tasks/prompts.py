"""From a question to the exact token ids that a model is asked with.

Two forms. With a chat template: system, worked examples as earlier turns, the question, and the template's own
opening of the assistant's turn; the template writes its own beginning-of-text token, so none is added. Without one:
the same words concatenated. There the text ends where the response has to begin: directly after a question that
ends with `=` or `:`, on a new line after any other. Whatever the form, `prompt.response_prefix` comes last; it is
part of the response for the verifier (the caller puts it before the decoded completion) but not trained.

Nothing here decodes, truncates or pads.
"""

from __future__ import annotations

import contextlib
import datetime
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, Self

from agent.errors import DataError, Unsupported
from agent.recipe.schema import Prompt
from agent.tasks.example import Example


def render(prompt: Prompt, example: Example, *, shots: Sequence[Example] = (), tokenizer: Any) -> list[int]:
    """Token ids of the request, `response_prefix` included.

    The first `prompt.examples` of `shots` whose question is another one are shown (see `shots_for`). Raises
    Unsupported for `prompt.chat: always` on a tokenizer without a chat template.
    """
    shown = [shot for shot in shots if shot.question != example.question][: prompt.examples]
    if uses_chat(prompt, tokenizer):
        text = _chat_text(prompt, example, shown, tokenizer)
        return _with_prefix(prompt, text, tokenizer, add_special_tokens=False)
    return _with_prefix(prompt, plain_text(prompt, example, shown), tokenizer, add_special_tokens=True)


def shots_for(prompt: Prompt, train: Sequence[Example], *, seed: int) -> tuple[Example, ...]:
    """`prompt.examples` worked examples from the training rows, and one to spare.

    The spare one takes the place of a worked example that is itself the question being asked, so that no training
    prompt is shown its own answer. Raises DataError where the rows do not suffice or have no answer to show.
    """
    if prompt.examples == 0:
        return ()
    answered = {row.question: row for row in train if row.answer}
    if len(answered) <= prompt.examples:
        raise DataError(
            f"prompt.examples is {prompt.examples}, but only {len(answered)} training questions have an answer to show",
            hint="Lower prompt.examples, or raise task.train_prompts; rows with tests only have no answer to show.",
        )
    questions = random.Random(f"shots/{seed}").sample(sorted(answered), prompt.examples + 1)
    return tuple(answered[question] for question in questions)


def uses_chat(prompt: Prompt, tokenizer: Any) -> bool:
    """Whether the request is wrapped in the tokenizer's chat template."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if prompt.chat == "always" and not has_template:
        raise Unsupported(
            "prompt.chat is `always`, but this model's tokenizer has no chat template",
            hint="Set prompt.chat to `auto` or `never`, or choose an instruction-tuned model.",
        )
    return has_template and prompt.chat != "never"


def user_text(prompt: Prompt, example: Example) -> str:
    """The user turn: template with the row's words in it, then the answer schema on a line of its own."""
    words = {"{question}": example.question} | ({"{tests}": example.tests} if example.tests else {})
    # In one pass, so that braces in a question stay what they are.
    text = re.sub("|".join(map(re.escape, words)), lambda found: words[found.group()], prompt.template)
    return f"{text}\n{prompt.answer_schema}" if prompt.answer_schema else text


def plain_text(prompt: Prompt, example: Example, shots: Sequence[Example] = ()) -> str:
    """The request without a chat template, `response_prefix` not included."""
    asked = user_text(prompt, example)
    between = "\n\n" if "\n" in asked.strip() else "\n"
    parts = [f"{prompt.system}\n\n"] if prompt.system else []
    for shot in shots:
        turn = user_text(prompt, shot)
        parts.append(turn + _before_answer(turn) + _shot_answer(prompt, shot) + between)
    parts.append(asked)
    # A space at the end of a prompt is a token that the model rarely saw before an answer: it starts the answer.
    parts.append(_before_answer(asked).rstrip(" "))
    return "".join(parts)


def _before_answer(turn: str) -> str:
    """What stands between a question and its answer in running text."""
    if turn.endswith(("=", "\n", " ")):
        return ""
    return " " if turn.endswith(":") else "\n"


def _shot_answer(prompt: Prompt, shot: Example) -> str:
    return prompt.example_answer.replace("{answer}", shot.answer)


def _chat_text(prompt: Prompt, example: Example, shots: Sequence[Example], tokenizer: Any) -> str:
    """The rendered chat, up to the point where the assistant is to speak."""
    from jinja2.exceptions import TemplateError

    turns: list[dict[str, str]] = []
    for shot in shots:
        turns.append({"role": "user", "content": user_text(prompt, shot)})
        turns.append({"role": "assistant", "content": _shot_answer(prompt, shot)})
    turns.append({"role": "user", "content": user_text(prompt, example)})
    if not prompt.system:
        return _apply(tokenizer, turns)
    try:
        return _apply(tokenizer, [{"role": "system", "content": prompt.system}, *turns])
    except TemplateError:
        # Some templates (Gemma's) refuse a system role; there the words go before the first user turn.
        first = {"role": "user", "content": f"{prompt.system}\n\n{turns[0]['content']}"}
        return _apply(tokenizer, [first, *turns[1:]])


def _apply(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    with _one_day():
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


class _Day(datetime.datetime):
    """Some templates (Llama 3.2's) tell the model today's date. Held-out prompts must not change at midnight, nor a
    training that goes on the next day; this is the day that the same template names where it knows none."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Self:
        return cls(2024, 7, 26, tzinfo=tz)


@contextlib.contextmanager
def _one_day() -> Iterator[None]:
    """transformers takes the day from the clock of the machine, and takes none from who calls."""
    from transformers.utils import chat_template_utils

    templates: Any = chat_template_utils
    before = templates.datetime
    templates.datetime = _Day
    try:
        yield
    finally:
        templates.datetime = before


def _with_prefix(prompt: Prompt, text: str, tokenizer: Any, *, add_special_tokens: bool) -> list[int]:
    """Ids of the text, then ids of `response_prefix` that leave those of the text as they are."""
    ids = _encode(tokenizer, text, add_special_tokens=add_special_tokens)
    if not prompt.response_prefix:
        return ids
    joined = _encode(tokenizer, text + prompt.response_prefix, add_special_tokens=add_special_tokens)
    if joined[: len(ids)] == ids:
        # Preferred: SentencePiece tokenizers put a space before a text that is encoded on its own.
        return joined
    return ids + _encode(tokenizer, prompt.response_prefix, add_special_tokens=False)


def _encode(tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[int]:
    """Ids of `text` with what the tokenizer puts before it (BOS); what it may put after it (EOS) is taken off."""
    ids = [int(token) for token in tokenizer.encode(text, add_special_tokens=add_special_tokens)]
    ends_itself = bool(tokenizer.eos_token) and text.endswith(tokenizer.eos_token)
    if add_special_tokens and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not ends_itself:
        return ids[:-1]
    return ids
