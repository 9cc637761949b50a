"""A model hub on loopback, as far as one upload needs it: it takes every file as a regular one, and remembers what it was asked."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """What came in, and how the hub answers."""

    def __init__(self) -> None:
        self.tokens: set[str | None] = set()
        self.calls: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.commits: list[dict[str, Any]] = []
        """header and files of each commit"""
        self.private = True
        self.refusal: str | None = None
        """of the card"""
        self.address = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return status and content."""
        self.calls.append(f"{method} {path.partition('?')[0]}")
        if path == "/api/validate-yaml":
            return (400, {"error": self.refusal}) if self.refusal else (200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            return 200, {"url": f"{self.address}/acme/lamp", "name": "acme/lamp"}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            return 200, {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]}
        if "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
            self.commits.append({"header": lines[0]["value"], "files": files, "keys": {line["key"] for line in lines}})
            return 200, {"commitUrl": f"{self.address}/acme/lamp/commit/1", "commitOid": "1" * 40, "success": True}
        return 200, {"id": "acme/lamp", "private": self.private, "siblings": [], "tags": [], "sha": "0" * 40}


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run a hub; it ends with the block."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            hub.tokens.add(self.headers["authorization"])
            body = self.rfile.read(int(self.headers["content-length"] or 0))
            status, content = hub.answer(self.command, self.path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _do

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
