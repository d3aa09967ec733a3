"""Messages reach a real local server and a real command; whatever these do, whoever sends does not wait."""

from __future__ import annotations

import errno
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.errors import UsageError
from agent.package import package_path
from agent.run.notify import Channels, Notifier, channels_of, place_of

MESSAGE = {"event": "keep", "text": "kept #3; $(touch hacked) `touch hacked` 'x'", "campaign": "night"}


class Server:
    """A web server in a thread, that answers as it is told and remembers what it got."""

    def __init__(self) -> None:
        self.status, self.headers, self.slow_s = 200, {}, 0.0
        self.got: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.authorization: str | None = None
        self.over = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                server.paths.append(self.path)
                server.authorization = self.headers["Authorization"]
                server.over.wait(server.slow_s)
                self.send_response(server.status)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            do_GET = do_POST  # noqa: N815  # as the library calls it

            def log_message(self, *ignored: Any) -> None: ...

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/hook/very-secret"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.over.set()
    server.http.shutdown()
    server.http.server_close()


def notifier(folder: Path, **keys: Any) -> tuple[Notifier, list[str]]:
    warnings: list[str] = []
    channels = Channels(keys.pop("url", None), tuple(keys.pop("command", ())))
    settings = {"post_s": 0.5, "back_off_s": (0.01, 0.02), "command_s": 1.0, **keys}
    return Notifier(channels, folder=folder, warn=warnings.append, **settings), warnings


# --- the web -----------------------------------------------------------------------------------------------


def test_a_message_arrives_as_json(tmp_path: Path, server: Server) -> None:
    with notifier(tmp_path, url=server.url)[0] as sender:
        sender.send(MESSAGE)
    assert server.got == [MESSAGE]
    assert server.paths == ["/hook/very-secret"]
    assert sender.delivered == 1


def test_a_password_in_the_address_is_sent_as_one(tmp_path: Path, server: Server) -> None:
    sender, _ = notifier(tmp_path, url=server.url.replace("127", "me:pa%20ss@127"))
    assert sender.deliver(MESSAGE) == {"webhook": None}
    assert server.authorization == "Basic bWU6cGEgc3M="


@pytest.mark.parametrize(
    ("status", "tries", "words"),
    [(500, 3, "answered 500"), (429, 3, "answered 429"), (404, 1, "answered 404"), (302, 1, "not followed")],
)
def test_what_may_go_better_is_tried_again(tmp_path: Path, server: Server, status: int, tries: int, words: str) -> None:
    server.status, server.headers = status, {"Location": server.url}
    sender, _ = notifier(tmp_path, url=server.url)
    told = sender.deliver(MESSAGE)["webhook"]
    assert told is not None
    assert words in told
    assert len(server.got) == tries
    assert "secret" not in told
    assert told.startswith("the webhook at http://127.0.0.1 ")


def test_nobody_waits_for_a_server_that_hangs_and_one_warning_says_so(tmp_path: Path, server: Server) -> None:
    server.slow_s = 60.0
    sender, warnings = notifier(tmp_path, url=server.url, back_off_s=())
    began = time.monotonic()
    for _ in range(40):
        sender.send(MESSAGE)
    assert time.monotonic() - began < 0.5
    sender.close(patience_s=1.2)
    assert time.monotonic() - began < 5.0
    assert any("did not answer" in text for text in warnings)
    assert any("more than 32 messages wait" in text for text in warnings)
    assert len(warnings) == 3  # the third: what was still waiting at the end
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert not [child for child in alive if "post_child" in " ".join(child.cmdline())]


def test_a_server_that_says_a_letter_at_a_time_is_left_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                for letter in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000:
                    time.sleep(0.1)
                    try:
                        connection.send(bytes([letter]))
                    except OSError:
                        return

        threading.Thread(target=drip, daemon=True).start()
        sender, _ = notifier(tmp_path, url=f"http://127.0.0.1:{listening.getsockname()[1]}/x", back_off_s=())
        began = time.monotonic()
        assert "did not answer within" in str(sender.deliver(MESSAGE)["webhook"])
        assert time.monotonic() - began < 3.0


