"""Requests cut into files that a provider takes, and how much it lets wait."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scopenote.label.batch_files import (
    TOO_MUCH_ENQUEUED,
    FileLimits,
    most_enqueued_tokens,
    write_batch_files,
)
from scopenote.label.batch_lines import request_line
from scopenote.label.call_records import CallRecords
from scopenote.label.pricing import Price
from scopenote.label.request_body import estimated_tokens
from scopenote.store.batch_record import Batch
from scopenote.store.records import RecordedRequest
from scopenote.store.request_files import read_requests

PRICE = Price(Decimal(100), Decimal(50), Decimal(1000), Decimal("0.5"), "2026-11")
RECORDS = CallRecords({"fake": PRICE}, "explain", in_batch=True)


def request(number: int, n_characters: int, model: str = "fake") -> RecordedRequest:
    asked = {"role": "user", "content": "é" * n_characters}
    content = {"model": model, "messages": [asked], "temperature": 0.0, "max_tokens": 7}
    return RecordedRequest(f"{number:016x}", content, 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=12),
    n_requests=st.integers(1, 4),
    n_bytes=st.integers(1, 900),
)
def test_files_are_filled_in_order_up_to_either_limit(
    tmp_path: Path, lengths: list[int], n_requests: int, n_bytes: int
) -> None:
    requests = [request(number, length) for number, length in enumerate(lengths)]
    expected: list[list[RecordedRequest]] = []
    for each in requests:
        fits = expected and len(expected[-1]) < n_requests
        if fits:
            size = sum(len(request_line(other, ())) for other in [*expected[-1], each])
            fits = size <= n_bytes
        expected = [*expected[:-1], [*expected[-1], each]] if fits else [*expected, [each]]

    limits = FileLimits(n_requests, n_bytes)
    files = list(write_batch_files(requests, tmp_path, RECORDS, (), limits))
    assert [list(read_requests(file.requests)) for file in files] == expected
    for file, held in zip(files, expected, strict=True):
        assert file.upload.read_bytes() == b"".join(request_line(each, ()) for each in held)
        assert file.hashes == {each.request_hash for each in held}
        assert file.n_tokens == sum(estimated_tokens(each.request) for each in held)
        assert file.most_usd == sum(RECORDS.most_usd(each) for each in held)
    assert len({file.batch_id for file in files}) == len(files)


def test_what_a_batch_costs_at_most_is_half_of_what_calls_do() -> None:
    alone = CallRecords({"fake": PRICE}, "explain")
    asked = request(0, 1000)
    assert RECORDS.most_usd(asked) * 2 == alone.most_usd(asked)
    # 2,000 bytes and the marks of a message at 100 dollars a million, 7 tokens at 1,000.
    assert alone.most_usd(asked) == Decimal("0.2016") + Decimal("0.007")


def test_without_a_price_it_is_not_known_what_a_batch_costs(tmp_path: Path) -> None:
    requests = [request(number, 1, "unheard of") for number in range(2)]
    (file,) = write_batch_files(requests, tmp_path, RECORDS, ())
    assert file.most_usd is None


def test_the_requests_are_read_no_further_than_the_file_needs(tmp_path: Path) -> None:
    taken: list[int] = []

    def requests() -> Iterator[RecordedRequest]:
        for number in range(10):
            taken.append(number)
            yield request(number, 1)

    files = write_batch_files(requests(), tmp_path, RECORDS, (), FileLimits(n_requests=3))
    next(files)
    assert taken == [0, 1, 2, 3]


BEGAN = datetime(2026, 11, 21, 5, tzinfo=UTC)
STATED = "Enqueued token limit reached for m in organization o. Limit: {} enqueued tokens. Please"


def batch(minute: int, until: int | None, n_tokens: int, reason: str | None = None) -> Batch:
    prepared = BEGAN + timedelta(minutes=minute)
    made = Batch(f"{minute}", "http://here/v1", "m", 1, n_tokens, None, {}, prepared)
    ended = None if until is None else BEGAN + timedelta(minutes=until)
    return replace(made, submitted_at=prepared, ended_at=ended, reason=reason)


def too_much(limit: str = "2,000,000") -> str:
    return f"{TOO_MUCH_ENQUEUED}: {STATED.format(limit)}"


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([], None),
        ([batch(0, 9, 5_000_000)], None),
        ([batch(0, 9, 5_000_000, "invalid: Limit: 3 enqueued tokens")], None),
        ([batch(0, 1, 5_000_000, too_much())], 2_000_000),
        # Without a number half of it.
        ([batch(0, 1, 5_000_000, f"{TOO_MUCH_ENQUEUED}: no")], 2_500_000),
        # We count fewer tokens than the provider: three quarters of what was refused.
        ([batch(0, 1, 5_000_000, too_much()), batch(2, 3, 2_000_000, too_much())], 1_500_000),
        # What waited beside it counts, and what had ended before does not.
        (
            [
                batch(0, 1, 9_000_000),
                batch(0, None, 1_000_000),
                batch(2, 3, 200_000, f"{TOO_MUCH_ENQUEUED}: no"),
                batch(4, 5, 7_000_000),
            ],
            600_000,
        ),
        # Batches of others were in the way.
        ([batch(0, 1, 1000, too_much())], 50_000),
    ],
)
def test_the_provider_shows_how_much_it_lets_wait(
    batches: list[Batch], expected: int | None
) -> None:
    assert most_enqueued_tokens(batches) == expected
