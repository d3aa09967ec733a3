"""How long the commands that read take on a campaign of many ideas.

    python tests/benchmarks/big_ledger.py FOLDER [--rows 10000] [--repeat 3] [--no-timing]

Makes FOLDER a workspace with one finished campaign: a journal with everything that a campaign writes (every fifth idea
was confirmed with four more runs, every fiftieth was fixed first, every hundredth is kept), and its results.tsv. Then
it times whole processes, medians, and what a campaign pays for each line that it writes. The shapes of the events are
those of a campaign of `recipes/tiny-addition.yaml`. It is no test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.campaign.seal import Seal
from agent.ledger.create import create_workspace
from agent.ledger.journal import Journal
from agent.ledger.table import append_row, read_rows, rebuild
from agent.ledger.workspace import Workspace

CAMPAIGN = "big"
RECIPE = "recipes/tiny-addition.yaml"
EVERY_CONFIRMED, EVERY_FIXED, EVERY_KEPT = 5, 50, 100
Fields = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-timing", action="store_true", help="only make the workspace")
    options = parser.parse_args()
    workspace = make(options.folder, options.rows)
    journal = workspace.journal_path(CAMPAIGN)
    lines = sum(1 for _ in journal.open("rb"))
    megabytes = journal.stat().st_size / 1e6, workspace.results.stat().st_size / 1e6
    print(f"{megabytes[0]:.0f} MB in {lines} lines, {megabytes[1]:.1f} MB of rows")
    if options.no_timing:
        return
    show = ["show", str(options.rows // 2)]
    for command in (["status"], ["log"], ["log", "--json"], show, ["report"], ["report", "again"], ["--help"]):
        again = command[-1:] == ["again"]
        before = journal.touch if command == ["report"] else lambda: None  # else its report is left as it is
        used = timed(command[:1] if again else command, workspace.root, options.repeat, before)
        print(f"raft-agent {' '.join(command):20} {used[0]:6.2f} s, {used[1]:6.2f} s of a processor, {used[2]:5.0f} MB")
    for what, seconds in paid_in_the_loop(workspace).items():
        print(f"{what:31} {1000 * seconds:6.1f} ms")


def paid_in_the_loop(workspace: Workspace, *, times: int = 20) -> dict[str, float]:
    """Median processor seconds of what a campaign of this size does for a line and a verdict. The journal is a copy."""
    copy = workspace.campaign_folder("copy") / "journal.jsonl"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(workspace.journal_path(CAMPAIGN), copy)
    journal = Journal(copy)
    rows = read_rows(workspace.results)
    told = {
        "read the journal": lambda number: journal.state(),
        "write a line and fold it in": lambda number: (journal.append("note", text="x" * number), journal.current()),
        "digest for a verdict": lambda number: (journal.append("note", text="x"), seal.so_far()),
        "change a row of results.tsv": lambda number: append_row(workspace.results, rows[-1] | {"seeds": str(number)}),
    }
    seal = Seal(journal)
    journal.append("note", text="the first line asks for the number of the last")
    seal.so_far()
    found = {}
    for what, work in told.items():
        seconds = []
        for number in range(3 if "read" in what else times):
            began = time.process_time()
            work(number)
            seconds.append(time.process_time() - began)
        found[what] = statistics.median(seconds)
    append_row(workspace.results, rows[-1])
    shutil.rmtree(copy.parent)
    return found


def timed(command: list[str], folder: Path, repeat: int, before: Callable[[], None]) -> tuple[float, float, float]:
    """Medians of whole processes, each after `before`: seconds, seconds of a processor, most memory (MB)."""
    found = []
    for _ in range(repeat):
        before()
        began = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", "agent.cli", *command], cwd=folder, stdout=subprocess.DEVNULL
        ) as process:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = status
        assert status == 0, command
        found.append((time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3))
    wall, processor, memory = (statistics.median(column) for column in zip(*found, strict=True))
    return wall, processor, memory


def make(folder: Path, rows: int, *, seed: int = 1) -> Workspace:
    """A workspace with that campaign; one that is there already is taken as it is."""
    workspace = create_workspace(folder).workspace
    journal = workspace.journal_path(CAMPAIGN)
    if journal.exists():
        return workspace
    head = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    text = (folder / RECIPE).read_text()
    journal.parent.mkdir(parents=True)
    table = []
    with journal.open("w") as file:
        for line, fields in _lines(_events(rows, text, commit, random.Random(seed))):
            file.write(line)
            if fields["kind"] == "experiment_judged":
                table.append(fields["row"])
    rebuild(workspace.results, table)
    return workspace


def _lines(events: Iterator[Fields]) -> Iterator[tuple[str, Fields]]:
    """With number, time, seconds consumed, and in each verdict the digest of what came before it."""
    digest = hashlib.sha256()
    for seq, event in enumerate(events, start=1):
        fields = {"kind": event.pop("kind"), "seq": seq, "time": 1.8e9 + 3.0 * seq, "consumed_s": 2.5 * seq, **event}
        if fields["kind"] == "experiment_judged":
            fields["before"] = digest.hexdigest()[:32]
        digest.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
        yield json.dumps(fields) + "\n", fields


def _events(rows: int, recipe: str, commit: str, rng: random.Random) -> Iterator[Fields]:
    options = {"recipe_path": RECIPE, "campaign": CAMPAIGN, "budget_s": None, "baseline_seeds": 2}
    lockbox = {f"code module_{number}.py": _hex(rng, 32) for number in range(100)}
    yield {
        "kind": "campaign_started", "campaign": CAMPAIGN, "recipe_path": RECIPE, "recipe": recipe,
        "base_commit": commit, "options": options, "files": {RECIPE: recipe}, "lockbox": lockbox,
    }  # fmt: skip
    yield {"kind": "campaign_branched", "commit": commit}
    yield from _run("untrained-search", 0, "baseline", "calibrate", "untrained", rng)
    for number in range(rows):
        yield from _experiment(number, recipe, commit, rng)
        if number == 0:
            yield _calibrated()
    yield {"kind": "campaign_finished", "reason": "the playbook is exhausted", "result": {"winner": None}}


def _calibrated() -> Fields:
    values = {
        "metric": "pass_rate", "untrained": 0.199, "baseline": 0.41, "sigma_run": 0.012, "seeds": 2,
        "smallest_detectable": 0.031, "tokens_per_s": 9050.0, "ideas": 40, "prompts": 256,
    }  # fmt: skip
    return {"kind": "calibrated", "values": values}


def _experiment(number: int, recipe: str, commit: str, rng: random.Random) -> Iterator[Fields]:
    """Plan, commit, runs, verdict, record."""
    rate = 10 ** rng.uniform(-5, -2)
    text = f"{recipe}\n# idea {number}\nlearner:\n  learning_rate: {rate:.3g}\n"
    yield _planned(number, text, rate, commit, rng)
    yield {
        "kind": "experiment_committed", "experiment": number, "commit": commit,
        "branch": f"raft/{CAMPAIGN}/exp/{number:05d}-raise-rate",
    }  # fmt: skip
    if number % EVERY_FIXED == 7:
        yield from _run(f"{number:05d}-search-s{number}", number, "experiment", "full", "candidate", rng, crash="oom")
        yield {"kind": "experiment_fixed", "experiment": number, "fix": 1, "subject": "memory: microbatch halved",
               "files": {RECIPE: text}, "crash_class": "oom", "why": "out of memory"}  # fmt: skip
        yield {"kind": "experiment_fixed", "experiment": number, "fix": 1, "commit": commit}
    yield from _run(f"{number:05d}-search-s{number}.2", number, "experiment", "full", "candidate", rng)
    if number % EVERY_CONFIRMED == 0:
        for arm in ("candidate", "incumbent", "candidate", "incumbent"):
            name = f"{number:05d}-{arm}-s{rng.randrange(10**6)}"
            yield from _run(name, number, "confirm", "confirm", arm, rng)
    yield _judged(number, rate, commit, rng)
    yield {"kind": "experiment_recorded", "experiment": number, "commit": commit, "best": 0.4}
    yield {"kind": "budget_tick"}


def _planned(number: int, text: str, rate: float, commit: str, rng: random.Random) -> Fields:
    claim = "A rate that is too low wastes the budget; the pass rate still rises at its end."
    return {
        "kind": "experiment_planned", "experiment": number, "hypothesis": "raise-rate", "axis": "learning-rate",
        "slug": "raise-rate", "subject": f"learning-rate: raise the rate, 5e-5 -> {rate:.3g}", "files": {RECIPE: text},
        "body": f"Symptom: slow_progress, pass rate +0.3pp a cycle over the last 4.\n\nClaim: {claim}",
        "trailers": {"Hypothesis": "raise-rate", "Symptom": "slow_progress", "Incumbent": "000"},
        "symptom": "slow_progress", "changes": {"learner.learning_rate": [5e-5, rate]},
        "recipe_signature": _hex(rng, 16), "parent_commit": commit, "variant": "up", "claim": claim,
        "evidence": "pass rate +0.3pp a cycle over the last 4 cycles, no truncation", "comparator": None,
        "why": ["prior 0.60", "the symptom is there", "nothing near it was tried"], "score": rng.random(),
        "watch": [{"signal": "grad_norm", "expect": "rises", "limit": 4.0}],
    }  # fmt: skip


def _run(
    name: str, number: int, role: str, rung: str, arm: str, rng: random.Random, *, crash: str | None = None
) -> Iterator[Fields]:
    signature = _hex(rng, 16)
    words = {
        "run": name, "experiment": number, "role": role, "rung": rung, "arm": arm, "seed": number,
        "recipe_signature": signature, "out": f".raft/runs/{CAMPAIGN}/{name}",
    }  # fmt: skip
    yield {"kind": "run_planned", **words}
    started = {"pid": 8342, "process_started": 607.55, "boot_id": "e6c2a8ec-4bee-4005-ab8b-bcc6fb307fc4"}
    yield {"kind": "run_started", **words, **started, "mark": _hex(rng, 16)}
    diagnosis = {"crash_class": crash, "reason": "out of memory", "source": "log", "signature": "torch-oom"}
    yield {
        "kind": "run_finished", "run": name, "ended_by": "itself", "exit_code": 1 if crash else 0, "elapsed_s": 31.2,
        "reason": "exit code 0", "summary": None if crash else _summary(signature, rng),
        "diagnosis": diagnosis if crash else None, "peak_rss_gb": 0.61, "load": _load(rng), "memory_events": "still",
        "memory_back": True, "held_gb": None, "notes": [], "used": {},
        "left": {file: _hex(rng, 32) for file in ("eval.jsonl", "summary.json", "recipe.yaml", "select.jsonl",
                 "checkpoint/config.json", "checkpoint/model.safetensors", "checkpoint/tokenizer.json")},
    }  # fmt: skip


def _summary(signature: str, rng: random.Random) -> Fields:
    return {
        "stopped": False, "ended_by": "budget", "seed": 1, "recipe_signature": signature, "cycles": 8, "starts": 1,
        "optimizer_steps": 64, "kept": 1873, "generated_tokens": 98311, "trained_tokens": 44120, "delivered_cycle": 7,
        "metric": "pass_rate", "metrics": {"search": rng.random()}, "select_metric": rng.random(), "load_s": 0.53,
        "train_s": 20.1, "evaluate_s": 2.8, "rung_s": None, "elapsed_s": 30.9, "tokens_per_s": 7086.1 + rng.random(),
        "peak_memory_gb": 0.59, "device": "cpu", "checkpoint": "checkpoint",
        "provenance": {
            "python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.24.0", "threads": 2, "products": "mkl",
            "device": "no accelerator that torch 2.13.0+cpu can use", "data": _hex(rng, 64),
        },
    }  # fmt: skip


def _load(rng: random.Random) -> Fields:
    return {
        "samples": 31, "seconds": 30.001, "accelerated": False, "cores_there": 2, "cores_used": 1.4 + rng.random(),
        "cores_used_peak": 2.0, "idle_share": {"evaluate": 0.0, "generate": 0.01, "train": 0.0},
        "memory_peak_share": 0.047, "resident_peak_gb": 0.61, "swap_growth_gb": 0.0, "pressure_some_peak": 0.0,
        "pressure_full_peak": 0.0, "notes": [],
    }  # fmt: skip


def _judged(number: int, rate: float, commit: str, rng: random.Random) -> Fields:
    confirmed = number % EVERY_CONFIRMED == 0
    outcome = "keep" if number % EVERY_KEPT == 0 else "discard"
    basis = _comparison(rng)
    reason = f"inconclusive: {100 * basis['delta']:+.1f}pp, the upper bound is above zero and the lower is not"
    looks = [_look(basis), _look(basis)] if confirmed else []
    row = {
        "index": number, "branch": f"raft/{CAMPAIGN}/exp/{number:05d}-raise-rate", "parent_commit": commit,
        "commit": commit, "recipe": RECIPE, "memory_gb": 0.59, "elapsed_min": 0.52, "launcher": "local",
        "command": f"python -m agent.raft.worker --recipe .raft/runs/{CAMPAIGN}/{number:05d}/recipe.yaml --seed 1",
        "log_path": f".raft/runs/{CAMPAIGN}/{number:05d}/log.txt", "campaign": CAMPAIGN, "seeds": 2 if confirmed else 1,
        "tokens_per_s": 7086.1, "started_at": "2026-11-27T16:13:46+00:00", "metric_name": "pass_rate",
        "metric_value": basis["candidate"], "status": outcome, "hypothesis": "raise-rate", "symptom": "slow_progress",
        "description": f"learning-rate: raise the rate, 5e-5 -> {rate:.3g}", "incumbent_value": basis["incumbent"],
        "change": f"learner.learning_rate 5e-05 -> {rate:.3g}", "delta": basis["delta"], "crash_class": None,
        "ci_low": basis["delta"] - 0.03, "ci_high": basis["delta"] + 0.03, "fixes": None, "reason": reason,
    }  # fmt: skip
    guards = [
        {"name": name, "incumbent": 200, "candidate": 200, "unit": "%", "limit": "above 50% and twice", "broken": ""}
        for name in ("evaluation", "truncation", "length", "unique")
    ]
    numbers = {
        "delta": basis["delta"], "metric_value": basis["candidate"],
        "kind": "gain" if outcome == "keep" else "inconclusive", "level": 0.003 if confirmed else None,
        "looks": looks, "flags": [], "guards": {}, "guard_readings": guards,
        "watches": [], "search": _comparison(rng), "basis": basis, "comparator": None, "p_value": rng.random(),
        "runs": {"search": [f"{number:05d}-search"], "candidate": [], "incumbent": []},
        "measured_by": {"metric": "pass_rate", "direction": "maximize", "min_effect": 0.0, "filter_level": 0.25,
                        "hold_p": 0.45, "alpha": 0.05},
    }  # fmt: skip
    note = "".join(f"{name}: {row[name]}\n" for name in ("status", "reason", "change", "metric_value", "delta"))
    return {"kind": "experiment_judged", "experiment": number, "outcome": outcome, "reason": reason, "note": note,
            "numbers": numbers, "row": row}  # fmt: skip


def _comparison(rng: random.Random) -> Fields:
    delta, error = rng.gauss(0.0, 0.02), 0.0128
    return {
        "delta": delta, "standard_error": error, "df": 12.52, "prompts": 256, "seeds_candidate": 1,
        "seeds_incumbent": 2, "pair_error": error / 2, "run_error": error * math.sqrt(0.75),
        "candidate": 0.4 + delta, "incumbent": 0.4,
        "better": 5, "worse": 1, "noise": {"between": 1.1e-4, "within": 2.7e-5, "df": 13},
    }  # fmt: skip


def _look(basis: Fields) -> Fields:
    return {
        "seeds_candidate": 1, "seeds_incumbent": 2, "delta": basis["delta"], "low": -0.02, "high": 0.05, "bar": 0.0,
        "p_value": 0.21, "said": "inconclusive", "level": 0.003, "bound": -0.021, "against": "incumbent",
    }  # fmt: skip


def _hex(rng: random.Random, digits: int) -> str:
    return f"{rng.getrandbits(4 * digits):0{digits}x}"


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    main()
