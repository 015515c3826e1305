"""Journals: what is written is read back, whatever stopped the writer."""

from __future__ import annotations

import errno
import io
import os
import random
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.store.errors import StoreError
from scopenote.store.journal import Journal, list_journals
from scopenote.store.journal_lines import call_line, read_line, split_request
from scopenote.store.journalled_calls import JournalledCalls, JournalReading
from scopenote.store.records import Call

from .made_up_calls import make_call, make_failure


def read_bytes(content: bytes) -> tuple[list[Call], int]:
    reading = JournalReading(io.BytesIO(content))
    return [placed.call for placed in reading.calls()], reading.n_dropped


def read_folder(folder: Path) -> tuple[list[Call], int]:
    read = [read_bytes(path.read_bytes()) for path in list_journals(folder)]
    return [call for calls, _ in read for call in calls], sum(dropped for _, dropped in read)


def write(folder: Path, calls: list[Call]) -> Path:
    with Journal(folder) as journal:
        for call in calls:
            journal.append(call)
    return list_journals(folder)[-1]


# --- what is written --------------------------------------------------------------------------


def test_calls_come_back_as_they_were_written(tmp_path: Path) -> None:
    calls = [
        make_call(0),
        make_call(1, usd=None, reply={"text": "", "logprobs": [None, [1e-300, 5]]}, error="empty"),
        make_failure(2),
        make_call(3, n_static=0),
        make_call(4, request={"input": "no messages"}, n_static=0),
        make_call(5, cached_tokens=None),
    ]
    write(tmp_path, calls)
    assert read_folder(tmp_path) == (calls, 0)


def test_shared_messages_are_written_once_a_file(tmp_path: Path) -> None:
    content = write(tmp_path, [make_call(number) for number in range(5)]).read_text()
    assert content.count("Say in a few words what these contexts share. " * 20) == 1


def test_nothing_is_made_before_the_first_call_and_a_call_after_closing_begins_a_file(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path)
    journal.close()
    assert not list_journals(tmp_path)
    for number in range(3):
        journal.append(make_call(number))
        journal.append(make_call(number + 10))
        journal.close()
    assert len(list_journals(tmp_path)) == 3
    order = [number + more for number in range(3) for more in (0, 10)]
    assert read_folder(tmp_path) == ([make_call(number) for number in order], 0)


text = st.text(st.sampled_from('a"\\\n\0\x1b\u2028é日😀\ud800\udc00'), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60)
@given(reply=JSON, error=text)
def test_whatever_an_endpoint_answers_can_be_written_and_read_back(reply: Any, error: str) -> None:
    call = make_call(0, reply=reply, error=error, n_static=0)
    assert read_line(call_line(call, split_request(call)), {}) == call


def test_what_cannot_be_stored_is_replaced_in_the_call_itself() -> None:
    call = make_call(0, reply=["a\ud800b", "\udc00", "\ud83d\ude00", float("-inf"), (1, "x")])
    assert call.reply == ["a�b", "�", "😀", "-inf", [1, "x"]]
    assert float(call.reply[3]) == float("-inf")


@pytest.mark.parametrize(
    "wrong",
    [
        {"reply": None},
        {"prompt_tokens": -1},
        {"completion_tokens": 10**12},
        {"usd": Decimal("1e13")},
        {"usd": Decimal("NaN")},
        {"usd": Decimal("-0.1")},
        {"usd": Decimal("1e-19")},
        {"created_at": datetime(2026, 11, 21)},
    ],
)
def test_a_call_that_the_ledger_cannot_hold_is_refused_when_it_is_made(wrong: dict) -> None:
    with pytest.raises(ValueError, match=make_call(0).request_hash):
        make_call(0, **wrong)


