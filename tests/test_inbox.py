"""What people write: seen by the next reader, merged by the coordinator, never twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import scopenote
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.store.absorb import absorb_inbox, remove_absorbed
from scopenote.store.database import open_published, open_work, publish
from scopenote.store.inbox import Vote, WrittenLabel, inbox_names, read_inbox, write_to_inbox
from scopenote.store.records import FeatureId, Label

from .made_up_run import RES, make_database

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
IN_FORCE = "SELECT feature, text, author FROM current_labels WHERE source = 'human' ORDER BY ALL"
VOTES = "SELECT label_id, author, vote FROM votes ORDER BY ALL"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made-up")
    make_database(folder / "work.duckdb").close()
    with open_work(folder) as work:
        publish(work, folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, made_up: Path) -> Path:
    """A folder with a working and a published copy of the same database."""
    for name in ("work.duckdb", "scopenote.duckdb"):
        shutil.copy(made_up / name, tmp_path / name)
    return tmp_path


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


def a_label(
    text: str,
    second: float = 0,
    feature: int = 3,
    author: str = "ann",
    status: Any = "done",
    explanation: str | None = None,
) -> WrittenLabel:
    label = Label(
        feature_id=FeatureId(RES, feature),
        text=text,
        explanation=explanation,
        explainer="human",
        prompt_version="1",
        window_ids=(),
        source="human",
        author=author,
    )
    return replace(WrittenLabel.of(label, at(second)), status=status)


def a_vote(vote: int, second: float = 0, author: str = "bob") -> Vote:
    return Vote(f"{RES}:3", author, vote, at(second))


def seen(path: Path, query: str = IN_FORCE) -> list[tuple[Any, ...]]:
    with scopenote.open(path) as reader:
        return reader.sql(query).fetchall()


def absorb(run: Path) -> int:
    """As a run does when it ends."""
    with open_work(run) as work:
        n = absorb_inbox(work, run / "inbox")
        publish(work, run)
        remove_absorbed(work, run / "inbox")
    return n


def test_a_label_is_seen_in_the_next_read_before_any_run_has_absorbed_it(run: Path) -> None:
    write_to_inbox(run / "inbox", [a_label("mine")])
    with scopenote.open(run) as reader:
        assert reader.search("mine").fetchall()
        assert ("mine",) in reader.labels().project("text").fetchall()
        assert reader.sql("SELECT count(*) FROM labels").fetchall() == [(79,)]
        with reader.cursor() as cursor:
            assert cursor.execute(IN_FORCE).fetchall() == [(3, "mine", "ann")]
    assert seen(run / "scopenote.duckdb") == [(3, "mine", "ann")]
    with open_published(run / "scopenote.duckdb") as reader:
        assert reader.sql(IN_FORCE).fetchall() == []


def test_a_reader_without_anything_in_the_inbox_reads_the_tables_themselves(run: Path) -> None:
    (run / "inbox").mkdir()
    with scopenote.open(run) as reader:
        path = reader.sql("SELECT current_setting('search_path')").fetchall()
        assert path == [("scopenote.main",)]
        own = "SELECT 1 FROM duckdb_tables() WHERE database_name = 'memory'"
        assert reader.sql(own).fetchall() == []
        with reader.cursor() as cursor:
            assert cursor.execute("SELECT count(*) FROM labels").fetchall() == [(78,)]


def test_the_database_alone_has_no_inbox(run: Path, tmp_path_factory: pytest.TempPathFactory):
    write_to_inbox(run / "inbox", [a_label("mine")])
    sent = tmp_path_factory.mktemp("sent") / "scopenote.duckdb"
    shutil.copy(run / "scopenote.duckdb", sent)
    assert seen(sent) == seen(sent.parent) == []


def test_the_same_written_twice_is_one_file(run: Path) -> None:
    first = write_to_inbox(run / "inbox", [a_label("mine")])
    assert write_to_inbox(run / "inbox", [a_label("mine")]) == first
    write_to_inbox(run / "inbox", [a_label("mine", second=1)])
    assert len(inbox_names(run / "inbox")) == len(list((run / "inbox").iterdir())) == 2
    assert seen(run) == [(3, "mine", "ann")]


def test_a_file_is_absorbed_once_and_stays_until_the_copy_with_it_is_published(run: Path) -> None:
    write_to_inbox(run / "inbox", [a_label("mine")], [a_vote(1)])
    with open_work(run) as work:
        assert absorb_inbox(work, run / "inbox") == 1
        assert absorb_inbox(work, run / "inbox") == 0
        assert seen(run) == [(3, "mine", "ann")]
        publish(work, run)
        # Both in the tables and in the inbox: seen once.
        assert seen(run) == [(3, "mine", "ann")]
        assert seen(run, VOTES) == [(f"{RES}:3", "bob", 1)]
        assert seen(run, "SELECT count(*), count(DISTINCT label_id) FROM labels") == [(79, 79)]
        remove_absorbed(work, run / "inbox")
    assert inbox_names(run / "inbox") == []
    assert seen(run) == [(3, "mine", "ann")]
    assert seen(run, VOTES) == [(f"{RES}:3", "bob", 1)]
    assert seen(run, "SELECT count(*) FROM parts WHERE stage = 'inbox'") == [(1,)]


def test_what_was_written_after_the_absorption_is_not_removed(run: Path) -> None:
    write_to_inbox(run / "inbox", [a_label("mine")])
    with open_work(run) as work:
        absorb_inbox(work, run / "inbox")
        write_to_inbox(run / "inbox", [a_label("later", second=1)])
        publish(work, run)
        remove_absorbed(work, run / "inbox")
    assert len(inbox_names(run / "inbox")) == 1
    assert seen(run) == [(3, "later", "ann")]


def test_a_label_that_was_absorbed_can_be_written_again_and_keeps_its_scores(run: Path) -> None:
    write_to_inbox(run / "inbox", [a_label("mine")])
    absorb(run)
    with open_work(run) as work:
        work.execute(
            "INSERT INTO scores BY NAME SELECT label_id, 'simulation' AS scorer, 'm' AS simulator, "
            "'correlation' AS metric, 'score' AS split, 0.5 AS value FROM labels "
            "WHERE author = 'ann'"
        )
    write_to_inbox(run / "inbox", [a_label("other", second=1)])
    write_to_inbox(run / "inbox", [a_label("mine", second=2, explanation="because")])
    query = "SELECT text, explanation, score FROM current_labels WHERE source = 'human'"
    assert seen(run, query) == [("mine", "because", None)]
    absorb(run)
    assert seen(run, query) == [("mine", "because", 0.5)]


def test_a_label_taken_back_is_still_there_but_not_in_force(run: Path) -> None:
    write_to_inbox(run / "inbox", [a_label("mine")])
    absorb(run)
    write_to_inbox(run / "inbox", [a_label("mine", second=1, status="withdrawn")])
    query = "SELECT text, status FROM labels WHERE source = 'human'"
    for _ in range(2):
        assert seen(run) == []
        assert seen(run, query) == [("mine", "withdrawn")]
        assert seen(run, "SELECT count(*) FROM current_labels WHERE feature = 3") == [(2,)]
        absorb(run)


def test_a_file_that_is_absorbed_between_listing_and_reading_is_passed_over(run: Path) -> None:
    file = write_to_inbox(run / "inbox", [a_label("mine")])
    absorb(run)
    # Its name is listed, and there is nothing to read.
    file.symlink_to(run / "nowhere")
    assert inbox_names(run / "inbox") == [file.name]
    assert read_inbox(run / "inbox") == []
    assert seen(run) == [(3, "mine", "ann")]


def test_what_a_writer_left_when_it_was_killed_counts_for_nothing(run: Path) -> None:
    (run / "inbox").mkdir()
    (run / "inbox" / ".unfinished-1-ab").write_text('{"format": 1, "labels": [')
    (run / "inbox" / "notes.txt").write_text("somebody's")
    assert seen(run) == []
    assert absorb(run) == 0


def test_a_damaged_file_is_left_with_a_warning_and_the_others_count(run: Path) -> None:
    damaged = write_to_inbox(run / "inbox", [a_label("lost")])
    write_to_inbox(run / "inbox", [a_label("mine", feature=4)])
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=f"{damaged.name} is damaged"):
        assert seen(run) == [(4, "mine", "ann")]
    with pytest.warns(UserWarning, match="damaged"):
        assert absorb(run) == 1
    assert inbox_names(run / "inbox") == [damaged.name]


def test_a_vote_is_for_against_or_taken_back() -> None:
    with pytest.raises(ValueError, match="not 2"):
        a_vote(2)


AUTHORS, TEXTS = ("ann", "bob"), ("one", "two", "three")
WRITING = st.one_of(
    st.tuples(
        st.just("label"),
        st.sampled_from(AUTHORS),
        st.sampled_from(TEXTS),
        st.sampled_from(("done", "withdrawn")),
    ),
    st.tuples(st.just("vote"), st.sampled_from(AUTHORS), st.sampled_from((-1, 0, 1))),
    st.just(("absorb",)),
    st.just(("publish",)),
)


@settings(max_examples=8)
@given(acts=st.lists(WRITING, max_size=6))
def test_readers_see_the_last_of_each_whatever_is_absorbed_and_published_between(
    acts: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.mktemp("run")
    labels: dict[tuple[str, str], tuple[int, str]] = {}
    votes: dict[str, int] = {}
    with open_work(run) as work:
        publish(work, run)
        for second, (kind, *act) in enumerate(acts):
            if kind == "label":
                author, text, status = act
                labels[author, text] = (second, status)
                row = a_label(text, second, author=author, status=status)
                write_to_inbox(run / "inbox", [row])
            elif kind == "vote":
                author, vote = act
                votes[author] = vote
                write_to_inbox(run / "inbox", votes=[a_vote(vote, second, author)])
            elif kind == "absorb":
                absorb_inbox(work, run / "inbox")
            else:
                publish(work, run)
                remove_absorbed(work, run / "inbox")
            standing = [(at, *key) for key, (at, status) in labels.items() if status == "done"]
            expected = [(3, text, author) for _, author, text in sorted(standing)[-1:]]
            with scopenote.open(run) as reader:
                assert reader.sql(IN_FORCE).fetchall() == expected
                found = reader.sql(VOTES).fetchall()
                n_labels = reader.sql("SELECT count(*) FROM labels").fetchall()
            assert found == [(f"{RES}:3", *each) for each in sorted(votes.items())]
            assert n_labels == [(len(labels),)]
