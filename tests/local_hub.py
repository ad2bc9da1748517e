"""A server that speaks enough of the hub's protocol for downloads (revisions, trees, files, tokens), and for pushes of
data sets and models (whoami, create, branch, preupload, LFS, commit, pull requests)."""

import base64
import hashlib
import json
import shutil
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from transformers.utils.hub import hf_api


COMMIT = "0123456789012345678901234567890123456789"
LFS = (".parquet", ".safetensors", ".png")
MAIN = "main"


@dataclass
class Fault:
    """What the server does instead of an answer, `times` times, for requests of this kind.

    Args: status: an HTTP status, "drop" (the connection is closed) or "hang" (no answer comes).
    """

    method: str
    path: str
    status: int | str
    times: int = 1
    headers: dict | None = None


class Handler(BaseHTTPRequestHandler):
    """Serves `server.repositories`, folders by name; those in `server.private` for `server.token` alone.

    Data sets have the name `datasets/user/name`. They are written below `server.writable` with `server.token`.
    """

    def place(self) -> tuple[str, list[str], bool]:
        """Repository and rest of the path that is asked for, and whether it is the API."""
        parts = unquote(self.path.split("?")[0]).strip("/").split("/")
        is_api = parts[0] == "api"
        parts = parts[1:] if is_api else parts
        kind = "datasets/" if parts[0] == "datasets" else ""
        parts = parts[1:] if kind or parts[0] == "models" else parts
        return kind + "/".join(parts[:2]).removesuffix(".git"), parts[2:], is_api

    def fails(self) -> bool:
        """Whether this request meets a fault."""
        for fault in self.server.faults:
            if fault.times and fault.method == self.command and fault.path in self.path:
                fault.times -= 1
                if fault.status == "hang":
                    time.sleep(self.server.hang_seconds)
                if isinstance(fault.status, str):
                    self.close_connection = True
                    self.connection.close()
                else:
                    self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    self.answer(fault.status, headers=fault.headers)
                return True
        return False

    def folder_of(self, name: str, revision: str = MAIN) -> Path | None:
        """The files of a revision: a branch, `refs/pr/N` or a commit. A data set has one folder for all."""
        revision = self.server.revision_of.get(revision, revision)
        if revision in (MAIN, COMMIT, "HEAD") or name.startswith("datasets/"):
            return self.server.repositories.get(name)
        return self.server.branches.get((name, revision))

    def head(self, name: str, revision: str = MAIN) -> str:
        revision = self.server.revision_of.get(revision, revision)
        return self.server.heads.get((name, revision), COMMIT)

    def do_GET(self):
        if self.fails():
            return
        name, rest, is_api = self.place()
        self.server.asked.append((name, self.headers.get("Authorization")))
        if name == "whoami-v2":
            found = {"type": "user", "name": "me", "orgs": []}
            self.answer(200, json.dumps(found).encode()) if self.is_owner() else self.refuse_token()
            return
        revision = rest[1] if len(rest) > 1 and rest[0] in ("tree", "resolve", "revision") else MAIN
        if rest[1:3] == ["refs", "pr"]:  # "refs/pr/1" came quoted
            revision, rest = "/".join(rest[1:4]), [rest[0], "/".join(rest[1:4]), *rest[4:]]
        folder = self.folder_of(name, revision)
        if name in self.server.private and not self.is_owner():
            self.answer(403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif name not in self.server.repositories:
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        elif folder is None:
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        elif is_api and rest[:1] == ["discussions"]:
            self.answer(200, json.dumps(self.discussions(name)).encode())
        elif is_api:
            self.answer(200, json.dumps(self.describe(name, folder, rest, revision)).encode())
        else:
            self.send(folder / "/".join(rest[2:]), self.head(name, revision))

    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def refuse_token(self):
        self.answer(401, headers={"X-Error-Message": "Invalid username or password."})

    def discussions(self, name: str) -> dict:
        asked = {key: values[0] for key, values in parse_qs(self.path.partition("?")[2]).items()}
        found = [
            each
            for each in self.server.discussions
            if each["repo"]["name"] == name
            and asked.get("status") in (None, each["status"])
            and asked.get("author") in (None, each["author"]["name"])
        ]
        return {"count": len(found), "start": 0, "discussions": found}

    # ---- pushes ----

    def do_POST(self):
        if self.fails():
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name, rest, _ = self.place()
        if rest[:1] == ["paths-info"]:
            self.answer(200, json.dumps(self.describe_paths(name, body)).encode())
        elif not self.is_owner():
            self.refuse_token()
        elif name == "repos/create":
            self.create(json.loads(body))
        elif name == "validate-yaml":
            self.answer(200, b"{}")
        elif name.removeprefix("datasets/") and name not in self.server.repositories:
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        elif not self.may_write(name) and not self.is_pull_request(rest):
            self.answer(403, headers={"X-Error-Message": "You have no rights to write to this repository."})
        elif rest[:1] == ["preupload"]:
            self.preupload(name, "/".join(rest[1:]), json.loads(body))
        elif rest[:3] == ["info", "lfs", "objects"]:
            self.answer(200, json.dumps(self.lfs_batch(json.loads(body))).encode())
        elif rest[:1] == ["commit"]:
            self.commit(name, "/".join(rest[1:]), body)
        else:  # a branch
            self.branch(name, rest[1])

    def is_pull_request(self, rest: list[str]) -> bool:
        """Whether a request belongs to a pull request, which everybody may open and go on with."""
        return "create_pr=1" in self.path or rest[1:3] == ["refs", "pr"] or rest[:1] == ["info"]

    def may_write(self, name: str) -> bool:
        return name.removeprefix("datasets/").split("/")[0] in self.server.owners

    def preupload(self, name: str, revision: str, asked: dict):
        folder, files = self.folder_of(name, revision), []
        for file in asked["files"]:
            path = folder / file["path"]
            oid = {"oid": blob_id(path)} if path.is_file() else {}
            mode = "lfs" if file["path"].endswith(LFS) else "regular"
            files.append({"path": file["path"], "shouldIgnore": False, "uploadMode": mode, **oid})
        self.answer(200, json.dumps({"files": files}).encode())

    def create(self, asked: dict):
        kind = "datasets/" if asked.get("type") == "dataset" else ""
        name = f"{kind}{asked['organization'] or 'me'}/{asked['name']}"
        address = {"url": f"{self.server.address}/{name}"}
        if not self.may_write(name):
            message = "You don't have the rights to create a model under this namespace"
            self.answer(403, headers={"X-Error-Message": message})
            return
        if name in self.server.repositories or name in self.server.taken:
            self.answer(409, json.dumps(address | {"error": "You already created this repo"}).encode())
            return
        self.server.repositories[name] = self.server.writable / name
        self.server.repositories[name].mkdir(parents=True)
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
            self.server.private_made.add(name)
        self.answer(200, json.dumps(address).encode())

    def branch(self, name: str, branch: str):
        branch = unquote(branch)
        if (name, branch) in self.server.branches:
            self.answer(409, headers={"X-Error-Message": "Reference already exists"})
            return
        self.copy_branch(name, branch)
        self.answer(200, b"{}")

    def copy_branch(self, name: str, branch: str, base: str = MAIN):
        folder = self.server.writable / f"{name}@{branch}"
        shutil.copytree(self.folder_of(name, base), folder)
        self.server.branches[name, branch] = folder

    def lfs_batch(self, asked: dict) -> dict:
        """Where to send the objects that are not there yet."""
        upload = self.server.address + "/lfs/{}"
        return {
            "transfer": "basic",
            "objects": [
                {"oid": each["oid"], "size": each["size"]}
                | (
                    {}
                    if each["oid"] in self.server.objects
                    else {"actions": {"upload": {"href": upload.format(each["oid"])}}}
                )
                for each in asked["objects"]
            ],
        }

    def do_PUT(self):
        self.server.puts.append(self.path.rpartition("/")[2])
        if self.fails():
            return
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer(200)

    def commit(self, name: str, revision: str, body: bytes):
        lines = [json.loads(line) for line in body.splitlines()]
        pull = {}
        if self.folder_of(name, revision) is None:
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
            return
        if "create_pr=1" in self.path:
            number = len(self.server.discussions) + 1
            self.copy_branch(name, f"refs/pr/{number}", base=revision)
            revision = f"refs/pr/{number}"
            self.server.discussions.append(discussion(name, number, lines[0]["value"]["summary"]))
            pull = {"pullRequestUrl": f"{self.server.address}/{name}/discussions/{number}"}
        folder = self.folder_of(name, revision)
        for line in lines[1:]:
            value = line["value"]
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                path.write_bytes(self.server.objects[value["oid"]])
            else:
                path.unlink()
        self.server.commits.append((name, revision))
        oid = hashlib.sha1(f"{name} {len(self.server.commits)}".encode()).hexdigest()
        self.server.heads[name, revision], self.server.revision_of[oid] = oid, revision
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{self.server.address}/{name}/commit/{oid}", **pull}
        self.answer(200, json.dumps(answer).encode())

    do_HEAD = do_GET

    def describe(self, name: str, folder: Path, rest: list[str], revision: str = MAIN):
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        if rest[:1] == ["tree"]:
            inside = "/".join(rest[2:])
            files = [file for file in files if not inside or file.startswith(f"{inside}/") or file == inside]
            folders = set()
            if "recursive=false" in self.path:
                depth = len(rest[2:]) + 1
                folders = {"/".join(file.split("/")[:depth]) for file in files if file.count("/") >= depth}
                files = [file for file in files if file.count("/") < depth]
            listed = [{"type": "file", "path": file, **blob(folder / file)} for file in files]
            return listed + [{"type": "directory", "path": path, "oid": COMMIT} for path in sorted(folders)]
        siblings = [{"rfilename": file} for file in files]
        about = {"sha": self.head(name, revision), "private": name in self.server.private, "siblings": siblings}
        return {"id": name.removeprefix("datasets/"), **about}

    def describe_paths(self, name: str, body: bytes) -> list[dict]:
        asked = parse_qs(body.decode())["paths"] if body[:1] != b"{" else json.loads(body)["paths"]
        folder = self.server.repositories[name]
        files = [
            {"type": "file", "path": path, "size": (folder / path).stat().st_size, "oid": COMMIT}
            for path in asked
            if (folder / path).is_file()
        ]
        return files + [
            {"type": "directory", "path": path, "oid": COMMIT} for path in asked if (folder / path).is_dir()
        ]

    def send(self, path: Path, commit: str):
        if not path.is_file():
            self.answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = path.read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def answer(self, status: int, content: bytes = b"", headers: dict | None = None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *words):
        pass


def blob_id(path: Path) -> str:
    """The digest by which git knows a file; of a large one, that of its pointer."""
    content = path.read_bytes()
    if path.name.endswith(LFS):
        digest = hashlib.sha256(content).hexdigest()
        content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def blob(path: Path) -> dict:
    size = path.stat().st_size
    found = {"size": size, "oid": blob_id(path)}
    if path.name.endswith(LFS):
        found["lfs"] = {"oid": hashlib.sha256(path.read_bytes()).hexdigest(), "size": size, "pointerSize": 134}
    return found


def discussion(name: str, number: int, title: str) -> dict:
    """An open pull request of `me`."""
    return {
        "num": number,
        "title": title,
        "status": "open",
        "isPullRequest": True,
        "author": {"name": "me"},
        "createdAt": "2026-01-01T00:00:00.000Z",
        "repo": {"name": name, "type": "model"},
    }


@contextmanager
def local_hub(cache: Path, home: Path, repositories: dict[str, Path]):
    """The hub of this process, at an endpoint of one's own, with an empty cache, not offline."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories, server.private, server.token, server.asked = repositories, set(), "hf_mine", []
    server.writable, server.objects, server.commits, server.private_made = home / "hub", {}, [], set()
    server.owners, server.taken, server.puts, server.faults, server.hang_seconds = {"me"}, set(), [], [], 1.0
    server.branches, server.heads, server.revision_of, server.discussions = {}, {}, {}, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = server.address = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(hf_api(), "endpoint", address)  # the library keeps one for the whole process
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setenv("SOUNDWAVE_HOME", str(home))
        patch.delenv("HF_TOKEN", raising=False)
        close_session()  # sessions are kept, and one that was made offline refuses
        try:
            yield server
        finally:
            close_session()  # ends connections, for which the server would wait
            server.shutdown()
            server.server_close()
