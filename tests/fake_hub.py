"""A hub on loopback that the real client uploads data sets to; it keeps what it gets."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class FakeHub:
    """What was asked of it.

    Attributes:
        files: by path, as of the last commit.
        refuse: a part of an address, and the status with which such requests are answered.
    """

    url: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    refuse: tuple[str, int] | None = None

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.url}/datasets/me/labels"}
        if "/preupload/" in path:
            return {"files": [
                {"path": each["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if each["path"].endswith(".parquet") else "regular"}
                for each in json.loads(body)["files"]
            ]}  # fmt: skip
        if path.endswith("/objects/batch"):
            return {"transfer": "basic", "objects": [
                {**each, "actions": {"upload": {"href": f"{self.url}/put/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]}  # fmt: skip
        if path.startswith("/put/"):
            self.objects[path.removeprefix("/put/")] = body
        if "/commit/" in path:
            for line in body.splitlines():
                self._commit(**json.loads(line))
            return {"commitUrl": f"{self.url}/datasets/me/labels/commit/abc", "commitOid": "abc",
                    "success": True}  # fmt: skip
        return {}

    def _commit(self, key: str, value: dict[str, Any]) -> None:
        if key == "header":
            self.messages.append(value["summary"])
        elif key == "file":
            self.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            self.files[value["path"]] = self.objects[value["oid"]]


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status = 200
            if hub.refuse is not None and hub.refuse[0] in self.path:
                status, found = hub.refuse[1], {"error": "no"}
            else:
                if not self.path.startswith("/put/"):
                    hub.tokens.add(self.headers.get("authorization"))
                found = hub.answer(self.path.partition("?")[0], body)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_HEAD = answer

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