def test_closed_ports_bad_tls_and_odd_answers_are_told_without_the_address(tmp_path: Path, server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for url, words in [
        (f"http://127.0.0.1:{port}/secret", "cannot be reached"),
        (server.url.replace("http:", "https:"), "TLS"),
        ("http://nowhere.invalid/secret", "look-up"),
    ]:
        told = str(notifier(tmp_path, url=url, back_off_s=(), post_s=5.0)[0].deliver(MESSAGE)["webhook"])
        assert words in told
        assert "secret" not in told


def test_an_address_that_is_none_is_refused_and_not_shown() -> None:
    for url in (
        "hooks.example.com/secret",
        "ftp://x/secret",
        "http:///secret",
        "http://x:secret/",
        "http://x/a secret",
    ):
        with pytest.raises(UsageError) as refused:
            channels_of(url, None)
        assert "secret" not in str(refused.value)
    assert place_of("https://me:secret@hooks.example.com:8443/secret?secret#secret") == "https://hooks.example.com"


# --- the command -------------------------------------------------------------------------------------------


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", code)


def test_a_command_gets_the_message_and_nothing_of_it_is_run(tmp_path: Path) -> None:
    code = (
        "import os,sys;open('got','w').write(sys.stdin.read()+chr(10)+os.environ['RAFT_EVENT']+os.environ['RAFT_TEXT'])"
    )
    sender, _ = notifier(tmp_path, command=python(code), command_s=10.0)
    assert sender.deliver(MESSAGE) == {"command": None}
    told, variables = (tmp_path / "got").read_text().split("\n")
    assert json.loads(told) == MESSAGE
    assert variables == f"keep{MESSAGE['text']}"
    assert os.listdir(tmp_path) == ["got"]  # noqa: PTH208  # a list to compare


def test_a_command_that_fails_is_said_once(tmp_path: Path) -> None:
    sender, warnings = notifier(tmp_path, command=python("raise SystemExit(3)"), command_s=10.0)
    with sender:
        sender.send(MESSAGE)
        sender.send(MESSAGE)
    assert len(warnings) == 1
    assert "ended with 3" in warnings[0]
    assert "cannot be started" in str(notifier(tmp_path, command=("./gone",))[0].deliver(MESSAGE)["command"])


def test_a_locale_without_a_character_of_the_message_holds_nothing_up(tmp_path: Path) -> None:
    """In one of ASCII alone, as a service may have."""
    code = "import os; open('got', 'wb').write(os.environb[b'RAFT_TEXT'])"
    program = (
        "import sys; from pathlib import Path; from agent.run.notify import Channels, Notifier\n"
        f"sender = Notifier(Channels(None, {python(code)!r}), folder=Path.cwd())\n"
        "print(sys.getfilesystemencoding(), sender.deliver({'event': 'keep', 'text': '2e-05 \\u2192 4e-05'}))"
    )
    plain = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": package_path(None),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=plain, capture_output=True, text=True, check=True
    )
    assert done.stdout == "ascii {'command': None}\n"
    assert (tmp_path / "got").read_text(encoding="utf-8") == "2e-05 → 4e-05"


def test_one_message_that_could_not_be_sent_is_not_the_end_of_all(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process, then no thread can be started, for a while."""
    sender, warnings = notifier(tmp_path, url=server.url, command=python(""), command_s=10.0)
    start, fails = Notifier._child, [True, True]

    def child(*arguments: Any, **keys: Any) -> Any:
        if fails and fails.pop():
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return start(*arguments, **keys)

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Notifier, "_child", child)
    with sender, monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", no_thread)
        sender.send(MESSAGE)
        short.undo()
        monkeypatch.setattr(Notifier, "_child", child)
        sender.send(MESSAGE)
        sender.send(MESSAGE)
    assert server.got == [MESSAGE]
    assert sender.delivered == 2
    lost, web, command = warnings
    assert "a message is lost: can't start new thread" in lost
    assert "the webhook cannot be reached: Resource temporarily unavailable" in web
    assert "cannot be started: Resource temporarily unavailable" in command
    assert "secret" not in " ".join(warnings)


@pytest.mark.slow
def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    code = (
        "import os,signal,subprocess,sys,time;signal.signal(signal.SIGTERM,signal.SIG_IGN);"
        "child=subprocess.Popen(['sleep','60']);open('pids','w').write(f'{os.getpid()} {child.pid}');time.sleep(60)"
    )
    sender, _ = notifier(tmp_path, command=python(code), command_s=1.5)
    assert "was killed" in str(sender.deliver(MESSAGE)["command"])
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    deadline = time.monotonic() + 10.0  # a busy kernel takes a moment to do it
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_does_not_reach_a_command(tmp_path: Path) -> None:
    code = "import os;open('group','w').write(f'{os.getpid()} {os.getpgid(0)} {os.getsid(0)}')"
    notifier(tmp_path, command=python(code), command_s=10.0)[0].deliver(MESSAGE)
    process, group, session = (tmp_path / "group").read_text().split()
    assert process == group == session, "a group that no terminal has in front"


def test_a_command_is_words_for_no_shell() -> None:
    assert channels_of(None, "sh -c 'echo \"$RAFT_TEXT\"'").command == ("sh", "-c", 'echo "$RAFT_TEXT"')
    with pytest.raises(UsageError, match="no program nonesuch"):
        channels_of(None, "nonesuch; ls")
    with pytest.raises(UsageError, match="cannot be read"):
        channels_of(None, "echo 'x")
    assert channels_of("", "").words() == []


def test_a_program_that_is_named_by_its_path_is_found_from_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    program = tmp_path / "mine" / "tell"
    program.write_text('#!/bin/sh\npwd > "$1"\n')
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path / "mine")
    channels = channels_of(None, f"./tell {tmp_path}/where")
    monkeypatch.chdir("/")
    other = tmp_path / "workspace"
    other.mkdir()
    assert Notifier(channels, folder=other).deliver(MESSAGE) == {"command": None}
    assert (tmp_path / "where").read_text().strip() == str(other)
