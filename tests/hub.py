"""A hub on this machine that takes what is uploaded, and gives it: as much of its protocol as that takes."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


class Hub:
    """Repositories by name: whether they are private, and the files of their last commit."""

    def __init__(self):
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.refuses: str | None = None  # the path of a request that is answered by 403

    def answer(self, path: str, body: bytes) -> tuple[int, dict | list]:
        path = path.split("?")[0]
        if self.refuses and self.refuses in path:
            return 403, {"error": "this token may not write"}
        if path in ("/api/whoami-v2", "/api/validate-yaml"):
            return 200, {"name": "me", "type": "user", "warnings": [], "errors": []}
        sent = [json.loads(line) for line in body.splitlines()]
        if path == "/api/repos/create":
            name = f"{sent[0].get('organization') or 'me'}/{sent[0]['name']}"
            status = 409 if name in self.private else 200
            self.private.setdefault(name, sent[0].get("visibility") == "private" or bool(sent[0].get("private")))
            return status, {"url": f"/{name}"}
        name, rest = "/".join(path.split("/")[3:5]), path.split("/")[5:]
        if name not in self.private:
            return 404, {"error": "Repository not found"}
        if "preupload" in rest:
            said = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [said | {"path": file["path"]} for file in sent[0]["files"]]}
        if "commit" in rest:
            values = [line["value"] for line in sent if line["key"] == "file"]
            self.files[name] = {value["path"]: base64.b64decode(value["content"]) for value in values}
            return 200, {"commitUrl": f"/{name}/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""}
        files = self.files.get(name, {})
        if "tree" in rest:  # of its root, or of a folder, and there are none
            oids = {file: hashlib.sha1(files[file]).hexdigest() for file in (files if len(rest) == 2 else ())}
            return 200, [{"type": "file", "path": file, "size": len(files[file]), "oid": oids[file]} for file in oids]
        siblings = [{"rfilename": file} for file in files]
        return 200, {"id": name, "private": self.private[name], "sha": COMMIT, "siblings": siblings}

    def file(self, path: str) -> tuple[int, bytes]:
        """What is at ORGANISATION/NAME/resolve/REVISION/FILE."""
        owner, repository, *_, name = path.strip("/").split("/")
        content = self.files.get(f"{owner}/{repository}", {}).get(name)
        return (404, b"") if content is None else (200, content)


@contextlib.contextmanager
def serving(monkeypatch) -> Iterator[Hub]:
    """A hub to which huggingface_hub in this process speaks as long as it lasts, with a token."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            hub.asked.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "/resolve/" in self.path:
                missing, (status, content) = "EntryNotFound", hub.file(self.path)
            else:
                missing, (status, said) = "RepoNotFound", hub.answer(self.path, body)
                content = json.dumps(said).encode()
            self.send_response(status)
            headers = {"X-Repo-Commit": COMMIT, "Content-Type": "application/json", "Content-Length": len(content)}
            headers |= {"X-Error-Code": missing} if status == 404 else {}
            for name, value in (headers | {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}).items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_HEAD = reply

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in (
            ("ENDPOINT", address),
            ("HUGGINGFACE_CO_URL_TEMPLATE", template),
            ("HF_HUB_OFFLINE", False),
        ):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # which remembers the address
        monkeypatch.setenv("HF_TOKEN", "hf_thisisnotatoken")
        yield hub
        server.shutdown()
