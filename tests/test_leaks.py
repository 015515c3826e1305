"""Text of one split in another is noticed before anything is scored."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest
from scopenote.store.errors import StoreError
from scopenote.store.leaks import require_no_leak
from scopenote.store.schema import MIGRATIONS

from .asking_runs import command, rows


@pytest.fixture
def connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for migration in MIGRATIONS:
        connection.execute(migration.sql)
    return connection


def window(
    connection: duckdb.DuckDBPyConnection, window_id: int, split: str, text: int, document: str
) -> None:
    connection.execute(
        "INSERT INTO windows BY NAME SELECT $1 AS window_id, $2 AS split, $3 AS token_hash, "
        "$4 AS doc_id, [$3] AS token_ids",
        [window_id, split, text, document],
    )


def test_text_may_be_there_twice_in_one_split(connection: duckdb.DuckDBPyConnection) -> None:
    require_no_leak(connection)
    for number, (split, text, document) in enumerate(
        [("explain", 1, "a"), ("explain", 1, "b"), ("select", 2, "c"), ("score", 3, "d")]
    ):
        window(connection, number, split, text, document)
    require_no_leak(connection)


@pytest.mark.parametrize(
    ("first", "second"), [("explain", "select"), ("explain", "score"), ("select", "score")]
)
@pytest.mark.parametrize(("text", "document"), [(1, "b"), (2, "a")])
def test_text_or_a_document_in_two_splits_is_a_leak(
    connection: duckdb.DuckDBPyConnection, first: str, second: str, text: int, document: str
) -> None:
    window(connection, 7, second, text, document)
    window(connection, 8, first, 1, "a")
    with pytest.raises(StoreError) as raised:
        require_no_leak(connection)
    assert f"1 windows of `{second}` whose text or document is also in `{first}`" in str(
        raised.value.found
    )
    assert "window_id 7" in str(raised.value.found)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_an_explain_window_planted_among_the_score_windows_fails_the_run(
    collected: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(collected, run)
    assert command("explain", run).returncode == 0
    with duckdb.connect(str(run / "work.duckdb")) as work:
        work.execute(
            """
            WITH shown AS (
                SELECT token_hash, token_ids FROM windows WHERE window_id = (
                    SELECT min(window_id) FROM label_contexts
                )
            )
            UPDATE windows SET token_hash = shown.token_hash, token_ids = shown.token_ids
            FROM shown WHERE window_id = (
                SELECT min(window_id) FROM windows WHERE split = 'score' AND is_background
            )
            """
        )
    failed = command("score", run)
    assert failed.returncode == 1, failed.stderr
    assert "is also text that they may come from" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert rows(run, "SELECT count(*) FROM scores") == [(0,)]
