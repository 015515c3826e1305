"""Labels and votes by hand: what is taken, what is refused, and that no run is in the way."""

from __future__ import annotations

import getpass
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import scopenote
from scopenote.flows.by_hand import cast_vote, withdraw_labels, write_label
from scopenote.flows.cli import main
from scopenote.flows.config import demo_config
from scopenote.flows.recorded_runs import recorded_run
from scopenote.flows.replay import replay_label
from scopenote.store.database import open_published
from scopenote.store.errors import UserMistake
from scopenote.store.inbox import WrittenLabel, inbox_names, write_to_inbox
from scopenote.store.run_folder import RunFolder

from .made_up_run import RES, make_database

FEATURE = f"{RES}/3"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("made-up") / "scopenote.duckdb"
    make_database(file).close()
    return file


@pytest.fixture
def folder(tmp_path: Path, made_up: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run").create()
    folder.write_config(demo_config().to_toml())
    shutil.copy(made_up, folder.database)
    return folder


@pytest.fixture
def command(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command on the folder; its exit status and both outputs."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(name: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scopenote", name, str(folder.path), *words])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        return ending.value.code, output.out, output.err

    return run


def in_force(folder: RunFolder) -> tuple[Any, ...]:
    with scopenote.open(folder.path) as reader:
        (row,) = reader.sql(
            "SELECT text, explanation, author FROM current_labels "
            f"WHERE sae_id = '{RES}' AND feature = 3"
        ).fetchall()
    return row


def votes(folder: RunFolder) -> list[tuple[Any, ...]]:
    with scopenote.open(folder.path) as reader:
        return reader.sql("SELECT author, vote FROM votes ORDER BY ALL").fetchall()


def test_a_label_is_taken_while_another_process_holds_the_folder(
    folder: RunFolder, command: Callable[..., tuple[int, str, str]]
) -> None:
    with folder.lock("scopenote run"):
        status, out, _ = command("label", "1-res-1k/3", "names of modules", "--author", "ann")
        assert status == 0
        assert "names of modules" in out
        assert "human, ann" in out
        status, out, _ = command("show", "1-res-1k/3")
    assert status == 0
    assert "names of modules" in out
    assert "human, ann" in out


def test_the_author_is_the_login_name_unless_one_is_given(
    folder: RunFolder, command: Callable[..., tuple[int, str, str]]
) -> None:
    assert command("label", FEATURE, "mine", "--explanation", "seen twice")[0] == 0
    assert in_force(folder) == ("mine", "seen twice", getpass.getuser())


def test_who_has_no_login_name_is_told_to_give_one(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    with pytest.raises(UserMistake, match="--author"):
        write_label(folder, FEATURE, "mine")


def test_the_last_label_counts_also_where_clocks_differ(folder: RunFolder) -> None:
    first = write_label(folder, FEATURE, "first", author="ann")
    ahead = datetime.now(UTC) + timedelta(hours=1)
    elsewhere = replace(first, text="from a clock that is ahead", author="bob")
    write_to_inbox(folder.inbox, [WrittenLabel.of(elsewhere, ahead)])
    assert in_force(folder)[0] == "from a clock that is ahead"
    for text in ("second", "first"):
        write_label(folder, FEATURE, text, author="ann")
        assert in_force(folder) == (text, None, "ann")


def test_taking_back_leaves_the_label_that_is_next(folder: RunFolder) -> None:
    before = in_force(folder)
    write_label(folder, FEATURE, "by bob", author="bob")
    for text in ("by ann", "by ann again"):
        write_label(folder, FEATURE, text, author="ann")
    withdraw_labels(folder, FEATURE, "ann")
    assert in_force(folder)[0] == "by bob"
    withdraw_labels(folder, FEATURE, "bob")
    assert in_force(folder) == before
    with pytest.raises(UserMistake, match="no label by a person"):
        withdraw_labels(folder, FEATURE, "ann")
    with scopenote.open(folder.path) as reader:
        kept = reader.sql(
            "SELECT text, status, reason FROM labels WHERE source = 'human' ORDER BY ALL"
        ).fetchall()
    assert kept == [
        (text, "withdrawn", "withdrawn by its author")
        for text in ("by ann", "by ann again", "by bob")
    ]


def test_what_cannot_be_seen_is_left_out_of_a_label(folder: RunFolder) -> None:
    write_label(folder, FEATURE, " red\x1b[31m \n words\u202e ", author="an\x07n")
    assert in_force(folder) == ("red words", None, "ann")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"text": ""}, "no text"),
        ({"text": " \u200b\x1b[31m"}, "x1b"),
        ({"text": "long " * 50}, "249 characters"),
        ({"text": "mine", "explanation": "\n"}, "explanation shows nothing"),
        ({"text": "mine", "explanation": "x" * 2001}, "2,001 characters"),
        ({"text": "mine", "author": " "}, "author shows nothing"),
        ({"text": "mine", "feature": f"{RES}/40"}, "no feature of this number"),
    ],
)
def test_what_is_refused_is_not_written(
    folder: RunFolder, arguments: dict[str, str], found: str
) -> None:
    with pytest.raises(UserMistake, match=found):
        write_label(folder, **{"feature": FEATURE, "author": "ann", **arguments})
    assert inbox_names(folder.inbox) == []


