"""Progress: lines where there is no terminal, bars where there is, whatever the threads do."""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from scopenote.flows.progress import Progress, duration


def test_without_a_terminal_a_stage_ends_in_one_line() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        with progress.stage("collect", total=1000, unit="tokens") as stage:
            stage.advance(400)
            progress.say("a bad row")
            stage.advance(600)
        stage.finish("again")
    assert re.fullmatch(
        r"a bad row\ncollect: 1,000 tokens in 0\.\d s(, [\d,.]+/s)?\n", stream.getvalue()
    )


def test_lines_say_share_rate_and_time_left() -> None:
    stream = io.StringIO()
    with Progress(stream, line_seconds=0) as progress:
        progress.stage("score", total=200, unit="labels").advance(50)
        progress.stage("collect", unit="tokens").advance(50)
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(r"score: 25%, 50 of 200 labels, [\d,]+/s, 0 s left", first)
    assert re.fullmatch(r"collect: 50 tokens, [\d,]+/s", second)


def test_lines_are_far_between() -> None:
    stream = io.StringIO()
    with Progress(stream, line_seconds=60) as progress:
        stage = progress.stage("score", total=10_000)
        for _ in range(10_000):
            stage.advance()
    assert stream.getvalue() == ""


def test_a_stage_that_fails_does_not_claim_to_be_finished() -> None:
    stream = io.StringIO()
    with (
        pytest.raises(ZeroDivisionError),
        Progress(stream) as progress,
        progress.stage("score", total=10),
    ):
        raise ZeroDivisionError
    assert stream.getvalue() == ""


@pytest.mark.parametrize("animate", [False, True])
def test_threads_may_advance_together(animate: bool) -> None:
    with Progress(io.StringIO(), animate=animate) as progress:
        stage = progress.stage("score", total=4000)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: stage.advance(), range(4000)))
        assert stage.done == 4000


def test_on_a_terminal_bars_are_drawn_and_the_cursor_comes_back() -> None:
    stream = io.StringIO()
    with Progress(stream, animate=True) as progress:
        with progress.stage("collect", total=10, unit="tokens") as stage:
            stage.advance(10)
        progress.say("[brackets] stay")
    text = stream.getvalue()
    assert "[brackets] stay" in text
    assert "10 tokens in 0 s" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_are_said_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words
