"""A recipe's path on the command line may be anything: it works, or one message says why not, and nothing waits."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli.main import register, run
from agent.ledger.workspace import Workspace

register()
TINY = "recipes/tiny-addition.yaml"


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    """Whoever opens a pipe without a writer waits for ever."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)


def commands(name: str) -> list[list[str]]:
    """Every command that takes a recipe and need not train."""
    return [
        ["check", "--", name],
        ["run", "--budget", "1h", "--dry-run", "--", name],
        ["run", "--budget", "1h", "--", name],
        ["plan", "--", name],
        ["train", "--", name],
        ["eval", "--", name],
    ]


INSIDE = [
    "recipes/größe mit leer.yaml", "recipes/sub dir/深い.yaml", "recipes/../recipes/tiny-addition.yaml",
    "recipes/sub dir/../tiny-addition.yaml", "../ws/recipes/tiny-addition.yaml", "./recipes//tiny-addition.yaml",
    "recipes/tiny-addition.yaml/", "tiny-addition", "-dash", "recipes/-dash.yaml", "x" * 240, "link",
    "recipes/$(x).yaml",
]  # fmt: skip


@pytest.mark.slow
def test_what_is_inside_works(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace.recipes / "sub dir").mkdir()
    for other in ("größe mit leer.yaml", "sub dir/深い.yaml", "-dash.yaml", "x" * 240 + ".yaml", "$(x).yaml"):
        shutil.copy(TINY, workspace.recipes / other)
    (workspace.recipes / "link.yaml").symlink_to("tiny-addition.yaml")
    for name in INSIDE:
        for command in commands(name)[len(name) > 20 : 2]:  # `check` for a few is enough
            assert run(command) == 0, (command, capsys.readouterr().err)
        assert "nothing was run and nothing written" in capsys.readouterr().out


def odd(workspace: Workspace) -> None:
    os.mkfifo(workspace.recipes / "pipe.yaml")
    (workspace.recipes / "self.yaml").symlink_to("self.yaml")
    (workspace.recipes / "a.yaml").symlink_to("b.yaml")
    (workspace.recipes / "b.yaml").symlink_to("a.yaml")
    (workspace.recipes / "zero.yaml").symlink_to("/dev/zero")
    (workspace.recipes / "folder.yaml").mkdir()
    outside = workspace.root.parent / "outside"
    outside.mkdir()
    shutil.copy(TINY, outside / "mine.yaml")
    (workspace.recipes / "out.yaml").symlink_to(outside / "mine.yaml")
    (workspace.recipes / "dir").symlink_to(outside)
    shutil.copy(TINY, workspace.recipes / "new\nline.yaml")
    shutil.copy(TINY, workspace.recipes / "bi\u202edi.yaml")
    with (workspace.recipes / "large.yaml").open("wb") as file:
        file.truncate(100 << 20)


OUTSIDE = [
    ("recipes/pipe.yaml", "a pipe, a device or a socket"),
    ("pipe", "a pipe, a device or a socket"),
    ("/dev/zero", "a pipe, a device or a socket"),
    ("recipes/zero.yaml", "a pipe, a device or a socket"),
    ("recipes/self.yaml", "symbolic links"),
    ("recipes/a.yaml", "symbolic links"),
    ("recipes", "no recipe recipes"),
    ("recipes/folder.yaml", "no recipe"),
    ("", "no recipe ''"),
    ("../outside/mine.yaml", "not inside the workspace"),
    ("recipes/out.yaml", "leads out of the workspace"),
    ("recipes/dir/mine.yaml", "leads out of the workspace"),
    ("recipes/dir/../outside/mine.yaml", "leads out of the workspace"),
    ("x" * 300, "name too long"),
    ("recipes/" + "a/" * 3000 + "x.yaml", "name too long"),
    ("recipes/new\nline.yaml", r"recipes/new\nline.yaml"),
    ("recipes/bi\u202edi.yaml", r"recipes/bi\\u202edi.yaml"),
    ("recipes/\x1b[31m.yaml", "cannot be seen"),
    ("recipes/nul\0.yaml", "cannot be seen"),
    ("recipes/large.yaml", "larger than"),
    ("/etc/passwd", "not inside the workspace"),
    ("~/x.yaml", "no recipe"),
]


