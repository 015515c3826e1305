"""Who may ask a dashboard, who may write, and what an answer may do in the browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from scopenote.flows.dashboard.guard import COOKIE, MAX_BODY_BYTES, Guard
from scopenote.flows.dashboard.site import Site

TOKEN = "a-token-that-nobody-guesses"
FORM = {"content-type": "application/x-www-form-urlencoded"}


def guarded(home: str = "http://localhost", **site: object) -> TestClient:
    """An application that answers everything, behind the guard."""
    app = FastAPI()

    @app.get("/{path:path}")
    def read(path: str) -> str:
        return path

    @app.post("/{path:path}")
    async def write(path: str, request: Request) -> int:
        return len(await request.body())

    app.add_middleware(Guard, site=Site(Path("run"), **site))
    return TestClient(app, base_url=home, follow_redirects=False)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8400", "[::1]:8400", "LOCALHOST:1"])
def test_this_machine_is_answered(host: str) -> None:
    assert guarded().get("/x", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "", "[::2]"]
)
def test_a_page_that_turns_its_own_name_to_this_machine_is_refused(host: str) -> None:
    answer = guarded().get("/x", headers={"host": host})
    assert answer.status_code == 421
    assert "--host" in answer.text


def test_nothing_may_run_or_be_loaded_but_what_the_dashboard_has() -> None:
    for answer in (guarded().get("/x"), guarded().get("/x", headers={"host": "evil.example"})):
        policy = answer.headers["content-security-policy"]
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules.pop("default-src") == "'none'"
        assert rules.pop("frame-ancestors") == rules.pop("base-uri") == "'none'"
        assert set(rules.values()) == {"'self'"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"


def test_forms_of_other_sites_are_refused() -> None:
    client = guarded()
    elsewhere = [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ]
    for headers in elsewhere:
        assert client.post("/x", content="a=1", headers=FORM | headers).status_code == 403
    own = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
    assert client.post("/x", content="a=1", headers=FORM | own).json() == 3
    assert client.post("/x", content="a=1", headers=FORM).json() == 3


def test_forms_have_a_length_and_an_end() -> None:
    client = guarded()
    assert client.post("/x", content="a" * MAX_BODY_BYTES, headers=FORM).status_code == 200
    assert client.post("/x", content="a" * (MAX_BODY_BYTES + 1), headers=FORM).status_code == 413
    assert client.post("/x", content=iter([b"a"]), headers=FORM).status_code == 411


def test_a_read_only_dashboard_takes_nothing() -> None:
    client = guarded(is_read_only=True)
    assert client.get("/x").status_code == 200
    assert client.post("/x", content="a=1", headers=FORM).status_code == 403


def test_without_the_token_nothing_is_shown() -> None:
    client = guarded(token=TOKEN)
    attempts: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer "},
        {"cookie": f"{COOKIE}=wrong"},
        {"cookie": f"{COOKIE}="},
        {"cookie": "\x80=;;;=;"},
    ]
    for headers in attempts:
        answer = client.get(
            "/x", headers={name: text.encode("latin-1") for name, text in headers.items()}
        )
        assert answer.status_code == 401
        assert TOKEN not in answer.text
    assert client.get("/x?token=wrong").status_code == 401
    assert client.post(f"/x?token={TOKEN}", content="a=1", headers=FORM).status_code == 401


def test_the_address_with_the_token_leads_to_the_one_without_and_is_remembered() -> None:
    client = guarded(token=TOKEN)
    answer = client.get(f"/a%2Fb/c?q=x+y&token={TOKEN}&page=2")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/a%2Fb/c?q=x+y&page=2"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert client.get("/x").status_code == 200
    assert client.get("/x", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example/", "///evil.example"])
def test_no_address_leads_to_another_machine(path: str) -> None:
    answer = guarded(token=TOKEN).get(f"http://localhost{path}?token={TOKEN}")
    assert answer.status_code == 303
    assert not answer.headers["location"].startswith(("//", "/\\"))
    assert answer.headers["location"].startswith("/")


def test_where_a_token_is_asked_for_any_name_will_do() -> None:
    client = guarded(token=TOKEN, hosts=None)
    own = {"authorization": f"Bearer {TOKEN}", "host": "gpu-7.lab.example:8400"}
    assert client.get("/x", headers=own).status_code == 200


def test_a_defect_is_said_without_its_details_and_with_the_same_headers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = FastAPI()

    @app.get("/")
    def fail() -> None:
        raise RuntimeError("secret details")

    app.add_middleware(Guard, site=Site(Path("run")))
    answer = TestClient(app, base_url="http://localhost").get("/")
    assert answer.status_code == 500
    assert "defect" in answer.text and "secret" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "secret details" in caplog.text
