from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import scopenote
from scopenote.store.database import (
    PUBLISHED,
    WORK,
    open_store,
    open_work,
    publish,
    publish_if_behind,
)
from scopenote.store.errors import NewerDatabase, StoreError
from scopenote.store.facts import REVISION, get_meta, set_meta, transaction
from scopenote.store.schema import SCHEMA_VERSION


def test_a_reader_keeps_the_copy_it_opened_and_the_next_one_sees_the_newer(tmp_path: Path) -> None:
    with open_work(tmp_path) as work:
        set_meta(work, "fact", "old")
        publish(work, tmp_path)
        with scopenote.open(tmp_path) as reader:
            set_meta(work, "fact", "new")
            publish(work, tmp_path)
            with reader.cursor() as cursor:
                assert get_meta(cursor, "fact") == get_meta(reader.connection, "fact") == "old"
            with scopenote.open(tmp_path) as beside:
                assert get_meta(beside.connection, "fact") == "new"


def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "mine"; 50% é'
    folder.mkdir()
    with open_work(folder) as work:
        publish(work, folder)
    with scopenote.open(folder) as reader:
        assert get_meta(reader.connection, "schema_version") == str(SCHEMA_VERSION)


def test_the_published_copy_is_opened_read_only(tmp_path: Path) -> None:
    with open_work(tmp_path) as work:
        publish(work, tmp_path)
    with scopenote.open(tmp_path) as reader, pytest.raises(duckdb.Error, match="read-only"):
        reader.connection.execute("DELETE FROM meta")


def test_what_a_dead_run_committed_but_did_not_publish_is_published_later(tmp_path: Path) -> None:
    with open_work(tmp_path) as work:
        publish(work, tmp_path)
        set_meta(work, REVISION, "a part")
        publish_if_behind(work, tmp_path)
        with open_store(tmp_path) as reader:
            assert get_meta(reader.connection, REVISION) == "a part"
        before = (tmp_path / PUBLISHED).stat().st_ino
        publish_if_behind(work, tmp_path)
        assert (tmp_path / PUBLISHED).stat().st_ino == before


def test_a_database_of_a_newer_version_is_refused_for_reading_and_for_writing(
    tmp_path: Path,
) -> None:
    with open_work(tmp_path) as work:
        set_meta(work, "schema_version", str(SCHEMA_VERSION + 1))
        publish(work, tmp_path)
    with pytest.raises(NewerDatabase, match=f"schema version {SCHEMA_VERSION + 1}"):
        scopenote.open(tmp_path)
    with pytest.raises(NewerDatabase, match="upgrade Scopenote"), open_work(tmp_path):
        pass


def test_a_folder_without_a_database_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="scopenote demo"):
        scopenote.open(tmp_path)


def test_a_duckdb_file_of_someone_else_is_refused(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / PUBLISHED)) as other:
        other.execute("CREATE TABLE t (x INTEGER)")
    with pytest.raises(StoreError, match="not a Scopenote database"):
        scopenote.open(tmp_path)


def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / PUBLISHED).write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError, match=PUBLISHED):
        scopenote.open(tmp_path)


def test_a_working_copy_held_by_another_program_is_named_with_its_process(tmp_path: Path) -> None:
    with open_work(tmp_path):
        pass
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / WORK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(StoreError, match=str(other.pid)), open_work(tmp_path):
            pass
        other.communicate(b"\n")


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with open_work(tmp_path) as work:
        with pytest.raises(ZeroDivisionError), transaction(work):
            set_meta(work, "fact", "half")
            raise ZeroDivisionError
        assert get_meta(work, "fact") is None


def test_opening_the_working_copy_twice_migrates_once(tmp_path: Path) -> None:
    for _ in range(2):
        with open_work(tmp_path) as work:
            assert get_meta(work, "schema_version") == str(SCHEMA_VERSION)
