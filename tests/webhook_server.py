"""A server on loopback that takes what webhooks post, and answers as it is told to."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

SECRET = "a-path-that-must-stand-nowhere-0123456789"


@dataclass
class Webhook:
    """Where to post, and what was posted there."""

    address: str = ""
    posted: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def webhook(answers: Sequence[int] = (200,), seconds: float = 0.0) -> Iterator[Webhook]:
    """One that answers with these statuses in turn, the last for ever, after so many seconds."""
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.posted.append(json.loads(body))
            time.sleep(seconds)
            self.send_response(answers[min(len(hook.posted), len(answers)) - 1])
            self.send_header("Location", f"http://127.0.0.1:{server.server_port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        hook.address = f"http://127.0.0.1:{server.server_port}/{SECRET}"
        yield hook
        server.shutdown()
        thread.join()
