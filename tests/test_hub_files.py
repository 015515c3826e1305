"""What the hub answers: real exceptions of its client, from a small server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

# What the real hub answers, by the repository asked for: a status, an error code, a message.
ANSWERS: dict[str, tuple[int, str, str] | tuple[int, str]] = {
    "org/gated": (403, "GatedRepo"),
    "org/gated-without-token": (401, "GatedRepo"),
    "org/private-or-missing": (401, "RepoNotFound"),
    "org/missing": (404, "RepoNotFound"),
    "org/other-files": (404, "EntryNotFound"),
    "org/refuses-the-token": (403, ""),
    "org/does-not-know-the-token": (401, "", "Invalid credentials in Authorization header"),
    "org/out-of-order": (501, ""),
}
ASK = """
import json, sys
from scopenote.extract.hub_files import NoSuchHubFile, download
from scopenote.extract.models import load_model
from scopenote.store.errors import ModelError, SaeError

answers = {}
for repository in json.loads(sys.argv[1]):
    try:
        download(repository, "folder/params.npz")
    except SaeError as error:
        answers[repository] = [type(error).__name__, error.what, error.mend]
try:
    load_model("org/gated", [])
except ModelError as error:
    answers["model"] = ["ModelError", error.what, error.mend]
print(json.dumps(answers))
"""


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        repository = next((name for name in ANSWERS if f"/{name}/" in self.path), "")
        status, code, *message = ANSWERS.get(repository, (404, ""))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    """What each repository's answer became, in a process that knows no other hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path_factory.mktemp("home")
    environment = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY")}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_of_nobody",
        "HF_HUB_OFFLINE": "0",
    }
    answer = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(list(ANSWERS))],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    server.shutdown()
    server.server_close()
    assert answer.returncode == 0, answer.stderr
    yield json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("repository", "what", "mend"),
    [
        ("org/gated", "is not open to you", "accept its terms at {page}, then set HF_TOKEN"),
        (
            "org/gated-without-token",
            "is not open to you",
            "accept its terms at {page}, then set HF_TOKEN",
        ),
        ("org/private-or-missing", "does not exist, or is private", "if {page} is private, set"),
        ("org/missing", "does not exist, or is private", "correct [saes] paths"),
        ("org/other-files", "has no such file", "see its files at {page}/tree/main"),
        ("org/refuses-the-token", "refuses your token", "set HF_TOKEN to a valid one"),
        ("org/does-not-know-the-token", "refuses your token", "may read {page}"),
        ("org/out-of-order", "cannot be reached", "check the connection"),
    ],
)
def test_what_the_hub_answers_becomes_what_a_person_can_do(
    answers: dict[str, list[str]], repository: str, what: str, mend: str
) -> None:
    kind, said, advice = answers[repository]
    assert kind == ("NoSuchHubFile" if repository == "org/other-files" else "SaeError")
    assert said.endswith(f"repository {repository} {what}.")
    assert mend.format(page=f"https://huggingface.co/{repository}") in advice


def test_a_gated_model_names_its_page_and_the_variable(answers: dict[str, list[str]]) -> None:
    _, what, mend = answers["model"]
    assert what == "The model cannot be loaded."
    assert "https://huggingface.co/org/gated" in mend
    assert "HF_TOKEN" in mend