@pytest.mark.parametrize("words", [(), ("mine", "--withdraw"), ("--withdraw", "--explanation", "")])
def test_a_label_is_either_written_or_taken_back(
    folder: RunFolder, command: Callable[..., tuple[int, str, str]], words: tuple[str, ...]
) -> None:
    status, out, err = command("label", FEATURE, *words)
    assert (status, out) == (2, "")
    assert "either written or taken back" in err


def test_a_vote_counts_once_an_author_and_is_shown(
    folder: RunFolder, command: Callable[..., tuple[int, str, str]]
) -> None:
    label_id = f"{RES}:3"
    for choice in ("down", "up", "up"):
        status, out, _ = command("vote", label_id, choice, "--author", "ann")
        assert status == 0
    assert "1 for it, 0 against it" in out
    command("vote", label_id, "down", "--author", "bob")
    assert votes(folder) == [("ann", 1), ("bob", -1)]
    _, out, _ = command("show", FEATURE, "--json")
    assert [json.loads(out)["label"][name] for name in ("n_up", "n_down")] == [1, 1]
    command("vote", label_id, "none", "--author", "bob")
    assert votes(folder) == [("ann", 1), ("bob", 0)]


def test_a_label_that_is_still_in_the_inbox_can_be_voted_on(folder: RunFolder) -> None:
    label = write_label(folder, FEATURE, "mine", author="ann")
    assert cast_vote(folder, label.label_id[:6], -1, "bob") == label.feature_id
    assert votes(folder) == [("bob", -1)]


def test_a_vote_on_no_label_is_refused(
    folder: RunFolder, command: Callable[..., tuple[int, str, str]]
) -> None:
    assert command("vote", "nothing", "up")[0] == 2
    assert command("vote", f"{RES}:3", "sideways")[0] == 2
    assert inbox_names(folder.inbox) == []


def test_a_label_by_a_person_is_not_replayed(folder: RunFolder) -> None:
    label = write_label(folder, FEATURE, "mine", author="ann")
    with (
        scopenote.open(folder.path) as store,
        pytest.raises(UserMistake, match="source human, author ann"),
    ):
        replay_label(store, label.label_id)


def test_where_there_is_only_a_database_nothing_can_be_written(tmp_path: Path) -> None:
    make_database(tmp_path / "scopenote.duckdb").close()
    with pytest.raises(UserMistake, match=r"without run\.toml"):
        RunFolder.open_existing(tmp_path)


def test_a_run_absorbs_what_was_written_before_it_and_while_it_worked(folder: RunFolder) -> None:
    shutil.copy(folder.database, folder.work_database)
    write_label(folder, FEATURE, "before", author="ann")
    with recorded_run("score", demo_config(), folder):
        assert len(inbox_names(folder.inbox)) == 1
        write_label(folder, f"{RES}/4", "meanwhile", author="ann")
        assert in_force(folder)[0] == "before"
    assert inbox_names(folder.inbox) == []
    with open_published(folder.database) as reader:
        found = reader.sql("SELECT feature, text FROM labels WHERE source = 'human'").fetchall()
    assert sorted(found) == [(3, "before"), (4, "meanwhile")]


def test_a_run_that_fails_leaves_what_was_written_to_the_next(folder: RunFolder) -> None:
    shutil.copy(folder.database, folder.work_database)
    write_label(folder, FEATURE, "mine", author="ann")
    with pytest.raises(ZeroDivisionError), recorded_run("score", demo_config(), folder):
        raise ZeroDivisionError
    assert in_force(folder)[0] == "mine"
    with recorded_run("score", demo_config(), folder):
        pass
    assert inbox_names(folder.inbox) == []
    assert in_force(folder)[0] == "mine"
