"""Exact prompt ids, with small tokenizers built here: characters, and words with a chat template."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from agent.errors import DataError, Unsupported
from agent.recipe.schema import Prompt
from agent.tasks.example import Example
from agent.tasks.prompts import plain_text, render, shots_for

CHATML = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]

SUM = Example("12+34", "12+34=", "46")
OTHER = Example("11+11", "11+11=", "22")
PRODUCT = Example("7*8", "What is 7 * 8?", "56")
CODE = Example("1", "Reverse {tests}.", "", tests="assert rev('ab') == 'ba'")
SHOT = Example("2*3", "What is 2 * 3?", "6")


def tokenizer_of(*, chat_template: str | None = None, bos: bool = False, eos: bool = False) -> Any:
    """One token a character, special tokens whole; BOS and EOS put around a text where asked for."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL + CHARACTERS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    if bos or eos:
        backend.post_processor = processors.TemplateProcessing(
            single=("<s> " if bos else "") + "$A" + (" </s>" if eos else ""), special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=chat_template,
    )


def text_of(ids: list[int]) -> str:
    return "".join((SPECIAL + CHARACTERS)[token] for token in ids)


def rendered(prompt: Prompt, example: Example, tokenizer: Any, *shots: Example) -> str:
    return text_of(render(prompt, example, shots=shots, tokenizer=tokenizer))


# Without a chat template ------------------------------------------------------------------------------------


def test_a_sum_for_the_character_model_is_its_question_and_nothing_else() -> None:
    tokenizer = tokenizer_of()
    ids = render(Prompt(), SUM, tokenizer=tokenizer)
    assert text_of(ids) == "12+34="
    assert ids == [tokenizer.convert_tokens_to_ids(character) for character in "12+34="]


@pytest.mark.parametrize(
    ("prompt", "example", "shots", "text"),
    [
        ({"examples": 1}, SUM, [OTHER], "11+11=22\n12+34="),
        ({}, PRODUCT, [], "What is 7 * 8?\n"),
        ({"examples": 1}, PRODUCT, [SHOT], "What is 2 * 3?\n6\nWhat is 7 * 8?\n"),
        ({"template": "Q: {question}\nA:", "examples": 1}, SUM, [OTHER], "Q: 11+11=\nA: 22\n\nQ: 12+34=\nA:"),
        ({"template": "{question} \n"}, SUM, [], "12+34= \n"),
        ({"template": "{question} "}, SUM, [], "12+34= "),
        ({"system": "Add."}, SUM, [], "Add.\n\n12+34="),
        ({"answer_schema": "Write <answer>N</answer>."}, PRODUCT, [], "What is 7 * 8?\nWrite <answer>N</answer>.\n"),
        ({"response_prefix": "<answer>"}, PRODUCT, [], "What is 7 * 8?\n<answer>"),
        ({"template": "{question} or {answer}?"}, SUM, [], "12+34= or {answer}?\n"),
        ({"template": "{question}\nPass:\n{tests}"}, CODE, [], "Reverse {tests}.\nPass:\nassert rev('ab') == 'ba'\n"),
        ({"template": "{question} {tests}"}, SUM, [], "12+34= {tests}\n"),
        (
            {"examples": 1, "example_answer": "<answer>{answer}</answer>", "response_prefix": "<answer>"},
            PRODUCT,
            [SHOT],
            "What is 2 * 3?\n<answer>6</answer>\nWhat is 7 * 8?\n<answer>",
        ),
    ],
)
def test_plain_text(prompt: dict[str, Any], example: Example, shots: list[Example], text: str) -> None:
    settings = Prompt.model_validate(prompt)
    assert rendered(settings, example, tokenizer_of(), *shots) == text
    assert plain_text(settings, example, shots) + settings.response_prefix == text


def test_bos_is_the_tokenizers_own_and_a_trailing_eos_is_taken_off() -> None:
    for prompt, text in ((Prompt(), "<s>12+34="), (Prompt(response_prefix="4"), "<s>12+34=4")):
        assert rendered(prompt, SUM, tokenizer_of(bos=True)) == text
        assert rendered(prompt, SUM, tokenizer_of(bos=True, eos=True)) == text


# With a chat template ---------------------------------------------------------------------------------------


def test_a_chat_has_one_bos_and_ends_where_the_assistant_speaks() -> None:
    tokenizer = tokenizer_of(chat_template=CHATML, bos=True, eos=True)
    ids = render(Prompt(), PRODUCT, tokenizer=tokenizer)
    assert text_of(ids) == "<s><|user|>What is 7 * 8?<|end|><|assistant|>"
    assert ids == tokenizer.apply_chat_template(
        [{"role": "user", "content": PRODUCT.question}], add_generation_prompt=True, return_dict=False
    )


