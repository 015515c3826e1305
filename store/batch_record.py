"""Batches at a provider: what was prepared, submitted and brought in, and which requests are in it.

A batch is in the database before anything is sent, and marked as ended in the transaction after
which nothing of it is looked at again: whoever dies in between finds it under way. Left out: what
is sent and what comes back; that is in files (`request_files.py`) and among the calls.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import pyarrow as pa

from .database import now
from .facts import REVISION, set_meta, transaction

if TYPE_CHECKING:
    import duckdb

ANSWERED = "answered"
UNANSWERED = "unanswered"
NOT_COUNTED = "not counted"


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch.

    Attributes:
        batch_id: ours, which the batch carries at the provider.
        provider_id: the provider's; None until it is known to have it.
        state: `prepared`, then the provider's word for it; `refused` where the provider did not
            take it, `given up` where its file is gone.
        endpoint: the address that it is submitted to.
        model: the requests'.
        n_requests: how many there are in it.
        n_tokens: about as many as the provider counts as enqueued.
        most_usd: what it costs at most; None where no price is known.
        lacking: what its requests go without, as the endpoint has none, and what that said; once
            it has ended also what it showed to be lacking.
        prepared_at, submitted_at: when that was.
        ended_at: when all that came of it was in the record; None: it is under way.
        n_answered: requests that need not be asked again.
        reason: why it failed as a whole, where it did.
        all_others: what became of all other requests.
    """

    batch_id: str
    endpoint: str
    model: str
    n_requests: int
    n_tokens: int
    most_usd: Decimal | None
    lacking: Mapping[str, str]
    prepared_at: datetime
    state: str = "prepared"
    provider_id: str | None = None
    submitted_at: datetime | None = None
    ended_at: datetime | None = None
    n_answered: int | None = None
    reason: str | None = None


_NAMES = tuple(field.name for field in fields(Batch))


def add_batch(
    connection: duckdb.DuckDBPyConnection, batch: Batch, request_hashes: Iterable[str]
) -> None:
    """Records a batch that is prepared, and its requests, before it is submitted."""
    hashes = pa.table({"request_hash": pa.array(request_hashes, pa.string())})
    with transaction(connection):
        values = {name: getattr(batch, name) for name in _NAMES}
        values["lacking"] = _to_json(batch.lacking)
        connection.execute(
            f"INSERT INTO batches ({', '.join(_NAMES)}) "
            f"VALUES ({', '.join(f'${name}' for name in _NAMES)})",
            values,
        )
        connection.register("hashes", hashes)
        connection.execute(
            "INSERT INTO batch_requests SELECT ?, request_hash, NULL FROM hashes", [batch.batch_id]
        )
        connection.unregister("hashes")
        set_meta(connection, REVISION, f"{batch.batch_id} prepared")


def note_state(
    connection: duckdb.DuckDBPyConnection, batch_id: str, provider_id: str, state: str
) -> None:
    """Records that the provider has a batch, and its word for how that stands."""
    with transaction(connection):
        connection.execute(
            """
            UPDATE batches
            SET provider_id = $provider, state = $state, submitted_at = coalesce(submitted_at, $now)
            WHERE batch_id = $batch
            """,
            {"provider": provider_id, "state": state, "now": now(), "batch": batch_id},
        )
        set_meta(connection, REVISION, f"{batch_id} {state}")


def end_batch(
    connection: duckdb.DuckDBPyConnection,
    batch_id: str,
    state: str,
    unanswered: Collection[str] = (),
    not_counted: Collection[str] = (),
    lacking: Mapping[str, str] | None = None,
    reason: str | None = None,
    all_others: str = ANSWERED,
) -> None:
    """Records that all that came of a batch is in the journal, and that nothing more will.

    Args:
        connection: the working copy.
        batch_id: which.
        state: the last one.
        unanswered: hashes of its requests that were tried in vain.
        not_counted: those that were not even tried.
        lacking: what is known by now to be lacking, with what the endpoint said; None: no more.
        reason: why it failed as a whole, where it did.
        all_others: what became of all other requests.
    """
    with transaction(connection):
        _set_outcomes(connection, batch_id, all_others, None)
        _set_outcomes(connection, batch_id, UNANSWERED, unanswered)
        _set_outcomes(connection, batch_id, NOT_COUNTED, not_counted)
        connection.execute(
            """
            UPDATE batches SET state = $state, ended_at = $now, reason = $reason,
                lacking = coalesce($lacking, lacking),
                n_answered = (
                    SELECT count(*) FROM batch_requests
                    WHERE batch_id = $batch AND outcome = $answered
                )
            WHERE batch_id = $batch
            """,
            {
                "state": state,
                "now": now(),
                "reason": reason,
                "lacking": None if lacking is None else _to_json(lacking),
                "answered": ANSWERED,
                "batch": batch_id,
            },
        )
        set_meta(connection, REVISION, f"{batch_id} ended")


def _set_outcomes(
    connection: duckdb.DuckDBPyConnection,
    batch_id: str,
    outcome: str,
    hashes: Collection[str] | None,
) -> None:
    """Of these requests of a batch; None: of all."""
    if hashes is not None and not hashes:
        return
    which = "" if hashes is None else "AND request_hash IN (SELECT unnest($hashes))"
    parameters = {} if hashes is None else {"hashes": list(hashes)}
    connection.execute(
        f"UPDATE batch_requests SET outcome = $outcome WHERE batch_id = $batch {which}",
        {"outcome": outcome, "batch": batch_id, **parameters},
    )


def read_batches(connection: duckdb.DuckDBPyConnection) -> list[Batch]:
    """All batches, the oldest first; none in a run made before there were any."""
    if not _has_batches(connection):
        return []
    rows = connection.execute(
        f"SELECT {', '.join(_NAMES)} FROM batches ORDER BY prepared_at, batch_id"
    ).fetchall()
    batches = (dict(zip(_NAMES, row, strict=True)) for row in rows)
    return [Batch(**{**batch, "lacking": json.loads(batch["lacking"])}) for batch in batches]


def batches_under_way(connection: duckdb.DuckDBPyConnection) -> list[Batch]:
    """Those of which something may still come, the oldest first."""
    return [batch for batch in read_batches(connection) if batch.ended_at is None]


def requests_under_way(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """The hashes of the requests in batches under way."""
    if not _has_batches(connection):
        return set()
    rows = connection.execute("SELECT request_hash FROM batch_requests WHERE outcome IS NULL")
    return {request_hash for (request_hash,) in rows.fetchall()}


def rounds_before(connection: duckdb.DuckDBPyConnection, batch_id: str) -> dict[str, int]:
    """How many other batches each request of this one was in without an answer; 0 left out."""
    rows = connection.execute(
        """
        SELECT request_hash, count(*) FROM batch_requests
        WHERE outcome = $unanswered AND batch_id != $batch AND request_hash IN (
            SELECT request_hash FROM batch_requests WHERE batch_id = $batch
        )
        GROUP BY request_hash
        """,
        {"unanswered": UNANSWERED, "batch": batch_id},
    )
    return dict(rows.fetchall())


def _has_batches(connection: duckdb.DuckDBPyConnection) -> bool:
    tables = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    return ("batch_requests",) in tables


def _to_json(value: Mapping[str, str]) -> str:
    return json.dumps(dict(value))
