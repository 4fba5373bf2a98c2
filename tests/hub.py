"""A hub on this machine that takes what is uploaded: as much of its protocol as huggingface_hub speaks for that."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_thisisnotatoken"


class Hub:
    """Repositories by name: whether they are private, and the files of their last commit."""

    def __init__(self):
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.address = ""
        self.refuses: str | None = None  # the path of a request that is answered by 403

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict]:
        self.asked.append(f"{method} {path}")
        if self.refuses and self.refuses in path:
            return 403, {"error": "this token may not write"}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.private:
                return 409, {"url": f"{self.address}/{name}"}
            self.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            return 200, {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        name = "/".join(path.split("?")[0].split("/")[3:5])
        if name not in self.private:
            return 404, {"error": "Repository not found"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return 200, {"files": [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files
            ]}  # fmt: skip
        if "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            self.files[name] = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            return 200, {
                "commitUrl": f"{self.address}/{name}/commit/{'0' * 40}",
                "commitOid": "0" * 40,
                "hookOutput": "",
            }
        return 200, {"id": name, "private": self.private[name], "sha": "0" * 40, "siblings": []}


@contextlib.contextmanager
def serving(monkeypatch) -> Iterator[Hub]:
    """A hub to which huggingface_hub in this process speaks as long as it lasts, with a token."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = hub.answer(self.command, self.path, body)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = reply

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
        server.shutdown()
