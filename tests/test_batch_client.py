"""The Batch API over real HTTP: a file goes up, one batch is made of it, its results come down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scopenote.label.batch_client import BatchClient, BatchRefused
from scopenote.label.endpoint_client import Patience
from scopenote.label.provider_batch import ProviderBatch
from scopenote.store.errors import ConfigurationError, EndpointRefuses

from .fake_batches import Course, FakeBatches, Interruption
from .fake_openai import DROP, HANG, Answer, error, html, in_turn, reply, running, too_many

KEY = "sk-test-0123456789abcdef"
QUICK = Patience(
    attempts=3,
    attempt_seconds=5,
    total_seconds=20,
    first_backoff_seconds=0.002,
    longest_backoff_seconds=0.01,
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # No certificates: reading the system's takes longer than most of these tests.
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))


@contextmanager
def provider(**more: Any) -> Iterator[tuple[FakeBatches, BatchClient]]:
    patience = more.pop("patience", QUICK)
    with (
        running(FakeBatches(in_turn(reply()), **more)) as fake,
        BatchClient(fake.base_url, patience) as client,
    ):
        yield fake, client


def requests_in(folder: Path, n: int = 3) -> Path:
    file = folder / "requests.jsonl"
    lines = [
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": f"«{number}»"}]},
        }
        for number in range(n)
    ]
    file.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    return file


def test_a_file_becomes_a_batch_and_comes_back_as_results(tmp_path: Path) -> None:
    requests = requests_in(tmp_path)
    with provider(courses=lambda number: Course()) as (fake, client):
        made = client.submit("our id", requests, may_exist=False)
        assert made == ProviderBatch("batch_0", "validating")
        assert fake.files["file-0"] == requests.read_bytes()
        assert fake.batches["batch_0"].metadata == {"scopenote_batch": "our id"}
        assert fake.arrived["list"] == 0
        assert client.retrieve("batch_0").has_ended is False
        ended = client.retrieve("batch_0")
        assert ended == ProviderBatch("batch_0", "completed", ("file-1",), 3, 3600.0)
        assert ended.has_ended
        assert client.download("file-1", tmp_path / "results")
    assert (tmp_path / "results").read_bytes() == fake.files["file-1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requests.jsonl", "results"]


PASSING = [DROP, error(500), error(409), html(), Answer("not json", body=b'{"id": "bat'),
           Answer("no batch", body=b'{"id": 7}'), too_many("0.01")]  # fmt: skip


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize("answer", PASSING)
def test_a_batch_is_made_once_whatever_happens_to_the_answer(
    tmp_path: Path, answer: Answer, is_done: bool
) -> None:
    interruptions = {"create": [Interruption(answer, is_done)], "list": [Interruption(DROP)]}
    with provider(interruptions=interruptions) as (fake, client):
        client.submit("another's", requests_in(tmp_path), may_exist=False)
        fake.interruptions["create"] = [Interruption(answer, is_done)]
        made = client.submit("ours", requests_in(tmp_path), may_exist=False)
        assert len(fake.batches) == 2
        assert fake.batches[made.provider_id].metadata == {"scopenote_batch": "ours"}


def test_a_batch_whose_answer_does_not_come_in_time_is_made_once(tmp_path: Path) -> None:
    quick = Patience(3, 0.3, 20, 0.002, 0.01)
    interruptions = {"create": [Interruption(HANG)]}
    with provider(interruptions=interruptions, patience=quick) as (fake, client):
        assert client.submit("ours", requests_in(tmp_path), may_exist=False).state == "completed"
        assert len(fake.batches) == 1


def test_what_someone_who_died_has_submitted_is_found_among_all(tmp_path: Path) -> None:
    with provider() as (fake, client):
        for number in range(5):
            client.submit(f"batch of {number}", requests_in(tmp_path), may_exist=False)
        for number in range(5):
            found = client.submit(f"batch of {number}", tmp_path / "gone", may_exist=True)
            assert found.provider_id == f"batch_{number}"
        assert client.find("batch of") is None
        assert fake.arrived["upload"] == 5
        client.submit("batch of 5", requests_in(tmp_path), may_exist=True)
        assert len(fake.batches) == 6


def test_an_upload_is_sent_whole_again(tmp_path: Path) -> None:
    requests = requests_in(tmp_path, 2000)
    interruptions = {"upload": [Interruption(error(500)), Interruption(DROP, is_done=False)]}
    with provider(interruptions=interruptions) as (fake, client):
        client.submit("ours", requests, may_exist=False)
        assert fake.files["file-0"] == fake.files["file-1"] == requests.read_bytes()


@pytest.mark.parametrize(
    "then", [Answer("drop", then="drop halfway"), error(500, "try again"), DROP]
)
def test_a_download_that_breaks_off_begins_anew(tmp_path: Path, then: Answer) -> None:
    with provider(interruptions={"content": [Interruption(then)]}) as (fake, client):
        client.submit("ours", requests_in(tmp_path, 3000), may_exist=False)
        assert client.download("file-1", tmp_path / "results")
        assert (tmp_path / "results").read_bytes() == fake.files["file-1"]
        assert fake.arrived["content"] == 2


def test_a_file_that_the_provider_has_no_more_is_none(tmp_path: Path) -> None:
    with provider() as (_, client):
        assert client.download("file-9", tmp_path / "results") is False
    assert not (tmp_path / "results").exists()


def test_the_key_stays_out_of_what_is_kept(tmp_path: Path) -> None:
    with provider() as (fake, client):
        line = b'{"custom_id": "' + KEY.encode() + b'"}\n'
        fake.files["echo"] = line * 30_000 + b"rest " + KEY.encode()
        client.download("echo", tmp_path / "results")
        failing = Course(("failed",), failure=("invalid", f"for {KEY}"))
        fake.courses = lambda number: failing
        made = client.submit("ours", requests_in(tmp_path), may_exist=False)
    assert (tmp_path / "results").read_bytes() == (
        b'{"custom_id": "[key]"}\n' * 30_000 + b"rest [key]"
    )
    assert (made.error_code, made.error) == ("invalid", "for [key]")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (error(401, "Incorrect API key", code="invalid_api_key"), "refuses the key"),
        (error(429, "quota", code="insufficient_quota"), "no more credit"),
    ],
)
def test_what_concerns_every_request_stops_at_once(
    tmp_path: Path, answer: Answer, message: str
) -> None:
    with provider(interruptions={"upload": [Interruption(answer, False)]}) as (fake, client):
        with pytest.raises(EndpointRefuses, match=message) as caught:
            client.submit("ours", requests_in(tmp_path), may_exist=False)
        assert not isinstance(caught.value, BatchRefused)
        assert fake.arrived == {"upload": 1}


def test_a_batch_that_is_refused_was_not_made(tmp_path: Path) -> None:
    refused = Interruption(error(400, "no such endpoint for batches"), is_done=False)
    with provider(interruptions={"create": [refused]}) as (fake, client):
        with pytest.raises(BatchRefused, match="no such endpoint for batches"):
            client.submit("ours", requests_in(tmp_path), may_exist=False)
        assert (fake.arrived["create"], len(fake.batches)) == (1, 0)
        with pytest.raises(BatchRefused, match="batch = false"):
            client.retrieve("batch_7")


def test_whether_a_batch_exists_is_not_known_where_the_list_is_refused(tmp_path: Path) -> None:
    refused = Interruption(error(400, "no lists here"))
    with provider(interruptions={"list": [refused]}) as (_, client):
        with pytest.raises(EndpointRefuses, match="no lists here") as caught:
            client.submit("ours", requests_in(tmp_path), may_exist=True)
        assert not isinstance(caught.value, BatchRefused)


def test_patience_ends(tmp_path: Path) -> None:
    interruptions = {"upload": [Interruption(error(503))] * 9}
    with provider(interruptions=interruptions) as (fake, client):
        with pytest.raises(EndpointRefuses, match="gives no answer") as caught:
            client.submit("ours", requests_in(tmp_path), may_exist=False)
        assert not isinstance(caught.value, BatchRefused)
        assert fake.arrived == {"upload": 3}


def test_a_missing_key_is_said_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigurationError, match="no key for OpenAI"):
        BatchClient(None)
