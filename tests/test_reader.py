"""Requests read the newest published state, and keep the one that they began with."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from scopenote.flows.dashboard.reader import Reader
from scopenote.store.database import open_work, publish
from scopenote.store.errors import NewerDatabase, StoreError
from scopenote.store.facts import set_meta
from scopenote.store.inbox import Vote, write_to_inbox

from .dashboards import make_run
from .made_up_run import RES


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def change(run: Path, name: str) -> None:
    """Another state, published."""
    with open_work(run) as work:
        work.execute("UPDATE labels SET text = $1 WHERE feature = 1", [name])
        set_meta(work, "revision", name)
        publish(work, run)


def text(connection: duckdb.DuckDBPyConnection) -> str:
    query = "SELECT text FROM current_features WHERE sae_id = $1 AND feature = 1"
    return str(connection.execute(query, [RES]).fetchall()[0][0])


def test_who_began_before_a_publication_goes_on_with_what_was_there(run: Path) -> None:
    change(run, "first")
    reader = Reader(run)
    with reader.connection() as early:
        assert text(early) == "first"
        change(run, "second")
        with reader.connection() as late:
            assert (text(early), text(late)) == ("first", "second")
        assert text(early) == "first"
    reader.close()


def test_the_database_is_opened_once_for_all_until_it_changes(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scopenote.flows.dashboard import reader as module

    opened = []
    original = module.open_store
    monkeypatch.setattr(module, "open_store", lambda path: opened.append(path) or original(path))
    reader = Reader(run)
    for _ in range(3):
        with reader.connection() as one, reader.connection() as other:
            assert text(one) == text(other)
    assert len(opened) == 1
    change(run, "other")
    with reader.connection():
        assert len(opened) == 2
    write_to_inbox(run / "inbox", votes=[Vote(f"{RES}:1", "ada", 1, datetime.now(UTC))])
    with reader.connection() as connection:
        assert len(opened) == 3
        assert connection.execute("SELECT count(*) FROM votes").fetchall() == [(1,)]
    reader.close()


def test_what_is_remembered_is_of_its_state(run: Path) -> None:
    change(run, "first")
    reader = Reader(run)
    for name in ("first", "second"):
        change(run, name)
        for _ in range(2):
            with reader.connection() as connection:
                assert reader.remember("text", connection, text) == name
    reader.close()


def test_many_threads_read_while_it_is_published_again_and_again(run: Path) -> None:
    reader, stop = Reader(run), threading.Event()

    def read(_: int) -> int:
        n = 0
        while not stop.is_set():
            with reader.connection() as connection:
                one = text(connection)
                assert text(connection) == one
            n += 1
        return n

    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(read, n) for n in range(4)]
        for n in range(8):
            change(run, f"state {n}")
        stop.set()
        assert all(each.result() > 0 for each in reads)
    reader.close()


def test_a_database_that_is_gone_newer_or_older_is_refused_clearly(run: Path) -> None:
    file = run / "scopenote.duckdb"
    with duckdb.connect(str(file)) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    with pytest.raises(NewerDatabase, match="newer version"), Reader(run).connection():
        pass
    with duckdb.connect(str(file)) as connection:
        connection.execute("UPDATE meta SET value = '3' WHERE key = 'schema_version'")
    with pytest.raises(StoreError, match="older version"), Reader(run).connection():
        pass
    file.unlink()
    with pytest.raises(StoreError, match="no Scopenote database"), Reader(run).connection():
        pass
