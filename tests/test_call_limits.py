"""Limits of calls: never more than allowed, less where that was too much, and back again."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.label.call_limits import BURST_SECONDS, SMALLEST_SHARE, CallLimits, Pace
from scopenote.store.errors import ConfigurationError

# Seconds after the one before, amount, and by how much its estimate is off.
Arrivals = st.lists(
    st.tuples(st.just(0.0) | st.floats(0, 30), st.integers(1, 50), st.integers(-40, 40)),
    min_size=1,
    max_size=40,
)


class LeakyBucket:
    """The slow obvious twin: what was taken leaks away, and too full a bucket has to wait."""

    def __init__(self, per_minute: float) -> None:
        self.leak = per_minute / (60 + BURST_SECONDS)
        self.level = 0.0
        self.seen = 0.0

    def book(self, amount: float, now: float) -> float:
        self.level = max(0.0, self.level - self.leak * (now - self.seen))
        self.seen = now
        pause = max(0.0, self.level / self.leak - BURST_SECONDS)
        self.level += amount
        return pause


@settings(max_examples=50)
@given(st.integers(1, 60), st.sampled_from([1, 50]), Arrivals)
def test_a_pace_is_a_leaky_bucket_and_no_minute_has_more_than_allowed(
    per_minute: int, largest: int, arrivals: list[tuple[float, int, int]]
) -> None:
    pace, twin = Pace(per_minute), LeakyBucket(per_minute)
    now = 0.0
    starts: list[tuple[float, int]] = []
    for later, drawn, _ in arrivals:
        now += later
        amount = min(drawn, largest)
        pause = pace.book(amount, now)
        assert pause == pytest.approx(twin.book(amount, now), abs=1e-6)
        starts.append((now + pause, amount))
    for first, (begin, _) in enumerate(starts):
        minute = [amount for start, amount in starts[first:] if start < begin + 60 - 1e-6]
        assert sum(minute[:-1]) < per_minute + 1e-6
        if largest == 1:
            assert len(minute) <= per_minute


@settings(max_examples=50)
@given(st.integers(1, 2000), st.sampled_from([1.0, 0.5, 1 / 64]), Arrivals)
def test_a_booking_put_right_at_once_is_a_right_booking(
    per_minute: int, share: float, arrivals: list[tuple[float, int, int]]
) -> None:
    corrected, right = Pace(per_minute), Pace(per_minute)
    now = 0.0
    for later, amount, wrong_by in arrivals:
        now += later
        estimate = max(0, amount + wrong_by)
        pauses = corrected.book(estimate, now, share), right.book(amount, now, share)
        corrected.correct(amount - estimate, share)
        assert pauses[0] == pytest.approx(pauses[1], abs=1e-4)


def test_half_the_share_is_half_the_pace() -> None:
    whole, half = Pace(600), Pace(300)
    for _ in range(20):
        assert whole.book(1, 5.0, share=0.5) == pytest.approx(half.book(1, 5.0))


async def use(
    limits: CallLimits, seconds: float, running: list[int], order: list[int], name: int
) -> None:
    async with limits.turn():
        order.append(name)
        running.append(running[-1] + 1)
        await asyncio.sleep(seconds)
        running.append(running[-1] - 1)


@pytest.mark.parametrize("concurrency", [1, 3, 100])
def test_no_more_calls_are_made_at_once_than_allowed_and_in_the_order_of_asking(
    concurrency: int,
) -> None:
    async def run() -> tuple[list[int], list[int]]:
        limits, running, order = CallLimits(concurrency), [0], []
        await asyncio.gather(*(use(limits, 0.001, running, order, name) for name in range(20)))
        return running, order

    running, order = asyncio.run(run())
    assert max(running) == min(concurrency, 20)
    assert order == list(range(20))


def test_who_gives_up_waiting_leaves_no_gap() -> None:
    async def run() -> list[int]:
        limits, running, order = CallLimits(1), [0], []
        tasks = [asyncio.create_task(use(limits, 0.002, running, order, name)) for name in range(6)]
        await asyncio.sleep(0)
        tasks[1].cancel()  # waits
        tasks[0].cancel()  # has its turn, which goes to 2
        await asyncio.sleep(0)
        tasks[2].cancel()  # was just given its turn
        await asyncio.wait_for(asyncio.gather(*tasks[3:]), 1)
        assert running[-1] == 1  # only 0 was cut short
        return order

    assert asyncio.run(run())[-3:] == [3, 4, 5]


def test_limits_halve_once_for_calls_in_flight_together_and_grow_back_slowly() -> None:
    async def run() -> None:
        limits = CallLimits(64)
        async with limits.turn() as first, limits.turn() as second:
            await first.book(1)
            await second.book(1)
            first.too_much()
            second.too_much()
        assert limits.at_once == 32
        for expected in (16, 8, 4, 2, 1, 1):
            async with limits.turn() as turn:
                await turn.book(1)
                turn.too_much()
            assert limits.at_once == expected
        assert limits.share == SMALLEST_SHARE
        grown = []
        for _ in range(3000):
            async with limits.turn() as turn:
                await turn.book(1)
                turn.settle(None)
            grown.append(limits.at_once)
        # One more for each round: after 1 + 2 + … + n calls it is n + 1.
        slowly = [n for n in range(1, 64) for _ in range(n)]
        assert grown[0] == 2
        assert all(abs(a - b) <= 1 for a, b in zip(grown, slowly[1:], strict=False))
        assert grown[-1] == 64

    asyncio.run(run())


def test_too_much_lowers_the_pace_too_and_one_reply_does_not_give_it_back() -> None:
    async def run() -> float:
        limits = CallLimits(1, requests_per_minute=6100)
        async with limits.turn() as turn:
            await turn.book(1)
            turn.too_much()
        async with limits.turn() as turn:
            await turn.book(1)
            turn.settle(1)
        assert limits.share == 0.5 + SMALLEST_SHARE
        return await seconds_for(limits, 56, 1, None)

    # 51.6 a second: with 1 and 2 of the two before, the last of 56 is due at 1.09, less the burst.
    assert 0.08 <= asyncio.run(run()) < 0.6


def test_a_call_that_failed_otherwise_changes_nothing() -> None:
    async def run() -> float:
        limits = CallLimits(1)
        with pytest.raises(ZeroDivisionError):
            async with limits.turn() as turn:
                await turn.book(1)
                raise ZeroDivisionError
        async with limits.turn():
            return limits.share

    assert asyncio.run(asyncio.wait_for(run(), 1)) == 1.0


async def seconds_for(limits: CallLimits, n_calls: int, tokens: int, used: int | None) -> float:
    began = time.monotonic()
    for _ in range(n_calls):
        async with limits.turn() as turn:
            await turn.book(tokens)
            if used is not None:
                turn.settle(used)
    return time.monotonic() - began


# 6,100 a minute is 100 a second and 100 at once.
@pytest.mark.parametrize(
    ("limits", "n_calls", "tokens", "used", "seconds"),
    [
        ({"requests_per_minute": 6100}, 111, 10_000, None, 0.1),
        ({"tokens_per_minute": 6100}, 12, 10, None, 0.1),
        ({"tokens_per_minute": 6100}, 12, 1000, 10, 0.1),
        ({"tokens_per_minute": 6100}, 3, 1, 55, 0.1),
        ({"tokens_per_minute": 6100, "requests_per_minute": 61}, 2, 10, 10, 0.0),
    ],
)
def test_calls_wait_for_their_minute_and_what_was_not_used_is_given_back(
    limits: dict[str, Any],
    n_calls: int,
    tokens: int,
    used: int | None,
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A wall clock that jumps back and forth has no say in it.
    jumping = itertools.cycle([0.0, 4e9])
    monkeypatch.setattr(time, "time", lambda: next(jumping))
    took = asyncio.run(seconds_for(CallLimits(4, **limits), n_calls, tokens, used))
    assert seconds * 0.9 <= took < seconds + 0.5


@pytest.mark.parametrize(
    "limits", [(0,), (-1,), (1, 0), (1, -5), (1, None, 0), (1, None, float("nan"))]
)
def test_limits_that_allow_nothing_are_refused(limits: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigurationError):
        CallLimits(*limits)
