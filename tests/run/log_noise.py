"""What stands around and inside a crash's log in real life: other programs' lines, colours, progress bars."""

from __future__ import annotations

import random
from collections.abc import Callable

COLOURS = ("\x1b[31m", "\x1b[36m", "\x1b[1;33m", "\x1b[38;5;208m")
LINES = (
    'INFO:     127.0.0.1:{n} - "GET /metrics HTTP/1.1" 200 OK',
    "Nov 26 23:{m:02d}:11 box systemd[1]: Started Session {n} of user u.",
    "Collecting numpy>=1.{m} (from -r requirements.txt (line {m}))",
    "  Downloading torch-2.9.0-cp311.whl ({n} MB)",
    "[2026-11-26 10:{m:02d}:01,123][INFO] worker {m}: heartbeat ok, killed=0, errors=0",
    "Downloading shards: {p}%|####      | {m}/60 [00:0{d}<00:12,  1.2it/s]",
    "cron[{n}]: (root) CMD (run-parts /etc/cron.hourly)",
    "usb 1-{d}: new high-speed USB device number {m} using xhci_hcd",
    "tests/test_x.py::test_{n} PASSED [ {p}%]",
    "remote: Counting objects: {p}% ({m}/99)",
    'DEBUG urllib3.connectionpool: https://host:443 "HEAD /x/resolve/main/config.json HTTP/1.1" 200 0',
    "wandb: Syncing run misty-lake-{n}",
    "{{'loss': 0.{n}, 'grad_norm': 0.{m}, 'learning_rate': 5e-05, 'epoch': 0.{m}}}",
    "",
)
"""Of programs that have nothing to do with the crash; the loss is of another job."""


def unrelated(count: int, rng: random.Random) -> str:
    def line() -> str:
        text = rng.choice(LINES[:-2] if rng.random() < 0.9 else LINES[-1:])
        return text.format(n=rng.randrange(1, 9999), m=rng.randrange(60), p=rng.randrange(100), d=rng.randrange(10))

    return "".join(line() + "\n" for _ in range(count))


def surrounded(log: str, rng: random.Random) -> str:
    """200 unrelated lines before and after."""
    return unrelated(200, rng) + log.rstrip("\n") + "\n" + unrelated(200, rng)


def coloured(log: str, rng: random.Random) -> str:
    return "\n".join(rng.choice(COLOURS) + line + "\x1b[0m" if rng.random() < 0.6 else line for line in log.split("\n"))


def with_bars(log: str, rng: random.Random) -> str:
    """A progress bar of another process between the lines, redrawn three times where it stands."""
    lines, step = [], 0
    for line in log.split("\n"):
        lines.append(line)
        if rng.random() < 0.3:
            step += rng.randrange(1, 3)
            drawn = (
                f"Training: {step + more}%|###   | {step + more}/100 [00:{step:02d}<01:00,  1.0it/s]"
                for more in range(3)
            )
            lines.append("\r".join(drawn))
    return "\n".join(lines)


def everything(log: str, rng: random.Random) -> str:
    return coloured(surrounded(with_bars(log, rng), rng), rng)


NOISE: dict[str, Callable[[str, random.Random], str]] = {
    "as it is": lambda log, rng: log,
    "200 lines before": lambda log, rng: unrelated(200, rng) + log,
    "200 lines after": lambda log, rng: log.rstrip("\n") + "\n" + unrelated(200, rng),
    "200 before and after": surrounded,
    "colours": coloured,
    "progress bars": with_bars,
    "all of it": everything,
}
