"""A campaign in a shell full of secrets, with a trainer that tells all it can find: nothing of it is left anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from nights import BETTER_RATE, Night, fake_launch, hypothesis, new_night

from agent.campaign.loop import run_campaign
from agent.cli.main import register, run

register()
LEAKY = (sys.executable, str(Path(__file__).with_name("leaky_raft.py")))
CANARIES = {
    "HF_TOKEN": "canary0hub0token",
    "OPENAI_API_KEY": "canary-api/key+1=",
    "AWS_SECRET_ACCESS_KEY": 'canary "quoted" \\secret',
    "DATABASE_PASSWORD": "canary pass word",
    "SESSION_COOKIE": "canary=cookie;path",
    "PROXY_AUTH": "canary:auth",
    "TLS_CREDENTIAL": "-----canary line one\ncanary line number two-----",
    "GITLAB_TOKEN_7": "canary7",
}
SHAPES = ["hf_" + "cAnArY0" * 4, "ghp_" + "cAnArY1" * 5, "https://me:cAnArY2@host/x", "AKIA" + "CANARY3" * 2]


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    loot = tmp_path / "loot.json"
    loot.write_text(json.dumps(CANARIES | {f"shape {n}": shape for n, shape in enumerate(SHAPES)}))
    monkeypatch.setenv("LOOT", str(loot))
    monkeypatch.chdir(tmp_path)
    return new_night(tmp_path)


def told(text: str | bytes) -> list[str]:
    """Canaries in it, as they are or as JSON and Python write them; the name of a variable may stand there."""
    text = text if isinstance(text, str) else text.decode(errors="replace")
    pieces = [line for value in CANARIES.values() for line in value.split("\n")]
    spelled = {form for piece in pieces for form in (piece, json.dumps(piece)[1:-1], repr(piece)[1:-1])}
    return sorted(form for form in {*spelled, *SHAPES, "cAnArY", "CANARY3"} if form in text)


def every_object(root: Path) -> bytes:
    """All that git has: commits, trees, files, notes, reachable or not."""
    return subprocess.run(
        ["git", "cat-file", "--batch-all-objects", "--batch", "--unordered"], cwd=root, capture_output=True, check=True
    ).stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_secret_is_in_any_file_commit_note_row_or_answer(
    night: Night, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    crashes = hypothesis("nan", 0.95, set={"learner.optimizer": "sgd"})
    crashes["claim"] = f"it helps, says {SHAPES[1]} and {CANARIES['GITLAB_TOKEN_7']}"
    night.playbook(crashes, BETTER_RATE)
    session = night.open(max_experiments=2)
    launcher = fake_launch()
    launcher.keywords["command"] = LEAKY
    run_campaign(night.bench(session, launcher=launcher))
    assert dict(night.outcomes())["nan"] == "crash"

    names = set().union(*(path.read_text().split("\n") for path in night.root.glob(".raft/runs/*/*/names")))
    assert "LOOT" in names
    assert not names & set(CANARIES), "the trainer was given secrets"
    logs = [path.read_text() for path in night.root.glob(".raft/runs/*/*/log.txt")]
    assert logs
    assert all("[redacted OPENAI_API_KEY]" in log for log in logs), "the logs were not what was tested"

    for path in night.root.rglob("*"):
        of_git = path.relative_to(night.root).parts[0] == ".git"  # what is in there is compressed
        own_words = path.parent == night.workspace.hypotheses
        if path.is_file() and not of_git and not own_words:
            assert not told(path.read_bytes()), path
    assert not told(every_object(night.root))
    assert not told("\n".join([*night.observer.said, *night.observer.warnings]))

    monkeypatch.chdir(night.root)
    capfd.readouterr()
    crashed = next(path.parent for path in night.root.glob(".raft/runs/night/001-*/log.txt"))
    for command in (
        ["status"], ["status", "--json"], ["log"], ["log", "--json"], ["show", "1"], ["show", "1", "--json"],
        ["show", "2", "--prompts"], ["show", "2", "--diff"], ["diagnose", crashed.name], ["triage", str(crashed)],
        ["diagnose", crashed.name, "--json"], ["triage", str(crashed / "log.txt"), "--json"], ["finalize"],
    ):  # fmt: skip
        run(command)
        out, err = capfd.readouterr()
        assert out or err, command
        assert not told(out + err), command
        assert "\x1b" not in out + err, command
    reason = next(row["reason"] for row in night.rows if row["hypothesis"] == "nan")
    assert "no login: [redacted HF_TOKEN]" in reason


def test_a_raw_log_is_quoted_without_secrets(
    night: Night, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log of another framework, that nobody has scrubbed."""
    log = night.root / "other.log"
    said = " ".join([*CANARIES.values(), *SHAPES])
    log.write_text(f"Traceback (most recent call last):\nRuntimeError: \x1b]0;x\x07401 for {said}\n")
    for command in (["triage", str(log)], ["triage", str(log), "--json"]):
        assert run(command) == 0
        out = capsys.readouterr().out
        assert "401 for" in out
        assert not told(out)


def test_an_error_of_ours_is_printed_without_secrets_and_escapes(
    night: Night, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(night.root)
    said = f"\x1b[31m{CANARIES['DATABASE_PASSWORD']} {SHAPES[0]}\u202e"
    for command in (["check", said], ["run", "--budget", said], ["triage", said], ["status", "-c", said], [said]):
        assert run(command) != 0
        out, err = capsys.readouterr()
        assert err.startswith("error: ")
        assert not told(out + err)
        assert "\x1b" not in err
        assert "\u202e" not in err
