"""Calls in the database: every one of them, once, and what they came to."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import duckdb
import pytest
from scopenote.store.calls import AbsorbedCalls, absorb_journals, find_calls, spent
from scopenote.store.database import migrate, open_work, publish
from scopenote.store.facts import REVISION, get_meta
from scopenote.store.journal import Journal, list_journals
from scopenote.store.journalled_calls import JournalledCalls
from scopenote.store.records import Call
from scopenote.store.run_folder import RunFolder
from scopenote.store.schema import MIGRATIONS

from .made_up_calls import STATIC, make_call, make_failure


@pytest.fixture
def work() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        migrate(connection, Path("in memory"))
        yield connection


def write(folder: Path, calls: list[Call]) -> None:
    with Journal(folder) as journal:
        for call in calls:
            journal.append(call)


def rows(work: duckdb.DuckDBPyConnection, table: str) -> list[tuple]:
    return work.execute(f"SELECT * FROM {table} ORDER BY ALL").fetchall()


def hashes(calls: list[Call]) -> list[str]:
    return [call.request_hash for call in calls]


# --- absorbing --------------------------------------------------------------------------------


def test_absorbed_calls_are_found_as_they_were_journalled(
    work: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    calls = [
        make_call(0),
        make_call(1, reply={"text": "\ud800 \x00 \x1b[31m", "logprobs": [float("-inf"), 0.1]}),
        make_call(2, error="neither\x00 nor \udfff", usd=None, cached_tokens=None),
        make_failure(3),
        make_call(4, n_static=0, model="model-\ud800"),
        make_call(5, request={"prompt": ["without", "messages"]}, n_static=0),
        make_call(6, reply="<html>", prompt_tokens=10**12 - 1, usd=Decimal("9999999999999.1")),
        make_call(7, usd=Decimal("1e-18")),
    ]
    write(tmp_path, calls)
    assert absorb_journals(work, tmp_path) == AbsorbedCalls(1, len(calls))
    found = find_calls(work, [*hashes(calls), "never sent"])
    assert [found.get(call.request_hash) for call in calls] == calls
    assert len(found) == len(calls)


def test_a_journal_larger_than_a_batch_is_absorbed_whole(
    work: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    calls = [make_call(number % 1010) for number in range(1030)]
    write(tmp_path, calls)
    absorb_journals(work, tmp_path)
    assert len(rows(work, "calls")) == 1010
    assert len(rows(work, "repeated_calls")) == 20


def test_the_static_part_of_requests_is_stored_once(
    work: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    for first in (0, 5):
        write(tmp_path, [make_call(first + number) for number in range(5)])
    absorb_journals(work, tmp_path)
    assert len(rows(work, "prompt_parts")) == 1
    holding = "SELECT count(*) FROM calls WHERE contains(request, $text)"
    assert work.execute(holding, {"text": STATIC["content"][:40]}).fetchall() == [(0,)]


def test_absorbing_the_same_journal_twice_changes_nothing(
    work: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    """As after a death between the commit and the removal."""
    write(tmp_path, [make_call(0), make_failure(1), make_call(0)])
    (journal,) = list_journals(tmp_path)
    shutil.copy(journal, tmp_path / "kept")
    tables = ("calls", "repeated_calls", "prompt_parts", "journals", "meta")
    assert absorb_journals(work, tmp_path) == AbsorbedCalls(1, 3)
    assert not journal.exists()
    before = [rows(work, table) for table in tables]
    shutil.copy(tmp_path / "kept", journal)
    assert absorb_journals(work, tmp_path) == AbsorbedCalls()
    assert not journal.exists()
    assert [rows(work, table) for table in tables] == before


def test_an_absorption_that_fails_leaves_the_journal_and_no_rows(
    work: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    write(tmp_path, [make_call(number) for number in range(3)])
    work.execute("ALTER TABLE repeated_calls RENAME TO away")
    with pytest.raises(duckdb.CatalogException):
        absorb_journals(work, tmp_path)
    assert not rows(work, "calls") + rows(work, "prompt_parts") + rows(work, "journals")
    work.execute("ALTER TABLE away RENAME TO repeated_calls")
    assert absorb_journals(work, tmp_path) == AbsorbedCalls(1, 3)
    assert len(rows(work, "calls")) == 3


def test_a_journal_in_use_is_left_to_its_writer(
    work: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    with Journal(tmp_path) as journal:
        journal.append(make_call(0))
        assert absorb_journals(work, tmp_path) == AbsorbedCalls(n_in_use=1)
        journal.append(make_call(1))
    assert absorb_journals(work, tmp_path) == AbsorbedCalls(1, 2)
    assert not list_journals(tmp_path)


def test_a_journal_that_is_absorbed_before_its_writer_could_lock_it_is_begun_again(
    work: duckdb.DuckDBPyConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, absorbed = fcntl.flock, []

    def absorbed_first(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and len(absorbed) < 2:
            absorbed.append(absorb_journals(work, tmp_path))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", absorbed_first)
    write(tmp_path, [make_call(0)])
    assert absorbed == [AbsorbedCalls(1, 0), AbsorbedCalls(1, 0)]
    assert absorb_journals(work, tmp_path) == AbsorbedCalls(1, 1)


def test_a_torn_line_is_counted_and_the_count_kept(
    work: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    write(tmp_path, [make_call(0), make_call(1)])
    (journal,) = list_journals(tmp_path)
    os.truncate(journal, journal.stat().st_size - 5)
    assert absorb_journals(work, tmp_path) == AbsorbedCalls(1, 1, n_dropped=1)
    counted = work.execute("SELECT journal, n_calls, n_dropped FROM journals").fetchall()
    assert counted == [(journal.name, 1, 1)]
    assert not list_journals(tmp_path)


def test_absorbing_marks_the_database_as_changed(
    work: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    absorb_journals(work, tmp_path)
    assert get_meta(work, REVISION) is None
    write(tmp_path, [make_call(0)])
    absorb_journals(work, tmp_path)
    assert get_meta(work, REVISION) is not None


# --- one row a request ------------------------------------------------------------------------


def some_calls(seed: int) -> list[list[Call]]:
    """Journals in which requests fail, are answered, and are answered again, in any order."""
    draw = random.Random(seed)
    unlike = itertools.count()
    journals = []
    for _ in range(4):
        calls = []
        for _ in range(draw.randrange(1, 30)):
            make = draw.choice([make_call, make_failure])
            usd = draw.choice([None, Decimal(draw.randrange(10**12)).scaleb(-draw.randrange(18))])
            model, purpose = draw.choice(["m", "n"]), draw.choice(["explain", "repair"])
            number, attempts = draw.randrange(12), next(unlike)
            calls.append(make(number, usd=usd, model=model, purpose=purpose, attempts=attempts))
        journals.append(calls)
    return journals


@pytest.mark.parametrize("seed", range(2))
def test_a_request_keeps_its_first_reply_or_last_failure_and_all_else_is_kept_beside(
    work: duckdb.DuckDBPyConnection, tmp_path: Path, seed: int
) -> None:
    in_force: dict[str, Call] = {}
    journals = some_calls(seed)
    for calls in journals:
        write(tmp_path, calls)
        for call in calls:
            if call.request_hash not in in_force or in_force[call.request_hash].reply is None:
                in_force[call.request_hash] = call
        with JournalledCalls(tmp_path) as journalled:
            seen = find_calls(work, list(in_force))
            for request, call in in_force.items():
                # What a resumed run sees: the journals, or the database, whichever has a reply.
                found = [c for c in (seen.get(request), journalled.find(request)) if c]
                assert call in found
        if len(list_journals(tmp_path)) == 2:
            absorb_journals(work, tmp_path)
    absorb_journals(work, tmp_path)
    assert find_calls(work, list(in_force)) == in_force
    every = Counter(call.attempts for calls in journals for call in calls)
    stored = "SELECT attempts FROM calls UNION ALL SELECT attempts FROM repeated_calls"
    assert Counter(attempts for (attempts,) in work.execute(stored).fetchall()) == every
    kept = work.execute("SELECT attempts FROM calls").fetchall()
    assert {attempts for (attempts,) in kept} == {call.attempts for call in in_force.values()}


# --- what was spent ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_what_was_spent_is_the_exact_sum_of_every_call(
    work: duckdb.DuckDBPyConnection, tmp_path: Path, seed: int
) -> None:
    journals = some_calls(seed)
    for calls in journals:
        write(tmp_path, calls)
    absorb_journals(work, tmp_path)
    every = [call for calls in journals for call in calls]
    lines = spent(work)
    assert [(line.purpose, line.model) for line in lines] == sorted(
        {(call.purpose, call.model) for call in every}
    )
    for line in lines:
        same = [c for c in every if (c.purpose, c.model) == (line.purpose, line.model)]
        assert line.n_calls == len(same)
        assert line.n_failed == sum(call.error is not None for call in same)
        assert line.n_unpriced == sum(call.usd is None for call in same)
        assert Fraction(line.usd) == sum(Fraction(c.usd) for c in same if c.usd is not None)
        assert line.prompt_tokens == sum(call.prompt_tokens or 0 for call in same)
        assert line.cached_tokens == sum(call.cached_tokens or 0 for call in same)
        assert line.completion_tokens == sum(call.completion_tokens or 0 for call in same)


def test_calls_of_unknown_price_cost_none_and_not_nothing(
    work: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    unknown = {"usd": None, "cached_tokens": None}
    calls = [make_call(0, model="local", **unknown), make_call(1, model="local", **unknown)]
    write(tmp_path, [*calls, make_call(2, usd=Decimal(0))])
    absorb_journals(work, tmp_path)
    priced, local = spent(work)
    assert (local.n_calls, local.n_unpriced, local.usd, local.cached_tokens) == (2, 2, None, None)
    assert (priced.n_calls, priced.n_unpriced, priced.usd) == (1, 0, Decimal(0))


def test_nothing_is_spent_before_the_first_call(work: duckdb.DuckDBPyConnection) -> None:
    assert spent(work) == []


# --- the database -----------------------------------------------------------------------------


def test_a_ledger_of_an_older_version_keeps_its_rows(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "work.duckdb")) as older:
        for migration in MIGRATIONS[:4]:
            older.execute(migration.sql)
        older.execute("INSERT INTO meta VALUES ('schema_version', '4')")
        older.execute(
            "INSERT INTO calls (request_hash, purpose, model, request, usd, error) "
            """VALUES ('h', 'explain', 'm', '{"messages": []}', 0.000000075, 'refused')"""
        )
    with open_work(tmp_path) as work:
        assert [(line.n_calls, line.usd) for line in spent(work)] == [(1, Decimal("0.000000075"))]
    with open_work(tmp_path) as work:
        write(tmp_path, [make_call(0)])
        absorb_journals(work, tmp_path)
        assert sum(line.n_calls for line in spent(work)) == 2


def everything_in(folder: RunFolder) -> str:
    """All bytes of a run's files, and all values of its tables, which DuckDB may compress."""
    found = [
        path.read_bytes().decode("latin-1") for path in folder.path.rglob("*") if path.is_file()
    ]
    with duckdb.connect(str(folder.database), read_only=True) as published:
        for (table,) in published.execute("SHOW TABLES").fetchall():
            found += map(str, published.execute(f"FROM {table}").fetchall())
    return "\n".join(found)


def test_the_key_is_nowhere_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-" + "".join(random.Random().choices("abcdefghij0123456789", k=40))
    monkeypatch.setenv("OPENAI_API_KEY", key)
    folder = RunFolder(tmp_path / "run").create()

    def make_run(calls: list[Call]) -> None:
        write(folder.journal, calls)
        with open_work(folder.path) as work:
            absorb_journals(work, folder.journal)
            publish(work, folder.path)
        # And one that is not absorbed yet.
        write(folder.journal, calls)

    make_run([make_call(0), make_failure(1)])
    content = everything_in(folder)
    assert make_call(0).request_hash in content
    assert key not in content
    # The search would find it, were it anywhere.
    make_run([make_failure(2, error=f"the endpoint repeated {key}")])
    assert key in everything_in(folder)