@pytest.mark.slow
def test_what_is_not_is_refused_by_every_command(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    odd(workspace)
    for place, (name, said) in enumerate(OUTSIDE):
        for command in commands(name) if place < 4 else [commands(name)[place % 6], commands(name)[5]]:
            if name == "recipes" and command[0] == "eval":
                continue  # a folder is taken for a checkpoint
            assert run(command) in (2, 3), command
            out, err = capsys.readouterr()
            told = err + out  # `check` lists problems
            assert said in told, (command, told)
            assert "Traceback" not in told
            assert "mistake in raft-agent" not in told
            assert all(character.isprintable() or character == "\n" for character in told)
    assert not workspace.campaign_names()


@pytest.mark.slow
def test_all_recipes_are_checked_whatever_lies_there(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    odd(workspace)
    assert run(["check"]) == 3
    told = capsys.readouterr().out
    for part in ("pipe.yaml: is a pipe", "zero.yaml: link: ", "self.yaml: link: ", "larger than", "out.yaml: link: "):
        assert part in told, part
    assert "\u202e" not in told


@pytest.mark.slow
def test_a_campaigns_name_cannot_lead_anywhere(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ["../../../x", "a/b", "..", ".", "a\nb", "a b", "", "x" * 65, "-x", "a.lock", "é", "~"]:
        before = sorted(workspace.root.parent.rglob("*"))
        for more in ([], ["--dry-run"], ["--detach"]):
            assert run(["run", "--budget", "1h", f"--name={name}", *more]) == 2
            assert "cannot be a campaign's name" in capsys.readouterr().err
        assert sorted(workspace.root.parent.rglob("*")) == before
        for command in ["status", "-c", name], ["show", "1", "-c", name], ["resume", "--", name], ["finalize", name]:
            assert run(command) in (2, 5)


# --- the code of a model -----------------------------------------------------------------------------------


@pytest.fixture
def with_code(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workspace:
    """A recipe whose model brings code that would leave a file."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = workspace.root / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    (folder / "own.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    text = (
        (workspace.root / TINY)
        .read_text()
        .replace("source: builtin:tiny", "source: ./model\n  trust_remote_code: true")
    )
    assert "trust_remote_code" in text
    (workspace.recipes / "own.yaml").write_text(text)
    # what a workspace that came from somebody else might bring along
    for place in (".config", "config", ".raft"):
        (workspace.root / place / "raft-agent").mkdir(parents=True, exist_ok=True)
        (workspace.root / place / "raft-agent" / "trusted-code.json").write_text('{"trusted": []}')
    return workspace


@pytest.mark.slow
def test_code_is_confirmed_once_by_a_command_that_says_what_it_means(
    with_code: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for command in commands("own")[:3] + commands("own")[4:]:
        assert run(command) in (2, 3), command
        out, err = capsys.readouterr()
        assert "you have not confirmed the code of this model: own.py" in err + out, command
        assert "--trust-remote-code" in err + out
    assert run(["check", "own", "--trust-remote-code"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().err
    assert "confirmed: trainings may run own.py" in said
    assert "with your rights" in said
    assert str(tmp_path / "config" / "raft-agent" / "trusted-code.json") in said
    assert run(["check", "own"]) == 0
    assert run(["run", "own", "--budget", "1h", "--dry-run"]) == 0
    (with_code.root / "model" / "own.py").write_text("x = 1\n")
    capsys.readouterr()
    assert run(["run", "own", "--budget", "1h", "--dry-run"]) == 2
    assert "not confirmed" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists(), "looking at code is not running it"


def test_nothing_to_confirm(with_code: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for command, said in (
        (["check", "tiny-addition", "--trust-remote-code"], "asks for no code of its model"),
        (["check", "--trust-remote-code"], "of which recipe?"),
    ):
        assert run(command) == 2
        assert said in capsys.readouterr().err


def test_init_writes_places_that_a_recipe_may_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    (folder / "model").mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert run(["init", "ws", "--model", "../here/model"]) == 0
    assert f'source: "{folder / "model"}"' in (folder / "ws/recipes/main.yaml").read_text()
    for model in ("../nowhere", "a\nb", "~nobody-of-this-name/x", "x" * 300, ""):
        assert run(["init", "other", "--model", model]) in (0, 2)
        assert "mistake in raft-agent" not in capsys.readouterr().err
    (folder / "bi\u202edi.jsonl").write_text('{"question": "1", "answer": "1"}\n')
    assert run(["init", "third", "--data", "bi\u202edi.jsonl"]) == 2
    assert not (folder / "third").exists()
