"""What `scopenote schedule` takes, refuses and says, before any server is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from scopenote.flows.cli import main
from scopenote.flows.config import demo_config
from scopenote.flows.schedule_page import render_deployments
from scopenote.flows.timetable import Timetable, deployment_name, span
from scopenote.store.errors import UserMistake

NIGHTLY = "0 2 * * *"


@pytest.mark.parametrize(
    ("typed", "seconds"), [("90s", 90), ("15m", 900), ("6h", 21_600), (" 1 d ", 86_400)]
)
def test_a_span_of_time_is_a_number_and_a_unit(typed: str, seconds: int) -> None:
    assert Timetable.parse(None, typed, None) == Timetable(every=timedelta(seconds=seconds))


@pytest.mark.parametrize("typed", ["6", "h", "-1h", "1.5h", "6 hours", "0s", "1s", "400d", ""])
def test_any_other_span_is_refused_with_what_would_do(typed: str) -> None:
    with pytest.raises(UserMistake, match="such as 90m or 6h; 5s to 366d"):
        Timetable.parse(None, typed, None)


@pytest.mark.parametrize(
    ("span_of_time", "words"),
    [(timedelta(hours=6), "6h"), (timedelta(minutes=90), "90m"), (timedelta(seconds=61), "61s")],
)
def test_a_span_is_shown_as_it_may_be_typed(span_of_time: timedelta, words: str) -> None:
    assert span(span_of_time) == words
    assert Timetable.parse(None, words, None) == Timetable(every=span_of_time)


def test_a_cron_schedule_means_a_clock() -> None:
    assert str(Timetable.parse(NIGHTLY, None, "Europe/Berlin")) == f"{NIGHTLY} (Europe/Berlin)"
    assert str(Timetable.parse(" 0  2 * * * ", None, None)) == f"{NIGHTLY} (UTC)"
    assert str(Timetable.parse("@daily", None, None)) == "@daily (UTC)"


@pytest.mark.parametrize("typed", ["0 2 * *", "61 2 * * *", "* * * * * *", "R 2 * * *", "nightly"])
def test_a_wrong_cron_schedule_is_refused_with_the_five_fields(typed: str) -> None:
    with pytest.raises(UserMistake, match="five fields: minute, hour"):
        Timetable.parse(typed, None, None)


@pytest.mark.parametrize("typed", ["Europe/Berlim", "../etc/passwd", "", "CEST+1"])
def test_an_unknown_time_zone_is_refused(typed: str) -> None:
    with pytest.raises(UserMistake, match="no such time zone"):
        Timetable.parse(NIGHTLY, None, typed)


def test_a_misspelt_time_zone_is_corrected() -> None:
    with pytest.raises(UserMistake, match="perhaps `Europe/Berlin` was meant"):
        Timetable.parse(NIGHTLY, None, "Europe/Berlim")


def test_nothing_typed_is_no_timetable() -> None:
    assert Timetable.parse(None, None, None) is None


def test_two_folders_never_share_a_name_and_one_folder_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "a" / "my run", tmp_path / "b" / "my run"
    assert deployment_name(one) != deployment_name(other)
    assert deployment_name(one).startswith("my-run-")
    monkeypatch.chdir(tmp_path)
    assert deployment_name(Path("a/../a/my run")) == deployment_name(one)


def test_a_rule_becomes_prefects() -> None:
    anchor = datetime(2026, 11, 1, tzinfo=UTC)
    every = Timetable(every=timedelta(hours=6)).schedule(anchor).schedule
    assert (every.interval, every.anchor_date) == (timedelta(hours=6), anchor)
    cron = Timetable(cron=NIGHTLY, timezone="Europe/Berlin").schedule(anchor).schedule
    assert (cron.cron, cron.timezone) == (NIGHTLY, "Europe/Berlin")


@pytest.fixture
def scopenote(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Gives the command with what is a mistake; what is said of it."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["scopenote", "schedule", *arguments])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        assert (ending.value.code, output.out) == (2, "")
        return output.err

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("x.toml", "--cron", NIGHTLY, "--every", "6h"), "leave out the other"),
        (("x.toml", "--every", "6h", "--timezone", "UTC"), "Only `--cron` means a clock"),
        (("x.toml", "--pause", "--remove"), "found: `--pause` and `--remove`"),
        (("x.toml", "--pause", "--every", "6h"), "found: `--pause` and `--every`"),
        (("--list", "--with-server"), "found: `--list` and `--with-server`"),
        (("x.toml", "--every", "6h", "--port", "4200"), "add `--with-server`"),
        (("--every", "6h"), "Which run?"),
        (("x.toml", "--every", "6h"), "There is no such configuration file."),
        (("x.toml", "--every", "6h", "--budget-usd", "much"), "not an amount of dollars"),
        (("x.toml", "--every", "6h", "--when-busy", "shout"), "Invalid value for '--when-busy'"),
    ],
)
def test_a_mistake_is_answered_before_any_server_is_asked(
    scopenote: Callable[..., str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in scopenote(*arguments)


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/api"])
def test_without_a_server_it_is_said_how_to_get_one(tmp_path: Path, url: str) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(demo_config(max_tokens=1000).to_toml())
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": url}
    found = subprocess.run(
        [sys.executable, "-m", "scopenote.flows.cli", "schedule", str(config), "--every", "6h"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
    )
    assert (found.returncode, found.stdout) == (2, "")
    wrong = "The Prefect server does not answer." if url else "There is no Prefect server"
    assert wrong in found.stderr
    assert "`prefect server start`" in found.stderr and "--with-server" in found.stderr
    assert not (tmp_path / "tiny").exists()


def test_no_schedules_is_said_too() -> None:
    console = Console(record=True, width=80)
    with console.capture() as shown:
        console.print(render_deployments([]))
    assert shown.get() == "There are no schedules of ours on this server.\n"
