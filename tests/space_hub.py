"""A local server with the routes of the Hugging Face Hub that publishing a Space uses. It checks what it is sent."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import threading
import time

import uvicorn
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

TOKEN, READER_TOKEN, OWNER = "hf_writer", "hf_reader", "ada"
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
HARDWARE = {"cpu-basic", "cpu-upgrade", "t4-small", "t4-medium", "l4x1", "l4x4", "a10g-small", "a10g-large", "l40sx1"}
# Every key of the Spaces configuration reference, with what a value must be like.
SPACE_KEYS = {
    "title": lambda value: isinstance(value, str),
    "emoji": lambda value: isinstance(value, str) and len(value) <= 4 and not value.isascii(),
    "colorFrom": COLOURS.__contains__,
    "colorTo": COLOURS.__contains__,
    "sdk": {"gradio", "docker", "static"}.__contains__,
    "sdk_version": lambda value: isinstance(value, str) and value.count(".") == 2,
    "python_version": lambda value: isinstance(value, str) and value.startswith("3."),
    "app_file": lambda value: isinstance(value, str),
    "app_port": lambda value: isinstance(value, int),
    "suggested_hardware": HARDWARE.__contains__,
    "suggested_storage": {"small", "medium", "large"}.__contains__,
    "base_path": lambda value: isinstance(value, str),
    "fullWidth": lambda value: isinstance(value, bool),
    "header": {"mini", "default"}.__contains__,
    "short_description": lambda value: isinstance(value, str) and len(value) <= 60,
    "license": lambda value: isinstance(value, str),
    "models": lambda value: isinstance(value, list) and all(name.count("/") == 1 for name in value),
    "datasets": lambda value: isinstance(value, list),
    "tags": lambda value: isinstance(value, list),
    "thumbnail": lambda value: isinstance(value, str),
    "pinned": lambda value: isinstance(value, bool),
    "hf_oauth": lambda value: isinstance(value, bool),
    "hf_oauth_scopes": lambda value: isinstance(value, list),
    "hf_oauth_expiration_minutes": lambda value: isinstance(value, int),
    "disable_embedding": lambda value: isinstance(value, bool),
    "startup_duration_timeout": lambda value: isinstance(value, str) and value[-1] in "hms",
    "custom_headers": lambda value: isinstance(value, dict),
    "preload_from_hub": lambda value: isinstance(value, list),
}


def front_matter(readme: str) -> dict:
    """The configuration at the top of a Space's README."""
    begin, text, _ = readme.split("---\n", 2)
    assert not begin
    return yaml.safe_load(text)


def front_matter_faults(facts: dict) -> list[str]:
    """Keys the reference does not know, and values it does not allow."""
    return [f"{key}: {value!r}" for key, value in facts.items() if key not in SPACE_KEYS or not SPACE_KEYS[key](value)]