def test_writing_many_calls_takes_no_memory(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(make_call(0))
        tracemalloc.start()
        try:
            peaks = []
            for _ in range(2):
                tracemalloc.reset_peak()
                for number in range(150):
                    journal.append(make_call(number))
                peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 10_000  # the calls alone are 300,000 bytes


# --- what a kill leaves -----------------------------------------------------------------------


def test_wherever_a_journal_is_cut_all_whole_calls_are_read(tmp_path: Path) -> None:
    calls = [make_call(0), make_failure(1), make_call(2)]
    content = write(tmp_path, calls).read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == 4  # the shared messages come first
    for cut in range(len(content) + 1):
        whole = [call for call, end in zip(calls, ends[1:], strict=True) if end <= cut]
        torn = 0 if cut in (0, *ends) else 1
        assert read_bytes(content[:cut]) == (whole, torn)


@pytest.mark.parametrize(
    "damage", [b"\x00" * 40, b"{", b"\xff", b"12", b'"x"', b"null", b"[]", b'{"request_hash": "a"}']
)
def test_a_damaged_line_costs_that_call_and_no_other(tmp_path: Path, damage: bytes) -> None:
    lines = write(tmp_path, [make_call(0), make_call(1)]).read_bytes().splitlines(keepends=True)
    lines[1] = damage + b"\n"
    assert read_bytes(b"".join(lines)) == ([make_call(1)], 1)


def test_without_their_shared_messages_calls_count_as_damaged(tmp_path: Path) -> None:
    calls = [make_call(0), make_call(1, n_static=0)]
    lines = write(tmp_path, calls).read_bytes().splitlines(keepends=True)
    assert read_bytes(b"\n".join([b"{}", *lines[1:]])) == (calls[1:], 2)


WRITE_FOR_EVER = """
import itertools, sys
from datetime import UTC, datetime
from pathlib import Path
from scopenote.store.journal import Journal
from scopenote.store.records import Call
journal = Journal(Path(sys.argv[1]))
for number in itertools.count():
    request = {"messages": ["static", number]}
    reply, at = str(number) * 3000, datetime.now(UTC)
    journal.append(Call(str(number), "p", "m", request, 1, reply, 1, 0, 1, None, 0.1, 1, None, at))
    print(number, flush=True)
"""


def test_kill_9_loses_no_reply_that_was_journalled(tmp_path: Path) -> None:
    draw = random.Random()
    folders = [tmp_path / str(number) for number in range(3)]
    writers: list[subprocess.Popen[str]] = []
    try:
        for folder in folders:
            folder.mkdir()
            command = [sys.executable, "-c", WRITE_FOR_EVER, str(folder)]
            writers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for folder, writer in zip(folders, writers, strict=True):
            assert writer.stdout is not None
            assert writer.stdout.readline() == "0\n"
            time.sleep(draw.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
            used = [0, *map(int, writer.communicate()[0].split())]
            with JournalledCalls(folder) as calls:
                assert calls.n_dropped <= 1
                # What was journalled and not yet used when the end came may be there too.
                assert len(used) <= len(calls) <= len(used) + 1
                for number in used:
                    call = calls.find(str(number))
                    assert call is not None
                    assert call.reply == str(number) * 3000
                    assert call.request == {"messages": ["static", number]}
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


# --- what a disk does -------------------------------------------------------------------------


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How large the file was each time it was flushed to disk."""
    sizes: list[int] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    yield sizes


def test_calls_are_flushed_to_disk_in_groups_without_being_asked(
    tmp_path: Path, flushes: list[int]
) -> None:
    began = time.monotonic()
    journal = Journal(tmp_path)
    for number in range(60):
        journal.append(make_call(number))
        time.sleep(0.004)
    size = list_journals(tmp_path)[0].stat().st_size
    while size not in flushes and time.monotonic() < began + 5:
        time.sleep(0.005)
    assert size in flushes
    # The folder once, and the file every 50 milliseconds at most.
    assert len(flushes) <= 2 + (time.monotonic() - began) / 0.05
    journal.close()


def test_a_refused_flush_is_told_to_the_next_who_writes_and_on_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.append(make_call(0))

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    deadline = time.monotonic() + 5
    with pytest.raises(StoreError, match="disk is full"):
        while time.monotonic() < deadline:
            journal.append(make_call(1))
    with pytest.raises(StoreError, match="disk is full"):
        journal.close()
    monkeypatch.undo()
    with journal:
        journal.append(make_call(2))
    assert read_folder(tmp_path)[0][-1] == make_call(2)


def test_a_call_that_a_full_disk_left_half_written_does_not_take_the_next_with_it(
    tmp_path: Path,
) -> None:
    large = make_call(1, reply="x" * 300_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path) as journal:
        journal.append(make_call(0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            with pytest.raises(StoreError, match="disk is full"):
                journal.append(large)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list_journals(tmp_path)[0].stat().st_size == 200_000
        journal.append(make_call(2))
        journal.append(large)
    assert read_folder(tmp_path) == ([make_call(0), make_call(2), large], 1)


# --- calls by request -------------------------------------------------------------------------


def test_a_request_is_found_in_whichever_journal_it_stands(tmp_path: Path) -> None:
    for first in (0, 10, 20):
        write(tmp_path, [make_call(first + number) for number in range(4)])
    with JournalledCalls(tmp_path) as calls:
        assert len(calls) == 12
        for number in (13, 0, 22, 3):
            assert calls.find(make_call(number).request_hash) == make_call(number)
        assert calls.find("never sent") is None


def test_the_first_reply_stays_and_a_failure_gives_way_to_what_follows(tmp_path: Path) -> None:
    write(tmp_path, [make_failure(0), make_call(1), make_failure(2)])
    write(tmp_path, [make_call(0), make_call(1, reply="another"), make_failure(2, error="later")])
    write(tmp_path, [make_call(0, reply="another"), make_failure(1)])
    expected = [make_call(0), make_call(1), make_failure(2, error="later")]
    with JournalledCalls(tmp_path) as calls:
        assert [calls.find(call.request_hash) for call in expected] == expected


def test_calls_are_found_after_their_journal_was_removed(tmp_path: Path) -> None:
    path = write(tmp_path, [make_call(0)])
    with JournalledCalls(tmp_path) as calls:
        path.unlink()
        assert calls.find(make_call(0).request_hash) == make_call(0)


def test_the_last_line_of_a_journal_in_use_is_no_error(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(make_call(0))
        with list_journals(tmp_path)[0].open("ab") as file:
            file.write(b'{"request_hash": "on its w')
        with JournalledCalls(tmp_path) as calls:
            assert (len(calls), calls.n_dropped) == (1, 1)
