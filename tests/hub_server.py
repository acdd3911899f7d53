"""A local server with the Hub's routes for listing and fetching models, which can be told to misbehave.

Large files are redirected to a second port, as the Hub redirects to its content network; tokens must not go there.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

LARGE = (".safetensors", ".pth", ".bin", ".h5", ".mp4")
HALF, DROP, WRONG = "half", "drop once", "wrong bytes"


@dataclass
class Repository:
    """Files of a folder; the branch "main" is at ``commit``, older commits hold the same."""

    folder: Path
    commit: str
    gated: bool = False
    older: set[str] = field(default_factory=set)

    def move_to(self, commit: str) -> None:
        self.older.add(self.commit)
        self.commit = commit

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return self.commit
        return revision if revision in self.older | {self.commit} else None

    def content(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())


def is_large(name: str) -> bool:
    return name.endswith(LARGE)


def digest(name: str, content: bytes) -> str:
    """SHA-256 of a large file, git's object name of a small one."""
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class HubServer:
    """Faults are numbers (an HTTP status) or one of the words above, by the name of the file."""

    repositories: dict[str, Repository]
    token: str = ""
    status: int = 0
    faults: dict[str, object] = field(default_factory=dict)
    log: list[tuple[str, str, str]] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        self._servers = [self._serve(_Pages), self._serve(_ContentNetwork)]
        self.address, self.network = (f"http://127.0.0.1:{one.server_address[1]}" for one in self._servers)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _serve(self, kind: type[_Answer]) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type(kind.__name__, (kind,), {"hub": self}))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def fetched(self) -> list[str]:
        """Files whose content was asked for, with the range if only a part was."""
        return [name + part for method, name, part in self.log if method == "GET"]


class _Answer(BaseHTTPRequestHandler):
    hub: HubServer

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""

    def answer(self, status: int, content: bytes | memoryview = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def send_file(self, name: str, content: bytes, **headers: str) -> None:
        fault = self.hub.faults.get(name)
        if isinstance(fault, int):
            self.answer(fault)
            return
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if self.command == "GET":
            self.hub.log.append(("GET", name, f" from {start}" if wanted else ""))
        if fault == WRONG:
            content = bytes(len(content))
        part, status = memoryview(content)[start:], 206 if wanted else 200
        if self.command == "GET" and fault in (HALF, DROP):
            self.send_response(status)
            if fault == DROP:  # a promise that is not kept; the other kind of end looks like a whole answer
                del self.hub.faults[name]
                self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part[: len(part) // 2])
            return
        self.answer(status, part, **headers)


class _ContentNetwork(_Answer):
    def do_GET(self) -> None:
        assert "Authorization" not in self.headers, "the token left the Hub"
        _, owner, name, commit, file = unquote(urlparse(self.path).path).split("/", 4)
        repository = self.hub.repositories[f"{owner}/{name}"]
        assert repository.resolve(commit) == commit
        self.send_file(file, repository.content(file) or b"")


class _Pages(_Answer):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        if self.hub.status:
            self.answer(self.hub.status)
            return
        sent = self.headers.get("Authorization", "")
        if sent and sent != f"Bearer {self.hub.token}":
            self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
            return
        listing = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/", 4)
        if len(parts) < 4:  # what the library asks for beside the models
            self.answer(404)
            return
        owner, name, _, revision, *rest = parts
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            self.answer(401, X_Error_Message="Invalid username or password.")  # the Hub tells no stranger what exists
        elif (commit := repository.resolve(revision)) is None:
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif listing:
            self.send_listing(f"{owner}/{name}", repository, commit)
        elif repository.gated and not sent:
            self.answer(403, X_Error_Code="GatedRepo")
        else:
            self.send_or_redirect(f"{owner}/{name}", repository, commit, rest[0])

    def send_listing(self, name: str, repository: Repository, commit: str) -> None:
        siblings = []
        for file in repository.names():
            content = repository.content(file) or b""
            entry = {"rfilename": file, "size": len(content), "blobId": digest(file, content)}
            if is_large(file):
                entry["lfs"] = {"sha256": entry["blobId"], "size": len(content), "pointerSize": 134}
                entry["blobId"] = "0" * 40
            siblings.append(entry)
        listing = {"id": name, "sha": commit, "siblings": siblings, "gated": repository.gated and "auto"}
        self.hub.log.append(("LIST", name, ""))
        self.answer(200, json.dumps(listing).encode(), Content_Type="application/json")

    def send_or_redirect(self, name: str, repository: Repository, commit: str, file: str) -> None:
        content = repository.content(file)
        if content is None:
            self.answer(404, X_Error_Code="EntryNotFound")
            return
        facts = {"X_Repo_Commit": commit, "ETag": f'"{digest(file, content)}"'}
        if not is_large(file):
            self.send_file(file, content, **facts)
            return
        linked = {"X_Linked_ETag": facts["ETag"], "X_Linked_Size": str(len(content))}
        place = f"{self.hub.network}/{name}/{commit}/{file}"
        self.answer(302, Location=place, **facts, **linked)
