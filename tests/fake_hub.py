"""A hub on this machine: what huggingface_hub's own client needs to make a repository and to commit files to it."""

import base64
import http.server
import json
import threading


class FakeHub(http.server.ThreadingHTTPServer):
    """Keeps every repository's files; refuses all that belongs to the owner `others`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str | None] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    """The four requests of an upload."""

    def do_POST(self) -> None:
        hub, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        hub.tokens.add(self.headers["Authorization"])
        parts = self.path.split("/")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization')}/{asked['name']}"
            if asked.get("organization") == "others":
                return self.answer(403, {"error": "You don't have the rights to create a model there"})
            hub.files.setdefault(name, {})
            return self.answer(200, {"url": f"{hub.address}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        repository = "/".join(parts[3:5])
        if parts[5] == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        assert parts[5] == "commit", self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                hub.files[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = {"commitUrl": f"{hub.address}/{repository}/commit/abc", "commitOid": "abc", "success": True}
        return self.answer(200, commit)

    def answer(self, code: int, content: dict) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args) -> None:
        """Says nothing."""
