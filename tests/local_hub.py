"""A server that speaks enough of the hub's protocol for downloads: revisions, trees, files, tokens."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from transformers.utils.hub import hf_api


COMMIT = "0123456789012345678901234567890123456789"


class Handler(BaseHTTPRequestHandler):
    """Serves `server.repositories`, folders by name; those in `server.private` for `server.token` alone."""

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4:] if is_api else parts[2:]
        self.server.asked.append((name, self.headers.get("Authorization")))
        folder = self.server.repositories.get(name)
        if name in self.server.private and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer(403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif folder is None:
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        elif is_api:
            self.answer(200, json.dumps(self.describe(name, folder, rest)).encode())
        else:
            self.send(folder / "/".join(rest[2:]))

    do_HEAD = do_GET

    def describe(self, name: str, folder: Path, rest: list[str]):
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        if rest[:1] == ["tree"]:
            files = [file for file in files if file.startswith("/".join(rest[2:]))]
            sizes = {file: (folder / file).stat().st_size for file in files}
            oid = {file: hashlib.sha1((folder / file).read_bytes()).hexdigest() for file in files}
            return [{"type": "file", "path": file, "size": sizes[file], "oid": oid[file]} for file in files]
        return {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}

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
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
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