class SpaceHub:
    """Spaces in memory: ``spaces["ada/name"]`` is what was committed there, by path.

    ``faults`` maps the name of a route ("create", "commit", "upload" ...) to the status it answers with instead.
    """

    def __init__(self) -> None:
        self.spaces: dict[str, dict[str, bytes]] = {"someone/else": {"README.md": b"not yours"}}
        self.created: list[dict] = []
        self.modes: dict[str, str] = {}
        self.faults: dict[str, int] = {}
        self.asked: list[str] = []
        self._objects: dict[str, bytes] = {}
        config = uvicorn.Config(self._app(), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> SpaceHub:
        self._thread.start()
        limit = time.monotonic() + 30
        while not self._server.started:
            assert time.monotonic() < limit, "the server did not start"
            time.sleep(0.01)
        self.address = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.get("/api/whoami-v2")(self._whoami)
        app.post("/api/repos/create")(self._create)
        app.get("/api/spaces/{owner}/{name}")(self._info)
        app.post("/api/validate-yaml")(self._validate)
        app.post("/api/spaces/{owner}/{name}/preupload/main")(self._preupload)
        app.post("/spaces/{owner}/{name}.git/info/lfs/objects/batch")(self._batch)
        app.put("/objects/{oid}")(self._upload)
        app.post("/api/spaces/{owner}/{name}/commit/main")(self._commit)
        return app

    def _refused(self, route: str, request: Request, owner: str | None = None) -> Response | None:
        self.asked.append(route)
        if route in self.faults:
            return JSONResponse({"error": f"made up {self.faults[route]}"}, self.faults[route])
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in (TOKEN, READER_TOKEN):
            return JSONResponse({"error": "Invalid username or password."}, 401)
        if owner is not None and (token == READER_TOKEN or owner != OWNER):
            return JSONResponse({"error": "You don't have the rights to write here."}, 403)
        return None

    async def _whoami(self, request: Request) -> Response:
        return self._refused("whoami", request) or JSONResponse({"type": "user", "name": OWNER, "orgs": []})

    async def _create(self, request: Request) -> Response:
        body = await request.json()
        owner = body["organization"] or OWNER
        refused = self._refused("create", request, owner)
        if refused is not None:
            return refused
        assert body["type"] == "space" and body["sdk"] == "gradio", body
        space = f"{owner}/{body['name']}"
        answer = {"url": f"{self.address}/spaces/{space}"}
        if space in self.spaces:
            return JSONResponse({"error": "You already created this space repo", **answer}, 409)
        self.spaces[space] = {}
        self.created.append(body)
        return JSONResponse(answer)

    async def _info(self, owner: str, name: str, request: Request) -> Response:
        refused = self._refused("info", request)
        if refused is None and f"{owner}/{name}" not in self.spaces:
            return JSONResponse({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return refused or JSONResponse({"id": f"{owner}/{name}", "sha": "0" * 40})

    async def _validate(self, request: Request) -> Response:
        body = await request.json()
        refused = self._refused("validate", request)
        faults = front_matter_faults(front_matter(body["content"]))
        if refused is None and faults:
            return JSONResponse({"errors": [{"message": fault} for fault in faults]}, 400)
        return refused or JSONResponse({"errors": [], "warnings": []})

    async def _preupload(self, owner: str, name: str, request: Request) -> Response:
        """The real one sends whatever is not text to the store of large files, and honours .gitignore."""
        body = await request.json()
        refused = self._refused("preupload", request, owner)
        if refused is not None:
            return refused
        ignored = [line for line in body.get("gitIgnore", "").splitlines() if line]
        files = []
        for file in body["files"]:
            self.modes[file["path"]] = "lfs" if b"\0" in base64.b64decode(file["sample"]) else "regular"
            entry = {"path": file["path"], "uploadMode": self.modes[file["path"]]}
            files.append({**entry, "shouldIgnore": _is_ignored(file["path"], ignored), "oid": None})
        return JSONResponse({"files": files})

    async def _batch(self, owner: str, name: str, request: Request) -> Response:
        body = await request.json()
        refused = self._refused("batch", request, owner)
        if refused is not None:
            return refused
        links = {one["oid"]: {"upload": {"href": f"{self.address}/objects/{one['oid']}"}} for one in body["objects"]}
        objects = [
            {**one, **({} if one["oid"] in self._objects else {"actions": links[one["oid"]]})}
            for one in body["objects"]
        ]
        return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")

    async def _upload(self, oid: str, request: Request) -> Response:
        self.asked.append("upload")
        if "upload" in self.faults:
            return Response("made up", self.faults["upload"])
        content = await request.body()
        assert hashlib.sha256(content).hexdigest() == oid
        self._objects[oid] = content
        return Response()

    async def _commit(self, owner: str, name: str, request: Request) -> Response:
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        refused = self._refused("commit", request, owner)
        if refused is not None:
            return refused
        assert lines[0]["key"] == "header" and lines[0]["value"]["summary"]
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                content = self._objects[value["oid"]]
                assert len(content) == value["size"]
            else:
                assert line["key"] == "file" and value["encoding"] == "base64", line["key"]
                content = base64.b64decode(value["content"])
            self.spaces[f"{owner}/{name}"][value["path"]] = content
        url = f"{self.address}/spaces/{owner}/{name}/commit/{'0' * 40}"
        return JSONResponse({"success": True, "commitUrl": url, "commitOid": "0" * 40, "hookOutput": ""})


def _is_ignored(path: str, patterns: list[str]) -> bool:
    """Enough of git's rules for this repository: the last pattern that fits decides."""
    ignored = False
    for pattern in patterns:
        bare = pattern.removeprefix("!").rstrip("/")
        parts = path.split("/")
        fits = fnmatch.fnmatch(path, bare) if "/" in bare else any(fnmatch.fnmatch(part, bare) for part in parts)
        ignored = (not pattern.startswith("!")) if fits else ignored
    return ignored