def test_a_chat_with_everything() -> None:
    prompt = Prompt(
        system="Be brief.",
        template="Q: {question}",
        answer_schema="Write <answer>N</answer>.",
        examples=1,
        example_answer="<answer>{answer}</answer>",
        response_prefix="<answer>",
    )
    assert rendered(prompt, PRODUCT, tokenizer_of(chat_template=CHATML), SHOT) == (
        "<s><|system|>Be brief.<|end|>"
        "<|user|>Q: What is 2 * 3?\nWrite <answer>N</answer>.<|end|><|assistant|><answer>6</answer><|end|>"
        "<|user|>Q: What is 7 * 8?\nWrite <answer>N</answer>.<|end|><|assistant|><answer>"
    )


def test_a_template_that_tells_the_date_tells_the_same_one_every_day() -> None:
    """As Llama 3.2's does: held-out prompts would change at midnight."""
    template = "{{ bos_token }}Today: {{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    tokenizer = tokenizer_of(chat_template=template, bos=True)
    assert rendered(Prompt(), PRODUCT, tokenizer) == "<s>Today: 26 Jul 2024 What is 7 * 8?"
    outside = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert f"{datetime.datetime.now():%Y}" in outside, "and nobody else's is changed"


def test_a_template_that_refuses_a_system_role_gets_it_in_the_first_turn() -> None:
    text = rendered(Prompt(system="Be brief."), PRODUCT, tokenizer_of(chat_template=NO_SYSTEM))
    assert text == "<s><|user|>Be brief.\n\nWhat is 7 * 8?<|end|><|assistant|>"


def test_chat_never_and_always() -> None:
    tokenizer = tokenizer_of(chat_template=CHATML, bos=True)
    assert rendered(Prompt(chat="never"), SUM, tokenizer) == "<s>12+34="
    assert rendered(Prompt(chat="always"), SUM, tokenizer) == "<s><|user|>12+34=<|end|><|assistant|>"
    with pytest.raises(Unsupported, match="no chat template"):
        render(Prompt(chat="always"), SUM, tokenizer=tokenizer_of())


# The boundary of the response prefix ------------------------------------------------------------------------


class Merging:
    """A tokenizer that joins `=` and a following `<` into one token, and puts `_` before a text on its own."""

    chat_template = None
    eos_token = None
    eos_token_id = None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(character) for character in ("_" + text).replace("=<", "#")]


def test_the_prefix_never_changes_the_ids_of_the_question() -> None:
    joined = render(Prompt(response_prefix="a"), SUM, tokenizer=Merging())
    assert "".join(map(chr, joined)) == "_12+34=a"
    merged = render(Prompt(response_prefix="<a"), SUM, tokenizer=Merging())
    assert "".join(map(chr, merged)) == "_12+34=_<a"


# Worked examples --------------------------------------------------------------------------------------------


def test_shots_are_seeded_distinct_and_from_train() -> None:
    train = [Example(str(number), f"{number}+1=", str(number + 1)) for number in range(20)] * 2
    prompt = Prompt(examples=4)
    shots = shots_for(prompt, train, seed=1)
    assert len({shot.question for shot in shots}) == 5
    assert set(shots) <= set(train)
    assert shots == shots_for(prompt, list(reversed(train)), seed=1)
    assert shots != shots_for(prompt, train, seed=2)
    assert shots_for(Prompt(), train, seed=1) == ()


def test_a_training_prompt_is_not_shown_its_own_answer() -> None:
    train = [Example(str(number), f"{number}+1=", str(number + 1)) for number in range(10, 14)]
    prompt = Prompt(examples=3)
    shots = shots_for(prompt, train, seed=0)
    assert len(shots) == 4
    for example in train:
        text = plain_text(prompt, example, [shot for shot in shots if shot != example][:3])
        assert rendered(prompt, example, tokenizer_of(), *shots) == text
        assert text.count("\n") == 3
        assert f"{example.question}{example.answer}" not in text


def test_too_few_rows_to_show() -> None:
    with pytest.raises(DataError, match=r"prompt\.examples is 2, but only 2"):
        shots_for(Prompt(examples=2), [SUM, OTHER], seed=0)
    with pytest.raises(DataError, match="only 0"):
        shots_for(Prompt(examples=1), [Example("a", "q", "", tests="assert f(1)")] * 5, seed=0)
