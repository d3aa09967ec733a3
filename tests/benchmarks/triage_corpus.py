"""How often triage is right on a file of labelled crash logs, as it is and with noise around and inside.

    python tests/benchmarks/triage_corpus.py ../shared/data/crash_logs.jsonl [MORE.jsonl ...] [--remedies] [--wrong]

A line has `log`, `exit_code` (or null) and `label`; `fix` and `source` are shown beside our remedy with --remedies and
never given to the classifier.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "run")]

from log_noise import NOISE  # noqa: E402  (found on the path above)

from agent.contract import CRASH_CLASSES  # noqa: E402
from agent.run.diagnosis import Diagnosis, Evidence  # noqa: E402
from agent.run.triage import triage  # noqa: E402

SEED = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--remedies", action="store_true", help="our remedy beside what helped in the thread")
    parser.add_argument("--wrong", action="store_true", help="name the cases that are wrong")
    options = parser.parse_args()
    for path in options.files:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        report(path, rows, wrong=options.wrong)
        if options.remedies:
            remedies(rows)


def report(path: Path, rows: list[dict[str, Any]], *, wrong: bool) -> None:
    print(f"{path.name}: {len(rows)} cases")
    for name in NOISE:
        found = [judged(row, name) for row in rows]
        right = sum(one.crash_class == row["label"] for one, row in zip(found, rows, strict=True))
        print(f"  {name:<22} {right}/{len(rows)} ({right / len(rows):.1%})")
        if name == "as it is":
            plain = found
    confusion(rows, plain)
    confidence(rows, plain)
    for one, row in zip(plain, rows, strict=True):
        if wrong and one.crash_class != row["label"]:
            print(
                f"  {row.get('id')}: is {row['label']}, said {one.crash_class} ({one.signature}): {one.evidence[:80]}"
            )


def judged(row: dict[str, Any], noise: str) -> Diagnosis:
    log = NOISE[noise](row["log"], random.Random(f"{SEED} {row.get('id')}"))
    return triage(Evidence(log=log, exit_code=row["exit_code"]))


def confusion(rows: list[dict[str, Any]], found: list[Diagnosis]) -> None:
    counts = Counter((row["label"], one.crash_class) for row, one in zip(rows, found, strict=True))
    print(f"\n  {'is / said':<10}" + "".join(f"{name:>9}" for name in CRASH_CLASSES))
    for label in CRASH_CLASSES:
        print(f"  {label:<10}" + "".join(f"{counts[label, said] or '.':>9}" for said in CRASH_CLASSES))
    print()


def confidence(rows: list[dict[str, Any]], found: list[Diagnosis]) -> None:
    """How often it is right at each confidence that it states."""
    by: dict[float, list[bool]] = defaultdict(list)
    for row, one in zip(rows, found, strict=True):
        by[round(one.confidence, 2)].append(one.crash_class == row["label"])
    for stated, right in sorted(by.items(), reverse=True):
        print(f"  stated confidence {stated:.2f}: {sum(right)}/{len(right)} right")
    print()


def remedies(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row.get("fix"):
            one = judged(row, "as it is")
            print(f"  {row['id']} {row['label']} {one.signature}\n    theirs: {row['fix']}\n    ours:   {one.remedy}")


if __name__ == "__main__":
    main()
