"""A hub on this machine that takes what is uploaded, and gives it: as much of its protocol as that takes."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_thisisnotatoken"
COMMIT = "0" * 40


class Hub:
    """Repositories by name: whether they are private, and the files of their last commit."""

    def __init__(self):
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.address = ""
        self.refuses: str | None = None  # the path of a request that is answered by 403

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict | list]:
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
            said = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [said | {"path": file["path"]} for file in files]}
        if "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            self.files[name] = {value["path"]: base64.b64decode(value["content"]) for value in sent}
            return 200, {"commitUrl": f"{self.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""}
        if "/tree/" in path:  # of its root, or of a folder, and there are none
            root = path.split("?")[0].count("/") == 6
            found = self.files.get(name, {}) if root else {}
            oids = {file: hashlib.sha1(content).hexdigest() for file, content in found.items()}
            return 200, [{"type": "file", "path": file, "size": len(found[file]), "oid": oids[file]} for file in oids]
        files = [{"rfilename": path} for path in self.files.get(name, ())]
        return 200, {"id": name, "private": self.private[name], "sha": COMMIT, "siblings": files}

    def file(self, path: str) -> bytes | None:
        """What is at ORGANISATION/NAME/resolve/REVISION/FILE; None where nothing is."""
        owner, repository, *_, name = path.strip("/").split("/")
        return self.files.get(f"{owner}/{repository}", {}).get(name)


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

        def give(self):
            hub.asked.append(f"{self.command} {self.path}")
            content = hub.file(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def reply_or_give(self):
            self.give() if "/resolve/" in self.path else self.reply()

        do_GET = do_POST = do_HEAD = reply_or_give

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # which remembers the address
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
        server.shutdown()
