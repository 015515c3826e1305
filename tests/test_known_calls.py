"""Calls that other processes have journalled: known once these have ended, found where they are."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

from scopenote.store.database import open_store, open_work, publish
from scopenote.store.journal import Journal, list_journals
from scopenote.store.known_calls import KnownCalls

from .made_up_calls import make_call

# A process that journals calls and lives on, or not.
WRITES = """
import sys
from pathlib import Path
from scopenote.store.journal import Journal
from tests.made_up_calls import make_call
journal = Journal(Path(sys.argv[1]), sys.argv[2])
for number in range(int(sys.argv[3])):
    journal.append(make_call(number))
print("written", flush=True)
sys.stdin.read()
"""


@contextmanager
def known_in(folder: Path) -> Iterator[KnownCalls]:
    (folder / "journal").mkdir(exist_ok=True)
    with open_work(folder) as work:
        publish(work, folder)
    with open_store(folder) as store:
        known = KnownCalls(store, folder / "journal")
        try:
            yield known
        finally:
            known.close()


def writer(folder: Path, share: str, n_calls: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(folder / "journal"), share, str(n_calls)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def test_what_another_process_is_writing_is_not_known_and_after_its_death_it_is(
    tmp_path: Path,
) -> None:
    with known_in(tmp_path) as known:
        process = writer(tmp_path, "share", 3)
        known.learn()
        assert make_call(0).request_hash not in known
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        known.learn()
        assert [known.find(make_call(n).request_hash) for n in range(3)] == [
            make_call(n) for n in range(3)
        ]
        assert make_call(3).request_hash not in known


def test_what_was_made_on_a_share_is_known_to_whoever_goes_on_with_it(tmp_path: Path) -> None:
    with known_in(tmp_path) as known:
        with Journal(tmp_path / "journal", "mine") as journal:
            for number in range(4):
                journal.append(make_call(number))
        with Journal(tmp_path / "journal", "another") as journal:
            journal.append(make_call(9))
        assert len(list_journals(tmp_path / "journal")) == 2
        found = known.learn_of("mine")
        assert found == [make_call(number) for number in range(4)]
        assert sum((call.usd or Decimal(0) for call in found), Decimal(0)) > 0
        assert make_call(3).request_hash in known
        assert make_call(9).request_hash not in known
        assert known.learn_of("nobody's") == []


def test_calls_of_many_journals_are_found_with_few_files_open(tmp_path: Path) -> None:
    with known_in(tmp_path) as known:
        for number in range(40):
            with Journal(tmp_path / "journal", f"share{number}") as journal:
                journal.append(make_call(number))
        known.learn()
        found = [known.find(make_call(n).request_hash) for n in [*range(40), *range(40)]]
        assert found == [make_call(n) for n in [*range(40), *range(40)]]
        assert len(known._open) <= 8


def test_a_call_made_here_is_found_in_the_journal_that_is_still_written(tmp_path: Path) -> None:
    with known_in(tmp_path) as known, Journal(tmp_path / "journal") as journal:
        for number in range(3):
            known.add(make_call(number), journal.append(make_call(number)))
            assert known.find(make_call(number).request_hash) == make_call(number)
        known.learn()
        assert known.find(make_call(0).request_hash) == make_call(0)
