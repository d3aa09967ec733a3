"""A hub of one machine: repositories of models that can be pushed to, served as huggingface_hub asks for them.

It knows commits, branches, files and listings (https://huggingface.co/docs/hub/api); no logins and no large files.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class FakeHub:
    repositories: dict[str, dict[str, Files]] = field(default_factory=dict)
    """Files by name, by commit, by repository; the last commit is `main`."""
    asked: list[str] = field(default_factory=list)
    """Method and path of every request, in order."""
    broken: set[str] = field(default_factory=set)
    """Files that break off in the middle."""
    endpoint: str = ""

    def push(self, repository: str, folder: Path) -> str:
        """The files of a folder, as a new commit."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        commits = self.repositories.setdefault(repository, {})
        commit = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits[commit] = files
        return commit

    def forget(self, repository: str, commit: str) -> None:
        """As after a push that rewrites the history."""
        del self.repositories[repository][commit]

    @contextmanager
    def open(self) -> Iterator[FakeHub]:
        """Served until the block ends; then nobody answers at `endpoint`."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        parts = [unquote(part) for part in path.strip("/").split("/")]
        of_api = parts[:2] == ["api", "models"]
        repository, rest = "/".join(parts[2:4] if of_api else parts[:2]), parts[4 if of_api else 2 :]
        commits = self.repositories.get(repository)
        if commits is None:
            return _refused("RepoNotFound")
        what, revision, name = rest[0] if rest else "revision", (rest[1:2] or ["main"])[0], "/".join(rest[2:])
        commit = next(reversed(commits)) if revision == "main" else revision
        if commit not in commits:
            return _refused("RevisionNotFound")
        files = commits[commit]
        if what == "resolve":
            if name not in files:
                return _refused("EntryNotFound", commit)
            etag = hashlib.sha1(files[name]).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, files[name]
        if what == "tree":
            there = [one for one in files if not name or one.startswith(f"{name}/")]
            if not there:
                return _refused("EntryNotFound", commit)
            return _as_json([_listed(one, files[one]) for one in there])
        return _as_json({"id": repository, "sha": commit, "siblings": [{"rfilename": one} for one in files]})


def _listed(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _as_json(content: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _refused(code: str, commit: str = "") -> tuple[int, dict[str, str], bytes]:
    return 404, {"X-Error-Code": code, "X-Repo-Commit": commit}, b""


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._serve()

        def do_GET(self) -> None:
            self._serve()

        def _serve(self) -> None:
            path = urlsplit(self.path).path
            hub.asked.append(f"{self.command} {path}")
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if path.rpartition("/")[2] in hub.broken else body)

        def log_message(self, *_: object) -> None:
            """A test's output is not for this."""

    return Handler
