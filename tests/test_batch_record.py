"""The record of batches: under way until all that came of them is known, each request counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from scopenote.store.batch_record import (
    NOT_COUNTED,
    Batch,
    add_batch,
    batches_under_way,
    end_batch,
    note_state,
    read_batches,
    requests_under_way,
    rounds_before,
)
from scopenote.store.database import migrate
from scopenote.store.facts import REVISION, get_meta
from scopenote.store.schema import MIGRATIONS

BEGAN = datetime(2026, 11, 21, 5, tzinfo=UTC)


@pytest.fixture
def work() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        migrate(connection, Path("in memory"))
        yield connection


def made(number: int, n_requests: int = 3, **more: Any) -> Batch:
    fields = {
        "batch_id": f"batch {number}",
        "endpoint": "http://here/v1",
        "model": "fake",
        "n_requests": n_requests,
        "n_tokens": 100 * n_requests,
        "most_usd": Decimal("0.000000000000000001"),
        "lacking": {"json_schema": "it's «not» supported"},
        "prepared_at": BEGAN + timedelta(minutes=number),
    }
    return Batch(**(fields | more))


def test_a_batch_is_read_back_as_it_was_recorded(work: duckdb.DuckDBPyConnection) -> None:
    batches = [made(1), made(2, most_usd=None), made(3, lacking={})]
    for batch in batches[::-1]:
        add_batch(work, batch, [f"{batch.batch_id} {n}" for n in range(3)])
    assert read_batches(work) == batches
    assert batches_under_way(work) == batches
    assert len(requests_under_way(work)) == 9


def test_a_batch_goes_from_prepared_to_ended(work: duckdb.DuckDBPyConnection) -> None:
    add_batch(work, made(1), ["a", "b", "c"])
    revisions = [get_meta(work, REVISION)]
    note_state(work, "batch 1", "batch_xyz", "validating")
    (submitted,) = batches_under_way(work)
    assert (submitted.provider_id, submitted.state) == ("batch_xyz", "validating")
    assert submitted.submitted_at is not None
    revisions.append(get_meta(work, REVISION))
    note_state(work, "batch 1", "batch_xyz", "completed")
    revisions.append(get_meta(work, REVISION))
    assert batches_under_way(work) == [replace(submitted, state="completed")]
    end_batch(work, "batch 1", "completed", ["b"], [], {"logprobs": "no"}, None)
    revisions.append(get_meta(work, REVISION))
    assert batches_under_way(work) == []
    (ended,) = read_batches(work)
    assert ended.ended_at is not None
    assert (ended.state, ended.n_answered, ended.lacking) == ("completed", 2, {"logprobs": "no"})
    assert requests_under_way(work) == set()
    # Each step is news for those who read the published copy.
    assert len({*revisions}) == 4


def test_rounds_count_the_batches_in_which_a_request_was_tried_in_vain(
    work: duckdb.DuckDBPyConnection,
) -> None:
    for number, (hashes, unanswered, not_counted) in enumerate(
        [
            ("abcd", "ab", "c"),
            ("abc", "a", ""),
            ("bc", "", "bc"),
        ]
    ):
        add_batch(work, made(number, len(hashes)), hashes)
        end_batch(work, f"batch {number}", "expired", [*unanswered], [*not_counted])
    add_batch(work, made(3, 4), "abcx")
    assert rounds_before(work, "batch 3") == {"a": 2, "b": 1}
    assert requests_under_way(work) == set("abcx")
    # Of itself a batch knows nothing: its results may be read a second time.
    end_batch(work, "batch 3", "expired", "abcx")
    assert rounds_before(work, "batch 3") == {"a": 2, "b": 1}


def test_a_batch_that_was_not_taken_answered_nothing(work: duckdb.DuckDBPyConnection) -> None:
    add_batch(work, made(1), "abc")
    end_batch(work, "batch 1", "refused", reason="HTTP 400: no", all_others=NOT_COUNTED)
    (refused,) = read_batches(work)
    assert (refused.n_answered, refused.reason, refused.state) == (0, "HTTP 400: no", "refused")
    assert refused.lacking == made(1).lacking
    add_batch(work, made(2), "abc")
    assert rounds_before(work, "batch 2") == {}


def test_a_database_of_before_there_were_batches_has_none() -> None:
    with duckdb.connect() as connection:
        for migration in MIGRATIONS[:5]:
            connection.execute(migration.sql)
        assert read_batches(connection) == []
        assert batches_under_way(connection) == []
        assert requests_under_way(connection) == set()
