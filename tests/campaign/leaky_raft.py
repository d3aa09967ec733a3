"""The fake trainer as the worst of libraries: it tells its environment and whatever secrets it can find, everywhere.

The file that LOOT names holds secrets, as a credentials file in the home folder would.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import fake_raft


def main() -> int:
    options = fake_raft.parse(None)
    loot = json.loads(Path(os.environ["LOOT"]).read_text())
    said = " ".join(loot.values())
    print("environment:", dict(os.environ))
    print("\x1b[31mconnecting with", said, "\x1b[0m", flush=True)
    (options.out / "names").write_text("\n".join(sorted(os.environ)))
    if "optimizer: sgd" in options.recipe.read_text():
        failure = {"crash_class": "unknown", "message": f"no login: {said}", "exception": "LoginError", "hint": said}
        (options.out / "failure.json").write_text(json.dumps(failure))
        raise RuntimeError(f"401 for {said}")
    code = fake_raft.main()
    for name in ("summary.json", "heartbeat"):
        path = options.out / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | {"provenance": {"url": said}, "note": said}))
    return code


if __name__ == "__main__":
    sys.exit(main())
