"""`samples.jsonl`: what people read of an evaluation, whatever the model said."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract import SAMPLED_PROMPTS, SAMPLES, EvalRow, SampleText
from agent.raft.evaluate import Measured
from agent.raft.rollout import Completion
from agent.raft.samples import MOST_COMPLETION, MOST_PROMPT, shown, texts_of, write_samples
from agent.run.telemetry import texts_in


@dataclass
class Asked:
    """An examiner whose tokens are characters."""

    policy: Any = field(default_factory=lambda: SimpleNamespace(decode=lambda ids, special: "".join(map(chr, ids))))

    def prompt_of(self, example: str) -> list[int]:
        return list(map(ord, f"what is {example}?"))

    def text_of(self, completion: Completion) -> str:
        return "".join(map(chr, completion.tokens))


def measured(split: Any, prompts: int, samples: int = 2) -> Measured:
    rows = [
        EvalRow(split=split, id=f"p{prompt}", sample=sample, reward=prompt + sample / 10, passed=sample == 0,
                tokens=3, finish_reason="stop")
        for prompt in range(prompts) for sample in range(samples)
    ]  # fmt: skip
    firsts = [Completion(list(map(ord, f"it is {prompt}")), [], [], "stop") for prompt in range(prompts)]
    return Measured(rows, 0.5, 1, 1.0, firsts)


def texts(split: str, prompts: int) -> list[SampleText]:
    examples: Any = [str(prompt) for prompt in range(prompts)]
    examiner: Any = Asked()
    return texts_of(examiner, examples, measured(split, prompts))


@pytest.mark.parametrize(("prompts", "expected"), [(3, 3), (40, SAMPLED_PROMPTS)])
def test_the_first_sample_of_the_first_prompts_in_their_order(prompts: int, expected: int) -> None:
    found = texts("search", prompts)
    assert [row.id for row in found] == [f"p{number}" for number in range(expected)]
    assert found[2] == SampleText(
        split="search", id="p2", prompt="what is 2?", completion="it is 2", reward=2.0, passed=True,
        finish_reason="stop", tokens=3,
    )  # fmt: skip


@pytest.mark.parametrize("split", ["train", "confirm", "holdout"])
def test_nobody_gets_to_read_the_prompts_of_other_splits(split: str) -> None:
    assert texts(split, 3) == []


def test_an_evaluation_replaces_the_rows_of_the_one_before(tmp_path: Path) -> None:
    write_samples(tmp_path, texts("search", 5))
    write_samples(tmp_path, texts("select", 2))
    assert [(row.split, row.id) for row in texts_in((tmp_path / SAMPLES).read_bytes())] == [
        ("select", "p0"),
        ("select", "p1"),
    ]


hostile = st.text(st.characters(codec=None, categories=None) | st.sampled_from("\x00\x1b\x07\r\n\u202e\ud800\udfff"))


@given(prompt=hostile, completion=hostile, most=st.integers(100, 300), times=st.integers(1, 40))
def test_any_text_is_written_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, completion: str, most: int, times: int
) -> None:
    out = tmp_path_factory.mktemp("run")
    row = texts("search", 1)[0].model_copy(
        update={"prompt": shown(prompt * times, most), "completion": shown(completion, most)}
    )
    assert len(row.prompt) <= most
    write_samples(out, [row])
    assert texts_in((out / SAMPLES).read_bytes()) == [row]


def test_of_a_long_text_both_ends_stay_and_what_is_missing_is_said() -> None:
    text = "question: " + "x" * 5000 + " answer: 7"
    for most in (MOST_PROMPT, MOST_COMPLETION):
        cut = shown(text, most)
        assert len(cut) == most
        assert cut.startswith("question: xxx")
        assert cut.endswith("xxx answer: 7")
        assert f"[... {len(text) - most} characters and more left out ...]" in cut
    assert shown("x" * MOST_PROMPT, MOST_PROMPT) == "x" * MOST_PROMPT


def test_a_secret_is_taken_out_before_the_cut_could_halve_it() -> None:
    token = "hf_" + "a1B2" * 8
    for place in range(900, 1000, 7):
        assert "hf_" not in shown("x" * place + f" {token} " + "y" * 3000, MOST_PROMPT)
