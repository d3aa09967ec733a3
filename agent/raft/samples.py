"""What a model said to the first few prompts of a split, as text: `samples.jsonl`, for people to read before and after.

Nothing is measured by it. The prompts that confirm a result are not in it, so that nobody words a recipe for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.contract import SAMPLED_PROMPTS, SAMPLED_SPLITS, SAMPLES, SampleText
from agent.files import write_atomic
from agent.raft.evaluate import Examiner, Measured
from agent.tasks.tasks import Example
from agent.text import redact

MOST_PROMPT = 2000
MOST_COMPLETION = 4000
"""Characters."""


def texts_of(examiner: Examiner, examples: Sequence[Example], measured: Measured) -> list[SampleText]:
    """The first sample of each of the first prompts of a split that may be read; none of another split."""
    found = []
    per_prompt = len(measured.rows) // len(examples)
    for place, completion in enumerate(measured.firsts[:SAMPLED_PROMPTS]):
        row = measured.rows[place * per_prompt]
        if row.split in SAMPLED_SPLITS:
            prompt = examiner.policy.decode(examiner.prompt_of(examples[place]), special=True)
            found.append(
                SampleText(
                    split=row.split,
                    id=row.id,
                    prompt=shown(prompt, MOST_PROMPT),
                    completion=shown(examiner.text_of(completion), MOST_COMPLETION),
                    reward=row.reward,
                    passed=row.passed,
                    finish_reason=row.finish_reason,
                    tokens=row.tokens,
                )
            )
    return found


def shown(text: str, most: int) -> str:
    """Without secrets, as text that a file can hold (half a surrogate is a question mark), and at most `most`
    characters: of a longer one the middle is left out, because a question and an answer stand at the end."""
    text = redact(text.encode("utf-8", "replace").decode())  # before it is cut: half a secret would not be found
    if len(text) <= most:
        return text
    mark = f" [... {len(text) - most} characters and more left out ...] "
    rest = most - len(mark)
    return f"{text[: rest // 2]}{mark}{text[-(rest - rest // 2) :]}"


def write_samples(out: Path, rows: Sequence[SampleText]) -> None:
    """Replace `samples.jsonl` by the rows of all splits measured so far."""
    write_atomic(out / SAMPLES, "".join(row.model_dump_json() + "\n" for row in rows))
