"""Requests in files: each once, as they were, found by their hashes."""

from __future__ import annotations

from pathlib import Path

import pytest
from scopenote.store.records import RecordedRequest
from scopenote.store.request_files import RequestFile, RequestIndex, read_requests


def request(number: int) -> RecordedRequest:
    asked = {"role": "user", "content": f"{number} «é»\n日本\t\x00 \u2028 \ud800"}
    return RecordedRequest(
        f"{number:016x}",
        {"model": "m", "messages": [asked], "temperature": 0.0, "max_tokens": number},
        n_static=number % 2,
        draw=number,
    )


def test_requests_come_back_as_they_were_and_each_once(tmp_path: Path) -> None:
    requests = [request(number) for number in range(50)]
    with RequestFile(tmp_path / "r") as file:
        written = [file.add(each) for each in [*requests, *requests[::-1]]]
        assert len(file) == 50
    assert written == [True] * 50 + [False] * 50
    assert file.hashes == {each.request_hash for each in requests}
    assert list(read_requests(tmp_path / "r")) == requests


def test_requests_are_found_in_any_order(tmp_path: Path) -> None:
    requests = [request(number) for number in range(50)]
    with RequestFile(tmp_path / "r") as file:
        for each in requests:
            file.add(each)
    with RequestIndex(tmp_path / "r") as index:
        assert index.hashes == file.hashes
        for each in [*requests[::-1], requests[7]]:
            assert index[each.request_hash] == each
        with pytest.raises(KeyError):
            index["never"]


def test_a_file_is_begun_anew(tmp_path: Path) -> None:
    for number in range(2):
        with RequestFile(tmp_path / "r") as file:
            file.add(request(number))
    assert list(read_requests(tmp_path / "r")) == [request(1)]
