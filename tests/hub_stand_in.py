"""A Hub on loopback: repositories with commits, as far as huggingface_hub asks for them; nothing is kept on disk."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml


TOKEN = "hf_stand_in"


@dataclass
class Repository:
    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=lambda: [("0" * 40, {})])

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in ("main", "HEAD"):
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)

    def commit(self, lines: list[dict], stored: dict[str, bytes] | None = None) -> str:
        """A new commit on the last; `stored` holds large files by their sha256."""
        files = dict(self.commits[-1][1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        digest = hashlib.sha1(repr((self.commits[-1][0], sorted(files.items()))).encode()).hexdigest()
        self.commits.append((digest, files))
        return digest


class Hub:
    """The state behind the requests.

    Args:
        broken: A part of the paths that the server answers with 500, to break an upload on its way.
        meanwhile: Called before a commit is looked at, as if somebody else were working there.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.broken: str | None = None
        self.meanwhile: Callable[[], None] = lambda: None
        self.url = ""

    def add(self, repo_id: str, folder: Path) -> str:
        """A public repository with the files of a folder; its commit."""
        repository = self.repositories[repo_id] = Repository(private=False)
        return repository.commit(
            [
                {"key": "file", "value": {"path": path.name, "content": base64.b64encode(path.read_bytes())}}
                for path in folder.iterdir()
            ]
        )

    def files(self, repo_id: str) -> dict[str, bytes]:
        return self.repositories[repo_id].commits[-1][1]


def make_handler(hub: Hub) -> type:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_request(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body, path = self.rfile.read(size), unquote(urlsplit(self.path).path)
            if hub.broken and hub.broken in path:
                return self.answer(500)
            if path == "/api/validate-yaml":
                return self.validate(json.loads(body)["content"])
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            if path == "/api/repos/delete":
                return self.answer(200, {"deleted": bool(hub.repositories.pop(self.name_of(json.loads(body)), None))})
            if path.startswith("/lfs/") and self.command == "PUT":
                hub.stored[path.removeprefix("/lfs/")] = body
                return self.answer(200)
            for pattern, serve in (
                (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.store),
                (r"/api/models/([^/]+/[^/]+)/(preupload|commit)/(.+)", self.upload),
                (r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?", self.describe),
                (r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", self.resolve),
            ):
                if match := re.fullmatch(pattern, path):
                    repo_id, *rest = match.groups()
                    repository = hub.repositories.get(repo_id)
                    if repository is None or (repository.private and not self.is_owner()):
                        return self.answer(401 if repository else 404, X_Error_Code="RepoNotFound")
                    return serve(repo_id, repository, *rest, body=body)
            return self.answer(404)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

        def is_owner(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def validate(self, content: str) -> None:
            match = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
            if match and not isinstance(yaml.safe_load(match[1]), dict):
                return self.answer(400, {"errors": [{"message": "the front matter is no mapping"}], "warnings": []})
            return self.answer(200, {"errors": [], "warnings": []})

        def create(self, wanted: dict) -> None:
            name = self.name_of(wanted)
            if not self.is_owner():
                return self.answer(401)
            created = {"url": f"{hub.url}/{name}", "id": name, "name": name}
            if name in hub.repositories:
                return self.answer(409, created)
            hub.repositories[name] = Repository(wanted.get("private") or wanted.get("visibility") == "private")
            return self.answer(200, created)

        @staticmethod
        def name_of(wanted: dict) -> str:
            name = wanted["name"]
            return name if "/" in name else f"{wanted.get('organization') or 'user'}/{name}"

        def store(self, repo_id: str, repository: Repository, body: bytes) -> None:
            """Where large files go, as git's LFS asks for it."""
            asked = json.loads(body)["objects"]
            there = [file | {"actions": {"upload": {"href": f"{hub.url}/lfs/{file['oid']}"}}} for file in asked]
            kind = "application/vnd.git-lfs+json"
            return self.answer(200, {"transfer": "basic", "objects": there}, Content_Type=kind)

        def upload(self, repo_id: str, repository: Repository, step: str, revision: str, body: bytes) -> None:
            if not self.is_owner():
                return self.answer(403)
            if step == "preupload":
                paths = [file["path"] for file in json.loads(body)["files"]]
                return self.answer(200, {"files": [_mode(path) for path in paths]})
            hub.meanwhile()
            lines = [json.loads(line) for line in body.splitlines()]
            parent = lines[0]["value"].get("parentCommit")
            if parent not in (None, repository.commits[-1][0]):
                return self.answer(412, {"error": "A commit has happened since."})
            digest = repository.commit(lines, hub.stored)
            return self.answer(200, {"commitUrl": f"{hub.url}/{repo_id}/commit/{digest}", "commitOid": digest})

        def describe(self, repo_id: str, repository: Repository, kind, revision, folder: str | None, body) -> None:
            """The repository, or with `kind` "tree" the files of a folder of it."""
            commit = repository.at(revision or "main")
            if commit is None:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            digest, files = commit
            if kind == "tree":
                inside = {path: data for path, data in files.items() if path.startswith(f"{folder}/" if folder else "")}
                if folder and not inside:
                    return self.answer(404, X_Error_Code="EntryNotFound")
                return self.answer(
                    200, [{"type": "file", "path": path, **_entry(data)} for path, data in inside.items()]
                )
            siblings = [{"rfilename": path} for path in files]
            about = {"id": repo_id, "modelId": repo_id, "sha": digest, "siblings": siblings, "tags": [], "downloads": 0}
            return self.answer(200, about | {"private": repository.private, "pipeline_tag": None})

        def resolve(self, repo_id, repository: Repository, _, revision: str, path: str, body: bytes) -> None:
            commit = repository.at(revision)
            if commit is None:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            digest, files = commit
            if path not in files:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=digest)
            tag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
            return self.answer(200, files[path], ETag=tag, X_Repo_Commit=digest, Accept_Ranges="none")

    return Handler


def _mode(path: str) -> dict:
    """Weights go by LFS, as on the Hub."""
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


def _entry(data: bytes) -> dict:
    return {"size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextmanager
def stand_in():
    """A running [`Hub`]; `hub.url` is for HF_ENDPOINT, `TOKEN` for HF_TOKEN."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
