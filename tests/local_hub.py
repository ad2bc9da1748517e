"""A server that speaks enough of the hub's protocol for downloads (revisions, trees, files, tokens), and for pushes of
data sets (create, branch, preupload, LFS, commit)."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from transformers.utils.hub import hf_api


COMMIT = "0123456789012345678901234567890123456789"


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

    def do_GET(self):
        name, rest, is_api = self.place()
        self.server.asked.append((name, self.headers.get("Authorization")))
        folder = self.server.repositories.get(name)
        if name in self.server.private and not self.is_owner():
            self.answer(403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif folder is None:
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        elif is_api:
            self.answer(200, json.dumps(self.describe(name, folder, rest)).encode())
        else:
            self.send(folder / "/".join(rest[2:]))

    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    # ---- pushes ----

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name, rest, _ = self.place()
        if rest[:1] == ["paths-info"]:
            self.answer(200, json.dumps(self.describe_paths(name, body)).encode())
        elif not self.is_owner():
            self.answer(401, headers={"X-Error-Message": "Invalid username or password."})
        elif name == "repos/create":
            self.create(json.loads(body))
        elif rest[:1] == ["preupload"]:
            files = [
                {"path": file["path"], "shouldIgnore": False}
                | {"uploadMode": "lfs" if file["path"].endswith(".parquet") else "regular"}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, json.dumps({"files": files}).encode())
        elif rest[:3] == ["info", "lfs", "objects"]:
            self.answer(200, json.dumps(self.lfs_batch(json.loads(body))).encode())
        elif rest[:1] == ["commit"]:
            self.commit(name, rest[1], body)
        else:  # a branch
            self.answer(200, b"{}")

    def create(self, asked: dict):
        name = f"datasets/{asked['organization']}/{asked['name']}"
        address = json.dumps({"url": f"{self.server.address}/{name}"}).encode()
        if name in self.server.repositories:
            self.answer(409, address)
            return
        self.server.repositories[name] = self.server.writable / name
        self.server.repositories[name].mkdir(parents=True)
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
            self.server.private_made.add(name)
        self.answer(200, address)

    def lfs_batch(self, asked: dict) -> dict:
        upload = self.server.address + "/lfs/{}"
        return {
            "transfer": "basic",
            "objects": [
                {"oid": each["oid"], "size": each["size"], "actions": {"upload": {"href": upload.format(each["oid"])}}}
                for each in asked["objects"]
            ],
        }

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer(200)

    def commit(self, name: str, revision: str, body: bytes):
        folder = self.server.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                continue
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                path.write_bytes(self.server.objects[value["oid"]])
            else:
                path.unlink()
        self.server.commits.append((name, revision))
        answer = {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}"}
        self.answer(200, json.dumps(answer).encode())

    do_HEAD = do_GET

    def describe(self, name: str, folder: Path, rest: list[str]):
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        if rest[:1] == ["tree"]:
            inside = "/".join(rest[2:])
            files = [file for file in files if not inside or file.startswith(f"{inside}/") or file == inside]
            folders = set()
            if "recursive=false" in self.path:
                depth = len(rest[2:]) + 1
                folders = {"/".join(file.split("/")[:depth]) for file in files if file.count("/") >= depth}
                files = [file for file in files if file.count("/") < depth]
            sizes = {file: (folder / file).stat().st_size for file in files}
            oid = {file: hashlib.sha1((folder / file).read_bytes()).hexdigest() for file in files}
            listed = [{"type": "file", "path": file, "size": sizes[file], "oid": oid[file]} for file in files]
            return listed + [{"type": "directory", "path": path, "oid": COMMIT} for path in sorted(folders)]
        siblings = [{"rfilename": file} for file in files]
        private = name in self.server.private
        return {"id": name.removeprefix("datasets/"), "sha": COMMIT, "private": private, "siblings": siblings}

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

    def send(self, path: Path):
        if not path.is_file():
            self.answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

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


@contextmanager
def local_hub(cache: Path, home: Path, repositories: dict[str, Path]):
    """The hub of this process, at an endpoint of one's own, with an empty cache, not offline."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories, server.private, server.token, server.asked = repositories, set(), "hf_mine", []
    server.writable, server.objects, server.commits, server.private_made = home / "hub", {}, [], set()
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
            server.shutdown()
            server.server_close()
            close_session()
