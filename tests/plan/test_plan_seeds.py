"""Every content line of the two seed documents is carried by something in this repository (seeds_map.yaml)."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import yaml

from agent.plan.playbook import load_playbook
from agent.recipe.files import load_recipe
from agent.recipe.rates import usual_courses
from agent.recipe.schema import Learner

ROOT = Path(__file__).parents[2]
SEEDS = next((p for p in (ROOT / "shared/seeds", ROOT.parent / "shared/seeds") if p.is_dir()), None)
MAP = yaml.safe_load((Path(__file__).parent / "seeds_map.yaml").read_text(encoding="utf-8"))
ROWS = [(name, row) for name, rows in MAP.items() for row in rows]
BOOK = load_playbook(ROOT / "hypotheses")
STRUCTURE = re.compile(r"^(```\w*|-{3,}|\|[-| ]+\|)$")


@pytest.mark.parametrize(
    ("document", "row"), ROWS, ids=lambda value: str(value.get("line") if isinstance(value, dict) else value)
)
def test_the_target_of_every_seed_line_exists(document: str, row: dict) -> None:
    assert row["to"], f"{document}:{row['line']} goes nowhere"
    missing = [target for target in row["to"] if not exists(target)]
    assert not missing


def exists(target: str) -> bool:
    kind, _, name = target.partition(":")
    head, _, detail = name.partition("#")
    match kind:
        case "page":
            page = (ROOT / head).read_text(encoding="utf-8")
            return re.search(rf"^#+ {re.escape(detail)}$|^- \*\*{re.escape(detail)}\*\*", page, re.M) is not None
        case "recipe":
            return load_recipe(ROOT / "recipes" / f"{name}.yaml") is not None
        case "command":
            cli = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "agent/cli").rglob("*.py"))
            return f'"{name}"' in cli or f"def {name}(" in cli
        case "favor":
            return any(detail in condition for condition in BOOK.axes[head].favor_when)
        case "requires":
            return BOOK.hypotheses[name].requires.accelerators >= 2
        case "comparator":
            return bool(BOOK.hypotheses[name].comparator)
        case "status":
            return BOOK.hypotheses[name].status == "experimental"
        case "axis":
            return bool(BOOK.axes[name].look_here_when)
        case "rule":
            return any(name in rules for rules in (BOOK.resources, BOOK.crashes, BOOK.queues))
    parts = {
        "hypothesis": BOOK.hypotheses,
        "symptom": BOOK.symptoms,
        "watch": BOOK.watches,
        "reading": BOOK.readings,
        "action": BOOK.actions,
        "template": BOOK.templates,
        "ground-rule": BOOK.ground_rules,
        "fact": BOOK.facts,
    }
    return name in parts[kind]


@pytest.mark.skipif(SEEDS is None, reason="the seed documents (../shared/seeds) are not on this machine")
@pytest.mark.parametrize("document", MAP)
def test_no_content_line_of_the_seeds_is_missing_from_the_table(document: str) -> None:
    assert SEEDS is not None
    lines = (SEEDS / document).read_text(encoding="utf-8").splitlines()
    content = {
        number: hashlib.sha256(line.strip().encode()).hexdigest()[:12]
        for number, line in enumerate(lines, start=1)
        if line.strip() and not STRUCTURE.match(line.strip())
    }
    assert {row["line"]: row["hash"] for row in MAP[document]} == content


@pytest.mark.skipif(SEEDS is None, reason="the seed documents (../shared/seeds) are not on this machine")
def test_the_playbook_copies_no_sentence_of_the_seeds() -> None:
    assert SEEDS is not None
    ours = "\n".join(
        path.read_text(encoding="utf-8")
        for path in [*(ROOT / "hypotheses").glob("*.yaml"), *(ROOT / "docs").glob("*.md")]
    )
    for document in MAP:
        for line in (SEEDS / document).read_text(encoding="utf-8").splitlines():
            sentence = line.strip(" -*|#`").strip()
            if len(sentence.split()) >= 6:
                assert sentence not in ours


def test_every_try_of_an_axis_changes_something_and_every_watch_is_reported_or_probed() -> None:
    for _, row in ROWS:
        for target in row["to"]:
            kind, _, name = target.partition(":")
            if kind == "hypothesis":
                assert any(v.set or v.scale or v.toggle for v in BOOK.hypotheses[name].variants)
            if kind == "watch":
                used = {watch for hypothesis in BOOK.hypotheses for watch in BOOK.watches_of(hypothesis)}
                assert name in used


def test_templates_are_the_subjects_that_their_hypotheses_produce() -> None:
    for template in BOOK.templates.values():
        hypothesis = BOOK.hypotheses[template.hypothesis]
        axis, _, rest = template.pattern.partition(": ")
        what = rest.rpartition(", <old>")[0] or rest.rpartition(", float16")[0]
        assert axis == template.axis == BOOK.axis_of[hypothesis.id]
        assert what in {variant.what or hypothesis.what for variant in hypothesis.variants}


def test_the_quick_reference_shows_the_factors_that_the_calculator_prints() -> None:
    page = (ROOT / "docs/learning-rate.md").read_text(encoding="utf-8")
    rows = {
        "constant": "constant",
        "exponential 0.95": "exp 0.95",
        "exponential 0.85": "exp 0.85",
        "exponential 0.7": "exp 0.7",
        "step 0.5 every 2": "step /2",
        "linear": "linear",
        "cosine": "cosine",
        "hold, decay over the last 20% (wsd)": "wsd",
    }
    learner = Learner.model_validate({"learning_rate": 1, "lr_schedule": {"by": "cycle", "horizon": 8}})
    printed = {one.name: one.start for one in usual_courses(learner, 8)}
    assert set(rows.values()) == set(printed)
    for name, column in rows.items():
        row = re.search(rf"^\| {re.escape(name)} \|(.*)$", page, re.M)
        assert row is not None, name
        shown = [float(cell) for cell in row.group(1).split("|")[:8]]
        assert shown == pytest.approx(printed[column], abs=6e-4)
