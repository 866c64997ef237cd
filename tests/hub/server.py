"""As much of the Hub as pushing and loading needs, on this machine: repositories in memory, requests on record."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_right"


@dataclass
class Commit:
    repo: str
    revision: str
    message: str
    changed: list[str]
    files: dict[str, bytes]
    pull_request: bool

    @property
    def oid(self) -> str:
        content = [f"{name}:{hashlib.sha1(data).hexdigest()}" for name, data in sorted(self.files.items())]
        return hashlib.sha1("\n".join([self.repo, self.revision, *content]).encode()).hexdigest()


@dataclass
class FakeHub:
    """`with FakeHub() as hub:` serves at `hub.url` until the block ends."""

    private: dict[str, bool] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    branches: set[tuple[str, str]] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> "FakeHub":
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()

    def pushed(self, repo: str) -> list[Commit]:
        return [commit for commit in self.commits if commit.repo == repo]

    def head(self, repo: str, revision: str) -> Commit | None:
        """The newest commit of a branch, or the one with that id."""
        found = [c for c in self.pushed(repo) if revision in (c.revision, c.oid) and not c.pull_request]
        return found[-1] if found else None


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def _answer(self, status: int, body: bytes | dict = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def _route(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {url.path}")
        size = int(self.headers.get("Content-Length") or 0)
        self.body, self.query = self.rfile.read(size), parse_qs(url.query)
        writes = self.command in ("POST", "PUT")
        if writes and "/blob/" not in url.path and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
            return
        for method, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and self.command in method.split():
                getattr(self, name)(**{key: unquote(value) for key, value in match.groupdict().items()})
                return
        self._answer(404, {"error": f"no route {self.command} {url.path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _route

    def create(self) -> None:
        wanted = json.loads(self.body)
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if repo in self.hub.private:
            self._answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"})
            return
        self.hub.private[repo] = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self._answer(200, {"url": f"{self.hub.url}/{repo}"})

    def validate(self) -> None:
        self._answer(200, {"errors": [], "warnings": []})

    def branch(self, repo: str, revision: str) -> None:
        known = (repo, revision) in self.hub.branches
        self.hub.branches.add((repo, revision))
        self._answer(409 if known else 200, {"error": "exists"} if known else {})

    def preupload(self, repo: str, revision: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._answer(200, {"files": files})

    def batch(self, repo: str) -> None:
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/blob/{wanted['oid']}"}}}
            for wanted in json.loads(self.body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def blob(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        self._answer(200)

    def commit(self, repo: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        changed = {}
        for line in lines[1:]:
            value = line["value"]
            is_lfs = line["key"] == "lfsFile"
            changed[value["path"]] = self.hub.blobs[value["oid"]] if is_lfs else base64.b64decode(value["content"])
        before = self.hub.head(repo, revision)
        commit = Commit(
            repo=repo,
            revision=revision,
            message=lines[0]["value"]["summary"],
            changed=sorted(changed),
            files={**(before.files if before else {}), **changed},
            pull_request="create_pr" in self.query,
        )
        self.hub.commits.append(commit)
        url = f"{self.hub.url}/{repo}"
        self._answer(
            200,
            {
                "commitUrl": f"{url}/commit/{commit.oid}",
                "commitOid": commit.oid,
                "pullRequestUrl": f"{url}/discussions/1" if commit.pull_request else None,
            },
        )

    def info(self, repo: str, revision: str = "main") -> None:
        commit = self.hub.head(repo, revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound" if repo in self.hub.private else "RepoNotFound", "not found")
            return
        siblings = [{"rfilename": name} for name in commit.files]
        self._answer(200, {"id": repo, "modelId": repo, "sha": commit.oid, "siblings": siblings, "tags": []})

    def tree(self, repo: str, revision: str) -> None:
        commit = self.hub.head(repo, revision)
        files = commit.files if commit else {}
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ]
        self._answer(200, json.dumps(entries).encode())

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self.hub.head(repo, revision)
        if commit is None or path not in commit.files:
            self._refuse(404, "EntryNotFound" if repo in self.hub.private else "RepoNotFound", "not found")
            return
        data = commit.files[path]
        self._answer(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=commit.oid)


_REPO, _REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
_ROUTES = [
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{_REPO}/branch/{_REVISION}", "branch"),
    ("POST", rf"/api/models/{_REPO}/preupload/{_REVISION}", "preupload"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", "/blob/(?P<oid>[0-9a-f]+)", "blob"),
    ("POST", rf"/api/models/{_REPO}/commit/{_REVISION}", "commit"),
    ("GET", rf"/api/models/{_REPO}", "info"),
    ("GET", rf"/api/models/{_REPO}/revision/{_REVISION}", "info"),
    ("GET", rf"/api/models/{_REPO}/tree/{_REVISION}", "tree"),
    ("GET HEAD", rf"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", "resolve"),
]
